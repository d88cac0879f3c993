"""Walkers: pictures that the CLIP in training moves itself, so that it learns where its own gradients lead.

Spoilt pictures show what guidance meets at first. Where a few steps then lead, no spoiling shows: a heart that swells
to a blob, a house that dissolves into its colour. So some pictures walk. Each begins as a scene of which a part is
spoilt, so that its goal is known; whenever its turn comes, the step that teaches the network also moves it, as the loop
would; after some turns it begins anew with another scene. Persistent chains of an energy (Tieleman 2008; Du and
Mordatch 2019, arXiv 1903.08689), but with a goal each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST, MOST = 0.15, 0.95  # of a scene is spoilt where a walk begins: of nothing left no goal could be told
STEPS = 0.05, 0.25  # the root mean square of a step; each walk has its own length
MOMENTUM, MEMORY = 0.7, 0.97  # as vqclip's Momentum has them


def turns(step: int, count: int, length: int, each: int) -> list[tuple[int, int, bool]]:
    """Of `count` walkers, `each` have their turn at a step: (walker, the number of its walk, whether that begins).

    A walk has `length` turns. Not all end at once, so that there are always some at every stage.
    """
    found = []
    for turn in range(step * each, (step + 1) * each):
        walker, past = turn % count, turn // count
        walk, at = divmod(past + walker * 7, length)
        found.append((walker, walk, at == 0 or past == 0))
    return found


class Walkers(nn.Module):
    """Latents on their way (N, C, h, w), as buffers: training that was interrupted goes on with them.

    Args:
        paint: codes (M, h, w) -> images (M, 3, H, W) in [0, 1].
        mosaic: knows codes and the patches that they stand for.
        count: N.
        grid: h, and w.
    """

    def __init__(self, paint: Callable[[Tensor], Tensor], mosaic: nn.Module, count: int, grid: int):
        super().__init__()
        self.paint, self.mosaic = paint, mosaic
        size = count, mosaic.codebook.shape[1], grid, grid
        for name in ("z", "velocity"):
            self.register_buffer(name, torch.zeros(size))
        for name in ("largest", "length", "share"):
            self.register_buffer(name, torch.zeros(count, 1, 1, 1))

    def begin(self, which: Tensor, whole: Tensor) -> None:
        """Put walkers (M,) on their way to whole scenes (M, 3, H, W) in [0, 1]: most from halfway to random codes."""
        z, book = self.mosaic.latent(whole), self.mosaic.codebook
        M, C, h, w = z.shape
        share, length = torch.rand(2, M, 1, 1, 1, device=z.device)
        share = LEAST + (MOST - LEAST) * share
        codes = book[torch.randint(len(book), (M, h, w), device=z.device)].permute(0, 3, 1, 2)
        mean, blurred = book.mean(0).view(1, C, 1, 1), F.interpolate(F.avg_pool2d(z, 4), (h, w), mode="bilinear")
        ways = torch.stack([z + share * ((codes + mean) / 2 - z), z + share * (codes - z),
                            blurred + 0.3 * share * (codes - blurred)])  # fmt: skip
        way = torch.bucketize(torch.rand(M, device=z.device), torch.tensor([0.65, 0.85], device=z.device))
        self.z[which] = ways[way, torch.arange(M, device=z.device)]
        self.velocity[which], self.largest[which] = 0.0, 0.0
        self.share[which], self.length[which] = share, STEPS[0] + (STEPS[1] - STEPS[0]) * length

    def forward(self, which: Tensor) -> Tensor:
        """What walkers (M,) look like now: (M, 3, H, W) in [0, 1]."""
        return self.paint(self.mosaic.codes(self.z[which]))

    @torch.no_grad()
    def walk(self, which: Tensor, uphill: Tensor) -> None:
        """Move walkers (M,) along a direction in their pictures (M, 3, H, W), taken to latents patch by patch."""
        g = self.mosaic.back(uphill)
        largest = torch.maximum(self.largest[which] * MEMORY, g.pow(2).mean((1, 2, 3), keepdim=True).sqrt())
        velocity = self.velocity[which].lerp(g / (largest + 1e-12), 1 - MOMENTUM)
        low, high = (side.view(1, -1, 1, 1) for side in self.mosaic.codebook.aminmax(dim=0))
        self.z[which] = (self.z[which] + self.length[which] * velocity).clamp(low, high)
        self.velocity[which], self.largest[which] = velocity, largest
