"""The painter's decoder: taming's network, with less kept for the way back.

Normalisation and activation come in pairs, of which a plain network keeps three pictures: what goes in, what lies
between them and its sigmoid. Here a pair keeps what goes in and computes the rest again, which costs little beside the
convolutions. These keep nothing: what went in would tell how to change the weights, and they stay as they are.

Where even that is too much, `decode` goes part by part, each of which keeps its input alone.

Between its levels a decoder doubles a picture and convolves it, a fifth of its products. The two are one here, with
four products in place of nine; see `join`.

On a graphics card with fast bfloat16 all has channels last, and the pairs are kernels of their own, see `fused.py`: on
an H200 forward and backward of a step, 512x512 with 32 cutouts, as a graph took 20 ms so and 37 as torch has it. A
processor with AMX has channels last too. Its convolutions turn a picture around where they are not (128 channels of
256x256, two threads: 61 ms, 28 with them last; some of what they handed back was turned around again, 24 ms), and the
pair's way back, for which torch takes 61 ms so and 2.5 otherwise, is one of our own, of 8 ms. With AVX512-BF16 alone
it was tried without that and left: a convolution there and back took 12 instead of 15 ms (64 channels of 128x128). In
float32 what is won on the way there is lost on the way back, so a painter that has none there, see `ops.patch_grad`,
has channels last and others have not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from taming.modules.diffusionmodules.model import ResnetBlock, Upsample
from torch import Tensor, nn

from .ops import there_and_back
from .precision import has

PIECE = 2**20  # bytes of a picture: of two cores, each has room for its half of three such pieces


class _NormSwish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps):
        y, mean, rstd = torch.native_group_norm(x, weight, bias, *_shape(x), groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.how = groups, eps
        return F.silu(y, inplace=True)

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias, mean, rstd = ctx.saved_tensors
        groups, eps = ctx.how
        # As x lies in memory: torch's own way back reads whatever comes as if it did.
        if not x.is_contiguous():
            grad = grad.contiguous(memory_format=torch.channels_last)
            return _back_in_pieces(grad, x, mean, rstd, weight, bias), None, None, None, None
        y = torch.native_group_norm(x, weight, bias, *_shape(x), groups, eps)[0]
        dy = torch.ops.aten.silu_backward.grad_input(grad.contiguous(), y, grad_input=y)  # in its place
        dx, _, _ = torch.ops.aten.native_group_norm_backward(
            dy, x, mean, rstd, weight, *_shape(x), groups, [True, False, False]
        )
        return dx, None, None, None, None


def _back_in_pieces(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The way back with channels last, on a processor, where torch's own for the norm takes over twenty times as long.

    With n = (x - mean) * rstd and up = dy * weight, whose means in a group are `along` and, times n, `across`, a norm's
    is (up - along - n * across) * rstd, which is dy * scale + x * slope + level, each one for a channel. It goes a few
    lines at a time, which stay in a core's cache from one operation to the next.
    """
    B, C, H, W = x.shape
    mean, rstd = mean.float().view(B, -1), rstd.float().view(B, -1)  # (B, groups)
    groups = mean.shape[1]

    def spread(values: Tensor) -> Tensor:
        """(B, groups) -> (B, C)."""
        return values.repeat_interleave(C // groups, 1)

    def beside(values: Tensor) -> Tensor:
        """(B, C) -> as x has its channels."""
        return values.view(B, C, 1, 1).to(x)

    scale, dx = spread(rstd) * weight, torch.empty_like(x)
    level, scale = beside(bias - spread(mean) * scale), beside(scale)
    pieces = list(zip(*(each.split(max(1, PIECE // x[:, :, 0].nbytes), 2) for each in (x, grad, dx)), strict=True))
    sums = x.new_zeros(2, B, C, dtype=torch.float32)  # of dy and of dy * x
    for some, up, dy in pieces:
        torch.ops.aten.silu_backward.grad_input(up, torch.addcmul(level, some, scale), grad_input=dy)
        sums += torch.stack([_over_pixels(dy), _over_pixels(dy * some)])
    along, across = (weight * sums).view(2, B, groups, -1).mean(3) / (H * W)
    across = (across - mean * along) * rstd
    slope = -across * rstd**2
    level, slope = beside(spread(-along * rstd - slope * mean)), beside(spread(slope))
    for some, _, dy in pieces:
        torch.addcmul(torch.addcmul(level, some, slope), dy, scale, out=dy)
    return dx


def _over_pixels(x: Tensor) -> Tensor:
    """The sum of each channel, in the order in which it lies in memory: (B, C, H, W) -> (B, C), float32."""
    lines = x.permute(0, 2, 3, 1).sum(2)  # (B, H, C), rounded as x is
    return lines.sum(1, dtype=torch.float32)


class _FusedNormSwish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps):
        from . import fused

        y, sums = fused.norm_swish(x, weight, bias, groups, eps)
        ctx.save_for_backward(x, sums, weight, bias)
        ctx.how = groups, eps
        return y

    @staticmethod
    def backward(ctx, grad):
        from . import fused

        x, sums, weight, bias = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        return fused.norm_swish_back(grad, x, sums, weight, bias, *ctx.how), None, None, None, None


@lru_cache
def takes_last(device: torch.device, precision: torch.dtype) -> bool:
    """Whether a decoder is faster with channels last there and back: in bfloat16, with AMX and on some cards.

    It takes those that have bfloat16, as from Ampere on, and kernels that Triton can compile. Warns where they should
    run and do not.
    """
    if device.type == "cpu":
        return precision == torch.bfloat16 and has("amx_tile")
    if device.type != "cuda" or precision != torch.bfloat16 or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    if find_spec("triton") is None:
        return False
    try:
        from . import fused

        with torch.cuda.device(device):
            some = torch.ones(1, 32, 2, 2, device=device, dtype=precision).to(memory_format=torch.channels_last)
            ones = torch.ones(32, device=device, dtype=precision)
            return bool(fused.norm_swish(some, ones, ones, 32, 1e-6)[0].isfinite().all())
    except Exception as error:  # no compiler on this machine, another Triton: torch's own kernels do too
        warnings.warn(f"this card does not run the painter's own kernels, so steps take longer; pictures are as good: "
                      f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", stacklevel=2)  # fmt: skip
        return False


def convolve(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """`conv(x)` of (B, C, H, W), of which nothing is kept for the way back; weights and bias get no gradient.

    Its stride is 1, as everywhere in a decoder.
    """
    # What torch.nn.grad.conv2d_input gives, whose stand-in for x makes cuDNN turn grad to channels first and back.
    return there_and_back(x, conv, partial(F.conv_transpose2d, weight=conv.weight, stride=conv.stride,
                                           padding=conv.padding))  # fmt: skip


def _shape(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], x.shape[2] * x.shape[3]


def norm_swish(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """`silu(norm(x))` of (B, C, H, W), of which only x is kept for the way back; the norm's weights get no gradient."""
    there_alone = x.device.type == "cpu" and not torch.is_grad_enabled()
    last = x.is_contiguous(memory_format=torch.channels_last) and (there_alone or takes_last(x.device, x.dtype))
    if last and x.is_cuda and _fusible(norm):
        return _FusedNormSwish.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps)
    x = x if last and not x.is_cuda else x.contiguous()
    return _NormSwish.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps)


def _fusible(norm: nn.GroupNorm) -> bool:
    """Whether channels and groups are powers of two, which is what Triton's ranges take."""
    return all(count & (count - 1) == 0 for count in (norm.num_channels, norm.num_groups))


def resnet_block(block: ResnetBlock, x: Tensor) -> Tensor:
    """What taming's `ResnetBlock` computes in a decoder, where there is no time step and no dropout."""
    h = convolve(norm_swish(x, block.norm1), block.conv1)
    h = convolve(norm_swish(h, block.norm2), block.conv2)
    return h + (x if block.in_channels == block.out_channels else convolve(x, block.nin_shortcut))


def join(decoder: nn.Module) -> None:
    """Have `upsample` double pictures and convolve them in one, by the weights that taming's `Decoder` has now.

    A pixel is four of the picture twice as large, which a convolution of 3x3 brings to 4x4. That is a transposed
    convolution whose weights are sums of the other's: four products for a pixel in place of nine.
    """
    for level in decoder.up:
        if hasattr(level, "upsample") and level.upsample.with_conv:
            weight = level.upsample.conv.weight
            exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
            sums = F.avg_pool2d(exact.flip(2, 3), 2, stride=1, padding=1, divisor_override=1)
            level.upsample.register_buffer("kernel", sums.transpose(0, 1).to(weight).contiguous(), persistent=False)


def upsample(level: Upsample, x: Tensor) -> Tensor:
    """What taming's `Upsample` computes: (B, C, H, W) -> (B, C, 2H, 2W); where it was joined, in half the time."""
    if hasattr(level, "kernel"):
        how = dict(weight=level.kernel, stride=2, padding=1)
        return there_and_back(x, partial(F.conv_transpose2d, bias=level.conv.bias, **how), partial(F.conv2d, **how))
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
