"""open_clip's models as judges, on small networks of its own making: whatever it computes, we compute.

Where open_clip is not installed, or its torchvision is for another torch, these are skipped; what is said to people
then is tested in test_perceptor.py.
"""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import quick
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import vqclip
from vqclip import openclip
from vqclip.catalogue import CheckpointError
from vqclip.memory import needed

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import open_clip
        from open_clip import pretrained
except (ImportError, RuntimeError) as error:
    pytest.skip(f"open_clip cannot be loaded: {error}", allow_module_level=True)

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2}
VIT = {"embed_dim": 48, "vision_cfg": {"image_size": 32, "layers": 2, "width": 128, "patch_size": 8}, "text_cfg": TEXT}
RN = {"embed_dim": 40, "text_cfg": TEXT | {"width": 64, "heads": 1},
      "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}}  # fmt: skip
SIGLIP = {"embed_dim": 64, "init_logit_bias": -10, "custom_text": True,
          "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "none"},
          "text_cfg": {"context_length": 16, "vocab_size": 300, "width": 64, "heads": 2, "layers": 2,
                       "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
                       "tokenizer_kwargs": {"clean": "canonicalize"}}}  # fmt: skip
SENTENCES = ["пустыня и песок", "в снегу зимой", "a desert in the snow", "un château dans la neige", "砂漠の雪"] * 4


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A folder of small architectures, known to open_clip by name, with the words of five languages."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig

    folder = tmp_path_factory.mktemp("zoo")
    words = Tokenizer(models.Unigram())
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    marks = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=marks, unk_token="<unk>", show_progress=False)
    words.train_from_iterator(SENTENCES, trainer)
    words.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    fast = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
                                   pad_token="<pad>")  # fmt: skip
    fast.save_pretrained(folder / "words")
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    XLMRobertaConfig(vocab_size=300, pad_token_id=1, bos_token_id=0, eos_token_id=2, max_position_embeddings=90,
                     **size).save_pretrained(folder / "words")  # fmt: skip
    SIGLIP["text_cfg"]["hf_tokenizer_name"] = str(folder / "words")
    xlm = {"embed_dim": 48, "vision_cfg": VIT["vision_cfg"],
           "text_cfg": {"hf_model_name": str(folder / "words"), "hf_tokenizer_name": str(folder / "words"),
                        "hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp"}}  # fmt: skip
    configs = {"tiny-vit": VIT, "tiny-vit-quickgelu": VIT | {"quick_gelu": True}, "tiny-siglip": SIGLIP,
               "tiny-rn-quickgelu": RN | {"quick_gelu": True}, "tiny-xlm": xlm}  # fmt: skip
    for name, config in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    for name in configs:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = made(name)
            for parameter in model.parameters():
                parameter.data += 0.02 * torch.randn(parameter.shape)
        save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()},
                  folder / f"{name}.safetensors")  # fmt: skip
    return folder


def made(name, path=None, **options):
    """open_clip's own model, by its own loader."""
    return open_clip.create_model(name, str(path) if path else None, pretrained_text=False, **options).eval()


def same(clip, model, mean, std, texts=("a desert", "snow")):
    """Both towers, up to the length of the rows, which ours makes 1."""
    cuts = torch.rand(3, 3, clip.size, clip.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        normal = (cuts - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        pairs = [(clip.encode_image(cuts), model.encode_image(normal)),
                 (clip.encode_text(list(texts)), model.encode_text(clip.tokenizer(list(texts))))]  # fmt: skip
    return all(torch.allclose(ours, F.normalize(theirs, dim=1), atol=1e-5) for ours, theirs in pairs)


OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-vit-quickgelu", "tiny-rn-quickgelu", "tiny-xlm", "tiny-siglip"])
def test_a_file_of_ones_own(zoo, name):
    clip = vqclip.load_clip(f"open_clip:{name}/{name}.safetensors", root=zoo)
    assert clip.name == f"open_clip:{name}/{name}.safetensors" and len(clip.sha256) == 64 and not clip.training
    assert clip.size == {"tiny-rn-quickgelu": 64, "tiny-siglip": 160}.get(name, 32)
    assert same(clip, made(name, zoo / f"{name}.safetensors"), *OPENAI)
    cuts = torch.rand(2, 3, clip.size, clip.size).requires_grad_()
    (gradient,) = torch.autograd.grad(clip.encode_image(cuts)[:, 0].sum(), cuts)
    assert (gradient.flatten(1).norm(dim=1) > 0).all() and not any(p.requires_grad for p in clip.parameters())


@pytest.mark.parametrize("kind", ["vit", "rn"])
def test_openais_weights_say_the_same_in_open_clips_network(zoo, files, kind):
    """Which they only do with QuickGELU."""
    ours = vqclip.load_clip(kind, root=files)
    theirs = vqclip.load_clip(f"open_clip:tiny-{kind}-quickgelu/{files / kind}.safetensors")
    cuts = torch.rand(4, 3, ours.size, ours.size)
    texts = ["a desert", "snow on the mountains", "пустыня"]
    assert torch.allclose(ours.encode_image(cuts), theirs.encode_image(cuts), atol=1e-5)
    assert torch.allclose(ours.encode_text(texts), theirs.encode_text(texts), atol=1e-5)
    assert [ours.tokens(text).ids for text in texts] == [theirs.tokens(text).ids for text in texts]
    if kind == "vit":
        gelu = vqclip.load_clip(f"open_clip:tiny-vit/{files / kind}.safetensors")
        assert (ours.encode_image(cuts) - gelu.encode_image(cuts)).abs().max() > 1e-4


def test_a_training_checkpoint(zoo, tmp_path):
    """As open_clip's training writes it: of a parallel module, with epoch and optimiser."""
    state = {f"module.{key}": value for key, value in load_file(zoo / "tiny-vit.safetensors").items()}
    torch.save({"epoch": 3, "name": "mine", "state_dict": state, "optimizer": {"state": {}}}, tmp_path / "epoch_3.pt")
    clip = vqclip.load_clip(f"open_clip:tiny-vit/{tmp_path}/epoch_3.pt")
    assert same(clip, made("tiny-vit", zoo / "tiny-vit.safetensors"), *OPENAI)


def test_a_folder_as_the_hub_has_them(zoo, tmp_path):
    shutil.copytree(zoo / "words", tmp_path, dirs_exist_ok=True)
    shutil.copy(zoo / "tiny-siglip.safetensors", tmp_path / "open_clip_model.safetensors")
    colours = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "squash"}
    described = {"model_cfg": SIGLIP, "preprocess_cfg": colours}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(described))
    clip = vqclip.load_clip(f"open_clip:{tmp_path}")
    assert clip.size == 160 and clip.mean.unique() == 0.5 == clip.std.unique()
    assert same(clip, made(f"local-dir:{tmp_path}"), [0.5] * 3, [0.5] * 3)


@pytest.fixture
def tags(zoo, monkeypatch, tmp_path):
    """Two tags in open_clip's zoo, whose weights are on this disk already."""
    torch.save(load_file(zoo / "tiny-vit.safetensors"), tmp_path / "there.pt")
    entries = {"lookalike": {"quick_gelu": True, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)},
               "plain": {"mean": OPENAI[0], "std": OPENAI[1]}}  # fmt: skip
    entries = {tag: entry | {"file": str(tmp_path / "there.pt")} for tag, entry in entries.items()}
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny-vit", entries)
    return tmp_path


def test_a_tag_brings_its_activation_and_colours(tags, zoo):
    clip = vqclip.load_clip("open_clip:tiny-vit/lookalike", root=tags)
    theirs = made("tiny-vit", zoo / "tiny-vit.safetensors", force_quick_gelu=True)
    assert same(clip, theirs, [0.5] * 3, [0.25] * 3) and not same(clip, theirs, *OPENAI)
    assert not same(clip, made("tiny-vit", zoo / "tiny-vit.safetensors"), [0.5] * 3, [0.25] * 3)
    plain = vqclip.load_clip("open_clip:tiny-vit/plain", root=tags)
    assert same(plain, made("tiny-vit", zoo / "tiny-vit.safetensors"), *OPENAI)


def test_what_was_fetched_is_kept_as_safetensors_and_is_enough(tags, monkeypatch):
    first = vqclip.load_clip("open_clip:tiny-vit/plain", root=tags)
    kept = tags / "open_clip" / "tiny-vit-plain.safetensors"
    assert kept.is_file() and not kept.with_suffix(".fetching").exists()
    (tags / "there.pt").unlink()
    monkeypatch.setenv("VQCLIP_OFFLINE", "1")
    assert vqclip.load_clip("open_clip:tiny-vit/plain", root=tags).sha256 == first.sha256
    with pytest.raises(CheckpointError, match="tiny-vit-lookalike.safetensors is not in .*VQCLIP_OFFLINE forbids"):
        vqclip.load_clip("open_clip:tiny-vit/lookalike", root=tags)


def test_safetensors_are_taken_as_they_are_fetched(tags, zoo, monkeypatch):
    """From where the hub's client keeps them: a link to a file that is named by its hash."""

    def download(tag, cache_dir):
        blob, link = Path(cache_dir) / "blobs" / "40d365", Path(cache_dir) / "snapshots" / "open_clip_model.safetensors"
        for path in (blob, link):
            path.parent.mkdir(parents=True)
        shutil.copy(zoo / "tiny-vit.safetensors", blob)
        link.symlink_to(blob)
        return str(link)

    monkeypatch.setattr(open_clip, "download_pretrained", download)
    clip = vqclip.load_clip("open_clip:tiny-vit/plain", root=tags)
    kept = tags / "open_clip" / "tiny-vit-plain.safetensors"
    assert kept.read_bytes() == (zoo / "tiny-vit.safetensors").read_bytes() and not kept.is_symlink()
    assert {path.name for path in kept.parent.iterdir()} <= {kept.name, "tiny-vit-plain.lock"}
    assert same(clip, made("tiny-vit", zoo / "tiny-vit.safetensors"), *OPENAI)


def test_a_fetch_that_fails_says_so(tags, monkeypatch):
    def download(tag, cache_dir):
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(open_clip, "download_pretrained", download)
    with pytest.raises(CheckpointError, match="tiny-vit-plain could not be fetched .We couldn't connect.*: try again"):
        vqclip.load_clip("open_clip:tiny-vit/plain", root=tags)


def test_a_hostile_file_is_refused_and_does_not_stay(tags):
    class Payload:
        def __reduce__(self):
            return Path.touch, (tags / "owned",)

    torch.save({"state_dict": {"logit_scale": torch.ones(()), "x": Payload()}}, tags / "there.pt")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        vqclip.load_clip("open_clip:tiny-vit/plain", root=tags)
    assert not (tags / "owned").exists() and not list((tags / "open_clip").glob("*.safetensors"))


def test_every_model_of_the_zoo_has_its_own_activation_and_colours(monkeypatch, tmp_path):
    monkeypatch.setattr(openclip, "_fetched", lambda library, tag, kept: kept)
    zoo = open_clip.list_pretrained()
    assert len(zoo) > 150
    quick_gelu = set()
    for name, tag in zoo:
        recipe, known = openclip._of_name(open_clip, f"{name}/{tag}", tmp_path), open_clip.get_pretrained_cfg(name, tag)
        assert (recipe.mean, recipe.std) == (known["mean"], known["std"])
        assert recipe.config["quick_gelu"] or not known.get("quick_gelu")
        if recipe.config["quick_gelu"]:
            quick_gelu.add(f"{name}/{tag}")
        if "siglip" in name.lower() and tag == "webli":
            assert recipe.mean == recipe.std == (0.5, 0.5, 0.5)
    assert {"ViT-B-32/openai", "ViT-B-32-quickgelu/openai", "RN50/openai", "ViT-L-14/metaclip_400m"} <= quick_gelu
    assert not {"ViT-B-32/laion2b_s34b_b79k", "ViT-H-14/laion2b_s32b_b79k", "ViT-B-16-SigLIP/webli"} & quick_gelu


def test_many_languages(zoo):
    """A run by prompts in Russian, each word of which the judge knows."""
    name = "open_clip:tiny-xlm/tiny-xlm.safetensors"
    run = vqclip.generate("пустыня:50 | в снегу:25", quick.painter(), name, root=zoo, size=32, steps=2, cutouts=2, lr=1,
                          device="cpu")  # fmt: skip
    clip = run.losses[name][1].perceptor
    read = clip.tokens("пустыня")
    assert read.ids[0] == 0 and read.ids[-1] == 2 and read.context == 77 and not (read.cut or read.unknown)
    assert clip.tokens("в снегу Ѭ").unknown == ("Ѭ",)
    assert "пустыня 67 % · в снегу 33 %" in vqclip.echo(run) and f"{name} reads 77 tokens" in vqclip.echo(run)
    frames = list(run)
    assert len(frames) == 3 and frames[0].similarity.keys() == {"пустыня", "в снегу"}
    assert (frames[0].codes != frames[2].codes).any()
    rows = clip.encode_text(["пустыня", "в снегу", "a desert"])
    assert (rows[:2] - rows[2]).norm(dim=1).min() > 1e-3


@pytest.mark.parametrize("name, context", [("tiny-vit", 77), ("tiny-xlm", 77), ("tiny-siglip", 16)])
def test_tokens_are_those_that_are_read(zoo, name, context):
    clip = vqclip.load_clip(f"open_clip:{name}/{name}.safetensors", root=zoo)
    for text in ("snow", "a desert in the snow " * 20):
        tokens, row = clip.tokens(text), clip.tokenizer([text])[0].tolist()
        assert tokens.context == len(row) == context and list(tokens.ids) == row[: len(tokens.ids)]
        assert set(row[len(tokens.ids) :]) <= {0, 1} and len(set(row[len(tokens.ids) :])) < 2  # padding
        assert bool(tokens.cut) == (text != "snow")
    with pytest.warns(UserWarning, match=f"reads {context} tokens; this was cut off"):
        clip.encode_text(["a desert in the snow " * 20])


def test_it_judges_beside_another(zoo, files):
    names = f"vit + open_clip:tiny-siglip/{zoo}/tiny-siglip.safetensors"
    run = vqclip.generate("a desert", quick.painter(), names.replace("vit", str(files / "vit.safetensors")), size=32,
                          steps=1, cutouts=2, device="cpu")  # fmt: skip
    whole, one = needed(run), needed(run, chunk=1)
    assert whole.judges > one.judges > 100_000  # both can be counted before
    frame = next(run)
    assert len(frame.losses) == 2 and torch.stack(list(frame.losses.values())).isfinite().all()


@pytest.mark.parametrize(
    "what, said",
    [
        ("ViT-B-23/laion2b_s34b_b79k", "open_clip has no 'ViT-B-23', did you mean 'ViT-B-32'"),
        ("ViT-B-32", "open_clip has no '' of ViT-B-32.*laion2b_s34b_b79k"),
        ("ViT-B-32/laion", "open_clip has no 'laion' of ViT-B-32, and there is no such file: choose .*openai"),
        ("tiny-vit/tiny-rn-quickgelu.safetensors", "does not hold the weights of tiny-vit "),
        ("tiny-vit/words/config.json", "cannot be read as a checkpoint"),
        ("tiny-vit/broken.safetensors", "does not hold the weights of tiny-vit .*Missing key.*: name the architecture"),
    ],
)
def test_what_is_wrong_is_said(zoo, what, said):
    weights = load_file(zoo / "tiny-vit.safetensors")
    del weights["visual.proj"]
    save_file(weights, zoo / "broken.safetensors")
    with pytest.raises(CheckpointError, match=said):
        vqclip.load_clip(f"open_clip:{what}", root=zoo)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(CheckpointError, match="is no model of open_clip"):
        vqclip.load_clip(f"open_clip:{tmp_path}")


def test_nobody_elses_random_numbers_move(zoo):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    vqclip.load_clip("open_clip:tiny-vit/tiny-vit.safetensors", root=zoo)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_full_size_vit_b_32_says_what_openais_does(tmp_path):
    import full_size

    full_size.write_clip(tmp_path / "ViT-B-32.pt", full_size.clip("ViT-B/32"))
    ours = vqclip.load_clip(tmp_path / "ViT-B-32.pt")
    theirs = vqclip.load_clip(f"open_clip:ViT-B-32-quickgelu/{tmp_path}/ViT-B-32.pt")
    cuts = torch.rand(2, 3, 224, 224)
    assert (ours.encode_image(cuts) - theirs.encode_image(cuts)).abs().max() < 1e-5
    assert (ours.encode_text(["a desert"]) - theirs.encode_text(["a desert"])).abs().max() < 1e-5
    assert tiny.tokenize(["a desert"])[0, :4].tolist() == list(theirs.tokens("a desert").ids)
