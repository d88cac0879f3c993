"""The painter's decoder: taming's network, with less kept for the way back.

Normalisation and activation come in pairs, of which a plain network keeps three pictures: what goes in, what lies
between them and its sigmoid. Here a pair keeps what goes in and computes the rest again, which costs little beside the
convolutions. These keep nothing: what went in would tell how to change the weights, and they stay as they are.

Where even that is too much, `decode` goes part by part, each of which keeps its input alone.

Channels last was tried and left: on a processor with AVX512-BF16, one thread, 64 channels of 128x128, a convolution
there and back took 12 instead of 15 ms, and torch's own way back of the pair 21 instead of 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from taming.modules.diffusionmodules.model import ResnetBlock, Upsample
from torch import Tensor, nn


class _NormSwish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps):
        y, mean, rstd = torch.native_group_norm(x, weight, bias, *_shape(x), groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.how = groups, eps
        if y.dtype == torch.bfloat16:
            return F.silu(y, inplace=True)
        return y.mul_(y.sigmoid())  # as taming has it, so that pictures are the same bit for bit

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias, mean, rstd = ctx.saved_tensors
        groups, eps = ctx.how
        y = torch.native_group_norm(x, weight, bias, *_shape(x), groups, eps)[0]
        # As x lies in memory: torch's own way back reads whatever comes as if it did.
        dy = torch.ops.aten.silu_backward(grad.contiguous(), y)
        dx, _, _ = torch.ops.aten.native_group_norm_backward(
            dy, x, mean, rstd, weight, *_shape(x), groups, [True, False, False]
        )
        return dx, None, None, None, None


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, conv):
        ctx.conv, ctx.shape = conv, x.shape
        return conv(x)

    @staticmethod
    def backward(ctx, grad):
        return torch.nn.grad.conv2d_input(ctx.shape, ctx.conv.weight, grad, ctx.conv.stride, ctx.conv.padding), None


def convolve(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """`conv(x)` of (B, C, H, W), of which nothing is kept for the way back; weights and bias get no gradient."""
    return _Convolve.apply(x, conv)


def _shape(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], x.shape[2] * x.shape[3]


def norm_swish(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """`silu(norm(x))` of (B, C, H, W), of which only x is kept for the way back; the norm's weights get no gradient."""
    return _NormSwish.apply(x.contiguous(), norm.weight, norm.bias, norm.num_groups, norm.eps)


def resnet_block(block: ResnetBlock, x: Tensor) -> Tensor:
    """What taming's `ResnetBlock` computes in a decoder, where there is no time step and no dropout."""
    h = convolve(norm_swish(x, block.norm1), block.conv1)
    h = convolve(norm_swish(h, block.norm2), block.conv2)
    return h + (x if block.in_channels == block.out_channels else convolve(x, block.nin_shortcut))


def upsample(level: Upsample, x: Tensor) -> Tensor:
    """What taming's `Upsample` computes: (B, C, H, W) -> (B, C, 2H, 2W)."""
    x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    return convolve(x, level.conv) if level.with_conv else x


def parts(decoder: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """taming's `Decoder` from its latent (B, z_channels, h, w) to its picture (B, 3, H, W), part by part."""
    yield decoder.conv_in
    yield partial(resnet_block, decoder.mid.block_1)
    yield decoder.mid.attn_1
    yield partial(resnet_block, decoder.mid.block_2)
    for level in reversed(decoder.up):
        for number, block in enumerate(level.block):
            yield partial(resnet_block, block)
            if len(level.attn):
                yield level.attn[number]
        if hasattr(level, "upsample"):
            yield partial(upsample, level.upsample)
    yield lambda h: convolve(norm_swish(h, decoder.norm_out), decoder.conv_out)


def decode(decoder: nn.Module, z: Tensor, through: Callable[..., Tensor] | None = None) -> Tensor:
    """What taming's `Decoder` computes: (B, z_channels, h, w) -> (B, 3, H, W), in the format of its weights.

    Args:
        through: `through(part, h)` computes a part, as `ops.again` does, which keeps only what goes into it.
    """
    for part in parts(decoder):
        z = through(part, z) if through else part(z)
    return z
