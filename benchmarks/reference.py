"""A plain, slow account of the z+quantize loop (Crowson 2021), written from its description as a witness.

Nothing here comes from `vqclip`, and nothing is clever: crops are cut one at a time in a Python loop, the
nearest code is a one-hot matrix times the codebook, Adam is spelled out. What the package computes fast,
`iterate` computes slowly, for the same crops. Every function works in the dtype of what it is given, so
float64 is an option.

The models are plain callables:
    decode(z_q (1,C,h,w)) -> picture (1,3,H,W) in [-1,1], not clamped
    encode_image((N,3,S,S), already normalised for CLIP) -> (N,D), of any length
    codebook (K,C)

Letters: C latent channels, h w latent grid, H W pixels, K codes, N crops, S crop size after resampling, D
embedding, M embeddings of one target.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


# Two functions whose gradient is not their derivative


class ReplaceGrad(torch.autograd.Function):
    """Forward the first argument; hand the whole gradient to the second, summed down to its shape."""

    @staticmethod
    def forward(ctx, value, receiver):
        ctx.receiver_shape = receiver.shape
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        return None, grad.sum_to_size(ctx.receiver_shape)


class ClampWithGrad(torch.autograd.Function):
    """Clamp to [low, high]; outside, pass only those gradients whose descent step moves the value back in."""

    @staticmethod
    def forward(ctx, x, low, high):
        clamped = x.clamp(low, high)
        ctx.save_for_backward(x - clamped)  # 0 inside, < 0 below, > 0 above
        return clamped

    @staticmethod
    def backward(ctx, grad):
        (overshoot,) = ctx.saved_tensors
        # A descent step subtracts grad: above the range that helps when grad > 0, below it when grad < 0.
        helps = grad * overshoot >= 0
        return torch.where(helps, grad, torch.zeros_like(grad)), None, None


# The latent: codes, start, box


def nearest_codes(z, codebook):
    """z (1,C,h,w), codebook (K,C) -> index of the code with the smallest |x|^2 + |e|^2 - 2 x.e, (1,h,w)."""
    x = z.permute(0, 2, 3, 1)  # (1,h,w,C)
    distance = (x**2).sum(-1, keepdim=True) + (codebook**2).sum(-1) - 2 * x @ codebook.T  # (1,h,w,K)
    return distance.argmin(-1)


def embed(codes, codebook):
    """codes (1,h,w) -> one-hot @ codebook, (1,C,h,w)."""
    onehot = F.one_hot(codes, codebook.shape[0]).to(codebook.dtype)  # (1,h,w,K)
    return (onehot @ codebook).permute(0, 3, 1, 2)


def quantise(z, codebook):
    """Nearest code at every position, straight-through gradient to z."""
    return ReplaceGrad.apply(embed(nearest_codes(z, codebook), codebook), z)


def random_start(codebook, h, w, generator):
    """One uniformly random code at each of h x w positions, (1,C,h,w)."""
    codes = torch.randint(codebook.shape[0], (h * w,), generator=generator)
    return embed(codes.view(1, h, w), codebook)


def codebook_box(codebook):
    """Smallest and largest value of each channel over all codes, two (1,C,1,1)."""
    low, high = codebook.min(dim=0).values, codebook.max(dim=0).values
    return low.view(1, -1, 1, 1), high.view(1, -1, 1, 1)


def clamp_to_box(z, codebook):
    """Each channel of z (1,C,h,w) brought between its smallest and its largest value in the codebook."""
    low, high = codebook_box(codebook)
    return torch.minimum(torch.maximum(z, low), high)


def picture(z_q, decode):
    """Decode to [-1,1], move to [0,1], clamp with gradient: (1,3,H,W)."""
    return ClampWithGrad.apply((decode(z_q) + 1) / 2, 0, 1)


# Crops


def draw_crops(width, height, n, cut_size, generator, cut_pow=1.0):
    """n random squares (size, x, y) inside width x height.

    Sizes lie between min(width, height, cut_size) and min(width, height); cut_pow above 1 makes more small,
    below 1 more large ones. `generator` draws, for each square: its size, x, y.
    """
    largest = min(width, height)
    smallest = min(width, height, cut_size)
    crops = []
    for _ in range(n):
        u = torch.rand((), generator=generator).item()  # [0,1)
        size = int(u**cut_pow * (largest - smallest) + smallest)
        x = torch.randint(0, width - size + 1, (), generator=generator).item()  # both ends included
        y = torch.randint(0, height - size + 1, (), generator=generator).item()
        crops.append((size, x, y))
    return crops


def lanczos_kernel(ratio, a=2):
    """Taps for shrinking by `ratio` = dst / src < 1: sampled at its multiples, mirrored, summing to 1."""
    points = [i * ratio for i in range(math.ceil(a / ratio + 1))]
    points = [-p for p in reversed(points[1:])] + points
    points = points[1:-1]  # the outermost of each side is dropped

    def sinc(t):
        return 1.0 if t == 0 else math.sin(math.pi * t) / (math.pi * t)

    taps = [sinc(p) * sinc(p / a) if abs(p) < a else 0.0 for p in points]
    return torch.tensor([t / sum(taps) for t in taps], dtype=torch.float64)


def resample(image, size):
    """(N,3,H,W) -> (N,3,*size): Lanczos low-pass along axes that shrink, then bicubic, aligned corners."""
    n, c, height, width = image.shape
    rows, columns = size
    planes = image.reshape(n * c, 1, height, width)
    if rows < height:
        kernel = lanczos_kernel(rows / height).to(image)
        reach = (len(kernel) - 1) // 2
        planes = F.conv2d(F.pad(planes, (0, 0, reach, reach), "reflect"), kernel.view(1, 1, -1, 1))
    if columns < width:
        kernel = lanczos_kernel(columns / width).to(image)
        reach = (len(kernel) - 1) // 2
        planes = F.conv2d(F.pad(planes, (reach, reach, 0, 0), "reflect"), kernel.view(1, 1, 1, -1))
    planes = planes.reshape(n, c, height, width)
    return F.interpolate(planes, (rows, columns), mode="bicubic", align_corners=True)


def cutouts(image, crops, cut_size):
    """Each (size, x, y) cut from (1,3,H,W), resampled to cut_size, all clamped with gradient: (N,3,S,S)."""
    cuts = []
    for size, x, y in crops:
        cut = image[:, :, y : y + size, x : x + size]
        assert cut.shape[-2:] == (size, size), f"crop {(size, x, y)} leaves the image {tuple(image.shape)}"
        cuts.append(resample(cut, (cut_size, cut_size)))
    return ClampWithGrad.apply(torch.cat(cuts), 0, 1)


# Losses


@dataclass(frozen=True)
class Target:
    """What crops should look like: embeddings (M,D), a weight (negative = away), a distance to stop at."""

    embedding: torch.Tensor
    weight: float = 1.0
    stop: float = -math.inf


def clip_embeddings(cuts, encode_image):
    """(N,3,S,S) in [0,1] -> normalise with CLIP's mean and deviation -> encode_image -> (N,D)."""
    mean = torch.tensor(CLIP_MEAN).to(cuts).view(1, 3, 1, 1)
    std = torch.tensor(CLIP_STD).to(cuts).view(1, 3, 1, 1)
    return encode_image((cuts - mean) / std)


def distances(a, b):
    """(N,D), (M,D) -> 2 arcsin(|a - b| / 2)^2 of unit vectors, half the squared angle, (N,M)."""
    a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    chord = (a[:, None, :] - b[None, :, :]).norm(dim=-1)
    return 2 * (chord / 2).arcsin() ** 2


def prompt_loss(embeddings, target):
    """|w| mean(d sign(w)) over crops and embeddings; no gradient flows where d sign(w) is below the stop."""
    d = distances(embeddings, target.embedding.to(embeddings)) * math.copysign(1.0, target.weight)
    held = torch.maximum(d, d.new_tensor(target.stop))
    return abs(target.weight) * ReplaceGrad.apply(d, held).mean()


def tv(image):
    """Mean of squared differences to the right and to the bottom, the last column and row repeated once."""
    padded = F.pad(image, (0, 1, 0, 1), "replicate")
    here = padded[..., :-1, :-1]
    right, below = padded[..., :-1, 1:], padded[..., 1:, :-1]
    return ((right - here) ** 2 + (below - here) ** 2).mean()


def mse_schedule(steps, start=1.5, every=50, epochs=5):
    """For each step (weight of the pull to z_orig, whether Adam starts anew): the MSE-regularised variant.

    At step every, 2 every, ... epochs * every the weight loses start / epochs, or falls to 0 when less than
    that would remain. The new weight counts for the loss of that same step. (The description leaves that open
    by one step.)
    """
    drop = start / epochs
    weight = start
    for step in range(steps):
        restart = step > 0 and step % every == 0 and step <= every * epochs
        if restart:
            weight = weight - drop if weight - drop >= drop else 0.0
        yield weight, restart


# One iteration


@dataclass(frozen=True)
class Judge:
    """One CLIP: what it wants to see, and the crops (size, x, y) it looks at in this iteration."""

    encode_image: Callable[[torch.Tensor], torch.Tensor]
    cut_size: int  # S
    targets: Sequence[Target]
    crops: Sequence[tuple[int, int, int]]


class Adam:
    """Adam for a single tensor (Kingma & Ba, arXiv 1412.6980): bias-corrected moments, no weight decay."""

    def __init__(self, lr, betas=(0.9, 0.999), eps=1e-8):
        self.lr, self.betas, self.eps = lr, betas, eps
        self.count, self.mean, self.square = 0, None, None

    def step(self, z, grad):
        """z after one step down `grad`; z itself is left alone."""
        if self.mean is None:
            self.mean, self.square = torch.zeros_like(z), torch.zeros_like(z)
        self.count += 1
        b1, b2 = self.betas
        self.mean = b1 * self.mean + (1 - b1) * grad
        self.square = b2 * self.square + (1 - b2) * grad**2
        mean = self.mean / (1 - b1**self.count)
        square = self.square / (1 - b2**self.count)
        return z - self.lr * mean / (square.sqrt() + self.eps)


@dataclass
class Iteration:
    """What one iteration computed: `image` and `losses` belong to z before the step, `z` is z after it."""

    image: torch.Tensor  # (1,3,H,W) in [0,1]
    codes: torch.Tensor  # (1,h,w)
    cuts: list[torch.Tensor]  # of each judge (N,3,S,S)
    embeddings: list[torch.Tensor]  # of each judge (N,D)
    losses: dict[str, float]
    loss: float
    grad: torch.Tensor  # dL/dz (1,C,h,w)
    z: torch.Tensor  # (1,C,h,w)


def iterate(
    z,
    *,
    decode,
    codebook,
    judges,
    optimizer,
    init_weight=0.0,
    z_orig=None,
    tv_weight=0.0,
    box=True,
):
    """One iteration from z (1,C,h,w): picture, crops, losses, gradient, Adam step, clamp to the box.

    The loss is the plain sum of each judge's prompt losses with the weights they carry, of
    mse(z, z_orig) * init_weight / 2 (the continuous z; z_orig zeros when None) and of
    tv(picture) * tv_weight / 4. `box=False` leaves the clamp out, as the MSE-regularised variant does.
    """
    z = z.detach().clone().requires_grad_()
    image = picture(quantise(z, codebook), decode)
    losses, cuts, embeddings = {}, [], []
    for number, judge in enumerate(judges):
        cuts.append(cutouts(image, judge.crops, judge.cut_size))
        embeddings.append(clip_embeddings(cuts[-1], judge.encode_image))
        for i, target in enumerate(judge.targets):
            losses[f"judge {number} prompt {i}"] = prompt_loss(embeddings[-1], target)
    if init_weight:
        origin = torch.zeros_like(z) if z_orig is None else z_orig
        losses["init"] = ((z - origin) ** 2).mean() * init_weight / 2
    if tv_weight:
        losses["tv"] = tv(image) * tv_weight / 4
    loss = sum(losses.values())
    (grad,) = torch.autograd.grad(loss, z)

    after = optimizer.step(z.detach(), grad)
    if box:
        after = clamp_to_box(after, codebook)
    return Iteration(
        image=image.detach(),
        codes=nearest_codes(z.detach(), codebook),
        cuts=[some.detach() for some in cuts],
        embeddings=[some.detach() for some in embeddings],
        losses={name: value.item() for name, value in losses.items()},
        loss=loss.item(),
        grad=grad,
        z=after,
    )
