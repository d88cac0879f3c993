"""Checkpoints of the published sizes and layouts with random weights, written where they are needed and never kept.

Networks are taming's and openai-clip's own; what lies beside them in the files (discriminator, LPIPS, transformer, both
Adams' moments) has the right names and sizes, and zeros for values.
"""

import contextlib
import io
import warnings

import tiny
import torch
from taming.modules.discriminator.model import NLayerDiscriminator
from taming.modules.transformer.mingpt import GPT

OPENAI = {
    "ViT-B/32": dict(embed_dim=512, image_resolution=224, vision_layers=12, vision_width=768, vision_patch_size=32,
                     transformer_width=512, transformer_heads=8),
    "RN50": dict(embed_dim=1024, image_resolution=224, vision_layers=(3, 4, 6, 3), vision_width=64,
                 vision_patch_size=None, transformer_width=512, transformer_heads=8),
}  # fmt: skip


def vqgan(config, seed=0):
    """A VQGAN of taming's modules with random weights; config: the arguments of `tiny.VQGAN`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return tiny.VQGAN(**config).eval().requires_grad_(False)


def shapes(make):
    """The state dict of a module that is never made: zeros of its sizes, which cost no memory until written to."""
    with torch.device("meta"), contextlib.redirect_stdout(io.StringIO()):
        return {name: torch.zeros(tensor.shape, device="cpu") for name, tensor in make().state_dict().items()}


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def lpips():
    """Perceptual loss: VGG16's convolutions in five slices, and five 1x1 convolutions."""
    widths = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512), (512, 512),
              (512, 512), (512, 512), (512, 512), (512, 512)]  # fmt: skip
    state = {}
    for number, (before, after) in enumerate(widths):
        state[f"net.{number}.weight"] = torch.zeros(after, before, 3, 3)
        state[f"net.{number}.bias"] = torch.zeros(after)
    for number, width in enumerate((64, 128, 256, 512, 512)):
        state[f"lin{number}.model.1.weight"] = torch.zeros(1, width, 1, 1)
    return state


def adam(state):
    """An optimiser's state over these parameters: two moments each. Attention masks are buffers, and have none."""
    moments = {
        number: {"step": 7, "exp_avg": torch.zeros(tensor.shape), "exp_avg_sq": torch.zeros(tensor.shape)}
        for number, (name, tensor) in enumerate(state.items())
        if not name.endswith("attn.mask")
    }
    return {"state": moments, "param_groups": [{"lr": 4.5e-6, "betas": (0.5, 0.9), "params": list(moments)}]}


def write_vqgan(path, model, critic_layers, legacy=False):
    """As training left imagenet's: loss networks, both Adams, callbacks keyed by their class."""
    mine = dict(model.state_dict())
    critic = shapes(lambda: NLayerDiscriminator(input_nc=3, ndf=64, n_layers=critic_layers))
    loss = prefixed("loss.perceptual_loss.", lpips()) | prefixed("loss.discriminator.", critic)
    _write(path, mine | loss, [adam(mine), adam(critic)], legacy)


def write_net2net(path, model):
    """As sflckr's: a first stage, a second VQGAN for segmentations, and a transformer with its Adam."""
    segmentation = model.ddconfig | {"in_channels": 182, "out_ch": 182}
    condition = shapes(lambda: tiny.VQGAN(segmentation, 1024, 256))
    transformer = shapes(lambda: GPT(vocab_size=1024, block_size=512, n_layer=24, n_head=16, n_embd=1024))
    state = prefixed("first_stage_model.", model.state_dict())
    state |= prefixed("cond_stage_model.", condition) | prefixed("transformer.", transformer)
    _write(path, state, [adam(transformer)])


def _write(path, state, optimisers, legacy=False):
    with tiny._lightning_1_0() as model_checkpoint:
        content = {
            "epoch": 3, "global_step": 7, "pytorch-lightning_version": "1.0.8",
            "callbacks": {model_checkpoint: {"best_model_score": torch.tensor(0.5), "best_model_path": "last.ckpt"}},
            "optimizer_states": optimisers, "lr_schedulers": [], "state_dict": state,
        }  # fmt: skip
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)


def clip(name, seed=0):
    """OpenAI's network of that name with random weights, its matrices rounded to float16 as published."""
    openai = tiny._openai("model")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = openai.CLIP(**OPENAI[name], context_length=77, vocab_size=49408, transformer_layers=12)
    if name == "RN50":
        images = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(seed))
        tiny._settle_statistics(model.visual, images)
    openai.convert_weights(model)
    return model.eval().requires_grad_(False)


def write_clip(path, model):
    """A traced TorchScript archive, attention masks and all."""
    for key, value in (("context_length", 77), ("vocab_size", 49408)):
        delattr(model, key)
        model.register_buffer(key, torch.tensor(value))
    model.register_buffer("input_resolution", torch.tensor(224))
    example = torch.zeros(1, 3, 224, 224), torch.zeros(1, 77, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates what OpenAI used
        torch.jit.trace(model, example, check_trace=False).save(str(path))
