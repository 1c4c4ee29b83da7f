"""Where a run ends, and as what: limits within epochs, patience, divergence."""

import math
import re

import pytest
import torch
from toy_task import ToyTask, toy_config, train

from seqssgd.errors import UserError
from seqssgd.report import compare, read_run
from seqssgd.runs import checkpoints

# ---- limits and patience ---------------------------------------------------------------------------------------------


class Scripted(ToyTask):
    """Validates with values that depend on the step alone."""

    best = ("score", "min")

    def __init__(self, config, values):
        super().__init__(config)
        self.values, self.step = values, 0

    def batches(self, epoch, start=0):
        for index, batch in enumerate(super().batches(epoch, start), start + 1):
            self.step = 5 * epoch + index
            yield batch

    def evaluate(self):
        return {"score": self.values[self.step]}


@pytest.mark.parametrize("limit", [1, 3, 7, 8, 13])
def test_a_limit_within_an_epoch_does_not_change_where_patience_ends(tmp_path, limit):
    """The evaluation at the limit is the best of all, yet nobody asked for it."""
    config = toy_config(training={"epochs": 6, "patience": 2, "checkpoint_every": None})
    values = {**dict.fromkeys(range(1, 31), 0.1), 5: 3.0, 10: 2.0, 15: 2.5, 20: 1.9, 25: 2.2, 30: 2.3}
    whole, _ = train(tmp_path / "whole", config, Scripted, {"values": values})
    assert whole["steps"] == 30 and whole["stopped_early"]
    train(tmp_path / "run", config, Scripted, {"values": values}, max_steps=limit)
    result, _ = train(tmp_path / "run", config, Scripted, {"values": values})
    assert result["steps"] == 30 and result["stopped_early"]
    a, b = (checkpoints.load_newest(tmp_path / name / "checkpoints")[1]["model"] for name in ("whole", "run"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_that_a_limit_ended_says_so_as_compare_does(tmp_path, capsys):
    train(tmp_path / "run", toy_config(), max_steps=7)
    assert "stopped by max_steps at step 7 of 20, and goes on with a higher limit or none" in capsys.readouterr().out
    with pytest.raises(UserError, match="ended by a limit of steps at epoch 2 of 4; --partial takes it in"):
        compare([read_run(tmp_path / "run")])


@pytest.mark.parametrize("kind", ["min", "max"])
def test_a_finished_run_says_which_values_of_its_metric_are_better(tmp_path, kind):
    class Judged(Scripted):
        best = ("score", kind)

    train(tmp_path / "run", toy_config(training={"epochs": 2}), Judged, {"values": dict.fromkeys(range(11), 1.0)})
    assert compare([read_run(tmp_path / "run")], metric="score").lower_is_better == (kind == "min")


# ---- divergence ------------------------------------------------------------------------------------------------------


def test_a_run_that_was_never_finite_on_validation_fails(tmp_path, capsys):
    config, values = toy_config(training={"epochs": 2}), dict.fromkeys(range(11), math.nan)
    for _ in range(2):  # and when it is called again
        result, _ = train(tmp_path, config, Scripted, {"values": values})
        assert result["exit_code"] == 2 and result["best"] == {}
        said = capsys.readouterr().err
        assert re.fullmatch(r"error: \S+: training diverged \(score was never finite.*another directory\n", said)


class Exploding(ToyTask):
    """Its weights become infinite after step 8, without a bad gradient."""

    def batches(self, epoch, start=0):
        for index, batch in enumerate(super().batches(epoch, start), start):
            if 5 * epoch + index == 8:
                with torch.no_grad():
                    self.model.out.weight.fill_(math.inf)
            yield batch


def test_the_last_finite_weights_are_kept(tmp_path):
    config = toy_config(training={"epochs": 4, "max_nonfinite": 100, "keep": 2})
    result, _ = train(tmp_path, config, Exploding)
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert names == ["step-00000008.pt", "step-00000019.pt", "step-00000020.pt"]
    assert checkpoints.is_finite(checkpoints.load(tmp_path / "checkpoints" / names[0])["model"].values())
    assert result["exit_code"] == 2 and result["diverged"] == "its weights are not finite"


@pytest.mark.parametrize("best", [("valid_loss", "minimum"), ("valid_loss",)])
def test_which_model_is_the_best_must_be_said_in_full(tmp_path, best):
    class Unclear(ToyTask):
        pass

    Unclear.best = best
    with pytest.raises(UserError, match='the task\'s best is .*; give the name of a metric and "min" or "max"'):
        train(tmp_path / "run", toy_config(), Unclear)
