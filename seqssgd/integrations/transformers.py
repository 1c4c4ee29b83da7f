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
    the loss that it logs is the mean over the passes (of halves: that of the minibatch).

    Raises:
        TypeError: the optimizer has no passes; the mixin comes after the Trainer among the bases of a class.
        ValueError: in training by halves, the optimizer's ``reduction`` is not that of the Trainer's loss.
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
            self._check_reduction(part, num_items_in_batch is not None)
            with nullcontext() if part.last else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, self.take(part, inputs), num_items_in_batch))
        shares = [1 / len(losses)] * len(losses) if part.share is None else part.importance
        loss: Any = sum(share * one for share, one in zip(shares, losses, strict=True))
        return loss

    def _check_reduction(self, part: Pass, has_items: bool) -> None:
        """What the Trainer divides by is the whole minibatch's number of tokens, where it gives the model one."""
        if part.share is None or part.share.reduction is None or _is_own(type(self).compute_loss):
            return
        reduction = "sum" if has_items else "mean"
        if part.share.reduction != reduction:
            what = "the sum of the tokens' losses, divided by their number in the whole minibatch"
            what = what if has_items else "the mean over the examples that it is given"
            raise ValueError(
                f"the Trainer's loss is {what}: make the optimizer with reduction={reduction!r} (the gradient of two "
                "halves would be of another size else)"
            )


def _is_own(compute_loss: Any) -> bool:
    """Whether it is not the Trainer's, so that only its author knows what it gives."""
    return not (getattr(compute_loss, "__module__", None) or "").startswith("transformers.")
