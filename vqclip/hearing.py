"""Whether a page's messages arrive while a cell runs: asked of the page itself, because a kernel cannot know.

A `Play` widget counts in the page, without being touched, and says so. A hidden one is set going now and then; once a
number of its came back, sliders and buttons are heard too.
"""

from __future__ import annotations

import time

import ipywidgets

PLAYING = "playing" if hasattr(ipywidgets.Play, "playing") else "_playing"  # ipywidgets 8 and 7
AGAIN = 2.0  # seconds between two questions: the page may not have shown the panel yet
PATIENCE = 10.0  # seconds without an answer, after which it is said


class Ear:
    """Asks the page for a sign of life; `widget` must be somewhere in the panel.

    Attributes:
        heard: whether it came since `begin`.
    """

    def __init__(self) -> None:
        self.widget = ipywidgets.Play(value=0, min=0, max=1_000_000, interval=200, layout={"display": "none"})
        self.widget.observe(self._hear, "value")
        self.begin()

    def begin(self) -> None:
        """Forget what was heard, and ask anew."""
        self.heard, self._began, self._asked = False, time.monotonic(), -AGAIN

    def listen(self) -> bool:
        """Ask again if it is time; False once patience is at its end."""
        now = time.monotonic()
        if not self.heard and now - self._asked >= AGAIN:
            self._asked = now
            for playing in (False, True):  # only a change sets it going, and only once it is shown
                setattr(self.widget, PLAYING, playing)
        return self.heard or now - self._began < PATIENCE

    def _hear(self, _: object) -> None:
        self.heard = True
        setattr(self.widget, PLAYING, False)
