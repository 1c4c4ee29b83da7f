"""For Lightning's automatic optimization. (Manual optimization and Fabric need nothing: ``optimizer.passes()``.)"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

try:
    from lightning.pytorch import Callback  # pyright: ignore[reportMissingImports]
except ImportError:
    from pytorch_lightning import Callback  # pyright: ignore[reportMissingImports]

from ..optim.part import Pass
from . import multi_pass

if TYPE_CHECKING:
    Loop = Any  # of a package that need not be there
else:
    Loop = object


class MultiPass(Callback):
    """Makes a Lightning Trainer with automatic optimization take every training step in passes.

    >>> Trainer(callbacks=[MultiPass()])  # doctest: +SKIP

    ``training_step`` and the backward pass run once per pass, for every minibatch that is accumulated. All else
    happens once a step, on the mean gradient: clipping, the hooks around the step, what ``training_step`` logs (in the
    last pass). The step's loss, as progress bars and ``on_train_batch_end`` see it, is the mean over the passes.

    Args:
        take: given a pass and a batch, what ``training_step`` gets in it: ``part.take(batch)``, unless you say how your
            batch is to be halved, as in ``lambda part, batch: part.take(*batch, dim=None)`` for lists of examples.

    Raises:
        RuntimeError: this Lightning, or the strategy, runs its loop in another way; optimize manually.
        TypeError: the optimizer has no passes.
    """

    def __init__(self, take: Callable[[Pass, Any], Any] = Pass.take) -> None:
        super().__init__()
        self.take = take

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Called by the trainer."""
        if stage != "fit" or not pl_module.automatic_optimization:
            return
        loop = trainer.fit_loop.epoch_loop.automatic_optimization
        if isinstance(loop, _Passes):
            loop.take = self.take
            return
        own = ("_make_closure", "_make_step_fn", "_make_backward_fn", "_make_zero_grad_fn", "_optimizer_step")
        if trainer.strategy.handles_gradient_accumulation or not all(hasattr(loop, name) for name in own):
            raise RuntimeError(
                f"{type(trainer.strategy).__name__} runs the training loop in its own way; set "
                "automatic_optimization = False and loop over self.optimizers().passes() in training_step"
            )
        loop.__class__ = type("MultiPass" + type(loop).__name__, (_Passes, type(loop)), {})
        loop.take = self.take


class _Passes(Loop):
    """Mixed into Lightning's loop: what is one forward and backward pass there becomes a loop over passes."""

    take: Callable[[Pass, Any], Any]

    def _make_closure(self, kwargs: dict[str, Any], optimizer: Any, batch_idx: int) -> Callable[[], Any]:
        closure = super()._make_closure(kwargs, optimizer, batch_idx)
        return type(closure)(step_fn=partial(self._run_passes, kwargs, optimizer, batch_idx))

    def _run_passes(self, kwargs: dict[str, Any], optimizer: Any, batch_idx: int) -> Any:
        if (zero_grad := self._make_zero_grad_fn(batch_idx, optimizer)) is not None:
            zero_grad()
        backward, results = self._make_backward_fn(optimizer), []
        for part in multi_pass(optimizer).passes():
            given = {**kwargs, "batch": self.take(part, kwargs["batch"])}
            with _logging(self.trainer.lightning_module, part.last):
                results.append(self._make_step_fn(given)())
            if results[-1].closure_loss is not None:
                backward(results[-1].closure_loss)
        losses = [result.closure_loss for result in results if result.closure_loss is not None]
        if losses and len(losses) < len(results):
            raise RuntimeError("training_step returned a loss in some passes over a batch and None in others")
        mean = sum(loss.detach() for loss in losses) / len(losses) if losses else None
        return type(results[-1])(mean, extra=results[-1].extra)

    def _optimizer_step(self, batch_idx: int, train_step_and_backward_closure: Callable[[], Any]) -> None:
        loss = train_step_and_backward_closure()
        super()._optimizer_step(batch_idx, lambda: loss)  # step() after a loop over passes merely calls it


@contextmanager
def _logging(module: Any, on: bool) -> Iterator[None]:
    """Whether ``module.log`` does anything."""
    if on:
        yield
        return
    module.log = lambda *args, **kwargs: None
    try:
        yield
    finally:
        del module.log
