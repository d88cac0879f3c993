"""What walkers are told in two texts at once, as runs are: `desert:50 | snow:25`, `castle | snow`, `forest | rain:-1`.

A gradient is linear in what is asked for, so with two texts it is a sum, and where each pulls as hard as there is far
to go, that leads to what lies halfway between them: neither sand nor snow, but pink. So some walkers are told two
texts, and have goals that both agree with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from .captions import any_language, caption, phrase
from .scenes import GROUNDS, HELD_OUT, SIDE, TIMES, Scene, render_and_things

ODDS = {"split": 0.15, "mixed": 0.15, "shunned": 0.15}  # of walkers in a land; the others are told one text
MIXED = 0.1, 0.9  # the least and the most that a text weighs
SHUNNED = 0.2, 0.5  # the same of a negative one
SOFT = 0.3  # how far one land passes into the other, in standard deviations of the noise that parts them

Text = tuple[str, frozenset[str]]  # and the facts it mentions
Goal = tuple[np.ndarray, np.ndarray]  # a picture (SIDE, SIDE, 3) uint8 and where its things are (SIDE, SIDE) bool


class Told(NamedTuple):
    """What a walker is told, and where that leads.

    Attributes:
        caption, beside: the two texts; without a second one, both are the same.
        weight: of the second, 1 - |weight| of the first.
        goal: from a seed, one of the pictures that it may become.
    """

    caption: Text
    beside: Text
    weight: float
    goal: Callable[[int], Goal]


def tell(of: Scene, rng: np.random.Generator, odds: dict[str, float] = ODDS) -> Told:
    """One text about a scene, or two, in one language; two as often as the odds of each kind say, where it can be."""
    language = any_language(rng)
    first, kind = caption(of, rng, language), str(rng.choice(["", *odds], p=[1 - sum(odds.values()), *odds.values()]))
    other = _other(of, rng)
    if kind == "split" and of.ground:
        return Told(first, caption(of, rng, language), float(rng.uniform(*MIXED)), lambda seed: _painted(of, seed))
    if kind == "mixed" and other:
        weight = float(rng.uniform(*MIXED))
        return Told(first, caption(other, rng, language), weight, lambda seed: mixture(of, other, weight, seed))
    if kind == "shunned" and (away := _removable(of)):
        name, bare = away[rng.integers(len(away))]
        asked = first if rng.random() < 0.5 else caption(bare, rng, language)
        shunned = phrase(name, language, rng), frozenset({name})
        return Told(asked, shunned, -float(rng.uniform(*SHUNNED)), lambda seed: _painted(bare, seed))
    return Told(first, first, 0.0, lambda seed: _painted(of, seed))


def _painted(of: Scene, seed: int) -> Goal:
    return render_and_things(replace(of, seed=seed))


def _removable(of: Scene) -> list[tuple[str, Scene]]:
    """What may be taken out of a land, its things and its weather, and the scene without it."""
    if not of.ground:
        return []
    found = [(name, replace(of, objects=tuple(one for one in of.objects if one[0] != name))) for name, _ in of.objects]
    if of.weather != "clear":
        found.append((of.weather, replace(of, weather="clear")))
    return found


def _other(of: Scene, rng: np.random.Generator) -> Scene | None:
    """The same scene in another land or, without things that know the hour, at another time; None for plain shapes."""
    if not of.ground:
        return None
    others = [replace(of, ground=ground) for ground in GROUNDS if ground != of.ground]
    if not of.objects:
        others += 2 * [replace(of, time=time) for time in TIMES if time != of.time]
    others = [other for other in others if not HELD_OUT & other.pairs]
    return others[rng.integers(len(others))] if others else None


def mixture(a: Scene, b: Scene, weight: float, seed: int) -> Goal:
    """A scene that is b for a share of `weight`: two lands lie beside each other, two hours become one."""
    (first, things), (second, others) = _painted(a, seed), _painted(b, seed)
    share = np.full((SIDE, SIDE, 1), weight, np.float32)
    if a.time == b.time:
        noise = np.random.default_rng((17, seed)).normal(size=(5, 5)).astype(np.float32)
        field = np.asarray(Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        share = np.clip((field - np.quantile(field, 1 - weight)) / SOFT + 0.5, 0, 1)[..., None]
    return (first * (1 - share) + second * share).round().astype(np.uint8), things | others
