"""How much a loss rises around a minimum: under weight noise, in the worst case nearby, and along the gradient."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from ..optim import noise_groups
from ..optim.groups import Role
from ..optim.noise import Distribution, Granularity, NoiseSource
from .objective import Objective, weights_restored
from .spectrum import Estimate, LayerTraces, mean


class WeightNoise:
    """The noise of :mod:`seqssgd.optim` around the weights of a model.

    Args:
        model: the network.
        only: the roles to perturb, as in :func:`seqssgd.optim.noise_groups`.
        distribution, granularity, seed: as in :class:`seqssgd.optim.noise.NoiseSource`.

    Attributes:
        params: the weights that are perturbed.
        layers: the name of the layer of each.
    """

    def __init__(
        self,
        model: nn.Module,
        only: Collection[Role] | None = None,
        distribution: Distribution = "rademacher",
        granularity: Granularity = "layer",
        seed: int = 0,
    ):
        groups = [group for group in noise_groups(model, 1.0, only=only) if group["noise"]]
        pairs = [pair for group in groups for pair in zip(group["params"], group["layers"], strict=True)]
        self.params = [p for p, _ in pairs if p.requires_grad]
        self.layers = [layer for p, layer in pairs if p.requires_grad]
        self._source = NoiseSource(distribution, granularity, seed)

    @contextmanager
    def moved(self, level: float, draw: int) -> Iterator[Iterator[int]]:
        """Yields the signs +1 and -1; while one is in hand, the weights are w + n or w - n. Afterwards they are w.

        Args:
            level: ‖n‖ over ‖w‖, of every layer.
            draw: which perturbation.
        """
        with torch.no_grad(), weights_restored(self.params) as saved:

            def signs() -> Iterator[int]:
                self._source.add_(self.params, saved, [level] * len(saved), self.layers, draw)
                yield 1
                for p, w in zip(self.params, saved, strict=True):
                    p.mul_(-1).add_(w, alpha=2)
                yield -1

            yield signs()


class Increase(NamedTuple):
    """By how much noise of a level raises a figure.

    ``clean`` is the figure without noise, ``increase`` the mean rise with its 95 % interval over the draws, and
    ``nonfinite`` how many draws were left out because the figure was not a number.
    """

    level: float
    clean: float
    increase: Estimate
    nonfinite: int


def under_noise(
    figures: Callable[[], dict[str, float]], noise: WeightNoise, levels: Sequence[float], draws: int = 8
) -> dict[str, list[Increase]]:
    """The robustness curve: E[F(w ± n)] - F(w) of some figures F over the level of the noise.

    Args:
        figures: of the model at the weights that it has.
        noise: around which weights, and of what kind.
        levels: the noise levels.
        draws: pairs of perturbations; the same for every level, so that levels can be compared.

    Returns:
        for every figure one entry a level.
    """
    clean = figures()
    found: dict[str, list[Increase]] = {name: [] for name in clean}
    for level in levels:
        samples: dict[str, list[float]] = {name: [] for name in clean}
        for draw in range(draws):
            pairs = []
            with noise.moved(level, draw) as signs:
                pairs = [figures() for _ in signs]
            for name in clean:
                samples[name].append(sum(pair[name] for pair in pairs) / len(pairs) - clean[name])
        for name, values in samples.items():
            finite = [value for value in values if math.isfinite(value)]
            estimate = mean(finite) if finite else Estimate(math.nan, math.nan, math.nan)
            found[name].append(Increase(level, clean[name], estimate, len(values) - len(finite)))
    return found


def noise_sharpness(
    objective: Objective, noise: WeightNoise, levels: Sequence[float], draws: int = 8
) -> list[Increase]:
    """E[L(w ± n)] - L(w), what S-SGD descends beside L itself (Sung et al. 2020, Eq. 3), for every level."""
    return under_noise(lambda: {"loss": objective.value()}, noise, levels, draws)["loss"]


def predicted_sharpness(traces: LayerTraces, level: float) -> Estimate:
    """What the second order says of it: ½c² Σ_l ‖w_l‖²/N_l · tr H_l. It fails where kinks or the fourth order count."""
    return Estimate(*(level**2 / 2 * bound for bound in traces.relative))


def keskar_sharpness(objective: Objective, epsilon: float = 1e-3, iterations: int = 10) -> float:
    """100 · (max L(w + y) - L(w)) / (1 + L(w)) over abs(y_i) ≤ ε(abs(w_i) + 1), the maximum by some steps of L-BFGS-B.

    Source: Keskar et al. (ICLR 2017), Metric 2.1 with A the identity.
    """
    from scipy.optimize import minimize

    params = objective.params
    with weights_restored(params) as saved:
        start = torch.cat([w.reshape(-1) for w in saved])
        reach = epsilon * (start.abs() + 1)
        sizes = [w.numel() for w in saved]
        best = objective.loss

        def descent(shift: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal best
            given = torch.as_tensor(shift, device=start.device).to(start.dtype) * reach
            with torch.no_grad():
                for p, part in zip(params, (start + given).split(sizes), strict=True):
                    p.copy_(part.view_as(p))
            value, gradients = objective.value_and_gradient()
            gradient = torch.cat([g.reshape(-1) for g in gradients]) * reach
            best = max(best, value) if math.isfinite(value) else best
            return -value, -gradient.double().cpu().numpy()

        # in units of the box, so that one step suits all weights; from the corner that is the worst of a linear loss
        uphill = torch.cat([g.reshape(-1) for g in objective.gradient()]).sign().double().cpu().numpy()
        options = {"maxiter": iterations, "maxfun": 2 * iterations}
        minimize(descent, uphill, jac=True, method="L-BFGS-B", bounds=[(-1, 1)] * len(uphill), options=options)
    return 100 * (best - objective.loss) / (1 + objective.loss)


def sam_sharpness(objective: Objective, rho: float = 0.05) -> float:
    """L(w + ρ g/‖g‖) - L(w): the worst case within a distance of ρ, to first order.

    Source: Foret et al. (ICLR 2021), Eq. 1 and 2.
    """
    gradient = objective.gradient()
    norm = torch.cat([g.reshape(-1) for g in gradient]).norm()
    if norm == 0:  # what is not finite must not pass for flat
        return 0.0
    with weights_restored(objective.params), torch.no_grad():
        for p, g in zip(objective.params, gradient, strict=True):
            p.add_(g, alpha=rho / float(norm))
        return objective.value() - objective.loss
