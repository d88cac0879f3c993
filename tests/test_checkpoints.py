"""Checkpoints: every published layout loads; what is damaged, hostile or something else is refused with its name."""

import collections
import hashlib
import os
import pickle
import random

import pytest
import tiny
import torch

import vqclip
from vqclip import checkpoints
from vqclip.checkpoints import CheckpointError

ORIGINAL = tiny.vqgan()


@pytest.fixture
def painted(tmp_path):
    """A place for a checkpoint, with its .yaml there already."""
    tiny.write_yaml(tmp_path / "model.yaml", ORIGINAL)
    return tmp_path / "model.ckpt"


def refused(load, *args, **kwargs):
    """The words in which a file is refused: one sentence or two, no Python and no advice to switch protection off."""
    with pytest.raises(CheckpointError) as caught:
        load(*args, **kwargs)
    words = str(caught.value)
    assert "\n" not in words and len(words) < 500
    assert "weights_only" not in words and "Traceback" not in words and "\x1b" not in words
    return words


# Layouts


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before zip"])
@pytest.mark.parametrize("net2net", [False, True], ids=["vqgan", "net2net"])
@pytest.mark.parametrize("gumbel", [False, True], ids=["vq", "gumbel"])
def test_lightning_checkpoints(tmp_path, gumbel, net2net, legacy):
    """With a class for a key in its callbacks, discriminator, transformer and Adams, of which nothing is kept."""
    original = tiny.vqgan(gumbel)
    tiny.write_ckpt(tmp_path / "last.ckpt", original, net2net=net2net, legacy=legacy)
    tiny.write_yaml(tmp_path / "last.yaml", original, net2net=net2net)
    vqgan = vqclip.load_vqgan("last", root=tmp_path)
    ours, theirs = vqgan.state_dict(), original.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert not vqgan.training and not any(p.requires_grad for p in vqgan.parameters())
    assert all(p.dtype == torch.float32 and not p.is_meta for p in vqgan.parameters())
    assert (vqgan.name, vqgan.gumbel, vqgan.f, len(vqgan.codebook)) == ("last", gumbel, 2, 32)
    assert vqgan.sha256 == hashlib.sha256((tmp_path / "last.ckpt").read_bytes()).hexdigest()


def test_a_checkpoint_in_half_precision_is_computed_in_full(painted):
    torch.save({key: value.half() for key, value in ORIGINAL.state_dict().items()}, painted)
    vqgan = vqclip.load_vqgan(painted)
    assert {p.dtype for p in vqgan.parameters()} == {torch.float32}
    assert torch.equal(vqgan.codebook, ORIGINAL.codebook.half().float())


def test_names_paths_and_where_was_looked(files, tmp_path):
    assert vqclip.load_vqgan("vqgan", root=files).sha256 == vqclip.load_vqgan(files / "vqgan.safetensors").sha256
    (tmp_path / "ViT-B-32.pt").write_bytes(b"")
    assert checkpoints.find("ViT-B/32", tmp_path, "clip") == tmp_path / "ViT-B-32.pt"
    (tmp_path / "ViT-B-32.safetensors").write_bytes(b"")
    assert checkpoints.find("ViT-B/32", tmp_path, "clip") == tmp_path / "ViT-B-32.safetensors"  # the safer first
    assert checkpoints.find("embedded", tmp_path, "clip").parts[-2:] == ("embedded", "clip.safetensors")
    words = refused(vqclip.load_clip, "ViT-B/16", root=tmp_path)
    assert f"no checkpoint 'ViT-B/16': looked for ViT-B/16, {tmp_path}/ViT-B-16.safetensors" in words
    assert "Put the file there, give its path, or use 'embedded'" in words
    assert "no checkpoint" in refused(vqclip.load_vqgan, tmp_path)  # a folder


# The configuration


def test_a_missing_yaml(painted):
    tiny.write_ckpt(painted, ORIGINAL)
    painted.with_suffix(".yaml").unlink()
    words = refused(vqclip.load_vqgan, painted)
    assert words == "model.ckpt needs its configuration: put the checkpoint's .yaml beside it as model.yaml"


@pytest.mark.parametrize(
    "text",
    ["", "- a", "42", "model: 3", "model:\n  target: x\n", "a: [", "<!DOCTYPE html>\n<a: b>", "model: ${x}", "\x00",
     "model:\n  params:\n    embed_dim: 8\n", "!!python/object/apply:os.system ['touch ran']"],
    ids=ascii,
)  # fmt: skip
def test_a_yaml_of_something_else(painted, text, monkeypatch):
    monkeypatch.chdir(painted.parent)
    tiny.write_ckpt(painted, ORIGINAL)
    painted.with_suffix(".yaml").write_text(text)
    assert "model.yaml is not the configuration of a VQGAN" in refused(vqclip.load_vqgan, painted)
    assert not (painted.parent / "ran").exists()


def test_a_yaml_of_another_checkpoint(painted):
    tiny.write_ckpt(painted, ORIGINAL)
    tiny.write_yaml(painted.with_suffix(".yaml"), tiny.vqgan(gumbel=True))
    words = refused(vqclip.load_vqgan, painted)
    assert "model.ckpt does not fit its configuration" in words and "Check that the .yaml belongs to this file" in words


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda state, key: state.pop(key), "1 tensors are missing, the first is 'decoder.conv_out.weight'"),
        (lambda state, key: state.update(extra=state[key]), "1 tensors are surplus, the first is 'extra'"),
        (lambda state, key: state.update({key: state[key][:2]}), "1 tensors are of another shape, the first is 'deco"),
        (lambda state, key: state.update({key: "text"}), "1 tensors are missing, the first is 'decoder.conv_out.we"),
        (lambda state, key: state.clear(), "155 tensors are missing, the first is 'decoder.conv_in.bias'"),
    ],
    ids=["missing", "surplus", "shape", "no tensor", "empty"],
)
def test_tensors_that_do_not_fit_are_named(painted, change, words):
    state = dict(ORIGINAL.state_dict())
    change(state, "decoder.conv_out.weight")
    torch.save({"state_dict": state}, painted)
    assert words in refused(vqclip.load_vqgan, painted)


# Damage and malice


@pytest.mark.parametrize("kind", ["zip", "before zip", "safetensors", "torchscript"])
def test_files_cut_short_anywhere_and_with_flipped_bits(painted, kind):
    load = vqclip.load_vqgan
    if kind == "safetensors":
        painted = painted.with_suffix(".safetensors")
        tiny.write_safetensors(painted, ORIGINAL)
    elif kind == "torchscript":
        painted, load = painted.with_suffix(".pt"), vqclip.load_clip
        tiny.write_clip_pt(painted, tiny.clip())
    else:
        tiny.write_ckpt(painted, ORIGINAL, legacy=kind == "before zip")
    data = painted.read_bytes()
    few = 4 if kind == "torchscript" else 12
    lengths = [0, 1, 2, 7, 8, 100, 1000, len(data) // 2, len(data) - 1]
    for length in lengths[:: 12 // few]:
        painted.write_bytes(data[:length])
        assert "cannot be read as a checkpoint, it is damaged, cut short" in refused(load, painted)
    rng, seen = random.Random(0), collections.Counter()
    for _ in range(few):
        torn = bytearray(data)
        for _ in range(3):
            torn[rng.randrange(min(3000, len(torn)))] ^= 1 << rng.randrange(8)
        painted.write_bytes(torn)
        try:
            load(painted)
            seen["loaded"] += 1  # a bit of a weight, perhaps; that is what the sha256 is for
        except CheckpointError as error:
            seen["refused"] += "\n" not in str(error)
    assert seen.total() == few and (seen["refused"] or kind == "torchscript")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".safetensors"])
def test_a_web_page_in_place_of_a_checkpoint(painted, suffix):
    page = painted.with_suffix(suffix)
    page.write_text("\n<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>\n" * 9)
    for load in (vqclip.load_vqgan, vqclip.load_clip):
        assert "it is a web page: fetch it again, perhaps from elsewhere" in refused(load, page)


class Hostile:
    """What an attacker would put into a pickle: reading it runs a program."""

    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before zip"])
@pytest.mark.parametrize("place", ["a weight", "beside the weights", "a key"])
def test_a_hostile_checkpoint_runs_nothing(painted, monkeypatch, place, legacy):
    monkeypatch.chdir(painted.parent)
    state = dict(ORIGINAL.state_dict())
    content = {"state_dict": state, "callbacks": {Hostile(): 1} if place == "a key" else {}}
    (state if place == "a weight" else content)["evil"] = Hostile()
    torch.save(content, painted, _use_new_zipfile_serialization=not legacy)
    for load in (vqclip.load_vqgan, vqclip.load_clip):
        assert f"it holds {os.name}.system, which may run programs and is never loaded" in refused(load, painted)
    assert not (painted.parent / "ran").exists()


def test_a_hostile_bare_pickle_runs_nothing(painted, monkeypatch):
    monkeypatch.chdir(painted.parent)
    painted.write_bytes(pickle.dumps(Hostile()))
    refused(vqclip.load_vqgan, painted)
    refused(vqclip.load_clip, painted)
    assert not (painted.parent / "ran").exists()


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.zeros(3), "text"], ids=str)
def test_torch_files_of_something_else(painted, content):
    torch.save(content, painted)
    refused(vqclip.load_vqgan, painted)
    refused(vqclip.load_clip, painted)


def test_an_empty_unpickled_class_is_all_that_lightning_leaves():
    """The one class that is let in does nothing and knows nothing."""
    assert vars(checkpoints.CALLBACK).keys() <= {"__module__", "__dict__", "__weakref__", "__doc__"}


# CLIP


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda state, key: state.pop(key), 'Missing key(s) in state_dict: "transformer.resblocks.0.ln_1.weight"'),
        (lambda state, key: state.update(extra=state[key]), 'Unexpected key(s) in state_dict: "extra"'),
        (lambda state, key: state.update({key: state[key][:3]}), "size mismatch for transformer.resblocks.0.ln_1.we"),
        (lambda state, key: state.update(vocab=torch.tensor([1, 99999999])), "does not hold one of OpenAI's CLIP mod"),
        (lambda state, key: state.clear(), "does not hold one of OpenAI's CLIP models"),
    ],
    ids=["missing", "surplus", "shape", "vocabulary", "empty"],
)
def test_a_clip_that_does_not_fit(tmp_path, change, words):
    state = dict(tiny.clip().state_dict())
    change(state, "transformer.resblocks.0.ln_1.weight")
    torch.save(state, tmp_path / "clip.pt")
    assert words in refused(vqclip.load_clip, tmp_path / "clip.pt")


def test_the_one_is_not_the_other(files, tmp_path):
    assert "does not hold one of OpenAI's CLIP models" in refused(vqclip.load_clip, files / "vqgan.safetensors")
    tiny.write_clip_safetensors(tmp_path / "model.safetensors", tiny.clip())
    tiny.write_yaml(tmp_path / "model.yaml", ORIGINAL)
    words = refused(vqclip.load_vqgan, tmp_path / "model.safetensors")
    assert "155 tensors are missing, the first is 'decoder.conv_in.bias'" in words


def test_a_clip_as_openai_published_it(tmp_path, vit):
    tiny.write_clip_pt(tmp_path / "clip.pt", tiny.clip())
    clip = vqclip.load_clip(tmp_path / "clip.pt")
    cuts = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert (clip.encode_image(cuts) - vit.encode_image(cuts)).abs().max() < 2e-3  # it is stored in float16
    assert clip.size == 32 and {p.dtype for p in clip.parameters()} == {torch.float32}
