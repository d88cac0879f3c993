"""What shares of other texts would do to the text of a part: prompts that name it, painted without them and with them.

    python -m training.trial rain dawn=-0.4             # eight prompts: minutes on two cores
    python -m training.trial fog fog=-0.3 --count 12 --things 1 --pair PAIR

A gradient is linear in what is asked for, so nothing needs to be taught for that. What helps becomes `texts.led` in the
recipe. The prompts are drawn anew for each `--seed`, and none asks for just what one of the test's does.
"""

from __future__ import annotations

import argparse
import os
from collections import deque
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from vqclip import Settings, generate
from vqclip.checkpoints import EMBEDDED

from .asked import read_prompts
from .captions import all_parts, parts, worded
from .data import floats
from .export import guide
from .judge import Reading, load_judge
from .measures import read, tally
from .quality import load_pair
from .scenes import COLOURS, GROUNDS, OBJECTS, TIMES, WEATHERS, Scene, scattered
from .texts import change, sums_of
from .train import kept_clip, read_recipe, some_captions

PARTS = (*GROUNDS, *TIMES, *WEATHERS[1:], *OBJECTS, *COLOURS)
Prompt = tuple[str, tuple[str, ...]]  # and the facts that it asks for


def prompts(part: str, count: int, seed: int, things: float) -> list[Prompt]:
    """English prompts of a land, its hour, weather where there is any and, as often as `things`, a thing."""
    rng, known = np.random.default_rng((31, seed)), {frozenset(p["facts"]) for p in read_prompts()["test"]}
    things = 1.0 if part in (*OBJECTS, *COLOURS) else things
    found: list[Prompt] = []
    while len(found) < count:
        facts = _some_facts(scattered(int(rng.integers(2**31)), held_out=True), rng, things)
        if any(part in parts(fact) for fact in facts) and frozenset(facts) not in known:
            found.append((worded(facts, "en", rng), tuple(facts)))
    return found


def _some_facts(of: Scene, rng: np.random.Generator, things: float) -> list[str]:
    if not of.ground:
        return []
    facts = [of.ground, of.time] + [of.weather] * (of.weather in PARTS)
    if of.objects and rng.random() < things:
        name, colour = of.objects[0]
        facts.append(f"{colour} {name}" if colour and rng.random() < 0.6 else name)
    return [facts[k] for k in rng.permutation(len(facts))]


@lru_cache
def changed(pair: Path, part: str, shares: tuple[tuple[str, float], ...]) -> Tensor:
    """What a part's text gets of others' (D,), as `texts.led` would have it."""
    recipe = read_recipe([f"begin={pair}"])
    clip, vocabulary = kept_clip(recipe)
    guide(clip, some_captions(vocabulary), recipe.clip.guidance)
    sums, mean = sums_of(clip.float(), vocabulary)
    led = OmegaConf.create({part: {"adds": 0.0, "mix": dict(shares)}})
    return change(sums, torch.zeros_like(sums.adds), mean, led)[all_parts().index(part)].detach()


def paint(job: tuple[str, int], part: str, shares: tuple, pair: Path, **settings) -> np.ndarray:
    """The last picture of a run for a text and a seed, of which the part has those shares: (H, W, 3) uint8."""
    text, seed = job
    painter, perceptor = load_pair(pair)
    network, more = perceptor.network, changed(pair, part, shares) if shares else 0.0
    network.encode_text = lambda tokens: type(network).encode_text(network, tokens) + more
    try:
        run = generate(None, painter, perceptor, settings=Settings(prompts=text, seed=seed, **settings))
        return np.asarray(deque(run, 1).pop().pil)
    finally:
        del network.encode_text


def told(asked: list[Prompt], readings: list[Reading]) -> str:
    """How much of what was asked for is there, and what is missing from which prompt."""
    counts = tally([(facts, reading) for (_, facts), reading in zip(asked, readings, strict=True)])
    lines = ["  ".join(f"{row} {hits}/{of}" for row, (hits, of) in counts.items() if of)]
    for (text, facts), reading in zip(asked, readings, strict=True):
        missing = [fact for fact in facts if not reading.holds(fact)]
        seen = f"; there is {reading.ground} {reading.time} {reading.weather} {' '.join(sorted(reading.things))}"
        lines.append(f"  {'-' if missing else '+'} {text}" + (f": no {', '.join(missing)}{seen}" if missing else ""))
    return "\n".join(lines)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("part", choices=PARTS, metavar="part", help="such as rain")
    ask.add_argument("shares", nargs="+", metavar="part=share", help="such as dawn=-0.4; mean is one, of all texts")
    ask.add_argument("--count", type=int, default=8, help="how many prompts")
    ask.add_argument("--seed", type=int, default=0, help="of the prompts")
    ask.add_argument("--things", type=float, default=0.5, help="how often a thing is named")
    ask.add_argument("--pair", type=Path, default=EMBEDDED)
    ask.add_argument("--jobs", type=int, default=2, help="processes that paint, a core each")
    asked = ask.parse_args()
    shares = tuple((name, float(value)) for name, value in (one.split("=") for one in asked.shares))
    texts, judge = prompts(asked.part, asked.count, asked.seed, asked.things), load_judge()
    os.environ["OMP_NUM_THREADS"] = "1"  # the processes begin with it
    with get_context("spawn").Pool(asked.jobs) as pool:
        for some in ((), shares):
            jobs = [(text, seed) for seed, (text, _) in enumerate(texts)]
            images = pool.map(partial(paint, part=asked.part, shares=some, pair=asked.pair), jobs, chunksize=1)
            about = " ".join(asked.shares) if some else "as it is"
            print(f"{asked.part} {about}: {told(texts, read(judge, floats(np.stack(images))))}", flush=True)


if __name__ == "__main__":
    main()
