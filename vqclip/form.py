"""A form over all settings, the record that a notebook's cell fills in too; kept in a file as it is changed."""

from __future__ import annotations

import math
import re
import tempfile
from dataclasses import Field
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets

from .rows import TIP
from .settings import NAMES, Settings

SKIPPED = {"device"}  # a matter of the machine, not of the picture


class Form:
    """Widgets for every setting; each change is checked and saved, and what is wrong with one is said.

    A picture or video of vqclip's may be dropped on the button: its recipe fills the form.

    Args:
        path: of the YAML file; it need not exist yet.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.settings = Settings.load(self.path, missing_ok=True)
        self.fields = {name: _field(spec, getattr(self.settings, name)) for name, spec in NAMES.items()
                       if name not in SKIPPED}  # fmt: skip
        for name, widget in self.fields.items():
            widget.observe(lambda change, name=name: self._changed(name, change["new"]), "value")
        self.upload = ipywidgets.FileUpload(description="like a picture", multiple=False,
                                            **{TIP: "fill the form with the recipe in a picture or video"})  # fmt: skip
        self.upload.observe(self._uploaded, "value")
        self.said = ipywidgets.HTML()
        lines = [_line(widget, NAMES[name].metadata["help"]) for name, widget in self.fields.items()]
        self.widget = ipywidgets.VBox([self.upload, *lines, self.said])

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.widget)

    def fill(self, settings: Settings) -> None:
        """Show these settings and keep them."""
        self.settings = settings
        for name, widget in self.fields.items():
            widget.value = _shown(getattr(settings, name))
        self._save()

    def _changed(self, name: str, value: Any) -> None:
        if value == _shown(getattr(self.settings, name)):
            return
        try:
            self.settings = self.settings.replace(**{name: value})
        except ValueError as error:
            self.said.value = f"<b>{escape(str(error))}</b>"
            return
        self._save()

    def _save(self) -> None:
        self.settings.save(self.path)
        self.said.value = f"kept in {escape(str(self.path))}"

    def _uploaded(self, _: object) -> None:
        for name, content in uploaded(self.upload.value):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / Path(name).name
                path.write_bytes(content)
                try:
                    self.fill(Settings.like(path))
                except ValueError as error:
                    self.said.value = f"<b>{escape(str(error).replace(str(path), name))}</b>"


def uploaded(value: Any) -> list[tuple[str, bytes]]:
    """Names and contents of what a FileUpload has: a dict in ipywidgets 7, a tuple of dicts in 8."""
    if isinstance(value, dict):
        return [(name, bytes(entry["content"])) for name, entry in value.items()]
    return [(entry["name"], bytes(entry["content"])) for entry in value]


def _line(field: Any, help: str) -> ipywidgets.HBox:
    """A field with its meaning beside it, or below it where the page is narrow."""
    said = re.sub("`(.+?)`", r"<code>\1</code>", escape(help))
    meaning = ipywidgets.HTML(f'<div style="opacity: .75; line-height: 1.3">{said}</div>',
                              layout={"flex": "1 1 18em", "width": "auto", "min_width": "0"})  # fmt: skip
    return ipywidgets.HBox([field, meaning], layout={"flex_flow": "row wrap", "align_items": "center"})


def _field(spec: Field, value: Any) -> Any:
    """The widget that suits a setting: by its type, range and choices."""
    low, high, choices = (spec.metadata[key] for key in ("low", "high", "choices"))
    traits = {"description": spec.name, "style": {"description_width": "8em"}, "layout": {"flex": "1 1 22em",
              "max_width": "100%"}, TIP: spec.metadata["help"], "value": _shown(value)}  # fmt: skip
    if choices:
        return ipywidgets.Dropdown(options=choices, **traits)
    if isinstance(value, (int, float)):
        kind = ipywidgets.BoundedIntText if isinstance(value, int) else ipywidgets.BoundedFloatText
        bounds = {"min": low, "max": high} if math.isfinite(low) else {}
        return kind(continuous_update=False, **bounds, **traits)
    return ipywidgets.Text(continuous_update=False, **traits)


def _shown(value: Any) -> Any:
    """A setting as its widget has it: a size is a text."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else value
