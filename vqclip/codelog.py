"""The codes of every step of a run, in one file that only grows.

A frame is a grid of codes: 2 KB at 512x512 where its picture has 786 KB. So every step is kept, and the video is made
afterwards, from any span, at any frame rate. The file is a short header and then records of one size, each with a
checksum; what a crash left of the last one is recognised and dropped.
"""

from __future__ import annotations

import errno
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np

MAGIC = b"vqclip codes 1\n\0"
HEADER = struct.Struct("<16sIIIII")  # magic, h, w, K, bytes per code, crc32 of all before
FRAME = struct.Struct("<I")  # before a record's codes: its step; after them: the crc32 of both


class CodesError(ValueError):
    """A file of codes that is not one, or is damaged."""


class CodeLog:
    """The codes of steps 0, 1, 2, ... of one run: `append` to it, take its `len`, `read` any span of it.

    Args:
        path: of the file, which must exist; see `create`.
    Raises:
        CodesError: it holds something else.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                header = file.read(HEADER.size)
            magic, self.h, self.w, self.k, width, checksum = HEADER.unpack(header)
        except (OSError, struct.error) as error:
            raise CodesError(f"{self.path} cannot be read: no step of this session is left") from error
        if magic != MAGIC or checksum != zlib.crc32(header[: -FRAME.size]):
            raise CodesError(f"{self.path} is not a file of codes: it is damaged or belongs to another program")
        self.dtype = np.dtype(f"<u{width}")
        self.record = 2 * FRAME.size + self.h * self.w * width  # bytes
        if (self.path.stat().st_size - HEADER.size) % self.record:  # not cut off here: it may be being written
            warnings.warn(f"the last step in {self.path.parent.name} was not written to its end; it is dropped",
                          stacklevel=2)  # fmt: skip

    @classmethod
    def create(cls, path: str | Path, h: int, w: int, k: int) -> CodeLog:
        """A new, empty file for grids of h x w codes below k. Raises FileExistsError rather than overwrite."""
        header = HEADER.pack(MAGIC, h, w, k, 2 if k <= 1 << 16 else 4, 0)[: -FRAME.size]
        with open(path, "xb") as file:
            file.write(header + FRAME.pack(zlib.crc32(header)))
        return cls(path)

    def __len__(self) -> int:
        """How many whole steps are there."""
        return (self.path.stat().st_size - HEADER.size) // self.record

    def append(self, step: int, codes: np.ndarray) -> None:
        """Add the codes (h, w) of `step`, which must be the next one; in one write, with nothing kept back."""
        if step != len(self):
            raise CodesError(f"step {step} cannot follow {len(self)} steps in {self.path}")
        if codes.shape != (self.h, self.w):
            raise CodesError(f"codes of {codes.shape} do not fit into {self.path}, which holds {(self.h, self.w)}")
        body = FRAME.pack(step) + np.ascontiguousarray(codes, self.dtype).tobytes()
        record = body + FRAME.pack(zlib.crc32(body))
        with open(self.path, "rb+", buffering=0) as file:
            file.seek(HEADER.size + step * self.record)  # over what a crash left of a record, if there is any
            if file.write(record) != len(record):  # the rest of it did not fit
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def read(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """The codes of steps `first` to `last`, both included: (T, h, w) int64.

        Raises:
            CodesError: they are not there, or one is damaged; says which, and how to go around it.
        """
        made = len(self)
        last = made - 1 if last is None else last
        if not 0 <= first <= last < made:
            there = f"has 0 to {made - 1}" if made else "has no steps yet"
            raise CodesError(f"steps {first} to {last} are not there: the session {there}")
        count = last - first + 1
        with open(self.path, "rb") as file:
            file.seek(HEADER.size + first * self.record)
            raw = np.frombuffer(file.read(count * self.record), np.uint8).reshape(count, self.record)
        for step, record in enumerate(raw, first):
            body, tail = record[: -FRAME.size].tobytes(), record[-FRAME.size :].tobytes()
            if FRAME.unpack(tail)[0] != zlib.crc32(body) or FRAME.unpack_from(body)[0] != step:
                around = [f"last={step - 1}"] * (step > 0) + [f"first={step + 1}"] * (step < made - 1)
                use = f"use {' or '.join(around)} to leave it out" if around else "there is no other"
                raise CodesError(f"step {step} in {self.path} is damaged: {use}")
        codes = raw[:, FRAME.size : -FRAME.size].tobytes()
        return np.frombuffer(codes, self.dtype).reshape(count, self.h, self.w).astype(np.int64)

    def truncate(self, steps: int) -> None:
        """Forget all but the first so many steps."""
        os.truncate(self.path, HEADER.size + min(steps, len(self)) * self.record)

    def sync(self) -> None:
        """Wait until what was appended is on the disk itself."""
        with open(self.path, "rb+") as file:
            os.fsync(file.fileno())
