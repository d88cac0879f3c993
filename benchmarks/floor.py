"""What a step would take if nothing but its arithmetic and its memory were in the way: what no rewriting goes below.

Multiplications are counted while a step runs; what autograd keeps is counted on the meta device and is written once and
read once. Both are held against what this very device does when it does nothing else: products of large square
matrices in the format of each network, and copies. Crops, norms and activations count as nothing.
"""

from __future__ import annotations

import math
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from vqclip import tower
from vqclip.memory import needed
from vqclip.run import Run

from .measure import timed

SIDE = {"cpu": 1536, "cuda": 8192}  # of the matrices
COPIED = {"cpu": 2**28, "cuda": 2**31}  # bytes: more than any cache holds
TRIES = 5


def _of_linear(x: tuple[int, ...], weight: tuple[int, ...], *_: object, **__: object) -> int:
    return 2 * math.prod(x) * weight[0]


BESIDES = {torch.ops.mkldnn._linear_pointwise: _of_linear} if tower.FUSES else {}  # which torch does not count


def operations(run: Run) -> dict[str, int]:
    """Floating-point operations of the products in a step, there and back: of the "painter" and of the "judges"."""
    latent = run.latent
    with FlopCounterMode(display=False, custom_mapping=BESIDES) as counted:
        image = latent()
        painted = counted.get_total_flops()
        leaf = image.detach().requires_grad_()
        sum(weight * loss(leaf) for weight, loss in run.losses.values()).backward()
        judged = counted.get_total_flops() - painted
        image.backward(leaf.grad)
        painted = counted.get_total_flops() - judged
    latent.z.grad = None
    return {"painter": painted, "judges": judged}


def rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of square matrix products, the median of a few."""
    side = SIDE.get(device.type, SIDE["cpu"])
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    return 2 * side**3 / _seconds(lambda: a @ b, device)


def bandwidth(device: torch.device) -> float:
    """Bytes a second that are read and written by a copy, the median of a few."""
    some = torch.zeros(COPIED.get(device.type, COPIED["cpu"]), dtype=torch.uint8, device=device)
    other = torch.empty_like(some)
    return 2 * some.nbytes / _seconds(lambda: other.copy_(some), device)


def floor(run: Run) -> float:
    """Seconds that a step of a run takes at least, by the rates that its device reaches right now."""
    device = run.latent.z.device
    judges = [judge.perceptor for _, judge in run.judges()]
    formats = {"painter": run.latent.vqgan.precision, "judges": getattr(judges[0], "precision", torch.float32)}
    products = sum(count / rate(device, formats[what]) for what, count in operations(run).items())
    need = needed(run)
    return products + 2 * (need.painter + need.judges) / bandwidth(device)


def _seconds(function, device: torch.device) -> float:
    """The median of a few, after one that does not count."""
    return median([timed(function, device)[0] for _ in range(TRIES + 1)][1:])
