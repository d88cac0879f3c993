"""The studio as people have it, in a real browser: JupyterLab's page and Voila's."""

import pytest

pytest.importorskip("playwright")
import browser  # noqa: E402

from vqclip import Settings  # noqa: E402

pytestmark = pytest.mark.browser
SNOW = {"prompts": "desert:.9 | snow:.1", "width": 128, "height": 128, "cutouts": 8}


def test_the_studio_in_jupyterlab(tmp_path):
    browser.notebook(tmp_path, "00_studio", **SNOW, steps=100_000)
    with browser.lab(tmp_path) as port, browser.chromium() as page:
        studio = browser.open_in_lab(page, port, "00_studio")
        browser.command(page, "notebook:run-all-cells")
        studio.panel.wait_for()
        studio.wait(lambda: studio.step() >= 10, "the first steps")
        studio.panel.scroll_into_view_if_needed()
        before = studio.pixels()
        studio.paints_on(5)
        assert studio.pixels()[3] != before[3]
        studio.shoot("light-painting")

        dark, few = studio.pixels(), studio.meter(1)
        studio.set_weight(1, 0.9)
        studio.set_weight(0, 0.1)
        studio.paints_on(30)
        assert studio.meter(1) > few
        assert sum(studio.pixels()[:3]) > sum(dark[:3])
        studio.shoot("light-snow")

        studio.press("Pause")
        studio.wait(lambda: studio.status() == "Paused", "the pause")
        at = studio.step()
        page.wait_for_timeout(1000)
        assert studio.step() == at
        studio.shoot("light-paused")
        browser.change_theme(page, "Dark")
        studio.shoot("dark-paused")
        studio.press("Paint")
        studio.paints_on()
        studio.shoot("dark-painting")
        studio.press("Stop")
        studio.wait(lambda: studio.status().startswith("Stopped"), "the stop")
        studio.shoot("dark-stopped")

        video = page.locator("video").first
        video.scroll_into_view_if_needed()
        video.evaluate("video => { video.muted = true; return video.play(); }")
        studio.wait(lambda: video.evaluate("video => video.currentTime") > 0, "the video's second frame")
        studio.shoot("dark-video")


def test_a_page_that_is_reloaded_finds_its_run(tmp_path):
    browser.notebook(tmp_path, "00_studio", **SNOW, steps=100_000)
    with browser.lab(tmp_path) as port, browser.chromium() as page:
        studio = browser.open_in_lab(page, port, "00_studio")
        browser.command(page, "notebook:run-all-cells")
        studio.panel.wait_for()
        studio.wait(lambda: studio.step() >= 3, "the first steps")
        browser.command(page, "docmanager:save")
        page.wait_for_timeout(2000)
        page.reload()
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        studio.wait(lambda: studio.panel.count() > 0 and studio.step() >= 5, "the panel, again")
        studio.shoot("light-reloaded")
        studio.paints_on(3)
        studio.press("Stop")
        studio.wait(lambda: studio.status().startswith("Stopped"), "the stop")


def test_the_page_through_voila(tmp_path):
    """Not without the token; Paint, steer, Stop, and the video plays."""
    (tmp_path / "workspace").mkdir()
    Settings(prompts="desert:.9 | snow:.1", cutouts=8, steps=100_000).save(tmp_path / "workspace/settings.yaml")
    with browser.voila(tmp_path) as (port, token), browser.chromium() as page:
        page.goto(f"http://127.0.0.1:{port}/")
        assert page.locator(".vqclip-studio").count() == 0 and "login" in page.url
        page.goto(f"http://127.0.0.1:{port}/?token={token}")
        studio = browser.StudioPage(page)
        studio.panel.wait_for()
        studio.shoot("voila-ready")
        studio.press("Paint")
        studio.wait(lambda: studio.step() >= 5, "the first steps")
        few = studio.meter(1)
        studio.set_weight(1, 0.9)
        studio.set_weight(0, 0.1)
        studio.paints_on(30)
        assert studio.meter(1) > few
        studio.shoot("voila-painting")
        studio.press("Stop")
        studio.wait(lambda: studio.status().startswith("Stopped"), "the stop")
        studio.press("Make the video")
        video = page.locator("video").first
        video.wait_for()
        video.evaluate("video => { video.muted = true; return video.play(); }")
        studio.wait(lambda: video.evaluate("video => video.currentTime") > 0, "the video's second frame")
        studio.shoot("voila-video")


@pytest.mark.parametrize("width", [900, 390])
def test_narrow_pages_stay_readable(tmp_path, width):
    """Nothing sticks out of the panel, on a small screen and on a phone."""
    browser.notebook(tmp_path, "00_studio", **SNOW, steps=3)
    with browser.lab(tmp_path) as port, browser.chromium(width=width, height=1200) as page:
        studio = browser.open_in_lab(page, port, "00_studio")
        browser.command(page, "notebook:run-all-cells")
        studio.wait(lambda: studio.panel.count() > 0 and studio.status().startswith("Done"), "the end")
        studio.panel.scroll_into_view_if_needed()
        studio.shoot(f"light-{width}")
        sticking = studio.panel.evaluate(
            "panel => [...panel.querySelectorAll('*')].filter(one => one.getBoundingClientRect().right > "
            "panel.getBoundingClientRect().right + 2 && getComputedStyle(one).display != 'none').length"
        )
        assert sticking == 0
