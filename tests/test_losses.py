"""Every entry of LOSSES is a scalar with a gradient, and is small for what it likes."""

import pytest
import torch

from vqclip.losses import LOSSES

FLAT = torch.full((1, 3, 32, 48), 0.5)


def noisy(seed=0):
    return torch.rand(FLAT.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_a_scalar_that_descent_makes_smaller(name):
    image = noisy().requires_grad_()
    loss = LOSSES[name](image)
    assert loss.shape == () and loss > 0
    loss.backward()
    assert LOSSES[name](image - 10 * image.grad) < loss


@pytest.mark.parametrize("name", LOSSES)
def test_a_flat_grey_picture_is_liked_by_all(name):
    assert LOSSES[name](FLAT) == 0


def test_tv_is_the_mean_squared_step_between_neighbours():
    image = torch.zeros(1, 1, 2, 3)
    image[..., 1] = 2  # two columns' steps of 2, over 6 pixels, right only
    assert LOSSES["tv"](image) == pytest.approx(2 * 2 * 4 / 6)
