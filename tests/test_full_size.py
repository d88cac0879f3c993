"""The published formats at their published sizes: what loads, what is refused, what a conversion keeps and costs.

Run with `-s` for the table. Each file is written, used and deleted, one at a time; 12 GB of disk and memory suffice.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import full_size
import pytest
import tiny
import torch
import torch.nn.functional as F

import vqclip
from vqclip import catalogue, checkpoints
from vqclip.catalogue import CheckpointError

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")]

CONVERT = """
import sys, time
from vqclip import checkpoints, perceptor, vqgan
def memory(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key + ":")) * 1024
before, start = memory("VmRSS"), time.monotonic()
checkpoints.convert(*sys.argv[1:])
print(memory("VmHWM") - before, time.monotonic() - start)
"""


STEP = """
import sys, torch, vqclip
from vqclip.memory import needed
def memory(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key + ":")) * 1024
torch.set_num_threads(1)
size, cutouts, chunk = map(int, sys.argv[2:])
run = vqclip.generate("desert | snow", "imagenet_f16_16384", "ViT-B/32", root=sys.argv[1], size=size, steps=1,
                      cutouts=cutouts, chunk=chunk, device="cpu")
for model in (run.latent.vqgan, run.judges()[0][1].perceptor):
    sum(weights.sum() for weights in model.parameters())  # so that all of them are in memory, and not on the disk
need, before = needed(run).step, memory("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak is counted from here
next(run)
print(memory("VmHWM") - before, need)
"""


# `python -m vqclip`, which says at its end how much memory it had at most: what a parent is told counts the parent too
PAINT = """
import atexit, runpy, sys
atexit.register(lambda: print(next(line for line in open("/proc/self/status") if "VmHWM" in line), file=sys.stderr))
runpy.run_module("vqclip", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where converted files gather, for the run at the end."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "checkpoints").mkdir()
    return folder


@pytest.fixture(scope="module")
def table():
    rows = []
    yield rows
    print(f"\n{'model and layout':<44}{'bytes':>14}{'kept':>13}{'convert':>9}{'peak':>9}{'load':>8}  cut short")
    for name, size, kept, seconds, peak, load in rows:
        print(f"{name:<44}{size:>14,}{kept:>13,}{seconds:>7.1f} s{peak / 1e6:>6.0f} MB{load:>6.1f} s  refused")


def convert(path, target, kind):
    """In a process of its own: (bytes of memory beyond what torch itself takes, seconds)."""
    command = [sys.executable, "-c", CONVERT, str(path), str(target), kind]
    peak, seconds = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(peak), float(seconds)


def proven(name, layout, path, home, table, load):
    """Convert and load a file; refuse it when cut short; note the figures. Returns what the converted file loads as."""
    model = catalogue.find(name)
    size, kept = path.stat().st_size, home / "checkpoints" / f"{model.stem}.safetensors"
    raw = load(path).state_dict()
    peak, seconds = convert(path, kept, model.kind)
    start = time.monotonic()
    loaded = load(kept)
    took = time.monotonic() - start
    state = loaded.state_dict()
    assert state.keys() == raw.keys() and all(torch.equal(state[key], raw[key]) for key in raw)
    table.append((f"{name}, {layout}", size, kept.stat().st_size, seconds, peak, took))
    assert abs(kept.stat().st_size - model.kept) < 0.002 * model.kept
    assert peak < kept.stat().st_size + 200e6
    del raw
    os.truncate(path, size // 2)
    with pytest.raises(CheckpointError, match="damaged, cut short"):
        load(path)
    path.unlink()
    return loaded


@pytest.mark.parametrize(
    "name, layout",
    [("imagenet_f16_16384", "Lightning, zip"), ("imagenet_f16_1024", "Lightning, before zip"),
     ("gumbel_f8_8192", "state dict, Gumbel"), ("sflckr", "Lightning, Net2Net")],
)  # fmt: skip
def test_a_vqgan(name, layout, tmp_path, home, table):
    model = catalogue.find(name)
    original, path = full_size.vqgan(model.config), tmp_path / f"{name}.ckpt"  # no .yaml: the catalogue knows it
    if name == "sflckr":
        full_size.write_net2net(path, original)
    elif name == "gumbel_f8_8192":
        torch.save({"state_dict": original.state_dict()}, path)
    else:
        full_size.write_vqgan(path, original, {16384: 2, 1024: 3}[original.n_embed], legacy="before" in layout)
    if name != "gumbel_f8_8192":  # of which it is not known what else it holds
        assert abs(path.stat().st_size - model.bytes) < 0.002 * model.bytes
    loaded = proven(name, layout, path, home, table, vqclip.load_vqgan)
    with torch.inference_mode():
        image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
        codes = original.codes(image * 2 - 1)
        z_q = original.codebook[codes].permute(0, 3, 1, 2)
        assert torch.equal(loaded.encode(image), codes)
        theirs = (original.decode(z_q) + 1) / 2
        assert (loaded.decode(loaded.embed(codes)) - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("name", ["ViT-B/32", "RN50"])
def test_a_clip(name, tmp_path, home, table):
    path = tmp_path / f"{catalogue.find(name).stem}.pt"
    full_size.write_clip(path, full_size.clip(name))
    assert abs(path.stat().st_size - catalogue.find(name).bytes) < 0.002 * catalogue.find(name).bytes
    state = torch.jit.load(path).state_dict()
    original = tiny._openai("model").build_model(dict(state)).float()
    torch.save({key: state[key] for key in state if "." in key or "_" in key}, tmp_path / "plain.pt")
    loaded = proven(name, "TorchScript", path, home, table, vqclip.load_clip)
    plain = vqclip.load_clip(tmp_path / "plain.pt").state_dict()
    assert all(torch.equal(tensor, plain[key]) for key, tensor in loaded.state_dict().items())
    with torch.inference_mode():
        cuts = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
        mean = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(3, 1, 1)
        std = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(3, 1, 1)
        seen = F.normalize(original.encode_image((cuts - mean) / std), dim=1)
        assert (loaded.encode_image(cuts) - seen).abs().max() < 1e-5
        read = F.normalize(original.encode_text(tiny.tokenize(["a desert", "snow"])), dim=1)
        assert (loaded.encode_text(["a desert", "snow"]) - read).abs().max() < 1e-5


@pytest.fixture
def pair(home):
    """The folder in which imagenet_f16_16384 and ViT-B/32 are."""
    if not all(catalogue.find(name).here(home / "checkpoints") for name in ("imagenet_f16_16384", "ViT-B/32")):
        pytest.skip("needs the files that the tests above convert: run them together")
    return home / "checkpoints"


@pytest.mark.parametrize("size, cutouts, chunk", [(128, 32, 0), (256, 8, 0), (256, 32, 8)])
def test_a_step_takes_the_memory_that_was_counted(pair, size, cutouts, chunk):
    """Hardly more than was said, which is what counts, and not a quarter less."""
    command = [sys.executable, "-W", "ignore", "-c", STEP, str(pair), str(size), str(cutouts), str(chunk)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    took, counted = map(int, done.stdout.split())
    print(f"\n{size}x{size}, {cutouts} cutouts, chunk {chunk}: {took / 1e6:.0f} MB, {counted / 1e6:.0f} counted")
    assert 0.75 * counted < took < 1.05 * counted


def test_painting_with_them_on_the_command_line(home, pair):
    """imagenet_f16_16384 and ViT-B/32 from files on the disk, 256x256."""
    command = [sys.executable, "-c", PAINT, "generate", "desert:50 | snow:25", "vqgan=imagenet_f16_16384",
               "clip=ViT-B/32", "size=256x256", "steps=3", "cutouts=8", "--workspace", str(home)]  # fmt: skip
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"VQCLIP_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    kilobytes = int(done.stderr.split("VmHWM:")[1].split()[0])
    session = vqclip.Session(Path(done.stdout.splitlines()[-1]))
    assert len(session.codes) == 4 and (session.path / "final.png").exists()
    assert session.about["checkpoints"]["vqgan imagenet_f16_16384"] == checkpoints.sha256(
        home / "checkpoints" / "imagenet_f16_16384.safetensors"
    )
    print(f"\n4 frames of 256x256 with 8 cutouts, loading included: {time.monotonic() - start:.0f} s, "
          f"at most {kilobytes / 1e6:.1f} GB of memory")
    print("\n".join(f"{line['step']} {line['losses']}" for line in session.losses()))
