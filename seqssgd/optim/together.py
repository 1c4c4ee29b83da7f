"""Several optimizers as one."""

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from torch.optim import LBFGS, Optimizer


class Together(Optimizer):
    """Several optimizers, each with parameters of its own, as one: under one noise, one schedule, in one checkpoint.

    For base optimizers that are made for some weights only, as Muon is for matrices. Its groups are those of the
    optimizers, in order; what is added to one of them later on belongs to it too.

    Args:
        optimizers: the optimizers. Each goes on having learning-rate schedulers of its own, if it has any.

    Raises:
        TypeError: one of them is no optimizer, or needs a closure of its own (LBFGS), or is under noise already.
        ValueError: there are none, or several of them would step one parameter.

    >>> from seqssgd.optim import SymmetricNoise, noise_groups
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    >>> matrices, rest = noise_groups(model, noise=0.3)
    >>> both = Together(torch.optim.Muon([matrices], lr=0.02), torch.optim.AdamW([rest], lr=1e-3))
    >>> optimizer = SymmetricNoise(both)
    >>> [(group["noise"], group["lr"]) for group in optimizer.param_groups]
    [(0.3, 0.02), (0.0, 0.001)]
    """

    optimizers: tuple[Optimizer, ...]

    def __init__(self, *optimizers: Optimizer):
        for optimizer in optimizers:
            if not isinstance(optimizer, Optimizer) or isinstance(optimizer, LBFGS):
                raise TypeError(f"Together takes first-order optimizers, not {torch.typename(optimizer)}")
            if hasattr(optimizer, "passes"):
                raise TypeError(f"put the noise around all: {type(optimizer).__name__}(Together(first, second))")
        if not optimizers:
            raise ValueError("Together needs an optimizer or more")
        parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        if len({id(p) for p in parameters}) < len(parameters):
            raise ValueError("a parameter belongs to several of the optimizers; it would be stepped by each")
        self.__setstate__({"optimizers": optimizers})

    # Where torch has attributes there are properties here: the optimizers have the originals.
    @property
    def param_groups(self) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The groups of all optimizers."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The states of all parameters, to read."""
        return dict(chain.from_iterable(optimizer.state.items() for optimizer in self.optimizers))

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of all optimizers, to read; where they differ, those of the first."""
        every = [getattr(each, "defaults", {}) for each in reversed(self.optimizers)]  # wrappers may lack them
        return {k: v for defaults in every for k, v in defaults.items()}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused: say to which optimizer, ``together.optimizers[0].add_param_group(...)``.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("add the group to one of the optimizers: together.optimizers[0].add_param_group(...)")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Steps all of them; a closure is called once, before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients of all."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    @property
    def switches(self) -> bool:
        """Whether one of them has other weights for training than for evaluation."""
        return any(callable(getattr(optimizer, "train", None)) for optimizer in self.optimizers)

    @property
    def train_mode(self) -> bool:
        """Whether all that switch are known to be in training mode; a group's own ``"train_mode"`` goes before."""
        silent = [o for o in self.optimizers if not all("train_mode" in group for group in o.param_groups)]
        return all(getattr(o, "train_mode", not callable(getattr(o, "train", None))) for o in silent)

    def train(self) -> None:
        """Hands on to those that have other weights for training than for evaluation (ScheduleFree)."""
        self._switch("train")

    def eval(self) -> None:
        """As :meth:`train`, for evaluation."""
        self._switch("eval")

    def _switch(self, mode: str) -> None:
        for optimizer in self.optimizers:
            if callable(switch := getattr(optimizer, mode, None)):
                switch()

    def state_dict(self) -> dict[str, Any]:
        """One state dict, as if there were one optimizer; under ``"own"`` what else the state dicts of some contain."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        found: dict[str, Any] = {"state": {}, "param_groups": []}
        own, first = [], 0
        for optimizer in self.optimizers:
            one = dict(optimizer.state_dict())
            found["state"].update({_moved(key, first): value for key, value in one.pop("state").items()})
            groups = one.pop("param_groups")
            for group in groups:
                found["param_groups"].append({**group, "params": [_moved(key, first) for key in group["params"]]})
            own.append(one)
            first += sum(len(group["params"]) for group in groups)
        if any(own):
            found["own"] = own
        for hook in self._optimizer_state_dict_post_hooks.values():
            changed = hook(self, found)
            found = found if changed is None else changed
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads what ``state_dict()`` gave: one state dict, as if there were one optimizer.

        Raises:
            ValueError: other groups than those of these optimizers.
        """
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        groups, state = list(state_dict["param_groups"]), state_dict["state"]
        if len(groups) != len(self.param_groups):
            raise ValueError(f"the state dict has {len(groups)} parameter groups, not {len(self.param_groups)}")
        extras, first = state_dict.get("own", [{}] * len(self.optimizers)), 0
        for optimizer, extra in zip(self.optimizers, extras, strict=True):
            own, groups = groups[: len(optimizer.param_groups)], groups[len(optimizer.param_groups) :]
            keys = [key for group in own for key in group["params"]]
            mine = {_moved(key, -first): state[key] for key in keys if key in state}
            own = [{**group, "params": [_moved(key, -first) for key in group["params"]]} for group in own]
            optimizer.load_state_dict({"state": mine, "param_groups": own, **extra})
            first += len(keys)
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizers": self.optimizers}


def _moved(key: Any, by: int) -> Any:
    """The number of a parameter, counted from another one; distributed checkpoints have names in their place."""
    return key + by if isinstance(key, int) else key
