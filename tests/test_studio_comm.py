"""The panel reaches a cell that runs: moves, presses and Stop arrive while it paints; real kernels, no browser.

`VQCLIP_COLAB_PYTHON` names a Python with the versions that Colab has (see `make test-colab`).
"""

import json
import os
import re
import sys
import time

import pytest
import torch
from front import Front

import vqclip
from vqclip import Session

NEWEST = pytest.param(sys.executable, id="newest")
COLAB = pytest.param(os.environ.get("VQCLIP_COLAB_PYTHON"), id="colab", marks=pytest.mark.colab)


@pytest.fixture(params=[NEWEST, COLAB])
def front(request, tmp_path):
    with Front(request.param, VQCLIP_HOME=str(tmp_path)) as front:
        front.home = tmp_path
        done = front.run(
            "import vqclip\n"
            "settings = vqclip.Settings(prompts='desert:.9 | snow:.1', size=(32, 32), steps=100_000, cutouts=2)\n"
            "studio = vqclip.Studio(vqclip.workspace(), settings)\n"
            "studio"
        )
        assert done["status"] == "ok", done
        yield front


def step(front):
    found = re.findall(r"step (\d+) of", front.text())
    return int(found[-1]) if found else -1


def paints_on(front, more=2):
    """Wait until it has made some more steps than now."""
    at = step(front)
    front.wait(lambda: step(front) >= at + more, "the next step")


def begin(front):
    cell = front.send_cell("await studio.run()")
    front.wait(lambda: step(front) >= 1, "the first step")
    return cell


def said(front, text):
    front.wait(lambda: text in front.text(), text)


def button(front, name):
    return front.find(_model_name="ButtonModel", description=name)


def ended(front, cell):
    front.wait(lambda: cell in front.idle and cell in front.replies, "the end of the cell")
    return front.replies[cell]["status"]


def test_the_panel_steers_a_cell_that_runs(front):
    cell = begin(front)
    ear = front.find(_model_name="PlayModel")
    playing = "playing" if "playing" in front.models[ear] else "_playing"
    front.wait(lambda: front.models[ear][playing], "the question whether the page is heard")
    front.set(ear, value=1)
    front.wait(lambda: not front.models[ear][playing], "the answer's arrival")
    snow = front.find(_model_name="FloatSliderModel", value=0.1, max=1.0)
    picture = front.find(_model_name="ImageModel")
    for weight in (0.5, 0.9):  # the second arrives only if the page was told that the first was done with
        message = front.set(snow, value=weight)
        front.wait(lambda message=message: message in front.idle, "the slider's idle")
        assert cell not in front.idle
        paints_on(front)
    before = front.models[picture]["value"]
    paints_on(front, 3)
    assert front.models[picture]["value"] != before and front.models[picture]["value"][:2] == b"\xff\xd8"
    front.set(front.find(_model_name="FloatLogSliderModel"), value=0.7)
    paints_on(front)

    message = front.click(button(front, "Pause"))
    said(front, ">Paused<")
    assert message in front.idle and cell not in front.idle
    at = step(front)
    front.pump(0.5)
    assert step(front) == at
    queued = front.send_cell("print('queued')")
    front.click(button(front, "Paint"))
    said(front, ">Painting<")
    paints_on(front)
    assert queued not in front.idle  # it waits for its turn

    front.click(button(front, "Stop"))
    assert ended(front, cell) == "ok" and ended(front, queued) == "ok"
    said(front, "Stopped. All is kept")
    session = Session.latest(front.home)
    steering = [{key: entry[key] for key in entry if key != "step"} for entry in json.loads(
        (session.path / "steering.json").read_text("utf-8"))]  # fmt: skip
    assert steering == [{"prompts": "desert:0.9 | snow:0.5"}, {"prompts": "desert:0.9 | snow:0.9"}, {"lr": 0.7}]
    assert (session.path / "final.png").exists()

    made = len(session.codes)
    cell = front.send_cell("await studio.run()")  # and it goes on in the same session
    front.wait(lambda: step(front) > made + 1, "further steps")
    front.manager.interrupt_kernel()
    assert ended(front, cell) == "ok"  # the cell's stop button is a stop, not an error
    assert Session.latest(front.home).path == session.path and len(session.codes) > made


def test_an_error_reaches_panel_and_cell_and_it_goes_on(front):
    cell = begin(front)
    front.click(button(front, "Stop"))
    assert ended(front, cell) == "ok"
    front.run("studio.player.run.losses['odd'] = 1.0, lambda image: image.mean() * float('nan')")
    cell = front.send_cell("await studio.run()")
    assert ended(front, cell) == "error" and front.replies[cell]["ename"] == "NotFinite"
    said(front, "It stopped: at step")
    made = len(Session.latest(front.home).codes)
    front.run("del studio.player.run.losses['odd']")
    cell = front.send_cell("await studio.run()")
    front.wait(lambda: step(front) > made, "further steps")
    front.click(button(front, "Stop"))
    assert ended(front, cell) == "ok"


def test_what_cannot_be_is_said_and_changes_nothing(front):
    cell = begin(front)
    front.set(front.find(_model_name="FloatSliderModel", value=0.1, max=1.0), value=0)
    front.set(front.find(_model_name="FloatSliderModel", value=0.9, max=1.0), value=0)
    said(front, "All weights are 0")
    paints_on(front)
    front.click(button(front, "Add a prompt"))
    front.wait(lambda: sum(one.get("_model_name") == "TextModel" for one in front.models.values()) == 3, "a row")
    front.set(front.find(_model_name="TextModel", value=""), value="a red sea:0.5 | fog:-0.2")
    said(front, "a red sea")
    paints_on(front)
    front.click(button(front, "Stop"))
    assert ended(front, cell) == "ok"
    assert "a red sea" in Session.latest(front.home).losses()[-1]["similarity"]
    assert "fog" in Session.latest(front.home).losses()[-1]["similarity"]


def test_interrupt_change_run_again_goes_on_from_the_exact_latent(front):
    """Where a running cell hears nothing, this is the way to steer; replayed, it is the same picture, bit for bit."""
    front.run("import torch; torch.set_num_threads(1)")
    cell = begin(front)
    front.manager.interrupt_kernel()
    assert ended(front, cell) == "ok"
    said(front, ">Stopped.")
    session = Session.latest(front.home)
    left = len(session.codes)
    moved = front.set(front.find(_model_name="FloatLogSliderModel"), value=0.7)
    front.wait(lambda: moved in front.idle, "the slider's idle")
    assert len(Session.latest(front.home).codes) == left
    cell = front.send_cell("await studio.run()")
    front.wait(lambda: step(front) >= left + 3, "further steps")
    front.click(button(front, "Stop"))
    assert ended(front, cell) == "ok"

    session = Session(session.path)
    assert session.steering == {left: {"lr": 0.7}}
    again = vqclip.generate(settings=session.settings, steering=session.steering)
    made = session.codes.read()
    assert len(made) > left + 3
    assert torch.stack([next(again).codes for _ in made]).equal(torch.from_numpy(made).to(torch.long))


def test_a_page_that_is_heard_is_never_called_deaf(front):
    front.run("from vqclip import hearing; hearing.PATIENCE, hearing.AGAIN = 2.0, 0.5")
    deaf = "hears nothing while the cell runs"

    def listened(cell, seconds):
        """Let it run for longer than its patience."""
        until = time.monotonic() + seconds
        front.wait(lambda: time.monotonic() > until, "its end")
        assert cell not in front.idle

    front.counts = True
    for _ in range(2):  # each run asks anew
        cell = begin(front)
        listened(cell, 4)
        front.click(button(front, "Stop"))
        assert ended(front, cell) == "ok"
    assert not [text for text in front.said if deaf in text]

    front.counts = False  # and it would have been seen
    cell = begin(front)
    front.wait(lambda: deaf in front.text(), "the note")
    front.set(front.find(_model_name="FloatLogSliderModel"), value=0.7)  # what is heard is heard
    front.wait(lambda: deaf not in front.text(), "its going")
    front.click(button(front, "Stop"))
    assert ended(front, cell) == "ok"
