"""What must not be done with a model while its weights are perturbed: saving it, and evaluating it."""

import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .guards import remove_hooks
from .state import StepState

# Wrappers of the module that is trained, and where they have it.
_WRAPPERS = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}


class ModelGuard:
    """A hook of the model that is trained: an error wherever perturbed weights would be taken for its own.

    A copy of the model, made or read from a file, is guarded by nobody.
    """

    def __init__(self, state: StepState):
        self._state = weakref.ref(state)

    def _refuse(self, action: str, otherwise: str = "") -> None:
        state = self._state()
        if state is not None and state.moved:
            raise RuntimeError(
                f"cannot {action} the model inside a loop over {state.loop}: its weights are perturbed there. "
                f"Do it before the loop, or after step(){otherwise}"
            )

    def __reduce__(self) -> Any:
        self._refuse("copy or save")
        # What does nothing and returns None, of the standard library: a model that is saved whole needs no seqssgd.
        return getattr, (nullcontext(), "__exit__")


class SavingGuard(ModelGuard):
    """Refuses to save or copy the model; called where a module's ``state_dict()`` is taken."""

    def __call__(self, module: nn.Module, prefix: str, keep_vars: bool) -> None:
        self._refuse("take the state dict of", "; for functional_call take dict(model.named_parameters())")


class EvaluationGuard(ModelGuard):
    """Refuses to evaluate the model; called before the forward of a module."""

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        if torch.compiler.is_compiling() or module.training:
            return
        state = self._state()
        if state is not None and state.training and not state.sampling:  # some train in evaluation mode
            self._refuse("evaluate", "; if that is a term of the loss, make the optimizer without model=")


def guard(model: nn.Module, state: StepState, parameters: Iterable[Tensor]) -> None:
    """Guards ``model``, and its modules that hold some of ``parameters``, for as long as there is ``state``.

    Raises:
        TypeError: ``model`` is none.
        ValueError: it has none of the parameters.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r}: give the module that is trained")
    own = {id(p) for p in parameters}
    holders = [m for m in model.modules() if any(id(p) in own for p in m.parameters(recurse=False))]
    if not holders:
        raise ValueError(f"model={type(model).__name__} has none of the optimizer's parameters; give the one it trains")
    handles = []
    for module in {model: None, **dict.fromkeys(holders)}:
        if not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
            handles.append(module.register_state_dict_pre_hook(SavingGuard(state)))
    while not isinstance(model, torch.jit.ScriptModule):
        handles.append(model.register_forward_pre_hook(EvaluationGuard(state)))
        inner = model._modules.get(_WRAPPERS.get(type(model).__name__, ""))
        if inner is None:
            break
        model = inner
    weakref.finalize(state, remove_hooks, handles).atexit = False
