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

from .drawings import style_sheet
from .rows import TIP
from .settings import NAMES, Settings, SettingsError
from .strings import Words

SKIPPED = {"device"}  # a matter of the machine, not of the picture


class Form:
    """Widgets for every setting; each change is checked and saved, and what is wrong with one is said.

    A picture or video of vqclip's may be dropped on the button: its recipe fills the form.

    Args:
        path: of the YAML file; it need not exist yet. One that cannot be read is put aside.
        language: of labels and sentences, see `strings.languages`.

    Attributes:
        complaint: what was wrong with the file, if something was.
    """

    def __init__(self, path: str | Path, language: str = "en"):
        self.path, self.words = Path(path), Words(language)
        self.settings, self.complaint = self._load()
        self.fields = {name: _field(spec, getattr(self.settings, name), self.words) for name, spec in NAMES.items()
                       if name not in SKIPPED}  # fmt: skip
        for name, widget in self.fields.items():
            widget.observe(lambda change, name=name: self._changed(name, change["new"]), "value")
        self.upload = ipywidgets.FileUpload(description=self.words("like"), multiple=False)
        self.upload.observe(self._uploaded, "value")
        self.said = ipywidgets.HTML()
        like = _line(self.upload, escape(self.words("like_tip")))  # beside it: a tooltip of it shows in 8 only
        lines = [_line(widget, _meaning(name, self.words)) for name, widget in self.fields.items()]
        self.widget = ipywidgets.VBox([style_sheet(), like, *lines, self.said])
        self.widget.add_class("vqclip-form")
        if self.complaint:
            self._refuse(self.complaint)

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.widget)

    def fill(self, settings: Settings) -> None:
        """Show these settings and keep them."""
        self.settings = settings
        for name, widget in self.fields.items():
            widget.value = _shown(getattr(settings, name))
        self._save()

    def _load(self) -> tuple[Settings, str]:
        """The settings of the file, or those that everyone begins with, and why."""
        try:
            return Settings.load(self.path, missing_ok=True), ""
        except SettingsError as error:
            aside = self.path.with_suffix(".damaged.yaml")
            self.path.replace(aside)
            return Settings(), self.words("put_aside", reason=error, name=aside.name)

    def _changed(self, name: str, value: Any) -> None:
        if value == _shown(getattr(self.settings, name)):
            return
        try:
            self.settings = self.settings.replace(**{name: value})
        except ValueError as error:
            self._refuse(str(error))
            return
        self._save()

    def _save(self) -> None:
        self.settings.save(self.path)
        self.said.value = f'<div class="vqclip-fine">{escape(self.words("kept", path=self.path))}</div>'

    def _refuse(self, reason: str) -> None:
        self.said.value = f'<div class="vqclip-fine vqclip-warn" role="alert">{escape(reason)}</div>'

    def _uploaded(self, _: object) -> None:
        for name, content in uploaded(self.upload.value):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / Path(name).name
                path.write_bytes(content)
                try:
                    self.fill(Settings.like(path))
                except ValueError as error:
                    self._refuse(str(error).replace(str(path), name))


def uploaded(value: Any) -> list[tuple[str, bytes]]:
    """Names and contents of what a FileUpload has: a dict in ipywidgets 7, a tuple of dicts in 8."""
    if isinstance(value, dict):
        return [(name, bytes(entry["content"])) for name, entry in value.items()]
    return [(entry["name"], bytes(entry["content"])) for entry in value]


def _meaning(name: str, words: Words) -> str:
    """What a setting does, after the name that the command line and the README have for it."""
    sentence = re.sub("`(.+?)`", r"<code>\1</code>", escape(words(f"{name}_tip")))
    return f"<code><b>{name}</b></code> {sentence}"


def _line(field: Any, said: str) -> ipywidgets.HBox:
    """A field with its meaning beside it, or below it where the page is narrow."""
    field.add_class("vqclip-field")
    meaning = ipywidgets.HTML(f'<div class="vqclip-fine">{said}</div>')
    meaning.add_class("vqclip-meaning")
    line = ipywidgets.HBox([field, meaning])
    line.add_class("vqclip-line")
    return line


def _field(spec: Field, value: Any, words: Words) -> Any:
    """The widget that suits a setting: by its type, range and choices."""
    low, high, choices = (spec.metadata[key] for key in ("low", "high", "choices"))
    tip = words(f"{spec.name}_tip").replace("`", "")
    traits = {"description": words(spec.name), TIP: f"{spec.name}: {tip}", "value": _shown(value),
              "style": {"description_width": "11em"}}  # fmt: skip
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
