"""What is measured on the pictures that a pair painted: facts read off them, chance, coarseness, ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .asked import named, scene_of
from .data import floats
from .judge import Judge, Reading
from .scenes import GROUNDS, SIDE, TIMES, WEATHERS, render

BARS = {  # row: its name, what must and what should be reached
    "ground": ("ground", 0.90, 0.97),
    "time": ("time of day", 0.95, 0.99),
    "weather": ("weather, where named", 0.75, 0.90),
    "object": ("named object present", 0.65, 0.80),
    "colour": ("colour of the object", 0.50, 0.75),
    "shape": ("plain shape: shape and both colours", 0.60, 0.85),
    "all": ("every attribute of the prompt right", 0.55, 0.70),
}


@dataclass(frozen=True)
class Seen:
    """A picture that was asked for and what the judge reads off it."""

    text: str
    seed: int
    facts: tuple[str, ...]
    path: Path
    reading: Reading

    @property
    def right(self) -> bool:
        """Whether all that was asked for is there."""
        return all(self.reading.holds(fact) for fact in self.facts)


def pictures(paths: list[Path]) -> Tensor:
    """Picture files -> (N, 3, SIDE, SIDE) in [0, 1]."""
    images = (Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX) for path in paths)
    return floats(np.stack([np.asarray(image) for image in images]))


def read(judge: Judge, images: Tensor) -> list[Reading]:
    return [reading for some in images.split(50) for reading in judge.read(some)]


def verdicts(facts: tuple[str, ...], reading: Reading) -> dict[str, list[bool]]:
    """For each row of BARS whether each fact that belongs there is read off the picture.

    A coloured object counts among the objects whatever its colour, and among the colours only if it is there too.
    """
    holds = {fact: reading.holds(fact) for fact in facts}
    rows: dict[str, list[bool]] = {row: [] for row in BARS}
    rows["all"] = [all(holds.values())]
    if named(facts).backdrop:
        return {**rows, "shape": rows["all"]}
    kinds = {**dict.fromkeys(GROUNDS, "ground"), **dict.fromkeys(TIMES, "time"), **dict.fromkeys(WEATHERS, "weather")}
    for fact, there in holds.items():
        rows[kinds.get(fact, "colour" if " " in fact else "object")].append(there)
        if fact not in kinds and " " in fact:
            rows["object"].append(reading.holds(fact.split(" ")[1]))
    return rows


def rows_of(facts) -> set[str]:
    """The rows of the table in which a prompt counts."""
    nothing = Reading("", "", "", frozenset(), {"background": ""})
    return {row for row, each in verdicts(facts, nothing).items() if each}


def tally(pairs: list[tuple[tuple[str, ...], Reading]]) -> dict[str, tuple[int, int]]:
    """By row (how many facts are right, of how many)."""
    each = [verdicts(facts, reading) for facts, reading in pairs]
    return {row: (sum(sum(v[row]) for v in each), sum(len(v[row]) for v in each)) for row in BARS}


def share(hits: int, count: int) -> float:
    return hits / count if count else float("nan")


def by_chance(seen: list[Seen]) -> dict[str, tuple[int, int]]:
    """`tally` of every prompt with the pictures of all others: what shuffling would give on average."""
    asked = {s.facts for s in seen}
    return tally([(facts, s.reading) for facts in asked for s in seen if s.facts != facts])


def renders(seen: list[Seen]) -> Tensor:
    """Fresh renders of what was asked for, one for each picture."""
    return floats(np.stack([render(scene_of(s.facts, 4_000_000 + k)) for k, s in enumerate(seen)]))


def variation(images: Tensor) -> Tensor:
    """Coarse total variation of images (N, 3, H, W): mean steps between neighbours, 4x average-pooled -> (N,)."""
    small = F.avg_pool2d(images, 4)
    return small.diff(dim=2).abs().mean((1, 2, 3)) + small.diff(dim=3).abs().mean((1, 2, 3))


@torch.no_grad()
def log_probability(judge: Judge, images: Tensor, fact: str) -> Tensor:
    """How likely the judge holds a ground or a time of day, as its logarithm -> (N,)."""
    head, names = ("time", TIMES) if fact in TIMES else ("ground", GROUNDS)
    return judge(images)[head].log_softmax(-1)[:, names.index(fact)]


def ranks(values) -> np.ndarray:
    """1 for the smallest; equal values share the mean of their ranks."""
    values = np.asarray(values)
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


def spearman(a, b) -> float:
    """Rank correlation; 0 where one side never changes."""
    a, b = ranks(a), ranks(b)
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else 0.0
