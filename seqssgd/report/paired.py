"""Whether one recogniser makes fewer errors than another, judged on the same utterances."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..runs.errors import Counts, read_errors
from ..runs.reading import Run

DRAWS = 10_000
AT_ONCE = 10_000_000  # counts in memory: groups are as many as utterances where no speakers are known


class Paired(NamedTuple):
    """The 95 % interval of a difference of error rates, in percent, ``over`` "9 speakers and over seeds", say."""

    low: float
    high: float
    over: str


def paired_bootstrap(
    runs: Sequence[Counts], others: Sequence[Counts], draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """The 95 % confidence interval of the difference of two mean error rates, in percent, over test sets and seeds.

    Every draw takes as many groups of utterances as there are, with replacement and the same ones for all runs, and of
    either side as many runs as it has. What a test set adds to or takes from all recognisers alike then cancels. The
    mean of n drawn runs varies too little, by (n - 1)/n, and knows the variance of seeds from a few of them alone: it
    is moved away from that of all n by as much, times Student's quantile over the normal one (without it, an interval
    from two seeds a side covers 79 %, not 95 %). Of a single run nothing is known of other seeds: the interval is that
    of this model.

    Args:
        runs: errors and units of the reference by group, of each run; all of the same groups.
        others: of the other side.
        draws: how many.
        seed: of the draws.

    Raises:
        ValueError: the groups or their references are not the same, there are fewer than two of them, or no reference.

    Source: M. Bisani, H. Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation" (ICASSP
    2004), for one run a side; for few seeds the expanded percentile interval of T. C. Hesterberg, The American
    Statistician 69 (2015), 371-386.
    """
    names = list(runs[0])
    references = [[counts[name][1] if name in counts else -1 for name in names] for counts in (*runs, *others)]
    if any(own != references[0] for own in references) or any(len(own) != len(names) for own in (*runs, *others)):
        raise ValueError("the runs were not evaluated on the same utterances")
    if len(names) < 2 or not any(references[0]):
        raise ValueError(f"{len(names)} groups with {sum(references[0])} units of reference: there is nothing to draw")
    generator = torch.Generator().manual_seed(seed)
    words = torch.tensor(references[0], dtype=torch.float64)
    sides = [torch.tensor([[counts[name][0] for name in names] for counts in side], dtype=torch.float64)
             for side in (runs, others)]  # fmt: skip
    stretch = _stretch(len(runs) + len(others) - 2)
    differences = []
    at_once = max(AT_ONCE // len(names), 1)
    for start in range(0, draws, at_once):
        drawn = torch.randint(len(names), (min(at_once, draws - start), len(names)), generator=generator)
        times = torch.zeros(drawn.shape, dtype=torch.float64)  # that each group was drawn
        times.scatter_add_(1, drawn, torch.ones_like(times))
        units = times @ words
        mine, its = (_drawn_mean(100 * (times @ errors.T) / units[:, None], stretch, generator) for errors in sides)
        differences.append((mine - its)[units > 0])  # a draw of empty references alone has no rate
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.cat(differences).quantile(ends).tolist()
    return low, high


def _stretch(freedom: int) -> float:
    """What a 95 % interval of a variance with so many degrees of freedom is wider by than that of a known one."""
    from scipy.stats import norm, t

    return float(t.ppf(0.975, freedom) / norm.ppf(0.975)) if freedom else 1.0


def _drawn_mean(rates: Tensor, stretch: float, generator: torch.Generator) -> Tensor:
    """The mean over as many drawn runs as there are, of rates (draws, runs), with the variance of a mean of n seeds."""
    n, centre = rates.shape[1], rates.mean(1)
    taken = torch.randint(n, rates.shape, generator=generator)
    return centre + stretch * (n / max(n - 1, 1)) ** 0.5 * (rates.gather(1, taken).mean(1) - centre)


def paired(runs: Sequence[Run], others: Sequence[Run], figure: str) -> Paired | None:
    """:func:`paired_bootstrap` of runs whose evaluations kept the errors of the same utterances; None if one did not.

    Args:
        runs: of one method.
        others: of its baseline.
        figure: such as ``test_wer``.

    Raises:
        UserError: a file of them is damaged.
    """
    mine, its = _counts(runs, figure), _counts(others, figure)
    if mine is None or its is None:
        return None
    try:
        low, high = paired_bootstrap(mine, its)
    except ValueError:
        return None
    ((kind, _), *_), count = mine[0], len(mine[0])
    several = (len(mine) > 1) + (len(its) > 1)
    seeds = ("but not over seeds", "and over the seeds of the side that has several", "and over seeds")[several]
    return Paired(low, high, f"{count:,} {kind}s {seeds}")


def _counts(runs: Sequence[Run], figure: str) -> list[Counts] | None:
    split, _, rate = figure.rpartition("_")
    found = []
    for run in runs:
        known = run.evaluations.get(split, {}).get(f"{rate}_counts")
        counts = read_errors(run.path, split, rate, known) if isinstance(known, Mapping) else None
        if counts is None:
            return None
        found.append(counts)
    return found
