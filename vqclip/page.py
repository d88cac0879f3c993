"""The studio as a page of its own, for people who want no notebook: `vqclip studio` shows it through Voila.

There is no cell that waits here: Paint begins by itself, and the kernel is free to listen.
"""

from __future__ import annotations

import asyncio
from html import escape
from pathlib import Path

import ipywidgets

from .form import Form
from .session import workspace
from .strings import Words
from .studio import Studio
from .video import write_video


class Page:
    """A studio, a button for the video, and all settings for the next picture.

    Args:
        home: the workspace; None as in `session.workspace`.
        language: of the words.
    """

    def __init__(self, home: str | Path | None = None, language: str = "en"):
        self.home, self.language, self.words = workspace(home), language, Words(language)
        self.form = Form(self.home / "settings.yaml", language)
        self.place = ipywidgets.VBox()
        self.film = ipywidgets.VBox()
        self.make = ipywidgets.Button(description=self.words("video"), icon="film", tooltip=self.words("video_tip"))
        self.make.on_click(lambda _: asyncio.get_running_loop().create_task(self.make_video()))
        self.new = ipywidgets.Button(description=self.words("new"), icon="refresh", tooltip=self.words("new_tip"))
        self.new.on_click(lambda _: self.begin())
        settings = ipywidgets.Accordion([self.form.widget], selected_index=None)
        settings.set_title(0, self.words("settings"))
        self.widget = ipywidgets.VBox([self.place, ipywidgets.HBox([self.make, self.new]), self.film, settings])
        self.studio: Studio | None = None
        self.begin()

    def begin(self) -> None:
        """A new picture, as the settings are now; the one before is stopped and kept."""
        if self.studio:
            self.studio.player.halt()  # without waiting: it may be loading
        self.studio = Studio(self.home, self.form.settings, language=self.language, background=True)
        self.place.children = [self.studio.panel.widget]
        self.film.children = []

    async def make_video(self) -> None:
        """Make the video of what is painted so far, on a thread, and play it here."""
        self.make.disabled = True
        try:
            if self.studio.session is None:
                raise ValueError(self.words("no_video"))
            path = await asyncio.get_running_loop().run_in_executor(None, self._write)
            self.film.children = [ipywidgets.Video.from_file(str(path), width=512, autoplay=False),
                                  ipywidgets.HTML(escape(str(path)))]  # fmt: skip
        except ValueError as error:
            self.studio.panel.say(str(error))
        finally:
            self.make.disabled = False

    def _write(self) -> Path:
        return write_video(self.studio.session, hold=1, progress=False)

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.widget)
