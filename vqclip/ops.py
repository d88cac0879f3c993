"""The few tensor operations the whole method stands on: gradients that go around what has none.

Straight-through quantisation, a clamp that lets the picture come back into range, a way back around the painter, one
that is given beside the way there, one that computes again, the nearest code, the great-circle distance, and the
gathering of a gradient chunk by chunk. Each is a plain function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, carrier):
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        return None, grad


def straight_through(value: Tensor, carrier: Tensor) -> Tensor:
    """`value` on the way forward, while the whole gradient goes to `carrier` (same shape).

    Bengio et al. 2013 (arXiv 1308.3432); van den Oord et al. 2017 (arXiv 1711.00937) for codebooks.
    """
    return _StraightThrough.apply(value, carrier)


class _ClampWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, low, high):
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        outwards = x.clamp(*ctx.bounds).sub_(x).mul_(grad)  # above zero where the step would lead further out
        # What would is taken away, without a mask: torch makes and applies one in three times as long.
        return grad - torch.ops.aten.threshold_backward(grad, outwards, 0), None, None


def clamp_with_grad(x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Clamp to [low, high]; outside, only a gradient whose descent step leads back inside passes.

    A plain clamp has no gradient outside its range, so a pixel that once left would never return (Crowson 2021).
    """
    return _ClampWithGrad.apply(x, low, high)


class _PatchGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, paint, patches):
        ctx.save_for_backward(patches)
        return paint(z)

    @staticmethod
    def backward(ctx, grad):
        (patches,) = ctx.saved_tensors
        return F.conv2d(grad.to(patches), patches, stride=patches.shape[-1]).to(grad), None, None


def patch_grad(paint: Callable[[Tensor], Tensor], z: Tensor, patches: Tensor) -> Tensor:
    """`paint(z)` on the way forward; on the way back, each element of z follows the picture by its patch.

    A painter that mends what it is given looks at many codes for each pixel, and its own gradient smears. Straight
    through it, as through the quantiser, the direction of the picture is kept better, and nothing of it is remembered.
    Where patches are what an element adds to the picture, times how slow it would be by the chain rule alone, detail
    comes as quickly as colour.

    Args:
        paint: z (B, C, h, w) -> image (B, 3, h * f, w * f).
        patches: (C, 3, f, f), of the image's gradient how much goes to each channel.
    """
    return _PatchGrad.apply(z, paint, patches)


class _ThereAndBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, there, back):
        ctx.back = back
        return there(x)

    @staticmethod
    def backward(ctx, grad):
        return ctx.back(grad), None, None


def there_and_back(x: Tensor, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
    """`there(x)`, a product or a convolution of frozen weights, whose gradient is `back(grad)`; nothing is kept."""
    return _ThereAndBack.apply(x, there, back)


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, compute):
        ctx.save_for_backward(x)
        ctx.compute = compute
        return compute(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.compute(x)
        return torch.autograd.grad(y, x, grad)[0], None


def again(compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`compute(x)`, of which only x is kept: on the way back it is computed again (Chen et al. 2016, arXiv 1604.06174).

    The gradient is the same bit for bit, if `compute` gives the same each time; only x gets one. torch's own
    `checkpoint` would do, but what it keeps cannot be counted by `memory.kept`.
    """
    return _Again.apply(x, compute)


def nearest_codes(z: Tensor, codebook: Tensor) -> Tensor:
    """Index of the codebook row nearest to each position of a latent, in Euclidean distance.

    Args:
        z: latent (B, C, h, w).
        codebook: (K, C).
    Returns:
        codes (B, h, w), int64. There is no gradient through it.
    """
    B, C, h, w = z.shape
    flat = z.detach().permute(0, 2, 3, 1).reshape(-1, C)  # (B*h*w, C)
    # |z|^2 is the same for every code, so |E|^2 - 2 z.E orders them just as the full distance does.
    scores = torch.addmm(codebook.pow(2).sum(1), flat, codebook.t(), alpha=-2)  # (B*h*w, K)
    return scores.argmin(1).view(B, h, w)


def embed_codes(codes: Tensor, codebook: Tensor) -> Tensor:
    """The latent that a grid of codes stands for: (B, h, w) and (K, C) -> z_q (B, C, h, w)."""
    return F.embedding(codes, codebook).permute(0, 3, 1, 2).contiguous()


def great_circle(a: Tensor, b: Tensor) -> Tensor:
    """Half the squared angle between unit rows, in [0, pi^2/2]: (N, D) x (P, D) -> (N, P) (Crowson 2021).

    Its pull keeps growing with the angle where the cosine's goes flat, so far-off cutouts are not given up.
    """
    chord = (a[:, None] - b[None]).norm(dim=2)  # (N, P)
    return 2 * chord.div(2).clamp(max=1).arcsin().pow(2)


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, raised):
        ctx.raised = raised
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad / ctx.raised.pop(), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, raised):
        ctx.raised = raised
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        largest = grad.abs().amax()
        factor = torch.where(largest > 0, 1 / largest, 1)
        ctx.raised.append(factor)
        return grad * factor, None


def with_large_grad(compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`compute(x)`, inside of which gradients are raised to a magnitude of 1, and brought back on the way out.

    In float16 nothing below 6e-8 exists, and a pixel's share in a loss is of that order: without this, most of a
    picture's gradient is lost (loss scaling, Micikevicius et al. 2017, arXiv 1710.03740; here with no factor to tune).
    """
    raised: list[Tensor] = []  # by which factor, from the one to the other
    return _Leave.apply(compute(_Enter.apply(x, raised)), raised)


class _GatherGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image, parts):
        leaf = image.detach().requires_grad_()
        total = image.new_zeros(())
        for part in parts:
            with torch.enable_grad():
                loss = part(leaf)
            loss.backward()
            total = total + loss.detach()
        ctx.save_for_backward(leaf.grad)
        return total

    @staticmethod
    def backward(ctx, grad):
        return ctx.saved_tensors[0] * grad, None


def gather_grad(image: Tensor, parts: Iterable[Callable[[Tensor], Tensor]]) -> Tensor:
    """Sum of scalar functions of an image, whose gradient is taken part by part instead of all at once.

    Each part's graph is freed before the next is built, so memory is that of the largest part; the value and the
    gradient are those of `sum(part(image) for part in parts)`.
    """
    return _GatherGrad.apply(image, parts)
