"""The studio: a panel to steer a picture while it grows, in JupyterLab and in Colab.

    studio = vqclip.Studio(home, settings)      # one cell
    studio
    await studio.run()                          # another: paints until it is done or stopped, and hears the panel
    vqclip.show_video(vqclip.write_video(studio.session))

A thread makes the steps, the cell waits for it and lets the panel's messages through (`pump.py`); only the main thread
touches widgets, because Colab shows nothing that comes from another, or after the cell.
"""

from __future__ import annotations

import asyncio
import warnings
from collections import deque
from pathlib import Path

from .panel import Panel
from .player import Player
from .pump import Pump
from .session import Session
from .settings import Settings


class Studio:
    """A picture in the making, with its panel; displays itself as that.

    Args:
        home: the workspace; None as in `session.workspace`.
        settings: what to paint.
        session: one to go on with, instead.
        language: of the panel: en, ru, de or es.
        background: Paint starts without a cell that waits; for pages that have no cells.
    """

    def __init__(self, home: str | Path | None = None, settings: Settings | None = None,
                 session: Session | None = None, language: str = "en", background: bool = False):  # fmt: skip
        self.player = Player(settings, home, session)
        self.panel = Panel(self.player, language, self.start if background else None)
        self._task: asyncio.Task | None = None

    @classmethod
    def open(cls, home: str | Path, go_on: bool = False, language: str = "en") -> Studio:
        """For what the workspace has: its `settings.yaml`, or, to go on, the session that was painted last.

        Raises:
            SettingsError, SessionError: it has none.
        """
        if go_on:
            return cls(session=Session.latest(home), language=language)
        return cls(home, Settings.load(Path(home) / "settings.yaml"), language=language)

    @property
    def session(self) -> Session | None:
        """The session that is painted; None before the first run."""
        return self.player.session

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.panel.widget)

    async def run(self) -> None:
        """Paint, until it is done, stopped or paused by the kernel's interrupt; run it again to go on.

        Raises:
            Whatever ended the run; what was made is kept, and the panel says so.
        """
        notes: deque[str] = deque()  # from the player's thread, which must not touch a widget
        with warnings.catch_warnings():  # until that thread is over, as what it loads may do the same
            warnings.showwarning = lambda message, *_, **__: notes.append(str(message))
            try:
                await self._watch(notes)
            except (asyncio.CancelledError, KeyboardInterrupt):  # the cell's stop button: stop early, keep the picture
                self.player.halt()
                self.panel.paint()  # says so at once: a step, or loading, cannot be broken off
                if uncancel := getattr(asyncio.current_task(), "uncancel", None):  # since Python 3.11
                    uncancel()
            finally:
                self.player.stop()
                self.panel.paint()
        if self.player.error is not None:
            raise self.player.error

    def start(self) -> None:
        """Paint without keeping a cell busy. Not for Colab, which shows nothing that comes after the cell."""
        self._task = asyncio.get_running_loop().create_task(self._in_background())

    async def _in_background(self) -> None:
        self.player.play()
        while self.player.alive:
            await asyncio.sleep(0.03)
            self.panel.refresh()
        self.panel.paint()  # an error too: there is no cell for it

    async def _watch(self, notes: deque[str]) -> None:
        async with Pump() as pump:
            self.player.play()
            self.panel.paint()
            self.panel.ear.begin()
            while self.player.alive:
                await pump()
                self.panel.listen()
                self.panel.refresh()
                if notes:
                    self.panel.say(notes.popleft())
