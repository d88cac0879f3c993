"""The rows of the table: each a function that measures, with what it is measured against and what it should reach.

A function takes a `Bench` and returns a `Figure`. To add a row, write one and put it into `ROWS`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import imageio.v2 as imageio
import numpy as np
import torch
from PIL import Image

import vqclip
import vqclip.run as loop
from vqclip.video import BATCH_PIXELS, _encoding

from . import measure
from .floor import floor
from .measure import Apart, Pairs, in_turns, spread
from .models import Models


@dataclass(frozen=True)
class Bench:
    """How to measure.

    Attributes:
        device: where.
        pairs: how many turns.
        quick: small networks and pictures: seconds instead of minutes, and figures that mean nothing.
    """

    device: torch.device
    pairs: int = 5
    quick: bool = False

    @property
    def models(self) -> Models:
        """The published sizes, or small ones."""
        return Models("small" if self.quick else "full", self.device)

    def pick(self, full: int, quick: int) -> int:
        """A size or a count."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Figure:
    """What was measured: the value of a row with its smallest and largest, and the raw figures."""

    value: float
    low: float
    high: float
    raw: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        work, against: what is measured, against what.
        unit: of its value: "x" for a ratio of theirs to ours, "" for a share, "s", "%".
        goal: what the value should reach; None where there is no goal.
        at_most: whether the goal is an upper bound.
        on_card: the goal on a graphics card, where that is another.
        only: the kind of device it is measured on, where it is not any.
    """

    work: str
    against: str
    unit: str
    goal: float | None
    at_most: bool
    measure: Callable[[Bench], Figure]
    on_card: float | None = None
    only: str = ""

    def bar(self, kind: str) -> float | None:
        """The goal on a kind of device, "cpu" or "cuda"."""
        return self.goal if kind != "cuda" or self.on_card is None else self.on_card

    def met(self, value: float, kind: str = "cpu") -> bool | None:
        """Whether a value reaches the goal."""
        bar = self.bar(kind)
        if bar is None:
            return None
        return value <= bar if self.at_most else value >= bar

    def wanted(self, kind: str = "cpu") -> str:
        """The goal in words."""
        bar = self.bar(kind)
        return "" if bar is None else f"{'<=' if self.at_most else '>='} {bar:g}{self.unit}"


def figure(pairs: Pairs) -> Figure:
    """The ratio of theirs to ours."""
    raw = vars(pairs) | {"ratio_of_work": spread(pairs.ratios(work=True))[0]}
    return Figure(*spread(pairs.ratios()), raw)


def step(models: Models, bench: Bench, size: int, cutouts: int, precision: str = "auto", **changes: Any) -> Figure:
    """A step of the plain loop against one of ours, and ours against its floor.

    On a processor the plain loop has a process of its own: ours has the C library keep what a step frees.
    """
    apart = bench.device.type == "cpu"
    theirs = Apart(models.reference, size, cutouts) if apart else models.reference(size, cutouts)
    run = warmed(models.run(size, cutouts, precision, **changes))
    found = figure(in_turns(theirs, lambda: next(run), bench.pairs, bench.device))
    least = floor(run)
    return replace(found, raw=found.raw | {"floor": least, "above_floor": median(found.raw["ours"]) / least})


def warmed(run: vqclip.Run, by: Iterator | None = None) -> vqclip.Run:
    """The same; on a graphics card with its first steps done, of which the second records what the others replay.

    Args:
        by: what makes its steps, where that is not the run itself.
    """
    if run.replay is not None:
        for _ in range(2):
            next(run if by is None else by)
    return run


def step_256(bench: Bench) -> Figure:
    return step(bench.models, bench, bench.pick(256, 32), bench.pick(64, 4))


def step_512(bench: Bench) -> Figure:
    return step(bench.models, bench, bench.pick(512, 48), bench.pick(64, 4))


def float32_256(bench: Bench) -> Figure:
    return step(bench.models, bench, bench.pick(256, 32), bench.pick(64, 4), "float32")


def float32_512(bench: Bench) -> Figure:
    return step(bench.models, bench, bench.pick(512, 48), bench.pick(64, 4), "float32")


def step_512_32(bench: Bench) -> Figure:
    return step(bench.models, bench, bench.pick(512, 48), bench.pick(32, 2))


def embedded(bench: Bench) -> Figure:
    """As it is used: ours goes back patch by patch, where the plain loop takes the decoder's own way."""
    return step(Models("embedded", bench.device), bench, bench.pick(128, 32), bench.pick(32, 4))


def batch_256(bench: Bench) -> Figure:
    return batch(bench.models, bench, bench.pick(256, 32), bench.pick(32, 4))


def batch_512(bench: Bench) -> Figure:
    return batch(bench.models, bench, bench.pick(512, 48), bench.pick(32, 2))


def batch_embedded(bench: Bench) -> Figure:
    return batch(Models("embedded", bench.device), bench, bench.pick(128, 32), bench.pick(32, 4))


def batch(models: Models, bench: Bench, size: int, cutouts: int, seeds: int = 8) -> Figure:
    """A step of several seeds, one after the other against side by side."""
    run = models.run(size, cutouts, "auto")
    loaded = run.latent.vqgan, [judge.perceptor for _, judge in run.judges()]
    alone, together = (vqclip.generate_batch(None, *loaded, settings=run.settings, seeds=range(seeds))
                       for _ in range(2))  # fmt: skip
    warmed(together.runs[0], by=together)
    for run in alone.runs:
        warmed(run)
    found = figure(in_turns(lambda: [next(run) for run in alone.runs], lambda: next(together), bench.pairs,
                            bench.device))  # fmt: skip
    recorded = [run.replay is not None and not run.replay.off for run in (*together.runs[:1], *alone.runs)]
    return replace(found, raw=found.raw | {"at_once": together.at_once, "recorded": sum(recorded)})


def memory_512(bench: Bench) -> Figure:
    """Each in a process of its own; networks and libraries included."""
    arguments = [bench.models.kind, str(bench.pick(512, 32)), str(bench.pick(32, 4)), "--device", str(bench.device),
                 "--threads", str(torch.get_num_threads())]  # fmt: skip
    theirs = measure.peak("theirs", *arguments)
    ours = [measure.peak("ours", *arguments) for _ in range(bench.pick(3, 1))]  # what is kept lies in other pieces
    return Figure(*spread([one / theirs for one in ours]), {"ours": ours, "theirs": theirs})


def memory_1024(bench: Bench) -> Figure:
    """Ours alone, as where memory is short: the plain loop would take some 25 GiB."""
    return sparing(bench, bench.pick(1024, 64))


def memory_2048(bench: Bench) -> Figure:
    return sparing(bench, bench.pick(2048, 96))


def sparing(bench: Bench, size: int) -> Figure:
    """GiB at the height of a step with 32 cutouts, eight at once, and a painter that keeps little."""
    gib = measure.peak("ours", bench.models.kind, str(size), str(bench.pick(32, 4)), "--device", str(bench.device),
                       "--threads", str(torch.get_num_threads()), "--sparing") / 2**30  # fmt: skip
    return Figure(gib, gib, gib)


def demo(bench: Bench) -> Figure:
    """`make demo` after its install: picture and MP4, from the command line, imports included."""
    with tempfile.TemporaryDirectory() as home:
        steps = ["steps=2", "size=16"] if bench.quick else []
        picture = measure.elapsed("-m", "vqclip", "generate", "desert:50 | snow:25", *steps, "--workspace", home)
        video = measure.elapsed("-m", "vqclip", "video", "--workspace", home)
        assert list(Path(home).glob("sessions/*/final.png")) and list(Path(home).glob("sessions/*/video.mp4"))
    return Figure(picture + video, picture + video, picture + video, {"picture": picture, "video": video})


def preview(bench: Bench) -> Figure:
    """From the start of Python to the first picture."""
    code = "import vqclip; next(vqclip.generate('desert:50 | snow:25')).pil; print('there', flush=True)"
    return Figure(*spread([measure.until_told("-c", code) for _ in range(bench.pick(bench.pairs, 1))]))


def video(bench: Bench) -> Figure:
    """Frames of a run, from memory, to an MP4, against PNG files that imageio then reads and encodes just the same."""
    size, rate = bench.pick(512, 32), {"fps": 30}
    run = vqclip.generate("desert:50 | snow:25", size=(size, size), cutouts=4, steps=bench.pick(299, 11),
                          device=str(bench.device))  # fmt: skip
    made = [np.asarray(frame.pil) for frame in run]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)

        def theirs() -> None:
            for number, frame in enumerate(made):
                Image.fromarray(frame).save(home / f"{number:04}.png")
            read = [imageio.imread(path) for path in sorted(home.glob("*.png"))]
            # The encoder's settings are ours, whatever they are: without its codec and the flag it adds itself.
            settings = [word for word in _encoding(".mp4", 65) if word not in ("-c:v", "libx264")]
            imageio.mimsave(home / "theirs.mp4", read, codec="libx264", quality=None, macro_block_size=1,
                            pixelformat="yuv420p", output_params=settings, **rate)  # fmt: skip

        def ours() -> None:
            vqclip.write_video(made, home / "ours.mp4", progress=False, **rate)

        return figure(in_turns(theirs, ours, bench.pick(bench.pairs, 1), torch.device("cpu")))


def decoding_256(bench: Bench) -> Figure:
    return decoding(bench, bench.pick(256, 32))


def decoding_512(bench: Bench) -> Figure:
    return decoding(bench, bench.pick(512, 48))


def decoding(bench: Bench, size: int) -> Figure:
    """A frame of a video, decoded from codes in batches as `write_video` does, as a share of a step's time."""
    cutouts = bench.pick(64, 4)
    run = warmed(bench.models.run(size, cutouts, "auto"))
    vqgan = run.latent.vqgan
    batch = min(max(BATCH_PIXELS // size**2, 1), 8)
    w, h = vqgan.grid(size, size)
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(len(vqgan.codebook), (batch, h, w), generator=draw).to(bench.device)

    @torch.inference_mode()
    def decode() -> torch.Tensor:
        return vqgan.decode(vqgan.embed(codes))

    pairs = in_turns(lambda: next(run), decode, bench.pairs, bench.device)
    shares = [1 / (batch * ratio) for ratio in pairs.ratios()]
    return Figure(*spread(shares), vars(pairs) | {"batch": batch})


def overhead(bench: Bench) -> Figure:
    """A recorded step with its picture for people against the arithmetic of a step alone, in per cent more.

    On a processor both are taken of the same steps, as it may change its pace from one to the next by more than this
    is; the latent's own step counts as overhead there. On a graphics card, which would have to be waited for, they take
    turns, and both replay what they recorded, or what a graph spares would hide what keeping costs.
    """
    size, cutouts = bench.pick(512, 32), bench.pick(32, 4)
    recorded = bench.models.run(size, cutouts, "auto")
    with tempfile.TemporaryDirectory() as home:
        frames = vqclip.Session.create(home, recorded).record(recorded)
        if recorded.replay is None:
            pairs = within(lambda: next(frames).pil, bench)
        else:
            bare = warmed(bench.models.run(size, cutouts, "auto"))
            warmed(recorded, by=frames)

            def arithmetic() -> None:
                bare.optimizer.zero_grad(set_to_none=True)
                assert bare.replay([bare]) is not None, bare.replay.off
                bare.optimizer.step()
                bare.latent.project_()

            pairs = in_turns(lambda: next(frames).pil, arithmetic, bench.pairs, bench.device)
        frames.close()
    return Figure(*spread([100 * (ratio - 1) for ratio in pairs.ratios()]), vars(pairs))


def within(step: Callable[[], object], bench: Bench) -> Pairs:
    """Steps, and of each the part that paints, judges and goes back; the first does not count."""
    parts: list[tuple[float, float]] = []

    def arithmetic(runs: Sequence[vqclip.Run]) -> Any:
        made = []
        parts.append(measure.timed(lambda: made.append(anew(runs)), bench.device))
        return made[0]

    anew = loop._anew
    with patch.object(loop, "_anew", arithmetic):
        whole = [measure.timed(step, bench.device) for _ in range(bench.pairs + 1)]
    return Pairs(*([one[i] for one in some[1:]] for i in (0, 1) for some in (whole, parts)))


REFERENCE = "the plain loop (reference.py), float32, crop by crop"
ROWS = {
    "step-256": Row("a step, 256x256, 64 cutouts", REFERENCE, "x", 6, False, step_256),
    "step-512": Row("a step, 512x512, 64 cutouts", REFERENCE, "x", 6, False, step_512, on_card=5),
    "step-512-32": Row("a step, 512x512, 32 cutouts", REFERENCE, "x", 6, False, step_512_32, on_card=5),
    "float32-256": Row("a step in float32, 256x256, 64 cutouts", REFERENCE, "x", 1.5, False, float32_256, only="cpu"),
    "float32-512": Row("a step in float32, 512x512, 64 cutouts", REFERENCE, "x", 1.5, False, float32_512, only="cpu"),
    "embedded": Row("a step of the embedded pair, 128x128, 32 cutouts", REFERENCE, "x", None, False, embedded),
    "batch-256": Row("a step of 8 seeds at once, 256x256, 32 cutouts", "8 runs one after the other", "x", 1, False,
                     batch_256, on_card=1.5),
    "batch-512": Row("a step of 8 seeds at once, 512x512, 32 cutouts", "8 runs one after the other", "x", 1.5, False,
                     batch_512, only="cuda"),
    "batch-embedded": Row("the same of the embedded pair, 128x128", "8 runs one after the other", "x", 1, False,
                          batch_embedded, on_card=1.5),
    "memory-512": Row("peak memory, 512x512, 32 cutouts", REFERENCE, "", 0.4, True, memory_512),
    "memory-1024": Row("peak memory, 1024x1024, 32 cutouts, in GiB", "nothing", "", 6, True, memory_1024, on_card=12),
    "memory-2048": Row("peak memory, 2048x2048, 32 cutouts, in GiB", "nothing", "", 24, True, memory_2048, only="cuda"),
    "demo": Row("the README's demo, picture and MP4", "the clock", "s", 60, True, demo),
    "preview": Row("from the start of Python to the first picture", "the clock", "s", 5, True, preview),
    "video": Row("300 frames of a run, 512x512, to an MP4", "PNG files, then imageio, equal settings", "x", 3, False,
                 video),
    "decoding-256": Row("a frame of a session's video, 256x256", "a step's time", "", 0.333, True, decoding_256),
    "decoding-512": Row("a frame of a session's video, 512x512", "a step's time", "", 0.333, True, decoding_512),
    "overhead": Row("a run's own overhead, 512x512, 32 cutouts", "the bare step", "%", 2, True, overhead),
}
