"""Fetching files of gigabytes from mirrors that may be gone, slow, cut short, or send something else.

Bytes go into a `.part` file that survives whatever happens; the next try, here or in another program, goes on where it
ends. A file counts only once its size, its first bytes and its SHA-256 are right; a mirror that fails is left for the
next one. `requests` does the talking (redirects, proxies from the environment, chunks, timeouts). Its resumption is
ours because no library has all of it: pooch verifies but begins anew after every break and knows one address a file;
huggingface_hub resumes, but from its own hub alone.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from pathlib import Path
from urllib.parse import urlsplit

import requests
from tqdm.auto import tqdm

from . import __version__
from .catalogue import CheckpointError
from .files import sha256

BLOCK = 1 << 13  # bytes written at once: what a kill or a break may cost
TIMEOUT = 10, 60  # seconds to connect, and between two pieces of data
PATIENCE = 5  # attempts in a row that bring nothing new before a mirror that has given something is given up,
FIRST_PATIENCE = 2  # and one that never has
PAUSE = 1.0  # seconds before the next attempt, doubled each time
ABOUT = 0.1  # by how much a size that is only known approximately may be off


Watcher = Callable[[int, int], object]
_watcher: ContextVar[Watcher] = ContextVar("watcher", default=lambda done, whole: None)


class MirrorError(Exception):
    """Why a mirror is given up."""


@contextmanager
def watched(by: Watcher) -> Iterator[None]:
    """Within it, downloads of this thread call `by(done, whole)` again and again, with bytes.

    What that raises breaks the download off, and what came is kept; a KeyboardInterrupt is as good as Ctrl-C, which
    itself reaches the main thread alone.
    """
    token = _watcher.set(by)
    try:
        yield
    finally:
        _watcher.reset(token)


def layout(head: bytes) -> str | None:
    """What kind of checkpoint begins with these bytes (9 suffice): zip, legacy, safetensors, or None of them."""
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(b"\x80") and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "legacy"
    return "safetensors" if head[8:9] == b"{" else None


def offline() -> str | None:
    """The environment variable that forbids fetching, if one does: VQCLIP_OFFLINE or HF_HUB_OFFLINE."""
    on = {"1", "on", "yes", "true"}
    return next((name for name in ("VQCLIP_OFFLINE", "HF_HUB_OFFLINE") if os.environ.get(name, "").lower() in on), None)


def part_of(target: Path, sha256: str | None, url: str) -> Path:
    """Where a download gathers. Without a hash to tell, pieces of two mirrors must not be put together."""
    mark = "" if sha256 else f".{re.sub(r'[^a-z0-9]+', '-', url.lower())[-40:]}"
    return target.with_name(f"{target.name}{mark}.part")


def download(mirrors: Sequence[str], target: Path, *, size: int, about: bool = False, sha256: str | None = None,
             check: Callable[[Path], object] | None = None) -> tuple[str, str, Path]:  # fmt: skip
    """Fetch a file from the first mirror that has it.

    Args:
        mirrors: addresses, in the order in which they are tried.
        target: the name it is meant for; it is gathered beside it, and left there for the caller to move.
        size: its size in bytes, roughly so if `about`.
        sha256: what it must hash to, in hexadecimal; None accepts what has the size and the look of a checkpoint.
        check: called with the whole file; a ValueError of it condemns a mirror too, where there is no hash.
    Returns:
        (the mirror's address, SHA-256, the file)
    Raises:
        CheckpointError: no mirror has it; says what each one did.
        OSError: the disk is full or cannot be written; what was fetched is kept.
    """
    reasons = []
    with tqdm(total=size, unit="B", unit_scale=True, unit_divisor=1000, desc=target.stem, dynamic_ncols=True) as bar:
        for url in mirrors:
            part = part_of(target, sha256, url)
            try:
                digest = _fetch(url, part, size, about, sha256, check, bar)
                _watcher.get()(size, size)
                return url, digest, part
            except MirrorError as reason:
                reasons.append(f"{urlsplit(url).hostname} {reason}")
                bar.write(f"{target.stem}: {reasons[-1]}", file=sys.stderr)
            except KeyboardInterrupt:
                bar.write(f"{target.stem}: stopped; what came is kept, the next try goes on there", file=sys.stderr)
                raise
    raise CheckpointError(f"{target.stem} could not be fetched: {'; '.join(reasons)}. Try again later, or get the file "
                          f"elsewhere and put it in {target.parent}")  # fmt: skip


def _fetch(url: str, part: Path, size: int, about: bool, wanted: str | None, check: Callable | None, bar: tqdm) -> str:
    """The whole file from one mirror, verified: its hash."""
    for begun_elsewhere in (_length(part) > 0, False):
        _gather(url, part, size, about, bar)
        digest = sha256(part)
        if wanted:
            reason = None if digest == wanted else "sends a file with a wrong SHA-256"
        else:
            reason = _condemned(part, check)
        if reason is None:
            return digest
        part.unlink()
        if not begun_elsewhere:  # else the fault may lie in the beginning, so once more, all of it from here
            break
    raise MirrorError(reason)


def _condemned(part: Path, check: Callable | None) -> str | None:
    try:
        if check:
            check(part)
    except ValueError as error:
        return f"sends another file ({error})"
    return None


def _gather(url: str, part: Path, size: int, about: bool, bar: tqdm) -> None:
    """Repeat until the part is whole, for as long as each attempt brings something."""
    begun = longest = _length(part)
    futile, whole = 0, None if about else size
    while whole is None or _length(part) < whole:
        _watcher.get()(_length(part), size)
        try:
            whole = _stream(url, part, size, about, bar)
            if whole is None or _length(part) >= whole:
                return
            problem = f"stops after {_length(part):,} of {whole:,} bytes"
        except requests.HTTPError as error:
            problem = f"says {error.response.status_code} {error.response.reason}"
            if error.response.status_code < 500 and error.response.status_code != 429:
                raise MirrorError(problem) from error
        except requests.RequestException as error:
            problem = f"breaks off ({_cause(error)})"
        futile = 0 if _length(part) > longest else futile + 1
        longest = max(longest, _length(part))
        if futile >= (PATIENCE if longest > begun else FIRST_PATIENCE):
            raise MirrorError(problem)
        time.sleep(PAUSE * 2**futile)


def _stream(url: str, part: Path, size: int, about: bool, bar: tqdm) -> int | None:
    """One request: append what comes. Returns how long the whole file is, where the server says so."""
    had = _length(part)
    parts = urlsplit(url)
    headers = {
        "User-Agent": f"vqclip/{__version__}",
        "Accept-Encoding": "identity",  # bytes as they are, so that lengths mean something
        "Referer": f"{parts.scheme}://{parts.netloc}/",  # koofr refuses without one
        **({"Range": f"bytes={had}-"} if had else {}),
    }
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:  # there is nothing behind this part: it is whole, or of something else
            if response.headers.get("Content-Range", "").strip() != f"bytes */{had}":
                part.unlink()
                return size
            return had
        response.raise_for_status()
        start, whole = _extent(response, had)
        if whole is not None and abs(whole - size) > (ABOUT * size if about else 0):
            raise MirrorError(f"offers {whole:,} bytes where {size:,} are right")
        blocks = response.iter_content(BLOCK)
        head = _head(blocks)
        if "html" in response.headers.get("Content-Type", "") or start == 0 and head and layout(head) is None:
            raise MirrorError("sends a web page or something else that is no checkpoint")
        bar.reset(whole or size)
        bar.n = bar.last_print_n = bar.initial = start  # so that speed and time left are of this request
        with open(part, "r+b" if start else "wb", buffering=0) as file:
            file.seek(start)
            file.truncate()
            for block in chain([head], blocks):
                if file.tell() + len(block) > (1 + ABOUT * about) * size:
                    file.truncate(start)  # nothing of what such a mirror sends can be trusted
                    raise MirrorError("sends more and more")
                file.write(block)
                bar.update(len(block))
                _watcher.get()(file.tell(), whole or size)
    return size if whole is None and not about else whole


def _extent(response: requests.Response, had: int) -> tuple[int, int | None]:
    """Where the answer begins, and how long the whole file is, if the server says so."""
    if response.status_code != 206:  # all of it, because that was asked or because the server can't do less
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if not match or int(match[1]) != had:
        raise MirrorError("sends another piece than the one asked for")
    return had, None if match[2] == "*" else int(match[2])


def _head(blocks: Iterator[bytes]) -> bytes:
    """The first blocks, enough of them to tell what the file is."""
    head = b""
    while len(head) < 9 and (block := next(blocks, b"")):
        head += block
    return head


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _cause(error: Exception) -> str:
    """The innermost words of a chain of wrapped errors, without addresses of objects."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return re.sub(r"<[^>]*>:? ?", "", str(error)) or type(error).__name__
