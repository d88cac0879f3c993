"""Rendered scenes on disk: one memory-mapped array, made once, the same on every machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .scenes import Scene, render, scene


def _made(number: int, of: Callable[[int], Scene], what: Callable[[Scene], np.ndarray]) -> np.ndarray:
    return what(of(number))


def rendered(folder: Path, count: int, first: int = 0, processes: int = 1, of: Callable[[int], Scene] = scene,
             what: Callable[[Scene], np.ndarray] = render) -> np.ndarray:  # fmt: skip
    """Scenes `first` to `first + count` as (count, SIDE, SIDE, 3) uint8, from `folder` or painted there now.

    Args:
        of: gives the scene of a number: `scenes.scene`, or `kin.kin`.
        what: `render`, or `things` for where their things are, (count, SIDE, SIDE) bool.
    """
    kind = "" if of is scene else f"{of.__name__}-"
    path = folder / f"{kind}{'scenes' if what is render else what.__name__}-{first}-{count}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".partial")
        like = what(of(first))
        os.environ["OMP_NUM_THREADS"] = "1"  # the processes begin with it: NumPy's own threads would be in their way
        made = np.lib.format.open_memmap(unfinished, "w+", like.dtype, (count, *like.shape))
        with get_context("spawn").Pool(processes) as pool:
            each = pool.imap(partial(_made, of=of, what=what), range(first, first + count), chunksize=32)
            for k, one in enumerate(each):
                made[k] = one
        made.flush()
        unfinished.rename(path)
    return np.load(path, mmap_mode="r")


def floats(pictures: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 255
