"""Videos and files in a notebook's page: small ones whole, large ones as a small copy or by their path; Colab too."""

import base64
import re
import sys
from types import ModuleType, SimpleNamespace

import imageio_ffmpeg
import numpy as np
import pytest

from vqclip import colab, watch
from vqclip.session import SessionError, workspace
from vqclip.video import VideoError, shrink_video, write_video


@pytest.fixture
def shown(monkeypatch):
    """The HTML that was displayed."""
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda what: shown.append(what.data))
    return shown


@pytest.fixture
def video(tmp_path):
    noise = np.random.default_rng(0)
    frames = [noise.integers(0, 256, (64, 96, 3), dtype=np.uint8) for _ in range(20)]
    return write_video(frames, tmp_path / "noise.mp4", fps=10, quality=95, progress=False)


def content(html):
    return base64.b64decode(re.search(r"base64,([^\"]+)", html)[1])


def test_a_small_video_is_in_the_page_whole(video, shown, capsys):
    watch.show_video(video)
    assert "<video" in shown[0] and "controls" in shown[0] and content(shown[0]) == video.read_bytes()
    assert capsys.readouterr().out.strip() == str(video)


def test_a_gif_is_a_picture(tmp_path, shown):
    frames = [np.full((16, 16, 3), shade, np.uint8) for shade in (0, 90, 200)]
    path = write_video(frames, tmp_path / "x.gif", fps=5, progress=False)
    watch.show_video(path)
    assert shown[0].startswith("<img") and "data:image/gif" in shown[0]


def test_of_a_large_video_a_small_copy_plays_and_the_path_is_said(video, shown, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(watch, "EMBEDDED", 60_000)
    assert video.stat().st_size > 60_000
    watch.show_video(video)
    small = tmp_path / "small.mp4"
    small.write_bytes(content(shown[0]))
    assert small.stat().st_size <= 60_000
    reader = imageio_ffmpeg.read_frames(str(small))
    assert next(reader)["size"] == (48, 32) and sum(1 for _ in reader) == 20
    assert str(video) in capsys.readouterr().out


def test_of_a_large_gif_the_copy_plays_as_the_video_it_is(tmp_path, shown, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    path = write_video(list(noise), tmp_path / "x.gif", fps=5, progress=False)
    monkeypatch.setattr(watch, "EMBEDDED", path.stat().st_size - 1)
    watch.show_video(path)
    assert shown[0].startswith("<video") and b"ftyp" in content(shown[0])[:16]


def test_what_is_no_video_cannot_be_shrunk(tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match="cannot be read|could not shrink"):
        shrink_video(tmp_path / "x.mp4", tmp_path / "y.mp4", 1000)


def test_a_file_is_offered_behind_a_button_or_by_its_path(video, shown, capsys, monkeypatch):
    watch.offer_download(video)
    assert 'download="noise.mp4"' in shown[0] and "data:video/mp4" in shown[0]
    assert "<button" not in shown[0]  # within a link Firefox does not follow a press on one
    assert content(shown[0]) == video.read_bytes()
    monkeypatch.setattr(watch, "DOWNLOADED", 10)
    watch.offer_download(video)
    assert len(shown) == 1 and str(video) in capsys.readouterr().out


@pytest.fixture
def in_colab(monkeypatch):
    """A stand-in for Colab's module, which notes what is asked of it."""
    asked = []
    google, module = ModuleType("google"), ModuleType("google.colab")
    module.files = SimpleNamespace(download=asked.append)
    module.drive = SimpleNamespace(mount=asked.append)
    monkeypatch.setitem(sys.modules, "google", google)
    monkeypatch.setitem(sys.modules, "google.colab", module)
    return asked


def test_colab_is_asked_only_in_colab(video, shown, in_colab):
    assert colab.in_colab()
    watch.offer_download(video, at_once=True)
    assert in_colab == [str(video)] and shown == []


def test_in_colab_nothing_is_downloaded_unasked(video, shown, in_colab, capsys):
    watch.offer_download(video)
    assert in_colab == shown == [] and "tick `download`" in capsys.readouterr().out


def test_the_workspace_may_lie_on_drive(in_colab, monkeypatch, tmp_path):
    monkeypatch.delenv("VQCLIP_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(colab, "DRIVE", tmp_path / "drive")
    assert workspace(drive=True) == tmp_path / "drive" / "MyDrive" / "vqclip" and in_colab == [str(tmp_path / "drive")]
    assert str(workspace()) == "workspace"


def test_a_drive_that_was_refused_is_said(in_colab, monkeypatch):
    monkeypatch.delenv("VQCLIP_HOME", raising=False)

    def refuse(_):
        raise ValueError("mount failed")

    sys.modules["google.colab"].drive.mount = refuse
    with pytest.raises(SessionError, match=r"Drive was not mounted \(mount failed\): allow it, or untick"):
        workspace(drive=True)
