"""The multi-pass protocol: an optimizer that looks at the loss from several points around the weights.

S-SGD, one-sided noise, SAM and their relatives differ in where they take gradients, not in how they step. Here is
what they share: a loop over passes that moves the weights, brings them back exactly, averages the gradients, and
then lets any ``torch.optim`` optimizer step from the untouched weights.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from . import gradients
from .arguments import check_signs
from .batchnorm import BNStats, RunningStatistics
from .entry import Entry, check_apart
from .gradients import Gradients
from .groups import check_trainable
from .guards import check_all_in_groups, check_gradients, check_still, check_whose, norms_of, without_graph
from .hooks import Hooks
from .limits import check_settings
from .part import Pass, PassLoop
from .sharding import gathering_modules, local

IN_A_TRAINER = (
    "In a trainer: MultiPassMixin (Hugging Face), the callback MultiPass (Lightning), passes() of the optimizer that "
    "was given to prepare() (Accelerate); see the page on trainers in the documentation"
)


class MultiPassOptimizer(Hooks):
    """Wraps a ``torch.optim`` optimizer so that its step uses gradients from several passes.

    It is an :class:`torch.optim.Optimizer` whose ``param_groups``, ``state`` and ``defaults`` *are* the base's, so
    schedulers, ``add_param_group``, gradient scalers and checkpoints see one optimizer. A method says in
    :meth:`pass_signs` how many passes a step has and in :meth:`perturb` where they are; if need be, in
    :meth:`pass_weights` how much each counts and in :meth:`after_pass` what becomes of its gradient. The rest is here.

    Args:
        base: the optimizer that steps. Its groups' ``"noise"`` entry is the noise level (absent: 0); see
            :func:`seqssgd.optim.noise_groups`.
        model: the module that is trained. Needed for ``bn_stats`` and with FSDP2, else optional. All of it that is
            trained must be in the groups: a parameter that is in none would get the sum of the passes' gradients,
            where those in groups get the mean. (With ``model`` that is an error; without it, it goes unnoticed.)
        bn_stats: which passes update batch-norm running statistics: ``"both"`` (all of them), ``"first"``, ``"none"``.

    Raises:
        TypeError: ``base`` is no optimizer, or one that needs its own closure (LBFGS).
        ValueError: a level is negative or not finite; weights under noise are sparse or complex. At the first pass:
            parameters of ``model`` that are trained, but by no group.
    """

    bn_stats: BNStats
    processes_per_minibatch = 1  # data-parallel ones that are to be given the same

    def __init__(self, base: Optimizer, *, model: nn.Module | None = None, bn_stats: BNStats = "both"):
        check_settings(MultiPassOptimizer, bn_stats=bn_stats)
        if bn_stats != "both" and model is None:
            raise ValueError(f"bn_stats={bn_stats!r} needs model=, the module whose statistics are kept")
        super().__init__(base, model=model, bn_stats=bn_stats)

    # ---- the passes ------------------------------------------------------------------------------------------------

    @torch._disable_dynamo
    def passes(self) -> PassLoop:
        """Yields one :class:`Pass` after another with the weights moved; call ``backward()`` in each.

        After the loop the weights are bit for bit what they were, and ``.grad`` holds the mean over the passes,
        ready for clipping and :meth:`step`. Gradients of earlier loops since the last step are kept and added to;
        gradients from elsewhere are an error. A ``break``, an exception or Ctrl-C inside the loop brings the weights
        back too. (If the iterator that this returns is kept in a variable, a ``break`` does so only once its
        ``close()`` is called.)

        Raises:
            RuntimeError: inside a loop over passes; gradients that came from elsewhere, or were changed inside a pass;
                a pass without ``backward()``.
        """
        self._require_idle("start another pass loop")
        return PassLoop(self._guarded_passes())

    def _guarded_passes(self) -> Generator[Pass, None, None]:
        run = self._run
        self._require_idle("start another pass loop")
        self.check_groups()
        check_trainable(self.param_groups, self.level_key)
        if run.phase == "prepared":  # for a step that failed: they may be divided by the curvature
            run.watch.condemn(self._parameters())
        if not run.closure:
            run.watch.check_outside(self._name_of)
        run.continues, run.phase = run.phase == "complete", "running"
        try:
            run.training = self.model is not None and self.model.training
            run.watch.start_loop(clearing=run.closure)
            entries = run.entries = self.entries()  # whatever is frozen in the loop
            run.gathering = gathering_modules(self.model, [entry.parameter for entry in entries])
            yield from self._noisy_passes(entries) if entries else self._watched(self._pass(0, 0, last=True))
            run.heard = run.watch.check_passes() or run.heard
            run.phase = "complete"
            run.first_loop = run.first_loop and not any(g.get(self.level_key) for g in self.param_groups)
        finally:  # also a second chance, should Ctrl-C hit the restoring itself
            self._restore()
            run.entries = None
            run.watch.end_loop()
            if run.phase == "running":
                run.phase = "broken"
                run.watch.condemn(self._parameters())

    def _noisy_passes(self, entries: list[Entry]) -> Iterator[Pass]:
        """The gradients are summed over the passes, and the sum is kept divided by the weight of the latest one: times
        the last weight, it is the weighted mean."""
        signs, share = check_signs(type(self), self.pass_signs()), self.share()
        if len(signs) > 1 and self.model is not None:
            self._check_trained(self.model)
        statistics = RunningStatistics(self.model) if self.bn_stats != "both" and self.model is not None else None
        importance: Sequence[Any] = (1.0,)
        _without_autograd(self.before_loop, entries)
        earlier = gradients.set_aside(self._parameters(), self._run.zeros)
        try:
            self._save(entries)
            for index, sign in enumerate(signs):
                part = self._pass(index, sign, index == len(signs) - 1, share, self.weigher(index))
                written, norms = self._move(part, entries)
                if index > 0:
                    gradients.scale(self._parameters(), importance[index - 1] / importance[index])
                if part.last:
                    earlier = self._carry(earlier, entries, importance[index])
                with statistics.kept() if statistics and (self.bn_stats == "none" or index > 0) else nullcontext():
                    yield from self._watched(part)
                importance = part.importance = tuple(self.pass_weights(len(signs), share))
                if share is not None and index == 0:
                    share.check_processes(entries[0].weight.device)
                check_still(self._run.saved[0], written, norms, lambda i: self._name_of(entries[i].parameter))
                _without_autograd(self.after_pass, part, entries)
        finally:
            self._restore()
        gradients.scale(self._parameters(), importance[-1])
        gradients.add(earlier)
        _without_autograd(self.after_loop, entries)

    def _pass(self, index: int, sign: int, last: bool, *how: Any) -> Pass:
        part = Pass(index, sign, last, *how)
        part.cost *= self.processes_per_minibatch
        return part

    def _watched(self, part: Pass) -> Iterator[Pass]:
        self._run.watch.start_pass(self._parameters())
        yield part
        self._run.watch.end_pass(self._name_of)

    def _carry(self, earlier: Gradients, entries: list[Entry], weight: Any) -> Gradients:
        """Before the last pass, of that weight: adds the gradients of earlier loops; gives those to add after it."""
        carried = self.carry_over(earlier)
        if carried is None:
            return earlier
        carried = [(p, gradient / weight) for p, gradient in carried]
        gradients.add(carried)
        known = {id(p): local(gradient) for p, gradient in carried}
        for entry in entries:
            entry.earlier = known.get(id(entry.parameter))
        return []

    def _check_trained(self, model: nn.Module) -> None:
        trained = tuple(id(p) for p in model.parameters() if p.requires_grad)
        if trained != self._run.trained:  # also where parameters thaw, or a part of the model is replaced
            check_all_in_groups(model, self._parameters())
            self._run.trained = trained

    @torch.no_grad()
    def _save(self, entries: list[Entry]) -> None:
        weights = [entry.weight for entry in entries]
        if not _same_layout(self._run.buffers, weights):
            check_apart(entries, self._name_of)
            with torch.inference_mode(False):  # they outlive it, as around samples()
                self._run.buffers = [torch.empty_like(p) for p in weights]
        torch._foreach_copy_(self._run.buffers, weights)
        for entry, buffer in zip(entries, self._run.buffers, strict=True):
            entry.saved = buffer
        self._run.saved = weights, self._run.buffers  # from here on there is something to restore

    @torch.no_grad()
    def _move(self, part: Pass, entries: list[Entry]) -> tuple[list[int], list[Tensor] | None]:
        """Moves the weights; gives what :func:`check_still` compares with: how often each was written to, its norm."""
        run, weights = self._run, self._run.saved[0]
        self.perturb(part, entries)
        self._drop_stale_copies()
        run.moved = part.sign != 0
        return [w._version for w in weights], norms_of(weights) if run.first_loop else None

    def _drop_stale_copies(self) -> None:
        torch.clear_autocast_cache()  # autocast would go on using its casts of the weights as they were,
        parametrize._cache.clear()  # parametrize.cached() what it made of them,
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
            RuntimeError: without a closure, no pass loop was completed since the last step or ``zero_grad()``. (That is
                allowed while every learning rate is 0, as when a checkpointing library initialises the state by an
                empty step.) Or no pass had a ``backward()``. (That is not checked where the closure
                returned None.)

        Where the base optimizer fails or is interrupted, ``step()`` may be called again; what it has changed before
        that stays changed, as with any optimizer. Else call ``zero_grad()`` before the next loop.

        With a closure:

        >>> from seqssgd.optim import SymmetricNoise, noise_groups
        >>> model, inputs = torch.nn.Linear(4, 1), torch.ones(8, 4)
        >>> optimizer = SymmetricNoise(torch.optim.Adam(noise_groups(model, noise=0.3), lr=1e-3))
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = model(inputs).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> optimizer.step(closure).shape
        torch.Size([])
        """
        self._require_idle("step")
        if not self._run.noisy:
            self.check_groups()  # somebody may have set a level
        if self._run.phase == "broken":
            raise RuntimeError(
                "step() after a pass loop, or a step(), that was left half-way; call zero_grad() and run a whole loop "
                "over passes()"
            )
        loss = None if closure is None else self._loss_of(closure)
        empty = self._run.phase == "idle" and not self._learns()
        if not empty:
            self._check_passes(whole=closure is None or loss is not None)
            self._run.watch.check_outside(self._name_of)
            self._prepare()
        self._run.stepping = True
        try:
            self.base.step()
        finally:
            self._run.stepping = False
        if self._run.phase == "prepared" and any(g.get(self.level_key) for g in self.param_groups):
            self.draws += 1
        self._run.phase, self._run.heard = "idle", False
        if not empty:
            self.after_step()
        self._note_position()
        return loss

    def _prepare(self) -> None:
        """Calls before_step, which may change gradients: once, should the base optimizer fail and be stepped again."""
        run = self._run
        if run.phase == "prepared":
            return
        try:
            self.before_step()
        except BaseException:
            if run.phase == "complete":
                run.phase = "broken"
                run.watch.condemn(self._parameters())
            raise
        if run.phase == "complete":
            run.phase = "prepared"

    def _learns(self) -> bool:
        return any(group.get("lr", 1) for group in self.param_groups)

    def _check_passes(self, whole: bool) -> None:
        """Checks that the gradients to step on are those of a loop over passes; ``whole``: with a ``backward()``."""
        if self._run.noisy and self._run.phase == "idle":
            raise RuntimeError(
                "step() without passes(): there was no loop over them since the last step or zero_grad(), so that the "
                "gradients are not those at the perturbed weights. Write\n"
                "    for _ in optimizer.passes():\n        loss_fn(model(inputs), targets).backward()\n"
                f"    optimizer.step()\n{IN_A_TRAINER}"
            )
        if self._run.noisy and whole and not self._run.heard and self._learns():
            check_gradients(self._parameters())

    def _loss_of(self, closure: Callable[[], Any]) -> Any:
        if self._run.phase in ("complete", "prepared"):  # a trainer's
            with torch.enable_grad():
                loss = closure()
            self._run.watch.check_outside(self._name_of)
            return loss
        if self._run.noisy:
            check_whose(closure)
        return self._closure_passes(closure)

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
                if part.share is not None:
                    raise RuntimeError("a closure cannot say how its minibatch splits: use passes() and part.take()")
                losses.append(without_graph(loss))
        finally:
            self._run.closure = False
        return None if any(loss is None for loss in losses) else sum(losses) / len(losses)


@torch.no_grad()  # no `with` in the generator: an interrupt at its end would leave autograd off
def _without_autograd(hook: Callable[..., None], *args: Any) -> None:
    hook(*args)


def _same_layout(buffers: list[Tensor], weights: list[Tensor]) -> bool:
    return len(buffers) == len(weights) and all(
        b.shape == w.shape and b.stride() == w.stride() and b.dtype == w.dtype and b.device == w.device
        for b, w in zip(buffers, weights, strict=True)
    )
