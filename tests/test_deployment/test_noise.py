"""The run-time's draws are those that torch makes for a seed and an image."""

import numpy as np
import pytest
import torch

from diffusiondet_runtime import ExportError
from diffusiondet_runtime.noise import TorchGenerator, given_noise, image_noise, image_seed
from mmdet_diffusion import task_modules
from mmdet_diffusion.task_modules.start_noise import _image_seed

LAST_DIGIT = 5e-7  # of the logarithm and the cosine


@pytest.mark.parametrize('seed', [0, 5, 2**40 + 3, 2091091920079723898])
@pytest.mark.parametrize('shape', [(1, 4), (3, 4), (4, 4), (5, 4), (7, 4), (300, 4), (301, 4), (7, )])
def test_successive_draws_of_a_seed_are_those_of_torch(seed, shape):
    ours, generator = TorchGenerator(seed), torch.Generator().manual_seed(seed)
    for _ in range(3):
        drawn = ours.normal(shape)
        assert drawn.dtype == np.float32
        np.testing.assert_allclose(drawn, torch.randn(shape, generator=generator).numpy(), rtol=0, atol=LAST_DIGIT)


@pytest.mark.parametrize('seed', [-1, 0, 2**40])
def test_draws_of_images_are_those_of_the_model(seed):
    names = ['a.jpg', '139', '']
    metas = [dict(img_id='a.jpg'), dict(img_id=139), dict()]
    ours, theirs = image_noise(seed, names), task_modules.image_noise(seed, metas, torch.device('cpu'))
    for boxes in (50, 3, 50):
        np.testing.assert_allclose(ours(boxes), theirs(boxes).numpy(), rtol=0, atol=LAST_DIGIT)


def test_given_noise_is_handed_out_in_its_order_and_refused_in_another_form():
    noise = np.arange(2 * 3 * 5 * 4, dtype=np.float32).reshape(2, 3, 5, 4)
    draw = given_noise(noise, 5)
    assert (draw(5) == noise[0]).all() and (draw(5) == noise[1]).all()
    with pytest.raises(ExportError, match='^noise holds 2 draws, and sampling needs more'):
        draw(5)
    with pytest.raises(ExportError, match=r'^noise must have the shape \(draws, pictures, 6, 4\), got \(2, 3, 5, 4\)$'):
        given_noise(noise, 6)


def test_a_name_that_is_no_utf_8_has_a_seed_on_both_sides():
    name = b'caf\xe9.png'.decode('utf-8', 'surrogateescape')
    assert image_seed(3, name) == _image_seed(3, dict(img_path=name))
