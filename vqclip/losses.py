"""Losses: what is liked. Each is a function `loss(image (1, 3, H, W) in [0, 1]) -> scalar` to be made small.

`PromptLoss` says how far a picture is from the words; `LOSSES` names the others, which a user adds as
`losses="tv:0.5 | saturation:0.2"`. A new one is a function and a line in that table. On a graphics card Python runs it
once and the card replays it (see `replay.py`): it may decide by a picture's size, not by what is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .cutouts import Cutouts, Draw
from .ops import gather_grad, great_circle, straight_through
from .perceptor import Perceptor
from .prompts import Prompt, labels


def tv(image: Tensor) -> Tensor:
    """Total variation: the mean squared step between neighbours, right and below; small for smooth pictures."""
    padded = torch.nn.functional.pad(image, (0, 1, 0, 1), "replicate")
    right = padded[..., :-1, 1:] - padded[..., :-1, :-1]
    below = padded[..., 1:, :-1] - padded[..., :-1, :-1]
    return (right.pow(2) + below.pow(2)).mean()


def saturation(image: Tensor) -> Tensor:
    """The mean squared distance of colours from grey; small for pale pictures."""
    return (image - image.mean(1, keepdim=True)).pow(2).mean()


def edges(image: Tensor) -> Tensor:
    """How much the outer sixteenth of the picture differs from mid-grey; small for an empty margin."""
    H, W = image.shape[2:]
    inner = torch.ones_like(image)
    inner[..., H // 16 : H - H // 16, W // 16 : W - W // 16] = 0
    return ((image - 0.5).pow(2) * inner).sum() / inner.sum()


LOSSES = {"tv": tv, "saturation": saturation, "edges": edges}


class PromptLoss:
    """How far a picture is from the prompts, as one perceptor sees it in many cutouts.

    For every cutout and prompt: half the squared angle between their embeddings, negated for a negative weight, with
    no gradient once below the prompt's stop; averaged over cutouts, times |weight|, summed (Crowson 2021).

    Args:
        perceptor: the judge.
        prompts: their weights are used as they are; `prompts.normalise` makes the sum of magnitudes 1.
        cutouts: cuts pictures to the perceptor's size.
        chunk: how many cutouts go through the perceptor at once; fewer need less memory and give the same gradient.
            0 means all.
        pictures: prompts that are pictures: one pair of (Prompt, image (1, 3, H, W)) each.
    """

    def __init__(self, perceptor: Perceptor, prompts: Sequence[Prompt], cutouts: Cutouts, chunk: int = 0,
                 pictures: Sequence[tuple[Prompt, Tensor]] = ()):  # fmt: skip
        self.perceptor, self.cutouts, self.chunk = perceptor, cutouts, chunk
        self._read: dict[str, Tensor] = {}  # texts that were embedded once, (1, D) each
        with torch.no_grad():
            self._seen = [perceptor.encode_image(cutouts(picture)) for _, picture in pictures]  # (N, D) each
        self.similarity: Tensor | None = None  # (P,) mean cosine at the last call
        self.set_prompts(prompts, [prompt for prompt, _ in pictures])

    def set_prompts(self, texts: Sequence[Prompt], pictures: Sequence[Prompt] = ()) -> None:
        """Change the prompts; acts at the next call. Only texts that are new are embedded.

        By hand it is in no session: that is `Run.change`, which calls this.

        Args:
            texts: any number of prompts that are words.
            pictures: the prompts that are pictures, as many as there were at first: their weights and stops are taken.
        """
        self.texts = len(texts)  # the first so many prompts are words, the others pictures
        self.prompts = (*texts, *pictures)
        self.labels = labels(self.prompts)
        for prompt in texts:
            if prompt.text not in self._read:
                self._read[prompt.text] = self.perceptor.encode_text([prompt.text])
        embedded = [self._read[prompt.text] for prompt in texts] + self._seen
        self.targets = torch.cat(embedded)  # (T, D): one row a text, one a cutout of a picture
        counts = torch.tensor([len(rows) for rows in embedded])
        self.owner = torch.arange(len(counts)).repeat_interleave(counts).to(self.targets.device)  # (T,)
        self.share = (1 / counts.float())[self.owner.cpu()].to(self.targets.device)  # (T,) of its prompt's weight
        self.set_weights([prompt.weight for prompt in self.prompts], [prompt.stop for prompt in self.prompts])

    def set_weights(self, weights: Sequence[float], stops: Sequence[float]) -> None:
        """Change the prompts' weights and stops; acts at the next call."""
        self.weights = torch.tensor(weights, dtype=torch.float32).to(self.targets)  # (P,)
        self.stops = torch.tensor(stops, dtype=torch.float32).to(self.targets)  # (P,)

    @property
    def at_once(self) -> int:
        """How many cutouts go through the perceptor at once."""
        return min(self.chunk or self.cutouts.n, self.cutouts.n)

    def state(self) -> dict[str, Any]:
        """Copies of what may change while a run is on, the cutouts apart: weights, stops, and the chunk."""
        return {"weights": self.weights.clone(), "stops": self.stops.clone(), "chunk": self.chunk}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken."""
        self.weights.copy_(state["weights"])
        self.stops.copy_(state["stops"])
        # The fewer: what did not fit then would not now, and what does not now would have then. Early sessions lack it.
        self.chunk = min((chunk for chunk in (self.chunk, state.get("chunk", 0)) if chunk), default=0)

    def __call__(self, image: Tensor, draw: Draw | None = None) -> Tensor:
        """Image (1, 3, H, W) in [0, 1] -> scalar. The cutouts may be given as a `Draw` instead of being drawn."""
        draw = draw or self.cutouts.draw(*image.shape[2:])
        chunk = self.chunk or len(draw)
        if chunk >= len(draw):
            return self.of(self.perceptor.encode_image(self.cutouts(image, draw)))
        seen: list[Tensor] = []  # of each chunk: (n', D)

        def part(image: Tensor, some: Draw) -> Tensor:
            embedded = self.perceptor.encode_image(self.cutouts(image, some))
            seen.append(embedded.detach())
            return self._distance(embedded) / len(draw)

        chunks = (draw[first : first + chunk] for first in range(0, len(draw), chunk))
        loss = gather_grad(image, (partial(part, some=some) for some in chunks))
        self._note(torch.cat(seen))
        return loss

    def of(self, embedded: Tensor) -> Tensor:
        """What the perceptor sees in a picture's cutouts (N, D) -> scalar."""
        self._note(embedded.detach())
        return self._distance(embedded) / len(embedded)

    def _note(self, embedded: Tensor) -> None:
        means = (embedded @ self.targets.t()).mean(0)  # (T,)
        self.similarity = torch.zeros_like(self.weights).index_add_(0, self.owner, means * self.share)  # (P,)

    def _distance(self, embedded: Tensor) -> Tensor:
        """Embeddings (n', D) -> the weighted distances to all targets, summed to a scalar."""
        weight, stop = self.weights[self.owner], self.stops[self.owner]  # (T,)
        signed = great_circle(embedded, self.targets) * weight.sign()  # (n', T)
        halted = straight_through(signed, torch.maximum(signed, stop))  # the value as it is, no gradient below stop
        return (halted * weight.abs() * self.share).sum()


def judged(losses: Sequence[Callable[..., Tensor]], images: Sequence[Tensor],
           draws: Sequence[Draw | None] | None = None) -> list[Tensor]:  # fmt: skip
    """The same loss of several runs, each of its own image (1, 3, H, W) -> a scalar each.

    A perceptor sees the cutouts of all of them as one batch, unless they are to go through it in chunks.

    Args:
        draws: the cutouts of each, for losses that take some; None has them drawn.
    """
    given = [(image,) if draw is None else (image, draw)
             for image, draw in zip(images, draws or [None] * len(images), strict=True)]  # fmt: skip
    together = all(isinstance(loss, PromptLoss) and loss.at_once == loss.cutouts.n for loss in losses)
    if len(losses) == 1 or not together:
        return [loss(*these) for loss, these in zip(losses, given, strict=True)]
    cutouts = [loss.cutouts(*these) for loss, these in zip(losses, given, strict=True)]  # of each (N, 3, S, S)
    embedded = losses[0].perceptor.encode_image(torch.cat(cutouts))  # (sum of N, D)
    return [loss.of(seen) for loss, seen in zip(losses, embedded.split([*map(len, cutouts)]), strict=True)]
