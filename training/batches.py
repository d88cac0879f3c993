"""What a step of the CLIP's training learns from: numbers of pictures that lie where it computes, and texts about them.

A batch is drawn from one seed and the number of its step alone, so that several processes may draw ahead of a graphics
card, and training that was interrupted goes on with the same.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vqclip.perceptor import tokenizer

from .beside import Told, tell
from .captions import all_words, caption, marked, sayable
from .kin import FAMILIES, SIZE, family
from .scenes import SIDE, scattered
from .walkers import turns

LOOKS = 4  # at each walker at a step: to paint one costs more than a look
GOALS = 12  # that a walker may choose among, and as many mirrored ones
WALKING = 0.15, 0.55, 0.3  # how often walkers are told of a plain shape, of things in a landscape, of anything


@cache  # to take each text apart anew took three times as long
def _of_word(word: str) -> list[int]:
    return tokenizer().encode(word)


class Vocabulary:
    """The few BPE tokens that captions are made of.

    Args:
        context: how many tokens a text has room for.

    Attributes:
        ids: (U,) int32: which of OpenAI's tokens each row is; row 0 is padding (token 0).
    """

    def __init__(self, context: int):
        self.context, bpe = context, tokenizer()
        self.start, self.end = bpe.encoder["<|startoftext|>"], bpe.encoder["<|endoftext|>"]
        used = {token for text in all_words() for token in bpe.encode(text)}
        # OpenAI finds the end of a text as its largest token, so rows keep the tokens' order
        self.ids = torch.tensor(sorted({0, self.start, self.end, *used}), dtype=torch.int32)
        self.rows = {int(token): row for row, token in enumerate(self.ids)}

    def encode(self, texts) -> Tensor:
        """Texts -> rows (T, context); raises KeyError for a word that is not in the vocabulary."""
        batch = torch.zeros(len(texts), self.context, dtype=torch.long)
        for line, text in zip(batch, texts, strict=True):
            tokens = [token for word in text.split() for token in _of_word(word)]  # BPE never joins words
            tokens = [self.start, *tokens[: self.context - 2], self.end]
            line[: len(tokens)] = torch.tensor([self.rows[token] for token in tokens])
        return batch


class Stock(nn.Module):
    """The pictures that batches name by number; they go where training goes and are no part of what it saves.

    Args:
        scenes: pictures (N, H, W, 3) uint8 of scenes, and where their things are (N, H, W) bool.
        kin: the same of `kin.kin`, for whole rounds of FAMILIES.
        painted: what `repaint` made of some scenes; its `picture` and `share`.
        walkers: how many there are; each has GOALS goals here.
    """

    def __init__(self, scenes: tuple, kin: tuple, painted: dict[str, np.ndarray], walkers: int):
        super().__init__()
        side = scenes[0].shape[1]
        kept = {
            "pictures": scenes[0], "places": scenes[1], "kin": kin[0], "kin_places": kin[1],
            "painted": painted["picture"], "share": np.float32(painted["share"]),
            "goals": np.zeros((walkers, GOALS, side, side, 3), np.uint8),
            "goal_places": np.zeros((walkers, GOALS, side, side), bool),
        }  # fmt: skip
        for name, array in kept.items():
            self.register_buffer(name, torch.from_numpy(array), persistent=False)


class Batch(NamedTuple):
    """A step's pictures, by their numbers in `Stock`, and its texts: S scenes, K pairs of kin, M walkers.

    Attributes:
        scenes: (S,); the first are to be spoilt by whoever gets them, the last P were spoilt before:
        painted: (P,) what was made of these.
        pairs: (K, 2) kin; the second of a pair is to become the first.
        walkers: (M,) whose turn it is, and of these `new` begin anew (places among the M).
        aimed: (A,) walkers of which these are the goals from now on: goals (A, GOALS, H, W, 3) uint8 of the same scene,
            otherwise laid out, places (A, GOALS, H, W) bool of their things.
        weights: (M,) of the second text that each walker is told (see `beside.py`), 0 for those that are told one.
        texts: (S + K + M, context) a caption of each.
        facts, said: (S + K + M, F) bool, what of `captions.FACTS` is sayable of each, and what its caption mentions.
        families: (R,) the first of each family's kin, and kin_texts: (R * SIZE, context) what each of them is.
        loose: (M + L, context) the walkers' second texts, and L of scenes that are not rendered, held-out pairs among
            them; mentioned: (M + L, F) bool.
    """

    scenes: Tensor
    painted: Tensor
    pairs: Tensor
    walkers: Tensor
    new: Tensor
    aimed: Tensor
    goals: Tensor
    places: Tensor
    weights: Tensor
    texts: Tensor
    facts: Tensor
    said: Tensor
    families: Tensor
    kin_texts: Tensor
    loose: Tensor
    mentioned: Tensor


@dataclass(frozen=True)
class Walk:
    """What a walker is told all the way, and what is sayable of the scene that its first text is about."""

    number: int
    facts: frozenset[str]
    told: Told


class Captioned(torch.utils.data.IterableDataset):
    """Batches without end, from one seed.

    Args:
        scenes: how many there are; scene k is `scenes.scattered(k)`.
        kin: how many rounds of FAMILIES there are.
        painted: the `scene` of which each picture was painted, and the `odds` to draw it.
        vocabulary: of the texts.
        batch: looks at a step: one for each scene and each pair of kin, LOOKS for each walker.
        rounds: of FAMILIES in a batch.
        loose: texts without a picture.
        painted_from: the step from which on a `part` of each batch is painted.
        walkers: how many there are, how many turns each walk has, how many have their turn at a step.
        walking_from: the step from which on they do, and kin become each other.
        skip: the step to begin with.
    """

    def __init__(self, scenes: int, kin: int, painted: dict[str, np.ndarray], vocabulary: Vocabulary, batch: int,
                 rounds: int, loose: int, seed: int, painted_from: int, part: float, walkers: tuple[int, int, int],
                 walking_from: int, skip: int = 0):  # fmt: skip
        self.kin, self.painted, self.vocabulary = kin, painted, vocabulary
        self.batch, self.rounds, self.loose, self.seed, self.skip = batch, rounds, loose, seed, skip
        self.painted_from, self.part, self.walkers, self.walking_from = painted_from, part, walkers, walking_from
        self.scenes = [scattered(k) for k in range(scenes)]
        self.kinds = [[k for k, of in enumerate(self.scenes) if of.objects and bool(of.ground) == landscape]
                      for landscape in (False, True)] + [range(scenes)]  # fmt: skip
        self.walks: dict[int, Walk] = {}

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for step in itertools.count(self.skip + first, stride):
            yield self._batch(step, np.random.default_rng((self.seed, step)))

    def _batch(self, step: int, rng: np.random.Generator) -> Batch:
        turn = turns(step - self.walking_from, *self.walkers) if step >= self.walking_from else []
        aimed, goals = self._aim(turn)
        walks = [self.walks[walker] for walker, _, _ in turn]
        numbers = [int(k) * len(FAMILIES) + kind for kind in range(len(FAMILIES))
                   for k in rng.integers(self.kin, size=self.rounds)]  # fmt: skip
        families = [family(number, rng) for number in numbers]
        pairs = np.array([rng.choice(SIZE, 2, replace=False) for _ in families if walks], int).reshape(-1, 2)
        seats = self.batch - LOOKS * len(walks) - len(pairs)
        count = max(0, seats - (self.batch - int(self.batch * self.part))) if step >= self.painted_from else 0
        rows = rng.choice(len(self.painted["odds"]), count, p=self.painted["odds"])
        fresh = rng.choice(len(self.scenes), seats - count, replace=False)
        scenes = np.concatenate([fresh, self.painted["scene"][rows]])
        known = [(caption(self.scenes[k], rng), sayable(self.scenes[k])) for k in scenes]
        known += [((one.texts[i], one.said[i]), one.facts[i]) for one, (i, _) in zip(families, pairs, strict=False)]
        known += [(walk.told.caption, walk.facts) for walk in walks]
        told, true = zip(*known, strict=True)
        loose = [walk.told.beside for walk in walks]
        loose += [caption(scattered(int(k), held_out=True), rng) for k in rng.integers(2**31, size=self.loose)]
        firsts, encode = np.array(numbers) * SIZE, self.vocabulary.encode
        return Batch(
            *map(torch.from_numpy, (scenes, rows, firsts[: len(pairs), None] + pairs)),
            torch.tensor([walker for walker, _, _ in turn], dtype=torch.long),
            torch.tensor([k for k, (_, _, begins) in enumerate(turn) if begins], dtype=torch.long),
            torch.tensor(aimed, dtype=torch.long), *map(torch.from_numpy, goals),
            torch.tensor([walk.told.weight for walk in walks]),
            encode([text for text, _ in told]), torch.from_numpy(marked(true)),
            torch.from_numpy(marked(said for _, said in told)), torch.from_numpy(firsts),
            encode([text for one in families for text in one.texts]),
            encode([text for text, _ in loose]), torch.from_numpy(marked(said for _, said in loose)),
        )  # fmt: skip

    def _aim(self, turn: list[tuple[int, int, bool]]) -> tuple[list[int], tuple[np.ndarray, np.ndarray]]:
        """Of the walkers whose turn it is those of whose walk nothing was said yet, and their goals."""
        aimed = [(walker, walk) for walker, walk, _ in turn
                 if walker not in self.walks or self.walks[walker].number != walk]  # fmt: skip
        goals = np.zeros((len(aimed), GOALS, SIDE, SIDE, 3), np.uint8)
        places = np.zeros(goals.shape[:-1], bool)
        for (walker, walk), *shown in zip(aimed, goals, places, strict=True):
            rng = np.random.default_rng((self.seed, walker, walk))
            kinds = [(kind, odds) for kind, odds in zip(self.kinds, WALKING, strict=True) if kind]
            kind = kinds[rng.choice(len(kinds), p=np.array([odds for _, odds in kinds]) / sum(o for _, o in kinds))][0]
            of = self.scenes[rng.choice(kind)]
            told = tell(of, rng)
            for picture, where, seed in zip(*shown, rng.integers(2**31, size=GOALS), strict=True):
                picture[:], where[:] = told.goal(int(seed))
            self.walks[walker] = Walk(walk, sayable(of), told)
        return [walker for walker, _ in aimed], (goals, places)
