"""The panel: the growing picture, and everything that steers it, over a `Player`.

Only traits and methods that ipywidgets 7.7 (Colab's) and 8 have in common are used. Observers speak to the player and
never to the run; `paint` shows what the player has, and is for the main thread alone.
"""

from __future__ import annotations

import math
import time
from html import escape
from typing import Any

import ipywidgets
from PIL import Image

from .catalogue import size
from .drawings import bar, curve, style_sheet
from .hearing import Ear
from .player import Player
from .preflight import duration
from .rows import TIP, PromptRows
from .run import readings
from .strings import Words
from .watch import INTERVAL, jpeg


class Panel:
    """Widgets for a player; `widget` is what to display.

    Args:
        player: what is shown and steered.
        language: of the words, see `strings.languages`.
        on_play: called for a press on Paint while nothing is painting; None says to run the next cell.
    """

    def __init__(self, player: Player, language: str = "en", on_play: Any = None):
        self.player, self.words, self.on_play = player, Words(language), on_play
        self.shown, self.pictured, self.painted = None, None, 0.0  # frame and picture on display, and since when
        self._read: list[str] | None = None  # the texts whose tokens are on display
        now = player.now
        self.picture = ipywidgets.Image(format="jpeg", value=jpeg(_first(player)))
        self.picture.add_class("vqclip-picture")
        self.buttons = {name: self._button(name, icon) for name, icon in
                        (("play", "play"), ("pause", "pause"), ("stop", "stop"))}  # fmt: skip
        self.status, self.note, self.progress, self.losses, self.tokens = (ipywidgets.HTML() for _ in range(5))
        self.note.add_class("vqclip-fine")
        self.rows = PromptRows(now.prompts, self.words, lambda text: self._change(prompts=text), self._refuse,
                               now.image_prompts)  # fmt: skip
        self.controls = {
            "lr": self._slider("lr", ipywidgets.FloatLogSlider, now.lr, min=min(-3, _exponent(now.lr)),
                               max=max(0.5, _exponent(now.lr)), step=0.05, readout_format=".3g"),
            "init_weight": self._slider("init_weight", ipywidgets.FloatSlider, now.init_weight, min=0,
                                        max=max(10, now.init_weight), step=0.1, readout_format=".3g"),
            "cutouts": self._slider("cutouts", ipywidgets.IntSlider, now.cutouts, min=1, max=max(128, now.cutouts)),
        }  # fmt: skip
        self.steps = self._control("steps", ipywidgets.BoundedIntText, player.steps, min=1, max=1_000_000)
        self.steps.observe(self._set_steps, "value")
        self.ear, self._deaf, self._said = Ear(), False, ""
        self.widget = self._layout()
        self.paint()

    def paint(self) -> None:
        """Show what the player has by now: the newest frame, meters, figures, and what the matter is."""
        player = self.player
        self.painted = time.monotonic()
        frame = player.frame
        if frame is not None and frame is not self.shown:
            self.shown = frame
            self.rows.paint(frame.similarity, player.history.meters)
            self.losses.value = self._curve()
        picture = player.picture  # read once: the other thread may replace it
        if picture is not self.pictured:
            self.pictured = picture
            self.picture.value = jpeg(picture)
        self.progress.value = self._progress()
        self.status.value = self._status()
        if player.run is not None:
            judges = [judge for _, judge in player.run.judges()]
            texts = [prompt.text for judge in judges for prompt in judge.prompts[: judge.texts]]
            if texts != self._read:  # counting takes longer than all else but a new picture
                self._read, self.tokens.value = texts, self._tokens()
        state = player.state
        self.buttons["play"].disabled = state in ("loading", "painting")
        self.buttons["pause"].disabled = state != "painting"
        self.buttons["stop"].disabled = not player.alive or state == "stopping"

    def refresh(self) -> None:
        """Paint if the last time is `INTERVAL` ago."""
        if time.monotonic() - self.painted >= INTERVAL:
            self.paint()

    def listen(self) -> None:
        """Say so when the page's messages do not arrive, and no longer once they do."""
        deaf = not self.ear.listen()
        if deaf and not self._deaf:
            self.say(self.words("deaf"))
        elif self._deaf and not deaf and self._said == self.words("deaf"):  # not what was said since, of what arrived
            self.say()
        self._deaf = deaf

    def say(self, text: str = "", warn: bool = True) -> None:
        """Put a note under the status; without text, take it away."""
        self._said = text
        self.note.value = f'<span class="{"vqclip-warn" * warn}">{escape(text)}</span>' if text else ""

    # What is pressed and moved

    def _play(self) -> None:
        if self.player.alive:
            self.player.play()
        elif self.on_play:
            self.on_play()
        else:
            self.say(self.words("run_cell"))

    def _pressed(self, name: str) -> None:
        self.ear.hear()
        self.say()
        {"play": self._play, "pause": self.player.pause, "stop": self.player.halt}[name]()
        self.paint()  # at once: what was asked for may take its time

    def _change(self, **changes: Any) -> None:
        self.ear.hear()
        self.player.change(**changes)
        self.say()

    def _changed(self, name: str, value: Any) -> None:
        try:
            self._change(**{name: value})
        except ValueError as error:
            self._refuse(error)

    def _set_steps(self, change: dict[str, Any]) -> None:
        self.ear.hear()
        self.player.steps = change["new"]
        self.say()

    def _refuse(self, error: ValueError) -> None:
        self.ear.hear()
        self.say(str(error))

    # What is shown

    def _status(self) -> str:
        player = self.player
        error = player.error
        again = self.words("again_page" if self.on_play else "again_cell")
        state = "stopping_load" if player.state == "stopping" and player.run is None else player.state
        done, whole = player.fetched or (0, 0)
        if state == "loading" and whole:
            state = "fetching"
        text = self.words(state, reason=reason(error).rstrip("."), again=again, done=size(done), whole=size(whole))
        where = self.words("kept", path=player.session.path) if player.session else ""
        return (f'<div class="vqclip-status{" vqclip-failed" * bool(error)}" role="status">{escape(text)}</div>'
                f'<div class="vqclip-fine">{escape(where)}</div>')  # fmt: skip

    def _progress(self) -> str:
        player = self.player
        step = player.frame.step if player.frame is not None else max(0, len(player.history.losses) - 1)
        figures = self.words("step", step=step, steps=player.steps)
        if player.speed and player.state == "painting":
            left = duration((player.steps - step) / player.speed)
            figures = self.words("progress", step=step, steps=player.steps, speed=f"{player.speed:.3g}", left=left)
        return bar(step / player.steps) + f'<div class="vqclip-fine">{escape(figures)}</div>'

    def _curve(self) -> str:
        losses = self.player.history.losses
        label, tip = self.words("loss", loss=f"{losses[-1]:.3f}"), self.words("loss_tip")
        drawn = curve(losses, tuple(self.player.run.steering), tip)
        return f'{drawn}<div class="vqclip-fine" title="{escape(tip)}">{escape(label)}</div>'

    def _tokens(self) -> str:
        lines = []
        for read in readings(self.player.run):
            used = " · ".join(f"{text[:40]} {len(tokens.ids)}" for text, tokens in read.texts.items())
            said = escape(self.words("tokens", judge=read.judge, context=read.context, used=used))
            for tokens in read.texts.values():
                if tokens.unknown:
                    said += _warning(self.words("unknown", text=", ".join(tokens.unknown)))
                if tokens.cut:
                    said += _warning(self.words("cut", text=tokens.cut[:60]))
            lines.append(f'<div class="vqclip-fine">{said}</div>')
        return "".join(lines)

    # How it is put together

    def _button(self, name: str, icon: str) -> ipywidgets.Button:
        button = ipywidgets.Button(description=self.words(name), icon=icon, tooltip=self.words(f"{name}_tip"))
        button.on_click(lambda _: self._pressed(name))
        return button

    def _control(self, name: str, kind: type, value: float, **traits: Any) -> Any:
        tip = {TIP: f"{name}: {self.words(f'{name}_tip')}"}
        return kind(value=value, description=self.words(name), continuous_update=False,
                    style={"description_width": "8.5em"}, **tip, **traits)  # fmt: skip

    def _slider(self, name: str, kind: type, value: float, **traits: Any) -> Any:
        slider = self._control(name, kind, value, **traits)
        slider.observe(lambda change: self._changed(name, change["new"]), "value")
        return slider

    def _layout(self) -> ipywidgets.Box:
        framed = ipywidgets.VBox([self.picture, _told(self.words("picture_tip"))])
        framed.add_class("vqclip-framed")
        buttons = ipywidgets.HBox(list(self.buttons.values()))
        buttons.add_class("vqclip-buttons")
        controls = ipywidgets.VBox([*self.controls.values(), self.steps])
        controls.add_class("vqclip-controls")
        left = ipywidgets.VBox([style_sheet(), self.ear.widget, framed, buttons, self.progress, self.status,
                                self.note])  # fmt: skip
        left.add_class("vqclip-left")
        prompts = _heading(self.words("prompts"), self.words("prompt_tip"))
        right = ipywidgets.VBox([prompts, self.rows.box, self.rows.add, self.rows.shares, self.tokens,
                                 _heading(self.words("controls")), controls, self.losses])  # fmt: skip
        right.add_class("vqclip-right")
        whole = ipywidgets.Box([left, right])
        whole.add_class("vqclip-studio")
        return whole


def reason(error: BaseException | None) -> str:
    """What an error says, for people: ours are sentences by themselves; of another its kind is said, too."""
    return f"{error}" if isinstance(error, (ValueError, ArithmeticError)) else f"{type(error).__name__}: {error}"


def _warning(text: str) -> str:
    return f' <span class="vqclip-warn">· {escape(text)}</span>'


def _heading(text: str, tip: str = "") -> ipywidgets.HTML:
    return ipywidgets.HTML(f'<h4 title="{escape(tip)}">{escape(text)}</h4>')


def _told(tip: str) -> ipywidgets.HTML:
    """A mark to point at, for what can have no tooltip: an Image has none in ipywidgets 7, and breaks with one in 8."""
    told = ipywidgets.HTML(f'<span role="img" aria-label="{escape(tip)}" title="{escape(tip)}">i</span>')
    told.add_class("vqclip-told")
    return told


def _exponent(value: float) -> float:
    return math.log10(value)


def _first(player: Player) -> Image.Image:
    """What is there before the first step: the last picture of a session that is to go on, else grey."""
    made = player.session and player.session.path / "final.png"
    return Image.open(made).convert("RGB") if made and made.exists() else Image.new("RGB", player.now.size, (128,) * 3)
