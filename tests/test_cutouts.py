"""Cutouts: inside the picture, as random as their seed says and no more, the same in pieces, with a gradient."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vqclip.cutouts import AUGMENTS, Augment, Cutouts, Draw, crop, draw_boxes, pool, resampling
from vqclip.settings import NAMES

FIELDS = "boxes", "maps", "tints", "keeps", "holes", "grains"
DEVICES = [
    name
    for name, there in (("cpu", True), ("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()))
    if there
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(height=40, width=56, seed=0):
    return torch.rand((1, 3, height, width), generator=generator(seed))


def same(a, b):
    values = [(getattr(a, name), getattr(b, name)) for name in FIELDS]
    return all((x is None) == (y is None) and (x is None or torch.equal(x.cpu(), y.cpu())) for x, y in values)


# Places


@given(
    height=st.integers(1, 500),
    width=st.integers(1, 500),
    size=st.integers(1, 336),
    power=st.floats(0.01, 100),
    seed=st.integers(0, 2**32),
)
def test_squares_lie_within_the_picture(height, width, size, power, seed):
    boxes = draw_boxes(64, height, width, size, power, generator(seed))
    side, left, top = boxes.unbind(1)
    assert boxes.shape == (64, 3) and boxes.dtype == torch.int64
    assert side.min() >= min(height, width, size) and side.max() <= min(height, width)
    assert left.min() >= 0 and (left + side).max() <= width
    assert top.min() >= 0 and (top + side).max() <= height


def test_squares_reach_all_edges_and_the_power_moves_their_size():
    means = []
    for power in (0.3, 1, 3):
        side, left, top = draw_boxes(4000, 70, 90, 32, power, generator()).unbind(1)
        assert left.min() == 0 and top.min() == 0 and (left + side).max() == 90 and (top + side).max() == 70
        means.append(side.double().mean().item())
        assert means[-1] == pytest.approx(32 + 38 / (1 + power), abs=1)  # the mean of u^power
    assert means[0] > means[1] > means[2]


# Resampling


@given(data=st.data(), size=st.integers(1, 64))
@settings(deadline=None)
def test_a_line_resampled_sees_only_its_own_pixels_and_keeps_a_constant(data, size):
    length = data.draw(st.integers(1, 120))
    side = data.draw(st.integers(1, length))
    first = data.draw(st.integers(0, length - side))
    matrix = resampling(torch.tensor([side]), torch.tensor([first]), length, size)[0]  # (S, length)
    assert matrix.shape == (size, length) and matrix.dtype == torch.float32
    assert torch.allclose(matrix.sum(1), torch.ones(size), atol=1e-5)
    assert matrix[:, :first].abs().sum() == 0 and matrix[:, first + side :].abs().sum() == 0


def test_a_square_of_the_perceptors_size_is_taken_as_it_is():
    image = picture()
    got = crop(image, torch.tensor([[24, 5, 9], [24, 32, 16]]), 24)
    assert torch.allclose(got[0], image[0, :, 9:33, 5:29], atol=1e-6)
    assert torch.allclose(got[1], image[0, :, 16:, 32:], atol=1e-6)


def test_a_smaller_square_grows_as_torchs_bicubic():
    image = picture()
    got = crop(image, torch.tensor([[13, 40, 2]]), 32)
    bicubic = F.interpolate(image[..., 2:15, 40:53], (32, 32), mode="bicubic", align_corners=True)
    assert torch.allclose(got, bicubic, atol=1e-5)


def test_a_larger_square_shrinks_without_aliases():
    """Stripes finer than the target's pixels come out grey, not as false patterns."""
    stripes = torch.zeros(1, 3, 96, 96)
    stripes[..., ::2] = 1
    got = crop(stripes, torch.tensor([[96, 0, 0]]), 24)
    assert (got[..., 2:-2] - 0.5).abs().max() < 0.02


def test_the_whole_picture_pooled():
    image = picture(32, 64)
    blocks = image.view(1, 3, 8, 4, 8, 8)
    mean = (blocks.mean((3, 5)) + blocks.amax((3, 5))) / 2
    assert torch.allclose(pool(image, 8), mean, atol=1e-6)
    got = Cutouts(8, 5, pooled=True)(image)
    assert got.shape == (5, 3, 8, 8) and all(torch.equal(cut, got[0]) for cut in got)


def test_crops_in_bfloat16_are_nearly_the_same_and_what_disturbs_them_is_done_in_float32():
    image = picture(32, 48).requires_grad_()
    for how in ("none", "updated"):
        full, crisp = (Cutouts(16, 6, how=AUGMENTS[how], precision=dtype) for dtype in (None, torch.bfloat16))
        draw = full.draw(32, 48)
        assert draw.disturbs == (how != "none")
        wanted, found = full(image, draw), crisp(image, draw)
        assert found.dtype == (torch.float32 if draw.disturbs else torch.bfloat16)
        assert 0 < (found - wanted).abs().max() < 0.02
        exact, rounded = (torch.autograd.grad((cuts * wanted.detach()).sum(), image)[0] for cuts in (wanted, found))
        assert rounded.dtype == torch.float32
        assert torch.cosine_similarity(exact.flatten(), rounded.flatten(), dim=0) > 0.999


# Draws


@pytest.mark.parametrize("how", AUGMENTS)
def test_the_seed_alone_decides(how):
    one, again, other = (Cutouts(16, 6, how=AUGMENTS[how], seed=seed) for seed in (3, 3, 4))
    torch.manual_seed(0)
    first = one.draw(40, 56)
    torch.manual_seed(1)
    assert same(first, again.draw(40, 56))
    assert not same(first, other.draw(40, 56))
    second = one.draw(40, 56)
    assert not same(first, second) and same(second, again.draw(40, 56))


@pytest.mark.parametrize("how", AUGMENTS)
def test_generators_can_be_put_back(how):
    cutouts = Cutouts(16, 6, how=AUGMENTS[how])
    cutouts.draw(40, 56)
    state = cutouts.state()
    first = cutouts.draw(40, 56)
    for other in (cutouts, Cutouts(16, 6, how=AUGMENTS[how], seed=9)):
        other.restore(state)
        assert same(other.draw(40, 56), first)


def test_noise_has_a_generator_of_its_own():
    """So that a device whose random numbers differ, or draws more of them, still takes the same glimpses."""
    noisy, finer = (Cutouts(size, 6, how=Augment(flip=0.5, affine=0.8, noise=0.1), seed=3) for size in (16, 24))
    for _ in range(3):
        a, b = noisy.draw(90, 90), finer.draw(90, 90)
        assert torch.equal(a.maps, b.maps)
        assert a.grains.shape == (6, 3, 16, 16) and b.grains.shape == (6, 3, 24, 24)
    assert not torch.equal(noisy.draw(90, 90).grains, a.grains)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("how", AUGMENTS)
def test_every_device_draws_the_same_and_sees_the_same(how, device):
    here, there = (Cutouts(16, 6, how=AUGMENTS[how], device=at) for at in ("cpu", device))
    a, b = here.draw(40, 56), there.draw(40, 56)
    if b.grains is not None:
        assert b.grains.device.type == device
        b = Draw(b.boxes, b.maps, b.tints, b.keeps, b.holes, a.grains)
    assert same(a, b)
    assert torch.allclose(there(picture().to(device), b).cpu(), here(picture(), a), atol=1e-4)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("how", AUGMENTS)
def test_slices_of_a_draw_are_slices_of_the_whole(how, pooled):
    image, cutouts = picture(), Cutouts(16, 7, how=AUGMENTS[how], pooled=pooled, seed=5)
    for _ in range(3):  # erasing is drawn anew for each batch
        draw = cutouts.draw(40, 56)
        whole = cutouts(image, draw)
        for chunk in (1, 2, 3, 7):
            pieces = [cutouts(image, draw[i : i + chunk]) for i in range(0, 7, chunk)]
            assert [len(piece) for piece in pieces] == [len(draw[i : i + chunk]) for i in range(0, 7, chunk)]
            assert torch.allclose(torch.cat(pieces), whole, atol=1e-5)


# What is seen


@pytest.mark.parametrize("height, width, size", [(40, 56, 16), (16, 90, 32), (33, 17, 32)])
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("how", AUGMENTS)
def test_every_augmentation_stays_in_range_and_has_a_gradient(how, pooled, height, width, size):
    image = picture(height, width).requires_grad_()
    cutouts = Cutouts(size, 9, how=AUGMENTS[how], pooled=pooled)
    seen = torch.zeros_like(image)
    for _ in range(4):
        cuts = cutouts(image)
        assert cuts.shape == (9, 3, size, size) and cuts.dtype == torch.float32
        assert cuts.min() >= 0 and cuts.max() <= 1
        (gradient,) = torch.autograd.grad((cuts * torch.randn(cuts.shape, generator=generator())).sum(), image)
        assert torch.isfinite(gradient).all()
        seen += gradient.abs()
    share = (seen > 0).float().mean()
    assert share > (0.2 if how == "nerdyrodent" and pooled else 0.6)  # pooled: the largest of a block, and means


def test_the_names_are_those_of_the_settings():
    assert tuple(AUGMENTS) == NAMES["augment"].metadata["choices"]


def cut_with(how, image=None, n=8, size=24, seed=1):
    """Cutouts with and without `how`, of the same squares."""
    image = picture(60, 60) if image is None else image
    plain, changed = Cutouts(size, n, seed=seed), Cutouts(size, n, how=how, seed=seed)
    draw = changed.draw(*image.shape[2:])
    return plain(image, Draw(draw.boxes)), changed(image, draw), draw


def test_mirrored():
    plain, mirrored, _ = cut_with(Augment(flip=1.0))
    assert torch.allclose(mirrored, plain.flip(3), atol=1e-5)


def test_turned():
    plain, turned, _ = cut_with(Augment(affine=1.0, degrees=0, translate=0))
    assert torch.allclose(turned, plain, atol=1e-5)
    disc = (torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 60)] * 2, indexing="ij")).norm(dim=0) < 0.7).float()
    disc = F.avg_pool2d(disc.expand(1, 3, 60, 60), 5, 1, 2)  # soft, and whole when it is turned
    cutouts = Cutouts(60, 6, how=Augment(affine=1.0, degrees=180, translate=0))
    draw = cutouts.draw(60, 60)
    assert (cutouts(disc, draw) - disc).abs().max() < 0.1
    assert (draw.maps[:, 0, 0] - 1).abs().max() > 0.5  # turned far


def test_shifted_by_a_share_of_the_side():
    ramp = torch.linspace(0, 1, 60).expand(1, 3, 60, 60)
    plain, shifted, draw = cut_with(Augment(affine=1.0, degrees=0, translate=0.1), image=ramp, size=60)
    moved = (shifted - plain)[:, 0, 30, 30]
    assert moved.abs().max() <= 0.1 + 1e-3 and moved.abs().max() > 0.02
    assert torch.allclose(moved, draw.maps[:, 0, 2] / 2, atol=0.01)


@pytest.mark.parametrize("padding, corner", [("border", 1.0), ("zeros", 0.0)])
def test_what_lies_outside(padding, corner):
    white = torch.ones(1, 3, 60, 60)
    cutouts = Cutouts(60, 40, how=Augment(affine=1.0, degrees=45, translate=0, padding=padding))
    assert cutouts(white)[:, :, 0, 0].min() == corner


def test_corners_move_inwards_in_perspective():
    cutouts = Cutouts(24, 50, how=Augment(perspective=1.0, depth=0.5))
    maps = cutouts.draw(60, 60).maps.double()
    corners = torch.tensor([[-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]]).double()
    inner = torch.linalg.inv(maps) @ corners.T  # where the old corners are seen
    x, y = inner[:, 0] / inner[:, 2], inner[:, 1] / inner[:, 2]
    for value in (x, y):
        assert value.abs().max() <= 1 + 1e-4 and value.abs().min() >= 0.5 - 1e-4  # up to half the depth of the side
        assert value.abs().mean() == pytest.approx(0.75, abs=0.05)


def test_colours():
    grey = torch.full((1, 3, 30, 30), 0.4)
    _, seen, _ = cut_with(Augment(jitter=1.0, hue=0.5, saturation=0.9), image=grey)
    assert torch.allclose(seen, torch.full_like(seen, 0.4), atol=1e-5)  # grey has neither hue nor saturation
    plain, still, draw = cut_with(Augment(jitter=1.0, hue=0, saturation=0))
    assert torch.allclose(still, plain, atol=1e-5) and draw.tints is not None
    _, lit, _ = cut_with(Augment(jitter=1.0, hue=0, saturation=0, brightness=0.3), image=grey, n=200)
    assert lit.min() >= 0.28 - 1e-4 and lit.max() <= 0.52 + 1e-4 and lit.max() - lit.min() > 0.2
    _, flat, _ = cut_with(Augment(jitter=1.0, hue=0, saturation=0, contrast=0.5), image=grey, n=200)
    assert flat.min() >= 0.35 - 1e-4 and flat.max() <= 0.45 + 1e-4  # towards or from the middle, 0.5
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 30, 30) * 0.5 + 0.2
    _, tinted, _ = cut_with(Augment(jitter=1.0, hue=0.5, saturation=0), image=red, n=50)
    assert torch.allclose(tinted.mean(1), red.mean().expand_as(tinted.mean(1)), atol=0.02)  # as bright as before
    assert (tinted[:, 0] - tinted[:, 1]).min() < -0.1  # and some of it green or blue


def test_softened():
    plain, soft, draw = cut_with(Augment(soften=1.0))
    roughness = [(x[..., 1:] - x[..., :-1]).pow(2).mean() for x in (plain, soft)]
    assert roughness[1] < 0.9 * roughness[0] and (draw.keeps <= 0.3).all()
    assert torch.allclose(soft.mean(), plain.mean(), atol=0.01)


def test_erased():
    shares = []
    for seed in range(20):
        white = torch.ones(1, 3, 60, 60)
        _, seen, draw = cut_with(Augment(erase=1.0), image=white, size=40, seed=seed)
        assert torch.allclose(seen, draw.holes.expand_as(seen), atol=1e-5)  # the same for the batch
        rows, columns = (draw.holes[0, 0] == 0).any(1), (draw.holes[0, 0] == 0).any(0)
        shares.append((draw.holes[0] == 0).float().mean().item())
        assert shares[-1] == pytest.approx((rows.sum() * columns.sum() / 1600).item())  # a rectangle
    assert 0.08 < min(shares) < 0.2 < max(shares) < 0.42


def test_noise_is_as_strong_as_asked_and_differs_between_cutouts():
    grey = torch.full((1, 3, 60, 60), 0.5)
    plain, noisy, draw = cut_with(Augment(noise=0.1), image=grey, n=200)
    spread = (noisy - plain).flatten(1).std(1)
    assert spread.max() < 0.11 and spread.mean() == pytest.approx(0.05, abs=0.01)
    assert torch.allclose(noisy - plain, draw.grains, atol=1e-5)


@pytest.mark.parametrize("name", ["flip", "affine", "perspective", "jitter", "soften"])
def test_probabilities_are_kept(name):
    n, p = 4000, 0.3
    draw = Cutouts(4, n, how=Augment(**{name: p}, hue=0.4)).draw(30, 30)
    still = torch.eye(3).expand(n, 3, 3)
    changed = {
        "flip": lambda: draw.maps[:, 0, 0] < 0,
        "affine": lambda: (draw.maps - still).abs().amax((1, 2)) > 1e-6,
        "perspective": lambda: (draw.maps - still).abs().amax((1, 2)) > 1e-5,
        "jitter": lambda: (draw.tints[..., :3] - still).abs().amax((1, 2)) > 1e-6,
        "soften": lambda: draw.keeps.flatten() < 1,
    }[name]()
    assert changed.float().mean().item() == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / n))


def test_erasing_is_drawn_once_a_batch():
    cutouts = Cutouts(8, 3, how=Augment(erase=0.7))
    erased = sum(cutouts.draw(30, 30).holes is not None for _ in range(400))
    assert erased / 400 == pytest.approx(0.7, abs=0.09)
