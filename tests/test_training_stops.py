"""When training evaluates and when it stops: patience, limits, the best checkpoint, tasks that break their word."""

import json
import math

import pytest
import torch
from toy_task import ToyTask, toy_config, train

from seqssgd.errors import UserError
from seqssgd.runs import checkpoints
from seqssgd.runs.reading import read_run


def settings(optim=None, **training):
    return toy_config(optim, {"checkpoint_every": None, **training})


def rows(run, kind="valid"):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in lines if row["kind"] == kind]


def newest(run):
    return checkpoints.load_newest(run / "checkpoints")[1]


class ScriptedTask(ToyTask):
    """Its evaluations give the values of a script, whatever the weights."""

    def __init__(self, config, values, direction="min"):
        super().__init__(config)
        self.values, self.best = values, ("score", direction)

    def evaluate(self):
        self.evaluations += 1
        return {"score": self.values[self.evaluations - 1], "number": self.evaluations}


# ---- patience --------------------------------------------------------------------------------------------------------

SCRIPT = [5.0, 4.0, 4.0, 4.5, 3.0, 3.5, math.nan, 2.0, 1.0]  # equally good is not better, and neither is nan


@pytest.mark.parametrize("direction", ["min", "max"])
@pytest.mark.parametrize("patience, stop, best", [(1, 3, 2), (2, 4, 2), (3, 9, 9), (None, 9, 9)])
def test_training_stops_when_patience_ends(tmp_path, capsys, direction, patience, stop, best):
    values = SCRIPT if direction == "min" else [-value for value in SCRIPT]
    config, task_settings = settings(epochs=9, patience=patience), {"values": values, "direction": direction}
    result, task = train(tmp_path, config, ScriptedTask, task_settings)
    assert task.evaluations == result["epochs"] == stop and result["steps"] == 5 * stop
    assert result["best"] == {"score": values[best - 1], "number": best, "step": 5 * best, "epoch": best}
    assert result["final"]["number"] == stop and result["finished"]
    assert result["stopped_early"] == (stop < 9) == ("finished early" in capsys.readouterr().out)
    again, task = train(tmp_path, config, ScriptedTask, task_settings)
    assert task.evaluations == 0 and again == json.loads(json.dumps(result).replace("NaN", "null"))


def test_patience_counts_evaluations_not_epochs_and_the_best_starts_it_anew(tmp_path):
    values = [3.0, 4.0, 2.0, 2.5, 2.6, 2.7]
    result, task = train(tmp_path, settings(epochs=12, patience=2, evaluate_every=2), ScriptedTask, {"values": values})
    assert task.evaluations == 5 and result["epochs"] == 10 and result["best"]["epoch"] == 6


def test_an_evaluation_that_is_only_due_to_a_limit_does_not_try_the_patience(tmp_path):
    config = settings(epochs=4, patience=2)
    train(tmp_path, config, ScriptedTask, {"values": [1.0, 2.0]}, max_steps=7)  # at step 5, and worse at step 7
    result, _ = train(tmp_path, config, ScriptedTask, {"values": [3.0, 0.4, 0.3]})
    assert not result["stopped_early"] and result["steps"] == 20 and result["best"]["score"] == 0.3


def test_patience_lasts_over_an_interruption(tmp_path):
    config = settings(epochs=9, patience=3)
    train(tmp_path, config, ScriptedTask, {"values": [1.0, 2.0]}, max_steps=10)
    result, task = train(tmp_path, config, ScriptedTask, {"values": [2.0, 2.0, 2.0]})
    assert result["stopped_early"] and task.evaluations == 2


# ---- the best and the last -------------------------------------------------------------------------------------------


def test_the_best_checkpoint_holds_the_weights_that_were_best_on_validation(tmp_path):
    config = settings({"lr": 3.0, "noise": 1.5}, epochs=8)  # so wild that the last is not the best
    result, task = train(tmp_path, config)
    losses = [row["valid_loss"] for row in rows(tmp_path)]
    best = checkpoints.load(tmp_path / "checkpoints/best.pt")
    epoch = losses.index(min(losses)) + 1
    assert len(losses) == 8 and epoch < 8
    assert best["epoch"] == result["best"]["epoch"] == epoch and best["step"] == 5 * epoch
    assert best["metrics"]["valid_loss"] == result["best"]["valid_loss"] == min(losses)
    assert result["final"]["valid_loss"] == losses[-1]
    for state, loss in ((best["model"], min(losses)), (newest(tmp_path)["model"], losses[-1])):
        task.model.load_state_dict(state)
        task.model.eval()
        assert task.evaluate()["valid_loss"].item() == loss


def test_a_run_whose_metric_is_never_a_number_ends_without_a_best(tmp_path):
    result, _ = train(tmp_path, settings(epochs=2), ScriptedTask, {"values": [math.nan, math.nan]})
    assert result["best"] == {} and result["epochs"] == 2
    assert json.loads((tmp_path / "result.json").read_text())["final"]["score"] is None
    assert not (tmp_path / "checkpoints/best.pt").exists()


def test_without_a_metric_to_choose_by_the_last_model_is_the_best(tmp_path):
    class Unjudged(ToyTask):
        best = None

    result, _ = train(tmp_path, settings({"lr": 3.0, "noise": 1.5}, epochs=8), Unjudged)  # as wild as above
    assert result["best"] == {**result["final"], "step": 40, "epoch": 8}
    best, last = checkpoints.load(tmp_path / "checkpoints/best.pt")["model"], newest(tmp_path)["model"]
    assert all(torch.equal(best[name], last[name]) for name in last)
    with pytest.raises(UserError, match="^training.patience: there is nothing to judge by"):
        train(tmp_path / "patient", settings(epochs=8, patience=2), Unjudged)


# ---- when it evaluates -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every, epochs", [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (7, [5])])
def test_it_evaluates_every_so_many_epochs_and_at_the_end(tmp_path, every, epochs):
    train(tmp_path, settings(epochs=5, evaluate_every=every))
    assert [row["epoch"] for row in rows(tmp_path)] == epochs
    assert [row["step"] for row in rows(tmp_path)] == [5 * epoch for epoch in epochs]
    assert all(row["train_loss"] > 0 for row in rows(tmp_path))  # of the epoch that just ended


def test_evaluations_do_not_change_the_training(tmp_path):
    """The toy has dropout, and draws from the same global generator when it is evaluated."""
    states = []
    for every in (1, 3):
        train(tmp_path / str(every), settings(epochs=3, evaluate_every=every))
        states.append(newest(tmp_path / str(every)))
    assert states[0]["progress"]["evaluated_step"] == states[1]["progress"]["evaluated_step"] == 15
    assert all(torch.equal(w, states[1]["model"][name]) for name, w in states[0]["model"].items())
    assert torch.equal(*(state["processes"][0]["rng"]["torch"] for state in states))


def test_it_evaluates_the_clean_weights_in_evaluation_mode_without_gradients(tmp_path):
    class Watching(ToyTask):
        modes, weights = [], []

        def loss(self, batch, part):
            self.modes.append(("loss", self.model.training, torch.is_grad_enabled()))
            return super().loss(batch, part)

        def evaluate(self):
            self.modes.append(("evaluate", self.model.training, torch.is_grad_enabled()))
            self.weights.append([p.clone() for p in self.model.parameters()])
            return super().evaluate()

    train(tmp_path, settings(epochs=2), Watching, {"steps_per_epoch": 1})
    step = [("loss", True, True)] * 2  # one minibatch, two passes
    assert Watching.modes == (step + [("evaluate", False, False)]) * 2
    saved = newest(tmp_path)["model"].values()
    assert all(torch.equal(a, b) for a, b in zip(Watching.weights[-1], saved, strict=True))


# ---- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limit, epochs, evaluated", [(3, 0, [3]), (7, 1, [5, 7]), (10, 2, [5, 10]), (99, 3, [5, 10, 15])]
)
def test_max_steps_finishes_the_run_wherever_it_falls(tmp_path, limit, epochs, evaluated):
    result, task = train(tmp_path, settings(epochs=3), max_steps=limit)
    steps = min(limit, 15)
    assert result["finished"] and result["steps"] == steps and result["epochs"] == epochs
    assert result["units"] == steps * 4 * 6 and result["passes"] == 2 * steps  # 4 sequences of 6, two passes a step
    assert [row["step"] for row in rows(tmp_path)] == evaluated
    assert [row["step"] for row in rows(tmp_path, "train")] == list(range(3, steps + 1, 3))
    assert result["final"]["valid_loss"] == rows(tmp_path)[-1]["valid_loss"]
    assert json.loads((tmp_path / "result.json").read_text()) == {
        key: value for key, value in result.items() if key not in ("finished", "exit_code")
    }
    train(tmp_path / "whole", settings(epochs=3))  # the limit changes nothing in the steps before it
    for row, other in zip(rows(tmp_path, "train"), rows(tmp_path / "whole", "train"), strict=False):
        assert row["loss"] == other["loss"] and row["step"] == other["step"]


# ---- losses that stay non-finite -------------------------------------------------------------------------------------


class BadStepsTask(ToyTask):
    def __init__(self, config, bad):
        super().__init__(config, carry=False)
        self.bad = bad

    def batches(self, epoch, start=0):
        for index, (x, y) in enumerate(super().batches(epoch, start), start + 5 * epoch + 1):
            yield (x * math.inf if index in self.bad else x), y


def test_training_ends_as_diverged_when_losses_stay_non_finite(tmp_path, capsys):
    config, task = settings(epochs=4, max_nonfinite=3, evaluate_every=4), {"bad": [2, 3, 5, 6, 8, 9, 10, 11]}
    for _ in range(2):  # and when it is called again
        result, _ = train(tmp_path, config, BadStepsTask, task)
        assert result["exit_code"] == 2 and result["finished"] and result["steps"] == 10 and result["nonfinite"] == 7
        reason = "loss or gradients not finite for 3 steps in a row, up to step 10"
        assert result["diverged"] == reason and result["epochs"] == 2
        assert [row["valid_loss"] for row in rows(tmp_path)] == [result["final"]["valid_loss"]]
        said = capsys.readouterr()
        assert f"error: {tmp_path}: training diverged ({reason}); lower the learning rate" in said.err
    assert "already finished at step 10" in said.out and read_run(tmp_path).diverged == reason
    assert all(w.isfinite().all() for w in newest(tmp_path)["model"].values())
    before = (tmp_path / "result.json").read_text()
    (tmp_path / "result.json").unlink()  # as a damaged one is to be
    train(tmp_path, config, BadStepsTask, task)
    timeless = [{k: v for k, v in json.loads(text).items() if "second" not in k}
                for text in (before, (tmp_path / "result.json").read_text())]  # fmt: skip
    assert timeless[0] == timeless[1]


def test_losses_that_are_non_finite_now_and_then_stop_nothing(tmp_path):
    result, _ = train(tmp_path, settings(epochs=4, max_nonfinite=3), BadStepsTask, {"bad": [2, 3, 5, 6, 8, 9, 11]})
    assert result["steps"] == 20 and result["nonfinite"] == 7 and result["finished"]
    assert all(w.isfinite().all() for w in newest(tmp_path)["model"].values())


# ---- tasks that break their word -------------------------------------------------------------------------------------


def test_a_best_metric_that_is_not_evaluated_is_an_error_with_both_names(tmp_path):
    class Misnamed(ToyTask):
        best = ("valid_perplexity", "min")

    with pytest.raises(ValueError, match="task.best names 'valid_perplexity'; evaluate.. gave valid_loss"):
        train(tmp_path, settings(), Misnamed)


def test_batches_that_end_early_are_an_error_with_both_numbers(tmp_path):
    class Short(ToyTask):
        def batches(self, epoch, start=0):
            return iter(list(super().batches(epoch, start))[:3])

    with pytest.raises(RuntimeError, match="batches ended after 3 of 5 steps"):
        train(tmp_path, settings(), Short)


def test_batches_are_asked_for_from_where_the_epoch_was_left(tmp_path):
    starts = []

    class Watching(ToyTask):
        def start_epoch(self, epoch):
            starts.append(epoch)
            super().start_epoch(epoch)

        def batches(self, epoch, start=0):
            starts.append((epoch, start))
            return super().batches(epoch, start)

    config = settings(epochs=2, accumulate=3)
    train(tmp_path, config, Watching, max_steps=2)
    train(tmp_path, config, Watching)
    assert starts == [0, (0, 0), (0, 6), 1, (1, 0)]  # an epoch that is gone on with is not started again
