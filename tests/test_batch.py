"""Side by side: a batch paints what its runs would paint by themselves, whatever happens on the way."""

import itertools
import math
import shutil
from types import SimpleNamespace

import filelock
import pytest
import quick
import torch

import vqclip
from vqclip import batch as batch_module
from vqclip import session as session_module
from vqclip.batch import Batch, generate_batch
from vqclip.run import NotFinite
from vqclip.session import SessionError


@pytest.fixture(scope="module")
def painter():
    return quick.painter()


@pytest.fixture
def runs(painter):
    """Gives runs of one painter and one judge, that differ in their seed."""
    judge = quick.Judge()
    return lambda count=3, **changes: [quick.run(vqgan=painter, clip=judge, seed=k, **changes) for k in range(count)]


def codes(frames):
    """Lists of frames, one a step -> (steps, runs, h, w)."""
    return torch.stack([torch.stack([frame.codes for frame in made]) for made in frames])


@pytest.mark.parametrize("changes", [{}, {"augment": "mse", "init_weight": 0.3}, {"chunk": 2}, {"ema": 0.9},
                                     {"losses": "tv:0.5"}])  # fmt: skip
def test_a_batch_paints_what_each_run_would_by_itself(runs, changes):
    alone, together = (runs(lr=0.3, **changes) for _ in range(2))
    expected, made = list(zip(*alone, strict=True)), list(Batch(together, 3))
    assert len(made) == alone[0].steps + 1
    assert torch.equal(codes(made), codes(expected))
    for mine, theirs in zip(itertools.chain(*made), itertools.chain(*expected), strict=True):
        assert mine.similarity == pytest.approx(theirs.similarity, abs=1e-5) and mine.step == theirs.step
        assert mine.losses.keys() == theirs.losses.keys()
        assert all(torch.allclose(mine.losses[name], theirs.losses[name], atol=1e-5) for name in mine.losses)
        assert torch.allclose(mine.image, theirs.image, atol=1e-5)


def test_painter_and_judge_are_asked_once_a_step(runs, monkeypatch):
    seen = []
    monkeypatch.setattr(quick.Judge, "encode_image",
                        lambda self, cutouts, look=quick.Judge.encode_image: seen.append(len(cutouts)) or look(self, cutouts))  # fmt: skip  # noqa: E501
    batch = Batch(runs(), at_once=3)
    n = batch.runs[0].settings.cutouts
    next(batch)
    assert seen == [3 * n]


def test_each_is_steered_by_itself(runs):
    alone, together = runs(lr=0.3), Batch(runs(lr=0.3), at_once=3)
    for run in (alone[1], together.runs[1]):
        next(run) if run is alone[1] else next(together)
        run.change(prompts="snow", lr=0.01)
    expected = [frame.codes for frame in alone[1]]
    made = [frames[1].codes for frames in together]
    assert torch.equal(torch.stack(made), torch.stack(expected))
    assert together.runs[0].steering == {}


def test_runs_that_have_too_little_in_common_are_refused(runs, painter):
    for other in (quick.run(vqgan=painter), quick.run(vqgan=painter, clip=runs(1)[0].judges()[0][1].perceptor, steps=3),
                  quick.run(vqgan=quick.painter(1), clip=runs(1)[0].judges()[0][1].perceptor)):  # fmt: skip
        with pytest.raises(ValueError, match="cannot be painted side by side"):
            Batch([*runs(1), other])
    batch = Batch(runs())
    batch.runs[1].losses["tv"] = 1.0, vqclip.LOSSES["tv"]
    with pytest.raises(ValueError, match="cannot be painted side by side"):
        next(batch)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_after_a_mishap_all_are_at_the_same_step_and_go_on_exactly(runs, monkeypatch, error):
    expected = codes(list(Batch(runs(4, lr=0.3), at_once=2)))
    batch, advance, calls = Batch(runs(4, lr=0.3), at_once=2), batch_module.advance, []

    def mishap(some):
        calls.append(len(some))
        frames = advance(some)
        if len(calls) == 6:  # the second half of the third step
            raise error
        return frames

    monkeypatch.setattr(batch_module, "advance", mishap)
    made = [next(batch), next(batch)]
    with pytest.raises(error):
        next(batch)
    assert [run.step for run in batch.runs] == [2] * 4
    assert torch.equal(codes([*made, *batch]), expected)


def test_when_memory_runs_out_fewer_go_at_once_and_pictures_stay(runs, monkeypatch):
    expected = codes(list(zip(*runs(4, lr=0.3), strict=True)))
    batch, advance = Batch(runs(4, lr=0.3), at_once=4), batch_module.advance

    def small(some):
        if len(some) > 1:
            advance(some)  # so far it came
            raise torch.OutOfMemoryError("not enough")
        return advance(some)

    monkeypatch.setattr(batch_module, "advance", small)
    said = "out of memory at step 0, which is done again: from here {} of 4".format
    with pytest.warns(UserWarning, match=said(2)), pytest.warns(UserWarning, match=said(1)):
        assert torch.equal(codes(list(batch)), expected)
    assert batch.at_once == 1


def test_as_many_go_at_once_as_a_card_has_memory_for_and_one_on_a_processor(runs, monkeypatch):
    assert Batch(runs(4)).at_once == 1
    some = runs(4)
    need = batch_module.needed(some[0]).step
    monkeypatch.setattr(batch_module, "needed", lambda run: SimpleNamespace(step=need))
    for there, at_once in ((None, 4), (100 * need, 4), (int(2.5 * need), 2), (need // 2, 1)):
        monkeypatch.setattr(batch_module, "free", lambda device, there=there: there)
        card = SimpleNamespace(latent=SimpleNamespace(z=SimpleNamespace(device=torch.device("cuda"))))
        assert batch_module._fitting(card, 4) == at_once


@pytest.fixture
def recorded(runs, tmp_path):
    """A batch with its sessions, and a check that in the end they have what its runs would have painted alone."""
    batch = Batch(runs(lr=0.3), at_once=3)
    sessions = [vqclip.Session.create(tmp_path, run) for run in batch.runs]

    def check():
        for run, session in zip(runs(lr=0.3), sessions, strict=True):
            assert torch.equal(torch.from_numpy(session.codes.read()).long(), quick.paint(run))
            assert (session.path / "final.png").is_file()

    return batch, sessions, check


def at(sessions):
    return [len(session.codes) for session in sessions]


def test_sessions_keep_each_run(recorded):
    batch, sessions, check = recorded
    assert [[frame.step for frame in frames] for frames in batch.record(sessions)] == [[k] * 3 for k in range(11)]
    check()


def test_interrupts_between_two_sessions_cost_no_frame(recorded, monkeypatch):
    batch, sessions, check = recorded
    append, count = vqclip.Session._append, itertools.count(1)

    def interrupted(self, frame):
        if next(count) in (8, 12, 13):  # the second of the third step; then while the others catch up
            raise KeyboardInterrupt
        append(self, frame)

    monkeypatch.setattr(vqclip.Session, "_append", interrupted)
    for expected in ([3, 2, 2], [4, 3, 3], [4, 3, 3]):
        with pytest.raises(KeyboardInterrupt):
            for _ in batch.record(sessions):
                pass
        assert at(sessions) == [run.step for run in batch.runs] == expected
    assert [len(frames) for frames in batch.record(sessions)] == [3] * 7
    check()


def test_after_a_kill_sessions_go_on_side_by_side(recorded, painter, tmp_path, monkeypatch):
    batch, sessions, check = recorded
    monkeypatch.setattr(session_module, "PAUSE", math.inf)
    judge, frames, killed = batch.runs[0].judges()[0][1].perceptor, batch.record(sessions), tmp_path / "killed"
    for _ in range(5):
        next(frames)
    sessions[1]._save(batch.runs[1])  # the others' states are older than their codes
    shutil.copytree(tmp_path / "sessions", killed / "sessions")
    frames.close()
    sessions[:] = [vqclip.Session(killed / "sessions" / session.path.name) for session in sessions]
    again = Batch([session.resume(painter, judge) for session in sessions])
    assert [run.step for run in again.runs] == [0, 5, 0]
    for _ in again.record(sessions):
        pass
    check()


def test_what_hinders_one_session_leaves_all_where_they_were(recorded, monkeypatch):
    batch, sessions, check = recorded
    elsewhere = filelock.FileLock(sessions[1].path / ".lock")
    with elsewhere, pytest.raises(SessionError, match="painted by another program"):
        next(batch.record(sessions))
    assert at(sessions) == [run.step for run in batch.runs] == [0, 0, 0]
    append, count = vqclip.Session._append, itertools.count(1)

    def full(self, frame):
        if next(count) == 5:
            raise OSError(28, "No space left on device")
        append(self, frame)

    monkeypatch.setattr(vqclip.Session, "_append", full)
    with pytest.raises(SessionError, match="No space left"):
        for _ in batch.record(sessions):
            pass
    assert at(sessions) == [run.step for run in batch.runs] == [2, 1, 1]
    for _ in batch.record(sessions):
        pass
    check()


def test_a_run_that_is_no_number_stops_all_and_says_which(runs):
    batch = Batch(runs(lr=0.3), at_once=3)
    next(batch)
    batch.runs[1].losses["judge"] = math.nan, batch.runs[1].losses["judge"][1]
    with pytest.raises(NotFinite, match="at step 1 the judge became nan .seed 1."):
        next(batch)
    assert [run.step for run in batch.runs] == [1, 1, 1]


def test_seeds_share_loaded_models(painter, tmp_path):
    judge = quick.Judge()
    batch = generate_batch("desert", painter, judge, seeds=range(5, 8), steps=2, size=(16, 16), cutouts=2)
    assert [run.settings.seed for run in batch.runs] == [5, 6, 7]
    assert all(run.latent.vqgan is painter and run.judges()[0][1].perceptor is judge for run in batch.runs)
    with pytest.raises(ValueError, match="seeds is empty"):
        generate_batch("desert", painter, judge, seeds=[])
