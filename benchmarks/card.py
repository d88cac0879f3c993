"""All of a graphics card's figures in three minutes: `python -m benchmarks.card --out benchmarks/results`.

For machines paid for by the second. Each part runs in a process of its own, as an error on a card may spoil all
that comes after it there, and for no longer than its share; what was measured until then is kept in FOLDER as
`cuda.json` and `cuda.md`, rows of the table as `benchmarks.bench` has them, with `card.txt` beside them.

    python -m benchmarks.card memory steps                   some parts
    python -m benchmarks.card --device cpu --small           does the script itself work
"""

from __future__ import annotations

import argparse
import copy
import gc
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

T0 = time.perf_counter()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

import vqclip  # noqa: E402
from vqclip import decoder, memory  # noqa: E402

from . import bench as table  # noqa: E402
from .measure import ROOT, settle, timed  # noqa: E402
from .models import Models  # noqa: E402
from .profile import stages  # noqa: E402
from .rows import ROWS, Bench, Figure, warmed  # noqa: E402

GIB = 2**30
LINES = 20  # kernels that a profile names


@dataclass(frozen=True)
class QuickModels(Models):
    """Built where they live, which spares seconds."""

    def painter(self, precision: str = "float32") -> vqclip.VQGAN:
        with torch.device(self.device):
            return super().painter(precision)

    def judge(self, precision: str = "float32") -> vqclip.CLIP:
        with torch.device(self.device):
            return super().judge(precision)


class QuickBench(Bench):
    """The same for rows."""

    @property
    def models(self) -> Models:
        return QuickModels("small" if self.quick else "full", self.device)


class Here:
    """What the items of a part share."""

    def __init__(self, device: torch.device, small: bool, out: Path):
        self.device, self.small, self.out, self.cuda = device, small, out, device.type == "cuda"
        self.bench = QuickBench(device, 5, small)
        self._pair: tuple = ()

    @property
    def pair(self) -> tuple:
        """Painter and judge in the format that is fast here, built once."""
        self._pair = self._pair or (self.bench.models.painter("auto"), self.bench.models.judge("auto"))
        return self._pair

    def run(self, size: int, cutouts: int, pair: tuple = (), **changes) -> vqclip.Run:
        settings = dict(size=(size, size), cutouts=cutouts, augment="none", optimizer="adam", lr=0.1, churn=0,
                        steps=10**6, device=str(self.device))  # fmt: skip
        return vqclip.generate("a desert at sunset:0.67 | snow on mountains:0.33", *(pair or self.pair),
                               **{**settings, **changes})  # fmt: skip

    def clock(self, function: Callable, tries: int = 7, warm: int = 2) -> float:
        """Median milliseconds of a call, until the device is done."""
        return 1000 * median([timed(function, self.device)[0] for _ in range(tries + warm)][warm:])

    def keep(self, name: str, figure: Figure) -> None:
        """A row of the table, written at once."""
        kept = table.read(self.out / f"{self.device.type}.json")
        kept[name] = table.entry(figure, self.device, self.small)
        table.keep(self.out, self.device.type, {row: kept[row] for row in ROWS if row in kept})
        print(" ", " | ".join(cell for cell in table.line(name, ROWS[name], kept[name]) if cell), flush=True)

    def row(self, name: str) -> None:
        self.keep(name, ROWS[name].measure(self.bench))


def say(*words) -> None:
    print(" ", *words, flush=True)


def alike(a: Tensor, b: Tensor) -> str:
    a, b = a.detach().double().flatten().cpu(), b.detach().double().flatten().cpu()
    return f"cosine {F.cosine_similarity(a, b, dim=0).item():.6f}, off by {((a - b).norm() / b.norm()).item():.2e}"


# Memory and correctness


@contextmanager
def only(here: Here, gib: int) -> Iterator[tuple[int, int]]:
    """A card of which so many GiB can be had, all that others and libraries take included: (ballast, outside) bytes."""
    gc.collect()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    size = max(0, free - (gib * GIB - (total - free)))
    ballast = torch.empty(size, dtype=torch.uint8, device=here.device)
    torch.cuda.reset_peak_memory_stats()
    yield ballast.nbytes, total - free - torch.cuda.memory_reserved() + ballast.nbytes
    del ballast
    torch.cuda.empty_cache()


def height(here: Here, size: int, gib: int) -> None:
    """A run that chooses by itself what it spares, on a card with so many GiB."""
    if not here.cuda:
        return
    with only(here, gib) as (ballast, outside), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        run = here.run(size, 32)
        took = here.clock(lambda run=run: next(run), 2, 2)
        peak, reserved = (ask() - ballast for ask in (torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved))
        need, painter = memory.needed(run), run.latent.vqgan
        say(f"{size} in {gib} GiB: allocated {peak / GIB:.2f}, reserved {reserved / GIB:.2f}, besides "
            f"{outside / GIB:.2f}; counted {(need.step + need.weights) / GIB:.2f}; sparing {painter.sparing}, at once "
            f"{run.judges()[0][1].at_once}, replayed {run.replay.replayed}; {took:.0f} ms a step",
            [str(one.message)[:100] for one in warned])  # fmt: skip
        here.keep(f"memory-{size}", Figure(*[peak / GIB] * 3, {
            "allocated": peak, "reserved": reserved, "besides": outside, "card_gib": gib, "ms": took,
            "sparing": painter.sparing, "at_once": run.judges()[0][1].at_once}))  # fmt: skip
        painter.sparing = False
        del run


def gradients(here: Here) -> None:
    """Of the first step, in each way, against float32 on the processor."""
    size, cutouts, models = (32, 4, here.bench.models) if here.small else (128, 8, here.bench.models)
    exact = models.painter("float32"), models.judge("float32")
    clip_cpu = copy.deepcopy(exact[1]).cpu()
    torch.backends.cudnn.allow_tf32 = False
    run = here.run(size, cutouts, (copy.deepcopy(exact[0]).cpu(), clip_cpu), device="cpu")
    next(run)
    truth = run.latent.z.grad

    def compare(name: str, pair: tuple, last: bool | None = None) -> None:
        run = here.run(size, cutouts, pair)
        if last is not None:
            lay(run.latent.vqgan, last)
        run.replay = None
        next(run)
        say(f"gradient {name} against float32 on the processor: {alike(run.latent.z.grad, truth)}")

    compare("float32", exact)
    if here.cuda:
        taken = decoder.takes_last
        decoder.takes_last = lambda *_: True
        compare("float32, channels last and fused", exact, True)
        decoder.takes_last = taken
    torch.backends.cudnn.allow_tf32 = True
    compare("float32, convolutions in TF32", exact, False)
    compare(f"{here.pair[0].precision}, channels last {here.pair[0].channels_last}", here.pair)
    if here.pair[0].channels_last:
        compare("bfloat16 as torch has it", here.pair, False)
        lay(here.pair[0], True)


def lay(painter: vqclip.VQGAN, last: bool) -> None:
    """Channels last and fused norms, or neither."""
    painter.channels_last = last
    painter.decoder.to(memory_format=torch.channels_last if last else torch.contiguous_format)


def replays(here: Here) -> None:
    """Replayed steps against ordinary ones, from the same latent and draws each time; and ordinary ones against others,
    as a card may add up in any order."""
    size, cutouts = (32, 4) if here.small else (256, 16)
    for name, changes in {"plain": {}, "nerdyrodent": dict(augment="nerdyrodent", cutter="pooled"),
                          "all else": dict(augment="abulafia", losses="tv:0.5 | saturation:0.2 | edges:0.1", ema=0.9,
                                           init_weight=0.2, init_decay=9)}.items():  # fmt: skip
        plain, other, ours = (here.run(size, cutouts, **changes) for _ in range(3))
        plain.replay = other.replay = None
        worst, off = {}, {}
        for _ in range(6):
            for run in (other, ours):
                run.latent.z.data.copy_(plain.latent.z)
            frames = [next(run) for run in (plain, other, ours)]
            exact = plain.latent.z.grad.double().flatten()
            for way, run in (("ordinary", other), ("replayed", ours)):
                grad = run.latent.z.grad.double().flatten()
                worst[way] = min(worst.get(way, 1.0), F.cosine_similarity(grad, exact, dim=0).item())
                off[way] = max(off.get(way, 0.0), ((grad - exact).norm() / exact.norm()).item())
        for way in worst:
            say(f"{way} against ordinary, {name}: cosine >= {worst[way]:.7f}, off by <= {off[way]:.2e}")
        losses = [sum(map(float, frame.losses.values())) for frame in frames]
        same = [torch.equal(frames[0].codes, frame.codes) for frame in frames[1:]]
        say(f"losses {losses}; codes {same}; replayed {ours.replay and (ours.replay.replayed, ours.replay.off)} of 6")


def resumed(here: Here) -> None:
    """The shipped pair, recorded, broken off and resumed; on the card and, from there, on the processor."""
    settings = dict(seed=3, steps=8, device=str(here.device), optimizer="adam", lr=0.1)
    frames = list(run := vqclip.generate("a red circle", **settings))
    with tempfile.TemporaryDirectory() as home:
        begun = vqclip.generate("a red circle", **settings)
        session, kept = vqclip.Session.create(home, begun), []
        for frame in session.record(begun):
            kept.append(frame.codes)
            if frame.step == 4:
                break
        again = (session := vqclip.Session(session.path)).resume()
        kept += [frame.codes for frame in session.record(again)]
    same = [torch.equal(a.cpu(), b.codes.cpu()) for a, b in zip(kept, frames, strict=True)]
    say("recorded, broken off, resumed: codes as without", same, "replayed", run.replay and
        (run.replay.replayed, run.replay.off))  # fmt: skip
    there = vqclip.generate("a red circle", **{**settings, "device": "cpu"})
    there.restore({**begun.state(), "cutouts": there.state()["cutouts"]})
    there.steps += 1
    say("a step on the processor from the card's state:", f"{sum(map(float, next(there).losses.values())):.4f}",
        "fused", there.optimizer.param_groups[0]["fused"])  # fmt: skip


# Time


def ways(here: Here, size: int, cutouts: int) -> None:
    """A step of ours in each way, beside the row that has it against the plain loop and its floor."""
    size, cutouts = (48, 4) if here.small else (size, cutouts)
    for name, last, replayed in (("as torch has it", False, False), ("the same, replayed", False, True),
                                 ("fused", True, False), ("fused, replayed", True, True)):  # fmt: skip
        if last and not here.pair[0].channels_last and not decoder.takes_last(here.device, here.pair[0].precision):
            continue
        run = here.run(size, cutouts)
        lay(run.latent.vqgan, last)
        if not replayed:
            run.replay = None
        took = here.clock(lambda run=run: next(run), 7, 3)
        say(f"{size}/{cutouts} {name}: {took:.2f} ms", run.replay and (run.replay.replayed, run.replay.off))
        del run


def pieces(here: Here) -> None:
    """Where a replayed step's time goes: the graph alone, and what comes besides."""
    run = warmed(here.run(*((48, 4) if here.small else (512, 32))))
    say(f"a step {here.clock(lambda: next(run)):.2f} ms; its state {here.clock(run.state):.2f}, a draw "
        f"{here.clock(lambda: run.judges()[0][1].cutouts.draw(512, 512)):.2f}, the optimiser "
        f"{here.clock(run.optimizer.step):.2f} ms")  # fmt: skip
    if run.replay and run.replay._recording:
        say(f"its graph alone {here.clock(run.replay._recording.replay):.2f} ms")
    kernels(here, lambda: next(run))
    stages(run, here.device)
    say(", ".join(f"{name} {1000 * seconds:.2f}" for name, seconds in stages(run, here.device).items()), "ms, eager")


def kernels(here: Here, function: Callable) -> None:
    """What a call launches: the kernels that take the most, and how busy the card is."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if here.cuda else [])]
    with profile(activities=kinds) as recorded:
        function()
        settle(here.device)
    took, count = Counter(), Counter()
    for event in recorded.events():
        if event.device_type == DeviceType.CUDA or not here.cuda:
            took[event.name] += event.device_time_total if here.cuda else event.cpu_time_total
            count[event.name] += 1
    say(f"{sum(count.values())} kernels and copies, {sum(took.values()) / 1000:.2f} ms of them")
    for name, micro in took.most_common(LINES):
        say(f"{micro / 1000:9.3f} ms {count[name]:5} x {name[:130]}")


PARTS: dict[str, tuple[int, dict[str, Callable[[Here], None]]]] = {
    "memory": (60, {
        "replays": replays, "height 1024": lambda here: height(here, 1024, 12),
        "height 2048": lambda here: height(here, 2048, 24), "resumed": resumed, "gradients": gradients}),
    "steps": (45, {
        "step-512-32": lambda here: here.row("step-512-32"), "ways 512/32": lambda here: ways(here, 512, 32),
        "step-512": lambda here: here.row("step-512"), "step-256": lambda here: here.row("step-256"),
        "ways 256/64": lambda here: ways(here, 256, 64)}),
    "profile": (20, {"pieces": pieces}),
    "beside": (60, {name: lambda here, name=name: here.row(name)
                    for name in ("overhead", "decoding-512", "batch-256", "embedded", "batch-512", "batch-embedded",
                                 "decoding-256", "memory-512")}),
}  # fmt: skip
"""Of each part: seconds at most, and its items; none of them stops another."""


def do(here: Here, part: str, budget: float) -> None:
    """The items of a part, in this process."""
    def stop(*_):
        raise TimeoutError("no time left")

    signal.signal(signal.SIGALRM, stop)
    for name, item in PARTS[part][1].items():
        left, start = budget - (time.perf_counter() - T0), time.perf_counter()
        if left < 1:
            print(f"{name}: no time left", flush=True)
            continue
        signal.setitimer(signal.ITIMER_REAL, left)
        print(f"{name} ...", flush=True)
        try:
            item(here)
        except Exception:
            say("  ".join(traceback.format_exc().splitlines(True)[-7:]))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        say(f"({time.perf_counter() - start:.1f} s)")


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; none means all")
    ask.add_argument("--budget", type=float, default=180, help="seconds for all of it (180)")
    ask.add_argument("--out", type=Path, default=Path("card"), help="the folder that figures are kept in")
    ask.add_argument("--device", default="cuda")
    ask.add_argument("--small", action="store_true", help="small networks; figures mean nothing")
    ask.add_argument("--here", action="store_true", help="one part, in this very process")
    asked = ask.parse_args()
    asked.out = asked.out.resolve()
    if asked.here:
        device = torch.empty(0, device=asked.device).device
        card = torch.cuda.get_device_name() if device.type == "cuda" else "processor"
        print(f"== {asked.parts[0]}: {card}, torch {torch.__version__}, {torch.get_num_threads()} threads, imports "
              f"{time.perf_counter() - T0:.1f} s, vqclip {vqclip.__version__}", flush=True)  # fmt: skip
        return do(Here(device, asked.small, asked.out), asked.parts[0], asked.budget)
    asked.out.mkdir(parents=True, exist_ok=True)
    with open(asked.out / "card.txt", "w") as log:
        for part in asked.parts or PARTS:
            left = min(asked.budget - (time.perf_counter() - T0), PARTS[part][0])
            if left < 8:
                break
            command = [sys.executable, "-u", "-m", "benchmarks.card", part, "--here", "--budget", str(left - 2),
                       "--out", str(asked.out), "--device", asked.device, *["--small"] * asked.small]  # fmt: skip
            child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            late = threading.Timer(left + 1, child.kill)  # one that waits for a card may not end by itself
            late.daemon = True
            late.start()
            for text in child.stdout:
                print(text, end="", flush=True)
                log.write(text)
            child.wait()
            late.cancel()
            print(f"== {part} ended with {child.returncode}, {time.perf_counter() - T0:.0f} s by now", flush=True)


if __name__ == "__main__":
    main()
