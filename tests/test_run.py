"""The loop: the same frames from the same seed, whatever happens in between; and errors that say what to do."""

import math
import random

import mishaps
import numpy as np
import pytest
import quick
import torch
from PIL import Image

import vqclip
from vqclip import cutouts, latent, losses, ops, optim
from vqclip import run as run_module
from vqclip.images import load_image
from vqclip.run import NotFinite, crop_to


@pytest.fixture(scope="module")
def painter():
    return quick.painter()


@pytest.fixture(scope="module")
def paint(painter):
    """The codes of a whole quick run."""
    return lambda **changes: quick.paint(quick.run(vqgan=painter, **changes))


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (21, 33, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def same(a, b):
    """Whether two states hold the same, bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


# Frames


def test_a_run_has_its_start_and_one_frame_a_step(painter):
    run = quick.run(vqgan=painter, steps=4)
    start = run.latent.z.detach().clone()
    frames = list(run)
    assert [frame.step for frame in frames] == [0, 1, 2, 3, 4]
    assert torch.equal(frames[0].codes, painter.nearest(start)[0])
    assert list(run) == []  # it has ended
    for frame in frames:  # each shows what was measured
        assert frame.codes.shape == (8, 8) and frame.image.shape == (3, 16, 16)
        assert torch.equal(frame.image, run.latent.decode(frame.codes))
        assert frame.losses.keys() == {"judge"} and frame.similarity.keys() == {"desert", "snow"}
        assert not any(loss.requires_grad for loss in frame.losses.values())


def test_the_same_seed_paints_the_same_and_another_seed_does_not(paint):
    one, again, other = (paint(seed=seed, lr=0.5) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert (one != other).float().mean() > 0.5
    assert (one[0] != one[-1]).any()  # or it would say nothing


@pytest.mark.parametrize("augment", ["mse", "abulafia", "nerdyrodent"])
def test_runs_that_take_turns_do_not_disturb_each_other(paint, painter, augment):
    alone = [paint(seed=seed, augment=augment) for seed in (1, 2)]
    runs = [quick.run(vqgan=painter, seed=seed, augment=augment) for seed in (1, 2)]
    turns = [[next(run).codes for run in runs] for _ in range(11)]
    for run, codes in enumerate(alone):
        assert torch.equal(torch.stack([turn[run] for turn in turns]), codes)


def test_nobody_elses_random_numbers_are_drawn_or_seeded(paint, photo):
    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    before = states()
    codes = paint(augment="nerdyrodent", steps=3, image_prompts=str(photo))
    assert states() == before
    torch.manual_seed(99)
    assert torch.equal(paint(augment="nerdyrodent", steps=3, image_prompts=str(photo)), codes)


def test_more_steps_are_the_longer_run(paint, painter):
    run = quick.run(vqgan=painter, steps=4, augment="mse")
    codes = [quick.paint(run)]
    run.steps = 7
    codes.append(quick.paint(run))
    assert torch.equal(torch.cat(codes), paint(steps=7, augment="mse"))


def test_the_loss_falls(vqgan, vit):
    run = vqclip.generate("a desert", vqgan, vit, size=32, steps=25, cutouts=8, augment="none", churn=0,
                          device="cpu")  # fmt: skip
    fell = [frame.losses[vit.name].item() for frame in run]
    assert sum(fell[-5:]) < 0.9 * sum(fell[:5])
    assert 0 <= min(fell) and max(fell) <= math.pi**2 / 2


@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
@pytest.mark.parametrize("start", ["soft", "random", "mean"])
def test_all_ways_to_start_and_move_lower_the_loss(painter, optimizer, start):
    run = quick.run(vqgan=painter, optimizer=optimizer, start=start, steps=25, cutouts=8, augment="none")
    frames = list(run)
    fell = [frame.losses["judge"].item() for frame in frames]
    assert sum(fell[-5:]) < sum(fell[:5])
    assert (frames[0].codes.unique().numel() > 10) == (start != "mean")


@pytest.mark.parametrize("size", [(16, 16), (17, 16), (37, 50), (50, 37), (64, 19)])
def test_pictures_have_exactly_the_size_that_was_asked_for(painter, size):
    run = quick.run(vqgan=painter, size=size, steps=1)
    frame = next(run)
    width, height = size
    whole = -(-height // 2) * 2, -(-width // 2) * 2
    assert frame.image.shape == (3, *whole)
    assert frame.pil.size == size
    assert torch.equal(crop_to(frame.image, size), frame.image[:, :height, :width])  # a pixel too many is the last
    assert ("cropped to" in vqclip.echo(run)) == (whole != (height, width))


def test_a_wide_margin_is_cut_evenly():
    image = torch.arange(7.0).view(1, 1, 7).expand(3, 5, 7)
    assert crop_to(image, (3, 1))[0].tolist() == [[2, 3, 4]]


def test_a_picture_to_start_from(painter, photo):
    run = quick.run(vqgan=painter, init_image=str(photo), size=(18, 16))
    assert torch.equal(next(run).codes, painter.encode(load_image(photo, (18, 16)))[0])


def test_churn_mixes_in_ever_less_chance_and_then_none(painter):
    """What churn adds to z is what it would not have been without."""

    def moved(step, **churn):
        z = latent.VQLatent(painter, painter.embed(torch.full((1, 8, 8), 5)), seed=1, **churn)
        before = z.z.detach().clone()
        z.churn_(step)
        return float((z.z.detach() - before).norm())

    fades = [moved(step, churn=0.4, churn_decay=10) for step in range(12)]
    assert fades[0] > fades[4] > fades[9] > fades[10] == fades[11] == 0
    assert fades[0] == pytest.approx(2 * fades[5], rel=1e-4)
    assert moved(10_000, churn=0.4) == pytest.approx(fades[0], rel=1e-6)  # without a decay it stays
    assert moved(0, churn=1.0) == pytest.approx(2.5 * fades[0], rel=1e-4) and moved(0) == 0


def test_churn_has_chances_of_its_own(paint):
    without, one, other = (paint(seed=2, churn=churn) for churn in (0, 0.2, 0.3))
    assert torch.equal(without[0], one[0])  # the same start
    assert (without[-1] != one[-1]).any() and (one[-1] != other[-1]).any()
    assert torch.equal(one, paint(seed=2, churn=0.2))


def test_a_picture_to_start_from_is_not_churned(paint, photo):
    still, churned = (paint(init_image=str(photo), churn=churn) for churn in (0, 0.5))
    assert torch.equal(still, churned)


# Changes at rest


def test_weights_changed_between_frames_act_at_the_next(painter):
    run, changed = (quick.run(vqgan=painter, seed=3) for _ in range(2))
    judge = changed.losses["judge"][1]
    for _ in range(3):
        assert next(run).losses == next(changed).losses
    judge.set_weights((2 * judge.weights).tolist(), judge.stops.tolist())
    once, twice = next(run), next(changed)
    assert torch.equal(once.codes, twice.codes)  # made by the step before
    assert twice.losses["judge"].item() == pytest.approx(2 * once.losses["judge"].item())
    judge.set_weights([-1.0, 0.0], [-math.inf, -math.inf])
    assert next(changed).losses["judge"] < 0 < next(run).losses["judge"]


def test_the_learning_rate_changed_between_frames_acts_at_the_next(painter):
    run = quick.run(vqgan=painter, optimizer="adam", churn=0)
    for _ in range(3):
        next(run)
    run.optimizer.param_groups[0]["lr"] = 0.0
    z = run.latent.z.detach().clone()
    next(run)
    assert torch.equal(run.latent.z, z)
    run.optimizer.param_groups[0]["lr"] = 0.05
    next(run)
    assert 0 < (run.latent.z - z).abs().max() < 0.2


def test_a_loss_of_ones_own_needs_no_prompt(painter):
    z = painter.embed(torch.zeros(1, 8, 8, dtype=torch.long))
    z = vqclip.VQLatent(painter, z + 0.1 * quick.seeded(*z.shape))
    adam = torch.optim.Adam(z.parameters(), lr=0.3)
    run = vqclip.Run(z, {"dark": (1.0, lambda image: image.mean())}, adam, 20, vqclip.Settings(size=16))
    frames = list(run)
    assert frames[-1].losses["dark"] < frames[0].losses["dark"] and frames[0].similarity == {}


# State


@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_a_state_can_be_gone_back_to_again_and_again(painter, optimizer):
    run = quick.run(vqgan=painter, steps=8, augment="mse", optimizer=optimizer, ema=0.5)
    for _ in range(3):
        next(run)
    state = run.state()
    first = quick.paint(run)
    for _ in range(2):
        run.restore(state)
        assert same(run.state(), state) and run.step == 3
        assert torch.equal(quick.paint(run), first)


def test_a_state_carries_what_was_changed_over_to_another_run(painter):
    run = quick.run(vqgan=painter, steps=8, losses="tv:0.5", init_weight=0.3)
    for _ in range(3):
        next(run)
    run.losses["judge"][1].set_weights([0.1, -0.9], [-math.inf, -0.5])
    run.losses["tv"] = 7.0, run.losses["tv"][1]
    run.optimizer.param_groups[0]["lr"] = 0.02
    other = quick.run(vqgan=painter, steps=8, losses="tv:0.5", init_weight=0.3, seed=5)
    other.restore(run.state())
    assert same(other.state(), run.state())
    assert torch.equal(quick.paint(other), quick.paint(run))


def test_losses_that_only_one_side_knows_are_left_alone(painter):
    run, other = (quick.run(vqgan=painter, losses=name) for name in ("tv:2", "edges:3"))
    other.restore(run.state())
    assert other.losses.keys() == {"judge", "edges"} and other.losses["edges"][0] == 3


def test_one_step_can_be_taken_back(painter):
    run = quick.run(vqgan=painter, steps=6, augment="mse", ema=0.9)
    run.undo()  # there is none
    assert run.step == 0
    for _ in range(3):
        frame = next(run)
    after = run.state()
    run.undo()
    assert run.step == 2
    again = next(run)
    assert torch.equal(again.codes, frame.codes) and again.losses == frame.losses and same(run.state(), after)


# Interrupts


@pytest.mark.parametrize(
    "parts, stride, changes",
    [
        ((run_module, latent), 1, {"ema": 0.5, "augment": "mse"}),  # where all that a step changes is changed
        ((run_module, latent, losses, cutouts, ops, optim), 11, {"chunk": 1, "optimizer": "momentum"}),
    ],
    ids=["any", "some"],
)
def test_an_interrupt_at_any_line_of_a_step_leaves_the_run_at_rest(painter, parts, stride, changes):
    run = quick.run(vqgan=painter, steps=4, init_weight=0.1, losses="tv", **changes)
    for _ in range(3):
        next(run)
    before = run.state()
    with mishaps.at_line(0, None, *parts) as lines:
        next(run)
    after, total = run.state(), lines.count
    for n in range(1, total + 1, stride):
        run.restore(before)
        with pytest.raises(KeyboardInterrupt), mishaps.at_line(n, mishaps.interrupt, *parts) as lines:
            next(run)
        if run.step == 4:  # it came too late for the step, which is whole
            assert same(run.state(), after), lines.where
        else:
            assert same(run.state(), before), lines.where
            next(run)
            assert same(run.state(), after), lines.where
    assert n > 40  # how many lines a step has differs with Python


def test_an_interrupt_while_going_back_after_an_interrupt(painter):
    """A user who presses stop twice: the run tidies up before anything else happens."""
    run = quick.run(vqgan=painter, steps=4, augment="mse", ema=0.5)
    for _ in range(3):
        next(run)
    before = run.state()
    with mishaps.at_line(0, None, run_module, latent) as lines:
        run.restore(before)
    next(run)
    after, total = run.state(), lines.count
    step, going_back = run.optimizer.step, run.restore

    def broken_step():
        step()  # z has moved
        raise KeyboardInterrupt

    for n in range(1, total + 1):
        run.restore(before)
        run.optimizer.step = broken_step

        def broken_restore(state, n=n):
            with mishaps.at_line(n, mishaps.interrupt, run_module, latent):
                going_back(state)

        run.restore = broken_restore
        with pytest.raises(KeyboardInterrupt):
            next(run)
        run.optimizer.step, run.restore = step, going_back
        assert run.step == 3
        if n % 2:  # who looks at it finds it at rest, and who goes on too
            assert same(run.state(), before)
        next(run)
        assert same(run.state(), after)


def test_an_interrupt_inside_a_loss_at_step_5(paint, painter):
    run = quick.run(vqgan=painter, augment="mse")
    codes, armed = [], True

    def loss(image):
        nonlocal armed
        if run.step == 5 and armed:
            armed = False
            raise KeyboardInterrupt
        return 0 * image.sum()

    run.losses["mine"] = 1.0, loss
    with pytest.raises(KeyboardInterrupt):
        for frame in run:
            codes.append(frame.codes)
    assert len(codes) == 5 == run.step
    codes += [frame.codes for frame in run]
    assert torch.equal(torch.stack(codes), paint(augment="mse"))


# Not a number


@pytest.mark.parametrize("chunk", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_stops_the_run_before_its_step(paint, painter, value, chunk):
    run = quick.run(vqgan=painter, augment="mse", chunk=chunk)
    bad = [value]
    run.losses["odd"] = 1.0, lambda image: 0 * image.sum() + (bad[0] if run.step == 5 else 0)
    codes = []
    with pytest.raises(NotFinite, match=f"at step 5 the odd became {value}.*smaller lr .now 0.12.") as caught:
        for frame in run:
            codes.append(frame.codes)
    assert "\n" not in str(caught.value)
    assert run.step == 5 and all(torch.isfinite(run.latent.z).flatten())
    with pytest.raises(NotFinite):
        next(run)  # nothing was changed
    bad[0] = 0
    codes += [frame.codes for frame in run]
    assert torch.equal(torch.stack(codes), paint(augment="mse", chunk=chunk))


def test_a_gradient_that_is_no_number_is_found_too(painter):
    run = quick.run(vqgan=painter)
    before = run.state()
    run.losses["root"] = 1.0, lambda image: (0 * image).sum().sqrt()  # 0, with 0 * inf for a gradient
    with pytest.raises(NotFinite, match="at step 0 the gradient became nan"):
        next(run)
    del run.losses["root"]
    assert same(run.state(), before)
    assert len(list(run)) == 11


# What a run can be made of


def test_chunks_give_the_same_loss_gradient_and_codes(vqgan, vit):
    def run(chunk):
        return vqclip.generate("a desert:2 | snow | fog:-1", vqgan, vit, size=(40, 32), steps=4, cutouts=7,
                               augment="nerdyrodent", chunk=chunk, losses="tv:0.5", device="cpu")  # fmt: skip

    whole, pieces = run(0), {chunk: run(chunk) for chunk in (1, 3, 7)}
    for _ in range(5):
        frame = next(whole)
        for chunk, run in pieces.items():
            other = next(run)
            assert torch.equal(other.codes, frame.codes), chunk
            assert other.losses[vit.name].item() == pytest.approx(frame.losses[vit.name].item(), rel=1e-5)
            assert other.similarity == pytest.approx(frame.similarity, abs=1e-6)
            error = (run.latent.z.grad - whole.latent.z.grad).norm() / whole.latent.z.grad.norm()
            assert error < 1e-4


def test_several_judges_share_the_say(vqgan, vit, rn):
    run = vqclip.generate("a desert:2 | snow", vqgan, [vit, rn], size=64, steps=2, cutouts=3, device="cpu")
    alone = [vqclip.generate("a desert:2 | snow", vqgan, judge, size=64, steps=2, cutouts=3, device="cpu")
             for judge in (vit, rn)]  # fmt: skip
    frame, (one, two) = next(run), map(next, alone)
    assert list(frame.losses) == [vit.name, rn.name] and run.settings.clip == f"{vit.name} + {rn.name}"
    for single, judge in ((one, vit), (two, rn)):
        assert frame.losses[judge.name].item() == pytest.approx(single.losses[judge.name].item() / 2)
    for text in ("a desert", "snow"):
        assert frame.similarity[text] == pytest.approx((one.similarity[text] + two.similarity[text]) / 2, abs=1e-6)
    assert len(list(run)) == 2


def test_several_judges_by_their_names(files):
    run = vqclip.generate("a desert", "vqgan", root=files, size=64, steps=1, cutouts=2, device="cpu", clip="vit + rn")
    again = vqclip.generate("a desert", root=files, settings=run.settings)
    assert list(run.losses) == list(again.losses) == ["vit", "rn"]
    assert torch.equal(quick.paint(run), quick.paint(again))


def test_a_given_judge_replaces_all_that_the_settings_name(vqgan, vit):
    settings = vqclip.Settings(clip="one + another", size=32, device="cpu")
    assert list(vqclip.generate("a desert", vqgan, vit, settings=settings).losses) == [vit.name]


def test_a_prompt_of_5000_words_is_cut_and_said(vqgan, vit):
    long = " ".join(["dune", "sand", "wind"][i % 3] for i in range(5000))
    with pytest.warns(UserWarning, match="reads 77 tokens; this was cut off") as caught:
        run = vqclip.generate(long, vqgan, vit, size=16, steps=1, cutouts=2, device="cpu")
    assert len(caught) == 1 and len(str(caught[0].message)) < 200
    assert len(list(run)) == 2
    said = vqclip.echo(run)
    assert "vit reads 77 tokens: dune sand wind" in said and "77 (cut off: dune sand" in said and len(said) < 500


def test_what_was_understood_is_echoed(vqgan, vit, rn):
    run = vqclip.generate("a desert:50 | snow:25 | fog:-25", vqgan, [vit, rn], size=(37, 50), steps=1, device="cpu")
    assert vqclip.echo(run).splitlines() == [
        "a desert 50 % · snow 25 % · − fog 25 %",
        "vit reads 77 tokens: a desert 4 · snow 3 · fog 3",
        "rn reads 77 tokens: a desert 4 · snow 3 · fog 3",
        "painted at 38x50, whole codes of 2, and cropped to 37x50",
    ]


def test_the_picture_shown_may_be_an_average(painter):
    run = quick.run(vqgan=painter, ema=0.8, steps=6)
    zs, frames = [], []
    while run.step <= run.steps:
        zs.append(run.latent.z.detach().clone())
        frames.append(next(run))
    for t, frame in enumerate(frames):
        shares = torch.tensor([0.8 ** (t - i) for i in range(t + 1)])
        mean = sum(share * z for share, z in zip(shares / shares.sum(), zs, strict=False))
        assert torch.equal(frame.codes, painter.nearest(mean)[0])
        assert torch.equal(frame.image, run.latent.decode(frame.codes))


def test_the_hold_to_the_start_lets_go(painter):
    run = quick.run(vqgan=painter, init_weight=2.0, init_decay=4, steps=6)
    start = run.latent.z.detach().clone()
    for step in range(7):
        distance = (run.latent.z.detach() - start).pow(2).mean().item()
        frame = next(run)
        if step < 4:
            assert frame.losses["init"].item() == pytest.approx(2 * (1 - step / 4) / 2 * distance)
        else:
            assert "init" not in frame.losses
    assert distance > 0
    assert "init" in list(quick.run(vqgan=painter, init_weight=2.0, steps=6))[-1].losses  # 0 steps: never


def test_a_strong_hold_stays_close(painter):
    def distance(**changes):
        run = quick.run(vqgan=painter, steps=10, churn=0, **changes)
        start = run.latent.z.detach().clone()
        quick.paint(run)
        return (run.latent.z - start).norm().item()

    assert distance(init_weight=100.0) < 0.5 * distance()


def test_pictures_to_resemble(vqgan, vit, photo):
    run = vqclip.generate("", vqgan, vit, image_prompts=str(photo), size=32, steps=30, cutouts=6, device="cpu")
    frames = list(run)
    likeness = [frame.similarity[str(photo)] for frame in frames]
    assert sum(likeness[-5:]) > sum(likeness[:5])
    mixed = vqclip.generate("snow:3", vqgan, vit, image_prompts=f"{photo}:-1", size=32, cutouts=6, device="cpu")
    judge = mixed.losses[vit.name][1]
    assert judge.weights.tolist() == [0.75, -0.25] and len(judge.targets) == 1 + 6
    assert list(next(mixed).similarity) == ["snow", str(photo)]


def test_a_tiny_picture_to_resemble(painter, tmp_path):
    Image.new("RGB", (3, 1), "red").save(tmp_path / "dot.png")
    assert len(list(quick.run(vqgan=painter, image_prompts=str(tmp_path / "dot.png"), steps=2))) == 3


def test_models_loaded_beforehand_follow_the_run_to_its_device(painter):
    moved = []

    class Movable(quick.Judge, torch.nn.Module):
        def __init__(self):
            torch.nn.Module.__init__(self)
            quick.Judge.__init__(self)

        def to(self, device):
            moved.append(device)

    quick.run(vqgan=painter, clip=Movable())
    assert moved == [torch.device("cpu")]


# The consumer


@pytest.mark.parametrize("chunk", [0, 1])
def test_no_mode_leaks_to_the_consumer_or_in_from_him(paint, painter, chunk):
    def modes():
        return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled()

    codes = paint(steps=3, chunk=chunk)
    judge = quick.Judge()
    inner = judge.encode_image

    def autocasting(cutouts):
        with torch.autocast("cpu", torch.bfloat16):
            return inner(cutouts).float()

    judge.encode_image = autocasting
    for frame in quick.run(vqgan=painter, clip=judge, steps=1):
        assert modes() == (True, False, False)
        assert not frame.image.requires_grad
    with torch.no_grad():
        run = quick.run(vqgan=painter, steps=3, chunk=chunk)
        made = []
        for frame in run:
            assert modes() == (False, False, False)
            made.append(frame.codes)
        assert torch.equal(torch.stack(made), codes)
    run = quick.run(vqgan=painter)
    run.losses["bad"] = 1.0, lambda image: 1 / 0
    with pytest.raises(ZeroDivisionError), torch.no_grad():
        next(run)
    assert modes() == (True, False, False)


def test_a_consumer_that_keeps_all_frames_keeps_them_as_they_were(painter):
    run = quick.run(vqgan=painter, steps=5, ema=0.5)
    copies = []
    frames = [copies.append(frame.codes.clone()) or frame for frame in run]
    assert all(torch.equal(frame.codes, copy) for frame, copy in zip(frames, copies, strict=True))


# What cannot be


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"stepps": 3}, vqclip.SettingsError, "there is no setting 'stepps'; there are prompts, "),
        ({"device": "warp"}, vqclip.SettingsError, "device='warp' is not on this machine: choose auto or cpu"),
        ({"losses": "beauty:2"}, vqclip.SettingsError, "there is no 'beauty'; choose tv, saturation, edges"),
        ({"prompts": ""}, vqclip.PromptError, "The prompt is empty; write a few words"),
        ({"init_image": "gone.png"}, vqclip.ImageError, "There is no picture gone.png"),
        ({"image_prompts": "gone.png"}, vqclip.ImageError, "There is no picture gone.png"),
        ({"vqgan": "gone"}, vqclip.CheckpointError, "no checkpoint 'gone': there is no such file"),
        ({"clip": "gone"}, vqclip.CheckpointError, "no checkpoint 'gone': there is no such file"),
        ({"clip": [quick.Judge(), quick.Judge()]}, vqclip.SettingsError, "the same judge twice"),
    ],
    ids=lambda value: str(value).partition(" object at ")[0],  # an address would be another in each process
)
def test_what_cannot_be_is_said_in_one_sentence(painter, changes, error, words):
    changes = {"prompts": "snow", "vqgan": painter, "clip": quick.Judge(), "device": "cpu", **changes}
    with pytest.raises(error, match=words) as caught:
        vqclip.generate(**changes)
    assert "\n" not in str(caught.value)
