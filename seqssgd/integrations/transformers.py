"""For Hugging Face's Trainer."""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..optim.part import Pass
from . import multi_pass

if TYPE_CHECKING:
    Trainer = Any  # of a package that need not be there
else:
    Trainer = object


class MultiPassMixin(Trainer):
    """Makes a ``transformers.Trainer`` take every training step in passes.

    >>> from transformers import Trainer                                      # doctest: +SKIP
    >>> class MultiPassTrainer(MultiPassMixin, Trainer): ...                  # doctest: +SKIP
    >>> optimizer = SymmetricNoise(AdamW(noise_groups(model, noise=0.1)))     # doctest: +SKIP
    >>> MultiPassTrainer(model, arguments, optimizers=(optimizer, None))      # doctest: +SKIP

    The Trainer's own accumulation, clipping, mixed precision, learning-rate schedule and checkpoints work as always;
    the loss that it logs is the mean over the passes.

    Raises:
        TypeError: the optimizer has no passes; the mixin comes after the Trainer among the bases of a class.
    """

    def __init_subclass__(cls, **settings: Any):
        super().__init_subclass__(**settings)
        order = cls.__mro__
        place = order.index(MultiPassMixin)
        before, after = (["training_step" in vars(c) for c in part] for part in (order[1:place], order[place + 1 :]))
        if any(before) and not any(after):
            raise TypeError(f"class {cls.__name__}: MultiPassMixin goes before the Trainer: (MultiPassMixin, Trainer)")

    def take(self, part: Pass, inputs: dict[str, Any]) -> dict[str, Any]:
        """What a pass gets of the inputs. Override it to say how yours are to be halved."""
        return part.take(inputs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """The Trainer's ``training_step`` at the weights of each pass."""
        losses = []
        for part in multi_pass(self.optimizer).passes():
            with nullcontext() if part.last else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, self.take(part, inputs), num_items_in_batch))
        mean: Any = sum(losses) / len(losses)
        return mean
