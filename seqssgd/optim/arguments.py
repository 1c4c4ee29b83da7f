"""What people give a method, or write in one: each with the mend, where Python would count arguments."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import LBFGS, Optimizer


def check_arguments(method: type, args: Sequence[Any]) -> None:
    """Checks the arguments that were not given by name: the optimizer, and what else ``method`` takes there.

    Raises:
        TypeError: a class in place of an optimizer, several optimizers, a setting without its name.
    """
    name = method.__name__
    classes = [thing for thing in args if isinstance(thing, type)]
    if classes:
        raise TypeError(
            f"{name} wraps a torch.optim optimizer, not its class: {name}({classes[0].__name__}(groups, lr=...), ...)"
        )
    if len(args) > 1 and all(isinstance(thing, Optimizer) for thing in args):
        names = ", ".join(f"{type(optimizer).__name__}(...)" for optimizer in args)
        raise TypeError(f"{name} takes one optimizer; put several in Together: {name}(Together({names}), ...)")
    parameters = list(inspect.signature(method.__init__).parameters.values())[1:]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return
    most = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    if len(args) > most:
        settings = ", ".join(f"{p.name}=..." for p in parameters if p.kind is p.KEYWORD_ONLY)
        raise TypeError(f"{name} takes one optimizer and settings by name ({settings}), not {args[most]!r} too")


def check_signs(method: type, signs: Any) -> Sequence[int]:
    """What ``pass_signs`` of ``method`` gave.

    Raises:
        ValueError: it is no sequence, or one without a pass.
    """
    if not isinstance(signs, Sequence) or not signs:
        raise ValueError(
            f"{method.__name__}.pass_signs() gave {signs!r}; it must give a sign for each pass of a step, such as "
            "(+1, -1), and 0 for one at the weights themselves"
        )
    return signs


def check_base(method: type, base: Any) -> None:
    """Checks that ``method`` can wrap ``base``.

    Raises:
        TypeError: it is no optimizer, or one that needs a closure of its own (LBFGS), or is under a method already.
    """
    if not isinstance(base, Optimizer):
        raise TypeError(f"{method.__name__} wraps a torch.optim optimizer, not {torch.typename(base)}")
    if isinstance(base, LBFGS):
        raise TypeError("LBFGS evaluates its closure as often as it likes; use a first-order optimizer")
    if hasattr(base, "passes"):
        raise TypeError(f"{type(base).__name__} is already a multi-pass optimizer; wrap the optimizer inside it")
