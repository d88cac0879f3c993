"""Texts taught to ask for what runs miss, the image tower left as it is.

A run rests where the pull of its text is balanced by what guidance takes out of it. Of two parts of captions that place
was elsewhere: forests became meadows, black became brown, though pictures of them are told apart and led to well. A
gradient is linear in what is asked for, so a text can make up for that: for each part, walkers that are told as runs
are find what it should add to its text; the parts in question get some of that, and ask for less of what they became or
brought along (`texts.led` in the recipe). Then the text tower learns to say that, and of all else what it said before
in English, in which it is best; some words that it did not know, of which SAME says what they mean; and that what is
said twice, as "white winter snow", is no more than what is said once.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from vqclip.files import atomic
from vqclip.perceptor import MEAN, STD

from .batches import GOALS, Vocabulary
from .beside import Told, tell
from .captions import all_parts, caption, marked, mentioned, reworded, said_twice, worded
from .data import floats
from .gradient import uphill
from .mosaic import Mosaic
from .repaint import show
from .scenes import SIDE, Scene, scattered
from .train_clip import Sums, ahead, cut, uncut, ways_to_look
from .walkers import Walkers, turns

SCENES = 3000  # of which walkers may be told
PLAIN = 0.15  # of the walkers that are told of anything: plain shapes
BETAS = 0.9, 0.98
PAINTED = 8  # at a time: what more need no longer lies near the processor, and takes nearly twice as long


def raw(clip: nn.Module, vocabulary: Vocabulary, texts: list[str]) -> Tensor:
    """What a text tower says of texts, before it is made a unit row: (T, D)."""
    return clip.encode_text(vocabulary.encode(texts).to(clip.text_projection.device)).float()


def of_texts(clip: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a CLIP's text tower, by name."""
    return {name: p for name, p in clip.named_parameters() if not name.startswith("visual.") and name != "logit_scale"}


@torch.no_grad()
def said_and_read(clip: nn.Module, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Of 2000 captions which of FACTS they mention (T, F) and what a tower says of them (T, D): for `Sums.fit`."""
    rng = np.random.default_rng(1)
    texts, said = zip(*(caption(scattered(k, held_out=True), rng) for k in range(2000)), strict=True)
    return torch.from_numpy(marked(said)), raw(clip, vocabulary, list(texts))


def sums_of(clip: nn.Module, vocabulary: Vocabulary) -> tuple[Sums, Tensor]:
    """Where a tower's texts lie as sums of their parts, and the mean of all texts (D,)."""
    sums, (said, read) = Sums(clip.text_projection.shape[1]), said_and_read(clip, vocabulary)
    sums.fit(said, read)
    return sums, read.mean(0)


class Heard(NamedTuple):
    """What a walker is told all the way: two texts as rows (2, D), their parts (2, P), the weight of the second."""

    rows: Tensor
    parts: Tensor
    weight: float


class Walks:
    """Draws what walkers are told and what they may become.

    Args:
        clip: with the guidance that runs have, its weights frozen.
        scenes: to draw from.
        missed, often: the parts in question, and how often a walker is told of one of them.
    """

    def __init__(self, clip: nn.Module, vocabulary: Vocabulary, sums: Sums, scenes: list[Scene], missed: list[str],
                 often: float, seed: int):  # fmt: skip
        self.clip, self.vocabulary, self.sums = clip, vocabulary, sums
        about = [[of for of in scenes if part in of.facts] for part in missed]
        shapes, lands = ([of for of in scenes if bool(of.ground) == land] for land in (False, True))
        self.pools = [*about, shapes, lands]
        rest = 1 - often
        self.odds = [*[often / len(missed)] * len(missed), PLAIN * rest, (1 - PLAIN) * rest]
        self.rng = np.random.default_rng((23, seed))

    def draw(self) -> tuple[Heard, Tensor, Tensor]:
        """What one is told; its goals (GOALS, 3, SIDE, SIDE), and where their things are (GOALS, 1, SIDE, SIDE)."""
        pool = self.pools[self.rng.choice(len(self.pools), p=self.odds)]
        told = tell(pool[self.rng.integers(len(pool))], self.rng)
        shown = [told.goal(int(seed)) for seed in self.rng.integers(2**31, size=GOALS)]
        goals = floats(np.stack([picture for picture, _ in shown]))
        places = torch.from_numpy(np.stack([where for _, where in shown]))[:, None].float()
        return self.heard(told), goals, places

    @torch.no_grad()
    def heard(self, told: Told) -> Heard:
        texts, said = zip(told.caption, told.beside, strict=True)
        parts = self.sums.counts(torch.from_numpy(marked(said)))
        parts[:, -1] = 0  # what all texts have in common is what guidance takes out: it would come back in
        return Heard(raw(self.clip, self.vocabulary, list(texts)), parts, told.weight)


def asked(heard: list[Heard], adds: Tensor) -> Tensor:
    """What the gradients of walkers are asked for, with what each part adds (P, D): (M, D)."""
    rows, parts = (torch.stack(each) for each in zip(*((one.rows, one.parts) for one in heard), strict=True))
    first, second = F.normalize(rows + parts @ adds, dim=2).unbind(1)
    weight = torch.tensor([[one.weight] for one in heard])
    return (1 - weight.abs()) * first + weight * second


def lead(clip: nn.Module, walks: Walks, walkers: Walkers, t: DictConfig, seed: int,
         dtype: torch.dtype = torch.float32) -> Tensor:  # fmt: skip
    """What each part of a caption is to add to its text, that runs get where it says: (P, D), the mean of late steps.

    Args:
        clip: as `walks` has it.
        t: the recipe's `texts`.
        dtype: what the image tower computes in.
    """
    count, looks = t.walkers.count, t.walkers.looks
    adds = torch.zeros(walks.sums.adds.shape, requires_grad=True)
    optimizer = torch.optim.AdamW([adds], t.lr, BETAS, weight_decay=t.weight_decay)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, 3 * (1 - s / t.steps)))
    weights = dict(clip.visual.named_parameters())
    mean, std = (torch.tensor(colour).view(1, 3, 1, 1) for colour in (MEAN, STD))
    heard, everyone = [None] * count, torch.arange(count)
    goals, places = torch.zeros(count, GOALS, 3, SIDE, SIDE), torch.zeros(count, GOALS, 1, SIDE, SIDE)
    settled, late = torch.zeros_like(adds), 0
    for step in range(t.steps):
        torch.manual_seed(seed * 1_000_003 + step)
        new = [walker for walker, _, begins in turns(step, count, t.walkers.length, count) if begins]
        for walker in new:
            heard[walker], goals[walker], places[walker] = walks.draw()
        if new:
            walkers.begin(torch.tensor(new), goals[new, 0])
        goal, place = walkers.goal(everyone, goals, places)
        ways, grains = ways_to_look(count * looks, SIDE, clip.visual.input_resolution, seed * 1_000_003 + step)
        now = torch.cat([walkers(some) for some in everyone.split(PAINTED)])
        clear, whole, things = (cut(x.repeat(looks, 1, 1, 1), ways) for x in (now, goal, place))
        _, led = uphill(weights, (clear + grains).clamp(0, 1), asked(heard, adds).repeat(looks, 1), mean, std, dtype)
        loss = ahead(led, whole - clear, torch.ones(len(clear)), things.clamp(0, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        walkers.walk(everyone, uncut(led.detach(), ways).unflatten(0, (looks, count)).sum(0))
        if step >= t.steps // 2:
            late += 1
            settled += (adds.detach() - settled) / late
        if step % 20 == 19:
            print(f"{step + 1}/{t.steps} led {loss.item():.3f}", flush=True)
    return settled


def change(sums: Sums, adds: Tensor, mean: Tensor, led: DictConfig) -> Tensor:
    """What parts in question are to add: so many times what was found, and shares of other parts' texts; (P, D).

    Args:
        adds: what was found (P, D).
        mean: of all texts (D,): guidance took half of it out.
        led: of each part `adds`, how many times, and `mix`, the shares by name; "mean" is one.
    """
    rows, texts = {part: row for row, part in enumerate(all_parts())}, sums.adds.detach()
    changed = torch.zeros_like(texts)
    for part, how in led.items():
        others = [share * (mean if name == "mean" else texts[rows[name]]) for name, share in how.mix.items()]
        changed[rows[part]] = how.adds * adds[rows[part]] + sum(others)
    return changed


def teach(clip: nn.Module, vocabulary: Vocabulary, sums: Sums, adds: Tensor, t: DictConfig, seed: int) -> None:
    """Have a text tower say of captions what it said of them in English, and what their parts add (P, D).

    And the same of new words, and where something is said twice. `t.taught.languages` has how often captions are in
    each language.
    """
    before = copy.deepcopy(clip).requires_grad_(False)
    words = [p.requires_grad_() for p in of_texts(clip).values()]
    optimizer = torch.optim.AdamW(words, t.taught.lr, BETAS, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, t.taught.lr, t.taught.steps)
    languages, odds = zip(*t.taught.languages.items(), strict=True)
    rng = np.random.default_rng((29, seed))
    for step in range(t.taught.steps):
        scenes = [scattered(int(k), held_out=True) for k in rng.integers(2**31, size=t.taught.batch)]
        said = [mentioned(of, rng) for of in scenes]
        texts = [worded(said_twice(facts, rng), str(rng.choice(languages, p=odds)), rng) for facts in said]
        english = [worded(facts, "en", rng) for facts in said]
        with torch.no_grad():
            right = raw(before, vocabulary, english) + sums.counts(torch.from_numpy(marked(said))) @ adds
        read = raw(clip, vocabulary, [reworded(text, rng) for text in texts])
        loss = 1 - F.cosine_similarity(read, right, dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        if step % 100 == 99:
            print(f"{step + 1}/{t.taught.steps} taught {loss.item():.4f}", flush=True)
    clip.requires_grad_(False)


def put_right(clip: nn.Module, vocabulary: Vocabulary, painting, recipe: DictConfig) -> None:
    """Teach the texts of a CLIP that has its guidance already, for its painter; the recipe's `texts` says how."""
    t, mosaic = recipe.texts, Mosaic(painting)
    clip.float().requires_grad_(False)
    (sums, mean), scenes = sums_of(clip, vocabulary), [scattered(k) for k in range(SCENES)]
    missed = [part for part, how in t.led.items() if how.adds]
    dtype = torch.bfloat16 if recipe.precision == "bf16-mixed" else torch.float32
    found, rounds = [], t.rounds if missed else 0
    for seed in range(recipe.seed, recipe.seed + rounds):
        path = Path(recipe.folder) / f"led-{seed}.pt"
        if not path.exists():
            torch.manual_seed(seed)
            walks = Walks(clip, vocabulary, sums, scenes, missed, t.often, seed)
            walkers = Walkers(partial(show, painting), mosaic, t.walkers.count, SIDE // painting.f, t.walkers.length)
            with atomic(path) as file:
                torch.save(lead(clip, walks, walkers, t, seed, dtype), file)
        found.append(torch.load(path))
    adds = torch.stack(found).mean(0) if found else torch.zeros_like(sums.adds)
    changed = change(sums, adds, mean, t.led)
    teach(clip, vocabulary, sums, changed, t, recipe.seed)
