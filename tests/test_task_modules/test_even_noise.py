"""Start boxes that are spread over their law."""

import pytest
import torch

from mmdet_diffusion.task_modules import even_noise


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cells(noise, number):
    """How many of the equally likely ranges of each value hold a box; noise (N, 4)."""
    share = torch.special.ndtr(noise)
    return [len((share[:, value] * number).long().unique()) for value in range(4)]


@pytest.mark.parametrize('num_boxes', [1, 7, 100, 500])
def test_each_value_alone_is_standard_normal(num_boxes):
    noise = even_noise(normal(4000, 1, 4), num_boxes)[:, -1]
    assert noise.shape == (4000, 4) and noise.isfinite().all()
    assert noise.mean(0).abs().max() < 0.07 and (noise.std(0) - 1).abs().max() < 0.05
    quantiles = torch.special.ndtr(noise).sort(0).values
    assert (quantiles - torch.linspace(0, 1, 4000)[:, None]).abs().max() < 0.035  # Kolmogorov: 1e-4 of false alarm


def test_the_boxes_of_an_image_cover_the_range_of_each_value():
    for seed in range(10):
        assert min(cells(even_noise(normal(1, 1, 4, seed=seed), 128)[0], 64)) == 64
        assert max(cells(normal(128, 4, seed=seed), 64)) < 64  # independent ones do not


def test_images_have_points_of_their_own():
    noise = even_noise(normal(2, 1, 4), 50)
    assert not torch.isclose(noise[0][:, None], noise[1][None], atol=1e-3).all(-1).any()


def test_a_shift_at_either_end_stays_finite():
    assert even_noise(torch.tensor([-40.0, 40.0, -6.0, 6.0]).view(1, 1, 4), 300).isfinite().all()
