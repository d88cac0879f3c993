"""What the embedded pair is asked for when it is measured: `prompts.yaml`, and scenes of which its facts are true."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from .scenes import COLOURED, COLOURS, GROUNDS, OBJECTS, SHAPES, TIMES, WEATHERS, Scene

PROMPTS = Path(__file__).with_name("prompts.yaml")
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the first of two prompts in a sweep
ODDS = (5, 2, 1, 1, 1)  # of WEATHERS, where a prompt names none
AT_NIGHT, BY_DAY = {"moon", "stars"}, {"sun", "rainbow", "balloon", "birds"}  # and under an open sky


def read_prompts() -> dict:
    """`prompts.yaml` as plain data: lists by the names test, tuning, prototype, weights and negatives."""
    return OmegaConf.to_container(OmegaConf.load(PROMPTS))


def sweep(a: str, b: str) -> list[str]:
    """Prompts from mostly b to mostly a."""
    return [f"{a}:{share:.1f} | {b}:{1 - share:.1f}" for share in SHARES]


def without(entry: dict) -> str:
    """The prompt of an entry of `negatives`, with its thing shunned as much as the whole prompt is asked for.

    Half of that, beside a prompt that names the thing, leaves it asked for: gradients add up.
    """
    return f"{entry['prompt']} | {entry['without']}:-1"


def named(facts) -> Scene:
    """The scene of these facts and no others, "" where they are silent; ValueError for what is no fact of a scene."""
    said, objects = {}, []
    for fact in facts:
        colour, _, thing = fact.rpartition(" ")
        tinted = colour in COLOURS and thing in (*COLOURED, *SHAPES)
        kinds = {"ground": fact in GROUNDS, "time": fact in TIMES, "weather": fact in WEATHERS,
                 "backdrop": colour in COLOURS and thing == "background"}  # fmt: skip
        kind = next((kind for kind, true in kinds.items() if true), None)
        if kind in said or not (kind or tinted or fact in OBJECTS):
            raise ValueError(f"{fact!r} is no fact of a scene, or the second of its kind in {facts}")
        if kind:
            said[kind] = colour if kind == "backdrop" else fact
        else:
            objects.append((thing, colour))
    return Scene(0, **{"ground": "", "time": "", "weather": "", **said}, objects=tuple(objects))


def lacks(facts, others) -> bool:
    """Whether some of these facts need not be true of a picture that shows the others."""
    return not named(facts).facts - {"", " background"} <= named(others).facts


def scene_of(facts, seed: int) -> Scene:
    """A scene of which these facts are true, with what they leave open drawn at random, and no further objects."""
    said, rng = named(facts), np.random.default_rng((11, seed))
    tints = {thing: str(rng.choice(list(COLOURS))) for thing in COLOURED}
    objects = tuple((thing, colour or tints.get(thing, "")) for thing, colour in said.objects)
    things = {thing for thing, _ in objects}
    times = ("night",) if things & AT_NIGHT else TIMES[:3] if things & BY_DAY else TIMES
    odds = np.array(ODDS[:2] if things & (AT_NIGHT | BY_DAY) else ODDS)
    time = said.time or str(rng.choice(times))
    weather = said.weather or str(rng.choice(WEATHERS[: len(odds)], p=odds / odds.sum()))
    ground = said.ground or ("" if said.backdrop else str(rng.choice(GROUNDS)))
    return replace(said, seed=seed, ground=ground, objects=objects, time=time, weather=weather)
