"""What CLIP's image towers are made of, where torch's own is slow or keeps much for the way back.

Attention is spelled out on a processor in bfloat16. There torch's fused kernel took three to four times as long, there
and back, as its products one by one (one thread of AVX512-BF16: 32 pictures of 50 tokens and 12 heads 71 to 17 ms, 16
of 197 tokens 150 to 69, 8 of 257 tokens and 16 heads 158 to 72). In float32, and on graphics cards, the fused ones are
best and stay.

QuickGELU is one function that keeps 1.702 x, where its formula keeps x and a sigmoid; 16 pictures of 50 tokens,
four times 768 wide, there and back: 21 to 5 ms in float32, 5.5 to 4.7 in bfloat16.

A picture's patches are embedded by one product. The way back through a convolution, as it is written there, takes many
times as long: for 64 pictures 224 wide, patches of 32, in bfloat16 with AMX 400 ms for 10.

Tokens lie in memory as their shape says. OpenAI's tower permutes a view, after which each sum had one side in either
order, and each norm a copy: of ViT-B/32, 48 and 72 in a step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

STEEP = 1.702
AT_ONCE = 2**18  # weights at a time: half a MB, which stays in a core's cache


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        steep = x * STEEP
        ctx.save_for_backward(steep)
        return F.silu(steep).div_(STEEP)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (steep,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad, steep)


class QuickGELU(nn.Module):
    """`x * sigmoid(1.702 x)`, OpenAI's activation (Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        return _QuickGELU.apply(x)


class Patches(nn.Conv2d):
    """Embeds patches that lie side by side, in place of torch's layer of the same weights, which has no bias."""

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (N, 3, S, S) -> embedded patches (N, width, S/p, S/p)."""
        kind, size = pictures.device.type, self.kernel_size[0]
        if kind != "meta" and torch.is_autocast_enabled(kind):  # which a product would see to, after the turning around
            pictures = pictures.to(torch.get_autocast_dtype(kind))
        N, C, H, W = pictures.shape
        rows, columns = H // size, W // size
        patches = pictures.reshape(N, C, rows, size, columns, size).permute(0, 2, 4, 1, 3, 5)
        embedded = F.linear(patches.reshape(N, rows * columns, -1), self.weight.flatten(1))
        return embedded.mT.view(N, -1, rows, columns)


def as_named(_: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
    """For `register_forward_pre_hook`: tokens (L, N, width) that lie as (N, L, width) -> the same as (L, N, width)."""
    return (given[0].contiguous(),)


def back_as_named(_: nn.Module, __: tuple[Tensor], tokens: Tensor) -> None:
    """For `register_forward_hook`: the same for the gradient of what comes out, on the way back."""
    if tokens.requires_grad:
        tokens.register_hook(Tensor.contiguous)


class Attention(nn.MultiheadAttention):
    """Self-attention without a mask, of tokens (L, N, width), in place of torch's layer of the same weights."""

    def forward(self, tokens: Tensor, *_: Tensor, **__: object) -> tuple[Tensor, None]:
        """Tokens (L, N, width), which torch's layer is given three times -> the same shape, and no weights."""
        L, N, width = tokens.shape
        qkv = F.linear(tokens, self.in_proj_weight, self.in_proj_bias).view(L, N, 3, self.num_heads, -1)
        mixed = attend(*qkv.permute(2, 1, 3, 0, 4))
        return self.out_proj(mixed.permute(2, 0, 1, 3).reshape(L, N, width)), None


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kT / sqrt(d)) v: queries, keys and values (N, heads, L, d) -> (N, heads, L, d)."""
    if q.dtype == torch.bfloat16 and q.device.type == "cpu":
        return _Spelled.apply(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


class _Spelled(torch.autograd.Function):
    """A few pictures at a time. Keeps what goes in and weighs again on the way back: no more memory than the fused."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return torch.cat([_weights(q, k) @ v for q, k, v in _pieces(q, k, v)])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ways: list[tuple[Tensor, ...]] = []
        for q, k, v, g in _pieces(*ctx.saved_tensors, grad):
            weights, scale = _weights(q, k), q.shape[-1] ** -0.5
            up = torch.ops.aten._softmax_backward_data(g @ v.mT, weights, -1, q.dtype)
            ways.append((up @ (k * scale), up.mT @ (q * scale), weights.mT @ g))
        dq, dk, dv = map(torch.cat, zip(*ways, strict=True))
        return dq, dk, dv


def _weights(q: Tensor, k: Tensor) -> Tensor:
    return ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(-1)


def _pieces(*tensors: Tensor):
    heads, length = tensors[0].shape[1:3]
    return zip(*(each.split(max(1, AT_ONCE // (heads * length**2))) for each in tensors), strict=True)
