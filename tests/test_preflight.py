"""Preflight says what will be: numbers are those of what then happens, and what it advises fits."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import quick
import torch

import vqclip
from vqclip import memory, preflight
from vqclip.memory import needed
from vqclip.precision import Able
from vqclip.preflight import Fit, duration, fitting, look, pace, paced
from vqclip.video import plan


@pytest.fixture
def run(vqgan, vit):
    return vqclip.generate("desert:50 | snow:25", vqgan, vit, size=(63, 48), steps=20, cutouts=8, device="cpu")


def test_what_is_said(run, tmp_path):
    report = look(run, tmp_path, free=10**12, seconds=0.5)
    assert report.fits and report.fit is None
    assert (report.asked, report.painted, report.steps) == ((63, 48), (64, 48), 21)
    assert report.need == needed(run) and report.video == pytest.approx(plan(21).seconds)
    lines = report.lines()
    assert lines[0] == "desert 67 % · snow 33 %" and lines[1].startswith("vit reads 77 tokens: desert 3")
    assert lines[2] == "painted at 64x48, whole codes of 2, and cropped to 63x48"
    assert lines[3].startswith("memory: about ") and lines[3].endswith("; 1000.0 GB are free")
    assert lines[4] == "time: 10 s for 21 frames, 0.5 s each"
    assert lines[5].startswith("video: 2.1 s at 10 frames")
    assert lines[6].startswith("disk: less than 1 MB without the video; ")
    assert "disk: 12 MB without" in replace(report, disk=12_345_678).lines()[-1]
    assert len(replace(report, seconds=None).lines()) == len(lines) - 1


def test_looking_changes_nothing(run, tmp_path):
    before = run.state()
    look(run, tmp_path)
    after = run.state()
    assert run.step == 0 and after["latent"]["z"].equal(before["latent"]["z"])
    assert all(after["cutouts"]["vit"][name].equal(before["cutouts"]["vit"][name]) for name in ("cutouts", "noise"))


def test_what_is_free_is_asked_of_the_machine(run, tmp_path):
    free = memory.free(run.latent.z.device)
    if free is None:
        pytest.skip("this machine does not tell")
    assert 10**7 < look(run, tmp_path).free < 10**13 and 0.2 < free / look(run, tmp_path).free < 5


def test_a_smaller_chunk_comes_before_a_smaller_picture(run, tmp_path):
    free = needed(run, chunk=2).step
    report = look(run, tmp_path, free=free)
    assert not report.fits and report.fit == Fit((63, 48), 2)
    assert "which is too little: chunk=2 fits" in report.lines()[3]


@pytest.mark.parametrize("share", [0.9, 0.4, 0.1])
def test_the_advice_fits_and_is_the_largest_that_does(run, tmp_path, share):
    free = round(needed(run, chunk=1).step * share)
    report = look(run, tmp_path, free=free)
    (width, height), chunk = report.fit.size, report.fit.chunk
    assert needed(run, report.fit.size, chunk).step <= free
    assert width < 63 and width % 2 == height % 2 == 0 and abs(width / height - 63 / 48) < 0.1
    assert needed(run, (width + 2, round((width + 2) * 48 / 64 / 2) * 2), 1).step > free
    assert f"size={width}x{height} chunk={chunk} fits" in report.lines()[3]
    other = vqclip.generate(settings=run.settings.replace(size=report.fit.size, chunk=chunk), prompts="a",
                            vqgan=run.latent.vqgan, clip=run.judges()[0][1].perceptor)  # fmt: skip
    assert look(other, tmp_path, free=free).fits


def test_where_nothing_fits_it_is_said(run, tmp_path):
    assert fitting(run, 1000) is None
    line = look(run, tmp_path, free=1000).lines()[3]
    assert line.endswith("not even the smallest picture fits: choose smaller models")


def test_the_disk_is_what_the_session_takes(tmp_path):
    run = quick.run(size=64, steps=60)
    report = look(run, tmp_path)
    session = vqclip.Session.create(tmp_path, run)
    for _ in session.record(run):
        pass
    taken = sum(path.stat().st_size for path in session.path.iterdir())
    assert 0.5 * report.disk < taken < 1.5 * report.disk
    assert "make room first" in replace(report, disk_free=10).lines()[-1]


def test_time_is_told_after_three_steps(monkeypatch):
    ticks = iter([10.0, 12.0, 14.0])  # of a clock that ends, if it were looked at once more
    monkeypatch.setattr(preflight.time, "monotonic", lambda: next(ticks))
    run, said = quick.run(steps=50), []
    frames = [frame.step for frame in paced(run, run, said.append)]
    assert frames == list(range(51)) and said == ["2 s a step: 96 s more"]


def test_a_run_of_few_steps_has_no_time_to_tell():
    run, said = quick.run(steps=2), []
    assert len(list(paced(run, run, said.append))) == 3 and said == []
    assert pace(quick.run(steps=1)) > 0 and pace(quick.run(steps=9)) > 0


def test_a_machine_without_a_card_paints_with_the_embedded_pair():
    said = preflight.machine("cpu")
    assert said.startswith("no graphics card: the processor paints") and "enough for the embedded pair" in said


@pytest.fixture
def card(monkeypatch):
    """Pretend that there is a graphics card with so much memory free: card(14e9)."""

    here = Able("cuda", "Tesla T4", False, True, "float16")

    def put_in(free):
        monkeypatch.setattr(preflight, "pick_device", lambda _: torch.device("cuda"))
        monkeypatch.setattr(preflight, "able", lambda _: here)
        monkeypatch.setattr(memory, "free", lambda _: round(free))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=16_000_000_000))

    return put_in


def test_of_a_card_its_name_its_memory_and_what_fits_are_said(card):
    card(14e9)
    said = preflight.machine()
    assert said.startswith("graphics card: Tesla T4 with 16.0 GB of memory, 14.0 GB of it free.")
    side = int(re.search(r"imagenet_f16_16384 with ViT-B/32 paints up to (\d+)x\1 on it \(chunk=\d+\)", said)[1])
    assert side % 16 == 0 and 1024 < side < 2048
    card(7e9)
    assert int(re.search(r"up to (\d+)x", preflight.machine())[1]) < side
    card(5e8)
    assert "too little for imagenet_f16_16384" in preflight.machine()


def test_times_for_people():
    assert [duration(s) for s in (0.31, 8, 42, 99, 240, 9000)] == ["0.31 s", "8 s", "42 s", "99 s", "4 min", "2.5 h"]
