"""How two ways are compared: in turns, by the median over pairs, `Apart` where one would help the other; and memory.

Absolute seconds of a busy machine mean little. What two ways take one right after the other has a ratio that holds.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Pairs:
    """What two ways took, turn by turn: seconds on the clock, and of processor time, which a busy machine spares."""

    theirs: list[float]
    ours: list[float]
    their_work: list[float]
    our_work: list[float]

    def ratios(self, work: bool = False) -> list[float]:
        """How many times longer theirs took, pair by pair; by processor time if `work`."""
        theirs, ours = (self.their_work, self.our_work) if work else (self.theirs, self.ours)
        return [a / max(b, 1e-9) for a, b in zip(theirs, ours, strict=True)]


class Apart:
    """A function in a process of its own: what one way has the C library do with memory is not the other's gain.

    Args:
        make, of: the process builds the function by `make(*of)`.
    """

    def __init__(self, make: Callable[..., Callable[[], Any]], *of: Any):
        context = get_context("spawn")
        self._pipe, there = context.Pipe()
        context.Process(target=_serve, args=(there, torch.get_num_threads(), make, *of), daemon=True).start()
        there.close()  # or a process that fails would be waited for
        self._work = self._pipe.recv()

    def __call__(self) -> None:
        """Call it, and wait until it is done."""
        self._pipe.send(None)
        self._work = self._pipe.recv()

    def worked(self) -> float:
        """Seconds of processor time that its process has had."""
        return self._work


def _serve(pipe: Connection, threads: int, make: Callable[..., Callable[[], Any]], *of: Any) -> None:
    torch.set_num_threads(threads)
    function = make(*of)
    while True:
        pipe.send(worked())
        try:
            pipe.recv()
        except EOFError:  # nobody is there any more
            return
        function()


def in_turns(theirs: Callable[[], Any], ours: Callable[[], Any], pairs: int, device: torch.device) -> Pairs:
    """Time two functions in turns, after one call of each that does not count; who goes first alternates."""
    took: dict[Any, list[tuple[float, float]]] = {theirs: [], ours: []}
    for turn in range(-1, pairs):
        for function in (theirs, ours) if turn % 2 == 0 else (ours, theirs):
            seconds = timed(function, device)
            if turn >= 0:
                took[function].append(seconds)
    return Pairs(*([pair[i] for pair in took[function]] for i in (0, 1) for function in (theirs, ours)))


def timed(function: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Seconds that a call takes until the device is done: on the clock, and of processor time."""
    so_far = getattr(function, "worked", worked)
    settle(device)
    work, start = so_far(), time.perf_counter()
    function()
    settle(device)
    return time.perf_counter() - start, so_far() - work


def worked() -> float:
    """Seconds of processor time that this process has had, with those that it ran to their end, as ffmpeg."""
    ended = os.times()
    return time.process_time() + ended.children_user + ended.children_system


def settle(device: torch.device) -> None:
    """Wait until a device has done all it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def elapsed(*arguments: str) -> float:
    """Seconds on the clock of a Python of its own: `elapsed("-m", "vqclip", "settings")`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def until_told(*arguments: str) -> float:
    """Seconds on the clock from the start of a Python of its own until it prints a line; its end does not count."""
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE) as process:
        told, took = process.stdout.readline(), time.perf_counter() - start
    assert told and not process.returncode, f"it ended with {process.returncode} and told {told!r}"
    return took


def peak(*arguments: str) -> int:
    """The bytes that `python -m benchmarks.peak ...` says it took at its height."""
    command = [sys.executable, "-m", "benchmarks.peak", *arguments]
    return int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()[-1])


def spread(values: list[float]) -> tuple[float, float, float]:
    """The median, the smallest, the largest."""
    return median(values), min(values), max(values)


def machine(device: torch.device) -> dict[str, Any]:
    """What figures belong to: the device's name, versions, threads, and how busy the machine was."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"device": name, "kind": device.type, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "load": busy, "system": platform.system(), "python": platform.python_version(),
            "torch": torch.__version__}  # fmt: skip


def _processor() -> str:
    """The processor's name and the sixteen-bit arithmetic it has, as far as Linux tells."""
    try:
        told = dict(line.split("\t:", 1) if "\t:" in line else line.partition(":")[::2]
                    for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines())  # fmt: skip
        told = {key.strip(): value.strip() for key, value in told.items()}
        known = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in told.get("flags", "").split()]
        return " ".join([told["model name"], *known])
    except (OSError, LookupError):
        return platform.processor() or platform.machine()
