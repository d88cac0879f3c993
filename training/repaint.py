"""Scenes on their way: what the painter shows of spoilt latents, painted before the CLIP is trained on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqclip.precision import able

from .data import floats
from .mosaic import Mosaic
from .scenes import Scene, scattered, with_other_things

# How often `spoil` does what: all cells towards random codes, some cells, a region of another picture, another picture
# shining through, that and towards random codes, pale, too far, blurred and a little towards random codes, all cells
# towards random codes halfway to the mean, another picture and a little towards random codes
ODDS = {
    "random": (0.3, 0.1, 0.13, 0.12, 0.15, 0.1, 0.1, 0, 0, 0),
    "bare": (0, 0, 0.1, 0.3, 0.6, 0, 0, 0, 0, 0),  # the other picture: the scene without its things, or weather
    "soft": (0, 0, 0, 0, 0, 0, 0, 0.3, 0.7, 0),
    "bent": (0, 0, 0.2, 0, 0.2, 0, 0, 0, 0, 0.6),  # the scene out of shape, or with other things in the same places
}


def spoil(z: Tensor, codebook: Tensor, odds: tuple[float, ...] = ODDS["random"],
          others: Tensor | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Latents of pictures (B, C, h, w) -> latents as guidance meets them on its way, and by what share (B,) spoilt.

    Most have some way to go from random codes, or from ones halfway to the mean, where a run begins (`start=soft`);
    others show another picture or have gone too far.

    Args:
        others: the other pictures' latents; their neighbours, where not given.
    """
    B, C, h, w = z.shape
    share, other_share = torch.rand(2, B, 1, 1, 1, device=z.device)
    codes = codebook[torch.randint(len(codebook), (B, h, w), device=z.device)].permute(0, 3, 1, 2)
    mean, others = codebook.mean(0).view(1, C, 1, 1), z.roll(1, 0) if others is None else others
    cells = (torch.rand(B, 1, h, w, device=z.device) < share).float()
    hills = F.interpolate(torch.rand(B, 1, 3, 3, device=z.device), (h, w), mode="bilinear")
    hills = hills + 0.1 * torch.rand(B, 1, h, w, device=z.device)
    level = hills.flatten(1).sort(1).values.gather(1, (share.view(B, 1) * (h * w - 1)).long()).view(B, 1, 1, 1)
    both = z + other_share * (others - z)
    which = torch.tensor(odds, dtype=torch.float, device=z.device).multinomial(B, replacement=True)
    coarse = [F.interpolate(F.avg_pool2d(both, k, ceil_mode=True), (h, w), mode="bilinear") for k in (2, 4)]
    soft = torch.where(torch.rand(B, 1, 1, 1, device=z.device) < 0.5, *coarse)
    ways = torch.stack([
        z + share * (codes - z), z + cells * (codes - z), z + (hills <= level) * (others - z),
        z + share * (others - z), both + share * (codes - both), z + share * (mean - z), z + share * (z - mean) / 2,
        soft + 0.3 * share * (codes - soft), z + share * ((mean + codes) / 2 - z),
        others + 0.3 * share * (codes - others),
    ])  # fmt: skip
    mixed = 1 - (1 - share) * (1 - other_share)
    lost = torch.stack([*[share] * 4, mixed, share, 0.2 * share, other_share, share, torch.ones_like(share)])
    lost = lost.view(len(ways), B)
    each = torch.arange(B, device=z.device)
    return ways[which, each], lost[which, each]


def without_things(of: Scene) -> Scene:
    """The same scene bare, one without things under a clear sky; a plain shape takes the colour of its background."""
    weather = of.weather if of.objects else "clear"
    return replace(of, weather=weather, objects=tuple((name, of.backdrop) for name, _ in of.objects if not of.ground))


def bend(images: Tensor, most: float = 0.6) -> Tensor:
    """Images (B, 3, H, W) out of shape: pushed to and fro by a few pixels, rarely twenty, in large waves or small."""
    B, _, H, W = images.shape
    waves = (4, 8, 16)[int(torch.randint(3, ()))]
    push = torch.randn(B, 2, waves, waves, device=images.device) * torch.rand(B, 1, 1, 1, device=images.device)
    push = F.interpolate(push * most / waves, (H, W), mode="bicubic")  # in half sides
    straight = F.affine_grid(torch.eye(2, 3, device=images.device).expand(B, 2, 3), (B, 3, H, W), align_corners=False)
    return F.grid_sample(images, straight + push.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)


@cache
def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device does so itself; where it does not, that takes longer than float32."""
    return able(device).fast == "bfloat16"


@torch.no_grad()
def show(painting, codes: Tensor) -> Tensor:
    """What the painter makes of codes (B, h, w), where they are: images (B, 3, H, W) in [0, 1]."""
    painter = painting.painter.to(codes.device).eval()
    with torch.autocast(codes.device.type, torch.bfloat16, enabled=multiplies_bfloat16(codes.device)):
        return (painter.decode(painter.embed(codes)).float() / 2 + 0.5).clamp(0, 1)


def repaint(painting, mosaic: Mosaic, pictures: np.ndarray, scenes: np.ndarray, seed: int,
            kind: str, draw: Callable[[list[Scene]], Iterable[np.ndarray]]) -> dict[str, np.ndarray]:  # fmt: skip
    """What the painter shows of spoilt latents of scenes: arrays `scene`, `picture` (uint8), `share` (half).

    Args:
        kind: of ODDS. Of "bare" ones the other pictures are the scenes without their things, or weather, of "soft"
            ones every second; of "bent" ones the scenes out of shape, of every second with other things.
        draw: scenes -> their pictures, such as `map` with `render`.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)

    def latent(images: Tensor) -> Tensor:
        return mosaic.latent(images.to(painting.device))

    def others(some: np.ndarray, z: Tensor) -> Tensor | None:
        if kind == "random":
            return None
        shown = [without_things(scattered(int(k))) if kind != "bent" else scattered(int(k)) for k in some]
        if kind == "bent":
            shown[::2] = [with_other_things(each, rng) for each in shown[::2]]
        images = floats(np.stack([*draw(shown)]))
        if kind == "bent":
            images[1::2] = bend(images[1::2])
        found = latent(images)
        if kind == "soft":
            found[::2] = z.roll(1, 0)[::2]
        return found

    made = {"scene": [scenes], "picture": [], "share": []}
    for some in np.array_split(scenes, max(1, len(scenes) // 16)):
        z = latent(floats(pictures[some]))
        z, share = spoil(z, mosaic.codebook, ODDS[kind], others(some, z))
        shown = (show(painting, mosaic.codes(z)) * 255 + 0.5).byte().permute(0, 2, 3, 1)
        made["picture"].append(shown.cpu().numpy())
        made["share"].append(share.half().cpu().numpy())
    return {name: np.concatenate(values) for name, values in made.items()}
