"""The catalogue: which checkpoints vqclip knows by name, and which of them are here.

    model = catalogue.find("ViT-B/32")         # also vit_b_32, clip_vit_b_32, ViT-B-32
    model.bytes, model.licence, model.mirrors
    print(catalogue.checkpoint_table("workspace/checkpoints"))

The data is `catalogue.yaml` beside this file; `catalogue.yaml` in the folder of checkpoints adds to it.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

SHIPPED = Path(__file__).with_suffix(".yaml")
SUFFIXES = ".safetensors", ".ckpt", ".pt", ".pth"  # of weights files, the converted ones first
KINDS = {"vqgan": "painter", "clip": "judge"}
MARGIN = 50_000_000  # bytes that shall stay free on the disk, for sessions


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, cannot be fetched, or is of another kind than wanted."""


@dataclass(frozen=True)
class Model:
    """One entry of the catalogue.

    Attributes:
        name: what is typed.
        kind: "vqgan" or "clip".
        title, good_at, licence: for people.
        bytes: of the file that is fetched; exact unless `about`.
        kept: bytes of what stays after conversion, about.
        sha256: of the file that is fetched, in hexadecimal; None where none is public.
        config: a painter's architecture, the arguments of `VQGAN`; a judge's {"size": S}.
        mirrors: addresses, in the order in which they are tried.
        aliases: other names.
    """

    name: str
    kind: str
    title: str
    bytes: int
    kept: int
    mirrors: tuple[str, ...]
    config: dict[str, Any]
    sha256: str | None = None
    about: bool = False
    good_at: str = ""
    licence: str = "unknown"
    aliases: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        """The name as a file name without suffix, as OpenAI has it: ViT-L/14@336px -> ViT-L-14-336px."""
        return re.sub(r"[/@\\:]", "-", self.name)

    def here(self, root: str | Path) -> Path | None:
        """Its weights file in a folder, under any of its names; the converted one first."""
        if not Path(root).is_dir():
            return None
        keys = {_key(name) for name in (self.name, self.stem, *self.aliases)}
        mine = [path for path in Path(root).iterdir() if path.suffix in SUFFIXES and _key(path.stem) in keys]
        return min(mine, key=lambda path: (SUFFIXES.index(path.suffix), path.name), default=None)


def models(root: str | Path | None = None) -> tuple[Model, ...]:
    """All models: those of a `catalogue.yaml` in `root`, then the shipped ones of other names.

    Raises:
        CheckpointError: the folder's catalogue is not one.
    """
    path = Path(root) / SHIPPED.name if root is not None else None
    own = _read(path) if path and path.is_file() else ()
    names = {model.name for model in own}
    return (*own, *(model for model in _shipped() if model.name not in names))


def find(name: str | Path, root: str | Path | None = None) -> Model | None:
    """The model of that name or alias, or None."""
    key = _key(str(name))
    for model in models(root):
        if key in map(_key, (model.name, *model.aliases)):
            return model
    return None


def room(model: Model, root: str | Path, begun: int = 0) -> int:
    """How many bytes are free in `root` beyond what fetching and converting needs; below 0, it does not fit.

    Args:
        begun: bytes that are there already.
    """
    folder = Path(root).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free - (model.bytes - begun + model.kept + MARGIN)


def checkpoint_table(root: str | Path) -> str:
    """What there is, as text: size of the download and of what is kept, whether it is here or has room, licence."""
    licences: dict[str, int] = {}
    lines = []
    for kind, who in KINDS.items():
        lines.append(f"{who + 's':<22}{'fetch':>9}{'keep':>9}   ")
        for model in (model for model in models(root) if model.kind == kind):
            note = licences.setdefault(model.licence, len(licences) + 1)
            fetch = ("~" if model.about else "") + size(model.bytes)
            lines.append(f"{model.name:<22}{fetch:>9}{size(model.kept):>9}   {_state(model, root)}")
            lines.append(f"    {model.title}: {model.good_at} [{note}]")  # on its own: a notebook is 100 letters wide
        lines.append("")
    lines += [f"[{note}] licence: {text}" for text, note in licences.items()]
    lines += ["", "`embedded`, which comes with vqclip, and any file of your own, by its path, work as well; where",
              "open_clip is installed, so do its judges, as open_clip:ViT-B-32/laion2b_s34b_b79k."]  # fmt: skip
    return "\n".join(lines)


def _state(model: Model, root: str | Path) -> str:
    path, short = model.here(root), -room(model, root)
    if path:
        return "here" if path.suffix == ".safetensors" else f"here, {path.suffix}"
    return f"no room, {size(short)} short" if short > 0 else "can be fetched"


def size(count: int) -> str:
    """Bytes for people: 980 MB, 4.3 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _key(name: str) -> str:
    """What makes two names the same."""
    return re.sub(r"^(vqgan|clip)(?=.)|[^a-z0-9]", "", re.sub(r"[^a-z0-9]", "", name.lower()))


@lru_cache
def _shipped() -> tuple[Model, ...]:
    return _read(SHIPPED)


def _read(path: Path) -> tuple[Model, ...]:
    required = {field.name for field in fields(Model) if field.default is MISSING}
    try:
        rows = OmegaConf.to_container(OmegaConf.load(path))["models"]
        found = []
        for row in rows:
            missing, unknown = sorted(required - row.keys()), sorted(row.keys() - {spec.name for spec in fields(Model)})
            if missing or unknown or row["kind"] not in KINDS:
                raise ValueError(f"{row.get('name', 'a model')!r} has wrong fields: {missing + unknown or row['kind']}")
            found.append(Model(**row | {name: tuple(row.get(name, ())) for name in ("mirrors", "aliases")}))
        return tuple(found)
    except Exception as error:  # PyYAML, OmegaConf and our own, each with another class
        raise CheckpointError(f"{path} is no catalogue ({str(error).splitlines()[0]}): see the one that is shipped, "
                              f"{SHIPPED}") from error  # fmt: skip
