"""The panel's prompts: a row for each, with its words, its weight and its meter; rows come and go."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from html import escape

import ipywidgets

from . import prompts as prompt_language
from .drawings import full_scale, meter
from .player import Meter
from .prompts import Prompt
from .strings import Words

TIP = "tooltip" if hasattr(ipywidgets.FloatSlider, "tooltip") else "description_tooltip"  # ipywidgets 8 and 7
ROUND = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # ends of weight sliders


class Row:
    """One prompt: words as the prompt language has them, without the weight, which the slider has."""

    def __init__(self, prompt: Prompt | None, end: float, words: Words):
        named = prompt and prompt.stop != prompt_language.default_stop(prompt.weight)
        self.stop = prompt.stop if named else None  # only one that was typed stays when the weight changes
        weight = prompt.weight if prompt else end / 2
        self.text = ipywidgets.Text(value=written(prompt.text) if prompt else "", placeholder=words("prompt_hint"),
                                    continuous_update=False, **{TIP: words("prompt_tip")})  # fmt: skip
        # With a label, as it is the label that has a slider's tooltip, in ipywidgets 7 and 8.
        self.weight = ipywidgets.FloatSlider(value=weight, min=-end, max=end, step=end / 100, readout_format=".3g",
                                             continuous_update=False, description=words("weight"),
                                             style={"description_width": "initial"},
                                             **{TIP: words("weight_tip")})  # fmt: skip
        self.remove = ipywidgets.Button(icon="times", tooltip=words("remove"))
        self.label: str | None = None  # by which the run knows its similarity
        self.meter = ipywidgets.HTML()
        self.meter.add_class("vqclip-meter-box")
        self.widget = ipywidgets.HBox([self.text, self.weight, self.remove, self.meter])
        self.widget.add_class("vqclip-row")

    def prompts(self) -> tuple[Prompt, ...]:
        """What the row says; usually one prompt, none when it is empty, more when bars were typed."""
        if not self.text.value.strip():
            return ()
        typed = prompt_language.parse(self.text.value)
        if len(typed) == 1 and written(typed[0].text) == self.text.value.strip():  # the slider has the weight
            weight = self.weight.value
            stop = prompt_language.default_stop(weight) if self.stop is None else self.stop
            return (Prompt(typed[0].text, weight, stop),)
        return typed


class PromptRows:
    """All rows. `changed` is called with the prompts as one text; what is wrong with them goes to `refused`.

    `pictures` are prompts that no row has, but that share in the weights: the image prompts, as text.
    """

    def __init__(self, prompts: str, words: Words, changed: Callable[[str], None],
                 refused: Callable[[ValueError], None], pictures: str = ""):  # fmt: skip
        self.words, self.changed, self.refused = words, changed, refused
        self.pictures = prompt_language.parse_optional(pictures)
        self.box = ipywidgets.VBox()
        self.shares = ipywidgets.HTML()
        self.shares.add_class("vqclip-fine")
        self.add = ipywidgets.Button(description=words("add"), icon="plus", tooltip=words("add_tip"))
        self.add.on_click(lambda _: self._set_rows([*self.rows, self._row(None)]))
        self.rows: list[Row] = []
        self.show(prompts)

    def show(self, prompts: str) -> None:
        """Make the rows anew from prompts as text."""
        parsed = prompt_language.parse_optional(prompts)
        largest = max((abs(prompt.weight) for prompt in parsed), default=1.0)
        self.end = next((end for end in ROUND if end > largest), 2 * largest)
        self._set_rows([self._row(prompt) for prompt in parsed] or [self._row(None)])
        self._share(parsed)

    def paint(self, measured: Collection[str], meters: dict[str, Meter]) -> None:
        """Show how similar the picture is to each prompt, of those whose labels were measured with it.

        Rows and picture find each other by words, as the picture may be of before a row came, went or was rewritten.
        """
        known = [(row, meters[row.label]) for row in self.rows if row.label in measured and row.label in meters]
        scale = full_scale([one.best for _, one in known])
        for row, one in known:
            tip = self.words("meter_tip", text=row.text.value, now=f"{one.now:.3f}", best=f"{one.best:.3f}")
            row.meter.value = meter(one.now, one.best, one.trend, scale, tip, row.weight.value < 0)

    def _row(self, prompt: Prompt | None) -> Row:
        row = Row(prompt, self.end, self.words)
        row.text.observe(self._edited, "value")
        row.weight.observe(self._edited, "value")
        row.remove.on_click(lambda _: self._removed(row))
        return row

    def _set_rows(self, rows: list[Row]) -> None:
        self.rows = rows
        self._name()
        self.box.children = [row.widget for row in rows]
        for row in rows:
            row.remove.disabled = len(rows) == 1

    def _removed(self, row: Row) -> None:
        self._set_rows([one for one in self.rows if one is not row])
        for widget in (*row.widget.children, row.widget):
            widget.close()
        self._edited()

    def _name(self) -> None:
        """Give each row that is one prompt its label; none to those that are empty, or that nobody can read."""
        said = {}
        for row in self.rows:
            with suppress(ValueError):
                if len(prompts := row.prompts()) == 1:
                    said[row] = prompts[0]
        names = dict(zip(said, prompt_language.labels(said.values()), strict=True))
        for row in self.rows:
            if row.label != names.get(row):
                row.label, row.meter.value = names.get(row), ""  # what it showed was of other words

    def _share(self, prompts: Sequence[Prompt]) -> None:
        """Say which share each has in one whole, image prompts among them, as in the loop."""
        every = (*prompts, *self.pictures)
        self.shares.value = escape(prompt_language.describe(every)) if every else ""

    def _edited(self, _: object = None) -> None:
        self._name()
        try:
            prompts = [prompt for row in self.rows for prompt in row.prompts()]
            alone = self.pictures and not prompts  # pictures do without words
            text = "" if alone else prompt_language.format_prompts(prompt_language.parse(prompts))
            self.changed(text)
        except ValueError as error:  # PromptError, SettingsError: nothing was changed
            self.refused(error)
            return
        self._share(prompts)
        filled = [(row.text.value, row.weight.value) for row in self.rows if row.text.value.strip()]
        if filled != [(written(prompt.text), prompt.weight) for prompt in prompts]:
            self.show(text)  # bars or weights were typed into a row


def written(text: str) -> str:
    """A prompt's words as the prompt language has them, without a weight."""
    return prompt_language.format_prompts([Prompt(text)])
