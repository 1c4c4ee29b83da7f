"""The multi-pass protocol: an optimizer that looks at the loss from several points around the weights.

S-SGD, one-sided noise, SAM and their relatives differ in where they take gradients, not in how they step. Here is
what they share: a loop over passes that moves the weights, brings them back exactly, averages the gradients, and
then lets any ``torch.optim`` optimizer step from the untouched weights.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from .batchnorm import BNStats, RunningStatistics
from .groups import check_level
from .halves import Halves
from .part import Pass
from .sharding import gathering_modules, local

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


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
    draws: int  # complete steps under noise: the position in the stream of perturbations
    _phase: Literal["idle", "running", "broken", "complete"]  # of the pass loop that belongs to the coming step

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
        self.__setstate__({"base": base, "model": model, "bn_stats": bn_stats, "draws": 0, "_phase": "idle"})
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
        self._phase = "running"
        try:
            yield from self._passes()
            self._phase = "complete"
        finally:  # also a second chance, should Ctrl-C hit the restoring itself
            self._restore()
            if self._phase == "running":
                self._phase = "broken"

    def _passes(self) -> Iterator[Pass]:
        self._check_groups()
        weights = [p for _, p in self._perturbed()]
        self._gathering = gathering_modules(self.model, weights)
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
        if not _same_layout(self._buffers, weights):
            self._buffers = [torch.empty_like(p) for p in weights]
        torch._foreach_copy_(self._buffers, weights)
        self._saved = weights, self._buffers  # from here on there is something to restore

    @torch.no_grad()
    def _move(self, part: Pass) -> None:
        self._perturb(part, *self._saved)
        self._drop_stale_copies()

    @torch.no_grad()
    def _finish_pass(self, part: Pass) -> None:
        self._finish(part, *self._saved)

    def _drop_stale_copies(self) -> None:
        torch.clear_autocast_cache()  # autocast would go on using its casts of the weights as they were,
        for module in self._gathering:  # and FSDP2 what it gathered for a forward without a backward
            module.reshard()

    @torch.no_grad()
    def _restore(self) -> None:
        weights, saved = self._saved
        if weights:
            torch._foreach_copy_(weights, saved)
            self._drop_stale_copies()
            self._saved = [], []

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
                once per pass, and may call ``zero_grad()`` itself.

        Returns:
            the closure's loss, averaged over the passes; None without a closure.

        Raises:
            RuntimeError: without a closure, if no pass loop was completed since the last step. (Allowed while every
                learning rate is 0, as when a checkpointing library initialises the state by an empty step.)
        """
        self._require_idle("step")
        loss = None if closure is None else self._closure_passes(closure)
        if self._phase == "broken":
            raise RuntimeError("step() after a pass loop that was left half-way; run a whole loop over passes() first")
        if self._phase == "idle" and any(g.get(self.level_key) and g.get("lr", 1) for g in self.param_groups):
            raise RuntimeError(
                "step() without passes(): the gradients were taken at the unperturbed weights. Write\n"
                "    for _ in optimizer.passes():\n        loss_fn(model(inputs), targets).backward()\n"
                "    optimizer.step()"
            )
        self.base.step()
        if self._phase == "complete" and any(g.get(self.level_key) for g in self.param_groups):
            self.draws += 1
        self._phase = "idle"
        self._stepped()
        return loss

    def _closure_passes(self, closure: Callable[[], Any]) -> Any:
        """The closure may clear the gradients or add to them; either way each pass starts from the same ones."""
        earlier = self._take_gradients()
        summed_loss, passes = 0.0, 0
        for part in self.passes():
            summed = self._take_gradients()
            self._add_gradients([(p, gradient.clone()) for p, gradient in earlier])
            with torch.enable_grad():
                loss = closure()
            self._add_gradients(summed)
            if part._share is not None:
                raise RuntimeError("a closure cannot say how its minibatch splits: use passes() and part.take()")
            summed_loss, passes = summed_loss + (loss.detach() if isinstance(loss, Tensor) else loss), passes + 1
        return summed_loss / passes

    def _take_gradients(self) -> list[tuple[Tensor, Tensor]]:
        taken = [(p, p.grad) for p in self._parameters() if p.grad is not None]
        for p, _ in taken:
            p.grad = None
        return taken

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients, as ``torch.optim.Optimizer.zero_grad`` does."""
        self.base.zero_grad(set_to_none)

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
        return self.base.defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to the base optimizer; its level is 0 unless it has one."""
        self._require_idle("add a parameter group")
        self._check_group(param_group, len(self.param_groups))
        self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state dict plus ``"perturbation"``, the position in the stream of noise."""
        self._require_idle("take the state dict")
        return {**self.base.state_dict(), "perturbation": {"draws": self.draws}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads what :meth:`state_dict` gave, or the state of a bare base optimizer (the levels then stay)."""
        self._require_idle("load a state dict")
        own = [dict(group) for group in self.param_groups]
        self.base.load_state_dict({key: value for key, value in state_dict.items() if key != "perturbation"})
        for group, entries in zip(self.param_groups, own, strict=True):
            for key, value in entries.items():
                group.setdefault(key, value)
        self.draws = state_dict.get("perturbation", {}).get("draws", 0)
        self._phase = "idle"

    def __getstate__(self) -> dict[str, Any]:  # for pickle and copy.deepcopy
        self._require_idle("copy the optimizer")
        # Hooks and a scheduler's patch of step() belong to this instance; torch's optimizers drop them too.
        skipped = ("step", "_saved", "_buffers", "_gathering")
        return {k: v for k, v in self.__dict__.items() if k not in skipped and not k.startswith("_optimizer_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._saved: tuple[list[Tensor], list[Tensor]] = [], []  # the weights and their copies, while moved
        self._buffers: list[Tensor] = []  # the one extra copy of the weights, reused from step to step
        self._gathering: list[FSDPModule] = []
        for name in ("state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post"):
            setattr(self, f"_optimizer_{name}_hooks", getattr(self.base, f"_optimizer_{name}_hooks"))

    # ---- checks ----------------------------------------------------------------------------------------------------

    def _require_idle(self, action: str) -> None:
        if self._phase == "running":
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
