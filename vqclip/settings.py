"""Settings: everything a user chooses for a run, in one flat, frozen record.

Each field carries its help and range, from which the command line, the notebooks' forms and the README's table are
made. YAML and `key=value` go in and out through OmegaConf here and nowhere else. The parts of the package take plain
arguments and never see this record; only `run.generate` turns one into the other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import Field, asdict, dataclass, field, fields
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from . import prompts as prompt_language
from .files import atomic

LARGEST = 4096  # pixels a side; beyond, no machine that we know of holds one step


class SettingsError(ValueError):
    """A setting that does not exist, or a value out of its range."""


def _setting(default: Any, help: str, low: float = -math.inf, high: float = math.inf, choices: tuple = ()) -> Any:
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """All settings of a run; see each field's `help`. Raises SettingsError for a value out of range."""

    prompts: str = _setting("desert:50 | snow:25", "what to paint: `text:weight:stop | text | ...`")
    image_prompts: str = _setting("", "pictures to resemble: `file.png:weight | ...`; they share in the weights")
    losses: str = _setting("", "further likings: `name:weight | ...` of tv, saturation, edges")
    size: tuple[int, int] = _setting((128, 128), "width and height in pixels, as 512x384", 16, LARGEST)
    steps: int = _setting(80, "how many steps to take", 1, 1_000_000)
    seed: int = _setting(0, "the same seed gives the same picture on the same machine", 0, 2**32 - 1)
    vqgan: str = _setting("embedded", "the painter: `embedded`, or a checkpoint's name or path")
    clip: str = _setting("embedded", "the judge: `embedded`, a name or path, `open_clip:NAME`; several as `A + B`")
    init_image: str = _setting("", "a picture to start from: a path or a URL")
    start: str = _setting("soft", "without a picture: `random` codes, `soft` ones nearer the mean, or the `mean`",
                          choices=("soft", "random", "mean"))  # fmt: skip
    init_weight: float = _setting(0.0, "how strongly to stay close to the start", 0, 1000)
    init_decay: int = _setting(0, "steps over which that hold lets go; 0 keeps it", 0, 1_000_000)
    optimizer: str = _setting("momentum", "how z moves: `momentum` over the whole latent, or Crowson's `adam`",
                              choices=("adam", "momentum"))  # fmt: skip
    lr: float = _setting(0.12, "the learning rate: how far z moves a step", 1e-6, 100)
    churn: float = _setting(0.15, "chance mixed into z each step, ever less: it loosens; none with `init_image`", 0, 1)
    churn_decay: int = _setting(64, "steps over which that falls to nothing; 0 keeps it", 0, 1_000_000)
    cutouts: int = _setting(16, "how many glimpses the judge takes each step", 1, 4096)
    cut_pow: float = _setting(0.2, "above 1 more small glimpses, below 1 more large ones", 0.01, 100)
    cutter: str = _setting("crops", "glimpses are `crops`, or `pooled`: the whole picture each time",
                           choices=("crops", "pooled"))  # fmt: skip
    augment: str = _setting("none", "how glimpses are disturbed, named after its notebook",
                            choices=("none", "mse", "abulafia", "nerdyrodent", "updated"))  # fmt: skip
    noise: float = _setting(-1.0, "noise added to glimpses; -1 takes what `augment` has", -1, 10)
    chunk: int = _setting(0, "glimpses judged at once: fewer need less memory; 0 means all", 0, 4096)
    ema: float = _setting(0.0, "show an average over steps with this memory; 0 shows each step", 0, 0.9999)
    precision: str = _setting("auto", "what painter and judge compute in; `auto`: what is fast and safe on the device",
                              choices=("auto", "float32", "bfloat16", "float16"))  # fmt: skip
    device: str = _setting("auto", "where to compute: auto, cpu, cuda, mps")

    def __post_init__(self):
        for spec in fields(self):
            object.__setattr__(self, spec.name, _valid(spec, getattr(self, spec.name)))
        # Prompts say what is wrong with them in their own words, before anything is loaded.
        for text in (self.image_prompts, self.losses, self.prompts or not self.image_prompts and " "):
            if text:
                prompt_language.parse(text)

    def replace(self, /, **changes: Any) -> Settings:
        """These settings with some changed; raises SettingsError for an unknown name or a bad value."""
        unknown = [name for name in changes if name not in NAMES]
        if unknown:
            raise SettingsError(f"there is no setting {unknown[0]!r}; there are {', '.join(NAMES)}")
        return replace_fields(self, **changes)

    def filled(self, width: int, height: int, steps: int = 0, cutouts: int = 0, **others: Any) -> Settings:
        """These settings as a notebook's form fills them in: 0 steps or cutouts leave those there are."""
        return self.replace(size=(width, height), steps=steps or self.steps, cutouts=cutouts or self.cutouts, **others)

    def override(self, pairs: Iterable[str]) -> Settings:
        """These settings with `key=value` texts applied, as typed on a command line."""
        changes = {}
        for pair in pairs:
            name, equals, text = pair.partition("=")
            if not equals:
                raise SettingsError(f"{pair!r} is no setting: write it as name=value, such as steps=300")
            changes[name.strip()] = text
        return self.replace(**changes)

    def preset(self, name: str) -> Settings:
        """These settings with a preset's applied: one of `PRESETS`."""
        if name not in PRESETS:
            raise SettingsError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
        return self.replace(**PRESETS[name])

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for YAML and JSON."""
        return {**asdict(self), "size": f"{self.size[0]}x{self.size[1]}"}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Settings:
        """The inverse of `to_dict`; settings that are left out have their defaults."""
        return cls().replace(**{str(name): value for name, value in data.items()})

    def save(self, path: str | Path) -> None:
        """Write YAML, whole or not at all; raises SettingsError when it cannot be written."""
        text = OmegaConf.to_yaml({name: _escaped(value) for name, value in self.to_dict().items()})
        try:
            with atomic(path) as file:
                file.write(text.encode())
        except OSError as error:
            raise SettingsError(f"{path} cannot be written ({error.strerror}): choose another folder") from error

    @classmethod
    def load(cls, path: str | Path, missing_ok: bool = False) -> Settings:
        """Read YAML; raises SettingsError when the file is no list of settings.

        A missing file is an error too, unless `missing_ok`: then all settings have their defaults.
        """
        if missing_ok and not Path(path).exists():
            return cls()
        try:
            data = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        except FileNotFoundError as error:
            raise SettingsError(f"there are no settings in {path}: run the step that writes them first") from error
        except (OmegaConfBaseException, ValueError, OSError) as error:
            raise SettingsError(f"{path} cannot be read as settings ({str(error).splitlines()[0]})") from error
        except Exception as error:  # PyYAML's own errors, which OmegaConf lets through
            raise SettingsError(f"{path} is not YAML ({str(error).splitlines()[0]})") from error
        if not isinstance(data, dict):
            raise SettingsError(f"{path} holds no settings: each line should be `name: value`")
        return cls.from_dict({name: _unescaped(value) for name, value in data.items()})


    @classmethod
    def like(cls, path: str | Path) -> Settings:
        """The settings in the recipe of a picture, video or session; raises ImageError where there is none."""
        from .images import read_recipe

        return cls.of_recipe(read_recipe(path))

    @classmethod
    def of_recipe(cls, recipe: dict[str, Any]) -> Settings:
        """The settings of a recipe, with as many steps as its picture had by then."""
        made = recipe.get("steps_made", 0) - 1  # the start is one of them
        settings = cls.from_dict({"churn": 0.0, **recipe["settings"]})  # there was none before it was a setting
        return settings.replace(steps=made) if made > 0 else settings


NAMES: dict[str, Field] = {spec.name: spec for spec in fields(Settings)}

PRESETS = {
    "draft": {"steps": 40, "cutouts": 8, "churn_decay": 32},
    "good": {"steps": 200, "cutouts": 32, "churn_decay": 160},
    "fine": {"steps": 500, "cutouts": 64, "churn_decay": 400, "ema": 0.9},
    # Crowson's z+quantize notebook, for the models it was made for
    "classic": {"optimizer": "adam", "lr": 0.05, "cutouts": 64, "cut_pow": 1.0, "augment": "none", "start": "random",
                "churn": 0.0, "steps": 500},
}


def table() -> list[tuple[str, str, str, str]]:
    """Rows of (name, default, range, help): what `vqclip settings` and the README show."""
    rows = []
    for spec in fields(Settings):
        default = "x".join(map(str, spec.default)) if isinstance(spec.default, tuple) else str(spec.default)
        rows.append((spec.name, default, _range(spec), spec.metadata["help"]))
    return rows


def _escaped(value: Any) -> Any:
    r"""Text as OmegaConf takes it literally: `${` would be a reference, and an error where it is not closed.

    A next-line character (U+0085) is written as such a reference, as PyYAML reads it back as a space.
    """
    if not isinstance(value, str):
        return value
    as_written = {"${": r"\${", "\x85": "${NEL}"}
    return re.sub(r"(\\*)(\$\{|\x85)", lambda found: 2 * found[1] + as_written[found[2]], value)


def _unescaped(value: Any) -> Any:
    """The inverse of `_escaped`; another `${` that somebody typed into the file stays what it is."""
    if not isinstance(value, str):
        return value
    as_meant = {r"\${": "${", "${NEL}": "\x85"}
    return re.sub(r"(?<!\\)((?:\\\\)*)(\\\$\{|\$\{NEL\})", lambda found: found[1][::2] + as_meant[found[2]], value)


def _range(spec: Field) -> str:
    low, high, choices = (spec.metadata[key] for key in ("low", "high", "choices"))
    if choices:
        return ", ".join(choices)
    return f"{low:.12g} to {high:.12g}" if math.isfinite(low) else ""


def _valid(spec: Field, value: Any) -> Any:
    """The value in the field's own type, or SettingsError with the field, the value and what is allowed."""
    kind = type(spec.default)
    try:
        converted = {str: _text, int: _integer, float: _number, tuple: _size}[kind](value)
    except (ValueError, TypeError, OverflowError):
        wanted = {str: "a text", int: "a whole number", float: "a number", tuple: "a size as 512x384"}[kind]
        shown = f"{spec.name}={value!r:.80}" if value is not None else f"{spec.name} is empty, which"
        raise SettingsError(f"{shown} is not {wanted}{_allowed(spec)}") from None
    numbers = converted if kind is tuple else (converted,) if kind is not str else ()
    low, high, choices = (spec.metadata[key] for key in ("low", "high", "choices"))
    if not all(low <= number <= high for number in numbers) or (choices and converted not in choices):
        raise SettingsError(f"{spec.name}={value!r:.80} is out of range{_allowed(spec)}")
    return converted


def _allowed(spec: Field) -> str:
    shown = _range(spec)
    return f": choose {shown}" if shown else ""


def _text(value: Any) -> str:
    """Text, a path, or a number that YAML took a prompt such as 1984 for; nothing is no text."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, Path, int, float)):
        raise TypeError
    text = str(value)
    if "\0" in text:
        raise ValueError
    text.encode()  # raises a ValueError for halves of characters, which no file can hold
    return text


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    return float(value)


def _integer(value: Any) -> int:
    if isinstance(value, str):
        return int(value)
    if isinstance(value, bool) or int(value) != value:
        raise ValueError
    return int(value)


def _size(value: Any) -> tuple[int, int]:
    """(512, 384), [512, 384], "512x384" or 512 -> (512, 384)."""
    if isinstance(value, str):
        value = value.lower().replace("×", "x").split("x")
    sides = [_integer(side) for side in value] if isinstance(value, (list, tuple)) else [_integer(value)]
    if len(sides) == 1:
        sides *= 2
    width, height = sides
    return width, height
