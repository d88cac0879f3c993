"""How a latent moves: Adam as Crowson has it, and momentum with one step length for the whole latent."""

from __future__ import annotations

import torch
from torch import Tensor


class Momentum(torch.optim.Optimizer):
    """Gradient descent on the gradient over its root mean square, with momentum.

    Adam gives every element of a latent the same step length, so elements whose gradient is mere noise wander as
    far as those that matter. Here one length serves the whole tensor and the noise stays small beside the signal.

    Args:
        lr: the root mean square of a step, before momentum.
        momentum: in [0, 1): how much of the last step is kept.
    """

    def __init__(self, params, lr: float, momentum: float = 0.8):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    if "velocity" not in state:
                        state["velocity"] = torch.zeros_like(p)
                    unit: Tensor = p.grad / (p.grad.pow(2).mean().sqrt() + 1e-12)
                    state["velocity"].mul_(group["momentum"]).add_(unit)
                    p.sub_(state["velocity"], alpha=group["lr"])


OPTIMIZERS = {"adam": torch.optim.Adam, "momentum": Momentum}
