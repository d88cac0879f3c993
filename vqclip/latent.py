"""What is optimised: parameters that become a picture.

A latent is called for its image (1, 3, H, W) in [0, 1]; it has `parameters()` for the optimiser, `project_()` to bring
them back to where they mean something, `codes()`, the compact record of what it shows, `state()` / `restore()`, and
`spare()` for when memory is short.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .ops import clamp_with_grad, straight_through
from .vqgan import VQGAN


class VQLatent:
    """A VQGAN's latent, drawn as its nearest codes (Crowson 2021, "z+quantize").

    Args:
        vqgan: the painter; its weights stay as they are.
        start: the codes to begin with (1, h, w), or a latent (1, C, h, w).
        init_weight: how strongly z is held to its start: adds `init_weight / 2 * mse(z, start)`.
        init_decay: over how many steps that hold lets go, evenly; 0 means never.
        ema: in [0, 1): what is shown is the average of z with this memory per step; 0 shows z itself.
    """

    def __init__(self, vqgan: VQGAN, start: Tensor, init_weight: float = 0.0, init_decay: int = 0, ema: float = 0.0):
        self.vqgan = vqgan
        self.start = start.detach() if start.dim() == 4 else vqgan.embed(start)  # (1, C, h, w)
        self.z = self.start.clone().requires_grad_()
        self.average = torch.zeros_like(self.start)
        self.init_weight, self.init_decay, self.ema = init_weight, init_decay, ema
        codebook = vqgan.codebook.detach()  # (K, C)
        self.low, self.high = codebook.amin(0).view(1, -1, 1, 1), codebook.amax(0).view(1, -1, 1, 1)

    def parameters(self) -> list[Tensor]:
        """What the optimiser moves."""
        return [self.z]

    def __call__(self) -> Tensor:
        """The picture of z as it is now: (1, 3, H, W) in [0, 1]."""
        z_q = straight_through(self.vqgan.embed(self.vqgan.nearest(self.z)), self.z)  # (1, C, h, w)
        return clamp_with_grad(self.vqgan.decode(z_q))

    def pull(self, step: int) -> Tensor | None:
        """The hold to the start at this step, a scalar to minimise; None when there is none."""
        fade = max(0.0, 1 - step / self.init_decay) if self.init_decay else 1.0
        weight = self.init_weight * fade
        return F.mse_loss(self.z, self.start) * weight / 2 if weight else None

    @torch.no_grad()
    def project_(self) -> None:
        """Bring z back into the box that the codebook spans, channel by channel."""
        self.z.clamp_(self.low, self.high)

    @torch.no_grad()
    def codes(self, step: int) -> Tensor:
        """The codes shown at this step (h, w); with an average, this also lets it take z in."""
        if not self.ema:
            return self.vqgan.nearest(self.z)[0]
        self.average.mul_(self.ema).add_(self.z, alpha=1 - self.ema)
        return self.vqgan.nearest(self.average / (1 - self.ema ** (step + 1)))[0]  # the young average is too small

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """The picture of a grid of codes (h, w): (3, H, W) in [0, 1]."""
        return self.vqgan.decode(self.vqgan.embed(codes[None]))[0].clamp(0, 1)

    def spare(self) -> bool:
        """Have the painter keep less for its way back; False where it already keeps as little as it can."""
        if self.vqgan.sparing or self.vqgan.patches is not None:
            return False
        self.vqgan.sparing = True
        return True

    def state(self) -> dict[str, Tensor]:
        """Copies of what changes, and of the start, whose picture may be gone by the time it is needed again."""
        return {"z": self.z.detach().clone(), "start": self.start.clone(), "average": self.average.clone()}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Go back to where `state` was taken."""
        for name, value in state.items():
            getattr(self, name).copy_(value)


def random_start(vqgan: VQGAN, w: int, h: int, generator: torch.Generator) -> Tensor:
    """Codes drawn evenly at random: (1, h, w). Drawn on the CPU, so that every device starts alike."""
    return torch.randint(len(vqgan.codebook), (1, h, w), generator=generator).to(vqgan.codebook.device)


def mean_start(vqgan: VQGAN, w: int, h: int, generator: torch.Generator) -> Tensor:
    """The mean code everywhere, with a hundredth of the codebook's spread as noise: a latent (1, C, h, w)."""
    codebook = vqgan.codebook.detach()
    noise = torch.randn(1, codebook.shape[1], h, w, generator=generator).to(codebook)
    return codebook.mean(0).view(1, -1, 1, 1) + 0.01 * codebook.std(0).view(1, -1, 1, 1) * noise


@torch.no_grad()
def soft_start(vqgan: VQGAN, w: int, h: int, generator: torch.Generator) -> Tensor:
    """The codes halfway from random ones to the mean: (1, h, w). Codes far out stay in the picture as specks."""
    z, mean = vqgan.embed(random_start(vqgan, w, h, generator)), vqgan.codebook.mean(0).view(1, -1, 1, 1)
    return vqgan.nearest((z + mean) / 2)


STARTS = {"soft": soft_start, "random": random_start, "mean": mean_start}
