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

LEAST, MOST = 0.15, 0.95  # of a scene is spoilt where a walk begins that does not begin at nothing
STEPS = 0.1, 0.3  # the root mean square of a step; each walk has its own length
MOMENTUM, MEMORY = 0.8, 0.98  # as vqclip's Momentum has them
CHURN, UNTIL = 0.3, 0.8  # as vqclip's settings: each walk has its own, up to this


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
        length: how many turns a walk has.
    """

    def __init__(self, paint: Callable[[Tensor], Tensor], mosaic: nn.Module, count: int, grid: int, length: int):
        super().__init__()
        self.paint, self.mosaic, self.turns = paint, mosaic, length
        size = count, mosaic.codebook.shape[1], grid, grid
        for name in ("z", "velocity"):
            self.register_buffer(name, torch.zeros(size))
        for name in ("largest", "length", "share", "churn", "age"):
            self.register_buffer(name, torch.zeros(count, 1, 1, 1))

    def soft(self, count: int) -> Tensor:
        """Latents (M, C, h, w) as `start=soft` has them: halfway from random codes to the mean."""
        book, (h, w) = self.mosaic.codebook, self.z.shape[2:]
        codes = book[torch.randint(len(book), (count, h, w), device=book.device)].permute(0, 3, 1, 2)
        return (codes + book.mean(0).view(1, -1, 1, 1)) / 2

    def begin(self, which: Tensor, whole: Tensor) -> None:
        """Put walkers (M,) on their way: half where a run begins, half from what is left of scenes (M, 3, H, W)."""
        z = self.mosaic.latent(whole)
        M, _, h, w = z.shape
        share, length, churn = torch.rand(3, M, 1, 1, 1, device=z.device)
        share = torch.where(torch.rand(M, 1, 1, 1, device=z.device) < 0.5, 1.0, LEAST + (MOST - LEAST) * share)
        z = torch.where(torch.rand(M, 1, 1, 1, device=z.device) < 0.3,
                        F.interpolate(F.avg_pool2d(z, 4, ceil_mode=True), (h, w), mode="bilinear"), z)  # fmt: skip
        self.z[which] = z.lerp(self.soft(M), share)
        for name in ("velocity", "largest", "age"):
            getattr(self, name)[which] = 0.0
        self.share[which], self.length[which] = share, STEPS[0] + (STEPS[1] - STEPS[0]) * length
        self.churn[which] = CHURN * churn

    def nearest(self, which: Tensor, goals: Tensor, places: Tensor) -> Tensor:
        """Which of its goals (M, G, 3, H, W) each walker (M,) is nearest to by now: (M,).

        Things' places (M, G, 1, H, W) count as much as all the rest: a house is to come where one is growing.
        """
        M, G = goals.shape[:2]
        apart = (self.mosaic.latent(goals.flatten(0, 1)).unflatten(0, (M, G)) - self.z[which, None]).pow(2).mean(2)
        here = F.adaptive_avg_pool2d(places.flatten(0, 1), apart.shape[2:]).view_as(apart)
        there = (apart * here).sum((2, 3)) / here.sum((2, 3)).clamp(min=1)
        return (apart.mean((2, 3)) + there).argmin(1)

    def goal(self, which: Tensor, goals: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Of its goals, or their mirror images, which are just as right, the `nearest` to each, and its things."""
        goals, places = (torch.cat([each, each.flip(-1)], 1) for each in (goals, places))
        nearest = torch.arange(len(which), device=goals.device), self.nearest(which, goals, places)
        return goals[nearest], places[nearest]

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
        z = (self.z[which] + self.length[which] * velocity).clamp(low, high)
        fresh = self.churn[which] * (1 - self.age[which] / (UNTIL * self.turns)).clamp(min=0)
        self.z[which] = z.lerp(self.soft(len(z)), fresh)
        self.velocity[which], self.largest[which] = velocity, largest
        self.age[which] += 1
