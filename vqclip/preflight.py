"""Preflight: what a run will be, before the wait: its real size, memory, time, video, disk and tokens, in plain words.

    run = vqclip.generate("desert:50 | snow:25", size=(512, 384))
    report = preflight.look(run, "workspace")
    print("\n".join(report.lines()))
    print(preflight.machine())              what there is to paint on
    for frame in preflight.paced(session.record(run), run, print): ...       says after three how long it will take
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import torch

from . import memory
from .catalogue import find
from .catalogue import size as in_words
from .checkpoints import blank
from .cutouts import Cutouts
from .memory import Need
from .perceptor import build_clip, openai_clip
from .precision import Dtypes, able, dtypes
from .run import Frame, Run, echo, pick_device
from .settings import LARGEST, Settings
from .video import plan
from .vqgan import VQGAN

PAINTER, JUDGE = "imagenet_f16_16384", "ViT-B/32"  # the classic pair
VIT_B_32 = dict(embed_dim=512, image_resolution=224, vision_layers=12, vision_width=768, vision_patch_size=32,
                context_length=77, vocab_size=49408, transformer_width=512, transformer_heads=8,
                transformer_layers=12)  # as openai-clip has it  # fmt: skip
TIMED = 3  # steps after which the pace is known; the first one also warms up, and does not count
LINE = 400  # bytes of a step's line in losses.jsonl, about


@dataclass(frozen=True)
class Fit:
    """A size and a chunk with which a run fits into memory."""

    size: tuple[int, int]
    chunk: int


@dataclass(frozen=True)
class Preflight:
    """What is known of a run before its first step.

    Attributes:
        said: how prompts and tokens were understood, and the size that is painted; a line each.
        asked, painted: width and height in pixels; painted is in whole codes.
        steps: how many frames there will be.
        need: what a step takes, see `memory.needed`; None where there is plenty and nothing was counted.
        free: bytes of memory that can be had now; None where nobody can tell.
        fit: what would fit where this does not; None where it does, or where nothing would.
        seconds: of a step; None until it is timed.
        video, fps: how long the video will be in seconds, and its rate.
        disk, disk_free: bytes that the session will take without its video, and that there are.
    """

    said: tuple[str, ...]
    asked: tuple[int, int]
    painted: tuple[int, int]
    steps: int
    need: Need | None
    free: int | None
    fit: Fit | None
    seconds: float | None
    video: float
    fps: Fraction
    disk: int
    disk_free: int

    @property
    def fits(self) -> bool:
        """Whether memory is enough, as far as anybody can tell."""
        return self.free is None or self.need is None or self.need.step <= self.free

    def lines(self) -> list[str]:
        """What there is to say, a line each."""
        lines = [*self.said, self._of_memory()]
        if self.seconds is not None:
            lines.append(f"time: {duration(self.seconds * self.steps)} for {self.steps} frames, "
                         f"{self.seconds:.2g} s each")  # fmt: skip
        lines.append(f"video: {duration(self.video)} at {float(self.fps):g} frames a second")
        short = " and that is too little: make room first" if self.disk > self.disk_free else ""
        takes = in_words(self.disk) if self.disk >= 1_000_000 else "less than 1 MB"
        lines.append(f"disk: {takes} without the video; {in_words(self.disk_free)} are free{short}")
        return lines

    def _of_memory(self) -> str:
        if self.need is None:
            return f"memory: plenty, {in_words(self.free)} are free"
        line = f"memory: about {in_words(self.need.step)} a step, besides {in_words(self.need.weights)} of models"
        if self.need.sparing:
            line += ", with a painter that keeps little and takes longer"
        if self.need.at_once:
            line += f", {self.need.at_once} cutout{'s' * (self.need.at_once > 1)} judged at a time"
        if self.free is None:
            return line
        line += f"; {in_words(self.free)} are free"
        if self.fits:
            return line
        if self.fit is None:
            return f"{line}, and not even the smallest picture fits: choose smaller models"
        size = "" if self.fit.size == self.asked else f"size={self.fit.size[0]}x{self.fit.size[1]} "
        return f"{line}, which is too little: {size}chunk={self.fit.chunk} fits"


def look(run: Run, folder: str | Path = ".", free: int | None = None, seconds: float | None = None,
         count: bool = True) -> Preflight:  # fmt: skip
    """What a run will be; takes no step and no memory, and changes nothing.

    Args:
        folder: where its session will be kept.
        free: bytes of memory it may take; None asks the device.
        seconds: of a step, if that is known; see `pace`.
        count: memory also where there is plenty, which takes a moment.
    """
    asked, vqgan, frames = run.settings.size, run.latent.vqgan, run.steps + 1
    free = memory.free(run.latent.z.device) if free is None else free
    need = None if free and not count and memory.plenty(run, free) else memory.needed(run)
    video = plan(frames)
    report = Preflight(
        said=tuple(echo(run).splitlines()), asked=asked, painted=vqgan.whole(*asked), steps=frames, need=need,
        free=free, fit=None, seconds=seconds, video=video.seconds, fps=video.fps,
        disk=_on_disk(run, frames, len(vqgan.codebook)), disk_free=_room(folder),
    )  # fmt: skip
    return report if report.fits else replace(report, fit=fitting(run, free))


def fitting(run: Run, free: int) -> Fit | None:
    """The largest picture of the run's shape that fits into so much memory, with the largest chunk; None if none does.

    A smaller chunk comes before a smaller picture: it costs time only.
    """
    w, h = run.latent.vqgan.grid(*run.settings.size)
    f, long = run.latent.vqgan.f, max(w, h)
    counts = [judge.cutouts.n for _, judge in run.judges()]
    most = max((min(run.settings.chunk or n, n) for n in counts), default=1)

    def size(codes: int) -> tuple[int, int]:  # of so many codes along the longer side
        if codes == long:
            return run.settings.size
        return tuple(max(round(side * codes / long), 1) * f for side in (w, h))

    def fits(codes: int, chunk: int) -> bool:
        return memory.needed(run, size(codes), chunk).step <= free

    low, high = 0, long  # the largest that fits lies from low to high; 0 is none
    while low < high:
        middle = -(-(low + high) // 2)
        low, high = (middle, high) if fits(middle, 1) else (low, middle - 1)
    if not low or min(size(low)) < 16:  # below that no setting goes
        return None
    chunk = most
    while not fits(low, chunk):
        chunk = -(-chunk // 2)
    return Fit(size(low), chunk)


def machine(device: str = "auto") -> str:
    """What paints on this machine and what fits, in a plain sentence.

    Raises:
        SettingsError: there is no such device.
    """
    chosen = pick_device(device)
    free = memory.free(chosen)
    if chosen.type == "cpu":
        room = "" if free is None else f", with {in_words(free)} of memory free"
        return (f"no graphics card: the processor paints{room}. That is enough for the embedded pair; for the big "
                "models take a machine with a card (in Colab: Runtime, Change runtime type)")  # fmt: skip
    here = able(chosen)
    if chosen.type != "cuda":
        return f"{here.name} paints; the embedded pair fits, and of a larger one `03_parameters` says what does"
    total = torch.cuda.get_device_properties(chosen).total_memory
    card = f"graphics card: {here.name} with {in_words(total)} of memory, {in_words(free)} of it free."
    fit = classic(free, dtypes("auto", here))
    if fit is None:
        return f"{card} That is enough for the embedded pair, and too little for {PAINTER} with {JUDGE}"
    width, height = fit.size
    return f"{card} {PAINTER} with {JUDGE} paints up to {width}x{height} on it (chunk={fit.chunk})"


def classic(free: int, precision: Dtypes) -> Fit | None:
    """The largest square that the classic pair paints in so much memory, 32 glimpses a step; None if none does.

    It is counted on networks that have shapes only: nothing is fetched.
    """
    with blank():
        painter = VQGAN(**find(PAINTER).config).requires_grad_(False).paint_in(precision.painter)
        weights = openai_clip("model").CLIP(**VIT_B_32).state_dict()
    judge = build_clip(weights, JUDGE, precision.judge)
    painter.sparing = True  # as a run of that size has it
    models = {**dict(painter.named_parameters()), **dict(judge.named_parameters())}
    free -= sum(tensor.nbytes for tensor in models.values())
    seen = SimpleNamespace(perceptor=judge, cutouts=Cutouts(judge.size, 32), at_once=32)
    return fitting(SimpleNamespace(latent=SimpleNamespace(vqgan=painter), judges=lambda: [(JUDGE, seen)],
                                   settings=Settings(size=LARGEST)), free)  # fmt: skip


def pace(run: Run) -> float:
    """Seconds of a step, by taking a few: for whoever does not want their frames."""
    stamps = [time.monotonic() for _, _ in zip(range(TIMED), run, strict=False)]
    return (stamps[-1] - stamps[0]) / max(len(stamps) - 1, 1)


def paced(frames: Iterable[Frame], run: Run, say: Callable[[str], None]) -> Iterator[Frame]:
    """Pass frames through; after the third, say how long all of them will take."""
    stamps: list[float] = []
    for frame in frames:
        if len(stamps) < TIMED:
            stamps.append(time.monotonic())
            if len(stamps) == TIMED and frame.step < run.steps:
                step = (stamps[-1] - stamps[0]) / (TIMED - 1)
                say(f"{step:.2g} s a step: {duration(step * (run.steps - frame.step))} more")
        yield frame


def duration(seconds: float) -> str:
    """Time for people: 8 s, 4 min, 2.5 h."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _on_disk(run: Run, frames: int, codes: int) -> int:
    """Bytes of a session without its video: codes, losses, the state twice while it is replaced, the picture."""
    h, w = run.latent.z.shape[2:]
    width, height = run.settings.size
    moments = {"adam": 2, "momentum": 1}[run.settings.optimizer]
    state = (3 + moments) * run.latent.z.nbytes  # z, start, average
    return frames * (h * w * (2 if codes <= 1 << 16 else 4) + 8 + LINE) + 2 * state + 3 * width * height


def _room(folder: str | Path) -> int:
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
