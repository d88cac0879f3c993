"""Families of scenes that differ in one thing: a square where another has a star, a blue house where another is red.

In a batch of scenes drawn at random, no two have the same colours and other shapes, so to tell them apart shapes are
not needed: a CLIP of 16,200 steps, of which every seventh picture was a plain shape, told five shapes apart in 36 of
100 pictures, where chance is 20. Among its kin, the one thing that differs is all there is to go by.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from .captions import JOINTS, LANGUAGES, phrase
from .scenes import COLOURED, COLOURS, HELD_OUT, PLACES, SHAPES, Scene, render_and_things, scene

SIZE = 4  # of a family
FAMILIES = ("shape", "shape", "shape", "colour", "colour", "thing", "thing", "thing")  # of a step


class Family(NamedTuple):
    """SIZE scenes alike but for one thing.

    Attributes:
        facts: what is true of each.
        texts, said: what each is and the others are not, and the facts that this mentions.
        pictures: (SIZE, H, W, 3) uint8.
        places: (SIZE, H, W) bool, where their things are.
    """

    facts: tuple[frozenset[str], ...]
    texts: tuple[str, ...]
    said: tuple[frozenset[str], ...]
    pictures: np.ndarray
    places: np.ndarray


def family(kind: str, rng: np.random.Generator) -> Family:
    """A family that differs in "shape", "colour" (of a shape) or "thing"; none of HELD_OUT."""
    while True:
        of = scene(int(rng.integers(2**31)))
        if not of.objects or bool(of.ground) != (kind == "thing"):
            continue
        name, colour = of.objects[0]
        if kind == "shape":
            others = [(shape, colour) for shape in SHAPES]
        elif kind == "colour":
            others = [(name, other) for other in COLOURS if other != of.backdrop]
        else:
            others = [(thing, str(rng.choice(list(COLOURS))) if thing in COLOURED else "")
                      for thing in (*PLACES[of.ground], *PLACES[of.ground], "balloon")]  # fmt: skip
        kin = [replace(of, objects=(other,)) for other in dict.fromkeys(others)]
        kin = [one for one in kin if not HELD_OUT & one.pairs]
        if len(kin) >= SIZE:
            break
    kin = [kin[k] for k in rng.permutation(len(kin))[:SIZE]]
    language, seed = str(rng.choice(LANGUAGES, p=(0.4, 0.2, 0.2, 0.2))), int(rng.integers(2**31))
    texts, said = zip(*(told(one, language, np.random.default_rng(seed)) for one in kin), strict=True)
    pictures, places = map(np.stack, zip(*map(render_and_things, kin), strict=True))
    return Family(tuple(one.facts for one in kin), texts, said, pictures, places)


def told(of: Scene, language: str, rng: np.random.Generator) -> tuple[str, frozenset[str]]:
    """A text that names a scene's thing with its colour, mostly what is around it, and the facts that it mentions."""
    ((name, colour),) = of.objects
    around = [of.ground, of.time] if of.ground else [f"{of.backdrop} background"]
    facts = [f"{colour} {name}".strip(), *(fact for fact in around if rng.random() < 0.7)]
    if of.weather not in ("clear", "clouds"):
        facts.append(of.weather)
    joint = str(rng.choice(JOINTS[language]))
    return joint.join(phrase(facts[k], language, rng) for k in rng.permutation(len(facts))), frozenset(facts)
