"""Torch files read as data: their tensors by name, mapped from the disk, and nothing in them ever runs.

A torch file is a pickle, and a pickle is a program: loaded the usual way it may call any function of the machine. Here
the only things that such a program can call are a plain dict and a note of where a tensor lies. Names that checkpoints
are known to hold besides (Lightning's callbacks, OmegaConf's nodes, NumPy's scalars) become hollow classes that take
everything and do nothing; any other name (`os.system`) is refused. One reader for all layouts, so that there is no
second way in:

    zip           torch.save since 1.6: NAME/data.pkl and NAME/data/0, 1, ...
    TorchScript   the same beside NAME/code/; OpenAI publishes CLIP so. Its code is looked at, never compiled
    legacy        torch.save before: five pickles, then one storage after the other

`torch.load(weights_only=True)` knows the first and the last, but reads the last wholly into memory and refuses files
with OmegaConf objects or NumPy scalars; `torch.jit.load` compiles what it finds.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

DTYPES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
# What checkpoints hold beside tensors, by package. Nothing of these is ever looked up: hollow classes bear the names.
HARMLESS = {
    "torch", "__torch__", "pytorch_lightning", "lightning", "lightning_fabric", "omegaconf", "taming", "ldm", "numpy",
    "_codecs", "argparse", "pathlib", "collections", "typing", "datetime", "enum", "copyreg",
    "copy_reg", "__main__", "main",
}  # fmt: skip
PLAIN = {"bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "long", "object",
         "range", "set", "slice", "str", "tuple", "unicode"}  # fmt: skip
DAMAGED = "it is damaged, cut short or no checkpoint at all"
MAGIC = 0x1950A86A20F9469CFC6C  # torch's own, the first pickle of a legacy file
LOCAL_HEADER = 30  # bytes of a zip entry's header before its name


class TorchFileError(ValueError):
    """A file that is no torch file, is damaged, or holds no tensors by name."""


@dataclass(frozen=True)
class Stored:
    """A tensor as the file describes it; offset, shape and stride count elements of storage `key`."""

    dtype: torch.dtype
    key: str
    length: int  # of the whole storage, in elements
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read(path: str | Path, skip: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The tensors of a torch file by name, on the CPU, mapped: memory is used only for those that are looked at.

    Of a Lightning checkpoint these are its `state_dict`, of a TorchScript archive its parameters and buffers.

    Args:
        skip: tensors whose names begin with one of these are left out.
    Raises:
        TorchFileError: says what is wrong with the file.
    """
    path = Path(path)
    try:
        named, places = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
        whole = _map(path)
        return {name: _tensor(stored, path, whole, *places[stored.key])
                for name, stored in named.items() if not name.startswith(skip)}  # fmt: skip
    except TorchFileError:
        raise
    except Exception as error:  # a damaged pickle fails wherever its program happens to lead
        raise TorchFileError(DAMAGED) from error


# What a file may say


class Hollow:
    """Stands for every class, function and object that a file names. Keeps its state, to be looked through."""

    state: Any = None

    def __new__(cls, *_, **__):
        return object.__new__(cls)

    def __init__(self, *_, **__):
        pass

    def __call__(self, *_, **__):
        return Hollow()

    def __setstate__(self, state):
        self.state = state

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        pass

    def extend(self, items):
        pass


class _Dict(dict):
    """An OrderedDict in a file; attributes set on it are ignored."""

    def __setstate__(self, state):
        pass


class _Rebuild(Hollow):
    """torch._utils._rebuild_tensor_v2 (storage, offset, shape, stride, ...): notes where the tensor lies."""

    def __call__(self, storage, offset, shape, stride, *_):
        dtype, key, length, start = storage
        return Stored(dtype, key, length, start + offset, tuple(shape), tuple(stride))


class _Parameter(Hollow):
    """torch._utils._rebuild_parameter (tensor, requires_grad, hooks): the tensor."""

    def __call__(self, tensor, *_):
        return tensor


class Unpickler(pickle.Unpickler):
    """Runs a pickle in a world that holds dicts and tensors only."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _Dict
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor")):
            return _Rebuild()
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _Parameter()
        if module in ("torch", "torch.storage", "torch.cuda") and name in DTYPES:
            return DTYPES[name]
        package = module.partition(".")[0]
        if package in HARMLESS or (package in ("builtins", "__builtin__") and name in PLAIN):
            return type(name, (Hollow,), {"__module__": module})
        said = ascii(f"{module}.{name}")[1:-1][:80]
        raise TorchFileError(f"it holds {said}, which may run programs and is never loaded")

    def persistent_load(self, pid: Any) -> tuple[torch.dtype, str, int, int]:
        """("storage", type, key, device, length[, view of a larger one]) -> (dtype, key, length, start)."""
        kind, dtype, key, _, length, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"there is no way to store a {kind!r} of {dtype!r}")
        start = view[0][1] if view and view[0] else 0
        return dtype, str(key), length, start


# Where it lies


def _read_zip(path: Path) -> tuple[dict[str, Stored], dict[str, tuple[int, int]]]:
    """Tensors by name, and of each storage the (offset, size) in bytes."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        names = archive.namelist()
        root = next((name[: -len("data.pkl")] for name in names if name.endswith("/data.pkl")), None)
        if root is None:
            raise TorchFileError("it is a zip without torch's data.pkl: unpack it, and give the file inside")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise TorchFileError("it was written by a big-endian machine")
        with archive.open(f"{root}data.pkl") as data:
            loaded = Unpickler(data).load()
        named = _of_module(loaded, _members(archive, root)) if f"{root}constants.pkl" in names else _named(loaded)
        places = {}
        for key in {stored.key for stored in named.values()}:
            entry = archive.getinfo(f"{root}data/{key}")
            if entry.compress_type != zipfile.ZIP_STORED:
                raise TorchFileError("its tensors are compressed")
            file.seek(entry.header_offset)
            header = file.read(LOCAL_HEADER)
            name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
            places[key] = entry.header_offset + LOCAL_HEADER + name + extra, entry.file_size
    return named, places


def _read_legacy(path: Path) -> tuple[dict[str, Stored], dict[str, tuple[int, int]]]:
    with open(path, "rb") as file:
        if Unpickler(file).load() != MAGIC:
            raise TorchFileError(DAMAGED)
        Unpickler(file).load()  # the protocol
        Unpickler(file).load()  # byte order and sizes, of the writer's C types
        unpickler = _Listing(file)
        named = _named(unpickler.load())
        places = {}
        for key in map(str, Unpickler(file).load()):
            length = int.from_bytes(file.read(8), "little")
            places[key] = file.tell(), length * unpickler.itemsizes[key]
            if sum(places[key]) > path.stat().st_size:  # also where nobody reads, as the optimiser's
                raise TorchFileError(DAMAGED)
            file.seek(places[key][1], 1)
    return named, places


class _Listing(Unpickler):
    """Remembers every storage's item size: in a legacy file it tells where the next one begins."""

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.itemsizes: dict[str, int] = {}

    def persistent_load(self, pid: Any) -> tuple[torch.dtype, str, int, int]:
        storage = super().persistent_load(pid)
        self.itemsizes[storage[1]] = storage[0].itemsize
        return storage


def _named(loaded: Any) -> dict[str, Stored]:
    """The tensors of a state dict, or of the one inside a Lightning checkpoint."""
    if not isinstance(loaded, dict):
        raise TorchFileError("it holds no tensors by name")
    inside = loaded.get("state_dict", loaded)
    return {str(name): tensor for name, tensor in inside.items() if isinstance(tensor, Stored)}


# TorchScript


def _members(archive: zipfile.ZipFile, root: str) -> dict[str, set[str]]:
    """Which attributes of each class are parameters or buffers, as the archive's code declares them.

    Other tensors, such as CLIP's attention masks, are no part of a state dict.
    """
    declared = r"^class (\w+)\(Module\):\n  __parameters__ = \[(.*?)\]\n  __buffers__ = \[(.*?)\]"
    members = {}
    for file in archive.namelist():
        if file.startswith(f"{root}code/") and file.endswith(".py"):
            module = file[len(f"{root}code/") : -len(".py")].replace("/", ".")
            for name, parameters, buffers in re.findall(declared, archive.read(file).decode(), re.MULTILINE):
                members[f"{module}.{name}"] = set(re.findall(r'"([^"]+)"', parameters + buffers))
    return members


def _of_module(module: Any, members: dict[str, set[str]], prefix: str = "") -> dict[str, Stored]:
    """A module's parameters and buffers, and those of the modules within, by dotted name."""
    found: dict[str, Stored] = {}
    mine = members.get(f"{type(module).__module__}.{type(module).__name__}")
    for name, value in module.state.items():
        if isinstance(value, Stored) and (mine is None or name in mine):
            found[prefix + name] = value
        elif isinstance(value, Hollow) and isinstance(value.state, dict):
            found |= _of_module(value, members, f"{prefix}{name}.")
    return found


# Bytes to tensors


def _map(path: Path) -> Tensor:
    """The whole file as bytes, copied only where written to."""
    size = path.stat().st_size
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage.from_file(str(path), False, size))


def _tensor(stored: Stored, path: Path, whole: Tensor, at: int, size: int) -> Tensor:
    """A view of the mapped file; where the file is not aligned, as pre-zip ones are not, what is needed is read."""
    itemsize = stored.dtype.itemsize
    steps = [(side - 1) * stride for side, stride in zip(stored.shape, stored.stride, strict=True)]
    needed = sum(steps) + 1 if math.prod(stored.shape) else 0  # elements from the first to the last
    if min(stored.offset, at, *stored.shape, *stored.stride, 0) < 0 or stored.offset + needed > stored.length:
        raise TorchFileError("a tensor of it lies outside of its storage")
    if size != stored.length * itemsize or at + size > len(whole):
        raise TorchFileError(DAMAGED)
    start = at + stored.offset * itemsize
    if not needed:
        part = torch.empty(0, dtype=torch.uint8)  # an empty slice has neither the stride nor the offset that view wants
    elif start % itemsize:
        part = torch.from_numpy(np.fromfile(path, np.uint8, needed * itemsize, offset=start))
    else:
        part = whole[start : start + needed * itemsize]
    part = part.view(stored.dtype)
    return part.as_strided(stored.shape, stored.stride, part.storage_offset())
