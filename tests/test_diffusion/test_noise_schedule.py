"""Forward process."""

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdet_diffusion.diffusion import CosineNoiseSchedule, cosine_alpha_bar

CHECK = settings(deadline=None, derandomize=True, max_examples=50)


def exact_alpha_bar(num_timesteps):
    """Eq. (17) with betas of at most 0.999, to 50 digits."""
    with mpmath.workdps(50):
        offset, highest = mpmath.mpf('0.008'), mpmath.mpf('0.999')
        signal = [mpmath.cos((mpmath.mpf(t) / num_timesteps + offset) / (1 + offset) * mpmath.pi / 2)**2
                  for t in range(num_timesteps + 1)]
        share, shares = mpmath.mpf(1), []
        for t in range(num_timesteps):
            share *= 1 - min(1 - signal[t + 1] / signal[t], highest)
            shares.append(share)
        return shares


@pytest.mark.parametrize(('t', 'value'), [(0, 0.99995872), (499, 0.49384359), (999, 2.4288e-9)])
def test_alpha_bar_has_the_published_values(t, value):
    assert cosine_alpha_bar(1000)[t].item() == pytest.approx(value, rel=1e-5 if t == 999 else 1e-8)


@pytest.mark.parametrize('num_timesteps', [1, 2, 3, 10, 1000])
def test_alpha_bar_equals_the_formula_at_every_step(num_timesteps):
    exact = exact_alpha_bar(num_timesteps)
    for value, reference in zip(cosine_alpha_bar(num_timesteps).tolist(), exact, strict=True):
        assert abs(value / reference - 1) < 1e-9


@CHECK
@given(st.integers(1, 3000))
def test_alpha_bar_falls_strictly_within_0_and_1_for_any_number_of_steps(num_timesteps):
    alpha_bar = cosine_alpha_bar(num_timesteps)
    assert alpha_bar.shape == (num_timesteps, )
    assert alpha_bar[-1] > 0 and alpha_bar[0] < 1
    assert (alpha_bar[1:] < alpha_bar[:-1]).all()


@pytest.mark.parametrize('default', [torch.float32, torch.float64])
def test_alpha_bar_is_float64_on_the_host_whatever_the_default_type(default):
    torch.set_default_dtype(default)
    try:
        alpha_bar = CosineNoiseSchedule(10).alpha_bar
    finally:
        torch.set_default_dtype(torch.float32)
    assert alpha_bar.dtype == torch.float64 and alpha_bar.device.type == 'cpu'


def test_the_bound_of_beta_alone_decides_the_last_value():
    bounded, looser = cosine_alpha_bar(1000), cosine_alpha_bar(1000, max_beta=0.9999)
    assert torch.equal(bounded[:-1], looser[:-1])
    assert bounded[-1] / bounded[-2] == pytest.approx(1e-3, rel=1e-9)


@pytest.mark.parametrize('wrong', [0, -1, 10.0, True, '10', None])
def test_a_number_of_steps_that_is_no_positive_integer_is_refused(wrong):
    with pytest.raises(ValueError, match='num_train_timesteps'):
        CosineNoiseSchedule(wrong)


def test_signal_share_is_one_before_the_first_step():
    schedule = CosineNoiseSchedule(1000)
    assert schedule.signal_share(-1) == 1.0
    assert schedule.signal_share(499) == schedule.alpha_bar[499].item()
    assert isinstance(schedule.signal_share(999), float)


@pytest.mark.parametrize('t', [0, 250, 499, 900, 999])
def test_variance_of_x_t_is_the_share_of_noise(t):
    schedule = CosineNoiseSchedule(1000)
    noise = torch.randn((1, 200_000), generator=torch.Generator().manual_seed(t))
    x_t = schedule.add_noise(torch.full_like(noise, 2.0), noise, torch.tensor([t]))
    share = schedule.signal_share(t)
    assert x_t.var().item() == pytest.approx(1 - share, rel=0.02)
    assert x_t.mean().item() == pytest.approx(2 * share**0.5, abs=0.01)


def test_unit_signal_stays_of_unit_variance():
    generator = torch.Generator().manual_seed(0)
    x_start, noise = (torch.randn((7, 100_000), generator=generator) for _ in range(2))
    x_t = CosineNoiseSchedule(1000).add_noise(x_start, noise, torch.tensor([0, 100, 300, 500, 700, 900, 999]))
    assert ((x_t.var(1) - 1).abs() < 0.03).all()


@pytest.mark.parametrize('t', [0, 1, 499, 998, 999])
def test_x_t_is_exact_to_rounding_and_float32(t):
    schedule = CosineNoiseSchedule(1000)
    generator = torch.Generator().manual_seed(0)
    x_start, noise = (torch.randn((1, 50, 4), generator=generator) for _ in range(2))
    x_t = schedule.add_noise(x_start, noise, torch.tensor([t]))
    share = schedule.signal_share(t)
    reference = share**0.5 * x_start.double() + (1 - share)**0.5 * noise.double()
    assert x_t.dtype == torch.float32
    torch.testing.assert_close(x_t.double(), reference, rtol=3e-7, atol=3e-7)


def test_each_image_gets_the_noise_of_its_own_step():
    schedule = CosineNoiseSchedule(1000)
    x_start, noise = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([999, 0, 400])
    batch = schedule.add_noise(x_start, noise, t)
    for i in range(3):
        assert torch.equal(batch[i:i + 1], schedule.add_noise(x_start[i:i + 1], noise[i:i + 1], t[i:i + 1]))
    assert not torch.equal(batch[0], schedule.add_noise(x_start[:1], noise[:1], t[1:2])[0])
