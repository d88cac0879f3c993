"""Precision is chosen by what a device can do; float32 is what it always was, bfloat16 hardly another picture."""

from types import SimpleNamespace

import pytest
import quick
import torch
from taming.modules.diffusionmodules.model import Upsample
from torch.utils.flop_counter import FlopCounterMode

import vqclip
from vqclip.decoder import join, upsample
from vqclip.precision import Able, able, dtypes
from vqclip.settings import SettingsError

CPU = Able("cpu", "the processor", bfloat16=True, float16=False)
NEW_CPU = Able("cpu", "the processor", bfloat16=True, float16=False, fast="bfloat16")
T4 = Able("cuda", "Tesla T4", bfloat16=False, float16=True, fast="float16")
A100 = Able("cuda", "NVIDIA A100", bfloat16=True, float16=True, fast="bfloat16")
MAC = Able("mps", "this Mac's graphics", bfloat16=True, float16=True)
OLD_MAC = Able("mps", "this Mac's graphics", bfloat16=False, float16=True)
full, brain, half = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    "device, wanted, painter, judge",
    [(CPU, "auto", full, full), (NEW_CPU, "auto", brain, brain), (T4, "auto", full, half),
     (A100, "auto", brain, brain), (MAC, "auto", full, full), (OLD_MAC, "auto", full, full),
     (CPU, "bfloat16", brain, brain), (NEW_CPU, "float32", full, full), (T4, "float16", full, half),
     (T4, "float32", full, full), (A100, "float16", full, half), (MAC, "float16", full, half),
     (MAC, "bfloat16", brain, brain), (A100, "float32", full, full)],
)  # fmt: skip
def test_what_each_device_computes_in(device, wanted, painter, judge):
    chosen = dtypes(wanted, device)
    assert (chosen.painter, chosen.judge) == (painter, judge)


@pytest.mark.parametrize("avx, amx, device", [(False, False, CPU), (True, False, NEW_CPU), (False, True, NEW_CPU)])
def test_bfloat16_pays_where_a_processor_has_it(avx, amx, device, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert able(torch.device("cpu")) == device


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


def test_bfloat16_is_nearly_the_same_step_and_float32_is_tamings(files):
    def paint(precision):
        return next(vqclip.generate("desert", "vqgan", "vit", root=files, size=16, cutouts=2, device="cpu",
                                    precision=precision))  # fmt: skip

    def cuts_in(precision):
        judge = vqclip.load_clip("vit", precision=precision, root=files)
        run = vqclip.generate("desert", "vqgan", judge, root=files, size=16, cutouts=2, device="cpu")
        return run.losses["vit"][1].cutouts.precision

    single, brain_ = paint("float32"), paint("bfloat16")
    plain = vqclip.load_vqgan("vqgan", root=files)
    z_q = plain.embed(single.codes[None])
    theirs = ((plain.decoder(plain.post_quant_conv(z_q)) + 1) / 2).clamp(0, 1)[0]  # taming's own forward
    assert (single.image - theirs).abs().max() < 1e-5
    assert torch.equal(single.codes, brain_.codes)
    assert brain_.image.dtype == brain_.losses["vit"].dtype == full
    assert [cuts_in(kind) for kind in (full, half, brain)] == [None, None, brain]
    assert 0 < (single.image - brain_.image).abs().mean() < 0.01
    assert 0 < abs(single.losses["vit"] - brain_.losses["vit"]) < 0.02


def test_what_is_given_keeps_its_own_precision(files):
    painter = vqclip.load_vqgan("vqgan", root=files)
    run = vqclip.generate("desert", painter, "vit", root=files, size=16, cutouts=2, device="cpu", precision="bfloat16")
    assert run.latent.vqgan.precision == full and next(run.latent.vqgan.decoder.parameters()).dtype == full


@pytest.mark.parametrize("name", ["vqgan", "embedded"])
def test_the_lean_decoder_is_tamings(name, files):
    """In float32 it has the same picture and the same gradient; in bfloat16 its gradient points the same way."""
    plain, short = (vqclip.load_vqgan(name, root=files, precision=dtype) for dtype in (full, brain))
    plain.patches = short.patches = None  # the decoder's own way back, which the shipped one goes around
    codes = torch.randint(len(plain.codebook), (2, 6, 8), generator=torch.Generator().manual_seed(0))
    z = [plain.embed(codes).requires_grad_() for _ in range(3)]
    pictures = [(plain.decoder(plain.post_quant_conv(z[0])) + 1) / 2, plain.decode(z[1]), short.decode(z[2])]
    cotangent = quick.seeded(*pictures[0].shape)
    gradients = [torch.autograd.grad(picture, leaf, cotangent)[0] for picture, leaf in zip(pictures, z, strict=True)]
    for ours, theirs in ((pictures[1], pictures[0]), (gradients[1], gradients[0])):
        assert (ours - theirs).norm() / theirs.norm() < 1e-5
    assert pictures[2].dtype == gradients[2].dtype == full
    assert torch.cosine_similarity(gradients[2].flatten(), gradients[0].flatten(), dim=0) > 0.99
    assert (pictures[2] - pictures[0]).norm() / pictures[0].norm() < 0.01


@pytest.mark.parametrize("dtype", [full, brain])
def test_doubling_a_picture_and_convolving_it_is_one_with_four_products_for_nine(dtype):
    torch.manual_seed(0)
    level = Upsample(12, with_conv=True).requires_grad_(False)
    cotangent, made, products = torch.randn(2, 12, 10, 14), [], []
    given = torch.randn(2, 12, 5, 7)
    for compute, kind in ((level, full), (lambda x: upsample(level, x), dtype)):
        join(SimpleNamespace(up=[SimpleNamespace(upsample=level.to(kind)), SimpleNamespace()]))
        x = given.detach().to(kind).requires_grad_()
        with FlopCounterMode(display=False) as counted:
            y = compute(x)
            y.backward(cotangent.to(kind))
        products.append(counted.get_total_flops())
        made.append((y, x.grad))
    assert 4 * products[0] == 9 * products[1] > 0
    for theirs, ours in zip(*made, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == dtype
        assert (ours - theirs).norm() <= (1e-6 if dtype == full else 0.01) * theirs.norm()
    assert "kernel" not in level.state_dict()


def test_weights_that_come_later_are_joined_by_painting_in_a_format(files):
    first, second = (vqclip.load_vqgan("vqgan", root=files) for _ in range(2))
    for weight in second.decoder.parameters():
        weight.data = weight.data * 1.1
    first.load_state_dict(second.state_dict())
    z = first.embed(torch.zeros(1, 4, 4, dtype=torch.long))
    assert torch.equal(first.paint_in(full).decode(z), second.paint_in(full).decode(z))


def test_a_step_of_the_embedded_pair_goes_the_same_way_in_bfloat16():
    """The whole gradient, through cutouts and judge: what the loop follows."""
    gradients = []
    for precision in ("float32", "bfloat16"):
        run = vqclip.generate("desert:50 | snow:25", precision=precision, size=64, cutouts=16, device="cpu")
        next(run)
        gradients.append(run.latent.z.grad.flatten())
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


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
