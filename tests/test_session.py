"""A session keeps all that was made, whatever happens, and goes on from it bit for bit."""

import gc
import hashlib
import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import warnings
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import mishaps
import numpy as np
import pytest
import quick
import tiny
import torch
import victim
from PIL import Image

import vqclip
from vqclip import codelog, files, session
from vqclip.images import ImageError, read_recipe
from vqclip.session import Session, SessionError, _write_state
from vqclip.settings import SettingsError

STEPS = 4
SETTINGS = dict(seed=5, lr=0.5, augment="mse", ema=0.5, losses="tv:0.3", init_weight=0.2, churn=0.5, steps=STEPS)


@pytest.fixture(scope="module")
def models():
    return {"vqgan": quick.painter(), "clip": quick.Judge()}


@pytest.fixture(scope="module")
def new_run(models):
    return lambda **changes: quick.run(**models, **{**SETTINGS, **changes})


@pytest.fixture(scope="module")
def whole(new_run, tmp_path_factory):
    """What an undisturbed run makes: .codes, .losses, .picture, and .longer, the codes of four more steps."""
    painting = new_run()
    made = Session.create(tmp_path_factory.mktemp("whole"), painting)
    frames = list(made.record(painting))
    longer = quick.paint(new_run(steps=STEPS + 4)).numpy()
    assert (longer[0] != longer[-1]).sum() > 5  # it does paint
    return SimpleNamespace(codes=longer[: STEPS + 1], longer=longer, losses=made.losses(), picture=frames[-1].pil)


@pytest.fixture
def begun(new_run, tmp_path):
    """A new session and its run."""
    painting = new_run()
    return Session.create(tmp_path, painting), painting


@pytest.fixture
def paused(begun):
    """A session of three steps, 0 to 2, and its run."""
    made, painting = begun
    painting.steps = 2
    assert len(list(made.record(painting))) == 3
    painting.steps = STEPS
    return made, painting


def go_on(made, painting=None, models=None):
    """Paint to the end; in a Session of its own, as another program would, when there is no run."""
    if painting is None:
        made = Session(made.path)
        painting = made.resume(**models)
    painting.steps = STEPS
    for _ in made.record(painting):
        pass
    return made


def assert_whole(made, whole):
    made = Session(made.path)
    assert np.array_equal(made.codes.read(), whole.codes)
    assert made.losses() == whole.losses
    assert (made.path / "losses.jsonl").read_text("utf-8").count("\n") == len(whole.losses)
    with Image.open(made.path / "final.png") as picture:
        assert picture.convert("RGB").tobytes() == whole.picture.tobytes()
    assert read_recipe(made.path / "final.png")["steps_made"] == STEPS + 1
    assert not list(made.path.glob(".*part*")) and is_free(made)


def is_free(made):
    """Whether another program could paint it."""
    fcntl = pytest.importorskip("fcntl")
    with open(made.path / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def one_sentence(caught):
    """The error's words, which people read: one line, no Python."""
    words = str(caught.value)
    assert 20 < len(words) < 600 and "\n" not in words and "Error(" not in words and "None" not in words
    return words


# One folder


def test_a_session_is_a_folder_of_files(begun, whole):
    made, painting = begun
    frames = list(made.record(painting))
    assert [frame.step for frame in frames] == list(range(STEPS + 1))
    names = {path.name for path in made.path.iterdir() if not path.name.startswith(".")}
    assert names == {"settings.yaml", "about.json", "codes", "losses.jsonl", "state", "final.png"}
    assert_whole(made, whole)
    assert [line["step"] for line in whole.losses] == list(range(STEPS + 1))
    assert whole.losses[3].keys() == {"step", "losses", "similarity"}
    assert whole.losses[3]["losses"].keys() == {"judge", "tv", "init"}
    assert whole.losses[3]["similarity"].keys() == {"desert", "snow"}
    recipe = read_recipe(made.path / "final.png")
    assert vqclip.Settings.from_dict(recipe["settings"]) == painting.settings == made.settings
    assert recipe["about"]["torch"] == torch.__version__ and recipe == made.recipe()


def test_frames_are_on_disk_when_they_are_handed_out(begun, whole):
    made, painting = begun
    for frame in made.record(painting):
        seen = Session(made.path)  # as another notebook would look in, while it is painted
        assert len(seen.codes) == frame.step + 1 and seen.losses() == whole.losses[: frame.step + 1]
        assert np.array_equal(seen.codes.read(frame.step)[0], frame.codes)


def test_folders_are_named_by_time_and_words_and_never_shared(tmp_path, new_run, monkeypatch):
    now = datetime(2026, 11, 22, 13, 45, 1)
    monkeypatch.setattr(session, "datetime", SimpleNamespace(now=lambda: now))
    made = [Session.create(tmp_path, new_run()).path.name for _ in range(3)]
    assert made == ["20261122-134501-desert-snow", "20261122-134501-desert-snow-2", "20261122-134501-desert-snow-3"]
    odd = [Session.create(tmp_path, new_run(prompts=words)).path.name for words in ("../../a/b", "!!!", "砂漠" * 99)]
    assert odd == ["20261122-134501-a-b", "20261122-134501", "20261122-134501-" + "砂漠" * 20]


def test_the_newest_is_found(tmp_path, new_run):
    with pytest.raises(SessionError, match="there is no session in .* yet: paint one first") as caught:
        Session.latest(tmp_path)
    one_sentence(caught)
    for _ in range(2):
        made = Session.create(tmp_path, new_run())
    (tmp_path / "sessions" / "unfinished").mkdir()
    assert Session.latest(tmp_path).path == made.path


def test_the_workspace_may_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("VQCLIP_HOME", str(tmp_path / "home"))
    assert session.workspace() == tmp_path / "home" and (tmp_path / "home" / "checkpoints").is_dir()
    assert session.workspace(tmp_path / "given") == tmp_path / "given"


# Going on


def test_a_pause_changes_nothing(paused, whole, models):
    made, painting = paused
    go_on(made, painting)
    assert_whole(made, whole)


@pytest.mark.parametrize("stops", [[0], [1], [2, 2, 3]])
def test_any_number_of_programs_makes_the_same(begun, whole, models, stops):
    made, painting = begun
    for stop in stops:
        for frame in made.record(painting):
            if frame.step == stop:
                break
        made = Session(made.path)
        painting = made.resume(**models)
    go_on(made, painting)
    assert_whole(made, whole)


def test_it_goes_on_from_nothing_but_its_folder(tmp_path, files):
    """With real files, found by their names, after the folder was moved."""
    shutil.copytree(files, tmp_path / "a" / "checkpoints")
    painting = vqclip.generate("a desert | snow", "vqgan", clip="vit + rn", root=tmp_path / "a" / "checkpoints",
                               size=(30, 18), steps=3, cutouts=2, optimizer="momentum", device="cpu")  # fmt: skip
    made = Session.create(tmp_path / "a", painting)
    painting.steps = 1
    codes = [frame.codes for frame in made.record(painting)]
    shutil.move(tmp_path / "a", tmp_path / "b")
    moved = Session.latest(tmp_path / "b")
    codes += [frame.codes for frame in moved.record(moved.resume())]
    again = vqclip.generate(root=tmp_path / "b" / "checkpoints", settings=moved.settings)
    assert torch.equal(torch.stack(codes), quick.paint(again))
    assert torch.equal(moved.decoder().codebook, painting.latent.vqgan.codebook)


def test_a_finished_session_goes_on_as_the_longer_run(begun, whole, models):
    made, painting = begun
    list(made.record(painting))
    assert list(made.record(painting)) == []
    painting.steps = STEPS + 2
    assert [frame.step for frame in made.record(painting)] == [STEPS + 1, STEPS + 2]
    made = Session(made.path)
    painting = made.resume(**models)
    assert made.steps == painting.steps == STEPS + 2
    assert list(made.record(painting)) == []
    painting.steps = STEPS + 4
    list(made.record(painting))
    assert np.array_equal(made.codes.read(), whole.longer)


def test_what_was_changed_while_it_was_painted_is_kept(begun, models):
    made, painting = begun
    for frame in made.record(painting):
        if frame.step == 1:
            painting.losses["judge"][1].set_weights([0.1, -0.9], [-np.inf, -0.5])
            painting.losses["tv"] = 5.0, painting.losses["tv"][1]
            painting.optimizer.param_groups[0]["lr"] = 0.3
        if frame.step == 2:
            break
    copy = shutil.copytree(made.path, made.path.with_name("copy"))
    go_on(made, painting)
    again = go_on(Session(copy), models=models)
    assert np.array_equal(again.codes.read(), made.codes.read()) and again.losses() == made.losses()


def test_what_is_changed_after_an_interrupt_acts(begun, whole):
    """The step that was made and not recorded is taken back; nothing older is, and no change is."""
    made, painting = begun
    with pytest.raises(KeyboardInterrupt), mishaps.at_call(3, mishaps.interrupt, codelog.CodeLog, "append"):
        list(made.record(painting))
    assert painting.step == len(made.codes) == 2
    painting.losses["judge"][1].set_weights([-1.0, 0.5], [-np.inf, -np.inf])
    assert [frame.step for frame in made.record(painting)] == [2, 3, 4]
    assert painting.losses["judge"][1].weights.tolist() == [-1.0, 0.5]
    assert np.array_equal(made.codes.read(last=2), whole.codes[:3])
    assert made.losses()[:2] == whole.losses[:2] and made.losses()[2] != whole.losses[2]


def test_a_loss_of_ones_own_must_be_added_again_and_it_is_said(paused, models):
    made, painting = paused
    painting.losses["mine"] = 1.0, lambda image: image.mean()
    go_on(made, painting)
    with pytest.warns(UserWarning, match="the losses mine came or went .* not kept: do it again"):
        Session(made.path).resume(**models)


@pytest.mark.parametrize("what", ["init_image", "image_prompts"])
def test_pictures_are_not_needed_again(tmp_path, new_run, models, what):
    pixels = np.random.default_rng(2).integers(0, 256, (15, 29, 4)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.webp", lossless=True)
    changes = {what: str(tmp_path / "photo.webp") + (":-0.3" if what == "image_prompts" else "")}
    straight = new_run(**changes)
    codes = quick.paint(straight)
    painting = new_run(**changes)
    made = Session.create(tmp_path, painting)
    painting.steps = 0
    list(made.record(painting))
    (tmp_path / "photo.webp").unlink()
    go_on(made, models=models)
    assert np.array_equal(made.codes.read(), codes)
    assert len({tuple(line["similarity"]) for line in made.losses()}) == 1  # under the name that it had


def test_other_threads_or_another_torch_is_said(paused, models, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    with pytest.warns(UserWarning, match="begun with threads=1, which is another now: .* not bit for bit"):
        Session(paused[0].path).resume(**models)


def test_a_session_goes_on_with_another_device(paused, models):
    """As one that a graphics card began, whose generators have another state."""
    made, painting = paused
    noise = painting.judges()[0][1].cutouts.noise_generator
    painting.judges()[0][1].cutouts.noise_generator = SimpleNamespace(get_state=lambda: torch.zeros(16).byte())
    _write_state(made.path, painting)
    painting.judges()[0][1].cutouts.noise_generator = noise
    about = json.loads((made.path / "about.json").read_text())
    (made.path / "about.json").write_text(json.dumps({**about, "device": "cuda:0"}))
    with pytest.warns(UserWarning, match="begun with device=cuda:0, which is another now"):
        run = Session(made.path).resume(**models)
    go_on(made, run)
    assert len(made.codes) == run.steps + 1


def test_a_final_picture_that_a_kill_prevented_is_made_later(paused, whole, models):
    made, painting = paused
    go_on(made, painting)
    (made.path / "final.png").unlink()
    go_on(made, models=models)
    assert_whole(made, whole)


# Kills


def test_twenty_kills_leave_no_trace(tmp_path):
    """kill -9 at 20 random moments, each time going on in a new process: the codes are those of the undisturbed run."""
    steps = 60
    command = [sys.executable, victim.__file__, str(tmp_path), str(steps), "20", "1"]
    home = str(Path(vqclip.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": home, "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    codes = np.array(report["codes"])
    undisturbed = quick.paint(victim.new_run(steps)).numpy()
    differing = int((codes != undisturbed).sum())
    print(f"\n{len(report['kills'])} kills, at {', '.join(report['kills'])}; {report['pauses']} pauses; "
          f"{differing} of {codes.size} codes differ")  # fmt: skip
    assert len(report["kills"]) == 20 and len(set(report["kills"])) > 10
    assert differing == 0
    made = Session.latest(tmp_path)
    assert [line["step"] for line in made.losses()] == list(range(len(made.codes)))
    assert not list(made.path.glob(".*part*"))
    while_painted, after_the_kill = report["two at once"]
    assert "is being painted by another program: stop that one first" in while_painted
    assert after_the_kill == "...."


@pytest.mark.parametrize("n", [0, 4, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3, 5, 6, 7))])
def test_an_interrupt_at_any_line_of_the_keeper(paused, whole, models, monkeypatch, n):
    """Before every eighth line, from the n-th, that records a step, writes the state, closes: whole, never locked."""
    monkeypatch.setattr(session, "PAUSE", 0)
    made, _ = paused
    keeper, before = (session, codelog, files), made.path.with_name("before")
    made.path.rename(before)
    for at in itertools.count(n + 1, 8):
        shutil.rmtree(made.path, ignore_errors=True)
        shutil.copytree(before, made.path)
        taken = Session(made.path)
        painting = taken.resume(**models)
        painting.steps = 3
        try:
            with mishaps.at_line(at, mishaps.interrupt, *keeper) as place:
                list(taken.record(painting))
        except KeyboardInterrupt:
            pass
        if place.where is None:
            break
        if at % 16 <= 8:
            go_on(taken, painting)
        else:
            go_on(taken, models=models)
        assert_whole(taken, whole)
    assert at > 100


def mishap(kind, n, happen):
    if kind == "write":
        return mishaps.at_write(n, happen, session, codelog, files)
    return mishaps.at_call(n, happen, os, kind)


@pytest.mark.parametrize("first, happen", [(1, mishaps.interrupt), (2, mishaps.disk_full)], ids=["stop", "full"])
@pytest.mark.parametrize("kind", ["write", "replace", "fsync"])
def test_an_interrupt_or_full_disk_at_every_second_write(begun, whole, models, monkeypatch, kind, first, happen):
    monkeypatch.setattr(session, "PAUSE", 0)
    made, _ = begun
    fresh = made.path.with_name("fresh")
    made.path.rename(fresh)
    for n in itertools.count(first, 2):
        shutil.rmtree(made.path, ignore_errors=True)
        shutil.copytree(fresh, made.path)
        taken = Session(made.path)
        painting = taken.resume(**models)
        painting.steps = 1
        caught = None
        try:
            with mishap(kind, n, happen) as place:
                list(taken.record(painting))
        except (KeyboardInterrupt, SessionError) as error:
            caught = error
        if place.where is None:
            break
        assert isinstance(caught, KeyboardInterrupt if happen is mishaps.interrupt else SessionError), place.where
        if happen is mishaps.disk_full:
            assert "cannot be written (No space left on device): make room" in str(caught)
            assert f"`vqclip continue {made.path}`" in str(caught) and "\n" not in str(caught)
        if n % 4 < 2:
            go_on(taken, painting)
        else:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "the last step in .* was not written to its end")
                go_on(taken, models=models)
        assert_whole(taken, whole)
    assert n > 3


# Full, locked, forbidden


@pytest.mark.parametrize("room", [0, 100, 300, 600, 900, 20_000])
def test_a_disk_that_is_really_full(begun, whole, models, full_disk, monkeypatch, room):
    monkeypatch.setattr(session, "PAUSE", 0)
    made, painting = begun
    with full_disk(room), pytest.raises(SessionError, match="cannot be written .*: make room") as caught:
        list(made.record(painting))
    one_sentence(caught)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the last step in .* was not written to its end")
        go_on(made, painting) if room % 200 else go_on(made, models=models)
    assert_whole(made, whole)


def test_no_session_begins_on_a_full_disk(tmp_path, new_run, full_disk):
    with full_disk(5000), pytest.raises(SessionError, match="no session can be made in .*sessions") as caught:
        Session.create(tmp_path, new_run())
    one_sentence(caught)
    with pytest.raises(SessionError, match="there is no session"):
        Session.latest(tmp_path)


@pytest.mark.parametrize("workspace", ["file", "file/below"])
def test_a_workspace_that_is_a_file(tmp_path, new_run, workspace):
    (tmp_path / "file").write_text("")
    with pytest.raises(SessionError, match="the workspace .*file.* cannot be used .*: choose another") as caught:
        Session.create(tmp_path / workspace, new_run())
    one_sentence(caught)


@pytest.fixture
def read_only():
    """A folder, and a function after which nothing in it may be written, not even by root, who becomes nobody."""
    folder = Path(tempfile.mkdtemp())

    def lock():
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        if os.geteuid() == 0:
            os.seteuid(65534)

    yield folder, lock
    if os.getuid() == 0:
        os.seteuid(0)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(stat.S_IRWXU)
    shutil.rmtree(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs Unix permissions")
def test_a_read_only_workspace(read_only, new_run, models):
    folder, lock = read_only
    painting = new_run()
    made = Session.create(folder / "a", painting)
    next(iter(made.record(painting)))
    lock()
    with pytest.raises(SessionError, match="cannot be written .Permission denied.: make room or allow") as caught:
        next(made.record(painting))
    one_sentence(caught)
    for workspace in ("a", "b"):
        with pytest.raises(SessionError, match="Permission denied.*choose another") as caught:
            Session.create(folder / workspace, new_run())
        one_sentence(caught)
    seen = Session(made.path)  # what is there can be looked at
    assert len(seen.codes.read()) == 1 and seen.resume(**models).step == 1


def test_a_recording_that_was_left_behind_is_taken_over(begun, whole, models):
    """An error inside the consumer: its traceback, which notebooks keep, holds the suspended recording."""

    def watch(frames):
        for frame in frames:
            if frame.step == 2:
                raise ZeroDivisionError
            yield frame

    made, painting = begun
    with pytest.raises(ZeroDivisionError) as kept:
        list(watch(made.record(painting)))
    old = kept.traceback[-1].frame.f_locals["frames"]
    assert not is_free(made)
    again = Session(made.path)  # in another cell
    recording = again.record(again.resume(**models))
    next(recording)
    with pytest.raises(SessionError, match="painted from elsewhere in this program"):
        next(old)
    for _ in recording:
        pass
    assert_whole(again, whole)
    del kept, old
    gc.collect()
    assert_whole(again, whole)


def test_a_recording_left_behind_and_the_same_cell_again(begun, whole):
    made, painting = begun
    old = made.record(painting)
    for frame in old:
        if frame.step == 2:
            break
    go_on(made, painting)
    assert_whole(made, whole)
    old.close()  # its end is no longer anybody's business
    assert_whole(made, whole)


def test_a_recording_may_be_closed_by_another_thread(begun, whole):
    made, painting = begun
    recordings = []

    def begin():
        recordings.append(made.record(painting))
        next(recordings[0])
        started.set()
        closed.wait(60)

    started, closed = threading.Event(), threading.Event()
    worker = threading.Thread(target=begin)
    worker.start()
    assert started.wait(60)
    recordings.pop().close()
    assert is_free(made)
    closed.set()
    worker.join()
    go_on(made, painting)
    assert_whole(made, whole)


# Damage


def flipped(path, at, bit=0x10):
    data = bytearray(path.read_bytes())
    data[at] ^= bit
    path.write_bytes(data)


def test_a_torn_last_step_is_dropped_and_painted_again(paused, whole, models):
    made, _ = paused
    os.truncate(made.path / "codes", made.codes.path.stat().st_size - 5)
    state = made.path / "state"
    state.unlink()
    painting = quick.run(**models, **SETTINGS)  # the state of a second ago: here, of the start
    session._write_state(made.path, painting)
    with pytest.warns(UserWarning, match="the last step in .* was not written to its end; it is dropped"):
        torn = Session(made.path)
    assert len(torn.codes) == 2
    with pytest.warns(UserWarning, match="not written to its end"):
        go_on(torn, models=models)
    assert_whole(torn, whole)


def test_codes_that_were_cut_cannot_go_on_and_are_not_touched(paused, models):
    made, _ = paused
    made.codes.truncate(1)
    cut = Session(made.path)
    with pytest.raises(SessionError, match="has 1 steps, its state is of step 3: .* make the video from what is left"):
        next(cut.record(cut.resume(**models)))
    assert len(Session(made.path).codes.read()) == 1


def test_a_damaged_step_is_said_and_the_rest_can_be_read(paused, whole):
    made, _ = paused
    flipped(made.path / "codes", made.codes.path.stat().st_size - made.codes.record - 20)
    with pytest.raises(codelog.CodesError, match="step 1 in .* is damaged: use last=0 or first=2 to leave it out"):
        Session(made.path).codes.read()
    assert np.array_equal(made.codes.read(2), whole.codes[2:3])


@pytest.mark.parametrize("at", [0, 31, 32, 5000, -1])
def test_a_damaged_state_is_said_and_the_codes_stay(paused, models, at):
    made, painting = paused
    flipped(made.path / "state", at)
    with pytest.raises(SessionError, match="state is damaged: the run cannot go on, but `vqclip video") as caught:
        Session(made.path).resume(**models)
    one_sentence(caught)
    assert len(Session(made.path).codes.read()) == 3


@pytest.mark.parametrize("content", [None, b"", b"x" * 40])
def test_a_missing_or_empty_state(paused, models, content):
    path = paused[0].path / "state"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(SessionError, match="the run cannot go on, but") as caught:
        Session(path.parent).resume(**models)
    one_sentence(caught)


def test_settings_with_a_flipped_byte_never_paint_something_else(paused, models):
    made, _ = paused
    path = made.path / "settings.yaml"
    good = path.read_bytes()
    for at in range(0, len(good), 5):
        flipped(path, at, bit=1 << at % 7)
        with pytest.raises((SessionError, SettingsError, vqclip.PromptError)) as caught:
            Session(made.path).resume(**models)
        one_sentence(caught)
        path.write_bytes(good)
    path.write_bytes(good.replace(b"seed: 5", b"seed: 6"))
    with pytest.raises(SessionError, match="settings.yaml was changed since the session began"):
        Session(made.path).resume(**models)


def test_an_about_json_with_a_flipped_byte_is_said_or_harmless(paused, models):
    made, painting = paused
    path, harmless = made.path / "about.json", 0
    good, state = path.read_bytes(), json.dumps(sums(painting.state()))
    for at in range(0, len(good), 7):
        flipped(path, at, bit=1 << at % 7)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "it was begun with")
                assert json.dumps(sums(Session(made.path).resume(**models).state())) == state
            harmless += 1
        except SessionError as error:
            assert "\n" not in str(error)
        path.write_bytes(good)
    assert 0 < harmless < len(good) // 7


def sums(value):
    if isinstance(value, dict):
        return {str(key): sums(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return list(map(sums, value))
    return hashlib.sha256(value.numpy().tobytes()).hexdigest() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize(
    "about, words",
    [
        ("", "about.json is damaged .*: put a copy of it back"),
        ("[1]", "about.json is damaged"),
        ('"format"', "about.json is damaged"),
        ('{"format": 2}', "about.json is damaged .no 'checkpoints' in it"),
        ('{"format": 3, "vqclip": "7.1"}', "has format 3, made by vqclip 7.1; .* install the version that made it"),
    ],
)
def test_a_foreign_or_newer_session(paused, about, words):
    (paused[0].path / "about.json").write_text(about)
    with pytest.raises(SessionError, match=words) as caught:
        Session(paused[0].path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "gone, words",
    [
        ("about.json", "is not a session: give the folder"),
        ("codes", "codes cannot be read: no step of this session is left"),
    ],
)
def test_a_session_with_a_file_missing(paused, gone, words):
    (paused[0].path / gone).unlink()
    with pytest.raises(SessionError, match=words) as caught:
        Session(paused[0].path)
    one_sentence(caught)


def test_a_session_without_settings(paused):
    (paused[0].path / "settings.yaml").unlink()
    with pytest.raises(SettingsError, match="there are no settings in .*settings.yaml"):
        Session(paused[0].path)


@pytest.mark.parametrize("kept", [0.0, 0.4, 0.99, None])
def test_losses_that_were_cut_are_mended(paused, whole, models, kept):
    made, painting = paused
    path = made.path / "losses.jsonl"
    text = path.read_text("utf-8")
    path.unlink() if kept is None else path.write_text(text[: int(kept * len(text))], "utf-8")
    left = Session(made.path).losses()
    assert left == whole.losses[: len(left)] and len(left) == (text[: int((kept or 0) * len(text))]).count("\n")
    go_on(made, models=models)
    assert Session(made.path).losses() == left + whole.losses[3:]
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == left + whole.losses[3:]


def test_a_damaged_line_of_losses_is_left_out(paused, whole):
    made, _ = paused
    path = made.path / "losses.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], b"\xff" + lines[1][:-9], lines[2], b""]))
    assert Session(made.path).losses() == [whole.losses[0], whole.losses[2]]


def test_prompts_with_all_kinds_of_line_breaks(tmp_path, new_run, models):
    words = "a\u2028b\x85c\x1cd\ne\rf"
    painting = new_run(prompts=[words, "snow"], steps=2)
    made = Session.create(tmp_path, painting)
    list(made.record(painting))
    seen = Session(made.path)
    assert seen.settings == painting.settings
    assert [list(line["similarity"]) for line in seen.losses()] == [[words, "snow"]] * 3
    assert seen.resume(**models).step == 3


# What does not belong together


def test_another_checkpoint_is_refused(tmp_path, files):
    root = shutil.copytree(files, tmp_path / "checkpoints")
    painting = vqclip.generate("a desert", "vqgan", clip="vit", root=root, size=16, steps=1, cutouts=2, device="cpu")
    made = Session.create(tmp_path, painting)
    list(made.record(painting))
    assert Session(made.path).resume().step == 2
    tiny.write_clip_safetensors(root / "vit.safetensors", tiny.clip("vit", seed=1))
    with pytest.raises(SessionError, match="begun with another 'clip vit' .* put that checkpoint back") as caught:
        Session(made.path).resume()
    assert "\n" not in str(caught.value)
    shutil.copy(files / "vit.safetensors", root)
    assert Session(made.path).resume().step == 2
    tiny.write_safetensors(root / "vqgan.safetensors", tiny.vqgan(seed=1))
    with pytest.raises(SessionError, match="begun with another 'vqgan vqgan'"):
        Session(made.path).resume()
    (root / "vqgan.safetensors").unlink()
    with pytest.raises(vqclip.CheckpointError, match="no checkpoint 'vqgan'"):
        Session(made.path).resume()


def test_another_judge_is_refused(paused, models):
    with pytest.raises(SessionError, match="begun with another 'clip judge'"):
        Session(paused[0].path).resume(models["vqgan"], quick.Judge("other"))


def test_a_run_of_another_session_is_refused(paused, new_run):
    made, _ = paused
    before = {path.name: path.read_bytes() for path in made.path.iterdir()}
    with pytest.raises(SessionError, match="the run was not set up as .* was: give it a session of its own") as caught:
        next(made.record(new_run(seed=6)))
    one_sentence(caught)
    assert {path.name: path.read_bytes() for path in made.path.iterdir()} == before


def test_a_fresh_run_of_the_same_settings_goes_on_where_the_session_stands(paused, new_run, whole):
    made, _ = paused
    assert [frame.step for frame in made.record(new_run())] == [3, 4]
    assert_whole(made, whole)


def test_a_run_that_has_begun_gets_no_session(tmp_path, new_run):
    painting = new_run()
    next(painting)
    with pytest.raises(SessionError, match="the run is at step 1 already: make its session before the first step"):
        Session.create(tmp_path, painting)


def test_a_picture_that_vanished_before_the_session_was_made(tmp_path, new_run):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    painting = new_run(image_prompts=str(tmp_path / "red.png"))
    (tmp_path / "red.png").unlink()
    with pytest.raises(ImageError, match="There is no picture .*red.png"):
        Session.create(tmp_path, painting)
    with pytest.raises(SessionError, match="there is no session"):
        Session.latest(tmp_path)


def test_a_run_that_fails_keeps_what_was_made(begun, whole, models):
    made, painting = begun
    tv = painting.losses["tv"]
    painting.losses["tv"] = tv[0], lambda image: tv[1](image) * (float("nan") if painting.step == 3 else 1)
    with pytest.raises(ArithmeticError, match="at step 3 the tv became nan"):
        list(made.record(painting))
    assert len(made.codes) == 3 and (made.path / "final.png").is_file() and is_free(made)
    go_on(made, models=models)
    assert_whole(made, whole)
