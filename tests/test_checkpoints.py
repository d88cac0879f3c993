"""Checkpoints: every published layout loads; what is damaged, hostile or something else is refused with its name."""

import argparse
import collections
import hashlib
import os
import pathlib
import pickle
import random
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tiny
import torch
from omegaconf import OmegaConf

import vqclip
from vqclip import checkpoints, torchfile
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


BLANK = """
import sys
import torch
from vqclip import VQGAN, checkpoints
from vqclip.perceptor import openai_clip

config = checkpoints.read_config(checkpoints.EMBEDDED / "vqgan.safetensors")
text = dict(context_length=77, vocab_size=999, transformer_width=64, transformer_heads=1, transformer_layers=1)
make = [lambda gumbel=gumbel: VQGAN(**config | dict(gumbel=gumbel)) for gumbel in (False, True)]
make += [lambda vision=vision: openai_clip("model").CLIP(embed_dim=40, image_resolution=64, **vision, **text)
         for vision in (dict(vision_layers=1, vision_width=64, vision_patch_size=8),
                        dict(vision_layers=(1, 1, 1, 1), vision_width=16, vision_patch_size=None))]
drawn = torch.random.get_rng_state()
with checkpoints.blank():
    blank = [one().state_dict() for one in make]
assert torch.random.get_rng_state().equal(drawn) and "torch._dynamo" not in sys.modules
for mine, its in zip(blank, [one().state_dict() for one in make], strict=True):
    shapes, others = ({name: (tensor.shape, tensor.dtype) for name, tensor in some.items()} for some in (mine, its))
    assert shapes == others
    assert all(tensor.is_meta for tensor in mine.values())
"""


def test_a_blank_network_has_all_but_values_and_takes_no_time_to_draw_them():
    """In a program of its own: here others have loaded torch's compiler, which blank networks do without."""
    subprocess.run([sys.executable, "-c", BLANK], check=True, capture_output=True)


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
    (tmp_path / "vqgan_imagenet_f16_16384.ckpt").write_bytes(b"")  # as it was called in 2021
    assert checkpoints.find("imagenet_f16_16384", tmp_path, "vqgan") == tmp_path / "vqgan_imagenet_f16_16384.ckpt"
    words = refused(vqclip.load_vqgan, "imagenet_16348", root=tmp_path)
    assert f"no checkpoint 'imagenet_16348': there is no such file, none of that name in {tmp_path}" in words
    assert "'imagenet_f16_16384', did you mean that?" in words
    assert "`vqclip checkpoints` lists" in refused(vqclip.load_vqgan, tmp_path)  # a folder
    assert "RN50 is a judge, no painter: give it as clip=" in refused(vqclip.load_vqgan, "RN50", root=tmp_path)


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


@pytest.mark.parametrize("old, new", [("ch_mult", "ch_nult"), ("n_embed: 32", "n_embed: many"), ("ch: 32", "ch: -1")])
def test_a_yaml_with_impossible_numbers(painted, old, new):
    tiny.write_ckpt(painted, ORIGINAL)
    beside = painted.with_suffix(".yaml")
    assert old in beside.read_text()
    beside.write_text(beside.read_text().replace(old, new))
    assert "the configuration of model.ckpt describes no VQGAN" in refused(vqclip.load_vqgan, painted)


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


def test_a_file_cut_short_where_nobody_reads_is_refused(painted):
    unread = [torch.zeros(4) for _ in range(1000)]  # the writer orders by address: most likely one of these is last
    torch.save({"optimizer_states": unread, "state_dict": ORIGINAL.state_dict()}, painted,
               _use_new_zipfile_serialization=False)  # fmt: skip
    painted.write_bytes(painted.read_bytes()[:-1])
    assert "cut short" in refused(vqclip.load_vqgan, painted)


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


def hidden(tmp_path):
    """Pickles that run a program in each way that the format knows; every one of them does when simply unpickled."""
    touch = f"touch {tmp_path / 'ran'}".encode()
    unicode = b"X" + len(touch).to_bytes(4, "little") + touch
    return {
        "reduce": b"\x80\x02cos\nsystem\n(" + unicode + b"tR.",
        "inst": b"\x80\x02(" + unicode + b"ios\nsystem\n.",
        "obj": b"\x80\x02(cos\nsystem\n" + unicode + b"o.",
        "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93(" + unicode + b"tR.",
        "newobj": b"\x80\x02csubprocess\nPopen\n((" + b"".join(
            b"X" + len(word).to_bytes(4, "little") + word for word in touch.split()) + b"lt\x81.",
        "eval": b"\x80\x02c__builtin__\neval\n(X" + (code := b"__import__('os').system('%s')" % touch).__len__()
                .to_bytes(4, "little") + code + b"tR.",
        "by attributes": b"\x80\x04\x8c\x05torch\x8c\x17serialization.os.system\x93(" + unicode + b"tR.",
    }  # fmt: skip


WAYS = "reduce", "inst", "obj", "stack global", "newobj", "eval", "by attributes"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", ["bare", "zip", "torchscript"])
def test_no_way_of_running_a_program_runs_one(painted, way, layout):
    program = hidden(painted.parent)[way]
    if layout == "bare":
        painted.write_bytes(program)
    else:
        with zipfile.ZipFile(painted, "w") as archive:
            archive.writestr("x/data.pkl", program)
            if layout == "torchscript":
                archive.writestr("x/constants.pkl", program)
                archive.writestr("x/code/__torch__.py", "import os; os.system('touch ran')")
    refused(vqclip.load_vqgan, painted)
    refused(vqclip.load_clip, painted)
    assert not (painted.parent / "ran").exists()


@pytest.mark.parametrize("way", WAYS)
def test_those_programs_are_programs(tmp_path, way):
    """Else the test above would prove nothing."""
    program = pickle.loads(hidden(tmp_path)[way])
    if way == "newobj":  # made without __init__, as pickle does: harmless by itself
        program.__init__(["touch", tmp_path / "ran"])
        program.wait()
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before zip"])
def test_what_trainers_left_beside_the_weights_does_no_harm(painted, legacy):
    """DALL-E mini's VQGAN holds OmegaConf's objects, others hold NumPy's; torch's own safe reader refuses both."""
    content = {
        "state_dict": collections.OrderedDict(ORIGINAL.state_dict()),
        "hyper_parameters": OmegaConf.create({"lr": 4.5e-6, "ddconfig": {"ch_mult": [1, 2]}, "name": "${lr}"}),
        "best": np.float64(0.5), "curve": np.arange(3), "where": pathlib.PurePosixPath("logs"),
        "arguments": argparse.Namespace(seed=3), "seen": {1, 2},
    }  # fmt: skip
    torch.save(content, painted, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(painted, weights_only=True)
    assert torch.equal(vqclip.load_vqgan(painted).codebook, ORIGINAL.codebook)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before zip"])
def test_tensors_are_read_as_torch_reads_them(tmp_path, legacy):
    """Every type, views of shared storages, transposed, empty, scalar and Parameter."""
    base = torch.arange(60.0)
    state = {str(kind): torch.arange(5).to(kind) for kind in torchfile.DTYPES.values()}
    state |= {"view": base[7:19].view(3, 4), "transposed": base.view(6, 10).t(), "strided": base[1::7],
              "expanded": base[:1].expand(4), "scalar": torch.tensor(3.5), "empty": torch.empty(0, 3),
              "parameter": torch.nn.Parameter(base[2:4].clone())}  # fmt: skip
    torch.save(state, tmp_path / "all.pt", _use_new_zipfile_serialization=not legacy)
    theirs, ours = torch.load(tmp_path / "all.pt", weights_only=True), torchfile.read(tmp_path / "all.pt")
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


class Masked(torch.nn.Module):
    """Like OpenAI's traced CLIP, whose attention masks are tensors that no state dict knows."""

    def __init__(self, depth=1):
        super().__init__()
        self.linear, self.mask = torch.nn.Linear(2, 3), torch.ones(2)
        self.register_buffer("resolution", torch.tensor(224))
        self.inner = torch.nn.Sequential(*(Masked(depth - 1) for _ in range(2 * (depth > 0))))

    def forward(self, x):
        return self.linear(x * self.mask)


@pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, torch.ones(1, 2))],
                         ids=["script", "trace"])  # fmt: skip
def test_torchscript_is_read_as_torch_reads_it_without_compiling(tmp_path, make, monkeypatch):
    make(Masked()).save(tmp_path / "model.pt")
    theirs = torch.jit.load(tmp_path / "model.pt").state_dict()
    monkeypatch.setattr(torch.jit, "load", None)
    monkeypatch.setattr(torch, "load", None)
    ours = torchfile.read(tmp_path / "model.pt")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    "offset, shape, stride",
    [(61, (1,), (1,)), (0, (61,), (1,)), (-4, (2,), (1,)), (0, (2, 2), (60, 1)), (0, (2,), (-1,)), (0, (-1,), (1,))],
)
def test_a_tensor_reaching_beyond_its_storage_is_refused(tmp_path, offset, shape, stride):
    stored = torchfile.Stored(torch.float32, "0", 60, offset, shape, stride)
    with pytest.raises(torchfile.TorchFileError, match="outside"):
        torchfile._tensor(stored, tmp_path / "none", torch.zeros(1000, dtype=torch.uint8), 64, 240)


# Conversion


@pytest.mark.parametrize("layout", ["lightning", "before zip", "net2net", "gumbel", "safetensors"])
def test_a_vqgan_converted_is_the_same_smaller_and_needs_nothing_beside_it(tmp_path, layout):
    original, path, kept = tiny.vqgan(layout == "gumbel"), tmp_path / "a.ckpt", tmp_path / "kept" / "b.safetensors"
    if layout == "safetensors":
        tiny.write_safetensors(path, original)
    else:
        tiny.write_ckpt(path, original, net2net=layout == "net2net", legacy=layout == "before zip")
    tiny.write_yaml(path.with_suffix(".yaml"), original, net2net=layout == "net2net")
    checkpoints.convert(path, kept, checkpoints.kind_of(path))
    assert kept.stat().st_mode == path.with_suffix(".yaml").stat().st_mode != 0o100600  # whoever may read others may
    path.unlink()
    path.with_suffix(".yaml").unlink()
    loaded = vqclip.load_vqgan(kept).state_dict()
    assert loaded.keys() == original.state_dict().keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in original.state_dict().items())
    assert {file.name for file in kept.parent.iterdir()} == {"b.safetensors"}


def test_a_clip_converted_is_the_same_and_every_conversion_gives_the_same_bytes(tmp_path):
    tiny.write_clip_pt(tmp_path / "a.pt", tiny.clip("rn"))
    for name in ("b", "c"):
        checkpoints.convert(tmp_path / "a.pt", tmp_path / f"{name}.safetensors", checkpoints.kind_of(tmp_path / "a.pt"))
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()
    first, second = (vqclip.load_clip(tmp_path / name).state_dict() for name in ("a.pt", "b.safetensors"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_disk_too_full_for_the_conversion(painted, full_disk):
    tiny.write_ckpt(painted, ORIGINAL)
    with full_disk(100_000):
        words = refused(checkpoints.convert, painted, painted.with_suffix(".safetensors"), "vqgan")
    assert "model.safetensors cannot be written" in words and "make room" in words
    assert {path.suffix for path in painted.parent.iterdir()} == {".ckpt", ".yaml"}


def test_files_that_may_only_be_read(painted):
    tiny.write_ckpt(painted, ORIGINAL)
    painted.chmod(0o444)
    assert torch.equal(vqclip.load_vqgan(painted).codebook, ORIGINAL.codebook)


def test_what_does_not_fit_is_not_converted(painted):
    state = dict(ORIGINAL.state_dict())
    del state["decoder.conv_out.weight"]
    torch.save(state, painted)
    words = refused(checkpoints.convert, painted, painted.with_suffix(".safetensors"), "vqgan")
    assert "decoder.conv_out.weight" in words and not painted.with_suffix(".safetensors").exists()


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
