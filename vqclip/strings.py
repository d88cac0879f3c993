"""The panel's words, in the languages of `strings.yaml`."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from omegaconf import OmegaConf

from .settings import SettingsError


class Words:
    """Looks up what to say: `words("step", step=3, steps=200)`.

    Raises:
        SettingsError: there is no such language; says which there are.
    """

    def __init__(self, language: str = "en"):
        self._table = table()
        if language not in languages():
            raise SettingsError(f"language={language!r} is not known here: choose {', '.join(languages())}")
        self.language = language

    def __call__(self, key: str, **values: object) -> str:
        return self._table[key][self.language].format(**values)


@lru_cache
def table() -> dict[str, dict[str, str]]:
    """Every text by key and language."""
    return OmegaConf.to_container(OmegaConf.load(Path(__file__).with_name("strings.yaml")), resolve=False)


def languages() -> tuple[str, ...]:
    """The languages there are, English first."""
    return tuple(next(iter(table().values())))
