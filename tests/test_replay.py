"""Replayed steps are ordinary steps: the bookkeeping, with a stand-in for a card's graphs.

Like a graph it writes into the same tensors again and asks nothing of Python that Python had decided before. That a
card's own graphs give the same is checked where there is one, by `benchmarks/card.py`.
"""

import warnings

import pytest
import torch

import vqclip
from vqclip.losses import LOSSES
from vqclip.replay import Replay

SETTINGS = dict(seed=5, steps=6, size=(48, 32), cutouts=6, device="cpu", precision="float32")


class Graphs:
    """Stands in for `replay.record`; counts recordings."""

    def __init__(self):
        self.recorded = 0

    def __call__(self, compute):
        self.recorded += 1
        made = tuple(tensor.clone() for tensor in compute())

        def replay():
            for old, new in zip(made, compute(), strict=True):
                old.copy_(new)

        for tensor in made:  # a graph that was only recorded has computed nothing
            tensor.zero_()
        return made, replay


def paint(replayed, between=lambda run, frame: None, **changes):
    run = vqclip.generate("a red circle | blue:-0.3:0.1", **{**SETTINGS, **changes})
    graphs = Graphs()
    run.replay = Replay(graphs) if replayed else None
    frames = []
    for frame in run:
        frames.append(frame)
        between(run, frame)
    return frames, run, graphs


def assert_alike(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.step == b.step and torch.equal(a.codes, b.codes) and torch.equal(a.image, b.image)
        assert a.losses.keys() == b.losses.keys() and a.similarity == b.similarity
        assert all(torch.equal(a.losses[name], b.losses[name]) for name in a.losses)


@pytest.mark.parametrize("changes", [
    dict(augment="nerdyrodent", cutter="pooled"), dict(augment="none", losses="tv:0.5 | saturation:0.2"),
    dict(augment="abulafia", ema=0.9), dict(augment="none", optimizer="adam", lr=0.1)], ids=str)  # fmt: skip
def test_a_replayed_run_is_the_same_frame_by_frame(changes):
    theirs, _, _ = paint(False, **changes)
    ours, run, graphs = paint(True, **changes)
    assert_alike(ours, theirs)  # and earlier frames keep what they had
    assert graphs.recorded == 1 and run.replay.replayed == 6  # of 7, the first as ever


def test_a_pull_that_weakens_is_in_no_recording():
    changes = dict(init_weight=0.5, init_decay=4, augment="none", lr=0.05)
    (theirs, _, _), (ours, run, graphs) = paint(False, **changes), paint(True, **changes)
    assert graphs.recorded == 1 and run.replay.replayed == 6
    for a, b in zip(ours, theirs, strict=True):  # the gradient's sum has another order
        assert a.losses.keys() == b.losses.keys()
        assert all(torch.allclose(a.losses[name], b.losses[name], rtol=1e-4) for name in a.losses)


@pytest.mark.parametrize("change", [dict(cutouts=4), dict(prompts="a green square")], ids=str)
def test_what_changes_is_recorded_anew(change):
    def between(run, frame):
        if frame.step == 2:
            run.change(**change)

    (theirs, _, _), (ours, run, graphs) = paint(False, between), paint(True, between)
    assert_alike(ours, theirs)
    assert graphs.recorded == 2 and run.replay.replayed == 2 + 3


@pytest.mark.parametrize("change", ["weight", "loss", "stops", "restore", "lr"])
def test_what_is_changed_at_rest_acts_at_the_next_step(change):
    def between(run, frame):
        judge = run.judges()[0][1]
        if frame.step == 2:
            kept["state"] = run.state()
            if change == "weight":
                name, (weight, loss) = next(iter(run.losses.items()))
                run.losses[name] = 2 * weight, loss
            elif change == "loss":
                run.losses["tv"] = 1.0, LOSSES["tv"]
            elif change == "stops":
                judge.set_weights([0.2, 0.8], [-1.0, 0.5])
            elif change == "lr":
                run.change(lr=0.3)
        if frame.step == 4 and change == "restore" and not kept.get("back"):
            kept["back"] = True
            run.restore(kept["state"])

    kept = {}
    theirs, _, _ = paint(False, between)
    kept = {}
    ours, run, graphs = paint(True, between)
    assert_alike(ours, theirs)
    assert graphs.recorded == (1 if change in ("lr", "restore") else 2)


@pytest.mark.parametrize("how", ["custom", "listed", "chunk", "sparing"])
def test_what_a_graph_may_not_do_is_done_the_ordinary_way(how, monkeypatch):
    run = vqclip.generate("a red circle", **{**SETTINGS, "chunk": 2 if how == "chunk" else 0})
    run.replay = Replay(graphs := Graphs())
    called = []
    if how in ("custom", "listed"):
        run.losses["mine"] = 1.0, lambda image: called.append(image.mean().item()) or image.mean()
    if how == "listed":  # in the table of names, and yet somebody's own
        monkeypatch.setitem(LOSSES, "mine", run.losses["mine"][1])
    run.latent.vqgan.sparing = how == "sparing"
    assert len(list(run)) == 7 and graphs.recorded == 0 and run.replay.off == ""
    assert len(called) == (7 if how in ("custom", "listed") else 0)


def test_every_loss_of_the_table_is_recorded():
    run = vqclip.generate("a red circle", **SETTINGS, losses=" | ".join(f"{name}:0.1" for name in LOSSES))
    run.replay = Replay(graphs := Graphs())
    assert len(list(run)) == 7 and graphs.recorded == 1


def test_a_recording_that_fails_is_told_once_and_costs_nothing():
    def fails(compute):
        compute()
        raise RuntimeError("operation not permitted when stream is capturing")

    theirs, _, _ = paint(False, augment="nerdyrodent")
    run = vqclip.generate("a red circle | blue:-0.3:0.1", **SETTINGS, augment="nerdyrodent")
    run.replay = Replay(fails)
    with pytest.warns(UserWarning, match="steps take longer.*not permitted") as told:
        ours = list(run)
    assert_alike(ours, theirs)
    assert len(told) == 1 and "not permitted" in run.replay.off


@pytest.mark.parametrize("at_once", [3, 2])
def test_what_is_painted_at_once_is_replayed_as_one(at_once):
    made, graphs = [], Graphs()
    for replayed in (False, True):
        batch = vqclip.generate_batch("a red circle", seeds=range(3), at_once=at_once, **{**SETTINGS, "seed": 0})
        for run in batch.runs:
            run.replay = Replay(graphs) if replayed else None
        made.append(list(batch))
    for theirs, ours in zip(*made, strict=True):
        assert_alike(ours, theirs)
    assert [run.replay.replayed for run in batch.runs] == ([6, 0, 0] if at_once == 3 else [6, 0, 6])
    assert graphs.recorded == (1 if at_once == 3 else 2)


def test_a_painter_that_lies_otherwise_is_recorded_anew():
    def between(run, frame):
        if frame.step == 2:
            run.latent.vqgan.channels_last = not run.latent.vqgan.channels_last

    (theirs, _, _), (ours, _, graphs) = paint(False, between), paint(True, between)
    assert_alike(ours, theirs)
    assert graphs.recorded == 2


def test_nothing_is_held_once_a_run_is_over_or_where_there_is_no_card():
    _, run, graphs = paint(True)
    assert run.replay._recording is None
    run.steps += 3
    assert len(list(run)) == 3 and graphs.recorded == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert vqclip.generate("a red circle", **SETTINGS).replay is None


def test_a_state_from_a_card_leaves_the_optimiser_as_this_device_has_it():
    run = vqclip.generate("a red circle", **{**SETTINGS, "optimizer": "adam", "steps": 3})
    next(run)
    state = run.state()
    state["optimizer"]["param_groups"][0]["fused"] = True
    theirs = next(run).codes, next(run).codes
    run.restore(state)
    assert run.optimizer.param_groups[0]["fused"] is None
    assert all(torch.equal(next(run).codes, codes) for codes in theirs)
