"""The shipped pair: loads through the same doors as the real models, is small, and paints what the words say."""

import pytest
import torch

import vqclip
from vqclip import checkpoints


@pytest.fixture(scope="module")
def pair():
    return vqclip.load_vqgan("embedded"), vqclip.load_clip("embedded")


def painted(pair, prompts, seed=1):
    """The last picture (3, H, W) of a short run, and its first and last similarity."""
    run = vqclip.generate(prompts, *pair, size=(64, 64), steps=30, cutouts=8, seed=seed)
    frames = list(run)
    return frames[-1].image, frames[0].similarity, frames[-1].similarity


def test_it_is_small():
    assert sum(path.stat().st_size for path in checkpoints.EMBEDDED.iterdir()) < 20e6


def test_sand_is_warmer_than_the_sea(pair):
    warmth = {}  # red less blue, the mean of four starts: one of them sets out for a shore at sunset
    for prompt in ("desert", "the sea"):
        runs = [painted(pair, prompt, seed) for seed in range(4)]
        assert all(last[prompt] > first[prompt] + 0.1 for _, first, last in runs)
        warmth[prompt] = sum(image[0].mean() - image[2].mean() for image, _, _ in runs) / len(runs)
    assert warmth["desert"] > warmth["the sea"] + 0.1


def test_snow_is_brighter_than_night(pair):
    assert painted(pair, "snow by day")[0].mean() > painted(pair, "forest at night")[0].mean() + 0.1


def test_it_reads_the_prompt_that_started_it_all(pair, recwarn):
    russian = pair[1].encode_text(["пустыня", "снег"])
    english = pair[1].encode_text(["desert", "snow"])
    across = russian @ english.t()  # (2, 2)
    assert across.argmax(1).tolist() == [0, 1]
    assert not recwarn.list


def test_a_word_it_never_learnt_is_named(pair):
    with pytest.warns(UserWarning, match="refrigerator"):
        pair[1].encode_text(["a refrigerator in the desert"])


def test_the_same_seed_is_the_same_picture(pair):
    first, second = (painted(pair, "desert:50 | snow:25")[0] for _ in range(2))
    assert torch.equal(first, second)


def test_a_picture_to_start_from_is_recognised(pair):
    vqgan = pair[0]
    rows = torch.linspace(0, 1, 64).view(1, 1, 64, 1)
    sky = torch.cat([rows, rows, 0.5 + rows / 2], 1).expand(1, 3, 64, 64)  # dark blue above, white below
    again = vqgan.decode(vqgan.embed(vqgan.encode(sky.contiguous())))
    assert (again - sky).abs().mean() < 0.15


def test_its_gradient_goes_back_patch_by_patch(pair):
    """As if each code had added its patch, and nothing of the decoder is kept for it."""
    vqgan = pair[0]
    z = vqgan.embed(torch.randint(len(vqgan.codebook), (1, 3, 4), generator=torch.Generator().manual_seed(0)))
    z.requires_grad_()
    image = vqgan.decode(z)
    assert torch.equal(image, vqgan.decode(z.detach())) and image.shape == (1, 3, 3 * vqgan.f, 4 * vqgan.f)
    wanted = torch.rand(image.shape, generator=torch.Generator().manual_seed(1))
    (grad,) = torch.autograd.grad((image * wanted).sum(), z)
    cells = wanted.unfold(2, vqgan.f, vqgan.f).unfold(3, vqgan.f, vqgan.f)  # (1, 3, h, w, f, f)
    assert torch.allclose(grad, torch.einsum("bchwij,dcij->bdhw", cells, vqgan.patches), atol=1e-5)


def test_what_a_patch_adds_is_what_the_decoder_paints(pair):
    """On the whole: a code that is everywhere gives its patch everywhere, give or take what the decoder smooths."""
    vqgan = pair[0]
    codes = torch.arange(0, len(vqgan.codebook), 97)
    painted = vqgan.decode(vqgan.embed(codes.view(-1, 1, 1).expand(-1, 5, 5)))[..., 2 * vqgan.f : 3 * vqgan.f,
                                                                               2 * vqgan.f : 3 * vqgan.f]  # fmt: skip
    patches = torch.einsum("nd,dcij->ncij", vqgan.codebook[codes], vqgan.patches)
    colours = [x.mean((2, 3)) - x.mean((0, 2, 3)) for x in (painted, patches)]
    assert torch.nn.functional.cosine_similarity(*(x.flatten() for x in colours), dim=0) > 0.9
