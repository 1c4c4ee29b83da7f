"""What must not be done with an optimizer that is under noise: step it past the one that wraps it."""

import gc
import weakref
from typing import Any

import torch
from torch.optim import Optimizer

from .state import StepState

_guards: "weakref.WeakKeyDictionary[Optimizer, BaseGuard]" = weakref.WeakKeyDictionary()


class BaseGuard:
    """A hook of the base: a ``step()`` of its own, by which each step would have the noise of the one before.

    One serves a base, whatever wraps it. A base that nothing wraps any more, and a copy, are guarded by nobody.
    """

    def __init__(self) -> None:
        self.wrappers: weakref.WeakKeyDictionary[StepState, str] = weakref.WeakKeyDictionary()

    @torch._disable_dynamo
    def __call__(self, base: Optimizer, *_: Any) -> None:
        if not self._stepped_past() or not any(group.get("lr", 1) for group in base.param_groups):
            return
        gc.collect()  # a wrapper that was dropped may still be there, in a circle with its scheduler
        if (name := self._stepped_past()) is not None:
            raise RuntimeError(
                f"step() of {type(base).__name__} past the {name} that wraps it: the noise would be the same in every "
                f"step. Step the {name}, and give it, not {type(base).__name__}, to gradient scalers and trainers"
            )

    def _stepped_past(self) -> str | None:
        """The wrapper that should have stepped."""
        states = list(self.wrappers.items())
        return None if any(s.stepping for s, _ in states) else next((name for s, name in states if s.noisy), None)


def guard_base(base: Optimizer, state: StepState, name: str) -> None:
    """Guards ``base``, and what it puts together, for as long as there is ``state``, that of the wrapper ``name``."""
    for each in (base, *getattr(base, "optimizers", ())):
        if not hasattr(each, "_optimizer_step_pre_hooks"):  # wrappers such as Lookahead never call Optimizer.__init__
            continue
        if each not in _guards:
            _guards[each] = BaseGuard()
            each.register_step_pre_hook(_guards[each])
        _guards[each].wrappers[state] = name
