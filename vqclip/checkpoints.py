"""Checkpoint files: where they are, what is in them, whether they are what they should be.

A checkpoint known by name is fetched once, converted once to safetensors, and only that is kept: of a gigabyte with
optimiser states and discriminators, 300 MB. Nothing here executes what a file contains: safetensors are plain data, and
torch files are read by `torchfile`, in which only tensors and plain containers come to life.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from glob import escape
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import catalogue, torchfile
from .catalogue import KINDS, SUFFIXES, CheckpointError, Model
from .download import download, layout, offline, part_of
from .files import atomic, atomic_path, sha256

__all__ = ["CheckpointError", "blank", "check", "convert", "fetch", "find", "kind_of", "load_strictly", "read_config",
           "read_weights", "sha256"]  # fmt: skip

EMBEDDED = Path(__file__).parent / "embedded"
LOCK = "checkpoints.lock"  # beside the checkpoints: what was fetched from where, and what it hashed to


def find(source: str | Path, root: str | Path, kind: str) -> Path:
    """The weights file that `source` means; one that the catalogue knows is fetched into `root` if it is not there.

    Args:
        source: "embedded", a path, the name of a file in the folder `root`, or one of the catalogue.
        kind: "vqgan" or "clip".
    Raises:
        CheckpointError: there is no such file, and none can be fetched; says what was tried.
    """
    if str(source) == "embedded":
        return EMBEDDED / f"{kind}.safetensors"
    name = str(source).replace("/", "-")  # ViT-B/32 is kept as ViT-B-32
    tried = [Path(source), *(Path(root) / f"{name}{suffix}" for suffix in SUFFIXES)]
    for path in tried:
        if path.is_file():
            return path
    model = catalogue.find(source, root)
    if model is None:
        names = [model.name for model in catalogue.models(root) if model.kind == kind]
        near = difflib.get_close_matches(str(source), names, n=1)
        raise CheckpointError(
            f"no checkpoint {str(source)!r}: there is no such file, none of that name in {root}, and the catalogue has "
            f"{f'{near[0]!r}, did you mean that?' if near else 'none: `vqclip checkpoints` lists what it has'}"
        )
    if model.kind != kind:
        raise CheckpointError(f"{model.name} is a {KINDS[model.kind]}, no {KINDS[kind]}: give it as {model.kind}=")
    return model.here(root) or fetch(model.name, root)


def fetch(name: str, root: str | Path = ".", keep: bool = False) -> Path:
    """Fetch a checkpoint of the catalogue into the folder `root` and convert it: the path of its safetensors.

    It is verified by size, first bytes and SHA-256; where no hash is public, by fitting its architecture, and the hash
    of this first time is written into `checkpoints.lock`, to which every later download is held. Does nothing when the
    converted file is there already.

    Args:
        keep: keep the file as it was fetched, too.
    Raises:
        CheckpointError: the name is unknown, fetching is forbidden or fails, or there is no room.
    """
    model, folder = catalogue.find(name, root), Path(root)
    if model is None:
        raise CheckpointError(f"the catalogue has no {name!r}: `vqclip checkpoints` lists what it has")
    kept = folder / f"{model.stem}.safetensors"
    target = kept.with_suffix(".ckpt" if model.kind == "vqgan" else ".pt")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / f".{model.stem}.lock", model):
            if not kept.is_file():
                raw = target if target.is_file() else _fetch(model, target)
                convert(raw, kept, model.kind, model.config)
                if keep:
                    raw.replace(target)
                for part in folder.glob(f"{escape(target.name)}*.part"):  # of other mirrors, too
                    part.unlink()
    except OSError as error:
        raise CheckpointError(f"{model.name} cannot be written to {folder} ({error.strerror or error}): what was "
                              "fetched is kept; make room and try again") from error  # fmt: skip
    return kept


def convert(path: str | Path, target: str | Path, kind: str, config: dict[str, Any] | None = None) -> Path:
    """Write what painting needs of a checkpoint as safetensors: strictly checked first, mapped, so hardly in memory.

    Args:
        path: any checkpoint that can be loaded.
        target: the .safetensors to write, whole or not at all.
        kind: "vqgan" or "clip".
        config: a painter's architecture; None reads it as `load_vqgan` does. It goes into the file's metadata.
    Raises:
        CheckpointError: the checkpoint does not hold this kind of model, or there is no room.
    """
    config, weights = _reader(kind)(Path(path), config)
    # One entry only: safetensors writes several in any order, and a session knows its checkpoints by their hash.
    metadata = {"config": json.dumps(config, sort_keys=True)} if kind == "vqgan" else None
    try:
        write_weights(weights, Path(target), metadata)
    except (SafetensorError, OSError) as error:  # a full disk is either
        raise CheckpointError(f"{target} cannot be written ({str(error).splitlines()[0]}): make room and try "
                              "again") from error  # fmt: skip
    return Path(target)


def write_weights(weights: dict[str, Tensor], target: Path, metadata: dict[str, str] | None = None) -> None:
    """Write weights as safetensors, whole or not at all.

    Whoever may read the user's other files may read them: a folder of checkpoints is often shared.

    Raises:
        SafetensorError, OSError: there is no room, say.
    """
    with atomic_path(target) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file({name: weight.contiguous() for name, weight in weights.items()}, temporary, metadata)
        temporary.chmod(mode)  # safetensors shuts its files to everyone else


def kind_of(path: str | Path) -> str:
    """What a checkpoint holds: "clip" if there is a text tower in it, else "vqgan"."""
    return "clip" if "token_embedding.weight" in read_weights(Path(path)) else "vqgan"


def _fetch(model: Model, target: Path) -> Path:
    """The file as published, verified and noted, still under the name in which it was gathered."""
    if variable := offline():
        raise CheckpointError(f"{model.name} is not in {target.parent}, and {variable} forbids fetching it: unset "
                              f"that, or put the file there as {target.name}")  # fmt: skip
    known = model.sha256 or _read_lock(target.parent).get(model.name, {}).get("sha256")
    part = part_of(target, known, model.mirrors[0])
    short = -catalogue.room(model, target.parent, part.stat().st_size if part.exists() else 0)
    if short > 0:
        raise CheckpointError(
            f"{model.name} needs {catalogue.size(model.bytes + model.kept)} in {target.parent} while it is fetched and "
            f"converted, {catalogue.size(short)} more than there is: make room, or choose another workspace"
        )
    reader = _reader(model.kind)
    try:
        url, digest, part = download(model.mirrors, target, size=model.bytes, about=model.about, sha256=known,
                                     check=lambda part: reader(part, model.config))  # fmt: skip
    except CheckpointError as error:
        if not known or model.sha256:
            raise
        raise CheckpointError(f"{error}. Its right SHA-256 is taken from the first time it was fetched: to trust "
                              f"another file, take {model.name} out of {target.parent / LOCK}") from error  # fmt: skip
    with FileLock(target.parent / f".{LOCK}"):
        lock = _read_lock(target.parent)
        lock[model.name] = {"sha256": digest, "bytes": part.stat().st_size, "from": url,
                            "on": datetime.now().astimezone().isoformat(timespec="seconds")}  # fmt: skip
        with atomic(target.parent / LOCK, "w") as file:
            json.dump(lock, file, indent=1)
    return part


def _read_lock(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        return json.loads((folder / LOCK).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CheckpointError(f"{folder / LOCK} is damaged ({error}): repair it, or delete it to trust what is fetched "
                              "next") from error  # fmt: skip


@contextmanager
def _alone(path: Path, model: Model) -> Iterator[None]:
    """A lock, so that two notebooks do not fetch one file twice; says so when it has to wait."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"another program is fetching {model.name}: waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _reader(kind: str) -> Callable[[Path, dict | None], tuple[dict, dict[str, Tensor]]]:
    """What reads and checks a kind; imported late, because those modules stand on this one."""
    if kind == "vqgan":
        from .vqgan import read_vqgan as reader
    else:
        from .perceptor import read_clip as reader
    return reader


def read_config(path: Path) -> dict[str, Any]:
    """The architecture of a painter: from the .yaml beside it, its own metadata, or the catalogue's entry of its name.

    Returns:
        The arguments of `VQGAN`.
    """
    beside = path.with_suffix(".yaml")
    if beside.is_file():
        return _architecture(beside)
    if path.suffix == ".safetensors" and "config" in (metadata := _metadata(path)):
        return json.loads(metadata["config"])
    if model := catalogue.find(path.stem, path.parent):
        return model.config
    raise CheckpointError(f"{path.name} needs its configuration: put the checkpoint's .yaml beside it as {beside.name}")


def _architecture(path: Path) -> dict[str, Any]:
    """The arguments of `VQGAN` in a taming-transformers .yaml; of a Net2NetTransformer's, those of its first stage."""
    wanted = "ddconfig", "n_embed", "embed_dim"
    try:
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        model = config.get("model", config)
        model = model["params"].get("first_stage_config", model)
        found = {key: model["params"][key] for key in (*wanted, "patches") if key in model["params"]}
        gumbel = "Gumbel" in model.get("target", "")
    except Exception as error:  # of what is not YAML, or YAML about something else
        raise CheckpointError(f"{path} is not the configuration of a VQGAN: fetch it again") from error
    if missing := ", ".join(key for key in wanted if key not in found):
        raise CheckpointError(f"{path} is not the configuration of a VQGAN (no {missing}): fetch it again")
    return {**found, "gumbel": gumbel}


def read_weights(path: Path, skip: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU and mapped from the disk; its first bytes tell what it is.

    Lightning checkpoints give their `state_dict`, TorchScript archives (OpenAI's CLIP files) their parameters.

    Args:
        skip: tensors whose names begin with one of these are left out.
    Raises:
        CheckpointError: the file is damaged, cut short, no checkpoint at all, or holds more than data.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(64)
        if head.lstrip().startswith(b"<"):
            raise torchfile.TorchFileError("it is a web page")
        if layout(head) == "safetensors":
            return {name: weight for name, weight in load_file(path).items() if not name.startswith(skip)}
        return torchfile.read(path, skip)
    except (SafetensorError, torchfile.TorchFileError, OSError) as error:
        raise _unreadable(path, error) from error


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = str(error) if isinstance(error, torchfile.TorchFileError) else torchfile.DAMAGED
    if isinstance(error, PermissionError):
        reason = "it may not be opened"
    return CheckpointError(f"{path} cannot be read as a checkpoint, {reason}: fetch it again, perhaps from elsewhere")


@contextmanager
def blank() -> Iterator[None]:
    """Networks that are made in here have shapes and no values, so they cost nothing: on torch's meta device."""
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    """First values are neither drawn nor computed: to tell their shapes torch would load its compiler, which takes
    longer than all else before the first picture. Other tensors' shapes and formats it leaves to torch."""

    # What OpenAI's CLIP does to what it drew, always by a number, so that the shape stays.
    COMPUTED = {torch.Tensor.mul, torch.Tensor.div, torch.Tensor.triu_}

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init" or func in self.COMPUTED:
            return args[0] if args else kwargs["tensor"]
        return (torch.empty if func is torch.randn else func)(*args, **(kwargs or {}))


def check(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Every name and shape must be as in `module`, which may be on the meta device.

    Raises:
        CheckpointError: names the first key that is missing, surplus or of another shape.
    """
    wanted = module.state_dict()
    wrong = {
        "missing": wanted.keys() - weights.keys(),
        "surplus": weights.keys() - wanted.keys(),
        "of another shape": {key for key in wanted.keys() & weights.keys() if wanted[key].shape != weights[key].shape},
    }
    for what, keys in wrong.items():
        if keys:
            raise CheckpointError(
                f"{path.name} does not fit its configuration: {len(keys)} tensors are {what}, the first is "
                f"{min(keys)!r}. Check that the .yaml belongs to this file"
            )


def load_strictly(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Give `weights` to a module made on the meta device: nothing stays random. Raises CheckpointError as `check`."""
    check(module, weights, path)
    module.load_state_dict(weights, strict=True, assign=True)
