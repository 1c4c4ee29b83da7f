"""S-SGD whose noise follows the curvature that its pair measures."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

from torch import Tensor
from torch.optim import SGD, Optimizer

from .diagonal import AverageOver, DiagonalEstimate, EstimatesDiagonal, check_weights
from .entry import Entry
from .limits import Range, check_settings
from .shaping import CurvatureShape
from .symmetric import SymmetricNoise


class ShapedNoise(EstimatesDiagonal, SymmetricNoise):
    r"""S-SGD with noise that is smaller for weights whose change costs much, and as large as ever in a layer:

    .. math:: n_i \propto \frac{z_i}{\sqrt{\max(h_i, 0)+\delta}}, \qquad \|n\|_2 = c\,\|w\|_2 \text{ in each layer,}

    z the random elements, h the running mean of the diagonal of the Hessian, δ a multiple of the mean of max(h, 0) in
    the layer. Every step's pair estimates the diagonal, by ½(n∘g₊ - n∘g₋)/E[n∘n], which costs no pass (and two copies
    of the weights: h, and one while the passes are under way). The first step's noise is flat. The method is ours:
    the shape of the noise is IVON's (:class:`IVON`), its size S-SGD's, and any optimizer steps.

    The running means are in ``state_dict()["perturbation"]``. ``torch.distributed.checkpoint`` drops them, so that
    after loading from there they begin anew. In data-parallel training they are those of all processes.

    Args:
        base: the optimizer that steps, over groups whose ``"noise"`` entry is the level c (:func:`noise_groups`).
        curvature_decay: of the running mean of the diagonal of the Hessian.
        damping: δ over the mean of max(h, 0): the larger, the flatter the noise.
        average_over: of each estimate of the diagonal, before it joins the running mean: ``"weight"`` takes it as it
            is, ``"row"`` takes its mean over a slice along dimension 0 (a row of a dense or recurrent kernel, a filter,
            a token's embedding), ``"layer"`` over the layer, whose noise is flat then.
        precondition: whether the gradient is divided by the same precision, as Sophia (Liu et al. 2023) and AdaHessian
            (Yao et al. 2021) do: by (max(h, 0)+δ)/(h̄+δ), h̄ the layer's mean of max(h, 0), so that the learning rate is
            SGD's, and no element grows by more than (h̄+δ)/δ. For ``torch.optim.SGD`` alone; its momentum is that of
            the divided gradients, its weight decay is not divided. Steps without noise, as in the phases of a schedule,
            divide by what was known last; before the first step with noise nothing is, and they are SGD's.
        settings: as of :class:`SymmetricNoise`; ``signs`` are ``"batch"``, ``"halves"`` or ``"pairs"``,
            ``granularity`` is ``"layer"`` or ``"tensor"``. Data-parallel processes must have one ``seed``; else the
            first loop over passes is an error.

    Raises:
        ValueError: as :class:`SymmetricNoise`; a setting that does not go with it; weights under noise of less than
            float32, or sharded ones (FSDP2).

    >>> import torch
    >>> from seqssgd.optim import noise_groups
    >>> model = torch.nn.Linear(4, 1)
    >>> optimizer = ShapedNoise(torch.optim.SGD(noise_groups(model, noise=0.5), lr=0.05))
    >>> for _ in optimizer.passes():
    ...     model(torch.ones(8, 4)).square().mean().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        curvature_decay: Annotated[float, Range(ge=0, lt=1)] = 0.99,
        damping: Annotated[float, Range(gt=0)] = 1.0,
        average_over: AverageOver = "weight",
        precondition: bool = False,
        **settings: Any,
    ):
        check_settings(
            ShapedNoise,
            curvature_decay=curvature_decay,
            damping=damping,
            average_over=average_over,
            precondition=precondition,
        )
        self.shape = CurvatureShape(curvature_decay, damping)
        self.precondition = precondition
        self.average_over = average_over
        super().__init__(base, **settings)
        self.diagonal = DiagonalEstimate(own=self.signs == "pairs")
        if precondition and not isinstance(base, SGD):
            raise ValueError(
                f"precondition=True divides the gradient by the curvature, and {type(base).__name__} divides it by "
                "another measure: take torch.optim.SGD"
            )
        if self.signs not in ("batch", "halves", "pairs"):
            raise ValueError(
                f'shaped noise needs both signs in a step: signs="batch", "halves" or "pairs", not "{self.signs}"'
            )
        if self.source.granularity not in ("layer", "tensor"):
            raise ValueError(
                f'shaped noise has one size in a layer or a tensor, not granularity="{self.source.granularity}"'
            )

    def shaper(self, entries: list[Entry]) -> Callable[[list[Tensor]], None]:
        return partial(self.shape.apply, entries)

    def over_variances(self, entries: list[Entry], products: list[Tensor]) -> None:
        numbers = [entry.number for entry in entries]
        self.shape.over_variances(self.entries(), dict(zip(numbers, products, strict=True)))

    def before_step(self) -> None:
        super().before_step()
        entries = self.entries()
        for number, estimate in self.estimates(entries).items():
            self.shape.update(number, estimate)
        if self.precondition:
            self.shape.precondition(self._entries(moved_only=False))

    def position(self) -> dict[str, Any]:
        return {**super().position(), "means": dict(self.shape.means)}

    def go_to(self, position: Mapping[str, Any]) -> None:
        super().go_to(position)
        self.shape.load(position.get("means", {}))

    def check_groups(self) -> None:
        super().check_groups()
        check_weights([entry.parameter for entry in self.entries()], type(self).__name__)

    def _check_curvature(self) -> None:
        raise ValueError("curvature by layer needs noise of one size in a layer, and this follows the curvature")
