"""Writing a file so that it is there whole or not at all, and telling files apart."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from uuid import uuid4


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Lend a temporary name beside `path`, for programs that write to a name; it becomes `path` at the end.

    The name keeps the suffix, because ffmpeg and Pillow choose the format by it, and begins with a dot so
    that no listing of pictures shows a half-written one. It lies in the same folder (created if missing),
    because `os.replace` is atomic only within one disk. After an error, an interrupt included, the temporary
    file is gone and what was at `path` before is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid4().hex[:8]}.part{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())  # else a power cut may leave the new name with no bytes behind it
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO]:
    """Open `path` for writing ("wb", or "w": UTF-8 text); it changes only when the block ends without error.

    Example: `with atomic("settings.yaml", "w") as file: file.write(text)`
    """
    if mode not in ("wb", "w"):
        raise ValueError(f'atomic writes whole files, mode "wb" or "w", not {mode!r}')
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    with atomic_path(path) as temporary, open(temporary, mode, **text) as file:
        yield file


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
