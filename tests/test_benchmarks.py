"""The benchmark's harness: every row runs on small networks, what is kept can be compared, nothing is timed here."""

import json
import math
import os
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench, measure, quality, rounded
from benchmarks.floor import operations
from benchmarks.models import Models
from benchmarks.profile import stages
from benchmarks.reference import draw_crops
from benchmarks.rows import ROWS, Bench, Row
from vqclip.cutouts import Draw

CPU = torch.device("cpu")
APART = ("memory-512", "memory-1024", "memory-2048", "demo", "preview")  # in processes of their own


@pytest.mark.parametrize("name", [name for name in ROWS if name not in APART])
def test_each_row_measures(name):
    row, figure = ROWS[name], ROWS[name].measure(Bench(CPU, pairs=2, quick=True))
    assert all(map(math.isfinite, (figure.value, figure.low, figure.high)))
    assert figure.low <= figure.value <= figure.high
    assert row.met(figure.value) in (None, True, False)
    assert name != "overhead" or figure.low > 0  # of each step a part is taken


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("name", APART)
def test_rows_in_processes_of_their_own_measure(name):
    assert ROWS[name].measure(Bench(CPU, pairs=1, quick=True)).value > 0


def test_ours_and_theirs_are_the_same_loop():
    """On the same crops from the same codes, in float32: or the ratio would compare two things."""
    models = Models("small", CPU)
    run, iterate = models.run(32, 4, "float32"), models.reference(32, 4)
    judge = run.judges()[0][1]
    theirs = iterate()
    run.latent.z.data.copy_(run.latent.vqgan.embed(theirs.codes))
    draw = torch.Generator().manual_seed(0)  # that of `reference`: first the start, then the crops
    torch.randint(len(run.latent.vqgan.codebook), theirs.codes.shape, generator=draw)
    crops = torch.tensor(draw_crops(32, 32, 4, judge.perceptor.size, draw))
    loss = judge(run.latent(), Draw(crops))
    loss.backward()
    assert loss.item() == pytest.approx(theirs.loss, rel=1e-5)
    assert (run.latent.z.grad - theirs.grad).norm() / theirs.grad.norm() < 1e-4


def test_both_ways_paint_from_the_same_codes_and_are_judged_alike(monkeypatch):
    monkeypatch.setattr(quality, "FRESH", 8)
    some = [quality.paint(Models("embedded", CPU), text, 1, 32, 2, [0, 2]) for text in ("desert", "snow")]
    for one in some:
        assert one.theirs[0] == one.ours[0] and one.ours[1] == pytest.approx(one.theirs[1], abs=0.1)
        assert one.ours[1] != one.ours[0]
    told = quality.table(some)
    assert "\n| 0 | " in told and "+0.0000 +- 0.0000, within noise" in told and "2 pictures of 2 prompts" in told


def test_where_a_processor_has_no_bfloat16_it_is_painted_in_it_and_not_timed(monkeypatch):
    monkeypatch.setattr(quality, "FRESH", 8)
    monkeypatch.setattr("vqclip.precision.has", lambda *_: False)
    some = [quality.paint(Models("embedded", CPU), text, 1, 32, 2, [0, 2], "bfloat16") for text in ("desert", "snow")]
    for one in some:
        assert one.longer == one.steps == []
        assert one.theirs[0] == one.ours[0] and one.ours[1] == pytest.approx(one.theirs[1], abs=0.1)
    told = quality.table(some)
    assert "seconds" not in told and "\n| 2 | " in told and told.endswith("\n2 pictures of 2 prompts.")


def test_rounded_products_are_those_of_float32_of_the_same_numbers():
    a, b = (torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(k)).bfloat16() for k in (1, 2))
    image, kernel = a.view(1, 2, 16, 32), torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(3)).bfloat16()
    image.requires_grad_()
    with rounded.products():
        made, into = a @ b.mT, torch.empty(2, 8, 8, dtype=torch.bfloat16)
        torch.baddbmm(into, a, b.mT, beta=0, alpha=0.5, out=into)
        turned = F.conv2d(image, kernel)
        turned.sum().backward()
    exact = a.double() @ b.mT.double()
    assert made.equal(exact.bfloat16()) and into.equal((exact / 2).bfloat16())
    assert turned.equal(F.conv2d(image.double(), kernel.double()).bfloat16())
    theirs = image.detach().double().requires_grad_()
    F.conv2d(theirs, kernel.double()).sum().backward()
    assert image.grad.equal(theirs.grad.bfloat16())


def test_what_is_shown_at_a_time_is_the_last_that_was_there():
    assert [quality.shown([1.0, 2.0, 3.0], at) for at in (0.5, 1.0, 2.5, 3.0, 9.0)] == [0, 0, 1, 2, 2]


def test_a_difference_is_noise_up_to_twice_its_standard_error():
    """Of three that lie one apart, .58."""
    assert [quality.against(apart).split(", ")[1] for apart in ([0, 1, 2], [1, 2, 3], [-3, -2, -1])] == [
        "within noise", "ahead", "behind"]  # fmt: skip


def test_turns_alternate_and_the_first_ones_do_not_count():
    calls = []
    pairs = measure.in_turns(lambda: calls.append("theirs"), lambda: calls.append("ours"), 3, CPU)
    assert calls == ["ours", "theirs", "theirs", "ours", "ours", "theirs", "theirs", "ours"]
    assert len(pairs.theirs) == len(pairs.ours) == len(pairs.ratios()) == 3


def test_a_function_apart_is_called_and_timed_in_a_process_of_its_own(tmp_path):
    apart = measure.Apart(called, tmp_path / "calls")
    first = apart.worked()
    seconds, work = measure.timed(apart, CPU)
    apart()
    ids = (tmp_path / "calls").read_text().split()
    assert len(ids) == 2 and len({*ids, str(os.getpid())}) == 2
    assert work == pytest.approx(apart.worked() - first, abs=0.1) and 0 < work and seconds > 0
    with pytest.raises(EOFError):  # what fails there does not leave us waiting
        measure.Apart(called, tmp_path / "nowhere" / "calls")()


def called(path):
    """A function that writes down in which process it is called."""

    def function():
        with path.open("a") as file:
            print(os.getpid(), file=file)

    return function


def test_a_ratio_says_how_many_times_longer_theirs_takes():
    pairs = measure.Pairs([6.0, 8.0, 9.0], [2.0, 4.0, 3.0], [1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    assert pairs.ratios() == [3, 2, 3]
    assert pairs.ratios(work=True) == [0.5, 0.5, 0.5]
    assert measure.spread(pairs.ratios()) == (3, 2, 3)


def test_goals_bound_from_above_or_from_below():
    below, above = (Row("", "", "x", 6, at_most, None) for at_most in (False, True))
    assert [row.met(value) for row in (below, above) for value in (5.9, 6.1)] == [False, True, True, False]
    assert below.wanted() == ">= 6x" and above.wanted() == "<= 6x"
    card = Row("", "", "x", 6, False, None, on_card=5)
    assert (card.wanted(), card.wanted("cuda")) == (">= 6x", ">= 5x") and card.met(5.5, "cuda") and not card.met(5.5)


def test_a_floor_counts_the_products_there_and_back():
    models = Models("small", CPU)
    few, many = (operations(models.run(32, cutouts)) for cutouts in (2, 6))
    assert many["painter"] == few["painter"] > 0 and many["judges"] == 3 * few["judges"] > 0
    rounded = operations(models.run(32, 2, "bfloat16"))  # by other kernels
    assert rounded == pytest.approx(few, rel=0.05)
    vqgan = models.painter()  # frozen, so that the way back is as long as the way there, not twice
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        vqgan.decode(torch.zeros(1, 16, 8, 8))
    assert few["painter"] == pytest.approx(2 * forward.get_total_flops(), rel=0.1)


def test_what_was_kept_is_replaced_row_by_row_and_shown_beside_what_is_new(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--threads", "1", "--pairs", "1", "--results",
                                          str(tmp_path), *arguments])  # fmt: skip
        bench.main()
        return capsys.readouterr().out

    run("embedded", "decoding-256")
    kept = json.loads((tmp_path / "cpu.json").read_text())
    assert set(kept) == {"embedded", "decoding-256"} and kept["embedded"]["machine"]["torch"] == torch.__version__
    kept["embedded"]["value"] = 123.0
    (tmp_path / "cpu.json").write_text(json.dumps(kept))
    assert "123x" in run("embedded")
    again = json.loads((tmp_path / "cpu.json").read_text())
    assert again["embedded"]["value"] != 123 and again["decoding-256"] == kept["decoding-256"]
    assert "| decoding-256" in (tmp_path / "cpu.md").read_text()


def test_a_strange_row_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "step-257"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "there is no row 'step-257'; choose step-256" in capsys.readouterr().err


def test_the_stages_of_a_step_are_told_apart():
    run = Models("small", CPU).run(32, 4)
    before = run.latent.z.detach().clone()
    told = stages(run, CPU)
    assert list(told) == ["nearest codes", "painter", "cutouts", "judge", "judge, back", "cutouts, back",
                          "painter, back"]  # fmt: skip
    assert min(told.values()) > 0 and torch.equal(run.latent.z, before)
