"""Rendered scenes on disk: one memory-mapped array, made once, the same on every machine."""

from __future__ import annotations

from multiprocessing import get_context
from pathlib import Path

import numpy as np

from .scenes import SIDE, render, scene


def _render(seed: int) -> np.ndarray:
    return render(scene(seed))


def rendered(folder: Path, count: int, first: int = 0, processes: int = 1) -> np.ndarray:
    """Scenes `first` to `first + count` as (count, SIDE, SIDE, 3) uint8, from `folder` or painted there now."""
    path = folder / f"scenes-{first}-{count}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        pictures = np.lib.format.open_memmap(partial, "w+", np.uint8, (count, SIDE, SIDE, 3))
        with get_context("spawn").Pool(processes) as pool:
            for k, picture in enumerate(pool.imap(_render, range(first, first + count), chunksize=32)):
                pictures[k] = picture
        pictures.flush()
        partial.rename(path)
    return np.load(path, mmap_mode="r")
