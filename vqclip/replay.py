"""A step on a graphics card, recorded once and replayed: forward and backward without Python in between.

A step of the published sizes launches some thousand kernels, most of which a card is done with before the next one
arrives. CUDA can record what was launched (it says capture) as a graph and launch it again as one. What a graph reads
and writes lies where it lay while it was recorded, so everything that changes from step to step is brought there: z is
changed in place, the draw of the cutouts is copied. All else, an optimiser's step, churn, the pull to the start and the
checks, stays outside and as it is.

A graph is only replayed for what it was recorded of: `Replay` notes everything that Python decided on the way, and when
any of it differs, the next step is made the ordinary way and the one after is recorded anew. These are never recorded:

- losses that are not of `losses.py`, and judges, cutouts and latents of another class than this package's: they may do
  what a graph would not do again, as drawing or counting in Python;
- a painter that keeps little, and cutouts judged in chunks: there memory is short, and a graph holds on to its own;
- after a recording failed, anything: a warning says why.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .cutouts import Cutouts, Draw
from .latent import VQLatent, paint
from .losses import PromptLoss, judged
from .perceptor import CLIP

if TYPE_CHECKING:
    from .run import Run

Made = tuple[list[Tensor], list[dict[str, Tensor]]]
"""Of each run its image (1, 3, H, W), and its losses by name, weights included."""


def record(compute: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
    """What a computation on a card gives, and a function that computes it anew into the same tensors.

    The tensors have no values until that was called.
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads, which save or show pictures, may go on meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        made = compute()
    return made, graph.replay


class Replay:
    """Makes forward and backward of a step by replaying it, where that is the same; see above.

    Args:
        record: see `record`; another one may stand in for it where there is no card.

    Attributes:
        replayed: how many steps were made by it.
        off: why nothing is recorded any more; "" as long as there is no reason.
    """

    def __init__(self, record: Callable[[Callable[[], tuple[Tensor, ...]]],
                                        tuple[tuple[Tensor, ...], Callable[[], None]]] = record):  # fmt: skip
        self.replayed, self.off = 0, ""
        self._record = record
        self._key: Hashable = None
        self._recording: _Recording | None = None

    def __call__(self, runs: Sequence[Run]) -> Made | None:
        """Images and losses of one step of these, with the gradient in each z; None: to be made the ordinary way."""
        key = None if self.off else _key(runs)
        if key is None or key != self._key:
            # The ordinary way first: it warms up what a recording must find warm, and what changes at each step, as
            # under somebody's hand, is not worth one.
            self.forget()
            self._key = key
            return None
        if self._recording is None:
            try:
                self._recording = _Recording(runs, self._record)
            except Exception as error:  # whatever this card or driver cannot do, the ordinary way can
                self.forget()
                self.off = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                warnings.warn("this card could not record a step, so steps take longer; pictures are the same: "
                              f"{self.off}", stacklevel=4)  # fmt: skip
                return None
        made = self._recording.play(runs)
        self.replayed += 1
        return made

    def forget(self) -> None:
        """Let go of what was recorded and of its memory."""
        self._key = self._recording = None


class _Recording:
    def __init__(self, runs: Sequence[Run], record: Callable):
        # Not kept by a graph, and yet read by it: were these let go of, it would read what comes after them.
        self.held = [_held(run) for run in runs]
        self.draws = [{name: _static(judge.cutouts, run) for name, judge in run.judges()} for run in runs]
        self.names = list(runs[0].losses)
        self.made, self.replay = record(lambda: self._compute(runs))

    def _compute(self, runs: Sequence[Run]) -> tuple[Tensor, ...]:
        """Images, codes, losses, similarities and gradients, of each run after the other."""
        with torch.enable_grad():
            images, losses = forward(runs, self.draws)
            grads = torch.autograd.grad(sum(loss for mine in losses for loss in mine.values()),
                                        [run.latent.z for run in runs])  # fmt: skip
        made = []
        for run, image, mine, grad in zip(runs, images, losses, grads, strict=True):
            made += [image, run.latent.shown, *mine.values(), *(judge.similarity for _, judge in run.judges()), grad]
        return tuple(tensor.detach() for tensor in made)

    def play(self, runs: Sequence[Run]) -> Made:
        for run, draws in zip(runs, self.draws, strict=True):
            for name, judge in run.judges():
                _bring_into(draws[name], _whole(judge.cutouts, _draw(judge.cutouts, run)))
        self.replay()
        images, losses, made = [], [], iter(self.made)
        for run in runs:  # copies, as frames are kept and these are written again
            images.append(next(made).clone())
            run.latent.shown = next(made).clone()
            losses.append({name: next(made).clone() for name in self.names})
            for _, judge in run.judges():
                judge.similarity = next(made).clone()
            run.latent.z.grad = next(made)
            pull = _pull(run)  # weaker at each step, so in no recording
            if pull is not None:
                losses[-1]["init"] = pull
        return images, losses


def forward(runs: Sequence[Run], draws: Sequence[dict[str, Draw]] | None = None) -> Made:
    """Images and losses of one step, the pull to the start apart.

    Args:
        draws: of each run the cutouts by the names of their losses; None has them drawn.
    """
    images = paint([run.latent for run in runs])  # of each run (1, 3, H, W)
    losses: list[dict[str, Tensor]] = [{} for _ in runs]
    for name in runs[0].losses:
        weights, functions = zip(*(run.losses[name] for run in runs), strict=True)
        given = [mine.get(name) for mine in draws] if draws else None
        for mine, weight, value in zip(losses, weights, judged(functions, images, given), strict=True):
            mine[name] = weight * value
    return images, losses


def _pull(run: Run) -> Tensor | None:
    """The pull to the start, its gradient added to that of z."""
    with torch.enable_grad():
        pull = run.latent.pull(run.step)
        if pull is not None:
            run.latent.z.grad.add_(torch.autograd.grad(pull, run.latent.z)[0])
    return pull


def _draw(cutouts: Cutouts, run: Run) -> Draw:
    h, w = run.latent.z.shape[2:]
    return cutouts.draw(h * run.latent.vqgan.f, w * run.latent.vqgan.f)


def _whole(cutouts: Cutouts, draw: Draw) -> Draw:
    """A draw that has the same fields each time: holes too, where there are none this time."""
    if cutouts.how.erase and draw.holes is None:
        return replace(draw, holes=torch.ones(len(draw), 1, cutouts.size, cutouts.size))
    return draw


def _static(cutouts: Cutouts, run: Run) -> Draw:
    """A draw in a place of its own where z is, into which others are copied; the generators stay where they stand."""
    stand = cutouts.state()
    draw = _whole(cutouts, _draw(cutouts, run))
    cutouts.restore(stand)
    values = (getattr(draw, field.name) for field in fields(draw))
    return Draw(*(None if value is None else value.contiguous().to(run.latent.z.device, copy=True)
                  for value in values))  # fmt: skip


def _bring_into(static: Draw, draw: Draw) -> None:
    for field in fields(static):
        place = getattr(static, field.name)
        if place is not None:
            value = getattr(draw, field.name)
            if place.is_cuda and not value.is_cuda:
                value = value.contiguous().pin_memory()
            place.copy_(value, non_blocking=True)


def _held(run: Run) -> list:
    """All tensors of a run that its step reads and none of that step's makes."""
    held, models = [run.latent.z], [run.latent.vqgan]
    for _, judge in run.judges():
        held += [judge.targets, judge.weights, judge.stops, judge.owner, judge.share]
        models.append(judge.perceptor)
    for model in models:
        held += [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
    return held


def _key(runs: Sequence[Run]) -> Hashable:
    """All that Python decides in these runs' steps and where it all lies; None: not to be recorded."""
    keys = []
    for run in runs:
        latent = run.latent
        if type(latent) is not VQLatent or latent.vqgan.sparing or not run.losses:
            return None
        painter = latent.vqgan
        key: list[Hashable] = [id(latent), _place(latent.z), id(painter), painter.precision, painter.channels_last,
                               *map(_place, (painter.codebook, painter.post_quant_conv.weight))]  # fmt: skip
        for name, (weight, loss) in run.losses.items():
            key += [name, float(weight), id(loss)]
            if type(loss) is PromptLoss:
                cutouts, perceptor = loss.cutouts, loss.perceptor
                ours = isinstance(perceptor, CLIP) and type(perceptor).__module__.startswith(f"{__package__}.")
                if not ours or type(cutouts) is not Cutouts or loss.at_once < cutouts.n:
                    return None
                key += [cutouts.n, cutouts.size, cutouts.how, cutouts.pooled, id(perceptor), perceptor.precision,
                        *map(_place, (loss.targets, loss.weights, loss.stops, loss.owner, loss.share)),
                        *map(_place, (perceptor.mean, next(perceptor.parameters())))]  # fmt: skip
            elif getattr(loss, "__module__", "") != PromptLoss.__module__:
                return None
        keys.append(tuple(key))
    return tuple(keys)


def _place(tensor: Tensor) -> Hashable:
    """Where a tensor lies, and how it is read there."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape
