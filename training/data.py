"""Rendered scenes on disk: one memory-mapped array, made once, the same on every machine."""

from __future__ import annotations

from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .scenes import SIDE, render, scene


def _render(seed: int, held_out: bool) -> np.ndarray:
    return render(scene(seed, held_out))


def rendered(folder: Path, count: int, first: int = 0, processes: int = 1, held_out: bool = False) -> np.ndarray:
    """Scenes `first` to `first + count` as (count, SIDE, SIDE, 3) uint8, from `folder` or painted there now."""
    path = folder / f"scenes-{first}-{count}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".partial")
        pictures = np.lib.format.open_memmap(unfinished, "w+", np.uint8, (count, SIDE, SIDE, 3))
        paint = partial(_render, held_out=held_out)
        with get_context("spawn").Pool(processes) as pool:
            for k, picture in enumerate(pool.imap(paint, range(first, first + count), chunksize=32)):
                pictures[k] = picture
        pictures.flush()
        unfinished.rename(path)
    return np.load(path, mmap_mode="r")


def floats(pictures: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 255
