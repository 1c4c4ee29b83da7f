"""S-SGD whose noise follows the curvature that its pair measures."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .limits import Range, check_settings
from .part import Pass
from .shaping import CurvatureShape
from .sharding import is_sharded
from .symmetric import SymmetricNoise


class ShapedNoise(SymmetricNoise):
    r"""S-SGD with noise that is smaller for weights whose change costs much, and as large as ever in a layer:

    .. math:: n_i \propto \frac{z_i}{\sqrt{\max(h_i, 0)+\delta}}, \qquad \|n\|_2 = c\,\|w\|_2 \text{ in each layer,}

    z the random elements, h the running mean of the diagonal of the Hessian, δ a multiple of the mean of max(h, 0) in
    the layer. Every step's pair estimates the diagonal, by ½(n∘g₊ - n∘g₋)/E[n∘n], which costs no pass (and two copies
    of the weights: h, and one while the passes are under way). The first step's noise is flat. Ours; the shape is
    IVON's (:class:`IVON`), the size is S-SGD's, and any optimizer steps.

    The running means are in ``state_dict()["perturbation"]``. ``torch.distributed.checkpoint`` drops them, so that
    after loading from there they begin anew. In data-parallel training they are those of all processes.

    Args:
        base: the optimizer that steps, over groups whose ``"noise"`` entry is the level c (:func:`noise_groups`).
        curvature_decay: of the running mean of the diagonal of the Hessian.
        damping: δ over the mean of max(h, 0): the larger, the flatter the noise.
        settings: as of :class:`SymmetricNoise`; ``signs`` are ``"batch"`` or ``"halves"``, ``granularity`` is
            ``"layer"`` or ``"tensor"``.

    Raises:
        ValueError: as :class:`SymmetricNoise`; a setting that does not go with it; sharded weights (FSDP2).

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
        **settings: Any,
    ):
        check_settings(ShapedNoise, curvature_decay=curvature_decay, damping=damping)
        self.shape = CurvatureShape(curvature_decay, damping)
        super().__init__(base, **settings)
        if self.signs not in ("batch", "halves"):
            raise ValueError(f'shaped noise needs both signs in a step: signs="batch" or "halves", not "{self.signs}"')
        if self.source.granularity not in ("layer", "tensor"):
            raise ValueError(
                f'shaped noise has one size in a layer or a tensor, not granularity="{self.source.granularity}"'
            )

    def record_curvature(self, record: bool = True) -> None:
        """Refused: the trace is estimated from noise of one size in a layer.

        Raises:
            ValueError: always, if there is something to record.
        """
        if record:
            raise ValueError("curvature by layer needs noise of one size in a layer, and this follows the curvature")

    def _means(self) -> list[Tensor | None]:
        """h of each weight that is moved, None where nothing is known."""
        numbers = {id(p): number for number, p in enumerate(self._parameters())}
        return [self._run.means.get(numbers[id(p)]) for _, p in self._perturbed()]

    def _precisions(self) -> list[Tensor]:
        return self.shape.precisions(self._means(), [p for _, p in self._perturbed()], self._layers())

    def _shapes(self, params: list[Tensor], layers: list[str]) -> list[Tensor]:
        return [precision.rsqrt_() for precision in self._precisions()]

    def _passes(self) -> Iterator[Pass]:
        products, params = self._run.products, [p for _, p in self._perturbed()]
        products.settle(params)
        try:
            yield from super()._passes()
        finally:
            products.drop()
        products.note(params)

    def _finish(self, part: Pass, weights: list[Tensor], saved: list[Tensor]) -> None:
        super()._finish(part, weights, saved)
        params, scales = [p for _, p in self._perturbed()], None
        if part.last:  # E[n∘n] = s² / precision
            scales = self._precisions()
            for precision, moved, w in zip(scales, weights, saved, strict=True):
                size = (moved - w).square().sum() / precision.reciprocal().sum()  # s²
                precision.div_(size.clamp_min(torch.finfo(size.dtype).tiny))
        counts = tuple(self._pass_weights(2, part._share))
        self._run.products.take(part.index, counts, weights, saved, params, scales, self._run.earlier)

    def _reads_gradients(self) -> bool:
        return True

    def _stepping(self) -> None:
        params = [p for _, p in self._perturbed()]
        numbers = {id(p): number for number, p in enumerate(self._parameters())}
        for index, estimate in self._run.products.pop(params).items():
            number = numbers[id(params[index])]
            self._run.means[number] = self.shape.update(self._run.means.get(number), estimate)

    def _position(self) -> dict[str, Any]:
        return {**super()._position(), "means": dict(self._run.means)}

    def _go_to(self, position: Mapping[str, Any]) -> None:
        super()._go_to(position)
        self._run.means = {number: mean.clone() for number, mean in position.get("means", {}).items()}

    def _check_groups(self) -> None:
        super()._check_groups()
        if any(is_sharded(p) for _, p in self._perturbed()):
            raise ValueError("shaped noise with sharded weights has not been tried; use DDP")
