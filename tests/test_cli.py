"""The command line does what a notebook does, and says what went wrong in one sentence."""

import json
import subprocess
import sys

import pytest
import tiny
import torch

from vqclip import Session
from vqclip.cli import main
from vqclip.memory import free


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A workspace with tiny checkpoints called `painter` and `judge`."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "checkpoints").mkdir()
    painter, judge = tiny.vqgan(), tiny.clip("vit")
    tiny.write_safetensors(folder / "checkpoints" / "painter.safetensors", painter)
    tiny.write_yaml(folder / "checkpoints" / "painter.yaml", painter)
    tiny.write_clip_safetensors(folder / "checkpoints" / "judge.safetensors", judge)
    return folder


@pytest.fixture
def vqclip(home, capsys):
    """Run a command in that workspace: (exit code, stdout, stderr)."""

    def run(*words):
        code = main([*words, "--workspace", str(home)])
        return code, *capsys.readouterr()

    return run


TINY = "vqgan=painter", "clip=judge", "size=32x32", "steps=3", "cutouts=4"


def test_a_prompt_becomes_a_picture_a_video_and_more_steps(vqclip):
    code, out, _ = vqclip("generate", "desert:50 | snow:25", *TINY)
    folder = out.splitlines()[-1]
    assert code == 0 and "desert 67 % · snow 33 %" in out
    assert len(Session(folder).codes) == 4

    code, out, _ = vqclip("continue", folder, "steps=5")
    assert code == 0 and len(Session(folder).codes) == 6

    code, out, _ = vqclip("video", "fps=5")  # of the newest session
    assert code == 0 and out.strip().splitlines()[-1].endswith("video.mp4")

    for file in (f"{folder}/final.png", f"{folder}/video.mp4", folder):
        code, out, _ = vqclip("info", file)
        assert code == 0 and json.loads(out)["settings"]["prompts"] == "desert:50 | snow:25"


def test_several_seeds_are_painted_side_by_side_each_as_by_itself(vqclip):
    code, out, _ = vqclip("generate", "desert", *TINY, "seed=5", "--seeds", "2")
    folders = out.splitlines()[-2:]
    assert code == 0 and [Session(folder).settings.seed for folder in folders] == [5, 6]
    _, alone, _ = vqclip("generate", "desert", *TINY, "seed=6")
    assert (Session(folders[1]).codes.read() == Session(alone.splitlines()[-1]).codes.read()).all()


def test_options_may_stand_among_the_words(vqclip):
    code, out, _ = vqclip("preflight", "desert", "--preset", "draft", *TINY)
    assert code == 0 and "painted at" not in out and "for 4 frames" in out
    code, out, _ = vqclip("preflight", "noise", *TINY)  # a setting's name is a word like any other
    assert code == 0 and "noise 100 %" in out
    for words in (("generate", "desert", "--speed", "3"), ("generate", "desert", "--seed", "3"), ("settings", "now")):
        with pytest.raises(SystemExit):
            vqclip(*words)


def test_a_preflight_says_what_would_be_and_paints_nothing(vqclip, home):
    before = set((home / "sessions").iterdir()) if (home / "sessions").exists() else set()
    code, out, _ = vqclip("preflight", "desert:50 | snow:25", *TINY, "steps=30", "size=33x32")
    assert code == 0 and "painted at 34x32" in out and "desert 67 % · snow 33 %" in out
    assert [line.partition(":")[0] for line in out.splitlines()[3:]] == ["memory", "time", "video", "disk"]
    assert "for 31 frames" in out and set((home / "sessions").iterdir()) == before
    code, out, _ = vqclip("preflight", "desert", *TINY, "--seeds", "3")
    assert code == 0 and out.splitlines()[-1] == "3 pictures side by side, 1 at once; this is of each"


def test_a_picture_is_recipe_enough(vqclip):
    first = vqclip("generate", "desert", *TINY, "seed=3")[1].splitlines()[-1]
    again = vqclip("generate", "--like", f"{first}/final.png")[1].splitlines()[-1]
    other = vqclip("generate", "--like", f"{first}/final.png", "seed=4")[1].splitlines()[-1]
    assert first != again
    assert (Session(first).codes.read() == Session(again).codes.read()).all()
    assert (Session(first).codes.read() != Session(other).codes.read()).any()


def test_settings_lists_every_setting(vqclip):
    code, out, _ = vqclip("settings")
    assert code == 0 and all(name in out for name in ("prompts", "cutouts", "--preset draft"))


@pytest.mark.parametrize(
    "words, said",
    [
        (["generate", "a", "size=0"], "size='0'"),
        (["generate", "a", "step=3"], "'step'"),
        (["generate", "a", "nonsense"], "'nonsense'"),
        (["generate"], "no prompt"),
        (["generate", " | "], "empty"),
        (["generate", "a:1e999"], "1e999"),
        (["generate", "a", "vqgan=nowhere"], "nowhere"),
        (["generate", "a", "init_image=nowhere.png", *TINY], "nowhere.png"),
        (["generate", "--like", "nowhere.png"], "nowhere.png"),
        (["generate", "--settings", "nowhere.yaml"], "nowhere.yaml"),
        (["generate", "a", "losses=tvv:1", *TINY], "tvv"),
        (["generate", "a", "device=abacus", *TINY], "abacus"),
        (["generate", "a", *TINY, "--seeds", "0"], "--seeds 0"),
        (["continue", "nowhere"], "nowhere"),
        (["video", "nowhere"], "nowhere"),
        (["video", "nowhere", "speed=3"], "speed"),
        (["info", "nowhere.png"], "nowhere.png"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(vqclip, words, said):
    code, out, err = vqclip(*words)
    last = err.strip().splitlines()[-1]
    assert code == 2 and last.startswith("vqclip: ") and said in last, (out, err)


def test_a_reader_who_has_had_enough_is_no_error():
    command = f"{sys.executable} -m vqclip settings | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.startswith("prompts")


def test_importing_loads_nothing_heavy():
    code = "import sys, vqclip; print([m for m in ('torch', 'ipywidgets', 'pytorch_lightning') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_painting_needs_neither_widgets_nor_lightning():
    code = "import sys, vqclip.run, vqclip.session, vqclip.video, vqclip.cli; " \
           "print([m for m in ('ipywidgets', 'pytorch_lightning', 'torchvision') if m in sys.modules])"  # fmt: skip
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.skipif(free(torch.device("cpu")) is None, reason="where nobody tells what memory is free, it is counted")
def test_a_first_picture_waits_for_no_compiler(tmp_path):
    """It takes torch longer to load than all the rest before the first picture, and nothing is compiled."""
    code = "import gc, sys; from vqclip.cli import main; main(sys.argv[1:]); " \
           "print('torch._dynamo' in sys.modules, gc.isenabled(), gc.get_freeze_count() > 100_000)"  # fmt: skip
    command = ["generate", "desert:50 | snow:25", "steps=2", "size=32", "cutouts=2", "device=cpu",
               f"--workspace={tmp_path}"]  # fmt: skip
    said = subprocess.check_output([sys.executable, "-c", code, *command], text=True).splitlines()
    assert said[-1] == "False True True" and any(line.startswith("memory: plenty, ") for line in said)


def test_the_page_is_for_this_machine_and_behind_a_token(vqclip, home, monkeypatch):
    started = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("os.execve", lambda *what: started.append(what))
    assert vqclip("studio", "--language", "ru", "--no-browser")[0] == 0
    program, command, environment = started[0]
    assert program == sys.executable and command[1:3] == ["-m", "voila"] and command[3].endswith("page.ipynb")
    assert {"--token", "--Voila.ip=127.0.0.1", "--port=8866", "--no-browser"} <= set(command)
    assert environment["VQCLIP_HOME"] == str(home.resolve()) and environment["VQCLIP_LANGUAGE"] == "ru"
    assert "choose en, ru, de, es" in vqclip("studio", "--language", "xx")[2]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert 'pip install -e ".[studio]"' in vqclip("studio")[2]


def test_a_picture_repeats_what_was_changed_on_the_way(vqclip):
    first = vqclip("generate", "desert", *TINY, "seed=3")[1].splitlines()[-1]
    session = Session(first)
    run = session.resume()
    run.change(prompts="fog", lr=0.9)
    run.steps = 6
    list(session.record(run))
    assert session.steering == {4: {"prompts": "fog", "lr": 0.9}}
    again, other = (
        Session(vqclip("generate", "--like", f"{first}/final.png", *words)[1].splitlines()[-1])
        for words in ((), ("lr=0.01",))
    )
    assert (session.codes.read() == again.codes.read()).all() and again.steering == session.steering
    assert other.steering == {4: {"prompts": "fog"}}
