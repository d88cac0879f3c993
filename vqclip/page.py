"""The studio as a page of its own, for people who want no notebook: `vqclip studio` shows it through Voila.

There is no cell that waits here: Paint begins by itself, and the kernel is free to listen. Nor is there one that could
show an error: whatever goes wrong is said in the panel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from html import escape
from pathlib import Path

import ipywidgets

from .form import Form
from .panel import reason
from .session import Session, workspace
from .settings import Settings
from .strings import Words
from .studio import Studio
from .video import write_video
from .watch import download_link, playable


class Page:
    """A studio, buttons for the video, a new picture and the last one, and all settings for the next picture.

    A page that is opened again, or reloaded, begins anew; the last picture is offered, to go on with.

    Args:
        home: the workspace; None as in `session.workspace`.
        language: of the words.
    """

    def __init__(self, home: str | Path | None = None, language: str = "en"):
        self.home, self.language, self.words = workspace(home), language, Words(language)
        self.form = Form(self.home / "settings.yaml", language)
        self.place = ipywidgets.VBox()
        self.film = ipywidgets.VBox()
        self.make = self._button("video", "film", self._begin_video)
        self.new = self._button("new", "refresh", self.begin)
        self.last = self._button("last", "history", self.go_on)
        settings = ipywidgets.Accordion([self.form.widget], selected_index=None)
        settings.set_title(0, self.words("settings"))
        buttons = ipywidgets.HBox([self.make, self.new, self.last])
        self.widget = ipywidgets.VBox([self.place, buttons, self.film, settings])
        self.studio: Studio | None = None
        self._task: asyncio.Task | None = None
        self.begin()
        if self.form.complaint:
            self.studio.panel.say(self.form.complaint)

    def begin(self) -> None:
        """A new picture, as the settings are now; the one before is stopped and kept."""
        self._show(self.form.settings, None)
        with suppress(ValueError):  # there is no session yet, or one that nobody can go on with
            session = Session.latest(self.home)
            step, steps = len(session.codes) - 1, session.steps
            self.last.disabled = False
            if step < steps:
                unfinished = self.words("unfinished", name=session.path.name, step=max(step, 0), steps=steps,
                                        last=self.words("last"))  # fmt: skip
                self.studio.panel.say(unfinished, warn=False)

    def go_on(self) -> None:
        """Take up the picture that was painted last: press Paint to go on with it."""
        try:
            session = Session.latest(self.home)
            if self.studio.session is None or self.studio.session.path != session.path:
                self._show(None, session)
        except Exception as error:
            self.studio.panel.say(reason(error))

    async def make_video(self) -> None:
        """Make the video of what is painted so far, on a thread, and play it here."""
        self.make.disabled = True
        try:
            if self.studio.session is None:
                raise ValueError(self.words("no_video"))
            path, data = await asyncio.get_running_loop().run_in_executor(None, self._write)
            size = path.stat().st_size
            said = f"{path}" if len(data) == size else self.words("small_copy", path=path, size=f"{size / 1e6:.0f}")
            video = ipywidgets.Video(value=data, format="mp4", width="512", autoplay=False)
            self.film.children = [video, ipywidgets.HTML(f"{download_link(path) or ''} {escape(said)}")]
        except Exception as error:
            self.studio.panel.say(reason(error))
        finally:
            self.make.disabled = False

    def _show(self, settings: Settings | None, session: Session | None) -> None:
        """Put a studio on display in place of the one before, which ends by itself: it may be loading."""
        studio = Studio(self.home, settings, session, self.language, background=True)
        if self.studio:
            self.studio.player.halt()
        self.studio = studio
        self.place.children = [studio.panel.widget]
        self.film.children = []
        self.last.disabled = True

    def _begin_video(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self.make_video())

    def _write(self) -> tuple[Path, bytes]:
        """The video's path, and what of it the page can play."""
        path = write_video(self.studio.session, hold=1, progress=False)
        return path, playable(path)[0]

    def _button(self, name: str, icon: str, pressed: Callable[[], None]) -> ipywidgets.Button:
        button = ipywidgets.Button(description=self.words(name), icon=icon, tooltip=self.words(f"{name}_tip"))
        button.on_click(lambda _: pressed())
        return button

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.widget)
