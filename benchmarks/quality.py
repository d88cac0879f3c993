"""Whether the fast path paints as well as the plain one: `python -m benchmarks.quality`, forty minutes on two cores.

Twenty prompts and three seeds on the embedded pair, each painted twice from the same codes with the same settings: by
the plain loop in float32, and by ours as this device has it, but with the decoder's own way back, which goes on for as
long as the plain loop took. What counts is how alike a judge in float32 finds the words and the picture, by cutouts
that neither loop has seen: after as many steps, and after as many seconds, at the end and on the way there.

    python -m benchmarks.quality --precision bfloat16

does it in bfloat16, on any processor: one without such products rounds those of float32 (`rounded.py`), which says
what as many steps paint, and nothing of time.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from bisect import bisect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import torch

from training.asked import read_prompts
from vqclip.cutouts import Cutouts
from vqclip.files import atomic
from vqclip.precision import able, dtypes
from vqclip.run import pick_device

from . import rounded
from .bench import RESULTS
from .measure import machine, settle
from .models import Models

FRESH = 64  # cutouts that judge, of a seed that no run has
SETTLED = 2  # standard errors: a mean difference of less is noise


@dataclass(frozen=True)
class Painted:
    """A prompt and seed: how alike words and picture were, each at the same marks.

    Attributes:
        marks: steps of the plain loop.
        theirs, ours: how alike after as many steps.
        longer: what ours had to show at the time when the plain loop had that to show; empty where time says nothing.
        steps: that had led to it.
        their_seconds, our_seconds: of all steps to the last mark.
    """

    prompt: str
    seed: int
    marks: list[int]
    theirs: list[float]
    ours: list[float]
    longer: list[float]
    steps: list[int]
    their_seconds: float
    our_seconds: float


def paint(models: Models, prompt: str, seed: int, size: int, cutouts: int, marks: Sequence[int],
          precision: str = "auto") -> Painted:  # fmt: skip
    """Paint it both ways, ours in a precision, and judge the pictures at the marks, which rise."""
    judge, painter = models.judge(), models.painter()
    words = judge.encode_text([prompt])

    @torch.no_grad()
    def alike(shown: list[torch.Tensor], at: Sequence[int]) -> list[float]:
        found = []
        for codes in (shown[step] for step in at):
            picture = painter.decode(painter.embed(codes.view(1, *codes.shape[-2:]))).clamp(0, 1)
            fresh = Cutouts(judge.size, FRESH, seed=10_000 + seed)  # the same each time
            found.append(float((judge.encode_image(fresh(picture)) @ words.T).mean()))
        return found

    plain = models.reference(size, cutouts, {prompt: 1.0}, seed)
    theirs, their_seconds = followed(lambda: plain().codes, models.device, lambda done, _: done > marks[-1])

    timed = computes(models.device, precision)
    run = models.run(size, cutouts, precision, prompts={prompt: 1.0}, seed=seed)
    run.latent.vqgan.patches = None  # the decoder's own way back, as the plain loop has it
    run.latent.vqgan.paint_in(run.latent.vqgan.precision)  # and laid out for that
    run.latent.z.data.copy_(run.latent.vqgan.embed(theirs[0]))  # where both begin
    long = their_seconds[-1] if timed else 0.0
    with nullcontext() if timed else rounded.products():
        ours, our_seconds = followed(lambda: next(run).codes, models.device,
                                     lambda done, took: done > marks[-1] and took >= long)  # fmt: skip
    steps = [shown(our_seconds, their_seconds[mark]) for mark in marks] if timed else []
    return Painted(prompt, seed, list(marks), alike(theirs, marks), alike(ours, marks), alike(ours, steps), steps,
                   their_seconds[marks[-1]], our_seconds[marks[-1]])  # fmt: skip


def computes(device: torch.device, precision: str) -> bool:
    """Whether a device has arithmetic of its own for a precision."""
    here = able(device)
    return device.type != "cpu" or dtypes(precision, here).judge in (torch.float32, getattr(torch, here.fast))


def shown(seconds: Sequence[float], at: float) -> int:
    """Which of things that came at these seconds, in order, is the last at a time; the first, where none is there."""
    return max(bisect(seconds, at) - 1, 0)


def followed(
    step: Callable[[], torch.Tensor], device: torch.device, enough: Callable[[int, float], bool]
) -> tuple[list[torch.Tensor], list[float]]:
    """The codes that each step shows, and the seconds from the start until they are there.

    What step n shows is what n steps led to; the first shows the start.

    Args:
        enough: whether to end, by how many were made and the seconds that they took.
    """
    codes, seconds, begun = [], [], time.perf_counter()
    while not codes or not enough(len(codes), seconds[-1]):
        codes.append(step())
        settle(device)
        seconds.append(time.perf_counter() - begun)
    return codes, seconds


def table(found: list[Painted]) -> str:
    """Markdown: at each mark the plain loop's mean and spread, and what ours has more, with its standard error.

    Seeds of a prompt are one figure: they have much in common.
    """
    prompts = list(dict.fromkeys(one.prompt for one in found))
    timed = bool(found[0].longer)
    heads = ["steps of the plain loop", "similarity, mean and spread", "ours, as many steps"]
    heads += ["ours, as many seconds", "its steps"] * timed
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for at, mark in enumerate(found[0].marks):
        theirs = [one.theirs[at] for one in found]
        cells = [str(mark), f"{mean(theirs):.4f}, {stdev(theirs):.4f}"]
        cells += [against([mean(getattr(one, way)[at] - one.theirs[at] for one in found if one.prompt == prompt)
                           for prompt in prompts]) for way in ["ours"] + ["longer"] * timed]  # fmt: skip
        if timed:
            cells.append(f"{mean(one.steps[at] for one in found):.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    told = f"\n{len(found)} pictures of {len(prompts)} prompts"
    if timed:
        ratio = sum(one.their_seconds for one in found) / sum(one.our_seconds for one in found)
        told += f"; at equal steps the plain loop took {ratio:.2f} times as long"
    return "\n".join([*lines, f"{told}."])


def against(apart: list[float]) -> str:
    """A mean difference in words."""
    error = stdev(apart) / len(apart) ** 0.5
    noise = abs(mean(apart)) <= SETTLED * error
    verdict = "within noise" if noise else "ahead" if mean(apart) > 0 else "behind"
    return f"{mean(apart):+.4f} +- {error:.4f}, {verdict}"


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--prompts", type=int, default=20)
    ask.add_argument("--seeds", type=int, default=3)
    ask.add_argument("--size", type=int, default=128)
    ask.add_argument("--cutouts", type=int, default=16)
    ask.add_argument("--marks", type=int, nargs="+", default=[5, 10, 20, 40, 60], help="of the plain loop, in steps")
    ask.add_argument("--device", default="auto")
    ask.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="of ours")
    ask.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count()))
    ask.add_argument("--results", type=Path, default=RESULTS)
    asked = ask.parse_args()
    torch.set_num_threads(asked.threads)
    device = pick_device(asked.device)
    models, found = Models("embedded", device), []
    for prompt in [one["en"] for one in read_prompts()["tuning"]][: asked.prompts]:
        for seed in range(asked.seeds):
            found.append(paint(models, prompt, seed, asked.size, asked.cutouts, sorted(asked.marks), asked.precision))
            one = found[-1]
            ends = " ".join(f"{way[-1]:.3f}" for way in (one.theirs, one.ours, one.longer) if way)
            print(f"{ends}  seed {seed}  {prompt}", flush=True)
    asked.results.mkdir(parents=True, exist_ok=True)
    kind = device.type if asked.precision == "auto" else f"{device.type}-{asked.precision}"
    with atomic(asked.results / f"quality-{kind}.json", "w") as file:
        settings = {name: getattr(asked, name) for name in ("size", "cutouts", "marks", "precision")}
        json.dump({"machine": machine(device), "settings": settings, "pictures": [vars(one) for one in found]}, file,
                  indent=1)  # fmt: skip
    print(table(found))


if __name__ == "__main__":
    main()
