"""Laws of the time in a training step, and weights of a denoising loss.

A law turns uniform numbers into times by its inverse distribution function, so that what is drawn depends on the
step's own noise and on nothing else.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stillroom.generators.parts.process import Process


def uniform(u: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform on [low, high]; u in [0, 1) of any shape."""
    return low + (high - low) * u


def log_normal(u: Tensor, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """exp of a normal number: noise levels of EDM (Karras et al., 2022, arXiv:2206.00364, table 1)."""
    return (mean + std * _normal(u)).exp()


def logit_normal(u: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Sigmoid of a normal number, in (0, 1) (Esser et al., 2024, arXiv:2403.03206, eq. 19)."""
    return (mean + std * _normal(u)).sigmoid()


def _normal(u: Tensor) -> Tensor:
    tiny = torch.finfo(u.dtype).eps / 4
    return torch.special.ndtri(u.clamp(tiny, 1 - 2 * tiny))


def u_shaped(u: Tensor, a: float = 4.0) -> Tensor:
    """Times on [0, 1] of density a / (2 (e^a - 1)) (e^{a t} + e^{a (1 - t)}), a > 0.

    Lee et al., 2024, arXiv:2405.20320, section 4.1, in the symmetrised form of their code. With y = e^{a t} the
    distribution function is (y - e^a / y + e^a - 1) / (2 (e^a - 1)), a quadratic in y.
    """
    top = math.exp(a)
    half = (top - 1) * (u - 0.5)
    # of the two forms of the positive root, the one that adds
    root = (half.square() + top).sqrt()
    y = torch.where(half >= 0, half + root, top / (root - half))
    return (y.log() / a).clamp(0, 1)


def u_shaped_density(t: Tensor, a: float = 4.0) -> Tensor:
    """The density of `u_shaped` at `t`."""
    return a / (2 * math.expm1(a)) * ((a * t).exp() + (a * (1 - t)).exp())


def karras(u: Tensor, low: float, high: float, rho: float = 7.0) -> Tensor:
    """Noise levels between `low` and `high`, uniform in sigma^(1/rho): the law whose quantiles are Karras's grid."""
    return (high ** (1 / rho) + u * (low ** (1 / rho) - high ** (1 / rho))) ** rho


# -- weights of ||D - x_0||^2 -----------------------------------------------------------------------------------


def edm_weight(ratio: Tensor, sigma_data: float = 0.5) -> Tensor:
    """(s^2 + sigma_d^2) / (s sigma_d)^2 at noise level s (Karras et al., 2022, table 1)."""
    return (ratio.square() + sigma_data**2) / (ratio * sigma_data).square()


def snr_weight(process: Process, t: Tensor) -> Tensor:
    """SNR: mean squared error of eps."""
    return process.snr(t)


def v_weight(process: Process, t: Tensor) -> Tensor:
    """SNR + 1: mean squared error of v, for a variance preserving process."""
    return process.snr(t) + 1


def truncated_snr_weight(process: Process, t: Tensor) -> Tensor:
    """max(SNR, 1) (Salimans and Ho, 2022, arXiv:2202.00512, section 4)."""
    return process.snr(t).clamp_min(1)


def min_snr_weight(process: Process, t: Tensor, gamma: float = 5.0) -> Tensor:
    """min(SNR, gamma) (Hang et al., 2023, arXiv:2303.09556, eq. 7)."""
    return process.snr(t).clamp_max(gamma)
