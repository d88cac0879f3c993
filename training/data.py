"""Rendered scenes on disk: memory-mapped arrays, made once, the same on every machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .scenes import Scene, render_and_things, scene


def _made(number: int, of: Callable[[int], Scene]) -> tuple[np.ndarray, np.ndarray]:
    return render_and_things(of(number))


def painters(processes: int) -> Pool:
    """Processes that paint scenes. Copies of this one where the system can: to begin with nothing takes them longer."""
    return get_context("fork" if "fork" in get_all_start_methods() else "spawn").Pool(processes)


def rendered(folder: Path, count: int, first: int = 0, processes: int = 1,
             of: Callable[[int], Scene] = scene) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Scenes `first` to `first + count`, from `folder` or painted there now.

    Args:
        of: gives the scene of a number: `scenes.scene`, or `kin.kin`.
    Returns:
        (count, SIDE, SIDE, 3) uint8, and where their things are: (count, SIDE, SIDE) bool.
    """
    paths = [folder / f"{of.__name__}-{what}-{first}-{count}.npy" for what in ("pictures", "things")]
    if not all(path.exists() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        like = _made(first, of)
        unfinished = [path.with_suffix(".partial") for path in paths]
        both = [np.lib.format.open_memmap(path, "w+", one.dtype, (count, *one.shape))
                for path, one in zip(unfinished, like, strict=True)]  # fmt: skip
        with painters(processes) as pool:
            each = pool.imap(partial(_made, of=of), range(first, first + count), chunksize=32)
            for k, made in enumerate(each):
                for array, one in zip(both, made, strict=True):
                    array[k] = one
        for array, before, path in zip(both, unfinished, paths, strict=True):
            array.flush()
            before.rename(path)
    return tuple(np.load(path, mmap_mode="c") for path in paths)  # "c": torch wants arrays that may be written


def floats(pictures: np.ndarray | Tensor) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) in [0, 1], where they are."""
    return torch.as_tensor(pictures).permute(0, 3, 1, 2).float() / 255
