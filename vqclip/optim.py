"""How a latent moves: Adam as Crowson has it, and momentum with one step length for the whole latent."""

from __future__ import annotations

from inspect import unwrap

import torch
from torch import Tensor


class Momentum(torch.optim.Optimizer):
    """Gradient descent on the gradient over its root mean square, with momentum.

    Adam gives every element of a latent the same step length, so elements whose gradient is mere noise wander as
    far as those that matter. Here one length serves the whole tensor and the noise stays small beside the signal. The
    root mean square is the largest of late, so that steps grow shorter as there is less far to go.

    Args:
        lr: the root mean square of a step where the gradient is as large as ever and keeps its direction.
        momentum: in [0, 1): how much of the last step is kept.
        memory: in [0, 1]: how much of the largest root mean square is left a step later; 0 gives all steps one length.
    """

    # As torch has them, but for what loads its compiler at the first call, which takes longer than a first picture.
    add_param_group, zero_grad, state_dict, load_state_dict = map(unwrap, (
        torch.optim.Optimizer.add_param_group, torch.optim.Optimizer.zero_grad,
        torch.optim.Optimizer.state_dict, torch.optim.Optimizer.load_state_dict))  # fmt: skip

    def __init__(self, params, lr: float, momentum: float = 0.9, memory: float = 0.99):
        super().__init__(params, {"lr": lr, "momentum": momentum, "memory": memory})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    if not state:
                        state["velocity"], state["largest"] = torch.zeros_like(p), p.new_zeros(())
                    size: Tensor = p.grad.pow(2).mean().sqrt()
                    state["largest"] = torch.maximum(state["largest"] * group["memory"], size)
                    state["velocity"].lerp_(p.grad / (state["largest"] + 1e-12), 1 - group["momentum"])
                    p.sub_(state["velocity"], alpha=group["lr"])


OPTIMIZERS = {"adam": torch.optim.Adam, "momentum": Momentum}
