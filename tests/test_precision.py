"""Precision is chosen by what a device can do; the painter is float32 on all of them."""

import pytest
import quick
import torch

import vqclip
from vqclip.precision import Able, able, dtypes
from vqclip.settings import SettingsError

CPU = Able("cpu", "the processor", bfloat16=True, float16=False)
T4 = Able("cuda", "Tesla T4", bfloat16=False, float16=True)
A100 = Able("cuda", "NVIDIA A100", bfloat16=True, float16=True)
MAC = Able("mps", "this Mac's graphics", bfloat16=True, float16=True)
OLD_MAC = Able("mps", "this Mac's graphics", bfloat16=False, float16=True)
full, brain, half = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    "device, wanted, judge",
    [(CPU, "auto", full), (T4, "auto", half), (A100, "auto", brain), (MAC, "auto", full), (OLD_MAC, "auto", full),
     (CPU, "bfloat16", brain), (T4, "float16", half), (T4, "float32", full), (A100, "float16", half),
     (MAC, "float16", half), (MAC, "bfloat16", brain), (A100, "float32", full)],
)  # fmt: skip
def test_what_each_device_computes_in(device, wanted, judge):
    chosen = dtypes(wanted, device)
    assert (chosen.painter, chosen.judge) == (full, judge)


@pytest.mark.parametrize("device, wanted", [(T4, "bfloat16"), (OLD_MAC, "bfloat16"), (CPU, "float16")])
def test_what_a_device_does_not_have_is_refused(device, wanted):
    with pytest.raises(SettingsError, match=f"precision={wanted}: {device.name} does not compute in {wanted}"):
        dtypes(wanted, device)


def test_emulation_does_not_count(monkeypatch):
    """A T4 as torch sees it: says yes to bfloat16 unless asked whether it means it."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())  # any context
    assert able(torch.device("cuda")) == T4


def test_the_processor_is_what_it_was(files):
    """auto on a CPU is float32, bit for bit; bfloat16 changes what the judge says, not what the painter does."""
    assert able(torch.device("cpu")) == CPU

    def paint(precision):
        return next(vqclip.generate("desert", quick.painter(), "vit", root=files, size=16, cutouts=2, device="cpu",
                                    precision=precision))  # fmt: skip

    auto, single, brain = (paint(precision) for precision in ("auto", "float32", "bfloat16"))
    assert auto.losses["vit"] == single.losses["vit"] != brain.losses["vit"]
    assert abs(single.losses["vit"] - brain.losses["vit"]) < 0.02
    assert torch.equal(single.image, brain.image)


def gradient(clip, share):
    cuts = torch.rand((4, 3, 32, 32), generator=torch.Generator().manual_seed(0)).requires_grad_()
    return torch.autograd.grad((clip.encode_image(cuts)[:, :8] * share).sum(), cuts)[0]


@pytest.mark.parametrize("share", [1.0, 1e-4, 1e-9], ids=str)
def test_in_float16_a_pixels_gradient_is_not_lost(files, share):
    """However small a share of the loss a cutout has: of many cutouts, each has little."""
    single, short = (vqclip.load_clip("vit", precision=dtype, root=files) for dtype in (full, half))
    expected, got = (gradient(clip, share) / share for clip in (single, short))
    assert got.dtype == full and torch.isfinite(got).all()
    assert torch.cosine_similarity(expected.flatten(), got.flatten(), dim=0) > 0.999
    assert 0.99 < got.norm() / expected.norm() < 1.01
    cuts = torch.rand(2, 3, 32, 32)
    assert 0 < (single.encode_image(cuts) - short.encode_image(cuts)).norm(dim=1).max() < 0.01


def test_no_gradient_is_no_gradient(files):
    assert not gradient(vqclip.load_clip("vit", precision=half, root=files), 0.0).any()


def test_who_asks_for_what_is_not_there_hears_so(files):
    with pytest.raises(SettingsError, match="precision=float16: the processor"):
        vqclip.generate("desert", quick.painter(), "vit", root=files, precision="float16", device="cpu")
