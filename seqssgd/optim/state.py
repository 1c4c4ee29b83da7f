"""Where an optimizer stands between and within its steps."""

from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from .entry import Entry
from .gradients import Zeros
from .guards import GradientWatch

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


class StepState:
    """All that changes from pass to pass and from step to step, whatever the method. (A method's own it keeps itself.)

    It is one object, changed in place, because trainers wrap an optimizer in proxies: some run its methods with
    themselves as ``self``, others copy its attributes. Whichever of them starts the passes, the one that steps knows.

    Attributes:
        phase: of the pass loop: ``"idle"`` (none since the last step), ``"running"``, ``"complete"``, ``"broken"``;
            ``"prepared"`` when ``before_step`` has been called on it and the base has not stepped yet.
        draws: steps with noise so far, the position in the stream of perturbations.
        noisy: whether any weights have, had or are going to have a level above 0.
        heard: whether a pass since the last step has had a ``backward()``.
        continues: whether the loop adds to those of other loops of one step.
        stepping: whether the base is being stepped by the optimizer that wraps it.
        closure: whether the passes under way are those of ``step(closure)``.
        saved: the weights and their copies, while they are moved.
        entries: the weights that are moved, as they were when the loop began; None outside of it.
        moved: whether the weights are at another place than their own just now.
        first_loop: whether no loop with noise has been completed yet: in that one the weights' values are checked too.
        sampling: whether they were moved in order to be evaluated there.
        training: whether the model was in training mode when the loop began.
        trained: the parameters of the model that were trained when it was last checked that all are in groups.
        buffers: the one extra copy of the weights, reused from step to step.
        watch: knows where the gradients come from.
        zeros: knows which of them are 0.
        gathering: the FSDP2 modules that must gather anew when weights move.
    """

    def __init__(self) -> None:
        self.phase: Literal["idle", "running", "complete", "prepared", "broken"] = "idle"
        self.draws = 0
        self.noisy = self.heard = False
        self.forget()

    def forget(self) -> None:
        """Drops what belongs to this process alone and is made anew in the next pass."""
        self.closure = self.continues = self.stepping = False
        self.watch, self.zeros = GradientWatch(), Zeros()
        self.saved: tuple[list[Tensor], list[Tensor]] = [], []
        self.entries: list[Entry] | None = None
        self.moved = self.sampling = self.training = False
        self.first_loop = True
        self.trained: tuple[int, ...] = ()
        self.buffers: list[Tensor] = []
        self.gathering: list[FSDPModule] = []

    @property
    def loop(self) -> str:
        """The loop that is running, as errors call it."""
        return "samples()" if self.sampling else "passes()"

    def __getstate__(self) -> dict[str, Any]:  # for pickle and copy.deepcopy
        return {key: value for key, value in self.__dict__.items() if isinstance(value, (int, str))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.phase == "complete":
            self.phase, self.heard = "idle", False  # copies of parameters have no gradients to step on
        self.forget()
