"""What must not be done with a model while its weights are perturbed: saving it, and evaluating it."""

import weakref
from typing import Any

import torch
from torch import nn

from .state import StepState


class ModelGuard:
    """A hook of the model that is trained: an error wherever perturbed weights would be taken for its own.

    A copy of the model, made or read from a file, is guarded by nobody.
    """

    def __init__(self, state: StepState):
        self._state = weakref.ref(state)

    def _refuse(self, action: str) -> None:
        state = self._state()
        if state is not None and state.moved:
            raise RuntimeError(
                f"cannot {action} the model inside a loop over passes(): its weights are perturbed there. "
                "Do it before the loop, or after step()"
            )

    def __reduce__(self) -> Any:
        self._refuse("copy or save")
        return _nobody, ()


class SavingGuard(ModelGuard):
    def __call__(self, module: nn.Module, prefix: str, keep_vars: bool) -> None:
        self._refuse("take the state dict of")


class EvaluationGuard(ModelGuard):
    def __call__(self, module: nn.Module, inputs: Any) -> None:
        if torch.compiler.is_compiling() or module.training:
            return
        state = self._state()
        if state is not None and not state.sampling and (state.training or not torch.is_grad_enabled()):
            self._refuse("evaluate")


def _nobody() -> "_Nobody":
    return _Nobody()


class _Nobody:
    """What a guard is in a copy of its model."""

    def __call__(self, *_: Any) -> None:
        pass


def guard(model: nn.Module, state: StepState) -> None:
    """Guards ``model`` for as long as there is ``state``."""
    if isinstance(model, torch.jit.ScriptModule):  # takes no hooks
        return
    handles = [
        model.register_state_dict_pre_hook(SavingGuard(state)),
        model.register_forward_pre_hook(EvaluationGuard(state)),
    ]
    weakref.finalize(state, _remove, handles).atexit = False


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
