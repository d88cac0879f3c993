"""Families of scenes that differ in one thing: a square where another has a star, a blue house where another is red.

In a batch of scenes drawn at random, no two have the same colours and other shapes, so to tell them apart shapes are
not needed: a CLIP of 16,200 steps, of which every seventh picture was a plain shape, told five shapes apart in 36 of
100 pictures, where chance is 20. Among its kin, the one thing that differs is all there is to go by.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .captions import JOINTS, any_language, phrase, sayable
from .scenes import COLOURED, COLOURS, GROUNDS, HELD_OUT, SHAPES, STANDING, TIMES, WEATHERS, Scene, scattered

SIZE = 4  # of a family
FAMILIES = ("shape", "shape", "colour", "colour", "backdrop", "thing", "thing", "thing", "thing", "thing",
            "tint", "tint", "tint", "tint", "ground", "ground", "ground", "ground", "weather", "weather", "weather",
            "time", "time")  # of a round  # fmt: skip
PLAIN = ("shape", "colour", "backdrop")  # families of plain shapes; the others are landscapes
THINGS = (*STANDING, "sun", "moon")  # of which one is in a family of things


class Family(NamedTuple):
    """SIZE scenes alike but for one thing.

    Attributes:
        facts: what is sayable of each.
        texts, said: what each is and the others are not, and the facts that this mentions.
    """

    facts: tuple[frozenset[str], ...]
    texts: tuple[str, ...]
    said: tuple[frozenset[str], ...]


@lru_cache(None)  # each is drawn many times over
def relatives(number: int) -> tuple[tuple[Scene, str], ...]:
    """The SIZE scenes of the family of a number, and the fact that is sayable of each alone; none of HELD_OUT.

    In turn, families differ as FAMILIES has it: in the shape, in its colour, in what is behind it, in the thing of a
    landscape, in that thing's colour, in the land, in the weather, in the hour.
    """
    kind, rng = FAMILIES[number % len(FAMILIES)], np.random.default_rng((4, number))
    wanted = str(rng.choice({"thing": THINGS, "tint": COLOURED}.get(kind, ("",))))
    while True:
        of = scattered(int(rng.integers(2**31)))
        if bool(of.ground) == (kind in PLAIN):
            continue
        if kind == "ground":
            kin = [(replace(of, ground=ground, objects=of.objects[:1]), ground) for ground in GROUNDS]
        elif kind == "backdrop":
            behind = [colour for colour in COLOURS if colour != of.objects[0][1]]
            kin = [(replace(of, backdrop=colour), f"{colour} background") for colour in behind]
        elif kind in ("weather", "time"):
            low = tuple(thing for thing in of.objects if thing[0] in STANDING)  # no stars in the rain, nor by day
            names = WEATHERS if kind == "weather" else TIMES
            kin = [(replace(of, **{kind: name, "objects": low}), name) for name in names]
        else:
            others = dict.fromkeys(_others(kind, of, wanted, rng))
            kin = [(replace(of, objects=(other,)), f"{other[1]} {other[0]}".strip()) for other in others]
        kin = [one for one in kin if not HELD_OUT & one[0].pairs]
        kin = [kin[k] for k in rng.permutation(len(kin))]
        kin.sort(key=lambda one: kind == "thing" and not one[1].endswith(wanted))  # what is wanted comes along
        kin = kin[:SIZE]
        if (len(kin) == SIZE and kin[0][1].endswith(wanted)
                and all(sum(own in sayable(other) for other, _ in kin) == 1 for _, own in kin)):  # fmt: skip
            return tuple(kin)


def _others(kind: str, of: Scene, wanted: str, rng: np.random.Generator) -> list[tuple[str, str]]:
    """The objects of which one is in the place of all those of a scene."""
    name, colour = of.objects[0] if of.objects else ("", "")
    if kind == "shape":
        return [(shape, colour) for shape in SHAPES]
    if kind == "colour":
        return [(name, other) for other in COLOURS if other != of.backdrop]
    if kind == "tint":
        return [(wanted, other) for other in COLOURS]
    light = () if of.weather not in ("clear", "clouds") else ("moon",) if of.time == "night" else ("sun", "rainbow")
    return [(thing, str(rng.choice(list(COLOURS))) if thing in COLOURED else "")
            for thing in (*STANDING, *STANDING, *light[: 1 + (of.time == "day")])]  # fmt: skip


def kin(k: int) -> Scene:
    """Number k of all scenes of all families, one family after another."""
    return relatives(k // SIZE)[k % SIZE][0]


def family(number: int, rng: np.random.Generator) -> Family:
    """The family of a number, told of in one language; its scenes are `kin` from number * SIZE on."""
    language, seed = any_language(rng), int(rng.integers(2**31))
    alike = relatives(number)
    texts, said = zip(*(told(of, own, language, np.random.default_rng(seed)) for of, own in alike), strict=True)
    return Family(tuple(sayable(of) for of, _ in alike), texts, said)


def told(of: Scene, own: str, language: str, rng: np.random.Generator) -> tuple[str, frozenset[str]]:
    """A text that names a scene's own fact, mostly what is around it too, and the facts that it mentions."""
    around = [of.ground, of.time] if of.ground else [" ".join(of.objects[0][::-1]), f"{of.backdrop} background"]
    facts = [own, *(fact for fact in around if rng.random() < 0.7 and fact != own)]
    if of.ground and of.weather not in ("clear", "clouds", own):
        facts.append(of.weather)
    joint = str(rng.choice(JOINTS[language]))
    return joint.join(phrase(facts[k], language, rng) for k in rng.permutation(len(facts))), frozenset(facts)
