"""Pictures of the training for people: `python -m training.show` draws curves and reconstructions into media/.

Curves are running means of what each stage logged; in the reconstructions every column is one scene that no
training had: as rendered, and as the painter shows the codes that its encoder finds.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vqclip.checkpoints import EMBEDDED
from vqclip.files import atomic_path
from vqclip.vqgan import load_vqgan

from .data import floats
from .scenes import render, scene

CURVES = {  # stage -> what is drawn of it
    "vqgan": ("paint", "encode"), "sharper": ("paint", "encode"), "clip": ("telling", "kin", "pointing", "sums"),
}  # fmt: skip


def read_curve(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of what a stage logged, over all its versions; where it was resumed, the later one counts."""
    found: dict[int, float] = {}
    for file in sorted((folder / "curves").rglob("metrics.csv"), key=lambda path: path.stat().st_mtime):
        with file.open() as lines:
            found |= {int(row["step"]): float(row[name]) for row in csv.DictReader(lines) if row.get(name)}
    steps = sorted(found)
    return np.array(steps), np.array([found[step] for step in steps])


def draw_curves(runs: Path, path: Path) -> None:
    """Those of CURVES that were trained there, beside one another."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = {(stage, name): read_curve(runs / stage, name) for stage, names in CURVES.items() for name in names}
    found = {title: (steps, values) for title, (steps, values) in found.items() if len(values)}
    across = -(-len(found) // 2)
    figure, axes = pyplot.subplots(2, across, figsize=(13 / 3 * across, 5), layout="constrained", squeeze=False)
    for axis, ((stage, name), (steps, values)) in zip(axes.T.flat, found.items(), strict=False):
        window = min(9, len(values))
        smooth = np.convolve(values, np.ones(window) / window, "valid")
        axis.plot(steps, values, color="0.8", linewidth=0.8)
        axis.plot(steps[window // 2 : window // 2 + len(smooth)], smooth, color="tab:orange")
        axis.set_title(f"{stage}: {name}", fontsize=9)
        axis.tick_params(labelsize=8)
    with atomic_path(path) as unfinished:
        figure.savefig(unfinished, dpi=80)
    pyplot.close(figure)


@torch.no_grad()
def draw_reconstructions(pair: Path, path: Path, count: int = 12) -> float:
    """Renders, and what the painter makes of their codes; returns the mean absolute error in [0, 1]."""
    painter = load_vqgan(pair / "vqgan.safetensors")
    real = floats(np.stack([render(scene(4_000_000 + k)) for k in range(count)]))
    again = painter.decode(painter.embed(painter.encode(real))).clamp(0, 1)
    rows = [torch.cat(list(row), 2) for row in (real, again)]
    with atomic_path(path) as unfinished:
        _image(torch.cat(rows, 1)).save(unfinished, quality=88)
    return float((again - real).abs().mean())


def _image(pixels: Tensor) -> Image.Image:
    return Image.fromarray((pixels * 255 + 0.5).byte().permute(1, 2, 0).numpy())


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--runs", type=Path, default=Path("training/runs"))
    ask.add_argument("--pair", type=Path, default=EMBEDDED)
    ask.add_argument("--out", type=Path, default=Path("media"))
    asked = ask.parse_args()
    draw_curves(asked.runs, asked.out / "training-curves.png")
    error = draw_reconstructions(asked.pair, asked.out / "reconstructions.jpg")
    print(f"mean absolute error of the reconstructions: {error:.3f}")


if __name__ == "__main__":
    main()
