"""Variational learning by weight noise that adapts to the curvature, which the passes themselves measure."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .ascent import require_dense
from .batchnorm import BNStats
from .chunks import pieces
from .diagonal import AverageOver, DiagonalEstimate, EstimatesDiagonal, check_weights
from .entry import Entry
from .groups import params_of
from .halves import Halves, Reduction
from .limits import Range, check_settings
from .noise import NoiseSource
from .part import Pass
from .signs import check_processes, signs_of

IVONSigns = Literal["one", "batch", "halves", "steps", "pairs"]
Estimate = Literal["price", "square"]
SAMPLES = 2**40  # added to the seed: draws for evaluation are others than those of training


class NaturalStep(Optimizer):
    """What :class:`IVON` wraps: the update of m, h and w, from a gradient and an estimate ĥ of the curvature.

    Its state is that of IVON, under ``"momentum"``, ``"hess"`` and ``"step"`` of each parameter.
    """

    def __init__(self, params: Iterable[Any], **defaults: Any):
        super().__init__(params, defaults)
        self.estimates: dict[int, Tensor] = {}  # ĥ by the parameter's id, for the next step

    def hess(self, group: dict[str, Any], p: Tensor) -> Tensor:
        """h of a parameter."""
        state = self.state.get(p, {})
        return state["hess"] if "hess" in state else torch.full_like(p, group["hess_init"])

    def curvature(self, group: dict[str, Any], p: Tensor) -> Tensor:
        """h + δ of a parameter: λ times it is the posterior's precision."""
        return self.hess(group, p) + group["weight_decay"]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As any optimizer's, but of IVON's state alone.

        Raises:
            ValueError: it is another optimizer's, whose learning rate, weight decay and noise mean something else.
        """
        if any("ess" not in group for group in state_dict["param_groups"]):
            raise ValueError("this state is another optimizer's, not IVON's: its parameter groups have no ess")
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update. Parameters without a gradient are left alone, and h is where there is no estimate."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            require_dense([p.grad for p in params], "IVON")
            for p in params:
                if "hess" not in (state := self.state[p]):
                    state["step"] = torch.tensor(0.0, dtype=torch.float32)
                    state["momentum"] = torch.zeros_like(p)
                    state["hess"] = torch.full_like(p, group["hess_init"])
                state["step"] += 1
                if (estimate := self.estimates.get(id(p))) is not None:
                    _update_hess(state["hess"], estimate, group["betas"][1], group["weight_decay"])
            if params:
                _update(group, params, [self.state[p] for p in params])
        self.estimates = {}  # not before: a step that is interrupted may be tried again


def _update_hess(hess: Tensor, estimate: Tensor, beta: float, decay: float) -> None:
    """h ← β₂h + (1-β₂)ĥ + ½(1-β₂)²(h-ĥ)²/(h+δ), in place; the last term keeps h+δ above 0, whatever ĥ is."""
    for _, ((h,), (found,)) in pieces([hess], [estimate]):
        change, precision = torch.sub(found, h).mul_(1 - beta), h + decay
        h.add_(change).addcdiv_(change.square_(), precision, value=0.5)
        h.clamp_(min=1e-6 * decay - decay if decay else torch.finfo(h.dtype).tiny)  # rounding may not


def _update(group: dict[str, Any], params: list[Tensor], states: list[dict[str, Any]]) -> None:
    """m ← β₁m + (1-β₁)g and w ← w - η(h₀+δ) clip((m̂+δw)/(h+δ))."""
    beta, decay, radius = group["betas"][0], group["weight_decay"], group["clip_radius"]
    all_momenta, all_hess = ([state[key] for state in states] for key in ("momentum", "hess"))
    all_gradients = [p.grad for p in params if p.grad is not None]  # of all: the others were left out before
    corrections = [1 - beta ** float(state["step"]) for state in states]
    for places, (momenta, gradients, hess, weights) in pieces(all_momenta, all_gradients, all_hess, params):
        torch._foreach_lerp_(momenta, gradients, 1 - beta)
        updates = torch._foreach_div(momenta, [corrections[place] for place in places])
        if decay:
            torch._foreach_add_(updates, weights, alpha=decay)
        torch._foreach_div_(updates, torch._foreach_add(hess, decay))
        if radius is not None and math.isfinite(radius):
            torch._foreach_clamp_min_(updates, -radius)
            torch._foreach_clamp_max_(updates, radius)
        torch._foreach_add_(weights, updates, alpha=-group["lr"] * (group["hess_init"] + decay))


class IVON(EstimatesDiagonal):
    r"""Improved variational online Newton (Shen et al. 2024, Algorithm 1), on request with the curvature from a pair:

    .. math:: n \sim N\Bigl(0, \frac{1}{\lambda(h+\delta)}\Bigr), \quad \hat h = \lambda(h+\delta)\,n\,g(w+n), \quad
        w \leftarrow w - \eta\,(h_0+\delta)\,\frac{\hat m+\delta w}{h+\delta}

    element by element, with m and h the running means of g and ĥ, by β₁ (its start corrected, as in Adam) and β₂. h
    gets ½(1-β₂)²(h-ĥ)²/(h+δ) on top, which keeps h+δ above 0. N(w, 1/λ(h+δ)) is a posterior over the weights: the mean
    w is what is evaluated, or the mean of the outputs over :meth:`samples`.

    ĥ estimates diag H. From one sample it is mostly the noise n∘∇L(w). A pair at w+n and w-n cancels that exactly,
    so that ĥ is λ(h+δ)·½(n∘g₊ - n∘g₋): symmetric IVON, which was found in no paper.

    It is an optimizer of its own: no other is wrapped. All parameters are perturbed, biases and gains included, as in
    the paper. A group's ``"noise"`` entry is a factor on the standard deviation: 1 is the posterior, 0 leaves its
    weights and their h alone. Warm up the learning rate by a scheduler, as the paper does. Gradients that are scaled
    between loop and step (``GradScaler``, clipping) scale ĥ alike, by what became of their norm: it is the curvature of
    the loss so scaled. What is added to them by hand, as weight decay, leaves ĥ as it is; where it has a curvature of
    its own that is to count, add a penalty to the loss.

    Args:
        params: parameters, or groups of them (:func:`noise_groups` with a level of 1, to perturb weights alone).
        lr: η. The factor h₀+δ makes it comparable to that of SGD at the start.
        ess: λ, the effective sample size: the number of training examples (tokens, of a language model).
        betas: β₁, β₂.
        weight_decay: δ, the prior's precision over λ.
        hess_init: h₀, the start of h.
        clip_radius: the largest size of an element of (m̂+δw)/(h+δ); None: no limit.
        signs: ``"one"``: a perturbation a step, as in the paper; the others are pairs, as in :class:`SymmetricNoise`.
            With ``"steps"`` h changes in every second step, so that β₂ forgets half as fast, and a third copy of the
            weights is kept between the two (``torch.distributed.checkpoint`` drops it, and h misses that pair).
        estimate: ``"price"``: ĥ as above. ``"square"``: ĥ = g², the squared gradient of the step, as in the paper's
            comparison: it needs no perturbation to be in it, and is no Hessian.
        average_over: of each ĥ, before it joins h: ``"weight"`` takes it as it is, as in the paper; ``"row"`` takes its
            mean over a slice along dimension 0 (a row of a kernel, a filter, a token's embedding), ``"layer"`` over the
            layer: h is then the same there, and less noisy.
        reduction: of ``"halves"``, see :class:`SymmetricNoise`.
        seed: of the noise; the same in all data-parallel processes; else the first
            loop over passes is an error, but with ``"square"``.
        model, bn_stats: see :class:`MultiPassOptimizer`.

    Raises:
        ValueError: an impossible setting; weights of less than float32, or sharded ones (FSDP2), in any group.

    >>> import torch
    >>> model, loss_fn = torch.nn.Linear(4, 1), torch.nn.MSELoss()
    >>> inputs, targets = torch.ones(8, 4), torch.ones(8, 1)
    >>> optimizer = IVON(model.parameters(), lr=0.1, ess=1e4, hess_init=0.5, signs="batch")
    >>> for _ in range(100):
    ...     for _ in optimizer.passes():
    ...         loss_fn(model(inputs), targets).backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    >>> with torch.no_grad():
    ...     outputs = torch.stack([model.eval()(inputs) for _ in optimizer.samples(8)]).mean(0)
    >>> bool(loss_fn(outputs, targets) < 0.05)
    True
    """

    base: NaturalStep
    signs: IVONSigns
    estimate: Estimate
    reduction: Reduction

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        ess: Annotated[float, Range(gt=0)],
        betas: tuple[float, float] = (0.9, 0.99999),
        weight_decay: float = 1e-4,
        hess_init: Annotated[float, Range(gt=0)] = 1.0,
        clip_radius: Annotated[float | None, Range(gt=0)] = None,
        signs: IVONSigns = "one",
        estimate: Estimate = "price",
        average_over: AverageOver = "weight",
        reduction: Reduction = "mean",
        seed: int = 0,
        model: nn.Module | None = None,
        bn_stats: BNStats = "both",
    ):
        check_settings(IVON, signs=signs, estimate=estimate, average_over=average_over, reduction=reduction)
        check_processes(signs)
        self.signs, self.estimate, self.reduction, self.average_over = signs, estimate, reduction, average_over
        self.diagonal = DiagonalEstimate(own=signs == "pairs")
        self.processes_per_minibatch = 2 if signs == "pairs" else 1
        base = NaturalStep(
            params, lr=lr, betas=betas, ess=ess, weight_decay=weight_decay, hess_init=hess_init,
            clip_radius=clip_radius, noise=1.0,
        )  # fmt: skip
        super().__init__(
            base, distribution="gaussian", granularity="absolute", seed=seed, model=model, bn_stats=bn_stats
        )

    @property
    def level_unit(self) -> str:
        return "factors on the posterior's standard deviation"

    def noise_norm(self, group: dict[str, Any], weights: list[Tensor]) -> float | None:
        """The root of the mean of ‖n‖², which is the sum of 1/λ(h+δ), times the level."""
        with torch.no_grad():
            total = sum(self.base.curvature(group, p).mul_(group["ess"]).reciprocal_().sum().item() for p in weights)
        return float(group.get(self.level_key, 0.0)) * math.sqrt(total)

    # ---- the passes ------------------------------------------------------------------------------------------------

    def pass_signs(self) -> Sequence[int]:
        return (+1,) if self.signs == "one" else signs_of(self.signs, self.draws)

    def share(self) -> Halves | None:
        return Halves(self.reduction) if self.signs == "halves" else None

    def draw_number(self, index: int) -> int:
        return self.draws // 2 if self.signs == "steps" else self.draws

    def add_noise(self, entries: list[Entry], draw: int) -> None:
        self._sample(self.source, entries, draw)

    def _sample(self, source: NoiseSource, entries: list[Entry], draw: int) -> None:
        """Moves the weights to a draw of the posterior around where they are saved."""
        noise = source.fill_([entry.parameter for entry in entries], draw)
        for entry, e in zip(entries, noise, strict=True):
            for _, ((z,), (h,), (w,)) in pieces([e], [self.base.hess(entry.group, entry.parameter)], [entry.saved]):
                deviation = self._inverse_variance(h, entry.group).rsqrt_()
                torch.addcmul(w, z, deviation, value=entry.level, out=z)

    def over_variances(self, entries: list[Entry], products: list[Tensor]) -> None:
        for entry, product in zip(entries, products, strict=True):
            for _, ((ng,), (h,)) in pieces([product], [self.base.hess(entry.group, entry.parameter)]):
                ng.mul_(self._inverse_variance(h, entry.group, entry.level))

    @staticmethod
    def _inverse_variance(h: Tensor, group: dict[str, Any], level: float = 1.0) -> Tensor:
        """λ(h+δ), over the square of ``level``."""
        return (h + group["weight_decay"]).mul_(group["ess"] / level**2)

    def before_loop(self, entries: list[Entry]) -> None:
        if self.estimate == "price":
            super().before_loop(entries)

    def after_pass(self, part: Pass, entries: list[Entry]) -> None:
        if self.estimate == "price":
            super().after_pass(part, entries)

    def before_step(self) -> None:
        entries = self.entries()
        if self.estimate == "square":
            gradients = [(entry.parameter, entry.gradient) for entry in entries]
            self.base.estimates = {id(p): g.square() for p, g in gradients if g is not None}
            return
        found = self.estimates(entries)
        estimates = {id(entry.parameter): found[entry.number] for entry in entries if entry.number in found}
        if self.signs == "steps" and entries:
            estimates = self._of_two_steps(entries, estimates)
        self.base.estimates = estimates

    def _of_two_steps(self, entries: list[Entry], found: dict[int, Tensor]) -> dict[int, Tensor]:
        """Keeps what the first step of a pair has found; the mean of both, of the second."""
        both = {}
        for p in [entry.parameter for entry in entries]:
            if id(p) in found and self.draws % 2 == 0:
                self.state[p]["first"] = found[id(p)]
            elif self.draws % 2 and "first" in self.state[p]:
                first = self.state[p].pop("first")
                if id(p) in found:
                    both[id(p)] = first.add_(found[id(p)]).div_(2)
        return both

    # ---- evaluation ------------------------------------------------------------------------------------------------

    def samples(self, count: int) -> Iterator[int]:
        """Yields 0, 1, … ``count``-1, with the weights at as many draws of the posterior; then they are what they were.

        The draws are the same at every call; with every level 0 all are the weights themselves. A ``break`` or an
        exception brings the weights back too. For an evaluation by the mean over models: average the probabilities,
        not their logarithms. With ``model=`` it is an error to save or copy the model at a draw.

        Raises:
            RuntimeError: inside a loop over passes.
            ValueError: ``count`` is no whole number >= 1.
        """
        if not (isinstance(count, int) and count >= 1):
            raise ValueError(f"samples({count!r}): the number of draws must be a whole number >= 1")
        self._require_idle("draw samples")
        phase, source = self._run.phase, NoiseSource("gaussian", "absolute", self.source.seed + SAMPLES)
        entries = self.entries()
        try:
            self._run.phase = "running"
            for index in range(count):
                if not entries:
                    yield index
                    continue
                with torch.no_grad():
                    if index == 0:
                        self._save(entries)
                    self._sample(source, entries, index)
                    self._drop_stale_copies()
                self._run.moved = self._run.sampling = True
                yield index
        finally:
            self._run.sampling = False
            self._restore()
            self._run.phase = phase

    # ---- checks ----------------------------------------------------------------------------------------------------

    def check_group(self, group: dict[str, Any], index: int) -> None:
        super().check_group(group, index)
        limits = {
            "lr": ("a finite number >= 0", lambda x: math.isfinite(x) and x >= 0),
            "ess": ("a finite number > 0", lambda x: math.isfinite(x) and x > 0),
            "weight_decay": ("a finite number >= 0", lambda x: math.isfinite(x) and x >= 0),
            "hess_init": ("a finite number > 0", lambda x: math.isfinite(x) and x > 0),
            "clip_radius": ("a number > 0, or None for no limit", lambda x: x is None or x > 0),
            "betas": ("two numbers >= 0 and < 1", lambda x: len(x) == 2 and all(0 <= beta < 1 for beta in x)),
        }
        for key, (wanted, holds) in limits.items():
            try:
                right = key not in group or holds(group[key])
            except (TypeError, ValueError):  # a word, a tensor of several numbers
                right = False
            if not right:
                raise ValueError(f"{key}={group[key]!r} of parameter group {index} must be {wanted}")
        check_weights(params_of(group), "IVON")

    @classmethod
    def _check_arguments(cls, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], (type, Optimizer)):
            raise TypeError("IVON is an optimizer of its own and wraps none: IVON(model.parameters(), lr, ess=...)")
        super()._check_arguments(args)
