"""Normalisation and swish as one, on a graphics card, with channels last: what lies between the painter's convolutions.

A card's convolutions want channels last; torch's normalisation wants them first there, so each pair of the two would
turn the picture around, four times a layer. These kernels take it as it lies, read it twice to write it once, and on
the way back read it and its gradient twice; torch's own go over it sixteen times. Each sum is taken in two steps and in
a fixed order, so that the same input gives the same output bit for bit.

Of a picture's group of channels, mean and variance over its pixels (GroupNorm, Wu and He 2018, arXiv 1803.08494):

    n = (x - mean) / sqrt(variance + eps)      v = n * weight + bias      y = v * sigmoid(v)

and back, `up` being the gradient to n:

    up = grad * sigmoid(v) * (1 + v * (1 - sigmoid(v))) * weight
    dx = (up - mean(up) - n * mean(up * n)) / sqrt(variance + eps)

In the kernels a row is a pixel with its C channels, `rows` how many a picture has, ROWS how many are taken at a time, G
the groups; the second number of a program says which picture it is at. `sums` are (B, 2, G) in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # elements that a program has at a time
MANY = 256  # programs that share in the sums of one picture


@triton.jit
def _place(rows, step, C: tl.constexpr, ROWS: tl.constexpr):
    """Where the rows of a step lie in memory, and which of them there are; a row is a pixel with its C channels."""
    row = step * ROWS + tl.arange(0, ROWS)
    at = (tl.program_id(1).to(tl.int64) * rows + row)[:, None] * C + tl.arange(0, C)[None, :]
    return at, (row < rows)[:, None]


@triton.jit
def _spread(group, C: tl.constexpr, G: tl.constexpr):
    """A value of each group (G,) -> of each channel (1, C)."""
    return tl.reshape(tl.broadcast_to(group[:, None], (G, C // G)), (1, C))


@triton.jit
def _statistics(sums, rows, eps, C: tl.constexpr, G: tl.constexpr):
    """Of the picture's groups, for each channel: the mean and one over the standard deviation, (1, C) each."""
    g, count = tl.program_id(1) * 2 * G + tl.arange(0, G), rows * (C // G)
    mean = tl.load(sums + g) / count
    variance = tl.maximum(tl.load(sums + G + g) / count - mean * mean, 0.0)
    return _spread(mean, C, G), _spread(tl.rsqrt(variance + eps), C, G)


@triton.jit
def _keep_sums(first, second, partial, C: tl.constexpr, G: tl.constexpr):
    """Two sums of each channel and lane (ROWS, C) -> this program's place in partial (B, MANY, 2, G)."""
    at = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * 2 * G + tl.arange(0, G)
    tl.store(partial + at, tl.sum(tl.reshape(tl.sum(first, 0), (G, C // G)), 1))
    tl.store(partial + G + at, tl.sum(tl.reshape(tl.sum(second, 0), (G, C // G)), 1))


@triton.jit
def _sums(x, partial, rows, C: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr):
    """Of x and its square, as far as a program gets to see them -> partial (B, MANY, 2, G)."""
    first = tl.zeros((ROWS, C), tl.float32)
    second = tl.zeros((ROWS, C), tl.float32)
    for step in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        at, there = _place(rows, step, C, ROWS)
        v = tl.load(x + at, there, 0.0).to(tl.float32)
        first += v
        second += v * v
    _keep_sums(first, second, partial, C, G)


@triton.jit
def _total(partial, sums, N: tl.constexpr, WIDTH: tl.constexpr):
    """partial (B, N, WIDTH) -> sums (B, WIDTH)."""
    at = tl.program_id(0) * N * WIDTH + tl.arange(0, N)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(sums + tl.program_id(0) * WIDTH + tl.arange(0, WIDTH), tl.sum(tl.load(partial + at), 0))


@triton.jit
def _apply(x, sums, weight, bias, y, rows, eps, C: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr):
    """x and the sums of x and its square -> y."""
    mean, narrow = _statistics(sums, rows, eps, C, G)
    c = tl.arange(0, C)
    scale = narrow * tl.load(weight + c).to(tl.float32)[None, :]
    shift = tl.load(bias + c).to(tl.float32)[None, :] - mean * scale
    at, there = _place(rows, tl.program_id(0), C, ROWS)
    v = tl.load(x + at, there, 0.0).to(tl.float32) * scale + shift
    tl.store(y + at, (v * tl.sigmoid(v)).to(y.dtype.element_ty), there)


@triton.jit
def _up(x, grad, at, there, mean, narrow, w, b):
    """n, the normalised x, and `up`, the gradient that goes to it."""
    n = (tl.load(x + at, there, 0.0).to(tl.float32) - mean) * narrow
    v = n * w + b
    s = tl.sigmoid(v)
    return n, tl.load(grad + at, there, 0.0).to(tl.float32) * s * (1 + v * (1 - s)) * w


@triton.jit
def _back_sums(x, grad, sums, weight, bias, partial, rows, eps, C: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr):
    """Of `up`, the gradient to the normalised x, and of `up * n` -> partial (B, MANY, 2, G)."""
    mean, narrow = _statistics(sums, rows, eps, C, G)
    c = tl.arange(0, C)
    w, b = tl.load(weight + c).to(tl.float32)[None, :], tl.load(bias + c).to(tl.float32)[None, :]
    first = tl.zeros((ROWS, C), tl.float32)
    second = tl.zeros((ROWS, C), tl.float32)
    for step in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        at, there = _place(rows, step, C, ROWS)
        n, up = _up(x, grad, at, there, mean, narrow, w, b)
        first += up  # nothing where no row is, as its gradient is zero
        second += up * n
    _keep_sums(first, second, partial, C, G)


@triton.jit
def _back(x, grad, sums, back, weight, bias, dx, rows, eps, C: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr):
    """x, the gradient to y, the sums of x and its square and those of `up` and `up * n` (`back`) -> dx."""
    mean, narrow = _statistics(sums, rows, eps, C, G)
    c, g, count = tl.arange(0, C), tl.program_id(1) * 2 * G + tl.arange(0, G), rows * (C // G)
    w, b = tl.load(weight + c).to(tl.float32)[None, :], tl.load(bias + c).to(tl.float32)[None, :]
    along, across = _spread(tl.load(back + g) / count, C, G), _spread(tl.load(back + G + g) / count, C, G)
    at, there = _place(rows, tl.program_id(0), C, ROWS)
    n, up = _up(x, grad, at, there, mean, narrow, w, b)
    tl.store(dx + at, ((up - along - n * across) * narrow).to(dx.dtype.element_ty), there)


def _shape(x: Tensor) -> tuple[int, int, int, int]:
    """(B, C, H, W), channels last -> B, pixels, C, and how many pixels a program takes at a time."""
    B, C, H, W = x.shape
    return B, H * W, C, max(TILE // C, 1)


def _summed(kernel, x: Tensor, arguments: tuple, groups: int, eps: tuple = ()) -> Tensor:
    """Two sums of each group: (B, 2, G), float32."""
    B, rows, C, ROWS = _shape(x)
    many = min(MANY, triton.next_power_of_2(triton.cdiv(rows, ROWS)))
    partial = torch.empty(B, many, 2 * groups, device=x.device)
    kernel[many, B](x, *arguments, partial, rows, *eps, C, groups, ROWS, num_warps=8)
    sums = torch.empty(B, 2 * groups, device=x.device)
    _total[(B,)](partial, sums, many, 2 * groups, num_warps=8)
    return sums


def norm_swish(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """`silu(group_norm(x))` of (B, C, H, W) with channels last, and the sums that `norm_swish_back` takes."""
    sums = _summed(_sums, x, (), groups)
    B, rows, C, ROWS = _shape(x)
    y = torch.empty_like(x)
    _apply[triton.cdiv(rows, ROWS), B](x, sums, weight, bias, y, rows, eps, C, groups, ROWS, num_warps=8)
    return y, sums


def norm_swish_back(grad: Tensor, x: Tensor, sums: Tensor, weight: Tensor, bias: Tensor, groups: int,
                    eps: float) -> Tensor:  # fmt: skip
    """The gradient to x; x, grad and what comes have channels last."""
    back = _summed(_back_sums, x, (grad, sums, weight, bias), groups, (eps,))
    B, rows, C, ROWS = _shape(x)
    dx = torch.empty_like(x)
    _back[triton.cdiv(rows, ROWS), B](x, grad, sums, back, weight, bias, dx, rows, eps, C, groups, ROWS, num_warps=8)
    return dx
