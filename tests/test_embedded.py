"""The shipped pair: loads through the same doors as the real models, is small, and paints what the words say."""

import pytest
import torch

import vqclip
from vqclip import checkpoints


@pytest.fixture(scope="module")
def pair():
    return vqclip.load_vqgan("embedded"), vqclip.load_clip("embedded")


def painted(pair, prompts, **changes):
    """The last picture (3, H, W) of a short run, and its first and last similarity."""
    run = vqclip.generate(prompts, *pair, size=(64, 64), steps=30, cutouts=8, seed=1, **changes)
    frames = list(run)
    return frames[-1].image, frames[0].similarity, frames[-1].similarity


def test_it_is_small():
    assert sum(path.stat().st_size for path in checkpoints.EMBEDDED.iterdir()) < 20e6


def test_sand_is_warmer_than_the_sea(pair):
    desert, first, last = painted(pair, "desert")
    sea, _, _ = painted(pair, "the sea")
    assert last["desert"] > first["desert"] + 0.1
    warmth = [image[0].mean() - image[2].mean() for image in (desert, sea)]  # red less blue
    assert warmth[0] > warmth[1] + 0.1


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
