"""Tiny seeded models for the whole suite, of taming's and openai-clip's own classes, and their files on disk.

They know nothing of `vqclip`: what they compute is what the original networks compute, so a test may compare
against them, and what they write has the layout of the published checkpoints, so a test may load it.

    vqgan = tiny.vqgan(gumbel=True)      # tiny.VQGAN: encode, decode, codebook, state_dict, config
    clip = tiny.clip("rn")               # openai-clip's CLIP, float32, eval
    tiny.write_ckpt(path, vqgan)         # a Lightning .ckpt with discriminator, Adam moments, callbacks

The networks are small (tens of milliseconds), but every normalisation, bias and running statistic is away
from its default, so that a forward which forgets one of them gives another result.
"""

import contextlib
import importlib.util
import io
import pathlib
import sys
import types

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from taming.modules.diffusionmodules.model import Decoder, Encoder
from torch import nn

# VQGAN


class VQGAN(nn.Module):
    """A VQGAN as taming's VQModel (or the later GumbelVQ) computes it; keys as in the checkpoints.

    C latent channels, K codes, f pixels per latent position. Both `encode` and `decode` live in taming's
    [-1,1].
    """

    def __init__(self, ddconfig, n_embed, embed_dim, gumbel=False):
        super().__init__()
        z = ddconfig["z_channels"]
        with contextlib.redirect_stdout(io.StringIO()):  # taming's Decoder prints its z shape
            self.encoder, self.decoder = Encoder(**ddconfig), Decoder(**ddconfig)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(z, embed_dim, 1), nn.Conv2d(embed_dim, z, 1)
        self.quantize = nn.Module()
        if gumbel:
            self.quantize.proj = nn.Conv2d(z, n_embed, 1)
            self.quantize.embed = nn.Embedding(n_embed, embed_dim)
        else:
            self.quantize.embedding = nn.Embedding(n_embed, embed_dim)
        self.gumbel, self.ddconfig, self.n_embed, self.embed_dim = gumbel, ddconfig, n_embed, embed_dim

    @property
    def codebook(self):
        """(K,C)."""
        return (self.quantize.embed if self.gumbel else self.quantize.embedding).weight

    @property
    def f(self):
        return 2 ** (self.decoder.num_resolutions - 1)

    def pre_quantised(self, x):
        """Picture (B,3,H,W) in [-1,1] -> what the quantiser gets, (B,C,h,w)."""
        return self.quant_conv(self.encoder(x))

    def codes(self, x):
        """Picture (B,3,H,W) in [-1,1] -> (B,h,w): the nearest code, or for Gumbel the largest logit."""
        h = self.pre_quantised(x)
        if self.gumbel:
            return self.quantize.proj(h).argmax(1)
        rows = h.permute(0, 2, 3, 1).flatten(0, 2)
        distance = ((rows[:, None] - self.codebook[None]) ** 2).sum(-1)
        return distance.argmin(-1).view(h.shape[0], *h.shape[2:])

    def encode(self, x):
        """Picture (B,3,H,W) in [-1,1] -> quantised latent (B,C,h,w)."""
        return self.codebook[self.codes(x)].permute(0, 3, 1, 2)

    def decode(self, z_q):
        """(B,C,h,w) -> (B,3,H,W), nominally in [-1,1]."""
        return self.decoder(self.post_quant_conv(z_q))

    @property
    def config(self):
        """The .yaml that goes with the checkpoint, as a dict."""
        params = {"embed_dim": self.embed_dim, "n_embed": self.n_embed, "ddconfig": self.ddconfig}
        if self.gumbel:
            params["kl_weight"] = 1e-8
            params["temperature_scheduler_config"] = {
                "target": "taming.lr_scheduler.LambdaWarmUpCosineScheduler",
                "params": dict(
                    warm_up_steps=0, max_decay_steps=1000001, lr_start=0.9, lr_max=0.9, lr_min=1e-6
                ),
            }
        else:
            params["monitor"] = "val/rec_loss"
        params["lossconfig"] = {"target": "taming.modules.losses.DummyLoss"}
        target = "taming.models.vqgan.GumbelVQ" if self.gumbel else "taming.models.vqgan.VQModel"
        return {"model": {"base_learning_rate": 4.5e-6, "target": target, "params": params}}


def vqgan(gumbel=False, f=2, seed=0, dtype=torch.float32):
    """A seeded tiny VQGAN in eval mode: K=32, C=8, ch=32, f 2 or 4, attention at the lowest resolution.

    Its pictures reach beyond [-1,1] in places, so clamping matters; its codes are spread like its encoder's
    output.
    """
    generator = torch.Generator().manual_seed(seed)
    ddconfig = dict(
        double_z=False,
        z_channels=8 if gumbel else 12,  # Gumbel's proj reads what quant_conv writes: there the two agree
        resolution=32,
        in_channels=3,
        out_ch=3,
        ch=32,
        ch_mult={2: [1, 2], 4: [1, 1, 2]}[f],
        num_res_blocks=1,
        attn_resolutions=[32 // f],
        dropout=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = VQGAN(ddconfig, n_embed=32, embed_dim=8, gumbel=gumbel)
    unsettle(model, generator)
    with torch.no_grad():
        model.codebook.normal_(generator=generator)
        _match_scale(
            model.quant_conv, lambda: model.pre_quantised(_noise(generator)), spread=1.0, channels=True
        )
        z_q = model.codebook[torch.randint(32, (1, 12, 12), generator=generator)].permute(0, 3, 1, 2)
        _match_scale(model.decoder.conv_out, lambda: model.decode(z_q), spread=0.6)
    return model.eval().requires_grad_(False).to(dtype)


def _noise(generator):
    return torch.rand((1, 3, 24, 24), generator=generator) * 2 - 1


def _match_scale(conv, output, spread, channels=False):
    """Scale and shift `conv`, the last layer of `output()`, so that mean is 0 and deviation `spread`."""
    y = output()
    dims = (0, 2, 3) if channels else (0, 1, 2, 3)
    scale = spread / y.std(dims, keepdim=True).flatten()
    shift = y.mean(dims, keepdim=True).flatten()
    conv.bias.copy_((conv.bias - shift) * scale)
    conv.weight.mul_(scale.view(-1, 1, 1, 1))


def unsettle(module, generator):
    """Move every normalisation weight, bias and running statistic off its default of 0 or 1, in place."""

    def normal(tensor, mean, std):
        tensor.copy_(mean + std * torch.randn(tensor.shape, generator=generator))

    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                normal(part.running_mean, 0, 0.1)
                part.running_var.copy_(0.5 + torch.rand(part.running_var.shape, generator=generator))
            if isinstance(part, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
                normal(part.weight, 1, 0.2)
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                normal(parameter, 0, 0.1)


# The files of a VQGAN


def write_yaml(path, model, net2net=False):
    """The model's .yaml; `net2net` wraps it as the first stage of a transformer."""
    config = model.config
    if net2net:
        first = {"target": config["model"]["target"], "params": config["model"]["params"]}
        gpt = dict(vocab_size=32, block_size=64, n_layer=1, n_head=1, n_embd=8)
        params = {
            "transformer_config": {"target": "taming.modules.transformer.mingpt.GPT", "params": gpt},
            "first_stage_config": first,
            "cond_stage_config": "__is_unconditional__",
        }
        target = "taming.models.cond_transformer.Net2NetTransformer"
        config = {"model": {"base_learning_rate": 4.5e-6, "target": target, "params": params}}
    OmegaConf.save(OmegaConf.create(config), path)


def write_safetensors(path, model):
    """The generator's tensors alone, under the checkpoint's names."""
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)


def write_ckpt(path, model, net2net=False, legacy=False):
    """A Lightning checkpoint as training wrote it: loss networks, two Adams, callbacks keyed by their class.

    net2net: under `first_stage_model.`, beside a transformer and a conditioning stage. legacy: torch's
    pre-1.6 file format, which is no zip.
    """
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if net2net:
        state = {f"first_stage_model.{name}": tensor for name, tensor in state.items()}
        state["cond_stage_model.encoder.conv_in.weight"] = torch.zeros(4, 3, 3, 3)
        state["transformer.tok_emb.weight"] = torch.zeros(32, 8)
    else:
        state["loss.perceptual_loss.lin0.model.1.weight"] = torch.zeros(1, 64, 1, 1)
        state["loss.discriminator.main.0.weight"] = torch.zeros(8, 3, 4, 4)
    moments = {0: {"step": 7, "exp_avg": torch.zeros(4), "exp_avg_sq": torch.zeros(4)}}
    adam = {"state": moments, "param_groups": [{"lr": 4.5e-6, "betas": (0.5, 0.9), "params": [0]}]}
    with _lightning_1_0() as model_checkpoint:
        checkpoint = {
            "epoch": 3,
            "global_step": 7,
            "pytorch-lightning_version": "1.0.8",
            "callbacks": {
                model_checkpoint: {"best_model_score": torch.tensor(0.5), "best_model_path": "last.ckpt"}
            },
            "optimizer_states": [adam, adam],
            "lr_schedulers": [],
            "state_dict": state,
        }
        torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)


@contextlib.contextmanager
def _lightning_1_0():
    """Lend pickle a `pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint`, installed or not."""
    names = [
        "pytorch_lightning",
        "pytorch_lightning.callbacks",
        "pytorch_lightning.callbacks.model_checkpoint",
    ]
    before = {name: sys.modules.get(name) for name in names}
    modules = {name: types.ModuleType(name) for name in names}
    checkpoint = type("ModelCheckpoint", (), {"__module__": names[-1]})
    modules[names[0]].callbacks, modules[names[1]].model_checkpoint = modules[names[1]], modules[names[2]]
    modules[names[-1]].ModelCheckpoint = checkpoint
    sys.modules.update(modules)
    try:
        yield checkpoint
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


# CLIP


def _openai(stem):
    """A module of the installed openai-clip, loaded alone: `import clip` wants a setuptools of its time."""
    folder = pathlib.Path(importlib.util.find_spec("clip").submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location(f"tiny_openai_clip_{stem}", folder / f"{stem}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def clip(kind="vit", seed=0, dtype=torch.float32):
    """A seeded tiny openai-clip CLIP in eval mode with the full vocabulary.

    "vit": 32 px, patches of 8, width 128 (2 heads), 2 layers, D=48.
    "rn": ModifiedResNet, 64 px, width 16 (8 heads in the pool), one block a level, D=40.
    """
    shapes = {
        "vit": dict(
            embed_dim=48, image_resolution=32, vision_layers=2, vision_width=128, vision_patch_size=8
        ),
        "rn": dict(embed_dim=40, image_resolution=64, vision_layers=(1, 1, 1, 1), vision_width=16),
    }[kind]
    shapes.setdefault("vision_patch_size", None)
    width = {"vit": 128, "rn": 64}[kind]
    text = dict(context_length=77, vocab_size=49408)
    text |= dict(transformer_width=width, transformer_heads=width // 64, transformer_layers=2)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _openai("model").CLIP(**shapes, **text)
    generator = torch.Generator().manual_seed(seed)
    unsettle(model, generator)
    if kind == "rn":
        _settle_statistics(model.visual, torch.randn((16, 3, 64, 64), generator=generator))
    if dtype == torch.float64:  # OpenAI's LayerNorm computes in float32 whatever it is given
        for part in model.modules():
            if isinstance(part, nn.LayerNorm):
                part.__class__ = nn.LayerNorm
    return model.eval().requires_grad_(False).to(dtype)


def _settle_statistics(network, images):
    """Let batch normalisation measure its statistics on `images`; else all images would embed alike."""
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over all batches seen: here, of one
    with torch.no_grad():
        network.train()(images)
    for norm in norms:
        norm.momentum = 0.1


def tokenize(texts, context_length=77):
    """Texts -> (len(texts), context_length) tokens, as openai-clip has it: start, byte pairs, end, zeros."""
    tokenizer = _openai("simple_tokenizer").SimpleTokenizer()
    start, end = tokenizer.encoder["<|startoftext|>"], tokenizer.encoder["<|endoftext|>"]
    tokens = torch.zeros(len(texts), context_length, dtype=torch.long)
    for row, text in zip(tokens, texts, strict=True):
        line = [start, *tokenizer.encode(text), end]
        assert len(line) <= context_length, f"{text!r} is too long"
        row[: len(line)] = torch.tensor(line)
    return tokens


# The files of a CLIP


def write_clip_safetensors(path, model):
    """The tensors under OpenAI's names, less the three metadata entries, as timm's repositories hold them."""
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)


def write_clip_pt(path, model):
    """A TorchScript archive as OpenAI published: float16 tensors and the three metadata entries."""
    resolution = model.visual.input_resolution
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    state["input_resolution"] = torch.tensor(resolution)
    state["context_length"], state["vocab_size"] = torch.tensor(77), torch.tensor(49408)
    root = nn.Module()
    for name, tensor in state.items():
        *path_to, leaf = name.split(".")
        parent = root
        for part in path_to:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent._modules[part]
        parent.register_buffer(leaf, tensor)
    torch.jit.script(root).save(str(path))
