"""One training loop for every task and every multi-pass optimizer."""

import contextlib
import itertools
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from .. import processes
from ..errors import UserError
from ..optim import MultiPassOptimizer
from ..runs import checkpoints, layout
from ..runs.directory import RunDirectory
from . import outcome, snapshot
from .config import TrainingConfig
from .curvature import CurvatureLog
from .graphs import Graphed, check_replayable, unwarned
from .logs import Console
from .noise_size import relative_noise
from .progress import Progress
from .reach import check_begins, check_judged
from .signals import StopSignals
from .task import Task


def fit(
    task: Task,
    optimizer: MultiPassOptimizer,
    schedulers: Sequence[tuple[Any, str]],
    config: TrainingConfig,
    run: RunDirectory,
    *,
    max_steps: int | None = None,
    max_minutes: float | None = None,
) -> dict[str, Any]:
    """Trains ``task``, from where ``run`` was left: the same bits as if it had never been interrupted (CPU).

    It speaks through the logger ``seqssgd``; ``logging.getLogger("seqssgd").setLevel("WARNING")`` silences it.

    Args:
        task: see :class:`Task`.
        optimizer: any optimizer with ``passes()``; :class:`seqssgd.optim.SinglePass` wraps an ordinary one.
        schedulers: pairs of a scheduler (``step``, ``state_dict``, ``load_state_dict``) and ``"epoch"`` or ``"step"``.
        max_steps: stop, finished, after that many optimizer steps in all.
        max_minutes: stop, to be resumed, after that many minutes of this call.

    Returns:
        the contents of result.json (metrics of the last and the best evaluation, counts, times), with ``"finished"``
        and ``"exit_code"`` for the program: 0; 143 and 130 after SIGTERM and SIGINT; 2 if training diverged: a loss
        or gradients that stay non-finite, never a finite metric to choose the best by, or weights that are not finite.

    Raises:
        UserError: the checkpoints do not belong to this model or are all damaged; patience without a metric to judge
            by.
        ValueError: a scheduler of neither unit; noise, or an average of weights, that would never begin.
    """
    if config.precision == "auto":
        raise ValueError("precision 'auto' depends on the model: see seqssgd.training.precision.settle_precision")
    try:
        loop = _Loop(task, optimizer, schedulers, config, run, max_steps, max_minutes)
        with processes.refused_together():
            result = run.result()
        result = processes.from_main(result)
        if result and (result["stopped_early"] or result.get("diverged") or result["steps"] >= loop.limit):
            loop.say(f"{run.path}: already finished at step {result['steps']}; nothing to do")
            return {**result, "finished": True, "exit_code": outcome.exit_code(result, run.path)}
        loop.resume()
        run.drop_result()  # of a lower limit of steps
        with (
            loop.signals,
            Console(loop.limit, loop.progress.step, config.epochs, task.train_metrics) as loop.console,
            unwarned() if config.graphs else contextlib.nullcontext(),
        ):
            return loop.train()
    finally:
        run.close()


class _Loop:
    def __init__(self, task, optimizer, schedulers, config, run, max_steps, max_minutes):  # as fit()
        self.task, self.optimizer, self.schedulers, self.config, self.run = task, optimizer, schedulers, config, run
        self.model = task.model
        self.device = next(self.model.parameters()).device
        self.wrapped = self.graphed() if config.graphs else processes.parallel(self.model)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.progress = Progress()
        self.last_step = config.epochs * task.steps_per_epoch
        check_begins(optimizer, schedulers, config.epochs, self.last_step)
        check_judged(task, config)
        self.limit = min(math.inf if max_steps is None else max_steps, self.last_step)
        self.max_seconds = math.inf if max_minutes is None else 60 * max_minutes
        self.began = self.clock = self.last_save = time.monotonic()
        self.signals, self.console = StopSignals(), Console()
        self.curvature = CurvatureLog(optimizer, self.progress, self.scaler, config.log_curvature)
        self.metrics_length = 0  # at the checkpoint that is gone on from

    # ---- the loop --------------------------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        p = self.progress
        self.model.train()
        while not (self.ends_early() or (p.step >= self.limit and p.position < self.task.steps_per_epoch)):
            if p.position == 0:
                self.task.start_epoch(p.epoch)
            batches = iter(self.task.batches(p.epoch, start=p.position * self.config.accumulate))
            while p.position < self.task.steps_per_epoch and p.step < self.limit and not self.ends_early():
                self.step(self.next_micros(batches))
                if (reason := self.reason_to_stop()) is not None:
                    return self.stop(*reason)
                if self.save_is_due():
                    self.save()
            if p.position == self.task.steps_per_epoch:
                self.end_epoch()
        if p.evaluated_step != p.step:  # it ended inside an epoch
            self.evaluate(scheduled=False)
            self.save()
        return self.finish()

    def step(self, micros: list[Any]) -> None:
        """One optimizer step, or none if a loss or a gradient is not finite."""
        p, started = self.progress, time.monotonic()
        loss, passes = self.gradients(micros)
        self.curvature.note()
        finite = not processes.maximum(not math.isfinite(loss)) and self.update()
        self.optimizer.zero_grad()
        p.step_done(loss, passes, stepped=finite)
        p.training_seconds += time.monotonic() - started
        self.console.advance(loss, p.epoch_of_step, p.passes)
        if p.step % self.config.log_every == 0:
            self.log()
        self.step_schedulers("step")

    def gradients(self, micros: list[Any]) -> tuple[float, float]:
        """Leaves the mean gradient over passes and minibatches in ``.grad``; their mean loss and their number."""
        total, units, count, passes = torch.zeros((), device=self.device), 0, 0, 0
        self.task.model = self.wrapped
        try:
            for one, last in self.loops(micros):
                for part in self.optimizer.passes():
                    for index, batch in enumerate(one):
                        with self.synchronise(last and part.last and index == len(one) - 1):
                            with self.autocast():
                                loss, seen = self.task.loss(batch, part)
                            self.scaler.scale(loss / len(micros)).backward()
                        total += loss.detach()
                        del loss  # the next pass may be recorded, and no graph of an earlier one may be alive then
                        units, count, passes = units + seen, count + 1, passes + part.cost
        finally:
            self.task.model = self.model
        self.progress.units += units * len(micros) / passes  # several passes over one minibatch read its tokens once
        return total.item() / count, passes

    def loops(self, micros: list[Any]) -> list[tuple[list[Any], bool]]:
        """The minibatches of each loop over passes, and whether it is the last: halves count by the minibatch."""
        share = self.optimizer.share()
        if share is None or share.reduction != "mean":
            return [(micros, True)]
        return [([batch], index == len(micros) - 1) for index, batch in enumerate(micros)]

    def update(self) -> bool:
        """Clips and steps; False if there was no step because a gradient is not finite."""
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        if self.config.clip is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.clip, norm)
        finite = bool(torch.isfinite(norm))
        if finite or self.scaler.is_enabled():  # a scaler skips such a step itself, and lowers its scale
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return finite

    def end_epoch(self) -> None:
        p = self.progress
        scheduled = (p.epoch + 1) % self.config.evaluate_every == 0
        if scheduled or p.step >= self.limit or self.ends_early():
            self.evaluate(scheduled)
            p.stopped_early = self.config.patience is not None and p.worse_in_row >= self.config.patience
        self.step_schedulers("epoch")
        p.epoch_done()
        self.save()

    def evaluate(self, scheduled: bool) -> None:
        """Evaluates; a new best is kept."""
        p, model = self.progress, self.evaluated()
        self.task.model = model.eval()
        try:
            # so that an additional evaluation changes nothing
            with torch.no_grad(), _rng_untouched(self.record_anew if self.config.graphs else None):
                metrics = processes.from_main({key: float(value) for key, value in self.task.evaluate().items()})
        finally:
            self.task.model = self.model
        model.train()
        if p.evaluated(metrics, self.task.best, scheduled) and processes.is_main():
            self.run.forget_evaluations(layout.BEST)
            best = {"model": model.state_dict(), "metrics": metrics, "step": p.step, "epoch": p.epoch_of_step}
            checkpoints.save(self.run.checkpoints / layout.BEST, {**best, "files": self.run.checksums()})
        noise = relative_noise(self.optimizer)
        size = {"relative_noise": noise} if noise else {}
        loss = _mean(p.epoch_losses)
        training = {"train_loss": loss, **({} if loss is None else self.task.train_metrics(loss))}
        row = {**self.row("valid"), **size, **metrics, **training, **self.times()}
        self.run.write_metrics(row)
        self.console.valid(row)

    def evaluated(self) -> nn.Module:
        """The model that is evaluated: the one with averaged weights, if the optimizer has one."""
        averaged = self.optimizer.averaged
        return self.model if averaged is None else averaged

    # ---- pieces of a step ------------------------------------------------------------------------------------------

    def next_micros(self, batches: Iterator[Any]) -> list[Any]:
        micros = list(itertools.islice(batches, self.config.accumulate))
        if not micros:
            p = self.progress
            raise RuntimeError(
                f"the task's batches ended after {p.position} of {self.task.steps_per_epoch} steps; steps_per_epoch "
                "must be the minibatches over training.accumulate, rounded up, and batches(epoch, start) begin at start"
            )
        return micros

    def synchronise(self, now: bool) -> contextlib.AbstractContextManager:
        """Processes exchange gradients once per step, in its last backward pass."""
        if now or not isinstance(self.wrapped, nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return self.wrapped.no_sync()

    def half(self) -> torch.dtype | None:
        """What matrices are multiplied in, if not in single precision."""
        return {"fp32": None, "fp16": torch.float16}.get(self.config.precision, torch.bfloat16)

    def autocast(self) -> torch.autocast:
        half = self.half()
        return torch.autocast(self.device.type, half, enabled=half is not None)

    def graphed(self) -> Graphed:
        if self.device.type != "cuda" or processes.world_size() > 1:
            raise UserError("training.graphs: it takes one process with a CUDA device; leave it out")
        check_replayable(self.task)
        return Graphed(self.model, self.half())

    def record_anew(self) -> None:
        self.wrapped = self.graphed()

    def step_schedulers(self, when: str) -> None:
        with warnings.catch_warnings():  # a skipped first step looks to torch like a scheduler called too early
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            for scheduler, unit in self.schedulers:
                if unit == when:
                    scheduler.step()

    def log(self) -> None:
        p = self.progress
        row = {**self.row("train"), "loss": _mean(p.losses), "nonfinite": p.nonfinite, **self.times()}
        p.losses = [0.0, 0]
        total, by_layer = self.curvature.means()
        self.run.write_metrics({**row, **total, **by_layer})
        self.console.train({**row, **total})

    def row(self, kind: str) -> dict[str, Any]:
        p, groups, key = self.progress, self.optimizer.param_groups, self.optimizer.level_key
        levels = {"lr": float(groups[0]["lr"]), "noise": max(float(group.get(key, 0)) for group in groups)}
        return {"kind": kind, "step": p.step, "epoch": p.epoch_of_step, "passes": p.passes, **levels}

    def times(self) -> dict[str, float]:
        p, now = self.progress, time.monotonic()
        p.seconds, self.clock = p.seconds + now - self.clock, now
        rate = p.units * processes.world_size() / max(p.training_seconds, 1e-9)
        return {"seconds": round(p.seconds, 3), "units_per_second": round(rate, 3)}

    def say(self, text: str) -> None:
        self.console.line(text)

    # ---- stopping, saving, resuming --------------------------------------------------------------------------------

    def ends_early(self) -> bool:
        return self.progress.stopped_early or self.progress.nonfinite_in_row >= self.config.max_nonfinite

    def reason_to_stop(self) -> tuple[str, int] | None:
        p, number = self.progress, int(processes.maximum(self.signals.number))
        if number:
            return signal.Signals(number).name, 128 + number
        ends_here = p.step >= self.limit or self.ends_early()
        if processes.maximum(time.monotonic() - self.began > self.max_seconds) and not ends_here:
            return "the time limit", 0
        return None

    def stop(self, reason: str, exit_code: int) -> dict[str, Any]:
        self.save()
        self.say(f"stopped by {reason} at step {self.progress.step}; run the same command again to resume")
        return {**self.result(), "finished": False, "exit_code": exit_code}

    def finish(self) -> dict[str, Any]:
        result = self.result()
        self.run.write_result(result)
        self.say(f"{outcome.how_it_ended(result, self.last_step)}; see {self.run.path / layout.RESULT}")
        return {**result, "finished": True, "exit_code": outcome.exit_code(result, self.run.path)}

    def result(self) -> dict[str, Any]:
        found = outcome.result(self.progress, self.task, self.last_step, self.config.max_nonfinite)
        return {**found, **self.times()}

    def save_is_due(self) -> bool:
        every, minutes = self.config.checkpoint_every, self.config.checkpoint_minutes
        late = minutes is not None and time.monotonic() - self.last_save > 60 * minutes
        return bool(every and self.progress.step % every == 0) or bool(processes.maximum(late))

    def save(self) -> None:
        self.times()
        state = snapshot.take(self)
        if state is not None:
            checkpoints.save_step(self.run.checkpoints, state, self.progress.step, self.config.keep)
        self.last_save = time.monotonic()

    def resume(self) -> None:
        """Goes to the newest checkpoint; at the very start only gives every process a dropout of its own."""
        with processes.refused_together():
            newest = checkpoints.load_newest(self.run.checkpoints) if processes.is_main() else None
            if newest is None and self.run.result() is not None:  # from the start it would be another run
                raise UserError(
                    f"{self.run.checkpoints}: no checkpoint of a step is left to go on from; choose another folder"
                )
        path = processes.from_main(newest and newest[0])
        if path is not None:
            snapshot.give_back(self, newest[1] if newest else checkpoints.load(path), path)
            if newest:  # a process that was killed at its last checkpoint may have left one too many
                checkpoints.delete_earlier(self.run.checkpoints, newest[1], self.progress.step, self.config.keep)
        elif processes.rank():
            torch.manual_seed(torch.initial_seed() + processes.rank())
        with _rng_untouched(), processes.refused_together():
            self.run.start_metrics(self.metrics_length, self.progress.step)
        if path is not None:
            self.say(f"resuming at step {self.progress.step} from {path}")


@contextlib.contextmanager
def _rng_untouched(moved: Callable[[], None] | None = None) -> Iterator[None]:
    """Leaves all global random generators as they were.

    Once CUDA's has been set, cuDNN's dropout between the layers of an LSTM takes other memory, and graphs that were
    recorded before would go on with the old. So where there are some, with ``moved``, it is set only if something was
    drawn from it, and ``moved`` is called then.
    """
    state = checkpoints.rng_state()
    try:
        yield
    finally:
        if checkpoints.set_rng_state(state, only_changed=moved is not None) and moved is not None:
            moved()


def _mean(sums: Sequence[float]) -> float | None:
    """The mean over all processes; None if every loss was non-finite."""
    total, count = processes.mean(sums[0]), processes.mean(sums[1])
    return total / count if count else None
