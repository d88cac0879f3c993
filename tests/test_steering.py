"""What is changed while a run is on acts at the next step, is kept, and is done again by a replay."""

import json
import shutil
import warnings

import mishaps
import numpy as np
import pytest
import quick
import torch

import vqclip
from vqclip import codelog, losses, optim, run, session
from vqclip.images import read_recipe
from vqclip.prompts import PromptError
from vqclip.session import Session, SessionError, steering_of
from vqclip.settings import SettingsError

STEPS = 8
SCRIPT = {2: {"prompts": "desert:10 | a hot sea:90 | fog:-20"}, 5: {"lr": 0.9, "init_weight": 3.0, "cutouts": 5}}


@pytest.fixture(scope="module")
def models():
    return {"vqgan": quick.painter(), "clip": [quick.Judge(), quick.Judge("second")]}


@pytest.fixture
def new_run(models):
    return lambda **changes: quick.run(**models, **{"steps": STEPS, "augment": "mse", "seed": 3, "lr": 0.3, **changes})


def steered(painting, frames=None, until=None):
    """The codes of a run that is changed by hand as the script says, up to the step `until`."""
    codes = []
    for frame in frames or painting:
        codes.append(frame.codes)
        if frame.step + 1 in SCRIPT:
            painting.change(**SCRIPT[frame.step + 1])
        if frame.step == until:
            break
    return torch.stack(codes)


def test_changes_act_at_the_next_step(new_run):
    plain, changed = quick.paint(new_run()), steered(new_run())
    assert torch.equal(plain[:3], changed[:3])  # frame 2 was measured with the new prompts, and moved nothing yet
    assert not torch.equal(plain[4:], changed[4:])


@pytest.mark.parametrize("name", ["prompts", "lr", "init_weight", "cutouts"])
def test_each_of_them_changes_what_is_painted(new_run, name):
    script = {2: {"prompts": "a hot sea", "lr": 1.5, "init_weight": 900.0, "cutouts": 3}}
    one = {2: {name: script[2][name]}}
    assert not torch.equal(quick.paint(new_run(steering=one)), quick.paint(new_run()))


def test_a_script_paints_what_the_hand_did(new_run):
    by_hand = new_run()
    codes = steered(by_hand)
    assert by_hand.steering == SCRIPT
    assert torch.equal(codes, quick.paint(new_run(steering=by_hand.steering)))


def test_prompts_may_come_and_go(new_run):
    frames = list(new_run(steering=SCRIPT))
    assert list(frames[1].similarity) == ["desert", "snow"]
    assert list(frames[2].similarity) == ["desert", "a hot sea", "fog"]


def test_the_shares_are_those_of_a_new_run(new_run):
    painting, fresh = new_run(steering={1: {"prompts": "a:3 | b:-1"}}), new_run(prompts="a:3 | b:-1")
    next(painting), next(painting)
    assert [judge.prompts for _, judge in painting.judges()] == [judge.prompts for _, judge in fresh.judges()]
    assert torch.equal(painting.judges()[0][1].targets, fresh.judges()[0][1].targets)


def test_now_tells_what_the_next_step_will_have(new_run):
    painting = new_run()
    painting.change(lr=0.7)
    painting.change(cutouts=3)
    assert (painting.now.lr, painting.now.cutouts) == (0.7, 3) and painting.settings.lr != 0.7
    next(painting)
    assert painting.now.lr == 0.7 == painting.optimizer.param_groups[0]["lr"]
    assert painting.steering == {0: {"lr": 0.7, "cutouts": 3}}


@pytest.mark.parametrize("changes, error", [
    ({"lr": 0}, SettingsError), ({"prompts": ""}, PromptError), ({"prompts": "a:0"}, PromptError),
    ({"seed": 3}, SettingsError), ({"cutouts": 0}, SettingsError), ({"nonsense": 1}, SettingsError)])  # fmt: skip
def test_what_cannot_be_changes_nothing(new_run, changes, error):
    painting = new_run()
    with pytest.raises(error) as caught:
        painting.change(**changes)
    assert painting.steering == {} and "\n" not in str(caught.value)


def test_the_hand_overrules_the_script(new_run):
    painting = new_run(steering={1: {"lr": 0.1}, 5: {"lr": 0.9}, 6: {"lr": 0.9, "cutouts": 5}})
    next(painting), next(painting)
    painting.change(lr=0.3)
    assert painting.steering == {1: {"lr": 0.1}, 2: {"lr": 0.3}, 6: {"cutouts": 5}}


def test_pictures_keep_their_place_among_new_words(new_run, tmp_path):
    from PIL import Image

    Image.new("RGB", (20, 20), (200, 90, 10)).save(tmp_path / "sun.png")
    likes = {"image_prompts": f"{tmp_path / 'sun.png'}:2"}
    frames = list(new_run(**likes, steering={2: {"prompts": "fog:1 | a | b"}}))
    painting = new_run(**likes, steering={2: {"prompts": "fog:1 | a | b"}})
    list(painting)
    assert list(frames[3].similarity)[:3] == ["fog", "a", "b"] and "sun.png" in list(frames[3].similarity)[3]
    shares = [prompt.weight for prompt in painting.judges()[0][1].prompts]
    assert shares == [0.2, 0.2, 0.2, 0.4]


# Kept


@pytest.fixture
def painted(new_run, tmp_path):
    """A session that was steered by hand to its end, and its codes."""
    painting = new_run()
    made = Session.create(tmp_path, painting)
    return made, steered(painting, made.record(painting))


def test_the_log_is_in_the_session_and_its_picture(painted):
    made, _ = painted
    assert made.steering == SCRIPT and Session(made.path).steering == SCRIPT
    assert steering_of(read_recipe(made.path / "final.png")["steering"]) == SCRIPT
    assert json.loads((made.path / "steering.json").read_text())[0]["step"] == 2


def test_a_session_replayed_from_its_start_is_the_same(painted, models, tmp_path):
    made, codes = painted
    again = vqclip.generate(settings=made.settings, **models, steering=made.steering)
    twin = Session.create(tmp_path, again)
    assert torch.equal(torch.stack([frame.codes for frame in twin.record(again)]), codes)
    assert twin.losses() == made.losses() and twin.steering == made.steering


@pytest.mark.parametrize("stop", [1, 2, 4, 5])
def test_another_program_goes_on_with_what_was_changed(painted, new_run, models, tmp_path, stop):
    _, codes = painted
    painting = new_run()
    made = Session.create(tmp_path / "b", painting)
    frames = made.record(painting)
    steered(painting, frames, until=stop)
    frames.close()
    made = Session(made.path)
    painting = made.resume(**models)
    assert painting.steering == {step: entry for step, entry in SCRIPT.items() if step <= stop + 1}
    steered(painting, made.record(painting))
    assert np.array_equal(made.codes.read(), codes)


def test_a_kill_costs_no_change(painted, new_run, models, tmp_path, monkeypatch):
    """The state is as old as can be: what was changed since is done again at its step."""
    _, codes = painted
    monkeypatch.setattr(session, "PAUSE", 1e9)
    painting = new_run()
    made = Session.create(tmp_path / "b", painting)
    frames = made.record(painting)
    steered(painting, frames, until=6)
    shutil.copytree(made.path, tmp_path / "killed")
    frames.close()
    killed = Session(tmp_path / "killed")
    painting = killed.resume(**models)
    assert painting.step == 0 and len(killed.codes) == 7
    assert [frame.step for frame in killed.record(painting)] == list(range(STEPS + 1))
    assert np.array_equal(killed.codes.read(), codes)


def test_an_interrupt_at_any_line_of_a_change_costs_nothing(painted, new_run):
    _, codes = painted
    for at in range(1, 10_000, 17):
        painting, made, place = new_run(), [], None
        while len(made) <= STEPS:
            if len(made) in SCRIPT and len(made) not in painting.steering:
                painting.change(**SCRIPT[len(made)])
            try:
                if len(made) == 2 and place is None:
                    with mishaps.at_line(at, mishaps.interrupt, run, losses, optim) as place:
                        made.append(next(painting).codes)
                else:
                    made.append(next(painting).codes)
            except KeyboardInterrupt:
                pass
        assert torch.equal(torch.stack(made), codes), place.where
        if place.where is None:
            break
    assert at > 50


def test_a_damaged_log_is_said(painted, models):
    made, _ = painted
    (made.path / "steering.json").write_text("[{")
    with pytest.raises(SessionError, match="steering.json is damaged .* put a copy of it back"):
        Session(made.path).resume(**models)


def test_a_full_disk_keeps_the_change_in_mind(new_run, tmp_path):
    painting = new_run()
    made = Session.create(tmp_path, painting)
    painting.change(lr=0.9)
    with pytest.raises(SessionError, match="make room"), mishaps.at_write(1, mishaps.disk_full, session, codelog):
        list(made.record(painting))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the last step in .* was not written to its end")
        list(made.record(painting))
    assert Session(made.path).steering == {0: {"lr": 0.9}}
