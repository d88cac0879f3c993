"""The witness itself: that `reference` is what the description of z+quantize says (Crowson 2021)."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import reference as ref


def seeded(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Gradients that are not derivatives


def test_replace_grad_shows_the_first_and_moves_the_second():
    value = seeded(3, 4).requires_grad_()
    receiver = seeded(1, 4, seed=1).requires_grad_()
    shown = ref.ReplaceGrad.apply(value, receiver)
    weights = seeded(3, 4, seed=2)
    (shown * weights).sum().backward()
    assert torch.equal(shown, value)
    assert value.grad is None
    assert torch.allclose(receiver.grad, weights.sum(0, keepdim=True))


@pytest.mark.parametrize(
    "x, grad, passes",
    [
        (0.5, 1.0, True),
        (0.5, -1.0, True),
        (0.0, 1.0, True),  # the border is inside
        (1.0, -1.0, True),
        (1.5, 1.0, True),  # descent lowers x: back in
        (1.5, -1.0, False),
        (-0.5, -1.0, True),
        (-0.5, 1.0, False),
    ],
)
def test_clamp_passes_what_leads_back_inside(x, grad, passes):
    x = torch.tensor([x], requires_grad=True)
    y = ref.ClampWithGrad.apply(x, 0, 1)
    y.backward(torch.tensor([grad]))
    assert y.item() == min(max(x.item(), 0), 1)
    assert x.grad.item() == (grad if passes else 0)


# Quantiser


def test_nearest_code_is_the_euclidean_one_and_the_gradient_goes_straight_through():
    codebook, z = seeded(7, 3), seeded(1, 3, 4, 5, seed=1).requires_grad_()
    z_q = ref.quantise(z, codebook)
    for i in range(4):
        for j in range(5):
            lengths = [(z[0, :, i, j] - row).norm().item() for row in codebook]
            assert torch.equal(z_q[0, :, i, j], codebook[lengths.index(min(lengths))])
    cotangent = seeded(1, 3, 4, 5, seed=2)
    z_q.backward(cotangent)
    assert torch.equal(z.grad, cotangent)


def test_start_is_made_of_codes_and_lies_in_the_box():
    codebook = seeded(7, 3)
    z = ref.random_start(codebook, 4, 6, torch.Generator().manual_seed(0))
    assert z.shape == (1, 3, 4, 6)
    assert torch.equal(ref.embed(ref.nearest_codes(z, codebook), codebook), z)
    low, high = ref.codebook_box(codebook)
    assert (low <= z).all() and (z <= high).all()
    for channel in range(3):
        assert low[0, channel] == min(codebook[:, channel].tolist())
        assert high[0, channel] == max(codebook[:, channel].tolist())


# Resampling


@settings(max_examples=25, deadline=None)
@given(h=st.integers(4, 40), w=st.integers(4, 40), rows=st.integers(2, 40), columns=st.integers(2, 40))
def test_a_constant_image_stays_constant(h, w, rows, columns):
    image = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, h, w)
    out = ref.resample(image, (rows, columns))
    assert out.shape == (1, 3, rows, columns)
    assert torch.allclose(out, image[:, :, :1, :1].expand_as(out), atol=1e-12)


def test_the_same_size_is_the_identity():
    image = seeded(2, 3, 17, 23)
    assert torch.allclose(ref.resample(image, (17, 23)), image, atol=1e-12)


@pytest.mark.parametrize("src, dst", [(30, 16), (32, 16), (33, 16), (224, 223), (500, 224), (9, 2)])
def test_lanczos_kernel(src, dst):
    ratio = dst / src
    kernel = ref.lanczos_kernel(ratio)
    # ceil(2/r + 1) points, mirrored about the first, without the outermost two
    assert len(kernel) == 2 * math.ceil(2 / ratio + 1) - 3
    assert kernel.sum().item() == pytest.approx(1, abs=1e-14)
    assert torch.equal(kernel, kernel.flip(0))
    middle = len(kernel) // 2
    assert kernel.argmax() == middle
    x = ratio  # the first tap beside the middle: sinc(x) sinc(x/2) = 2 sin(pi x) sin(pi x / 2) / (pi x)^2
    beside = 2 * math.sin(math.pi * x) * math.sin(math.pi * x / 2) / (math.pi * x) ** 2
    assert (kernel[middle + 1] / kernel[middle]).item() == pytest.approx(beside, rel=1e-12)


def test_shrinking_removes_the_finest_stripes_and_keeps_the_broad_ones():
    x = torch.arange(64, dtype=torch.float64)
    fine = torch.cos(math.pi * x).expand(1, 1, 64, 64)
    broad = torch.cos(math.pi * x / 16).expand(1, 1, 64, 64)
    assert ref.resample(fine, (16, 16)).std() < 0.05 * fine.std()
    assert ref.resample(broad, (16, 16)).std() > 0.9 * broad.std()


def test_growing_is_bicubic_alone():
    image = seeded(1, 3, 9, 9)
    expected = F.interpolate(image, (20, 20), mode="bicubic", align_corners=True)
    assert torch.equal(ref.resample(image, (20, 20)), expected)
    assert torch.allclose(
        expected[:, :, [0, 0, -1, -1], [0, -1, 0, -1]], image[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    )


def test_only_the_axis_that_shrinks_is_smoothed():
    rows = seeded(1, 1, 12, 1).expand(1, 1, 12, 30)  # the same in every column
    narrower = ref.resample(rows, (12, 16))
    assert torch.allclose(narrower, rows[..., :16], atol=1e-12)


# Crops


@settings(max_examples=50, deadline=None)
@given(
    width=st.integers(8, 90),
    height=st.integers(8, 90),
    cut_size=st.integers(4, 64),
    cut_pow=st.sampled_from([0.5, 1.0, 2.0]),
    seed=st.integers(0, 2**31),
)
def test_crops_are_squares_inside_the_image(width, height, cut_size, cut_pow, seed):
    crops = ref.draw_crops(width, height, 12, cut_size, torch.Generator().manual_seed(seed), cut_pow)
    assert len(crops) == 12
    for size, x, y in crops:
        assert min(width, height, cut_size) <= size <= min(width, height)
        assert 0 <= x <= width - size and 0 <= y <= height - size


def test_crops_reach_both_ends_and_cut_pow_bends_their_sizes():
    def draw(cut_pow):
        return ref.draw_crops(24, 20, 4000, 16, torch.Generator().manual_seed(0), cut_pow)

    crops = draw(1.0)
    assert {size for size, _, _ in crops} == {16, 17, 18, 19}  # u < 1, so the largest is never reached
    assert {x for size, x, _ in crops if size == 16} == set(range(9))
    assert {y for size, _, y in crops if size == 16} == set(range(5))
    mean = {cut_pow: sum(size for size, _, _ in draw(cut_pow)) for cut_pow in (0.5, 1.0, 2.0)}
    assert mean[0.5] > mean[1.0] > mean[2.0]
    assert crops == draw(1.0)


def test_an_image_below_the_crop_size_gives_one_size():
    crops = ref.draw_crops(12, 10, 50, 32, torch.Generator().manual_seed(0))
    assert {size for size, _, _ in crops} == {10}


def test_cutouts_take_x_from_the_left_and_y_from_the_top():
    image = seeded(1, 3, 10, 14).sigmoid()
    cuts = ref.cutouts(image, [(6, 8, 1), (6, 0, 4)], 6)
    assert torch.allclose(cuts[0], image[0, :, 1:7, 8:14])
    assert torch.allclose(cuts[1], image[0, :, 4:10, 0:6])


# Distance and stop


@pytest.mark.parametrize(
    "cosine, expected",
    [(0, 1.234), (0.2, 0.938), (0.25, 0.869), (0.3, 0.802), (0.35, 0.736), (0.4, 0.672), (0.5, 0.548)],
)
def test_distance_table(cosine, expected):
    a = torch.tensor([[3.0, 0.0]], dtype=torch.float64)  # lengths do not matter
    b = torch.tensor([[cosine, math.sqrt(1 - cosine**2)]], dtype=torch.float64) * 0.1
    d = ref.distances(a, b).item()
    assert d == pytest.approx(expected, abs=6e-4)
    assert d == pytest.approx(math.acos(cosine) ** 2 / 2, rel=1e-12)


def at(d):
    """A unit row at distance d from (1, 0)."""
    theta = math.sqrt(2 * d)
    return [math.cos(theta), math.sin(theta)]


@pytest.mark.parametrize(
    "weight, stop, moving",
    [
        (1.0, -math.inf, [0.3, 0.7, 1.2]),
        (1.0, 0.5, [0.7, 1.2]),  # towards, until d < 0.5
        (2.5, 0.9, [1.2]),
        (-1.0, -math.inf, [0.3, 0.7, 1.2]),
        (-1.0, -0.9, [0.3, 0.7]),  # away, until d > 0.9
        (-0.5, -0.5, [0.3]),
        (-1.0, 0.5, []),  # a positive stop with a negative weight stops everything
    ],
)
def test_stop(weight, stop, moving):
    ds = [0.3, 0.7, 1.2]
    embeddings = torch.tensor([at(d) for d in ds], dtype=torch.float64, requires_grad=True)
    target = ref.Target(torch.tensor([[1.0, 0.0]]), weight, stop)
    loss = ref.prompt_loss(embeddings, target)
    assert loss.item() == pytest.approx(weight * sum(ds) / 3)  # the reported value ignores the stop
    loss.backward()
    assert [d for d, g in zip(ds, embeddings.grad, strict=True) if g.abs().max() > 0] == moving
    if moving:  # descent turns towards (1, 0) for a positive weight, away for a negative one
        stepped = embeddings.detach() - 0.01 * embeddings.grad
        closer = ref.distances(stepped, target.embedding.double()) < torch.tensor(ds).view(3, 1)
        assert {d: bool(c) for d, c in zip(ds, closer, strict=True) if d in moving} == dict.fromkeys(
            moving, weight > 0
        )


def test_a_target_of_many_embeddings_counts_as_their_mean():
    embeddings, rows = seeded(5, 6), seeded(4, 6, seed=1)
    whole = ref.prompt_loss(embeddings, ref.Target(rows, 0.7))
    single = [ref.prompt_loss(embeddings, ref.Target(row[None], 0.7)) for row in rows]
    assert whole.item() == pytest.approx(sum(single).item() / 4)


# Gradients against finite differences


def test_derivatives_by_finite_differences():
    check = torch.autograd.gradcheck
    image = seeded(1, 3, 9, 11).requires_grad_()
    assert check(lambda x: ref.resample(x, (5, 6)), (image,))
    assert check(lambda x: ref.resample(x, (12, 7)), (image,))
    assert check(ref.tv, (image,))
    a, b = seeded(3, 4).requires_grad_(), seeded(2, 4, seed=1).requires_grad_()
    assert check(ref.distances, (a, b))
    target = ref.Target(seeded(2, 4, seed=1), -0.7)
    assert check(lambda x: ref.prompt_loss(x, target), (a,))


@pytest.fixture
def world():
    """A smooth little decoder and perceptor in float64; the picture stays inside (0, 1)."""
    mix, eye = seeded(3, 4, 2, 2) * 0.2, seeded(5, 3 * 6 * 6) * 0.1

    def decode(z_q):
        return F.conv_transpose2d(z_q, mix.transpose(0, 1), stride=2).tanh() * 0.8

    def encode_image(cuts):
        return (cuts.flatten(1) @ eye.T).sin() + cuts.mean((1, 2, 3))[:, None]

    def glance(cuts):
        return cuts.mean((2, 3)) @ seeded(3, 5, seed=9)

    codebook = seeded(9, 4, seed=3)
    targets = [ref.Target(seeded(1, 5, seed=4), 1.0), ref.Target(seeded(3, 5, seed=5), -0.4, -0.2)]
    crops = [(6, 0, 0), (9, 3, 1), (10, 0, 0), (7, 6, 3)]
    return dict(
        decode=decode,
        codebook=codebook,
        judges=[ref.Judge(encode_image, 6, targets, crops), ref.Judge(glance, 4, targets[:1], crops[1:3])],
        init_weight=0.3,
        tv_weight=0.5,
    )


def test_the_gradient_of_the_whole_loss_by_finite_differences(world):
    z = seeded(1, 4, 5, 7, seed=6)
    z_orig = seeded(1, 4, 5, 7, seed=7)
    got = ref.iterate(z, **world, z_orig=z_orig, optimizer=ref.Adam(0.1))
    for inside in (got.image, *got.cuts):  # where a clamp acts, its gradient is no derivative
        assert 0 < inside.min() and inside.max() < 1

    def loss(codes_moved_by, z_moved_by):
        """The loss written once more; straight-through means: what moves z moves the chosen codes as much."""
        image = (world["decode"](ref.embed(got.codes, world["codebook"]) + codes_moved_by) + 1) / 2
        total = 0.3 / 2 * F.mse_loss(z + z_moved_by, z_orig) + 0.5 / 4 * ref.tv(image)
        for judge in world["judges"]:
            embeddings = ref.clip_embeddings(
                ref.cutouts(image, judge.crops, judge.cut_size), judge.encode_image
            )
            for target in judge.targets:
                d = ref.distances(embeddings, target.embedding) * (1 if target.weight > 0 else -1)
                total = total + abs(target.weight) * torch.where(d < target.stop, d * 0, d).mean()
        return total

    some = torch.Generator().manual_seed(8)
    for _ in range(12):
        direction = torch.randn(z.shape, generator=some, dtype=torch.float64)
        e = 1e-5 * direction
        slope = (loss(e, e) - loss(-e, -e)) / 2e-5
        assert slope.item() == pytest.approx((got.grad * direction).sum().item(), rel=1e-6, abs=1e-9)


def test_the_loss_is_the_plain_sum_of_its_terms(world):
    z, z_orig = seeded(1, 4, 5, 7, seed=6), seeded(1, 4, 5, 7, seed=7)
    got = ref.iterate(z, **world, z_orig=z_orig, optimizer=ref.Adam(0.1))
    assert list(got.losses) == ["judge 0 prompt 0", "judge 0 prompt 1", "judge 1 prompt 0", "init", "tv"]
    assert got.loss == pytest.approx(sum(got.losses.values()))
    assert got.losses["init"] == pytest.approx(0.15 * F.mse_loss(z, z_orig).item())
    to_zeros = ref.iterate(z, **world, optimizer=ref.Adam(0.1))
    assert to_zeros.losses["init"] == pytest.approx(0.15 * z.square().mean().item())
    height, width = got.image.shape[2:]
    squares = 0.0
    for i in range(height):
        for j in range(width):
            here = got.image[0, :, i, j]
            right = got.image[0, :, i, min(j + 1, width - 1)]
            below = got.image[0, :, min(i + 1, height - 1), j]
            squares += ((right - here) ** 2 + (below - here) ** 2).sum().item()
    assert got.losses["tv"] == pytest.approx(0.125 * squares / got.image.numel())


# Step and schedule


def test_adam_is_torch_adam():
    z = seeded(1, 4, 3, 3)
    parameter = z.clone().requires_grad_()
    theirs, ours = torch.optim.Adam([parameter], lr=0.05), ref.Adam(0.05)
    for i in range(6):
        grad = seeded(1, 4, 3, 3, seed=10 + i) * 10.0 ** (i - 3)
        parameter.grad = grad.clone()
        theirs.step()
        z = ours.step(z, grad)
        assert torch.allclose(z, parameter, rtol=1e-12, atol=1e-14)


def test_the_step_descends_and_stays_in_the_box(world):
    z = seeded(1, 4, 5, 7, seed=6)
    low, high = ref.codebook_box(world["codebook"])
    boxed = ref.iterate(z, **world, optimizer=ref.Adam(2.0))
    free = ref.iterate(z, **world, optimizer=ref.Adam(2.0), box=False)
    assert (free.z < low).any() and (free.z > high).any()
    assert torch.equal(boxed.z, free.z.clamp(low, high))
    # Adam's first step is the learning rate long, against the gradient's sign
    assert torch.allclose(free.z, z - 2.0 * boxed.grad / (boxed.grad.abs() + 1e-8))
    assert torch.equal(boxed.grad, free.grad)


def test_mse_schedule_falls_to_nothing_at_200():
    schedule = list(ref.mse_schedule(320))
    weights = [weight for weight, _ in schedule]
    assert [step for step, (_, restart) in enumerate(schedule) if restart] == [50, 100, 150, 200, 250]
    stages = [1.5] * 50 + [1.2] * 50 + [0.9] * 50 + [0.6] * 50
    assert weights == pytest.approx(stages + [0.0] * 120)
    assert set(weights[200:]) == {0.0}
