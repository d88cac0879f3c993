"""Whether a page's messages arrive while a cell runs: asked of the page itself, because a kernel cannot know.

A `Play` widget counts in the page, without being touched, and says so. A hidden one is set going now and then; once a
number of its came back, sliders and buttons are heard too. One of these that arrives is as good a sign.
"""

from __future__ import annotations

import time

import ipywidgets

PLAYING = "playing" if hasattr(ipywidgets.Play, "playing") else "_playing"  # ipywidgets 8 and 7
AGAIN = 2.0  # seconds between two questions: the page may not have shown the panel yet
PATIENCE = 10.0  # seconds without an answer, after which it is said
BREATH = 0.5  # seconds between two looks that count at most: a kernel that was busy, loading say, was not listening


class Ear:
    """Asks the page for a sign of life; `widget` must be somewhere in the panel.

    Attributes:
        heard: whether it came since `begin`.
    """

    def __init__(self) -> None:
        self.widget = ipywidgets.Play(value=0, min=0, max=1_000_000, interval=200, layout={"display": "none"})
        self.widget.observe(lambda _: self.hear(), "value")
        self.begin()

    def begin(self) -> None:
        """Forget what was heard, and ask anew."""
        self.heard, self._waited, self._looked, self._asked = False, 0.0, time.monotonic(), -AGAIN

    def listen(self) -> bool:
        """Ask again if it is time; False once patience is at its end."""
        now = time.monotonic()
        self._waited += min(now - self._looked, BREATH)
        self._looked = now
        if not self.heard and now - self._asked >= AGAIN:
            self._asked = now
            for playing in (False, True):  # only a change sets it going, and only once it is shown
                setattr(self.widget, PLAYING, playing)
        return self.heard or self._waited < PATIENCE

    def hear(self) -> None:
        """Something of the page's arrived."""
        self.heard = True
        setattr(self.widget, PLAYING, False)
