"""What the painter has on a card alone: kernels, in Triton's interpreter where that is installed, and channels last."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from taming.modules.diffusionmodules.model import ResnetBlock, Upsample
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vqclip import decoder
from vqclip.memory import kept

CHECK = """
import torch, torch.nn.functional as F
from vqclip import fused
torch.set_num_threads(1)
for B, C, H, W in ((1, 32, 5, 7), (3, 64, 9, 9), (2, 128, 11, 13), (2, 128, 40, 37), (1, 512, 3, 5), (1, 256, 1, 1)):
    draw = torch.Generator().manual_seed(C)
    last = dict(memory_format=torch.channels_last)
    x, grad = ((3 * torch.randn(B, C, H, W, generator=draw) + 2).to(**last) for _ in range(2))
    weight, bias = torch.randn(2, C, generator=draw)
    y, sums = fused.norm_swish(x, weight, bias, 32, 1e-6)
    back = fused.norm_swish_back(grad, x, sums, weight, bias, 32, 1e-6)
    exact = x.double().requires_grad_()
    expected = F.silu(F.group_norm(exact, 32, weight.double(), bias.double(), 1e-6))
    expected.backward(grad.double())
    for got, wanted in ((y, expected), (back, exact.grad)):
        off = ((got - wanted).norm() / wanted.norm()).item()
        assert off < 1e-5, (B, C, H, W, off)
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton comes with torch for graphics cards")
def test_kernels_are_exact_for_odd_sizes_and_several_pictures():
    subprocess.run([sys.executable, "-c", CHECK], check=True, cwd=Path(__file__).parent.parent,
                   env={**os.environ, "TRITON_INTERPRET": "1"})  # fmt: skip


@pytest.mark.parametrize("amx", [True, False])
def test_without_a_card_only_amx_has_channels_last(monkeypatch, amx):
    monkeypatch.setattr(decoder, "has", lambda *asked: amx and asked == ("amx_tile",))
    monkeypatch.setattr(decoder, "takes_last", decoder.takes_last.__wrapped__)  # which remembers nothing
    assert decoder.takes_last(torch.device("cpu"), torch.bfloat16) == amx
    assert not decoder.takes_last(torch.device("cpu"), torch.float32)
    assert not decoder.takes_last(torch.device("cuda"), torch.float32)  # as on a T4; asks no card


class ChannelsFirst(TorchDispatchMode):
    """Notes what convolutions are given there and back with channels first: a card's would turn it around."""

    def __init__(self):
        super().__init__()
        self.convolutions, self.noted = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "convolution" in str(function):
            self.convolutions += 1
            self.noted += [(str(function), each.shape) for each in args
                           if isinstance(each, torch.Tensor) and each.dim() == 4 and each.stride(1) != 1]  # fmt: skip
        return function(*args, **(kwargs or {}))


def test_channels_that_are_last_stay_last_there_and_back(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(decoder, "norm_swish", lambda x, norm: F.silu(norm(x)))  # which keeps them so on a processor
    block = ResnetBlock(in_channels=32, out_channels=64, temb_channels=0, dropout=0.0)
    level = Upsample(64, with_conv=True)
    decoder.join(SimpleNamespace(up=[SimpleNamespace(upsample=level)]))
    last = dict(memory_format=torch.channels_last)
    for part in (block, level):
        part.requires_grad_(False).to(**last)
    x = torch.randn(2, 32, 6, 5).to(**last).requires_grad_()
    with ChannelsFirst() as layouts:
        y = decoder.upsample(level, decoder.resnet_block(block, x))
        (grad,) = torch.autograd.grad(y, x, torch.randn_like(y))
    assert (layouts.convolutions, layouts.noted) == (8, [])  # conv1, conv2, nin_shortcut, conv; each there and back
    assert all(each.is_contiguous(**last) for each in (y, grad))


@pytest.mark.parametrize("shape", [(1, 32, 8, 8), (3, 64, 7, 5), (2, 96, 1, 4)], ids=str)
def test_with_channels_last_a_processors_pair_is_exact_and_keeps_its_input_alone(monkeypatch, shape):
    monkeypatch.setattr(decoder, "takes_last", lambda *_: True)
    torch.manual_seed(0)
    norm = nn.GroupNorm(32, shape[1], eps=1e-6).requires_grad_(False)
    norm.weight.normal_(1)
    norm.bias.normal_()
    last = dict(memory_format=torch.channels_last)
    x, grad = ((torch.randn(shape) * 2 + 1).to(**last) for _ in range(2))
    x.requires_grad_()
    exact = x.detach().double().requires_grad_()
    theirs = F.silu(F.group_norm(exact, 32, norm.weight.double(), norm.bias.double(), 1e-6))
    ours = decoder.norm_swish(x, norm)
    expected, got = torch.autograd.grad(theirs, exact, grad.double())[0], torch.autograd.grad(ours, x, grad)[0]
    for one, wanted in ((ours, theirs), (got, expected)):
        assert (one - wanted).norm() <= 1e-5 * wanted.norm()
        assert one.is_contiguous(**last)
    small = 2 * 4 * (32 * shape[0] + shape[1])  # bytes: the groups' mean and spread, the norm's weights
    assert kept(lambda: decoder.norm_swish(x, norm)) <= x.nbytes + small


def test_in_bfloat16_the_pair_with_channels_last_is_as_good_as_torchs(monkeypatch):
    torch.manual_seed(0)
    norm = nn.GroupNorm(32, 64, eps=1e-6).requires_grad_(False).to(torch.bfloat16)
    norm.weight.normal_(1)
    x, grad = (torch.randn(1, 64, 64, 64) * 2 + 1 for _ in range(2))
    exact = x.double().requires_grad_()
    theirs = F.silu(F.group_norm(exact, 32, norm.weight.double(), norm.bias.double(), 1e-6))
    (wanted,) = torch.autograd.grad(theirs, exact, grad.double())

    def off(form, last):
        monkeypatch.setattr(decoder, "takes_last", lambda *_: last)
        leaf = x.to(torch.bfloat16, memory_format=form).requires_grad_()
        y = decoder.norm_swish(leaf, norm)
        (got,) = torch.autograd.grad(y, leaf, grad.to(torch.bfloat16, memory_format=form))
        return ((got - wanted).norm() / wanted.norm()).item()

    assert off(torch.channels_last, True) <= 1.2 * off(torch.contiguous_format, False)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(8, 8, 3), (16, 3, 3), (8, 16, 1)], ids=str)
def test_a_convolutions_way_back_is_torchs_own_and_needs_nothing_kept(shape, form):
    torch.manual_seed(0)
    C, out, side = shape
    conv = nn.Conv2d(C, out, side, padding=side // 2).requires_grad_(False).to(memory_format=form)
    x = torch.randn(2, C, 9, 7).to(memory_format=form).requires_grad_()
    theirs, ours = conv(x), decoder.convolve(x, conv)
    grad = torch.randn_like(theirs)
    expected, got = (torch.autograd.grad(y, x, grad)[0] for y in (theirs, ours))
    assert torch.equal(theirs, ours) and (got - expected).norm() <= 1e-6 * expected.norm()
    assert got.is_contiguous(memory_format=form)
    assert kept(lambda: decoder.convolve(x, conv)) == 0
