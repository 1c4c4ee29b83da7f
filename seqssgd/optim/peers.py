"""The methods that S-SGD is compared with, under the same protocol: none, and those with other random noise."""

from collections.abc import Sequence
from typing import Annotated, Any

from torch.optim import Optimizer

from .halves import Halves
from .limits import Range, check_settings
from .noise import Distribution, Granularity
from .passes import MultiPassOptimizer
from .random_noise import RandomNoise


class SinglePass(MultiPassOptimizer):
    """The base optimizer under the same protocol: one pass, nothing moved. For loops that serve every method.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = SinglePass(torch.optim.SGD([weight], lr=0.1))
    >>> for _ in optimizer.passes():
    ...     (weight**2).sum().backward()
    >>> optimizer.step()
    >>> weight.tolist()
    [1.600000023841858]
    """

    level_key = "unperturbed"

    def pass_signs(self) -> Sequence[int]:
        return (0,)


class OneSidedNoise(RandomNoise):
    r"""Steps on the mean gradient at k independent perturbations of the weights, never at their reflections:

    .. math:: w \leftarrow w - \eta\,\frac1k\sum_{i=1}^k \nabla L(w+n_i)

    Its settings make it several published methods. Where those differ on how a minibatch is divided, here every copy
    sees all of it, for the price of ``copies`` passes:

    - weight noise (Sung et al. 2020, Eq. 2): one copy; two copies against :class:`SymmetricNoise` show what the
      symmetry of the pair is worth.
    - SmoothOut (Wen et al. 2018): ``distribution="uniform", granularity="absolute"``, n = level·U(-1, 1); its
      stochastic form has one copy, the average it estimates k. AdaSmoothOut: ``granularity="filter"``.
    - Graves (2013), Lingvo's LibriSpeech models: ``distribution="gaussian", granularity="absolute"``, the level is
      the standard deviation σ (0.075 in both), switched on late by :class:`LambdaNoise`. One perturbation serves the
      minibatch; Graves draws one for every sequence.

    Args:
        base: the optimizer that steps, over groups with a ``"noise"`` entry (:func:`noise_groups`).
        copies: k, the passes of a step.
        distribution, granularity, seed, model, bn_stats: see :class:`RandomNoise`.

    Raises:
        ValueError: ``copies`` < 1, an unknown choice, no group with a ``"noise"`` entry, an impossible level.
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        copies: Annotated[int, Range(ge=1)] = 1,
        distribution: Distribution = "rademacher",
        granularity: Granularity = "layer",
        **settings: Any,
    ):
        check_settings(OneSidedNoise, copies=copies)
        super().__init__(base, distribution=distribution, granularity=granularity, **settings)
        self.copies = copies

    def pass_signs(self) -> Sequence[int]:
        return (+1,) * self.copies


class NSO(RandomNoise):
    r"""Noise stability optimization (Zhang, Li, Ju 2024, Algorithm 1): k symmetric pairs of Gaussian perturbations.

    .. math:: g = \lambda\nabla L(w) + \frac{1-\lambda}{2k}\sum_{i=1}^k\bigl(\nabla L(w+n_i)+\nabla L(w-n_i)\bigr),
        \qquad n_i \sim N(0, \sigma^2 I)

    The level is σ. All passes see the same minibatch. Two choices: only weights with a level are perturbed, where the
    authors' program perturbs every parameter; and without a weight λ there is no clean pass, where theirs makes one
    and discards its gradient, so that a step costs 2k passes (2k+1 with λ > 0).

    Args:
        base: the optimizer that steps, over groups with a ``"noise"`` entry (:func:`noise_groups`).
        pairs: k, the symmetric pairs of a step.
        clean_weight: λ, how much the gradient at the weights themselves counts, at least 0 and below 1.
        distribution, granularity, seed, model, bn_stats: see :class:`RandomNoise`.

    Raises:
        ValueError: ``pairs`` < 1 or λ out of range; else as :class:`OneSidedNoise`.
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        pairs: Annotated[int, Range(ge=1)] = 1,
        clean_weight: Annotated[float, Range(ge=0, lt=1)] = 0.0,
        distribution: Distribution = "gaussian",
        granularity: Granularity = "absolute",
        **settings: Any,
    ):
        check_settings(NSO, pairs=pairs, clean_weight=clean_weight)
        super().__init__(base, distribution=distribution, granularity=granularity, **settings)
        self.pairs, self.clean_weight = pairs, clean_weight

    def pass_signs(self) -> Sequence[int]:
        return (0,) * (self.clean_weight > 0) + (+1, -1) * self.pairs

    def pass_weights(self, passes: int, share: Halves | None) -> Sequence[float]:
        clean = [self.clean_weight] * (self.clean_weight > 0)
        return clean + [(1 - self.clean_weight) / (2 * self.pairs)] * (2 * self.pairs)


class MRWP(RandomNoise):
    r"""Mixed random weight perturbation, m-RWP (Li et al. 2024): a clean and a noisy gradient of different data.

    .. math:: g = \lambda\nabla L_1(w) + (1-\lambda)\nabla L_2(w+n), \qquad n_f \sim N(0, \sigma^2\|w_f\|^2 I)

    for every filter f. The level is σ. The paper takes two minibatches; here they are the halves of one
    (``part.take``), so that a step costs one pass. Biases and gains are not perturbed, unlike in the authors' program.

    Args:
        base: the optimizer that steps, over groups with a ``"noise"`` entry (:func:`noise_groups`).
        clean_weight: λ, how much the gradient at the weights themselves counts, at least 0 and below 1.
        distribution, granularity, seed, model, bn_stats: see :class:`RandomNoise`.

    Raises:
        ValueError: λ out of range; else as :class:`OneSidedNoise`.
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        clean_weight: Annotated[float, Range(ge=0, lt=1)] = 0.5,
        distribution: Distribution = "gaussian",
        granularity: Granularity = "filter_std",
        **settings: Any,
    ):
        check_settings(MRWP, clean_weight=clean_weight)
        super().__init__(base, distribution=distribution, granularity=granularity, **settings)
        self.clean_weight = clean_weight

    def pass_signs(self) -> Sequence[int]:
        return (0, +1)

    def share(self) -> Halves:
        return Halves(reduction=None)

    def pass_weights(self, passes: int, share: Halves | None) -> Sequence[float]:
        if share is not None:
            share.weights()  # checks that the pass took its half
        return (self.clean_weight, 1 - self.clean_weight)
