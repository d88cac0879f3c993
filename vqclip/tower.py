"""What CLIP's image towers are made of, where torch's own is slow or keeps much for the way back.

Attention is spelled out on a processor in bfloat16. There torch's fused kernel took three to four times as long, there
and back, as its products one by one (one thread of AVX512-BF16: 32 pictures of 50 tokens and 12 heads 71 to 17 ms, 16
of 197 tokens 150 to 69, 8 of 257 tokens and 16 heads 158 to 72). In float32, and on graphics cards, the fused ones are
best and stay. What few tokens weigh is kept for the way back: a softmax takes three times as long as a product.

QuickGELU is one function that keeps 1.702 x, where its formula keeps x and a sigmoid; 16 pictures of 50 tokens,
four times 768 wide, there and back: 21 to 5 ms in float32, 5.5 to 4.7 in bfloat16. In sixteen bits the layers about it
hold the 1.702, and it is a SiLU.

On a processor a product in bfloat16 adds its bias itself, for which torch takes a pass; with AMX, where it makes 64
pictures' tokens four times as wide, 8.0 to 7.4 ms.

A picture's patches are embedded by one product. The way back through a convolution, as it is written there, takes many
times as long: for 64 pictures 224 wide, patches of 32, in bfloat16 with AMX 400 ms for 10.

A norm of bfloat16 needs no copy in float32, which its way back would keep: 50 tokens of 64 pictures, 768 wide, there
and back, 5.1 to 2.4 ms.

A tower is read off its first token, so of the others the last block computes what that one looks at and no more: of a
tower of twelve blocks one product in fourteen is saved.

Tokens lie in memory as their shape says. OpenAI's tower permutes a view, after which each sum had one side in either
order, and each norm a copy: of ViT-B/32, 48 and 72 in a step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .ops import there_and_back

STEEP = 1.702
# Whether products add a bias themselves here, by what torch has for `torch.compile`.
FUSES = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.ops.mkldnn._is_mkldnn_bf16_supported()
AT_ONCE = 2**20  # weights at a time: two MB, of which there are a few, more or less in a core's cache


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


def steepen(mlp: nn.Sequential) -> None:
    """Have the layers about a QuickGELU hold its 1.702, so that what is left between them is torch's SiLU.

    Their weights are then no longer OpenAI's. It is done once, before they are rounded.
    """
    assert isinstance(mlp.gelu, QuickGELU), "1.702 is in these weights already"
    mlp.c_fc.weight.data, mlp.c_fc.bias.data = mlp.c_fc.weight.data * STEEP, mlp.c_fc.bias.data * STEEP
    mlp.c_proj.weight.data = mlp.c_proj.weight.data / STEEP
    mlp.gelu = nn.SiLU()


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`F.linear`, (..., in) -> (..., out), without the pass that torch takes for a bias of bfloat16 on a processor.

    Weights that are trained go torch's way.
    """
    trained = weight.requires_grad or bias.requires_grad
    if weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and FUSES and not trained:
        product = torch.ops.mkldnn._linear_pointwise
        return there_and_back(x.to(weight.dtype), lambda x: product(x, weight, bias, "none", [], ""),
                              lambda grad: grad @ weight)  # fmt: skip
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """torch's layer, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear(x, self.weight, self.bias)


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


class Norm(nn.LayerNorm):
    """OpenAI's layer norm, computed in float32 whatever comes; a processor reads and writes bfloat16 as it is."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> the same shape and format."""
        if x.dtype == torch.bfloat16 and x.device.type == "cpu":
            return super().forward(x)
        return super().forward(x.float()).to(x.dtype)


def as_named(_: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
    """For `register_forward_pre_hook`: tokens (L, N, width) that lie as (N, L, width) -> the same as (L, N, width)."""
    return (given[0].contiguous(),)


class Attention(nn.MultiheadAttention):
    """Self-attention without a mask, of tokens (L, N, width), in place of torch's layer of the same weights."""

    def forward(self, tokens: Tensor, *_: Tensor, **__: object) -> tuple[Tensor, None]:
        """Tokens (L, N, width), which torch's layer is given three times -> the same shape, and no weights."""
        qkv = linear(tokens, self.in_proj_weight, self.in_proj_bias)
        mixed = attend(qkv.unflatten(2, (3, self.num_heads, -1)))
        return linear(mixed, self.out_proj.weight, self.out_proj.bias), None

    def of_first(self, tokens: Tensor) -> Tensor:
        """What `forward` gives for the first token: (L, N, width) -> (1, N, width)."""
        weight, bias, width = self.in_proj_weight, self.in_proj_bias, self.embed_dim
        asks = linear(tokens[:1], weight[:width], bias[:width])
        keys, values = linear(tokens, weight[width:], bias[width:]).chunk(2, 2)
        heads = (each.unflatten(2, (self.num_heads, -1)) for each in (asks, keys, values))
        return linear(_mixed(*heads), self.out_proj.weight, self.out_proj.bias)


class Last(nn.Module):
    """The last block of a tower that is read off its first token: the others' answers are not computed.

    Args:
        block: OpenAI's `ResidualAttentionBlock`, whose parts, and so whose weights, it has.
    """

    def __init__(self, block: nn.Module):
        super().__init__()
        self.ln_1, self.attn, self.ln_2, self.mlp = block.ln_1, block.attn, block.ln_2, block.mlp

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (L, N, width) -> the first ones (1, N, width)."""
        first = tokens[:1] + self.attn.of_first(self.ln_1(tokens))
        return first + self.mlp(self.ln_2(first))


def attend(qkv: Tensor) -> Tensor:
    """softmax(q kT / sqrt(d)) v: queries, keys and values (L, N, 3, heads, d) -> (L, N, heads * d)."""
    if qkv.dtype == torch.bfloat16 and qkv.device.type == "cpu":
        return _Spelled.apply(qkv)
    return _mixed(*qkv.unbind(2))


def _mixed(*qkv: Tensor) -> Tensor:
    """The same by torch's kernel: queries (Q, N, heads, d), keys and values (L, N, heads, d) -> (Q, N, heads * d)."""
    mixed = F.scaled_dot_product_attention(*(each.permute(1, 2, 0, 3) for each in qkv))
    return mixed.permute(2, 0, 1, 3).flatten(2)


class _Spelled(torch.autograd.Function):
    """A few heads at a time. Keeps what goes in, as (3, N * heads, L, d), and weights that are at most half of it."""

    @staticmethod
    def forward(ctx, qkv: Tensor) -> Tensor:
        L, N, _, heads, d = qkv.shape
        qkv = qkv.permute(2, 1, 3, 0, 4).clone(memory_format=torch.contiguous_format).flatten(1, 2)
        mixed = qkv.new_empty(L, N * heads, d)
        few = 2 * L <= 3 * d  # their L * L at most half of 3 * L * d
        kept = [qkv.new_empty(N * heads, L, L)] if few and ctx.needs_input_grad[0] else []
        for (q, k, v), out, *room in _pieces(qkv, mixed.transpose(0, 1), *kept):
            out.copy_(_weights(q, k, *room) @ v)
        ctx.save_for_backward(qkv, *kept)
        ctx.heads = heads
        return mixed.view(L, N, heads * d)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        qkv, *kept = ctx.saved_tensors
        _, rows, L, d = qkv.shape
        way = torch.empty_like(qkv)
        grad = grad.reshape(L, rows, d).transpose(0, 1)
        for (q, k, v), (dq, dk, dv), g, *weighed in _pieces(qkv, way, grad, *kept):
            weights, g = weighed[0] if weighed else _weights(q, k), g.contiguous()
            torch.bmm(weights.mT, g, out=dv)
            up = torch.ops.aten._softmax_backward_data(g @ v.mT, weights, -1, q.dtype)
            _product(up, k, d**-0.5, dq)
            _product(up.mT, q, d**-0.5, dk)
        return way.view(3, -1, ctx.heads, L, d).permute(3, 1, 0, 2, 4)


def _weights(q: Tensor, k: Tensor, room: Tensor | None = None) -> Tensor:
    scores = q.new_empty(len(q), q.shape[1], k.shape[1]) if room is None else room
    _product(q, k.mT, q.shape[2] ** -0.5, scores)
    return torch.softmax(scores, -1, out=scores)


def _product(a: Tensor, b: Tensor, scale: float, out: Tensor) -> None:
    """`scale * (a @ b)`, of matrices (rows, L, M) and (rows, M, N), without a pass for the scale."""
    torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)


def _pieces(*tensors: Tensor):
    """Tensors (..., rows, L, d) for a few rows at a time, as many as have AT_ONCE weights."""
    few = max(1, AT_ONCE // tensors[0].shape[-2] ** 2)
    return zip(*(each.split(few, -3) for each in tensors), strict=True)
