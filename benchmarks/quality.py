"""Whether the fast path paints as well as the plain one: `python -m benchmarks.quality`, half an hour on two cores.

Twenty prompts and three seeds on the embedded pair, each painted twice from the same codes with the same settings: by
the plain loop in float32, and by ours as this device has it. Then ours goes on for as long as the plain loop took. What
counts is how alike a judge in float32 finds the words and the picture, by cutouts that neither loop has seen.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import torch

from training.asked import read_prompts
from vqclip.cutouts import Cutouts
from vqclip.files import atomic
from vqclip.run import pick_device

from .bench import RESULTS
from .measure import machine, settle
from .models import Models

FRESH = 64  # cutouts that judge, of a seed that no run has
SETTLED = 2  # standard errors: a mean difference of less is noise


@dataclass(frozen=True)
class Painted:
    """A prompt and seed: how alike words and picture are at the end, and the seconds that it took.

    Attributes:
        longer: how alike they are once ours has had as many seconds as the plain loop.
        steps: that ours made by then.
    """

    prompt: str
    seed: int
    theirs: float
    ours: float
    longer: float
    their_seconds: float
    our_seconds: float
    steps: int


def paint(models: Models, prompt: str, seed: int, size: int, cutouts: int, steps: int) -> Painted:
    """Paint it both ways and judge the pictures."""
    judge, painter = models.judge(), models.painter()
    words = judge.encode_text([prompt])

    @torch.no_grad()
    def alike(codes: torch.Tensor) -> float:
        picture = painter.decode(painter.embed(codes.view(1, *codes.shape[-2:]))).clamp(0, 1)
        fresh = Cutouts(judge.size, FRESH, seed=10_000 + seed)  # the same each time
        return float((judge.encode_image(fresh(picture)) @ words.T).mean())

    def clock() -> float:
        settle(models.device)
        return time.perf_counter()

    iterate = models.reference(size, cutouts, {prompt: 1.0}, seed)
    start = iterate().codes  # where both begin
    iterate = models.reference(size, cutouts, {prompt: 1.0}, seed)
    begun = clock()
    for _ in range(steps + 1):  # the last one shows what all steps led to
        made = iterate()
    their_seconds = clock() - begun

    run = models.run(size, cutouts, "auto", prompts={prompt: 1.0}, seed=seed)
    run.latent.vqgan.patches = None  # the decoder's own way back, as the plain loop has it
    run.latent.z.data.copy_(run.latent.vqgan.embed(start))
    begun = clock()
    for _ in range(steps + 1):
        frame = next(run)
    our_seconds, ours, count = clock() - begun, alike(frame.codes), steps
    while clock() - begun < their_seconds:
        frame, count = next(run), count + 1
    return Painted(prompt, seed, alike(made.codes), ours, alike(frame.codes), their_seconds, our_seconds, count)


def table(found: list[Painted]) -> str:
    """Markdown: each way's mean and spread, and the mean difference to the plain loop with its standard error."""
    lines = ["| | similarity, mean | spread | against the plain loop | |", "|---|---|---|---|---|"]
    names = {"theirs": "the plain loop", "ours": "ours, equal steps", "longer": "ours, equal seconds"}
    for way, name in names.items():
        values, apart = ([getattr(one, way) for one in found], [getattr(one, way) - one.theirs for one in found])
        error = stdev(apart) / len(apart) ** 0.5
        verdict = "" if way == "theirs" else "within noise" if abs(mean(apart)) <= SETTLED * error else (
            "ahead" if mean(apart) > 0 else "behind")  # fmt: skip
        against = "" if way == "theirs" else f"{mean(apart):+.4f} +- {error:.4f}"
        lines.append(f"| {name} | {mean(values):.4f} | {stdev(values):.4f} | {against} | {verdict} |")
    ratio = sum(one.their_seconds for one in found) / sum(one.our_seconds for one in found)
    lines.append(f"\n{len(found)} pictures; at equal steps the plain loop took {ratio:.2f} times as long.")
    return "\n".join(lines)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--prompts", type=int, default=20)
    ask.add_argument("--seeds", type=int, default=3)
    ask.add_argument("--size", type=int, default=128)
    ask.add_argument("--cutouts", type=int, default=16)
    ask.add_argument("--steps", type=int, default=60)
    ask.add_argument("--device", default="auto")
    ask.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count()))
    ask.add_argument("--results", type=Path, default=RESULTS)
    asked = ask.parse_args()
    torch.set_num_threads(asked.threads)
    device = pick_device(asked.device)
    models, found = Models("embedded", device), []
    for prompt in [one["en"] for one in read_prompts()["tuning"]][: asked.prompts]:
        for seed in range(asked.seeds):
            found.append(paint(models, prompt, seed, asked.size, asked.cutouts, asked.steps))
            one = found[-1]
            print(f"{one.theirs:.3f} {one.ours:.3f} {one.longer:.3f}  seed {seed}  {prompt}", flush=True)
    print(table(found))
    asked.results.mkdir(parents=True, exist_ok=True)
    with atomic(asked.results / f"quality-{device.type}.json", "w") as file:
        settings = {name: getattr(asked, name) for name in ("size", "cutouts", "steps")}
        json.dump({"machine": machine(device), "settings": settings, "pictures": [vars(one) for one in found]}, file,
                  indent=1)  # fmt: skip


if __name__ == "__main__":
    main()
