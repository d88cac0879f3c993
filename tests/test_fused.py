"""The card's kernels of normalisation and swish, in Triton's interpreter where that is installed, against float64."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from vqclip import decoder

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


def test_without_a_card_nothing_has_channels_last():
    assert not decoder.takes_last(torch.device("cpu"), torch.bfloat16)
    assert not decoder.takes_last(torch.device("cuda"), torch.float32)  # as on a T4; asks no card
