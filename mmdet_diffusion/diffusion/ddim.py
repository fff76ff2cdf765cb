"""DDIM update and its time steps. Song et al. 2021, arXiv:2010.02502, Eq. (12) and (16)."""

import math

from torch import Tensor

from ..number_checks import is_integer


def sampling_time_pairs(num_timesteps: int, sampling_timesteps: int) -> list[tuple[int, int]]:
    """Pairs (t, t_next) that sampling walks through, from noise to signal.

    The steps are ``linspace(-1, T - 1, steps + 1)`` truncated to integers and reversed. They are computed in integers:
    a float32 linspace falls short of some exact values and would truncate them one too low.

    Args:
        num_timesteps (int): T of the forward process.
        sampling_timesteps (int): number of pairs, 1..T.

    Returns:
        list[tuple[int, int]]: from ``T - 1`` down; the last ``t_next`` is -1, the clean signal.

    Raises:
        ValueError: if ``sampling_timesteps`` is not an integer in 1..T.
    """
    if not is_integer(sampling_timesteps):
        raise ValueError(f'sampling_timesteps must be an integer, got {sampling_timesteps!r}')
    if not 1 <= sampling_timesteps <= num_timesteps:
        raise ValueError(f'sampling_timesteps must lie in 1..{num_timesteps} (num_train_timesteps), '
                         f'got {sampling_timesteps}')
    times = [step * num_timesteps // sampling_timesteps - 1 for step in range(sampling_timesteps, -1, -1)]
    return list(zip(times[:-1], times[1:], strict=True))


def ddim_step(x_t: Tensor, x_start: Tensor, alpha_bar: float, alpha_bar_next: float, eta: float,
              noise: Tensor) -> Tensor:
    """One step of the reverse process from ``x_t`` towards the predicted ``x_start``.

    ``x_next = sqrt(alpha_bar_next) x_start + sqrt(1 - alpha_bar_next - sigma^2) eps + sigma noise`` with
    ``sigma^2 = eta^2 (1 - alpha_bar / alpha_bar_next) (1 - alpha_bar_next) / (1 - alpha_bar)`` and the noise estimate
    ``eps = (x_t - sqrt(alpha_bar) x_start) / sqrt(1 - alpha_bar)``. The middle coefficient is rewritten as a sum of
    terms that are not negative, ``1 - alpha_bar_next - sigma^2 = (1 - alpha_bar_next) ((1 - eta^2) + eta^2 alpha_bar
    (1 - alpha_bar_next) / (alpha_bar_next (1 - alpha_bar)))``, since the difference cancels.

    Args:
        x_t (Tensor): noisy signal, float32, any shape.
        x_start (Tensor): predicted clean signal, same shape.
        alpha_bar (float): signal share at the present step, in (0, 1).
        alpha_bar_next (float): signal share at the next step, in (alpha_bar, 1]; 1 gives ``x_start`` itself.
        eta (float): 0 is deterministic, 1 the ancestral sampler (DDPM).
        noise (Tensor): standard normal, same shape.

    Returns:
        Tensor: x_next, dtype of ``x_t``, same shape.
    """
    noise_next = 1 - alpha_bar_next
    variance = eta**2 * (1 - alpha_bar / alpha_bar_next) * noise_next / (1 - alpha_bar)
    kept = noise_next * ((1 - eta**2) + eta**2 * alpha_bar * noise_next / (alpha_bar_next * (1 - alpha_bar)))
    noise_estimate = (x_t - math.sqrt(alpha_bar) * x_start) / math.sqrt(1 - alpha_bar)
    return math.sqrt(alpha_bar_next) * x_start + math.sqrt(kept) * noise_estimate + math.sqrt(variance) * noise
