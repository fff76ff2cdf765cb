"""Noise of each image from its own generator."""

import random

import numpy as np
import pytest
import torch

from mmdet_diffusion.task_modules import global_noise, image_noise

CPU = torch.device('cpu')
METAS = [dict(img_id=7), dict(img_id=8), dict(img_id=139), dict(img_id='a'), dict(img_path='dir/1.jpg'), dict()]


def draws_of(seed, metas, num_draws=3, num_boxes=5):
    draw = image_noise(seed, metas, CPU)
    return torch.stack([draw(num_boxes) for _ in range(num_draws)])


@pytest.mark.parametrize('batch_size', [2, 3, 6])
def test_draws_of_an_image_are_bit_equal_whatever_the_batch(batch_size):
    alone = [draws_of(0, [meta])[:, 0] for meta in METAS]
    for start in range(0, len(METAS), batch_size):
        batch = draws_of(0, METAS[start:start + batch_size])
        for i in range(batch_size):
            assert torch.equal(batch[:, i], alone[start + i])


def test_draws_of_an_image_are_bit_equal_whatever_the_order():
    assert torch.equal(draws_of(0, METAS[::-1]), draws_of(0, METAS).flip(1))


def test_images_differ():
    draws = draws_of(0, METAS)
    assert len({tuple(draws[0, i].flatten().tolist()) for i in range(len(METAS))}) == len(METAS)


def test_the_successive_draws_of_an_image_differ():
    draws = draws_of(0, METAS)
    assert not torch.equal(draws[0], draws[1]) and not torch.equal(draws[1], draws[2])


def test_seeds_differ():
    assert not torch.isclose(draws_of(0, METAS), draws_of(1, METAS)).all(-1).any()


def test_a_seed_and_an_id_do_not_run_into_each_other():
    assert not torch.equal(draws_of(1, [dict(img_id=23)]), draws_of(12, [dict(img_id=3)]))


def test_the_seed_of_an_image_is_the_recorded_one():
    """Evaluations can only be repeated while this holds, in every process and on every platform."""
    generator = torch.Generator().manual_seed(2091091920079723898)
    assert torch.equal(image_noise(3, [dict(img_id=139)], CPU)(2)[0], torch.randn((2, 4), generator=generator))


def test_a_number_and_its_text_are_the_same_id():
    assert torch.equal(draws_of(0, [dict(img_id=7)]), draws_of(0, [dict(img_id='7')]))


def test_the_path_stands_in_for_a_missing_id():
    by_path = draws_of(0, [dict(img_path='a.jpg')])
    assert torch.equal(by_path, draws_of(0, [dict(img_id=None, img_path='a.jpg')]))
    assert not torch.equal(by_path, draws_of(0, [dict(img_path='b.jpg')]))
    assert not torch.equal(by_path, draws_of(0, [dict()]))


def test_an_id_goes_before_the_path():
    assert torch.equal(draws_of(0, [dict(img_id=0, img_path='a.jpg')]), draws_of(0, [dict(img_id=0)]))


def test_flips_and_scales_of_an_image_share_its_draws():
    views = [dict(img_id=7, flip=flip, scale_factor=(scale, scale), img_shape=(int(100 * scale), 50))
             for flip in (False, True) for scale in (1.0, 2.0)]
    draws = draws_of(0, views)
    assert all(torch.equal(draws[:, 0], draws[:, i]) for i in range(1, 4))


def test_the_global_random_states_stay_untouched():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    draws_of(0, METAS)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]


def test_the_global_random_state_has_no_say():
    torch.manual_seed(0)
    first = draws_of(0, METAS)
    torch.manual_seed(1)
    assert torch.equal(draws_of(0, METAS), first)


def test_draws_are_standard_normal_float32():
    draws = image_noise(0, METAS[:2], CPU)(20_000)
    assert draws.dtype == torch.float32 and draws.shape == (2, 20_000, 4)
    assert (draws.mean((0, 1)).abs() < 0.02).all()
    assert ((draws.std((0, 1)) - 1).abs() < 0.02).all()


@pytest.mark.parametrize('seed', [-1, 2**40])
def test_any_integer_is_a_seed(seed):
    assert draws_of(seed, METAS).isfinite().all()


def test_global_noise_follows_the_global_generator():
    torch.manual_seed(5)
    first = global_noise(2, CPU)(3)
    second = global_noise(2, CPU)(3)
    torch.manual_seed(5)
    assert torch.equal(global_noise(2, CPU)(3), first)
    assert first.shape == (2, 3, 4) and first.dtype == torch.float32
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
