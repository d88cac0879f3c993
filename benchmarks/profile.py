"""Where a step's time goes: by stage, and by operation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity
from torch.profiler import profile as record

from .measure import timed
from .models import Models

LINES = 15


def profile(models: Models, size: int, cutouts: int, precision: str = "auto") -> str:
    """Two tables of one step of ours: seconds of each stage, and the operations that take the most."""
    run = models.run(size, cutouts, precision)
    next(run)  # the first one warms up
    lines = [f"{name:24} {seconds:8.4f} s" for name, seconds in stages(run, models.device).items()]
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if models.device.type == "cuda" else [])]
    with record(activities=kinds) as recorded:
        next(run)
    order = "self_cuda_time_total" if models.device.type == "cuda" else "self_cpu_time_total"
    return "\n".join([*lines, "", recorded.key_averages().table(sort_by=order, row_limit=LINES)])


def stages(run, device: torch.device) -> dict[str, float]:
    """Seconds of each stage of a step, cut apart where one hands over to the next; its latent does not move."""
    latent, (_, judge) = run.latent, run.judges()[0]
    draw = judge.cutouts.draw(*latent().shape[2:])
    seconds: dict[str, float] = {}
    made: dict[str, Tensor] = {}

    def stage(what: str, function) -> None:
        seconds[what] = timed(lambda: made.__setitem__(what, function()), device)[0]

    def border(what: str) -> Tensor:
        return made[what].detach().requires_grad_()

    def back(what: str, grad: Tensor | None = None) -> None:
        stage(f"{what}, back", lambda: made[what].backward(grad, inputs=[leaf[what]]))

    leaf: dict[str, Tensor] = {}
    stage("nearest codes", lambda: latent.vqgan.embed(latent.vqgan.nearest(latent.z)))
    leaf["painter"] = border("nearest codes")
    stage("painter", lambda: latent.vqgan.decode(leaf["painter"]))
    leaf["cutouts"] = border("painter")
    stage("cutouts", lambda: judge.cutouts(leaf["cutouts"], draw))
    leaf["judge"] = border("cutouts")
    stage("judge", lambda: judge.perceptor.encode_image(leaf["judge"]))
    back("judge", torch.ones_like(made["judge"]))
    back("cutouts", leaf["judge"].grad)
    back("painter", leaf["cutouts"].grad)
    return seconds
