"""Cutouts: the many glimpses of a picture that the perceptor judges, and how each is disturbed before it looks.

A perceptor has one input size and is easily fooled; many square crops of random size and place, bent and tinted a
little, make it judge the picture rather than its pixels (Crowson 2021). Crop and resampling are exact and linear, so
all of a batch is two matrix products: no loop over cutouts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from .ops import clamp_with_grad

CUBIC = -0.75  # Keys' parameter, as torch's and most libraries' bicubic has it


def draw_boxes(n: int, height: int, width: int, size: int, power: float | Tensor, generator: torch.Generator) -> Tensor:
    """Random squares (N, 3) of (side, left, top) in pixels, int64.

    Sides run from min(H, W, size) to min(H, W), as u^power with u even in [0, 1): above 1 favours small crops, below
    1 large ones; a power (N,) gives each its own. Places are even over where a square fits.
    """
    largest = min(height, width)
    smallest = min(largest, size)
    u = torch.rand(3, n, generator=generator, dtype=torch.float64)
    side = (u[0] ** power * (largest - smallest) + smallest).long()
    left, top = ((u[i] * (extent - side + 1)).long() for i, extent in ((1, width), (2, height)))
    return torch.stack([side, left, top], 1)


def resampling(side: Tensor, first: Tensor, length: int, size: int, largest: int = 0) -> Tensor:
    """Matrices that take `side` pixels of a line from `first` on and resample them to `size`.

    Each is bicubic interpolation with aligned corners, after a Lanczos (a = 2) low-pass with reflected borders where
    the line shrinks: what Crowson's `resample` does to a crop, written as one banded matrix.

    Args:
        side, first: (N,) int64, in pixels.
        length: of the whole line (H or W).
        largest: what no side exceeds; 0 asks the sides, for which a graphics card has to stop.
    Returns:
        (N, size, length) float32 where `side` is; rows sum to 1.
    """
    double = {"dtype": torch.float64, "device": side.device}
    last = (side - 1).view(-1, 1, 1, 1).double()
    at = torch.arange(size, **double).view(1, -1, 1, 1) * last / max(size - 1, 1)  # (N, S, 1, 1)
    near = at.floor()
    t = at - near
    cubic = _cubic(torch.cat([1 + t, t, 1 - t, 2 - t], 2))  # (N, S, 4, 1)
    taps = (near + torch.arange(-1, 3, **double).view(1, 1, -1, 1)).clamp(min=0).minimum(last)

    ratio = size / side.double()
    largest = largest or int(side.max())
    reach = math.ceil(2 * largest / size) - 1 if size < largest else 0
    offsets = torch.arange(-reach, reach + 1, **double)
    x = offsets * ratio.view(-1, 1)  # (N, 2*reach+1)
    lanczos = torch.where(x.abs() < 2, torch.sinc(x) * torch.sinc(x / 2), 0.0)
    lanczos = torch.where((ratio < 1).view(-1, 1), lanczos, (offsets == 0).double())
    lanczos = (lanczos / lanczos.sum(1, keepdim=True)).view(len(side), 1, 1, -1)

    sources = (taps + offsets).abs()  # reflect at the first pixel ...
    sources = (last - (last - sources).abs()).clamp(min=0)  # ... and at the last; beyond reach the weight is zero
    index = first.view(-1, 1, 1, 1) + sources.long()  # (N, S, 4, 2*reach+1)
    matrix = torch.zeros(len(side), size, length, **double)
    return matrix.scatter_add_(2, index.flatten(2), (cubic * lanczos).flatten(2)).float()


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel at distances x in [0, 2]."""
    inner = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
    outer = CUBIC * (((x - 5) * x + 8) * x - 4)
    return torch.where(x <= 1, inner, outer)


def crop(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Squares of an image (1, 3, H, W), each resampled: boxes (N, 3) of (side, left, top) there -> (N, 3, S, S)."""
    _, channels, height, width = image.shape
    if image.device.type == "mps":  # which has no float64
        boxes = boxes.cpu()
    side, left, top = boxes.unbind(1)
    # Both ways in one call, which takes a card no longer than one of them; the end of the shorter's lines is zero.
    both = resampling(side.repeat(2), torch.cat([top, left]), max(height, width), size, min(height, width)).to(image)
    n = len(boxes)
    rows, columns = both[:n, :, :height], both[n:, :, :width]  # (N, S, H), (N, S, W)
    lines = image[0].transpose(0, 1).reshape(height, channels * width)  # (H, 3*W)
    tall = (rows.reshape(n * size, height) @ lines).view(n, size * channels, width)  # (N, S*3, W)
    return (tall @ columns.transpose(1, 2)).view(n, size, channels, size).transpose(1, 2)  # (N, 3, S, S)


def pool(image: Tensor, size: int) -> Tensor:
    """The whole picture, its sides brought to S by the mean of average and max pooling (nerdyrodent 2022)."""
    return (F.adaptive_avg_pool2d(image, size) + F.adaptive_max_pool2d(image, size)) / 2


@dataclass(frozen=True)
class Augment:
    """How cutouts are disturbed: probabilities in [0, 1], strengths as noted; zero means not at all.

    All that bends is folded into one homography and sampled once, which keeps cutouts sharper than a chain of
    resamplings would; all that tints is one affine map of the colours.
    """

    flip: float = 0.0  # probability of mirroring left and right
    affine: float = 0.0  # probability of turning and shifting
    degrees: float = 30.0  # the turn, even in [-degrees, degrees]
    translate: float = 0.1  # the shift, a share of the side
    shear: float = 0.0  # degrees
    perspective: float = 0.0  # probability of moving the corners inwards
    depth: float = 0.2  # by up to half this share of the side
    padding: str = "border"  # what lies outside: "border" repeats the edge, "zeros" is black
    jitter: float = 0.0  # probability of changing colours
    hue: float = 0.01  # of a full turn
    saturation: float = 0.01  # all three: by a factor even in [1 - x, 1 + x]
    brightness: float = 0.0
    contrast: float = 0.0
    soften: float = 0.0  # probability of blending with a blurred copy
    erase: float = 0.0  # probability of blacking out a rectangle, the same one for the whole batch
    noise: float = 0.0  # standard deviation of added noise, drawn evenly in [0, noise] for each cutout


AUGMENTS = {
    "none": Augment(),
    # jbusted1's MSE-regularised notebook, 2021
    "mse": Augment(flip=0.5, affine=0.8, perspective=0.4, jitter=0.7, noise=0.1),
    # Eleiber and Abulafia's notebook, 2021
    "abulafia": Augment(flip=0.5, soften=0.4, affine=0.8, perspective=0.4, jitter=0.7, noise=0.1),
    # nerdyrodent's generate.py, 2022: its default ("latest", used there with pooled cutouts) and "updated"
    "nerdyrodent": Augment(affine=0.7, degrees=15, shear=5, padding="zeros", perspective=0.7, depth=0.7, jitter=0.7,
                           hue=0.1, saturation=0.1, brightness=0.1, contrast=0.1, erase=0.7, noise=0.1),
    "updated": Augment(flip=0.5, jitter=0.7, soften=0.4, affine=0.8, perspective=0.4, noise=0.1),
}  # fmt: skip


@dataclass(frozen=True)
class Draw:
    """All that is random about one batch of cutouts, drawn before any is cut.

    Every field has a first axis of N, or is None; so a slice of a draw is a draw, and a batch may be worked off in
    chunks of any size with the same result.
    """

    boxes: Tensor  # (N, 3) of (side, left, top) in pixels
    maps: Tensor | None = None  # (N, 3, 3) homographies from new to old places; sides run from -1 to 1
    tints: Tensor | None = None  # (N, 3, 4) affine colour maps
    keeps: Tensor | None = None  # (N, 1, 1, 1) how much of the sharp cutout stays
    holes: Tensor | None = None  # (N, 1, S, S) zero where erased
    grains: Tensor | None = None  # (N, 3, S, S) noise to add

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def disturbs(self) -> bool:
        """Whether anything is done to the crops."""
        return any(getattr(self, field.name) is not None for field in fields(self) if field.name != "boxes")

    def __getitem__(self, part: slice) -> Draw:
        values = (getattr(self, field.name) for field in fields(self))
        return Draw(*(None if value is None else value[part] for value in values))

    def to(self, device: torch.device) -> Draw:
        """The same where the pictures are; a graphics card goes on with its work while it is brought there."""
        return Draw(*(_bring(getattr(self, field.name), device) for field in fields(self)))


def _bring(value: Tensor | None, device: torch.device) -> Tensor | None:
    if value is None or value.device == device:
        return value
    if device.type != "cuda":
        return value.to(device)
    return value.contiguous().pin_memory().to(device, non_blocking=True)  # not a view, as one hole for all is


class Cutouts:
    """Cuts pictures into N glimpses, new ones at each call.

    Args:
        size: S, the perceptor's input size.
        n: how many.
        power: see `draw_boxes`.
        how: the augmentation; see `AUGMENTS`.
        pooled: take the whole picture N times instead of crops, to be told apart by augmentation alone.
        seed: of its two generators, which belong to nobody else.
        device: where the pictures will be.
        precision: what crops are made in, and come in where nothing disturbs them; None takes the picture's.
    """

    def __init__(self, size: int, n: int = 32, power: float = 1.0, how: Augment = AUGMENTS["none"],
                 pooled: bool = False, seed: int = 0, device: str | torch.device = "cpu",
                 precision: torch.dtype | None = None):  # fmt: skip
        self.size, self.n, self.power, self.how, self.pooled = size, n, power, how, pooled
        self.precision = precision
        # Places and bends come from the CPU, so that every device draws the same; noise is made where it is used.
        self.generator = torch.Generator().manual_seed(seed)
        self.noise_generator = torch.Generator(device).manual_seed(seed)

    def draw(self, height: int, width: int) -> Draw:
        """Decide on the next N cutouts of a picture of this size."""
        n, how, size = self.n, self.how, self.size
        boxes = draw_boxes(n, height, width, size, self.power, self.generator)

        def even(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
            return low + (high - low) * torch.rand(*shape, generator=self.generator)

        maps = _homographies(n, how, even) if how.flip or how.affine or how.perspective else None
        tints = _tints(n, how, even) if how.jitter else None
        keeps = torch.where(even(n) < how.soften, even(n, high=0.3), 1.0).view(n, 1, 1, 1) if how.soften else None
        holes = _hole(size, even).expand(n, 1, size, size) if how.erase and even(1) < how.erase else None
        grains = None
        if how.noise:
            device = self.noise_generator.device
            grain = torch.randn(n, 3, size, size, generator=self.noise_generator, device=device)
            grains = even(n, 1, 1, 1, high=how.noise).to(device) * grain
        return Draw(boxes, maps, tints, keeps, holes, grains)

    def __call__(self, image: Tensor, draw: Draw | None = None) -> Tensor:
        """Image (1, 3, H, W) in [0, 1] -> cutouts (N, 3, S, S) in [0, 1], with a gradient to the image."""
        draw = (draw or self.draw(*image.shape[2:])).to(image.device)
        if self.pooled:
            cutouts = pool(image, self.size).expand(len(draw), -1, -1, -1)
        else:
            cutouts = crop(image.to(self.precision or image.dtype), draw.boxes, self.size)
            if draw.disturbs:
                cutouts = cutouts.to(image.dtype)
        if draw.maps is not None:
            cutouts = _bend(cutouts, draw.maps, self.how.padding)
        if draw.tints is not None:
            tints = draw.tints.to(cutouts)
            cutouts = torch.einsum("nij,njhw->nihw", tints[..., :3], cutouts) + tints[..., 3:, None]
        if draw.keeps is not None:
            keeps = draw.keeps.to(cutouts)
            cutouts = keeps * cutouts + (1 - keeps) * _blur(cutouts)
        if draw.holes is not None:
            cutouts = cutouts * draw.holes.to(cutouts)
        if draw.grains is not None:
            cutouts = cutouts + draw.grains.to(cutouts)
        return clamp_with_grad(cutouts)

    def state(self) -> dict[str, Tensor]:
        """Where the generators stand, to go on from exactly here."""
        return {"cutouts": self.generator.get_state(), "noise": self.noise_generator.get_state()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put the generators back to where `state` was taken; on another kind of device noise is drawn anew."""
        self.generator.set_state(state["cutouts"])
        if len(state["noise"]) == len(self.noise_generator.get_state()):
            self.noise_generator.set_state(state["noise"])


def _homographies(n: int, how: Augment, even) -> Tensor:
    """Maps (N, 3, 3) from a point of the new cutout to the point of the old one it shows; sides run from -1 to 1."""
    chosen = lambda p: (even(n) < p).float()  # noqa: E731
    turn, shear = (even(n, low=-x, high=x) * math.pi / 180 for x in (how.degrees, how.shear))
    affine = chosen(how.affine)
    cos, sin = (turn * affine).cos(), (turn * affine).sin()
    slant = (shear * affine).tan()
    shift = even(2, n, low=-2 * how.translate, high=2 * how.translate) * affine
    mirror = 1 - 2 * chosen(how.flip)
    zero, one = torch.zeros(n), torch.ones(n)
    rows = [mirror * cos, mirror * (slant * cos - sin), mirror * shift[0],
            sin, cos + slant * sin, shift[1],
            zero, zero, one]  # fmt: skip
    bent = torch.stack(rows, 1).view(n, 3, 3)
    if how.perspective:
        corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
        inwards = even(n, 4, 2, high=how.depth) * chosen(how.perspective).view(n, 1, 1)
        bent = bent @ _homography(corners * (1 - inwards), corners.expand(n, 4, 2))
    return bent


def _homography(source: Tensor, target: Tensor) -> Tensor:
    """The maps (N, 3, 3) that take four points to four others: both (N, 4, 2)."""
    x, y = source.unbind(2)
    u, v = target.unbind(2)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    equations = torch.cat(
        [torch.stack([x, y, one, zero, zero, zero, -x * u, -y * u], 2),
         torch.stack([zero, zero, zero, x, y, one, -x * v, -y * v], 2)], 1
    )  # (N, 8, 8)  # fmt: skip
    solved = torch.linalg.solve(equations, torch.cat([u, v], 1))  # (N, 8)
    return torch.cat([solved, torch.ones(len(solved), 1)], 1).view(-1, 3, 3)


def _bend(cutouts: Tensor, maps: Tensor, padding: str) -> Tensor:
    n, _, _, size = cutouts.shape
    line = (torch.arange(size, device=cutouts.device, dtype=torch.float32) * 2 + 1) / size - 1  # pixel centres
    y, x = torch.meshgrid(line, line, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], 2).view(1, -1, 3)  # (1, S*S, 3)
    seen = points @ maps.to(points).transpose(1, 2)  # (N, S*S, 3)
    grid = (seen[..., :2] / seen[..., 2:]).view(n, size, size, 2)
    return F.grid_sample(cutouts, grid.to(cutouts.dtype), "bilinear", padding, align_corners=False)


def _tints(n: int, how: Augment, even) -> Tensor:
    """Affine colour maps (N, 3, 4): hue turned about the grey axis, then saturation, brightness, contrast."""
    chosen = (even(n) < how.jitter).float()
    turn = even(n, low=-how.hue, high=how.hue) * 2 * math.pi * chosen
    saturation, brightness, contrast = (
        1 + even(n, low=-x, high=x) * chosen for x in (how.saturation, how.brightness, how.contrast)
    )
    grey = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    cos, sin = turn.cos().view(n, 1, 1), turn.sin().view(n, 1, 1)
    hue = grey + cos * (torch.eye(3) - grey) + sin * cross  # Rodrigues' rotation about (1, 1, 1)
    vivid = grey + saturation.view(n, 1, 1) * (torch.eye(3) - grey)
    matrix = (brightness * contrast).view(n, 1, 1) * vivid @ hue
    offset = ((1 - contrast) / 2).view(n, 1, 1).expand(n, 3, 1)
    return torch.cat([matrix, offset], 2)


def _blur(cutouts: Tensor) -> Tensor:
    """PIL's smoothing kernel, borders repeated."""
    kernel = torch.ones(3, 1, 3, 3, device=cutouts.device, dtype=cutouts.dtype)
    kernel[:, :, 1, 1] = 5
    return F.conv2d(F.pad(cutouts, (1, 1, 1, 1), "replicate"), kernel / 13, groups=3)


def _hole(size: int, even) -> Tensor:
    """A mask (S, S) with one rectangle of 10 to 40 % of the area and sides as 0.3 to 3.3 set to zero."""
    area, ratio = even(1, low=0.1, high=0.4).item(), even(1, low=0.3, high=3.3).item()
    height, width = (min(size, round(size * math.sqrt(x))) for x in (area * ratio, area / ratio))
    top, left = (int(even(1).item() * (size - side + 1)) for side in (height, width))
    mask = torch.ones(size, size)
    mask[top : top + height, left : left + width] = 0
    return mask
