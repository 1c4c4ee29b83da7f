"""What theories say of the time to leave a minimum. Time is learning rate times steps; all logarithms are natural.

Symbols: L_a the loss at the minimum, L_s at the saddle (or the level that is passed), ΔL = L_s - L_a, H_a > 0 and
H_b < 0 the second derivatives there, η the learning rate, B the minibatch, D the diffusion constant of
dx = -f'dt + √(2D) dW.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy.integrate import solve_ivp

Function = Callable[[float], float]


def kramers_rate(barrier: float, curvature: float, saddle_curvature: float, diffusion: float) -> float:
    """√(H_a·|H_b|)/2π · exp(-ΔL/D): noise of one strength everywhere, ΔL ≫ D, one dimension (Kramers 1940, Eq. 17)."""
    return math.sqrt(curvature * -saddle_curvature) / (2 * math.pi) * math.exp(-barrier / diffusion)


def xie_rate(barrier: float, curvature: float, saddle_curvature: float, ratio: float, share: float = 0.5) -> float:
    """|H_b|/2π · exp[-(2ΔL/ratio)·(share/H_a + (1 - share)/|H_b|)], ratio = η/B: exponential in the barrier.

    Xie, Sato, Sugiyama (ICLR 2021): minibatch noise of diffusion D = ηH/2B, H_a's along the share s of the way up and
    H_b's along the rest.
    """
    at_minimum, at_saddle = share / curvature, (1 - share) / -saddle_curvature
    return -saddle_curvature / (2 * math.pi) * math.exp(-2 * barrier / ratio * (at_minimum + at_saddle))


def mori_exponent(curvature: float, ratio: float, dimensions: int = 1) -> float:
    """p in rate ∝ (L_s/L_a)^-p, ratio = η/B: a power of the barrier's relative height.

    Mori, Ziyin, Liu, Ueda (ICML 2022): noise of covariance 2L(w)H/B, which grows with the loss, along ``dimensions``
    directions of curvature ``curvature``: p = B/(ηH) + 1 - dimensions/2.
    """
    return 1 / (ratio * curvature) + 1 - dimensions / 2


def mean_first_passage(start: float, end: float, low: float, drift: Function, diffusion: Function) -> float:
    """The exact mean time of dx = drift dt + √(2 diffusion) dW (Itô) from ``start`` to ``end``, reflected at ``low``.

    ∫_start^end e^φ(y) ∫_low^y e^-φ(z)/D(z) dz dy with φ' = -drift/D: the solution of the backward equation (Gardiner,
    Handbook of Stochastic Methods, chapter 5).

    Raises:
        ValueError: not low <= start < end.
        RuntimeError: the integration failed, as where ``diffusion`` is 0.
    """
    if not low <= start < end:
        raise ValueError(f"low={low:g}, start={start:g}, end={end:g}: must be in this order")

    def derivatives(x: float, values: np.ndarray) -> list[float]:
        strength = diffusion(x)
        return [1 / strength - drift(x) / strength * values[0], values[0]]

    inner = 0.0
    if start > low:
        inner = _integrated(derivatives, low, start, [0.0, 0.0])[0]
    return _integrated(derivatives, start, end, [inner, 0.0])[1]


def _integrated(derivatives: Callable, begin: float, end: float, values: list[float]) -> list[float]:
    found = solve_ivp(derivatives, (begin, end), values, method="LSODA", rtol=1e-8, atol=1e-12)
    if not found.success or not np.isfinite(found.y[:, -1]).all():
        raise RuntimeError(f"no mean first passage time between {begin:g} and {end:g}: {found.message}")
    return found.y[:, -1].tolist()
