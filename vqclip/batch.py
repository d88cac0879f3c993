"""Several pictures at once: runs side by side, of which painter and judge see one batch.

    batch = vqclip.generate_batch("desert:50 | snow:25", seeds=range(8))
    for frames in batch:                                    # one frame of each seed
        ...

Each is a whole `Run` with its own latent, draws, optimiser and steering, and paints what it would by itself, but for
rounding. A graphics card that a single picture leaves half idle is busy then. To keep them, give each a session:

    for frames in batch.record([vqclip.Session.create("workspace", run) for run in batch.runs]):
        ...
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .memory import free, is_exhaustion, needed
from .perceptor import Perceptor
from .run import Frame, Run, advance, generate
from .vqgan import VQGAN

if TYPE_CHECKING:
    from .session import Session


class Batch:
    """Runs side by side: an iterator of lists of frames, one of each run, all of the same step.

    Runs that are behind the others, as after a crash, first catch up; their frames on the way are not in the lists.

    Args:
        runs: with the same painter, judges, losses, size and steps, at rest.
        at_once: how many are painted and judged as one batch; 0 takes as many as there is memory for, on a processor
            one. When memory runs out on the way it is halved, and pictures go on as they were.

    Raises:
        ValueError: the runs cannot be painted together.
    """

    def __init__(self, runs: Sequence[Run], at_once: int = 0):
        self.runs = list(runs)
        self._check()
        self.at_once = at_once or _fitting(self.runs[0], len(self.runs))

    def __iter__(self) -> Batch:
        return self

    def __next__(self) -> list[Frame]:
        while True:
            made = self._advance()
            if made is None:
                raise StopIteration
            if len(made) == len(self.runs):
                return [frame for _, frame in made]

    def record(self, sessions: Sequence[Session]) -> Iterator[list[Frame]]:
        """Iterate and keep every frame of each run in its session; again to go on after an interrupt.

        Args:
            sessions: one of each run, in their order.
        Raises:
            SessionError: see `Session.record`; what was made is kept.
        """
        with ExitStack() as stack:  # before the first step: each brings its run to where its files are
            pairs = zip(self.runs, sessions, strict=True)
            recordings = {id(run): stack.enter_context(session.recording(run)) for run, session in pairs}
            while True:
                for recording in recordings.values():
                    recording.note()
                made = self._advance()
                if made is None:
                    return
                for run, frame in made:
                    recordings[id(run)].keep(frame)
                if len(made) == len(self.runs):
                    yield [frame for _, frame in made]

    def _advance(self) -> list[tuple[Run, Frame]] | None:
        """One step of the runs that are furthest behind, all of them as a rule; None at the end."""
        self._check()
        for run in self.runs:
            run.settle()
        step = min(run.step for run in self.runs)
        if step > self.runs[0].steps:
            return None
        runs, frames = [run for run in self.runs if run.step == step], []
        try:
            while len(frames) < len(runs):
                frames += self._together(runs[len(frames) : len(frames) + self.at_once])
        except BaseException:  # an interrupt too: no frame of this step came out, so none has taken it
            _take_back(runs, step)
            raise
        return list(zip(runs, frames, strict=True))

    def _together(self, runs: list[Run]) -> list[Frame]:
        """A step of some as one batch; when there is not enough memory, of fewer."""
        if len(runs) == 1:
            return [next(runs[0])]
        step = runs[0].step
        try:
            return advance(runs)
        except Exception as error:
            if not is_exhaustion(error):
                raise
            _take_back(runs, step)
        self.at_once = len(runs) // 2
        warnings.warn(f"out of memory at step {step}, which is done again: from here {self.at_once} of "
                      f"{len(self.runs)} pictures are painted at once", stacklevel=4)  # fmt: skip
        return self._together(runs[: self.at_once])

    def _check(self) -> None:
        alike = {(id(run.latent.vqgan), tuple(id(judge.perceptor) for _, judge in run.judges()), tuple(run.losses),
                  run.latent.z.shape, run.steps) for run in self.runs}  # fmt: skip
        if len(alike) != 1 or len(set(map(id, self.runs))) < len(self.runs):
            raise ValueError(f"these {len(self.runs)} runs cannot be painted side by side: give different ones that "
                             "have the same loaded painter and judges, losses, size and steps")  # fmt: skip


def _take_back(runs: list[Run], step: int) -> None:
    """Bring runs back to a step of which some may have been taken, or half taken."""
    for run in runs:
        run.settle()
        if run.step > step:
            run.undo()


def _fitting(run: Run, count: int) -> int:
    """How many of these to take at once: on a graphics card as many as have room, as far as anybody can tell.

    On a processor one: a batch gains nothing there, and what it keeps no longer fits into its caches (8 seeds of the
    published sizes at 256x256 took 1.8 times as long as one after the other, of the embedded pair .97 times).
    """
    device = run.latent.z.device
    if device.type == "cpu" or count == 1:
        return 1
    there = free(device)
    return count if there is None else max(1, min(count, there // needed(run).step))


def generate_batch(prompts: str | Sequence | None = None, vqgan: VQGAN | str | Path | None = None,
                   clip: Perceptor | str | Path | Sequence | None = None, *, seeds: Sequence[int], at_once: int = 0,
                   **arguments: Any) -> Batch:  # fmt: skip
    """Set up a run for each seed, side by side; models are loaded once.

    Args:
        seeds: one for each picture.
        at_once: see `Batch`.
        prompts, vqgan, clip, arguments: as `run.generate` takes them.
    Raises:
        ValueError: there is no seed; and what `generate` raises.
    """
    if not seeds:
        raise ValueError("seeds is empty: give one for each picture, as in seeds=range(4)")
    first = generate(prompts, vqgan, clip, **{**arguments, "seed": seeds[0]})
    loaded = first.latent.vqgan, [judge.perceptor for _, judge in first.judges()]
    others = [generate(prompts, *loaded, **{**arguments, "seed": seed}) for seed in seeds[1:]]
    return Batch([first, *others], at_once)
