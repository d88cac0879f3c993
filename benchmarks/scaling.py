"""How time and memory of a step grow with size and cutouts: `python -m benchmarks.scaling` draws media/scaling.png.

Each point is a process of its own on one device: the shortest of a few steps, which others on the machine disturb
least, and the height of memory with networks and libraries, as `benchmarks.peak` has it. The plain loop stands beside
ours where it is not too slow to wait for. What was measured is kept beside the table of the benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mode
from typing import Any

import torch

from vqclip.files import atomic, atomic_path
from vqclip.run import pick_device

from .bench import RESULTS
from .measure import ROOT, machine, peak, timed
from .models import Models

SIZES, CUTOUTS = (128, 256, 384, 512), (8, 16, 32, 64)
MIDDLE = 256, 32  # the size and the cutouts of which one is held while the other grows
SMALL, FEW = (32, 48), (2, 4)  # on small networks, to try it out
THEIRS_UP_TO = 256
STEPS = 3
MEDIA = ROOT / "media" / "scaling.png"


def points(quick: bool) -> list[tuple[str, int, int]]:
    """What is measured: (side, size, cutouts)."""
    sizes, cutouts = (SMALL, FEW) if quick else (SIZES, CUTOUTS)
    size, n = (SMALL[0], FEW[0]) if quick else MIDDLE
    wanted = dict.fromkeys([*((each, n) for each in sizes), *((size, each) for each in cutouts)])
    return [(side, *point) for point in wanted for side in ("ours", "theirs")
            if side == "ours" or point[0] <= THEIRS_UP_TO]  # fmt: skip


def seconds(side: str, kind: str, size: int, cutouts: int, device: torch.device) -> float:
    """The shortest of a few steps, after one that does not count."""
    models = Models(kind, device)
    if side == "ours":
        run = models.run(size, cutouts, "auto")
        step = lambda: next(run)  # noqa: E731
    else:
        step = models.reference(size, cutouts)
    return min([timed(step, device)[0] for _ in range(STEPS + 1)][1:])


def measure(point: tuple[str, int, int], kind: str, device: torch.device, threads: int) -> dict[str, Any]:
    """Seconds and bytes of a point, each from a process of its own."""
    side, size, cutouts = point
    command = [sys.executable, "-m", "benchmarks.scaling", "--point", side, kind, str(size), str(cutouts), "--device",
               str(device), "--threads", str(threads)]  # fmt: skip
    told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()[-1]
    took = peak(side, kind, str(size), str(cutouts), "--device", str(device), "--threads", str(threads))
    return {"side": side, "size": size, "cutouts": cutouts, "seconds": float(told), "bytes": took}


def draw(found: list[dict[str, Any]], about: dict[str, Any], path: Path) -> None:
    """Four plots: seconds and GiB against size and against cutouts, ours and theirs."""
    import matplotlib  # which nothing else needs

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ours = [one for one in found if one["side"] == "ours"]
    middle = {name: mode(one[name] for one in ours) for name in ("size", "cutouts")}  # what most points share
    figure, axes = pyplot.subplots(2, 2, figsize=(8, 6), layout="constrained")
    for column, (varied, held) in enumerate((("size", "cutouts"), ("cutouts", "size"))):
        for row, (what, unit, scale) in enumerate((("seconds", "seconds a step", 1), ("bytes", "GiB", 2**30))):
            axis = axes[row, column]
            for side, name in (("theirs", "the plain loop"), ("ours", "vqclip")):
                some = sorted((one for one in found if one["side"] == side and one[held] == middle[held]),
                              key=lambda one: one[varied])  # fmt: skip
                axis.plot([one[varied] for one in some], [one[what] / scale for one in some], "o-", label=name)
            axis.set(xlabel={"size": "side of the picture", "cutouts": "cutouts"}[varied], ylabel=unit)
            axis.set_ylim(0, 1.1 * axis.dataLim.y1)
            axis.set_title(f"{middle[held]} {'cutouts' if held == 'cutouts' else 'pixels a side'}", fontsize=9)
            axis.legend(fontsize=8)
    figure.suptitle(f"{about['device']}, {about['threads']} threads, torch {about['torch']}", fontsize=9)
    with atomic_path(path) as unfinished:
        figure.savefig(unfinished, dpi=80)
    pyplot.close(figure)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--quick", action="store_true", help="small networks, in seconds; figures mean nothing")
    ask.add_argument("--device", default="auto")
    ask.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count()))
    ask.add_argument("--results", type=Path, default=RESULTS)
    ask.add_argument("--out", type=Path, default=MEDIA)
    ask.add_argument("--point", nargs=4, metavar=("side", "kind", "size", "cutouts"), help="measure one step's seconds")
    asked = ask.parse_args()
    torch.set_num_threads(asked.threads)
    device = pick_device(asked.device)
    if asked.point:
        side, kind, size, cutouts = asked.point
        print(seconds(side, kind, int(size), int(cutouts), device))
        return
    found = []
    for point in points(asked.quick):
        found.append(measure(point, "small" if asked.quick else "full", device, asked.threads))
        print(" ".join(f"{name} {value}" for name, value in found[-1].items()), flush=True)
    about = machine(device)
    asked.results.mkdir(parents=True, exist_ok=True)
    with atomic(asked.results / f"scaling-{device.type}.json", "w") as file:
        json.dump({"machine": about, "points": found}, file, indent=1)
    draw(found, about, asked.out)


if __name__ == "__main__":
    main()
