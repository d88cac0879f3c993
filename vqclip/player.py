"""Playing a run: a thread makes the steps, while whoever holds the player looks, steers, pauses and stops.

    player = Player(Settings(prompts="desert | snow"), home)     # or Player(session=Session.latest(home)) to go on
    player.play(); player.change(prompts="desert:10 | snow:90"); player.pause(); player.play(); player.stop()
    player.state, player.frame, player.picture, player.history, player.error

The thread only makes steps; it touches no widget. Whatever is asked of the player acts between two steps.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from .download import watched
from .run import Frame, Run, check_steerable, generate
from .session import Session, workspace
from .settings import Settings

OFTEN = 0.15  # seconds between two pictures, so that whoever shows one now and then has a new one
TREND = 10  # steps: a trend is the mean of the last so many against that of as many before


@dataclass
class Meter:
    """How similar the picture is to one prompt: cosines, newest last."""

    best: float = -1.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=2 * TREND))

    def add(self, cosine: float) -> None:
        self.recent.append(cosine)
        self.best = max(self.best, cosine)

    @property
    def now(self) -> float:
        return self.recent[-1]

    @property
    def trend(self) -> float:
        """How much it rose, on average, within the last steps; 0 as long as there are too few to tell."""
        values = list(self.recent)
        if len(values) < 4:
            return 0.0
        half = len(values) // 2
        return sum(values[half:]) / (len(values) - half) - sum(values[:half]) / half


@dataclass
class History:
    """What was measured on the way: the sum of losses at every step, and a `Meter` by prompt."""

    losses: list[float] = field(default_factory=list)
    meters: dict[str, Meter] = field(default_factory=dict)

    def add(self, loss: float, similarity: dict[str, float]) -> None:
        self.losses.append(loss)
        for label, cosine in similarity.items():
            self.meters.setdefault(label, Meter()).add(cosine)


class Player:
    """A run on a thread of its own.

    Args:
        settings: what to paint; nothing is loaded before `play`.
        home: the workspace.
        session: to go on with; then settings and home are its own.

    Attributes:
        state: "ready", "loading", "painting", "paused", "stopping", "stopped" (by `stop`), "done" or "failed".
        error: what ended it, if something did.
        session, run: once loaded.
        frame: the newest.
        history: of the whole session.
        fetched: (bytes so far, bytes in all) of a checkpoint that is being fetched.
        speed: steps a second of late; None before two steps were made.
    """

    def __init__(self, settings: Settings | None = None, home: str | Path | None = None,
                 session: Session | None = None):  # fmt: skip
        self.session = session
        self.settings = session.settings if session else settings or Settings()
        self.home = session.path.parent.parent if session else workspace(home)
        self.run: Run | None = None
        self._state, self.error = "ready", None
        self.frame: Frame | None = None
        self.picture: Image.Image | None = None  # of the newest frame, or of one shortly before while it paints
        self._pictured: Frame | None = None  # whose that is, and since when it is there
        self._since = 0.0
        self.history = History()
        self.fetched: tuple[int, int] | None = None
        self.speed: float | None = None
        self._steps = session.steps if session else self.settings.steps
        self._wanted: dict[str, Any] = {}  # changes that the run has not been told yet
        self._telling = threading.Lock()
        self._going, self._halting = threading.Event(), threading.Event()
        self._deciding, self._leaving = threading.Lock(), False  # whether the thread has decided to end
        self._thread: threading.Thread | None = None

    @property
    def alive(self) -> bool:
        """Whether the thread is there: loading, painting or paused."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def state(self) -> str:
        """Where it stands; "stopping" from the moment it was asked to until what cannot be broken off is over."""
        if self._halting.is_set() and self.alive and self._state in ("loading", "painting", "paused"):
            return "stopping"
        return self._state

    @property
    def now(self) -> Settings:
        """The settings with which the next step will be made."""
        with self._telling:
            return (self.run.now if self.run else self.settings).replace(**self._wanted, steps=self._steps)

    @property
    def steps(self) -> int:
        """How many steps to take in all; may be raised at any time, also when all are made."""
        return self._steps

    @steps.setter
    def steps(self, steps: int) -> None:
        self._steps = self.settings.replace(steps=steps).steps
        if self.run:
            self.run.steps = self._steps

    def play(self) -> None:
        """Begin, or go on from a pause, a stop, an error or the end; a stop that is still to come is taken back."""
        with self._deciding:
            self._halting.clear()
            self._going.set()
            if self.alive and not self._leaving:
                return
        if self._thread:
            self._thread.join()  # all that is left to it is to put things on disk
        self.error, self.fetched, self._leaving = None, None, False
        self._state = "painting" if self.run else "loading"
        self._thread = threading.Thread(target=self._work, name="vqclip player", daemon=True)
        self._thread.start()

    def pause(self) -> None:
        """Rest after the step that is being made, until `play` or `stop`."""
        self._going.clear()

    def halt(self) -> None:
        """End after the step that is being made, or once all is loaded; does not wait for it.

        A download is broken off, and goes on there when it is played again.
        """
        self._halting.set()
        self._going.set()

    def stop(self) -> None:
        """As `halt`, and wait until all is on disk."""
        self.halt()
        if self._thread:
            self._thread.join()

    def change(self, **changes: Any) -> None:
        """Change settings of `run.STEERABLE` from the next step on; raises as `Run.change` and then changes nothing."""
        with self._telling:
            self._wanted |= check_steerable(self.settings, changes)

    def _work(self) -> None:
        try:
            if self.run is None:
                with watched(self._fetches):
                    self._load()
            self._state = "stopped" if self._ends() or not self._to_the_end() else "done"
        except BaseException as error:  # of whatever kind: its place is in the panel and in the cell, not in a thread
            broken_off = isinstance(error, KeyboardInterrupt) and self._ends()
            self.error, self._state = (None, "stopped") if broken_off else (error, "failed")

    def _to_the_end(self) -> bool:
        """Make steps and keep them; False if it was asked to end before the last."""
        if self.session is None:  # not before it is sure to paint: one that was stopped while it loads leaves no folder
            self.session = Session.create(self.home, self.run)
        try:
            with closing(self.session.record(self.run)) as frames:
                while self._may_step():
                    with self._deciding:  # after the last step: what is left is to put all on disk
                        self._leaving = self.run.step > self.run.steps
                    before = time.monotonic()
                    frame = next(frames, None)
                    if frame is not None:
                        self._see(frame, time.monotonic() - before)
                    if frame is None or self._leaving:
                        return True
            return False
        finally:  # whatever ended it, the last frame is seen
            self._picture()

    def _load(self) -> None:
        checkpoints = self.home / "checkpoints"
        if self.session:
            run = self.session.resume(root=checkpoints)
            for line in self.session.losses()[: run.step]:
                self.history.add(sum(line["losses"].values()), line["similarity"])
        else:
            with self._telling:  # what was changed before the start is how it starts
                self.settings, self._wanted = self.settings.replace(**self._wanted), {}
            run = generate(settings=self.settings, root=checkpoints)
        self.run = run
        run.steps = self._steps  # last: they may be raised meanwhile

    def _fetches(self, done: int, whole: int) -> None:
        self.fetched = None if done >= whole else (done, whole)  # then it is read and converted
        if self._halting.is_set():
            raise KeyboardInterrupt

    def _ends(self) -> bool:
        """Whether it was asked to end. From then on it cannot be taken back."""
        with self._deciding:
            if self._halting.is_set():
                self._leaving = True
            return self._leaving

    def _may_step(self) -> bool:
        """Wait while paused, hand over what was changed; False to end."""
        if not self._going.is_set():
            self._picture()
            self._state = "paused"
            self._going.wait()
        if self._ends():
            return False
        self._state = "painting"
        with self._telling:
            if self._wanted:
                self.run.change(**self._wanted)
                self._wanted = {}
        return True

    def _see(self, frame: Frame, seconds: float) -> None:
        self.history.add(float(sum(frame.losses.values())), frame.similarity)
        pace = 1 / max(seconds, 1e-6)
        self.speed = pace if self.speed is None else 1 / (0.9 / self.speed + 0.1 / pace)  # a mean over about ten steps
        self.frame = frame
        if time.monotonic() - self._since >= OFTEN:
            self._picture()

    def _picture(self) -> None:
        """Make the picture of the newest frame, unless it is there.

        Here and not in the panel: a second thread that computes with torch has threads of its own for that, and where
        OpenMP has more of them than there are cores, each sleeps at every wait: steps take half as long again.
        """
        if self.frame is not self._pictured:
            self.picture, self._pictured, self._since = self.frame.pil, self.frame, time.monotonic()
