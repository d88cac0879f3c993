"""The page without a notebook, and without a browser: what it offers when opened again, its video, what it says."""

import asyncio
import base64
import re
import shutil

import pytest

from vqclip import watch
from vqclip.page import Page
from vqclip.session import Session
from vqclip.settings import Settings

TINY = Settings(vqgan="vqgan", clip="vit", size=(16, 16), steps=6, cutouts=2, device="cpu")


@pytest.fixture
def home(tmp_path, files):
    shutil.copytree(files, tmp_path / "checkpoints")
    TINY.save(tmp_path / "settings.yaml")
    return tmp_path


def note(page):
    return page.studio.panel.note.value


async def press(page, button, until):
    """Press a button of the panel, and wait until its status says this."""
    page.studio.panel.buttons[button].click()
    while until not in page.studio.panel.status.value:
        await asyncio.sleep(0)


def test_a_page_opened_again_goes_on_where_it_stood(home):
    async def first():
        page = Page(home)
        assert page.last.disabled and note(page) == ""  # there is none yet
        page.studio.player.steps = 100_000
        await press(page, "play", ">Painting<")
        await press(page, "stop", ">Stopped.")

    async def again():
        page = Page(home)
        assert page.studio.session is None and not page.last.disabled
        assert f"{left.path.name} stands at step {made - 1} of 100000. To go on with it, press “Last" in note(page)
        page.last.click()
        assert page.studio.session.path == left.path and page.last.disabled
        page.studio.player.steps = made + 9
        await press(page, "play", ">Done.")
        return page

    asyncio.run(first())
    left = Session.latest(home)
    made = len(left.codes)
    page = asyncio.run(again())
    assert len(Session.latest(home).codes) == made + 10 and Session.latest(home).path == left.path
    page.begin()
    assert page.studio.session is None and note(page) == "" and not page.last.disabled  # offered, without a word


def test_what_cannot_be_gone_on_with_is_said(home):
    page = Page(home)
    asyncio.run(press(page, "play", ">Done."))
    page.begin()
    (Session.latest(home).path / "about.json").write_text("{")
    page.last.click()
    assert "about.json is damaged" in note(page) and page.studio.session is None
    assert Page(home).last.disabled


@pytest.fixture
def page(home):
    page = Page(home)
    asyncio.run(press(page, "play", ">Done."))
    return page


def test_settings_that_cannot_be_read_are_put_aside_and_said(home):
    (home / "settings.yaml").write_text("prompts: [a\nsteps: 3")
    page = Page(home)
    assert "settings.yaml is not YAML" in note(page) and "put aside as settings.damaged.yaml" in note(page)
    assert page.form.settings == Settings() and "settings.damaged.yaml" in page.form.said.value
    assert (home / "settings.damaged.yaml").read_text().startswith("prompts: [a") and Page(home).form.complaint == ""


def test_the_video_plays_and_can_be_saved(page):
    asyncio.run(page.make_video())
    video, said = page.film.children
    path = page.studio.session.path / "video.mp4"
    assert video.value == path.read_bytes() and video.format == "mp4"
    assert 'download="video.mp4"' in said.value and said.value.endswith(f" {path}")
    assert base64.b64decode(re.search(r"base64,([^\"]+)", said.value)[1]) == path.read_bytes()
    assert not page.make.disabled


def test_of_a_large_video_a_small_copy_plays_and_its_path_is_said(page, monkeypatch):
    asyncio.run(page.make_video())
    path = page.studio.session.path / "video.mp4"
    monkeypatch.setattr(watch, "EMBEDDED", path.stat().st_size - 1)
    monkeypatch.setattr(watch, "DOWNLOADED", path.stat().st_size - 1)
    asyncio.run(page.make_video())
    video, said = page.film.children
    assert bytes(video.value) != path.read_bytes() and b"ftyp" in bytes(video.value[:16])
    assert "small copy" in said.value and str(path) in said.value and "download=" not in said.value


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("CUDA is busy")])
def test_an_error_is_said_in_the_panel(page, monkeypatch, error):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr("vqclip.page.write_video", broken)
    asyncio.run(page.make_video())
    assert str(error).replace("'", "&#x27;") in note(page) and type(error).__name__ in note(page)
    assert not page.make.disabled and page.film.children == ()


def test_without_a_picture_there_is_no_video(home):
    page = Page(home, "de")
    asyncio.run(page.make_video())
    assert "Erst etwas malen" in note(page)
