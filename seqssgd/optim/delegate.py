"""An optimizer that is one with the optimizer it wraps."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Self

from torch import Tensor, nn
from torch.optim import Optimizer

from .arguments import check_arguments, check_base
from .base_guard import guard_base
from .describe import summary_of_groups
from .groups import check_level
from .limits import Range
from .model_guard import guard
from .state import StepState


class DelegatingOptimizer(Optimizer):
    """An :class:`torch.optim.Optimizer` whose ``param_groups``, ``state`` and ``defaults`` *are* those of its base.

    So schedulers, ``add_param_group``, gradient scalers and checkpoints see one optimizer. Whatever it changes later on
    is in ``_run``, which proxies of it share.
    """

    level_key = "noise"  # the group entry that says how far the weights are moved; 0 leaves them alone
    levels = Range(ge=0)  # what it may be
    _usual_level: float | None = None  # of groups that have none
    base: Optimizer
    model: nn.Module | None
    _run: StepState

    def __new__(cls, *args: Any, **_: Any) -> Self:
        cls._check_arguments(args)  # before Python does, which does not name the mend
        return super().__new__(cls)

    def __init__(self, base: Optimizer, **own: Any):
        check_base(type(self), base)
        # Optimizer.__init__ would make groups of its own; __setstate__ sets up all else that an Optimizer has.
        self.__setstate__({"base": base, "_run": StepState(), **own})
        self.check_groups()

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
        self.base.add_param_group(param_group)  # refuses what is no group, and makes lists of what is read only once
        try:
            self._give_usual_level()
            self.check_groups()
        except BaseException:
            self.param_groups.pop()
            raise

    def _set_usual_level(self, level: float) -> None:
        """Gives ``level`` to the groups that have none, those that are added later on too.

        Raises:
            ValueError: as :meth:`check_groups`.
        """
        self._usual_level = level
        self._give_usual_level()
        self.check_groups()

    def _give_usual_level(self) -> None:
        if self._usual_level is not None:  # not in the defaults alone, which wrappers such as Lookahead may lack
            for group in (self.defaults, *self.param_groups):
                group.setdefault(self.level_key, self._usual_level)

    @property
    def draws(self) -> int:
        """How many steps have been taken with noise: the position in the stream of perturbations."""
        return self._run.draws

    @draws.setter
    def draws(self, value: int) -> None:
        self._run.draws = value

    def position(self) -> dict[str, Any]:
        """Where the method goes on after a restart: all of its own that changes from step to step."""
        return {"draws": self.draws}

    def go_to(self, position: Mapping[str, Any]) -> None:
        """Goes where :meth:`position` was; where nothing is known, to the beginning."""
        self.draws = position.get("draws", 0)

    @property
    def level_unit(self) -> str | None:
        """What a level says, for states: that of another unit is refused. None: it is not compared."""
        return None

    def _saved_position(self) -> dict[str, Any]:
        return {**self.position(), **({} if self.level_unit is None else {"unit": self.level_unit})}

    def _check_unit(self, saved: Mapping[str, Any]) -> None:
        own, other = self.level_unit, saved.get("unit")  # which earlier versions did not save
        if own is not None and other is not None and own != other:
            raise ValueError(
                f'the levels of noise of this state (the entries "{self.level_key}" of its groups) are {other}, and of '
                f"this {type(self).__name__} {own}: load it into an optimizer of the method and granularity that it "
                "was saved from"
            )

    def _note_position(self) -> None:
        # In the groups too: torch.distributed.checkpoint keeps of a state dict what belongs to parameters or groups.
        if any(self.level_key in group for group in self.param_groups):
            position = {key: value for key, value in self._saved_position().items() if isinstance(value, int | str)}
            for group in self.param_groups:
                group["perturbation"] = position

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state dict plus ``"perturbation"``, the position in the stream of noise."""
        self._require_idle("take the state dict")
        self._note_position()
        return {**self.base.state_dict(), "perturbation": self._saved_position()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads what :meth:`state_dict` gave, or the state of a bare base optimizer (the levels then stay).

        Raises:
            ValueError: its levels of noise are of another unit, as those of another method may be, or it has another
                number of groups; nothing is loaded.
        """
        self._require_idle("load a state dict")
        saved = state_dict.get("perturbation") or next(iter(state_dict["param_groups"]), {}).get("perturbation", {})
        self._check_unit(saved)
        if (theirs := len(state_dict["param_groups"])) != (ours := len(self.param_groups)):
            raise ValueError(
                f"this state has {theirs} parameter groups and the optimizer {ours}, as noise_groups divides weights "
                "from the rest. To go on from an optimizer over other groups, such as model.parameters(), load it into "
                "one like that, plain, and then optimizer.state.update(plain.state)"
            )
        own = [dict(group) for group in self.param_groups]
        self.base.load_state_dict({key: value for key, value in state_dict.items() if key != "perturbation"})
        for group, entries in zip(self.param_groups, own, strict=True):
            for key, value in entries.items():
                group.setdefault(key, value)
        self.go_to(saved)
        self._note_position()
        self._run.phase = "idle"
        self.check_groups()  # there may be noise now where there was none

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
        guard_base(self.base, self._run, type(self).__name__)
        if self.model is not None:
            guard(self.model, self._run, self._parameters())

    # ---- handed on -------------------------------------------------------------------------------------------------

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients, as ``torch.optim.Optimizer.zero_grad`` does.

        Raises:
            RuntimeError: inside a loop over passes, where those of the passes before would be lost.
        """
        if self._run.noisy and not self._run.closure:
            self._require_idle("clear the gradients")
        self.base.zero_grad(set_to_none)
        zeroed = not set_to_none and type(self.base).zero_grad is Optimizer.zero_grad  # others may do anything
        self._run.zeros.note(self._parameters() if zeroed else ())
        self._run.watch.cleared()
        if self._run.phase in ("broken", "complete", "prepared"):  # nothing is left of the loop that was
            self._run.phase, self._run.heard = "idle", False

    def train(self) -> None:
        """Hands on to a base optimizer that keeps other weights for training than for evaluation (ScheduleFree)."""
        self._switch("train")

    def eval(self) -> None:
        """As :meth:`train`, for evaluation."""
        self._switch("eval")

    def _switch(self, mode: str) -> None:
        if not callable(switch := getattr(self.base, mode, None)) or not getattr(self.base, "switches", True):
            return
        own = getattr(self.base, "train_mode", False)
        if mode == "train" and all(group.get("train_mode", own) for group in self.param_groups):
            return  # nothing to switch, be it within a pass: Hugging Face's Trainer calls train() at every minibatch
        self._require_idle(f"call {mode}()")
        switch()

    # ---- checks ----------------------------------------------------------------------------------------------------

    @classmethod
    def _check_arguments(cls, args: tuple[Any, ...]) -> None:
        """Of those that were not given by name."""
        check_arguments(cls, args)

    def _parameters(self) -> Iterator[Tensor]:
        for group in self.param_groups:
            yield from group["params"]

    def _name_of(self, p: Tensor) -> str:
        """A name for messages: that in the model, where it is known, else what the groups call it."""
        for name, parameter in self.model.named_parameters() if self.model is not None else ():
            if parameter is p:
                return f"'{name}'"
        for index, group in enumerate(self.param_groups):
            names = group.get("param_names") or group.get("layers")
            for place, parameter in enumerate(group["params"]):
                if parameter is p:
                    where = f"'{names[place]}' in parameter" if names else f"parameter {place} of"
                    return f"{where} group {index}, of shape {tuple(p.shape)},"
        return f"a parameter of shape {tuple(p.shape)}"

    def _require_idle(self, action: str) -> None:
        if self._run.phase == "running":
            loop = self._run.loop
            raise RuntimeError(
                f"cannot {action} inside a loop over {loop}: the weights are perturbed there. (If that loop was left "
                f"with its iterator in a variable, `it = optimizer.{loop}`, they stay so until it.close())"
            )

    def check_groups(self) -> None:
        """Refuses groups that do not go with the method. Called at the start, before every loop, and after changes.

        The first call comes before attributes that ``__init__`` sets after ``super().__init__()``.

        Raises:
            ValueError: as :meth:`check_group`.
        """
        for index, group in enumerate(self.param_groups):
            self.check_group(group, index)
        key, groups = self.level_key, self.param_groups
        self._run.noisy = self._run.noisy or any(g.get(key) or g.get(f"initial_{key}") for g in groups)
        if self._run.noisy:
            self._run.watch.cover(self._parameters())

    def check_group(self, group: dict[str, Any], index: int) -> None:
        """Refuses a parameter group, that of number ``index``.

        Raises:
            ValueError: its level is negative or not finite, or weights under noise are sparse or complex.
        """
        check_level(group, self.level_key, index)
