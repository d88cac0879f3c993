"""The panel's prompts: a row for each, with its words, its weight and its meter; rows come and go."""

from __future__ import annotations

from collections.abc import Callable

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
        self.weight = ipywidgets.FloatSlider(value=weight, min=-end, max=end, step=end / 100, readout_format=".3g",
                                             continuous_update=False, **{TIP: words("weight_tip")})  # fmt: skip
        self.remove = ipywidgets.Button(icon="times", tooltip=words("remove"))
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
    """All rows. `changed` is called with the prompts as one text; what is wrong with them goes to `refused`."""

    def __init__(self, prompts: str, words: Words, changed: Callable[[str], None],
                 refused: Callable[[ValueError], None]):  # fmt: skip
        self.words, self.changed, self.refused = words, changed, refused
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
        self.shares.value = prompt_language.describe(parsed) if parsed else ""

    def paint(self, labels: tuple[str, ...], meters: dict[str, Meter]) -> None:
        """Show how similar the picture is to each prompt; `labels` name them, in the rows' order."""
        filled = [row for row in self.rows if row.text.value.strip()]
        known = [(row, meters[label]) for row, label in zip(filled, labels, strict=False) if label in meters]
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
        self.box.children = [row.widget for row in rows]
        for row in rows:
            row.remove.disabled = len(rows) == 1

    def _removed(self, row: Row) -> None:
        self._set_rows([one for one in self.rows if one is not row])
        for widget in (*row.widget.children, row.widget):
            widget.close()
        self._edited()

    def _edited(self, _: object = None) -> None:
        try:
            prompts = [prompt for row in self.rows for prompt in row.prompts()]
            text = prompt_language.format_prompts(prompt_language.parse(prompts))
            self.changed(text)
        except ValueError as error:  # PromptError, SettingsError: nothing was changed
            self.refused(error)
            return
        self.shares.value = prompt_language.describe(prompts)
        filled = [(row.text.value, row.weight.value) for row in self.rows if row.text.value.strip()]
        if filled != [(written(prompt.text), prompt.weight) for prompt in prompts]:
            self.show(text)  # bars or weights were typed into a row


def written(text: str) -> str:
    """A prompt's words as the prompt language has them, without a weight."""
    return prompt_language.format_prompts([Prompt(text)])
