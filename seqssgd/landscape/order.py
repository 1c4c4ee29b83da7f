"""Whether one figure orders models as another does: rank correlation, with an interval that small numbers allow."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from .spectrum import Estimate

FEWEST = 4  # models; with fewer any order has a probability of a sixth or more
_DRAWS = 4000


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> Estimate:
    """Spearman's ρ and its 95 % interval.

    The interval holds every ρ under which so small and so large a correlation of the sample is not too rare, were the
    two figures, on whatever scale, bivariate normal: found by drawing such samples. So it is neither empty nor of no
    width where all ranks agree, as those by a normal approximation are.

    Raises:
        ValueError: fewer than :data:`FEWEST` pairs, or numbers that are not finite.
    """
    pairs = np.array([x, y], dtype=float)
    if pairs.shape[1] < FEWEST or not np.isfinite(pairs).all():
        raise ValueError(f"{pairs.shape[1]} pairs: there must be at least {FEWEST}, all finite")
    found = float(_spearman(*(_ranks(row) for row in pairs)))
    levels, low, high = _quantiles(pairs.shape[1])
    inside = levels[(low <= found + 1e-9) & (found - 1e-9 <= high)]
    bounds = (inside.min(), inside.max()) if inside.size else (levels[0], levels[-1])
    return Estimate(found, *(float(bound) for bound in bounds))


@lru_cache
def _quantiles(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values of ρ, and the 2.5 % and 97.5 % quantiles of the correlation of ``count`` pairs under each."""
    one, other = np.random.default_rng(0).standard_normal((2, _DRAWS, count))
    straight = np.concatenate([[-1.0], np.sin(np.linspace(-1.0, 1.0, 101)[1:-1] * np.pi / 2), [1.0]])  # Pearson's
    found = [_spearman(_ranks(one), _ranks(r * one + np.sqrt(1 - r * r) * other)) for r in straight]
    low, high = np.quantile(found, (0.025, 0.975), axis=1)
    return 6 / np.pi * np.arcsin(straight / 2), low, high


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along the last axis; equal values share the mean of theirs."""
    from scipy.stats import rankdata

    return rankdata(values, axis=-1)


def _spearman(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    one, other = (ranks - ranks.mean(-1, keepdims=True) for ranks in (one, other))
    norm = np.sqrt((one**2).sum(-1) * (other**2).sum(-1))
    return np.divide((one * other).sum(-1), norm, out=np.zeros_like(norm), where=norm > 0)
