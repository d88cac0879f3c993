"""The parts of an image tower are torch's and OpenAI's own: in value, in gradient, in what they keep."""

import copy
from collections import OrderedDict
from functools import partial

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vqclip.memory import kept
from vqclip.perceptor import build_clip, openai_clip
from vqclip.tower import AT_ONCE, FUSES, Attention, Last, Linear, Norm, Patches, QuickGELU, attend, steepen


def drawn(*shape, dtype=torch.bfloat16):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()


def exactly(qkv):
    """What attention is: queries, keys and values (L, N, 3, heads, d) -> (L, N, heads * d)."""
    mixed = F.scaled_dot_product_attention(*qkv.permute(2, 1, 3, 0, 4))
    return mixed.permute(2, 0, 1, 3).flatten(2)


@pytest.mark.parametrize("shape", [(65, 5, 3, 3, 64), (197, 3, 3, 12, 64), (1, 1, 3, 1, 8), (50, 40, 3, 12, 64)])
def test_bfloat16_gives_what_float32_gives_and_its_gradients(shape):
    spelled = drawn(*shape)
    exact = spelled.detach().float().requires_grad_()
    wanted, found = exactly(exact), attend(spelled)
    weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, atol=0.03, rtol=0.03)
    (wanted * weight).sum().backward()
    (found * weight).sum().backward()
    for a, b in zip(exact.grad.unbind(2), spelled.grad.float().unbind(2), strict=True):
        assert (a - b).norm() <= 0.02 * a.norm() + 1e-6
    assert shape != (50, 40, 3, 12, 64) or AT_ONCE // 50**2 < 40 * 12  # in pieces


def test_float32_is_torchs_own():
    qkv = drawn(9, 2, 3, 3, 8, dtype=torch.float32)
    assert torch.equal(attend(qkv), exactly(qkv))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layer_has_the_weights_and_the_answer_of_torchs(dtype):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(96, 3).to(dtype)
    ours = Attention(96, 3, device="meta")
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()), assign=True)
    tokens = torch.randn(17, 4, 96).to(dtype)
    bound = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.01, "rtol": 0.02}
    found, weights = ours(tokens, tokens, tokens, need_weights=False, attn_mask=None)
    assert weights is None
    torch.testing.assert_close(found, theirs(tokens, tokens, tokens, need_weights=False)[0], **bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_last_block_gives_the_first_token_of_openais_and_its_gradient(dtype):
    torch.manual_seed(0)
    block = openai_clip("model").ResidualAttentionBlock(96, 3).requires_grad_(False)
    exact = copy.deepcopy(block)
    theirs, block.attn = block.attn, Attention(96, 3).requires_grad_(False)
    block.attn.load_state_dict(theirs.state_dict())
    ours = Last(block)
    assert ours.state_dict().keys() == exact.state_dict().keys()
    tokens = torch.randn(17, 4, 96).to(dtype).requires_grad_()
    named = tokens.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        found = ours(tokens)
    wanted, weight = exact(named)[:1], torch.randn(1, 4, 96)
    (found * weight).sum().backward()
    (wanted * weight).sum().backward()
    bound = 1e-5 if dtype == torch.float32 else 0.02
    for one, other in ((found, wanted), (tokens.grad, named.grad)):
        assert one.shape == other.shape and (one - other).norm() <= bound * other.norm()


def test_it_keeps_queries_keys_and_values_and_weights_that_are_few():
    many, few = drawn(197, 4, 3, 12, 64), drawn(50, 4, 3, 12, 64)
    assert kept(lambda: attend(many)) == many.nbytes
    assert kept(lambda: attend(few)) == few.nbytes + 4 * 12 * 50 * 50 * 2 < 4 / 3 * few.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_layer_gives_what_torchs_gives_and_its_gradient(dtype):
    """Bit for bit; and nothing is kept of what went in. In bfloat16 no product takes a bias apart."""
    torch.manual_seed(0)
    ours = Linear(96, 192).to(dtype).requires_grad_(False)
    with Counted() as counted:
        ours(torch.ones(2, 96, dtype=dtype))
    assert ("addmm" in counted.seen) == (dtype == torch.float32 or not FUSES)
    x, weight = drawn(9, 4, 96, dtype=torch.float32), torch.randn(9, 4, 192).to(dtype)
    gradients = []
    for layer in (ours, partial(F.linear, weight=ours.weight, bias=ours.bias)):
        found = layer(x.to(dtype))
        gradients.append((found, *torch.autograd.grad(found, x, weight)))
    for mine, theirs in zip(*gradients, strict=True):
        assert torch.equal(mine, theirs)
    assert kept(lambda: ours(x.detach().to(dtype).requires_grad_()), ours) == 0
    ours.requires_grad_()(x.to(dtype)).backward(weight)
    assert ours.weight.grad.norm() > 0 and ours.bias.grad.norm() > 0


def test_a_silu_between_steepened_layers_is_openais_activation():
    torch.manual_seed(0)
    layers = {"c_fc": Linear(24, 96), "gelu": QuickGELU(), "c_proj": Linear(96, 24)}
    mlp, x = nn.Sequential(OrderedDict(layers)), torch.randn(5, 24)
    wanted = mlp(x)
    steepen(mlp)
    assert isinstance(mlp.gelu, nn.SiLU)
    torch.testing.assert_close(mlp(x), wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_norm_is_openais_and_keeps_no_copy_of_bfloat16(dtype):
    torch.manual_seed(0)
    theirs, ours = openai_clip("model").LayerNorm(48), Norm(48)
    for weights in theirs.requires_grad_(False).parameters():
        nn.init.normal_(weights)
    ours.requires_grad_(False).load_state_dict(theirs.state_dict())
    x = torch.randn(9, 5, 48).to(dtype).requires_grad_()
    same = x.detach().clone().requires_grad_()
    found, wanted = ours(x), theirs(same)
    assert found.dtype == dtype
    found.sum().backward()
    wanted.sum().backward()
    for one, other in ((found, wanted), (x.grad, same.grad)):
        assert (one - other).norm() <= 1e-3 * other.norm()
    statistics = 2 * 9 * 5 * 4
    assert dtype != torch.bfloat16 or kept(lambda: ours(x), ours) == x.nbytes + statistics


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_activation_is_openais_and_keeps_no_more_than_went_in(dtype):
    x = (4 * drawn(5, 7, dtype=torch.float32).detach()).to(dtype).requires_grad_()
    exact = x.detach().double().requires_grad_()
    theirs, ours = openai_clip("model").QuickGELU()(exact), QuickGELU()(x)
    weight = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (theirs * weight).sum().backward()
    ours.backward(weight.to(dtype))
    size = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(ours.double(), theirs, atol=size, rtol=size)
    torch.testing.assert_close(x.grad.double(), exact.grad, atol=size * 3, rtol=size)
    assert kept(lambda: QuickGELU()(x)) == x.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_are_embedded_as_by_a_convolution_and_nothing_is_kept(dtype):
    torch.manual_seed(0)
    theirs = nn.Conv2d(3, 20, 8, stride=8, bias=False).requires_grad_(False)
    ours = Patches(3, 20, 8, stride=8, bias=False).requires_grad_(False)
    ours.load_state_dict(theirs.state_dict())
    lying = torch.rand(2, 16, 3, 24).transpose(1, 2)  # as cutouts do
    pictures, exact = lying.clone().requires_grad_(), lying.double().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        found = ours(pictures)

        assert kept(lambda: ours(pictures)) <= ours.weight.nbytes
    wanted = F.conv2d(exact, theirs.weight.double(), stride=8)
    assert found.dtype == dtype and found.shape == wanted.shape == (2, 20, 2, 3)
    weight = torch.randn(wanted.shape)
    (found.float() * weight).sum().backward()
    (wanted * weight).sum().backward()
    bound = 1e-6 if dtype == torch.float32 else 5e-3
    for one, other in ((found, wanted), (pictures.grad, exact.grad)):
        assert (one - other).norm() <= bound * other.norm()


class Counted(TorchDispatchMode):
    """Names the operations that there were."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


class Turned(TorchDispatchMode):
    """Counts norms of what does not lie as it is named, and sums of what lies in either order: each costs a copy."""

    def __init__(self):
        super().__init__()
        self.seen, self.turned = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("native_layer_norm", "native_layer_norm_backward", "add"):
            given = [each for each in args[:2] if isinstance(each, torch.Tensor) and each.dim() == 3]
            self.seen += 1
            self.turned += [name] * any(not each.is_contiguous() for each in given)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_tokens_lie_as_their_shape_says_there_and_back(precision):
    judge = build_clip(tiny.clip("vit").state_dict(), "tiny", precision)
    cutouts = torch.rand(3, 3, judge.size, judge.size, requires_grad=True)
    with Turned() as layouts:
        torch.autograd.grad(judge.encode_image(cutouts)[:, 0].sum(), cutouts)
    assert layouts.seen > 8 and layouts.turned == ["native_layer_norm_backward"]  # of `ln_pre`, once
