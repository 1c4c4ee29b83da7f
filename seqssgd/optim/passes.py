"""The multi-pass protocol: an optimizer that looks at the loss from several points around the weights.

S-SGD, one-sided noise, SAM and their relatives differ in where they take gradients, not in how they step. Here is
what they share: a loop over passes that moves the weights, brings them back exactly, averages the gradients, and
then lets any ``torch.optim`` optimizer step from the untouched weights.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from .batchnorm import BNStats, RunningStatistics
from .describe import summary_of_groups
from .groups import check_level, check_trainable
from .halves import Halves
from .part import Pass
from .sharding import gathering_modules, local
from .state import StepState


class MultiPassOptimizer(Optimizer):
    """Wraps a ``torch.optim`` optimizer so that its step uses gradients from several passes.

    It is an :class:`torch.optim.Optimizer` whose ``param_groups``, ``state`` and ``defaults`` *are* the base's, so
    schedulers, ``add_param_group``, gradient scalers and checkpoints see one optimizer. A method says in
    :meth:`_signs` how many passes a step has and in :meth:`_perturb` where they are; if need be, in
    :meth:`_pass_weights` how much each counts and in :meth:`_finish` what becomes of its gradient. The rest is here.

    Args:
        base: the optimizer that steps. Its groups' ``"noise"`` entry is the noise level (absent: 0); see
            :func:`seqssgd.optim.noise_groups`.
        model: the module that is trained. Needed for ``bn_stats`` and with FSDP2, else optional.
        bn_stats: which passes update batch-norm running statistics: ``"both"`` (all of them), ``"first"``, ``"none"``.

    Raises:
        TypeError: ``base`` is no optimizer, or one that needs its own closure (LBFGS).
        ValueError: a level is negative or not finite; weights under noise are sparse or complex.
    """

    level_key = "noise"  # the group entry that says how far the weights are moved; 0 leaves them alone
    base: Optimizer
    model: nn.Module | None
    bn_stats: BNStats
    _run: StepState

    def __init__(self, base: Optimizer, *, model: nn.Module | None = None, bn_stats: BNStats = "both"):
        if not isinstance(base, Optimizer):
            raise TypeError(f"{type(self).__name__} wraps a torch.optim optimizer, not {torch.typename(base)}")
        if isinstance(base, LBFGS):
            raise TypeError("LBFGS evaluates its closure as often as it likes; use a first-order optimizer")
        if isinstance(base, MultiPassOptimizer):
            raise TypeError(f"{type(base).__name__} is already a multi-pass optimizer; wrap the optimizer inside it")
        if bn_stats not in get_args(BNStats):
            raise ValueError(f'bn_stats must be "both", "first" or "none", not {bn_stats!r}')
        if bn_stats != "both" and model is None:
            raise ValueError(f"bn_stats={bn_stats!r} needs model=, the module whose statistics are kept")
        # Optimizer.__init__ would make groups of its own; __setstate__ sets up all else that an Optimizer has.
        self.__setstate__({"base": base, "model": model, "bn_stats": bn_stats, "_run": StepState()})
        self._check_groups()

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
        """Changes, after ``part``, what is in ``.grad``: the weighted sum over this step's passes so far."""

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

    def passes(self) -> Iterator[Pass]:
        """Yields one :class:`Pass` after another with the weights moved; call ``backward()`` in each.

        After the loop the weights are bit for bit what they were, and ``.grad`` holds the mean over the passes,
        ready for clipping and :meth:`step`. Gradients that were there before are kept and added to. A ``break``,
        an exception or Ctrl-C inside the loop brings the weights back too.
        """
        self._require_idle("start another pass loop")
        return self._guarded_passes()

    def _guarded_passes(self) -> Iterator[Pass]:
        self._require_idle("start another pass loop")
        self._run.phase = "running"
        try:
            yield from self._passes()
            self._run.phase = "complete"
        finally:  # also a second chance, should Ctrl-C hit the restoring itself
            self._restore()
            if self._run.phase == "running":
                self._run.phase = "broken"

    def _passes(self) -> Iterator[Pass]:
        self._check_groups()
        check_trainable(self.param_groups, self.level_key)
        weights = [p for _, p in self._perturbed()]
        self._run.gathering = gathering_modules(self.model, weights)
        signs = self._signs() if weights else (0,)
        share = self._share() if weights else None
        keeps = bool(weights) and self.bn_stats != "both"
        statistics = RunningStatistics(self.model) if keeps and self.model is not None else None
        importance: Sequence[float] = (1.0,)
        earlier = self._set_gradients_aside() if weights else []
        try:
            if weights:
                self._save(weights)
            for index, sign in enumerate(signs):
                weigh = self._weigher(index) if weights else None
                part = Pass(index, sign, index == len(signs) - 1, share, weigh)
                if weights:
                    self._move(part)
                if index > 0:  # so that the sum, times the last pass's weight, is the weighted mean
                    self._scale_gradients(importance[index - 1] / importance[index])
                with statistics.kept() if statistics and (self.bn_stats == "none" or index > 0) else nullcontext():
                    yield part
                if weights:
                    importance = self._pass_weights(len(signs), share)
                    self._finish_pass(part)
        finally:
            self._restore()
        self._scale_gradients(importance[-1])
        self._add_gradients(earlier)

    @torch.no_grad()
    def _save(self, weights: list[Tensor]) -> None:
        weights = [local(p) for p in weights]
        if not _same_layout(self._run.buffers, weights):
            self._run.buffers = [torch.empty_like(p) for p in weights]
        torch._foreach_copy_(self._run.buffers, weights)
        self._run.saved = weights, self._run.buffers  # from here on there is something to restore

    @torch.no_grad()
    def _move(self, part: Pass) -> None:
        self._perturb(part, *self._run.saved)
        self._drop_stale_copies()

    @torch.no_grad()
    def _finish_pass(self, part: Pass) -> None:
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

    def _perturbed(self) -> list[tuple[dict[str, Any], Tensor]]:
        """The weights that are moved, in order, each with its group."""
        groups = [group for group in self.param_groups if group.get(self.level_key)]
        return [(group, p) for group in groups for p in group["params"] if p.requires_grad]

    # ---- gradients -------------------------------------------------------------------------------------------------

    def _parameters(self) -> Iterator[Tensor]:
        for group in self.param_groups:
            yield from group["params"]

    @torch.no_grad()
    def _set_gradients_aside(self) -> list[tuple[Tensor, Tensor]]:
        earlier = []
        for p in self._parameters():
            if p.grad is not None:
                earlier.append((p, p.grad.clone()))
                p.grad.zero_()  # in place: data-parallel buckets and captured graphs hold on to its address
        return earlier

    @torch.no_grad()
    def _add_gradients(self, earlier: list[tuple[Tensor, Tensor]]) -> None:
        for p, gradient in earlier:
            if p.grad is None:
                p.grad = gradient
            else:
                p.grad.add_(gradient)

    @torch.no_grad()
    def _scale_gradients(self, factor: float) -> None:
        gradients = [p.grad for p in self._parameters() if p.grad is not None] if factor != 1 else []
        if gradients:
            torch._foreach_zero_(gradients) if factor == 0 else torch._foreach_mul_(gradients, factor)

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
            RuntimeError: without a closure, if no pass loop was completed since the last step. (Allowed while every
                learning rate is 0, as when a checkpointing library initialises the state by an empty step.)
        """
        self._require_idle("step")
        if self._run.phase == "broken":
            raise RuntimeError(
                "step() after a pass loop that was left half-way; call zero_grad() and run a whole loop over passes()"
            )
        loss = None
        if closure is not None and self._run.phase == "complete":
            with torch.enable_grad():
                loss = closure()
        elif closure is not None:
            loss = self._closure_passes(closure)
        empty = self._run.phase == "idle" and not any(g.get("lr", 1) for g in self.param_groups)
        if self._run.phase == "idle" and not empty and any(g.get(self.level_key) for g in self.param_groups):
            raise RuntimeError(
                "step() without passes(): the gradients were taken at the unperturbed weights. Write\n"
                "    for _ in optimizer.passes():\n        loss_fn(model(inputs), targets).backward()\n"
                "    optimizer.step()"
            )
        self.base.step()
        if self._run.phase == "complete" and any(g.get(self.level_key) for g in self.param_groups):
            self.draws += 1
        self._run.phase = "idle"
        if not empty:
            self._stepped()
        self._note_position()
        return loss

    def _closure_passes(self, closure: Callable[[], Any]) -> Any:
        """The closure may clear the gradients or add to them; either way each pass starts from the same ones."""
        earlier = self._take_gradients()
        losses = []
        self._run.closure = True
        try:
            for part in self.passes():
                summed = self._take_gradients()
                self._add_gradients([(p, gradient.clone()) for p, gradient in earlier])
                with torch.enable_grad():
                    loss = closure()
                self._add_gradients(summed)
                if part._share is not None:
                    raise RuntimeError("a closure cannot say how its minibatch splits: use passes() and part.take()")
                losses.append(loss.detach() if isinstance(loss, Tensor) else loss)
        finally:
            self._run.closure = False
        return None if any(loss is None for loss in losses) else sum(losses) / len(losses)

    def _take_gradients(self) -> list[tuple[Tensor, Tensor]]:
        taken = [(p, p.grad) for p in self._parameters() if p.grad is not None]
        for p, _ in taken:
            p.grad = None
        return taken

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients, as ``torch.optim.Optimizer.zero_grad`` does."""
        self.base.zero_grad(set_to_none)
        if self._run.phase == "broken":  # nothing is left of the loop that was
            self._run.phase = "idle"

    def train(self) -> None:
        """Hands on to a base optimizer that keeps other weights for training than for evaluation (ScheduleFree)."""
        self._switch("train")

    def eval(self) -> None:
        """As :meth:`train`, for evaluation."""
        self._switch("eval")

    def _switch(self, mode: str) -> None:
        self._require_idle(f"call {mode}()")
        if callable(switch := getattr(self.base, mode, None)):
            switch()

    # ---- one optimizer with the base -------------------------------------------------------------------------------

    # Where torch has attributes there are properties here, as always when one optimizer wraps another.
    @property
    def param_groups(self) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The base optimizer's parameter groups, not copies."""
        return self.base.param_groups

    @property
    def state(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The base optimizer's state; nothing is ever added to it."""
        return self.base.state

    @property
    def defaults(self) -> dict[str, Any]:
        """The base optimizer's defaults."""
        return getattr(self.base, "defaults", {})  # which wrappers such as Lookahead may lack

    def __repr__(self) -> str:
        about = summary_of_groups(self.param_groups, self.level_key)
        return f"{type(self).__name__}({type(self.base).__name__}): {about}"

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to the base optimizer; its level is 0 unless it has one."""
        self._require_idle("add a parameter group")
        self._check_group(param_group, len(self.param_groups))
        self.base.add_param_group(param_group)

    @property
    def draws(self) -> int:
        """How many steps have been taken with noise: the position in the stream of perturbations."""
        return self._run.draws

    @draws.setter
    def draws(self, value: int) -> None:
        self._run.draws = value

    def _position(self) -> dict[str, Any]:
        """Where the method goes on after a restart."""
        return {"draws": self.draws}

    def _go_to(self, position: Mapping[str, Any]) -> None:
        """Goes where :meth:`_position` was; nothing is known: to the beginning."""
        self.draws = position.get("draws", 0)

    def _note_position(self) -> None:
        # In the groups too: torch.distributed.checkpoint keeps of a state dict what belongs to parameters or groups.
        if any(self.level_key in group for group in self.param_groups):
            position = {key: value for key, value in self._position().items() if isinstance(value, int)}
            for group in self.param_groups:
                group["perturbation"] = position

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state dict plus ``"perturbation"``, the position in the stream of noise."""
        self._require_idle("take the state dict")
        self._note_position()
        return {**self.base.state_dict(), "perturbation": self._position()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads what :meth:`state_dict` gave, or the state of a bare base optimizer (the levels then stay)."""
        self._require_idle("load a state dict")
        own = [dict(group) for group in self.param_groups]
        self.base.load_state_dict({key: value for key, value in state_dict.items() if key != "perturbation"})
        position = state_dict.get("perturbation") or self.param_groups[0].get("perturbation", {})
        for group, entries in zip(self.param_groups, own, strict=True):
            for key, value in entries.items():
                group.setdefault(key, value)
        self._go_to(position)
        self._note_position()
        self._run.phase = "idle"

    def __getstate__(self) -> dict[str, Any]:  # for pickle and copy.deepcopy
        self._require_idle("copy the optimizer")
        # Hooks and a scheduler's patch of step() belong to this instance; torch's optimizers drop them too.
        return {k: v for k, v in self.__dict__.items() if k != "step" and not k.startswith("_optimizer_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name in ("state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post"):
            name = f"_optimizer_{name}_hooks"
            if not hasattr(self.base, name):  # wrappers such as Lookahead never call Optimizer.__init__
                setattr(self.base, name, OrderedDict())
            setattr(self, name, getattr(self.base, name))

    # ---- checks ----------------------------------------------------------------------------------------------------

    def _require_idle(self, action: str) -> None:
        if self._run.phase == "running":
            raise RuntimeError(f"cannot {action} inside a loop over passes(): the weights are perturbed there")

    def _check_groups(self) -> None:
        for index, group in enumerate(self.param_groups):
            self._check_group(group, index)

    def _check_group(self, group: dict[str, Any], index: int) -> None:
        check_level(group, self.level_key, index)


def _same_layout(buffers: list[Tensor], weights: list[Tensor]) -> bool:
    return len(buffers) == len(weights) and all(
        b.shape == w.shape and b.stride() == w.stride() and b.dtype == w.dtype and b.device == w.device
        for b, w in zip(buffers, weights, strict=True)
    )
