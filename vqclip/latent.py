"""What is optimised: parameters that become a picture.

A latent is called for its image (1, 3, H, W) in [0, 1]; it has `parameters()` for the optimiser, `project_()` to bring
them back to where they mean something, `churn_()` to keep them moving, `codes()`, the compact record of what it shows,
`state()` / `restore()`, and `spare()` for when memory is short. To be painted several at once, see `paint`, it has its
`vqgan` and is `quantised()`.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        churn: in [0, 1]: the share of z that fresh random codes, halfway to the mean, replace after the first step.
        churn_decay: over how many steps that share falls to nothing, evenly; 0 means never.
        seed: of those codes.
    """

    def __init__(self, vqgan: VQGAN, start: Tensor, init_weight: float = 0.0, init_decay: int = 0, ema: float = 0.0,
                 churn: float = 0.0, churn_decay: int = 0, seed: int = 0):  # fmt: skip
        self.vqgan = vqgan
        self.start = start.detach() if start.dim() == 4 else vqgan.embed(start)  # (1, C, h, w)
        self.z = self.start.clone().requires_grad_()
        self.average = torch.zeros_like(self.start)
        self.shown: Tensor | None = None  # the codes of the last picture
        self.init_weight, self.init_decay, self.ema = init_weight, init_decay, ema
        self.churn, self.churn_decay = churn, churn_decay
        self.generator = torch.Generator().manual_seed(seed)
        codebook = vqgan.codebook.detach()  # (K, C)
        self.low, self.high = codebook.amin(0).view(1, -1, 1, 1), codebook.amax(0).view(1, -1, 1, 1)

    def parameters(self) -> list[Tensor]:
        """What the optimiser moves."""
        return [self.z]

    def __call__(self) -> Tensor:
        """The picture of z as it is now: (1, 3, H, W) in [0, 1]."""
        return clamp_with_grad(self.vqgan.decode(self.quantised()))

    def quantised(self) -> Tensor:
        """z as its nearest codes have it, with z's gradient: z_q (1, C, h, w)."""
        self.shown = self.vqgan.nearest(self.z)  # (1, h, w)
        return straight_through(self.vqgan.embed(self.shown), self.z)

    def pull(self, step: int) -> Tensor | None:
        """The hold to the start at this step, a scalar to minimise; None when there is none."""
        weight = self.init_weight * fade(step, self.init_decay)
        return F.mse_loss(self.z, self.start) * weight / 2 if weight else None

    @torch.no_grad()
    def project_(self) -> None:
        """Bring z back into the box that the codebook spans, channel by channel."""
        self.z.clamp_(self.low, self.high)

    @torch.no_grad()
    def churn_(self, step: int) -> None:
        """Mix a little chance into z, less at each step: what went astray can come right again.

        What samplers of diffusion models call churn (Karras et al. 2022, arXiv 2206.00364).
        """
        share = self.churn * fade(step, self.churn_decay)
        if share:
            self.z.lerp_(soft(self.vqgan, *self.z.shape[:1:-1], self.generator), share)

    @torch.no_grad()
    def codes(self, step: int) -> Tensor:
        """The codes of the picture that was made last (h, w); with an average, of that, which takes z in by this."""
        if not self.ema:
            return self.shown[0]
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
        return {"z": self.z.detach().clone(), "start": self.start.clone(), "average": self.average.clone(),
                "churn": self.generator.get_state()}  # fmt: skip

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Go back to where `state` was taken."""
        for name in ("z", "start", "average"):
            getattr(self, name).copy_(state[name])
        self.generator.set_state(state["churn"])


def paint(latents: Sequence[VQLatent]) -> list[Tensor]:
    """The picture of each latent, (1, 3, H, W); several, of one painter and size, are painted as one batch."""
    if len(latents) == 1:
        return [latents[0]()]
    z_q = torch.cat([latent.quantised() for latent in latents])  # (B, C, h, w)
    pictures = clamp_with_grad(latents[0].vqgan.decode(z_q))
    return [picture.clone() for picture in pictures.split(1)]  # or who keeps one keeps all


def fade(step: int, decay: int) -> float:
    """What is left of something that falls evenly from 1 to 0 over `decay` steps; 1 for ever where that is 0."""
    return max(0.0, 1 - step / decay) if decay else 1.0


def random_start(vqgan: VQGAN, w: int, h: int, generator: torch.Generator) -> Tensor:
    """Codes drawn evenly at random: (1, h, w). Drawn on the CPU, so that every device starts alike."""
    return torch.randint(len(vqgan.codebook), (1, h, w), generator=generator).to(vqgan.codebook.device)


def mean_start(vqgan: VQGAN, w: int, h: int, generator: torch.Generator) -> Tensor:
    """The mean code everywhere, with a hundredth of the codebook's spread as noise: a latent (1, C, h, w)."""
    codebook = vqgan.codebook.detach()
    noise = torch.randn(1, codebook.shape[1], h, w, generator=generator).to(codebook)
    return codebook.mean(0).view(1, -1, 1, 1) + 0.01 * codebook.std(0).view(1, -1, 1, 1) * noise


@torch.no_grad()
def soft(vqgan: VQGAN, w: int, h: int, generator: torch.Generator) -> Tensor:
    """A latent (1, C, h, w) halfway from random codes to the mean. What is far out stays in the picture as specks."""
    z, mean = vqgan.embed(random_start(vqgan, w, h, generator)), vqgan.codebook.mean(0).view(1, -1, 1, 1)
    return (z + mean) / 2


def soft_start(vqgan: VQGAN, w: int, h: int, generator: torch.Generator) -> Tensor:
    """The codes nearest to a `soft` latent: (1, h, w)."""
    return vqgan.nearest(soft(vqgan, w, h, generator))


STARTS = {"soft": soft_start, "random": random_start, "mean": mean_start}
