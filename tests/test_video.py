"""Videos: reopened, they have the frames, rate, size, colours and recipe that were promised."""

import subprocess
import sys
import warnings
import weakref
from fractions import Fraction
from types import SimpleNamespace

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from vqclip.codelog import CodeLog
from vqclip.images import read_recipe
from vqclip.settings import Settings
from vqclip.video import Plan, VideoError, plan, write_video

RECIPE = {"prompts": "砂漠:2 | fog=-0.5; #1\\2", "seed": 7, "long": ["step"] * 40_000}


def solid(level, width=32, height=24):
    return np.full((height, width, 3), level, np.uint8)


def ramp(n, **size):
    return [solid(round(255 * i / max(n - 1, 1)), **size) for i in range(n)]


def frames_of(path):
    """Every frame of an MP4, and what its header says."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ResourceWarning
        )  # imageio-ffmpeg's reader leaves its pipes to the collector
        reader = imageio_ffmpeg.read_frames(str(path))
        header = next(reader)
        width, height = header["size"]
        return [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader], header


def animation(path):
    """Every frame of a GIF or WebP, and their durations in milliseconds."""
    with Image.open(path) as image:
        frames, durations = [], []
        for number in range(image.n_frames):
            image.seek(number)
            frames.append(np.asarray(image.convert("RGB")))
            durations.append(image.info["duration"])
        return frames, durations


@pytest.fixture
def session(tmp_path, vqgan):
    """Seven steps of random codes of 17 x 9, for pictures of 33 x 18 (f = 2, so 34 x 18 are decoded)."""
    codes = CodeLog.create(tmp_path / "codes", 9, 17, 32)
    generator = torch.Generator().manual_seed(0)
    for step in range(7):
        codes.append(step, torch.randint(32, (9, 17), generator=generator).numpy())
    return SimpleNamespace(
        path=tmp_path,
        codes=codes,
        settings=Settings(size=(33, 18)),
        decoder=lambda: vqgan,
        recipe=lambda: RECIPE,
    )


def decoded(session, z):
    """What the session's painter makes of a latent, as the video should show it: 33 x 18, uint8."""
    image = session.decoder().decode(z)[0].clamp(0, 1)
    return (image[:, :, :33] * 255).round().byte().permute(1, 2, 0).numpy()


def differ(a, b):
    """Mean difference in brightness, which 4:2:0 keeps for every pixel; an odd column is left out."""
    luma = [0.2126, 0.7152, 0.0722]
    return abs(a[:, :32] @ luma - b[:, :32] @ luma).mean()


def latent(session, step):
    return session.decoder().embed(torch.from_numpy(session.codes.read(step, step)))


@pytest.mark.parametrize("fps", [10, 23.976, 60])
def test_mp4_has_the_frames_size_rate_and_duration_asked_for(tmp_path, fps):
    path = write_video(ramp(12), tmp_path / "a.mp4", fps=fps, progress=False)
    frames, header = frames_of(path)
    assert imageio_ffmpeg.count_frames_and_secs(str(path))[0] == len(frames) == 12
    assert (
        header["size"] == (32, 24) and header["codec"] == "h264" and header["pix_fmt"].startswith("yuv420p")
    )
    assert header["fps"] == pytest.approx(fps, abs=0.01)
    assert header["duration"] == pytest.approx(12 / fps, abs=0.01)
    for shown, given in zip(frames, ramp(12), strict=True):
        assert abs(shown.astype(int) - given).max() <= 4


def test_mp4_starts_before_it_is_downloaded_and_keeps_colours(tmp_path):
    colours = [(200, 30, 30), (30, 160, 60), (40, 60, 220), (240, 200, 30)]
    given = [np.full((32, 32, 3), colour, np.uint8) for colour in colours]
    path = write_video(given, tmp_path / "a.mp4", fps=10, quality=90, progress=False)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    for frame, colour in zip(frames_of(path)[0], colours, strict=True):
        assert abs(frame.mean((0, 1)) - colour).max() < 4


@pytest.mark.parametrize("fps", [5, 20, 30])
@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_gif_and_webp(tmp_path, suffix, fps):
    path = write_video(ramp(6), tmp_path / f"a.{suffix}", fps=fps, hold=1, recipe=RECIPE, progress=False)
    frames, durations = animation(path)
    assert sum(durations) == pytest.approx((6 / fps + 1) * 1000, abs=11)
    assert frames[0].shape == (24, 32, 3)
    levels = [frame.mean() for frame in frames[:6]]
    assert np.allclose(levels, [solid.mean() for solid in ramp(6)], atol=4)
    assert abs(frames[-1].astype(int) - 255).max() <= 4
    assert read_recipe(path) == RECIPE
    with Image.open(path) as image:
        assert image.info.get("loop") == 0  # for ever


@pytest.mark.parametrize("recipe", [None, {}, {"a": 1}, {"a": 10}])
def test_webp_chunks_are_whole(tmp_path, recipe):
    data = write_video(ramp(3), tmp_path / "a.webp", fps=10, recipe=recipe, progress=False).read_bytes()
    assert int.from_bytes(data[4:8], "little") + 8 == len(data) and len(data) % 2 == 0


@pytest.mark.parametrize("suffix", ["mp4", "gif", "webp"])
@pytest.mark.parametrize("frames", [1, 4])
def test_nothing_moves(tmp_path, suffix, frames):
    """One frame, or frames that are all alike, of which a WebP keeps but one."""
    path = write_video([solid(99)] * frames, tmp_path / f"a.{suffix}", fps=10, recipe=RECIPE, progress=False)
    assert read_recipe(path) == RECIPE
    if suffix == "mp4":
        shown = frames_of(path)[0]
        assert len(shown) == frames
    else:
        with Image.open(path) as image:
            shown = [np.asarray(image.convert("RGB"))]
    assert abs(shown[0].astype(int) - 99).max() <= 4


def test_gif_frames_have_palettes_of_their_own(tmp_path):
    """256 reds, then 256 blues: one palette for both would have to halve them."""
    level = np.arange(256, dtype=np.uint8).reshape(16, 16)
    zero = np.zeros_like(level)
    given = [np.stack([level, zero, zero], -1), np.stack([zero, zero, level], -1)]
    frames, _ = animation(write_video(given, tmp_path / "a.gif", fps=5, progress=False))
    for shown, frame in zip(frames, given, strict=True):
        assert abs(shown.astype(int) - frame).mean() < 0.05


def test_recipe_travels_in_the_mp4(tmp_path):
    path = write_video(ramp(3), tmp_path / "new" / "a.mp4", fps=10, recipe=RECIPE, progress=False)
    assert read_recipe(path) == RECIPE
    assert len(frames_of(path)[0]) == 3


def test_any_kind_of_frame(tmp_path):
    grey = torch.full((3, 24, 34), 0.5)
    frames = [
        SimpleNamespace(image=grey, size=(32, 22)),
        grey[:, 1:-1, 1:-1],
        Image.new("L", (32, 22), 128),
        solid(128, 32, 22),
    ]
    shown, header = frames_of(write_video(frames, tmp_path / "a.mp4", fps=10, progress=False))
    assert header["size"] == (32, 22)
    assert [round(frame.mean() / 4) for frame in shown] == [32] * 4


def test_odd_sides_lose_a_pixel_and_it_is_said(tmp_path, capsys):
    path = write_video(ramp(2, width=33, height=23), tmp_path / "a.mp4", fps=10)
    assert frames_of(path)[1]["size"] == (32, 22)
    assert (
        "2 frames at 10 frames a second = 0.2 s, 32x22 pixels, cropped from 33x23: H.264 wants even sides"
        in capsys.readouterr().out
    )
    assert (
        animation(write_video(ramp(2, width=33, height=23), tmp_path / "a.webp", fps=10))[0][0].shape[1] == 33
    )


def test_frames_are_let_go_as_they_are_written(tmp_path):
    """120 frames from a generator: only a few are ever alive at once."""
    made, most = [], 0

    def frames():
        nonlocal most
        for level in range(120):
            frame = solid(level)
            made.append(weakref.ref(frame))
            yield frame
            del frame
            most = max(most, sum(picture() is not None for picture in made))

    path = write_video(frames(), tmp_path / "a.mp4", fps=30, progress=False)
    assert len(frames_of(path)[0]) == 120 and 1 <= most <= 3


def test_a_session_is_decoded(session):
    path = write_video(session, fps=10, quality=100, progress=False)
    assert path == session.path / "video.mp4" and read_recipe(path) == RECIPE
    shown, header = frames_of(path)
    assert header["size"] == (32, 18) and len(shown) == 7
    for step, frame in enumerate(shown):
        assert differ(frame, decoded(session, latent(session, step))) < 4


def test_a_span_of_steps(session):
    path = write_video(session, session.path / "a.webp", first=2, last=4, fps=10, quality=100, progress=False)
    shown = animation(path)[0]
    assert len(shown) == 3 and shown[0].shape == (18, 33, 3)
    for step, frame in enumerate(shown, 2):
        errors = [differ(frame, decoded(session, latent(session, other))) for other in range(7)]
        assert np.argmin(errors) == step


def test_a_span_of_frames(tmp_path):
    for source in (ramp(52), iter(ramp(52)), (frame for frame in ramp(52))):
        path = write_video(source, tmp_path / "a.mp4", first=10, last=12, fps=10, quality=95, progress=False)
        assert np.allclose([frame.mean() for frame in frames_of(path)[0]], [50, 55, 60], atol=1.5)


def test_in_between_pictures_move_the_latent_and_are_no_cross_fade(session):
    path = write_video(session, smooth=2, fps=10, quality=100, progress=False)
    shown = frames_of(path)[0]
    assert len(shown) == 7 + 6 * 2
    for step in range(6):
        here, there = latent(session, step), latent(session, step + 1)
        for part in (1, 2):
            moved = decoded(session, here + (there - here) * part / 3)
            faded = decoded(session, here) * (1 - part / 3) + decoded(session, there) * (part / 3)
            frame = shown[3 * step + part]
            assert differ(frame, moved) < 4 < 0.5 * differ(frame, faded)


def test_fps_and_length_together_pick_evenly(tmp_path):
    shorter = write_video(ramp(52), tmp_path / "a.mp4", fps=10, length=1.8, quality=95, progress=False)
    levels = [frame.mean() for frame in frames_of(shorter)[0]]
    assert np.allclose(levels, np.linspace(0, 255, 18), atol=6)
    longer = write_video(iter(ramp(3)), tmp_path / "b.mp4", fps=10, length=0.9, quality=95, progress=False)
    assert [round(frame.mean() / 127.5) for frame in frames_of(longer)[0]] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("asked", "frames", "fps", "seconds"),
    [
        (dict(steps=300), 300, 20, 15),
        (dict(steps=301), 301, 20, 15.05),
        (dict(steps=314), 314, 21, 14.95),
        (dict(steps=60), 60, 10, 6),
        (dict(steps=5000), 5000, 30, 166.67),
        (dict(steps=5000, max_fps=60), 5000, 60, 83.33),
        (dict(steps=60, min_fps=2), 60, 4, 15),
        (dict(steps=60, length=2), 60, 30, 2),
        (dict(steps=300, fps=25), 300, 25, 12),
        (dict(steps=300, fps=30000 / 1001), 300, Fraction(30000, 1001), 10.01),
        (dict(steps=300, fps=30, length=5), 150, 30, 5),
        (dict(steps=10, fps=10, length=5), 50, 10, 5),
        (dict(steps=300, fps=30, hold=2), 360, 30, 12),
        (dict(steps=101, fps=10, smooth=2), 301, 10, 30.1),
        (dict(steps=31, smooth=9), 301, 20, 15.05),
        (dict(steps=1), 1, 10, 0.1),
        (dict(steps=1, fps=10, hold=3, smooth=5), 31, 10, 3.1),
    ],
)
def test_the_plan_states_frames_rate_and_duration_before(asked, frames, fps, seconds):
    video = plan(**asked)
    assert (video.frames, video.fps) == (frames, fps) and video.seconds == pytest.approx(seconds, abs=0.01)
    shown = list(video.shown())
    assert sum(times for _, times in shown) + video.held == frames
    assert shown[-1][0] == video.pictures - 1 and shown == sorted(shown)
    assert len(shown) == 1 or shown[0][0] == 0
    assert str(video).startswith(f"{frames} frames at ")


def test_a_plan_for_nobody_knows_how_many():
    video = plan(None, fps=24, hold=1)
    assert video == Plan(None, None, 24, Fraction(24)) and video.seconds is None
    assert str(video) == "24 frames a second"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (dict(fps=0.5), "fps=0.5 is out of range; choose 1 to 120"),
        (dict(fps=121), "fps=121"),
        (dict(fps=float("nan")), "fps=nan"),
        (dict(length=0), "length=0"),
        (dict(hold=-1), "hold=-1"),
        (dict(quality=101), "quality=101"),
        (dict(min_fps=40), "min_fps=40 is out of range; choose 1 to 30"),
        (dict(max_fps=500), "max_fps=500"),
        (dict(smooth=-1), "smooth=-1|smooth needs a session"),
        (dict(smooth=1), "smooth needs a session"),
        (dict(first=3, last=2), "first=3 and last=2 are no span"),
        (dict(first=-1), "first=-1"),
        (dict(first=5), "choose 0 to 4"),
        (dict(last=5), "last=5 reach beyond"),
        (dict(path="a.avi"), "a.avi is no kind of video known here; end it in .mp4, .gif, .webp"),
        (dict(path=None), "give a path"),
        (dict(path="a.gif", fps=60), "fps=60 is too fast for a GIF"),
        (dict(source=[]), "There are no frames"),
        (dict(source=iter([])), "There are no frames"),
        (dict(source=(f for f in [])), "give fps alone"),
        (dict(source=(f for f in []), fps=10), "There are no frames"),
        (dict(source=(f for f in ramp(2)), fps=10, length=1), "give fps alone"),
        (dict(source=[*ramp(2), solid(0, 64, 64)]), "Frame 2 has 64x64, the first 32x24 pixels"),
        (dict(source=[np.zeros((4, 4))]), r"ndarray float64 \(4, 4\) is no picture"),
        (dict(source=["a.png"]), "A frame of str is no picture"),
    ],
)
def test_what_cannot_be_made_says_why_and_leaves_nothing(tmp_path, asked, says):
    asked = {"source": ramp(5), "path": "a.mp4", **asked}
    path = asked.pop("path")
    with pytest.raises(VideoError, match=says):
        write_video(path=path and tmp_path / path, progress=False, **asked)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_session_says_so(session):
    session.codes.truncate(0)
    with pytest.raises(VideoError, match="There are no frames"):
        write_video(session, progress=False)


def test_an_interrupt_leaves_the_old_video(tmp_path):
    path = write_video(ramp(3), tmp_path / "a.mp4", fps=10, progress=False)
    before = path.read_bytes()

    def interrupted():
        yield from ramp(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(interrupted(), path, fps=10, progress=False)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for a failing ffmpeg is a shell script")
@pytest.mark.parametrize("reads", ["head -c 10 >/dev/null", "cat >/dev/null"])
def test_a_failing_ffmpeg_is_quoted(tmp_path, monkeypatch, reads):
    """It dies while frames come, or at the end, when nobody writes to it any more."""
    program = tmp_path / "ffmpeg"
    words = "echo '[out#0 @ 0x1] No space left on device' >&2; echo 'Conversion failed!' >&2"
    program.write_text(f"#!/bin/sh\n{reads}\n{words}\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    with pytest.raises(VideoError, match="ffmpeg could not write the video: No space left on device\\.$"):
        write_video(ramp(50, width=256, height=256), tmp_path / "a.mp4", fps=10, progress=False)
    assert list(tmp_path.iterdir()) == [program]


def test_ffmpeg_has_what_is_needed():
    encoders = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-encoders"], capture_output=True, text=True
    ).stdout
    assert all(f" {name} " in encoders for name in ("libx264", "gif", "libwebp_anim"))
