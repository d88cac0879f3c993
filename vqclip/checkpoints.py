"""Checkpoint files: where they are, what is in them, whether they are what they should be.

Nothing here executes what a file contains: safetensors are plain data, and torch files are read with
`weights_only=True`, in which only tensors and plain containers come to life.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor, nn

EMBEDDED = Path(__file__).parent / "embedded"
SUFFIXES = ".safetensors", ".ckpt", ".pt"
# Lightning's checkpoints of 2020 use this class itself as a key of a dict; a hollow one of that name will do.
CALLBACK = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning.callbacks.model_checkpoint"})


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another kind than wanted."""


def find(source: str | Path, root: str | Path, embedded: str) -> Path:
    """The weights file that `source` means.

    Args:
        source: "embedded", a path, or a name looked for in the folder `root`.
        embedded: the stem of the shipped file that "embedded" stands for.
    Raises:
        CheckpointError: there is no such file; says where it was looked for.
    """
    if str(source) == "embedded":
        return EMBEDDED / f"{embedded}.safetensors"
    name = str(source).replace("/", "-")  # ViT-B/32 is kept as ViT-B-32.pt
    tried = [Path(source), *(Path(root) / f"{name}{suffix}" for suffix in SUFFIXES)]
    for path in tried:
        if path.is_file():
            return path
    raise CheckpointError(
        f"no checkpoint {str(source)!r}: looked for {', '.join(map(str, tried))}. "
        f"Put the file there, give its path, or use 'embedded'"
    )


def read_config(path: Path) -> dict:
    """The `model:` node of the YAML file beside a checkpoint, as plain dicts and lists.

    Raises:
        CheckpointError: there is none, or it does not describe a VQGAN.
    """
    beside = path.with_suffix(".yaml")
    if not beside.is_file():
        raise CheckpointError(
            f"{path.name} needs its configuration: put the checkpoint's .yaml beside it as {beside.name}"
        )
    try:
        config = OmegaConf.to_container(OmegaConf.load(beside), resolve=True)
        model = config.get("model", config)
        params = model["params"].get("first_stage_config", model)["params"]  # a Net2NetTransformer's, or the model's
        missing = ", ".join(key for key in ("ddconfig", "n_embed", "embed_dim") if key not in params)
    except Exception as error:  # of what is not YAML, or YAML about something else
        raise CheckpointError(f"{beside} is not the configuration of a VQGAN: fetch it again") from error
    if missing:
        raise CheckpointError(f"{beside} is not the configuration of a VQGAN (no {missing}): fetch it again")
    return model


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or torch file, by name, on the CPU.

    Lightning checkpoints give their `state_dict`, TorchScript archives (OpenAI's CLIP files) their parameters.

    Raises:
        CheckpointError: the file is damaged, cut short, no checkpoint at all, or holds more than data.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if _is_torchscript(path):
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
        with torch.serialization.safe_globals([CALLBACK]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        weights = loaded.get("state_dict", loaded)
        return {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    except Exception as error:  # readers raise whatever they trip over in a damaged file
        raise CheckpointError(f"{path} cannot be read as a checkpoint, {_reason(path, error)}: fetch it again, perhaps "
                              "from elsewhere") from error  # fmt: skip


def _reason(path: Path, error: Exception) -> str:
    """Why, in our words: torch's would have people switch off what protects them."""
    if isinstance(error, PermissionError):
        return "it may not be opened"
    with open(path, "rb") as file:
        if file.read(64).lstrip().startswith(b"<"):
            return "it is a web page"
    foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
    if foreign:
        return f"it holds {foreign[1]}, which may run programs and is never loaded"
    return "it is damaged, cut short or no checkpoint at all"


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def load_strictly(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Give `weights` to a module made on the meta device: every name and shape must fit, nothing stays random.

    Raises:
        CheckpointError: names the first keys that are missing, surplus or of another shape.
    """
    wanted = module.state_dict()
    wrong = {
        "missing": sorted(wanted.keys() - weights.keys()),
        "surplus": sorted(weights.keys() - wanted.keys()),
        "of another shape": sorted(
            key for key in wanted.keys() & weights.keys() if wanted[key].shape != weights[key].shape
        ),
    }
    for what, keys in wrong.items():
        if keys:
            raise CheckpointError(
                f"{path.name} does not fit its configuration: {len(keys)} tensors are {what}, the first is "
                f"{keys[0]!r}. Check that the .yaml belongs to this file"
            )
    module.load_state_dict(weights, strict=True, assign=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
