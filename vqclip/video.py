"""Videos of a run: a session's codes, or any frames, through one ffmpeg process into MP4, GIF or WebP.

    write_video(session)                                  # 15 seconds, 10 to 30 frames a second
    write_video(session, "leap.gif", fps=12, smooth=3, hold=2)
    write_video(run, "live.mp4", fps=24)                  # frames as they are made

Pictures are decoded, piped and forgotten, so memory does not grow with the length.
"""

import json
import operator
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, count, groupby, islice, repeat
from pathlib import Path
from typing import IO, Any

import imageio_ffmpeg
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from . import metadata
from .files import atomic_path
from .images import to_pil
from .run import crop_to

SUFFIXES = (".mp4", ".gif", ".webp")
LENGTH = 15  # seconds, as in the notebooks of 2021
BATCH_PIXELS = 2**20  # decoded at once: 4 pictures of 512x512


class VideoError(ValueError):
    """A video that cannot be made as asked, with what to ask for instead."""


@dataclass(frozen=True)
class Plan:
    """What a video will be, known before anything is decoded.

    Attributes:
        pictures: how many there are to show: the steps, and those put in between; None if nobody knows.
        moving: how many frames show them; differs from `pictures` where both fps and length are given.
        held: how many frames repeat the last picture after that.
        fps: frames a second.
    """

    pictures: int | None
    moving: int | None
    held: int
    fps: Fraction

    @property
    def frames(self) -> int | None:
        """All frames, the held ones included."""
        return None if self.moving is None else self.moving + self.held

    @property
    def seconds(self) -> float | None:
        """How long it will take to watch."""
        return None if self.frames is None else float(self.frames / self.fps)

    def shown(self) -> Iterator[tuple[int, int]]:
        """Which pictures are shown, in how many frames each: evenly spread over `moving`, without `held`."""
        if self.moving is None:
            yield from ((picture, 1) for picture in count())
        elif self.moving == 1:
            yield self.pictures - 1, 1
        else:
            gaps, steps = self.moving - 1, self.pictures - 1
            for picture, frames in groupby(round(Fraction(i * steps, gaps)) for i in range(self.moving)):
                yield picture, len(list(frames))

    def __str__(self) -> str:
        rate = f"{float(self.fps):g} frames a second"
        return rate if self.frames is None else f"{self.frames} frames at {rate} = {self.seconds:.1f} s"


def plan(steps: int | None, *, fps: float | None = None, length: float | None = None, min_fps: float = 10,
         max_fps: float = 30, hold: float = 0.0, smooth: int = 0) -> Plan:  # fmt: skip
    """Work out frames, rate and duration for so many steps; the rest is as in `write_video`.

    Args:
        steps: None where nobody knows how many there will be: then fps must be given.
    Raises:
        VideoError: there is nothing to show, or a value is out of range.
    """
    if steps is not None and steps < 1:
        raise VideoError("There are no frames to make a video of; let the run take a step first.")
    if steps is None and (fps is None or length is not None):
        raise VideoError("How many frames will come is not known, so their length is not; give fps alone.")
    _check("smooth", smooth, 0, 100)
    _check("hold", hold, 0, 3600)
    _check("max_fps", max_fps, 1, 120)
    _check("min_fps", min_fps, 1, max_fps)
    if length is not None:
        _check("length", length, 0.1, 3600)
    pictures = moving = None if steps is None else steps + (steps - 1) * smooth
    if fps is None:
        whole = round(pictures / (length or LENGTH))  # some players stumble over odd rates
        rate = Fraction(float(min(max(whole, min_fps), max_fps))).limit_denominator(1001)
    else:
        _check("fps", fps, 1, 120)
        rate = Fraction(float(fps)).limit_denominator(1001)  # 23.976 becomes 24000/1001
        if length is not None:
            moving = max(1, round(rate * Fraction(float(length))))
    return Plan(pictures, moving, round(rate * Fraction(float(hold))), rate)


def write_video(source: Any, path: str | os.PathLike | None = None, *, fps: float | None = None,
                length: float | None = None, min_fps: float = 10, max_fps: float = 30, first: int = 0,
                last: int | None = None, hold: float = 0.0, smooth: int = 0, quality: int = 65,
                recipe: dict | None = None, progress: bool = True) -> Path:  # fmt: skip
    """Write a video of a session or of frames; returns its path.

    Args:
        source: a `Session`, whose codes are decoded; or an iterable of `Frame`s, (3, H, W) tensors in [0, 1],
            uint8 arrays (H, W, 3) or PIL images, all of one size.
        path: ends in .mp4 (H.264), .gif or .webp; None is `video.mp4` in the session's folder. It changes
            only once the video is complete, with the recipe inside (see `images.read_recipe`).
        fps: 1 to 120 frames a second, for a GIF to 50, beyond which browsers slow it down. None takes what
            makes the video `length` seconds long, but a whole number from `min_fps` to `max_fps`, as the
            notebooks of 2021 did.
        length: seconds, without `hold`; 15 where neither it nor fps is given. Where both are given, pictures
            are picked evenly: some are left out, or shown longer.
        first, last: the steps to show, both included; None is the end.
        hold: seconds for which the last picture stays.
        smooth: how many pictures to put between two steps of a session, made by moving the latent from one
            step's codes to the next one's and decoding it: shapes change, nothing is cross-faded.
        quality: 0 to 100, for MP4 and WebP; 65 is hard to tell from the pictures.
        recipe: what to store in the file; None takes the session's.
        progress: say what is made, and show a bar.

    An odd side loses one pixel in an MP4, because H.264 wants even ones.

    Raises:
        VideoError: a value out of range, no frames, frames of several sizes, or ffmpeg failed (a full disk,
            say): then with its own words.
    """
    is_session = hasattr(source, "codes") and hasattr(source, "decoder")
    path = _checked_path(path, source.path if is_session else None)
    _check("quality", quality, 0, 100)
    if smooth and not is_session:
        raise VideoError("smooth needs a session, whose codes can be decoded in between; leave it at 0 here.")
    steps = _steps(source.codes if is_session else source, first, last)
    video = plan(steps, fps=fps, length=length, min_fps=min_fps, max_fps=max_fps, hold=hold, smooth=smooth)
    if path.suffix.lower() == ".gif" and video.fps > 50:
        raise VideoError(f"fps={float(video.fps):g} is too fast for a GIF; take at most 50, or an .mp4.")
    if is_session:
        pictures = _decoded(source, first, smooth, video)
        recipe = source.recipe() if recipe is None else recipe
    else:
        pictures = _picked(islice(source, first, None if last is None else last + 1), video)
    _encode(pictures, video, path, quality, recipe, progress)
    return path


def shrink_video(source: Path, target: Path, size: int) -> Path:
    """A copy of a video, half as wide and high, that has at most `size` bytes; as MP4. Returns its path.

    Raises:
        VideoError: ffmpeg failed: then with its own words.
    """
    try:
        _, seconds = imageio_ffmpeg.count_frames_and_secs(str(source))
    except (RuntimeError, OSError) as error:
        raise VideoError(f"{source} cannot be read as a video; make it again.") from error
    rate = int(0.85 * 8 * size / max(seconds, 0.1))  # bits a second; some of it is not pictures
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-i", str(source), "-vf",
               "scale=trunc(iw/4)*2:trunc(ih/4)*2", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "30", "-maxrate",
               str(rate), "-bufsize", str(rate), "-movflags", "+faststart", str(target)]  # fmt: skip
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        raise VideoError(f"ffmpeg could not shrink {source}: {_last_line(done.stderr, done.returncode)}.")
    return target


# Where pictures come from: each yields the pictures that the plan shows, once, as uint8 (H, W, 3).


def _picked(frames: Iterator[Any], video: Plan) -> Iterator[np.ndarray]:
    position = 0
    for picture, _ in video.shown():
        frame = next(islice(frames, picture - position, None), None)
        if frame is None:
            return
        yield _pixels(frame)
        position = picture + 1


def _decoded(session: Any, first: int, smooth: int, video: Plan) -> Iterator[np.ndarray]:
    vqgan = session.decoder()
    width, height = session.settings.size
    batch = min(max(BATCH_PIXELS // (width * height), 1), 8)
    shown = video.shown()
    while picks := [(first * (smooth + 1) + picture) for picture, _ in islice(shown, batch)]:
        images = _decode(session.codes, vqgan, [divmod(pick, smooth + 1) for pick in picks], smooth + 1)
        yield from (_pixels(crop_to(image, (width, height))) for image in images)


@torch.inference_mode()
def _decode(codes: Any, vqgan: Any, moments: list[tuple[int, int]], parts: int) -> Tensor:
    """The pictures (B, 3, H, W) at moments (step, part): the latent part/parts on its way to the next."""
    device = vqgan.codebook.device

    def embed(steps: list[int]) -> Tensor:
        grids = np.concatenate([codes.read(step, step) for step in steps])
        return vqgan.embed(torch.from_numpy(grids).to(device))

    z_here, z_there = embed([s for s, _ in moments]), embed([s + (part > 0) for s, part in moments])
    ways = torch.tensor([part / parts for _, part in moments], dtype=z_here.dtype, device=device)
    return vqgan.decode(torch.lerp(z_here, z_there, ways.view(-1, 1, 1, 1)))  # (B, C, h, w) -> (B, 3, H, W)


def _pixels(frame: Any) -> np.ndarray:
    """One frame as uint8 (H, W, 3), cropped to the size that was asked for."""
    if hasattr(frame, "image"):
        frame = crop_to(frame.image, frame.size) if hasattr(frame, "size") else frame.image
    if isinstance(frame, Tensor):
        frame = to_pil(frame)
    if isinstance(frame, Image.Image):
        frame = np.asarray(frame.convert("RGB"))
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        shape = f" {frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else ""
        raise VideoError(f"A frame of {type(frame).__name__}{shape} is no picture; give uint8 (H, W, 3).")
    return frame


# Where they go.


def _encode(pictures: Iterator[np.ndarray], video: Plan, path: Path, quality: int, recipe: dict | None,
            progress: bool) -> None:  # fmt: skip
    opening = next(pictures, None)
    if opening is None:
        raise VideoError("There are no frames to make a video of; let the run take a step first.")
    height, width = shape = opening.shape[:2]
    if path.suffix.lower() == ".mp4":
        height, width = height // 2 * 2, width // 2 * 2
    if progress:
        cropped = (
            ""
            if (height, width) == shape
            else f", cropped from {shape[1]}x{shape[0]}: H.264 wants even sides"
        )
        tqdm.write(f"{path.name}: {video}, {width}x{height} pixels{cropped}")
    frames = _timed(chain([opening], pictures), video)
    frames = tqdm(frames, total=video.frames, unit="frame", disable=not progress)
    with atomic_path(path) as temporary:
        with _ffmpeg(temporary, (width, height), video.fps, quality, recipe) as pipe:
            for number, frame in enumerate(frames):
                if frame.shape[:2] != shape:
                    sizes = f"{frame.shape[1]}x{frame.shape[0]}, the first {shape[1]}x{shape[0]}"
                    raise VideoError(f"Frame {number} has {sizes} pixels; give frames of one size.")
                pipe.write(np.ascontiguousarray(frame[:height, :width]))
        if recipe is not None and path.suffix.lower() != ".mp4":
            metadata.embed(temporary, json.dumps(recipe))


def _timed(pictures: Iterable[np.ndarray], video: Plan) -> Iterator[np.ndarray]:
    """Each picture for as many frames as it is shown, and the last one for the hold."""
    for picture, (_, frames) in zip(pictures, video.shown(), strict=False):
        yield from repeat(picture, frames)
    yield from repeat(picture, video.held)


@contextmanager
def _ffmpeg(path: Path, size: tuple[int, int], fps: Fraction, quality: int,
            recipe: dict | None) -> Iterator[IO[bytes]]:  # fmt: skip
    """A pipe that takes raw RGB frames.

    Not imageio-ffmpeg's own writer: that one tells neither how ffmpeg ended nor why, and a video cut short
    by a full disk would pass for a good one.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log:
        command = _command(path, size, fps, quality, recipe, Path(folder) / "recipe.txt")
        # A session of its own, so that an interrupt reaches us, and not ffmpeg first.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log,
                                   start_new_session=True)  # fmt: skip
        gone = False
        try:
            try:
                yield process.stdin
                process.stdin.close()
            except BrokenPipeError:  # it ended by itself, its log says why
                gone = True
            gone = process.wait() != 0 or gone
        finally:
            process.kill()
            process.wait()
            with suppress(OSError):
                process.stdin.close()
        if gone:
            log.seek(0)
            words = _last_line(log.read(), process.returncode)
            raise VideoError(f"ffmpeg could not write the video: {words}.")


def _command(path: Path, size: tuple[int, int], fps: Fraction, quality: int, recipe: dict | None,
             comment: Path) -> list[str]:  # fmt: skip
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise VideoError("There is no ffmpeg here; `pip install imageio-ffmpeg` brings one.") from error
    sources = f"-f rawvideo -pix_fmt rgb24 -video_size {size[0]}x{size[1]} -framerate {fps} -i pipe:0".split()
    suffix = path.suffix.lower()
    if suffix == ".mp4" and recipe is not None:
        text = metadata.ffmetadata(json.dumps(recipe, ensure_ascii=False))
        comment.write_text(text, encoding="utf-8", newline="\n")
        sources += ["-f", "ffmetadata", "-i", str(comment), "-map", "0:v", "-map_metadata", "1"]
    return [program, "-v", "error", "-y", *sources, *_encoding(suffix, quality), str(path.absolute())]


def _encoding(suffix: str, quality: int) -> list[str]:
    if suffix == ".mp4":  # said and done in BT.709: without the tags players guess, and reds and greens shift
        pixels = "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd,format=yuv420p"
        tags = "-colorspace bt709 -color_primaries bt709 -color_trc bt709"
        rate = round(51 * (1 - quality / 100))
        return f"-vf {pixels} {tags} -c:v libx264 -crf {rate} -movflags +faststart".split()
    if suffix == ".gif":  # a palette for each frame: better colours, and nothing to be kept
        palette = "split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1"
        return f"-filter_complex {palette} -loop 0".split()
    return f"-c:v libwebp_anim -quality {quality} -loop 0".split()


def _last_line(log: bytes, status: int) -> str:
    lines = [line.strip() for line in log.decode("utf-8", "replace").splitlines()]
    said = [re.sub(r"^\[[^]]*] *", "", line) for line in lines if line and line != "Conversion failed!"]
    return said[-1].rstrip(".") if said else f"it ended with status {status}"


# What was asked for.


def _checked_path(path: str | os.PathLike | None, folder: Path | None) -> Path:
    if path is None and folder is None:
        raise VideoError("Frames have no folder of their own; give a path such as video.mp4.")
    path = Path(folder) / "video.mp4" if path is None else Path(path).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        raise VideoError(f"{path.name} is no kind of video known here; end it in {', '.join(SUFFIXES)}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        words = f"The folder {path.parent} cannot be used ({error.strerror}); choose another."
        raise VideoError(words) from error
    return path


def _steps(source: Any, first: int, last: int | None) -> int | None:
    """How many steps there are from first to last; None for frames of which nobody knows."""
    if first < 0 or (last is not None and last < first):
        raise VideoError(f"first={first} and last={last} are no span of steps; first comes first, from 0.")
    known = operator.length_hint(source, -1)
    if known < 0:
        return None
    if known and max(first, last or 0) >= known:
        raise VideoError(f"first={first}, last={last} reach beyond the steps: choose 0 to {known - 1}.")
    return min(known, known if last is None else last + 1) - first


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise VideoError(f"{name}={value} is out of range; choose {low:g} to {high:g}.")
