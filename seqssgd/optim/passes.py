"""The multi-pass protocol: an optimizer that looks at the loss from several points around the weights.

S-SGD, one-sided noise, SAM and their relatives differ in where they take gradients, not in how they step. Here is
what they share: a loop over passes that moves the weights, brings them back exactly, averages the gradients, and
then lets any ``torch.optim`` optimizer step from the untouched weights.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import gradients
from .batchnorm import BNStats, RunningStatistics
from .delegate import DelegatingOptimizer
from .groups import check_trainable
from .guards import check_all_in_groups, check_gradients, check_still, check_whose, norms_of, without_graph
from .halves import Halves
from .part import Pass
from .sharding import gathering_modules, local

IN_A_TRAINER = (
    "In a trainer: MultiPassMixin (Hugging Face), the callback MultiPass (Lightning), passes() of the optimizer that "
    "was given to prepare() (Accelerate); see the page on trainers in the documentation"
)


class MultiPassOptimizer(DelegatingOptimizer):
    """Wraps a ``torch.optim`` optimizer so that its step uses gradients from several passes.

    It is an :class:`torch.optim.Optimizer` whose ``param_groups``, ``state`` and ``defaults`` *are* the base's, so
    schedulers, ``add_param_group``, gradient scalers and checkpoints see one optimizer. A method says in
    :meth:`_signs` how many passes a step has and in :meth:`_perturb` where they are; if need be, in
    :meth:`_pass_weights` how much each counts and in :meth:`_finish` what becomes of its gradient. The rest is here.

    Args:
        base: the optimizer that steps. Its groups' ``"noise"`` entry is the noise level (absent: 0); see
            :func:`seqssgd.optim.noise_groups`.
        model: the module that is trained. Needed for ``bn_stats`` and with FSDP2, else optional. All of it that is
            trained must be in the groups: what is in none gets the sum of the gradients of the passes, where the
            groups get the mean. (With ``model`` that is an error; without it nobody can tell.)
        bn_stats: which passes update batch-norm running statistics: ``"both"`` (all of them), ``"first"``, ``"none"``.

    Raises:
        TypeError: ``base`` is no optimizer, or one that needs its own closure (LBFGS).
        ValueError: a level is negative or not finite; weights under noise are sparse or complex. At the first pass:
            parameters of ``model`` that are trained, but by no group.
    """

    bn_stats: BNStats
    halves = False  # whether the passes of a step always share the minibatch out
    processes_per_minibatch = 1  # data-parallel ones that are to be given the same

    def __init__(self, base: Optimizer, *, model: nn.Module | None = None, bn_stats: BNStats = "both"):
        if bn_stats not in get_args(BNStats):
            raise ValueError(f'bn_stats must be "both", "first" or "none", not {bn_stats!r}')
        if bn_stats != "both" and model is None:
            raise ValueError(f"bn_stats={bn_stats!r} needs model=, the module whose statistics are kept")
        super().__init__(base, model=model, bn_stats=bn_stats)

    # ---- what a method defines -----------------------------------------------------------------------------------

    @property
    def averaged(self) -> nn.Module | None:
        """The model to evaluate, where that is another than the one that is trained; else None."""
        return None

    def _signs(self) -> Sequence[int]:
        """The sign of each pass of a step, in order."""
        raise NotImplementedError

    def _perturb(self, part: Pass, weights: list[Tensor], saved: list[Tensor]) -> None:
        """Moves ``weights`` in place to where ``part`` takes its gradient; ``saved`` are copies of them unmoved.

        In all but the first pass, ``.grad`` still holds what the passes before have left.
        """
        raise NotImplementedError

    def _finish(self, part: Pass, weights: list[Tensor], saved: list[Tensor]) -> None:
        """After ``part``: reads ``.grad``, the weighted sum over this step's passes so far, or alters it.

        In the last pass there are also the gradients of loops before in it, ``_run.earlier``; see :meth:`_prepare`.
        """

    def _prepare(self, earlier: gradients.Gradients) -> gradients.Gradients | None:
        """What :meth:`_finish` of the last pass makes ``earlier`` of, the gradients of loops before.

        They are added before that pass, as data-parallel training exchanges them with its own. None: they are added
        after it, and are not exchanged.
        """
        return earlier

    def _reads_gradients(self) -> bool:
        """Whether :meth:`_finish` makes use of the gradients."""
        return False

    def _stepping(self) -> None:
        """Called when the base optimizer is about to step."""

    def _stepped(self) -> None:
        """Called when the base optimizer has stepped."""

    def _weigher(self, index: int) -> Callable[[Tensor], Tensor] | None:
        """What gives, in pass ``index``, the weights of the examples in the mean of their losses; None: all are 1."""
        return None

    def _pass_weights(self, passes: int, share: Halves | None) -> Sequence[float]:
        """How much each pass counts in the step's gradient, the last one not 0."""
        return [1 / passes] * passes if share is None else share.weights()

    def _share(self) -> Halves | None:
        """How a minibatch is divided over the passes; None: every pass gets all of it."""
        return None

    # ---- the passes ------------------------------------------------------------------------------------------------

    @torch._disable_dynamo
    def passes(self) -> "PassLoop":
        """Yields one :class:`Pass` after another with the weights moved; call ``backward()`` in each.

        After the loop the weights are bit for bit what they were, and ``.grad`` holds the mean over the passes,
        ready for clipping and :meth:`step`. Gradients of loops before, since the last step, are kept and added
        to; others are an error. A ``break``, an exception or Ctrl-C inside the loop brings the weights back too; where
        what this returns is kept in a variable, once its ``close()`` is called.

        Raises:
            RuntimeError: inside a loop over passes; gradients that came from elsewhere, or were changed inside a pass;
                a pass without ``backward()``.
        """
        self._require_idle("start another pass loop")
        return PassLoop(self._guarded_passes())

    def _guarded_passes(self) -> Generator[Pass, None, None]:
        run = self._run
        self._require_idle("start another pass loop")
        self._check_groups()
        check_trainable(self.param_groups, self.level_key)
        if not run.closure:
            run.watch.check_outside(self._name_of)
        run.continues, run.phase = run.phase == "complete", "running"
        try:
            run.training = self.model is not None and self.model.training
            run.watch.start_loop(clearing=run.closure)
            yield from self._passes()
            run.heard = run.watch.check_passes() or run.heard
            run.phase = "complete"
            run.first_loop = run.first_loop and not any(g.get(self.level_key) for g in self.param_groups)
        finally:  # also a second chance, should Ctrl-C hit the restoring itself
            self._restore()
            run.perturbed = None
            run.watch.end_loop()
            if run.phase == "running":
                run.phase = "broken"
                run.watch.condemn(self._parameters())

    def _passes(self) -> Iterator[Pass]:
        self._run.perturbed = self._perturbed()  # whatever is frozen in the loop
        weights = [p for _, p in self._run.perturbed]
        self._run.gathering = gathering_modules(self.model, weights)
        signs = self._signs() if weights else (0,)
        if len(signs) > 1 and self._run.first_loop and self.model is not None:
            check_all_in_groups(self.model, self._parameters())
        share = self._share() if weights else None
        keeps = bool(weights) and self.bn_stats != "both"
        statistics = RunningStatistics(self.model) if keeps and self.model is not None else None
        importance: Sequence[float] = (1.0,)
        earlier = gradients.set_aside(self._parameters(), self._run.zeros) if weights else []
        try:
            if weights:
                self._save(weights)
            for index, sign in enumerate(signs):
                weigh = self._weigher(index) if weights else None
                part = Pass(index, sign, index == len(signs) - 1, share, weigh)
                part.cost *= self.processes_per_minibatch
                if weights:
                    self._move(part)
                if index > 0:  # so that the sum, times the last pass's weight, is the weighted mean
                    gradients.scale(self._parameters(), importance[index - 1] / importance[index])
                if part.last and (prepared := self._prepare(earlier)) is not None:
                    prepared = [(p, gradient / importance[index]) for p, gradient in prepared]
                    gradients.add(prepared)
                    self._run.earlier = {id(p): g for p, g in prepared} if self._reads_gradients() else {}
                    earlier = []
                with statistics.kept() if statistics and (self.bn_stats == "none" or index > 0) else nullcontext():
                    self._run.watch.start_pass(self._parameters())
                    yield part
                    self._run.watch.end_pass(self._name_of)
                if weights:
                    importance = self._pass_weights(len(signs), share)
                    self._finish_pass(part)
        finally:
            self._restore()
            self._run.earlier = {}
        gradients.scale(self._parameters(), importance[-1])
        gradients.add(earlier)

    @torch.no_grad()
    def _save(self, weights: list[Tensor]) -> None:
        weights = [local(p) for p in weights]
        if not _same_layout(self._run.buffers, weights):
            self._run.buffers = [torch.empty_like(p) for p in weights]
        torch._foreach_copy_(self._run.buffers, weights)
        self._run.saved = weights, self._run.buffers  # from here on there is something to restore

    @torch.no_grad()
    def _move(self, part: Pass) -> None:
        run = self._run
        self._perturb(part, *run.saved)
        self._drop_stale_copies()
        run.moved = part.sign != 0
        run.writes = [w._version for w in run.saved[0]]
        run.norms = norms_of(run.saved[0]) if run.first_loop else None

    @torch.no_grad()
    def _finish_pass(self, part: Pass) -> None:
        run = self._run
        check_still(run.saved[0], run.writes, run.norms, lambda i: self._name_of(self._perturbed()[i][1]))
        self._finish(part, *self._run.saved)

    def _drop_stale_copies(self) -> None:
        torch.clear_autocast_cache()  # autocast would go on using its casts of the weights as they were,
        for module in self._run.gathering:  # and FSDP2 what it gathered for a forward without a backward
            module.reshard()

    @torch.no_grad()
    def _restore(self) -> None:
        weights, saved = self._run.saved
        if weights:
            torch._foreach_copy_(weights, saved)
            self._drop_stale_copies()
            self._run.saved = [], []
            self._run.moved = False

    def _perturbed(self) -> list[tuple[dict[str, Any], Tensor]]:
        """The weights that are moved, in order, each with its group."""
        if self._run.perturbed is not None:
            return self._run.perturbed
        groups = [group for group in self.param_groups if group.get(self.level_key)]
        return [(group, p) for group in groups for p in group["params"] if p.requires_grad]

    # ---- stepping --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Steps the base optimizer, from the unmoved weights, on the gradients that :meth:`passes` left.

        Args:
            closure: instead of a pass loop: computes the loss, calls ``backward()`` and returns the loss. It is called
                once per pass, and may call ``zero_grad()`` itself. After a pass loop (trainers hand every ``step`` a
                closure of their own) it is called once, before the step.

        Returns:
            the closure's loss, averaged over the passes; None without a closure.

        Raises:
            RuntimeError: without a closure, if no pass loop was completed since the last step or ``zero_grad()``.
                (Allowed while every learning rate is 0, as when a checkpointing library initialises the state by an
                empty step.) No pass had a ``backward()``, and the closure, if any, gave a loss.
        """
        self._require_idle("step")
        if not self._run.noisy:
            self._check_groups()  # somebody may have set a level
        if self._run.phase == "broken":
            raise RuntimeError(
                "step() after a pass loop that was left half-way; call zero_grad() and run a whole loop over passes()"
            )
        loss = None
        if closure is not None and self._run.phase == "complete":
            with torch.enable_grad():
                loss = closure()
            self._run.watch.check_outside(self._name_of)
        elif closure is not None:
            if self._run.noisy:
                check_whose(closure)
            loss = self._closure_passes(closure)
        empty = self._run.phase == "idle" and not any(g.get("lr", 1) for g in self.param_groups)
        if self._run.phase == "idle" and self._run.noisy and not empty:
            raise RuntimeError(
                "step() without passes(): there was no loop over them since the last step or zero_grad(), so that the "
                "gradients are not those at the perturbed weights. Write\n"
                "    for _ in optimizer.passes():\n        loss_fn(model(inputs), targets).backward()\n"
                f"    optimizer.step()\n{IN_A_TRAINER}"
            )
        if self._run.phase == "complete" and self._run.noisy and (closure is None or loss is not None):
            if not self._run.heard and any(g.get("lr", 1) for g in self.param_groups):
                check_gradients(self._parameters())
        if not empty:
            self._run.watch.check_outside(self._name_of)
            self._stepping()
        self.base.step()
        if self._run.phase == "complete" and any(g.get(self.level_key) for g in self.param_groups):
            self.draws += 1
        self._run.phase, self._run.heard = "idle", False
        if not empty:
            self._stepped()
        self._note_position()
        return loss

    def _closure_passes(self, closure: Callable[[], Any]) -> Any:
        """The closure may clear the gradients or add to them; either way each pass starts from the same ones."""
        watch, losses = self._run.watch, []
        earlier = gradients.take(self._parameters())
        self._run.closure = True
        try:
            for part in self.passes():
                summed = gradients.take(self._parameters())
                copies = [(p, gradient.clone()) for p, gradient in earlier]
                gradients.add(copies)
                with torch.enable_grad():
                    loss = closure()
                watch.check_closure(copies, self._name_of)
                gradients.add(summed)
                if part._share is not None:
                    raise RuntimeError("a closure cannot say how its minibatch splits: use passes() and part.take()")
                losses.append(without_graph(loss))
        finally:
            self._run.closure = False
        watch.cleared()
        return None if any(loss is None for loss in losses) else sum(losses) / len(losses)


class PassLoop(Iterator[Pass]):
    """The passes of a step, one after the other. torch.compile does not look into it, where it compiles the loop."""

    def __init__(self, generator: Generator[Pass, None, None]):
        self._generator = generator

    @torch._disable_dynamo
    def __next__(self) -> Pass:
        try:
            return next(self._generator)
        except BaseException:  # an interrupt may have come just after the weights were moved
            self._generator.close()
            raise

    def close(self) -> None:
        """Ends the loop if it was left half-way: the weights are what they were. Needed where it has a name."""
        self._generator.close()


def _same_layout(buffers: list[Tensor], weights: list[Tensor]) -> bool:
    return len(buffers) == len(weights) and all(
        b.shape == w.shape and b.stride() == w.stride() and b.dtype == w.dtype and b.device == w.device
        for b, w in zip(buffers, weights, strict=True)
    )
