"""Where a run is."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Progress:
    """Where a run is: plain numbers, all in the checkpoint."""

    step: int = 0
    epoch: int = 0  # whole epochs done
    position: int = 0  # steps done in the epoch after them
    passes: float = 0  # forward-backward passes, counted in whole minibatches
    units: float = 0  # tokens (or the like) of training data read by this process
    nonfinite: int = 0  # steps skipped
    nonfinite_in_row: int = 0
    losses: list = field(default_factory=lambda: [0.0, 0])  # sum and number since the last log line
    epoch_losses: list = field(default_factory=lambda: [0.0, 0])
    curvature: dict = field(default_factory=dict)  # by name the sum and number of estimates since the last log line
    seconds: float = 0.0
    training_seconds: float = 0.0  # of these, those spent on steps
    evaluated_step: int = -1
    final: dict = field(default_factory=dict)  # metrics of the last evaluation
    best: dict = field(default_factory=dict)  # metrics of the best of all, with its step and epoch
    patience_best: float | None = None  # the best value of scheduled evaluations, which alone patience is judged by
    worse_in_row: int = 0  # of these, since the best one
    stopped_early: bool = False

    @property
    def epoch_of_step(self) -> int:
        """The epoch, counted from one, that the last step belongs to."""
        return self.epoch + (self.position > 0)

    def step_done(self, loss: float, passes: float, stepped: bool) -> None:
        """Counts a step; one that was skipped (not ``stepped``) has its place too."""
        self.step, self.position, self.passes = self.step + 1, self.position + 1, self.passes + passes
        self.nonfinite_in_row = 0 if stepped else self.nonfinite_in_row + 1
        self.nonfinite += not stepped
        if math.isfinite(loss):
            for sums in (self.losses, self.epoch_losses):
                sums[:] = sums[0] + loss, sums[1] + 1

    def epoch_done(self) -> None:
        """Counts an epoch."""
        self.epoch, self.position, self.epoch_losses = self.epoch + 1, 0, [0.0, 0]

    def evaluated(self, metrics: Mapping[str, float], best: tuple[str, str] | None, scheduled: bool) -> bool:
        """Takes in an evaluation; whether it is the best of all.

        Evaluations that are only due to a limit, and not ``scheduled``, neither try the patience nor renew it: training
        stops where it would have stopped without them.

        Args:
            metrics: that it gave.
            best: the metric that the best evaluation is chosen by, and ``"min"`` or ``"max"``; None: it is the last.
            scheduled: whether it is due by ``training.evaluate_every``.

        Raises:
            ValueError: the metric to choose by is not there.
        """
        name, direction = best or ("", "")
        if name and name not in metrics:
            raise ValueError(f"task.best names {name!r}; evaluate() gave {', '.join(metrics)}")
        sign = 1 if direction == "min" else -1

        def better(than: float | None) -> bool:
            return not name or sign * metrics[name] < (math.inf if than is None else sign * than)

        self.final, self.evaluated_step = dict(metrics), self.step
        if scheduled:
            renewed = better(self.patience_best)
            self.worse_in_row = 0 if renewed else self.worse_in_row + 1
            self.patience_best = metrics.get(name) if renewed else self.patience_best
        if is_best := better(self.best.get(name)):
            self.best = {**metrics, "step": self.step, "epoch": self.epoch_of_step}
        return is_best
