"""Reverse process."""

import math
from fractions import Fraction

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdet_diffusion.diffusion import CosineNoiseSchedule, ddim_step, sampling_time_pairs

CHECK = settings(deadline=None, derandomize=True, max_examples=100)
SCHEDULE = CosineNoiseSchedule(1000)
ETAS = st.floats(0, 1)


@st.composite
def signal_shares(draw):
    """(alpha_bar, alpha_bar_next) of two steps of the schedule, the second nearer to the signal."""
    t = draw(st.integers(0, 999))
    return SCHEDULE.signal_share(t), SCHEDULE.signal_share(draw(st.integers(-1, t - 1)))


def coefficients(alpha_bar, alpha_bar_next, eta):
    """What a step multiplies x_t, x_start and the noise by."""
    basis = torch.eye(3, dtype=torch.float64)
    return ddim_step(basis[0], basis[1], alpha_bar, alpha_bar_next, eta, basis[2]).tolist()


def exact_coefficients(alpha_bar, alpha_bar_next, eta):
    """Eq. (12) and (16) of the paper as they stand, to 60 digits."""
    with mpmath.workdps(60):
        now, following, eta = mpmath.mpf(alpha_bar), mpmath.mpf(alpha_bar_next), mpmath.mpf(eta)
        sigma = eta * mpmath.sqrt((1 - following) / (1 - now)) * mpmath.sqrt(1 - now / following)
        of_noise_estimate = mpmath.sqrt(1 - following - sigma**2)
        of_x_t = of_noise_estimate / mpmath.sqrt(1 - now)
        return float(of_x_t), float(mpmath.sqrt(following) - of_x_t * mpmath.sqrt(now)), float(sigma)


@pytest.mark.parametrize('eta', [0.0, 0.3, 1.0])
@pytest.mark.parametrize('steps', [1, 2, 3, 4, 5, 8, 50, 1000])
def test_coefficients_equal_the_paper_at_every_pair(steps, eta):
    for t, t_next in sampling_time_pairs(1000, steps):
        shares = SCHEDULE.signal_share(t), SCHEDULE.signal_share(t_next)
        assert coefficients(*shares, eta) == pytest.approx(exact_coefficients(*shares, eta), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize('eta', [0.0, 1.0])
@pytest.mark.parametrize('steps', [1, 2, 4, 5, 1000])
def test_a_float32_step_is_finite_and_right_at_every_pair(steps, eta):
    x_t, x_start, noise = torch.tensor([[-3.0, 0.5, 3.0], [2.0, -2.0, 0.1], [1.5, -0.2, -2.5]])
    for t, t_next in sampling_time_pairs(1000, steps):
        shares = SCHEDULE.signal_share(t), SCHEDULE.signal_share(t_next)
        of_x_t, of_x_start, of_noise = exact_coefficients(*shares, eta)
        reference = of_x_t * x_t.double() + of_x_start * x_start.double() + of_noise * noise.double()
        x_next = ddim_step(x_t, x_start, *shares, eta, noise)
        assert x_next.dtype == torch.float32
        torch.testing.assert_close(x_next.double(), reference, rtol=0, atol=2e-6)


@CHECK
@given(signal_shares(), ETAS)
def test_noise_kept_and_noise_added_have_the_variance_of_the_next_step(shares, eta):
    alpha_bar, alpha_bar_next = shares
    of_x_t, _, sigma = coefficients(alpha_bar, alpha_bar_next, eta)
    kept = of_x_t * math.sqrt(1 - alpha_bar)
    assert kept**2 + sigma**2 == pytest.approx(1 - alpha_bar_next, rel=1e-9, abs=1e-15)


@CHECK
@given(signal_shares(), st.integers(0, 2**31))
def test_without_added_noise_a_true_x_start_gives_the_true_next_x(shares, seed):
    x_start, noise, other = torch.randn(3, 20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    now, following = (math.sqrt(a) * x_start + math.sqrt(1 - a) * noise for a in shares)
    torch.testing.assert_close(ddim_step(now, x_start, *shares, 0.0, other), following, rtol=0, atol=1e-9)


@pytest.mark.parametrize('steps', [2, 4, 5, 1000])
def test_without_added_noise_the_whole_way_leads_to_a_true_x_start(steps):
    x_start, noise = torch.randn(2, 20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = math.sqrt(SCHEDULE.signal_share(999)) * x_start + math.sqrt(1 - SCHEDULE.signal_share(999)) * noise
    for t, t_next in sampling_time_pairs(1000, steps):
        x = ddim_step(x, x_start, SCHEDULE.signal_share(t), SCHEDULE.signal_share(t_next), 0.0, noise)
        share = SCHEDULE.signal_share(t_next)
        torch.testing.assert_close(x, math.sqrt(share) * x_start + math.sqrt(1 - share) * noise, rtol=0, atol=1e-8)


@CHECK
@given(st.integers(0, 999), ETAS, st.integers(0, 2**31))
def test_the_last_step_gives_x_start_itself(t, eta, seed):
    x_t, x_start, noise = torch.randn(3, 20, 4, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(ddim_step(x_t, x_start, SCHEDULE.signal_share(t), 1.0, eta, noise), x_start)


@CHECK
@given(signal_shares())
def test_more_eta_adds_more_noise(shares):
    sigmas = [coefficients(*shares, eta)[2] for eta in (0.0, 0.25, 0.5, 1.0)]
    assert sigmas[0] == 0.0
    if shares[1] < 1:
        assert sigmas == sorted(set(sigmas))
        assert sigmas[1] == pytest.approx(sigmas[3] / 4)


def test_the_marginal_variance_is_kept_by_a_stochastic_step():
    generator = torch.Generator().manual_seed(0)
    noise, fresh = torch.randn((2, 200_000), generator=generator)
    now, following = SCHEDULE.signal_share(749), SCHEDULE.signal_share(499)
    x_t = math.sqrt(now) + math.sqrt(1 - now) * noise
    x_next = ddim_step(x_t, torch.ones_like(x_t), now, following, 1.0, fresh)
    assert x_next.mean().item() == pytest.approx(math.sqrt(following), abs=0.01)
    assert x_next.var().item() == pytest.approx(1 - following, rel=0.02)


def test_the_inputs_of_a_step_stay_as_they_are():
    inputs = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    before = inputs.clone()
    ddim_step(inputs[0], inputs[1], 0.2, 0.7, 1.0, inputs[2])
    assert torch.equal(inputs, before)


# Time pairs -----------------------------------------------------------------------------------------------------------


@st.composite
def step_counts(draw):
    num_timesteps = draw(st.integers(1, 2000))
    return num_timesteps, draw(st.integers(1, num_timesteps))


@CHECK
@given(step_counts())
def test_times_are_the_truncated_linspace_in_exact_arithmetic(counts):
    num_timesteps, steps = counts
    linspace = [-1 + Fraction(i * num_timesteps, steps) for i in range(steps + 1)]
    times = [int(time) for time in reversed(linspace)]
    assert sampling_time_pairs(num_timesteps, steps) == [(times[i], times[i + 1]) for i in range(steps)]


@CHECK
@given(step_counts())
def test_times_fall_strictly_from_the_last_step_to_the_clean_signal(counts):
    num_timesteps, steps = counts
    pairs = sampling_time_pairs(num_timesteps, steps)
    assert len(pairs) == steps
    assert pairs[0][0] == num_timesteps - 1 and pairs[-1][1] == -1
    assert all(t > t_next for t, t_next in pairs)
    assert all(before[1] == after[0] for before, after in zip(pairs[:-1], pairs[1:], strict=True))


def test_one_step_goes_from_999_to_the_clean_signal():
    assert sampling_time_pairs(1000, 1) == [(999, -1)]


def test_four_steps_have_the_published_times():
    assert sampling_time_pairs(1000, 4) == [(999, 749), (749, 499), (499, 249), (249, -1)]


@pytest.mark.parametrize('wrong', [0, -1, 1001, 1.0, 2.5, True, False, '4', None])
def test_a_number_of_steps_out_of_range_or_no_integer_is_refused(wrong):
    with pytest.raises(ValueError, match='sampling_timesteps'):
        sampling_time_pairs(1000, wrong)
