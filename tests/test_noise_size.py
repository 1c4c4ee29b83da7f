"""How large a perturbation is relative to the weights: what training logs, against what passes do."""

import math

import pytest
import torch
import toy_task
from made_runs import make_run
from torch import nn

from seqssgd.optim import MSAM, SAM
from seqssgd.report import compare, read_run, results_table
from seqssgd.report.tables import notes
from seqssgd.training import OptimConfig, build_optimizer
from seqssgd.training.noise_size import relative_noise

METHODS = {
    "ssgd": {"noise": 0.4},
    "ssgd by halves, per filter": {"method": "ssgd", "noise": 0.4, "signs": "halves", "granularity": "filter"},
    "weight_noise": {"noise": 0.3, "distribution": "uniform"},
    "smoothout": {"noise": 0.02},
    "nso": {"noise": 0.01},
    "graves": {"noise": 0.05},
    "mrwp": {"noise": 0.01},
    "dropconnect": {"noise": 0.3},
    "sam": {"rho": 0.2},
    "msam": {"rho": 0.3, "base": "sgd", "momentum": 0.9, "lr": 0.01},
    "none": {},
    "ema": {},
}


def moved(optimizer, model, x) -> float:
    """‖n‖/‖w‖ over the weights that some pass of a step moves, as found in the farthest pass."""
    before, found = [p.detach().clone() for p in model.parameters()], 0.0
    for part in optimizer.passes():
        pairs = [(p.detach(), w) for p, w in zip(model.parameters(), before, strict=True) if not torch.equal(p, w)]
        if pairs:
            n = math.hypot(*(float((p - w).norm()) for p, w in pairs))
            found = max(found, n / math.hypot(*(float(w.norm()) for _, w in pairs)))
        model(part.take(x)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return found


@pytest.mark.parametrize("name", METHODS)
def test_the_size_that_is_logged_is_that_of_the_perturbation(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 200), nn.Tanh(), nn.Linear(200, 300))
    settings = {"method": name, **METHODS[name]}
    optimizer, x = build_optimizer(model, OptimConfig(**settings)), torch.randn(4, 300)
    if name == "msam":
        moved(optimizer, model, x)  # the first step has no momentum yet
    logged = relative_noise(optimizer)
    assert logged == pytest.approx(moved(optimizer, model, x), rel=0.02)
    assert (logged == 0) == (name in ("none", "ema"))
    if name in ("ssgd", "weight_noise"):
        assert logged == pytest.approx(settings["noise"])


def test_a_perturbation_without_a_size_of_its_own_has_none():
    model = nn.Linear(3, 2)
    for settings in ({"method": "asam"}, {"method": "covariance", "noise": 1.0}):
        assert relative_noise(build_optimizer(model, OptimConfig(**settings))) is None
    for method in (SAM, MSAM):
        groups = [{"params": [model.weight], "rho": 0.1}, {"params": [model.bias], "rho": 0.2}]
        assert relative_noise(method(torch.optim.SGD(groups, lr=0.1, momentum=0.9), rho=0.3)) is None
    model.requires_grad_(False)
    assert relative_noise(build_optimizer(model, OptimConfig(method="sam"))) == 0.0


def test_an_optimizer_of_another_kind_has_a_size_where_its_groups_have_levels():
    """Whatever has ``passes()`` can be trained; of its noise nothing is known."""

    class Own:
        param_groups = [{"params": list(nn.Linear(3, 2).parameters())}]

        def passes(self):
            yield None

    assert relative_noise(Own()) == 0.0
    Own.param_groups[0]["noise"] = 0.5
    assert relative_noise(Own()) is None


def test_every_evaluation_logs_it_and_a_comparison_shows_it(tmp_path):
    run = tmp_path / "run"
    toy_task.train(run, toy_task.toy_config({"method": "nso", "noise": 0.01, "noise_schedule": "1-2S-1"}))
    rows = read_run(run).rows
    assert [row["epoch"] for row in rows if "relative_noise" in row] == [2, 3]
    (cells,) = results_table(compare([read_run(run)])).rows
    assert cells[2] == f"{rows[2]['relative_noise']:.2g}"


def sizes(tmp_path, **methods) -> list[str]:
    runs = [make_run(tmp_path / name, [20.0], method=name.rstrip("_"), **optim) for name, optim in methods.items()]
    return [row[2] for row in results_table(compare([read_run(run) for run in runs])).rows]


def test_runs_that_logged_none_have_it_by_their_settings_where_these_tell(tmp_path):
    absolute = {"granularity": "absolute", "distribution": "gaussian"}
    found = sizes(
        tmp_path, none={}, weight_noise={"noise": 0.3}, dropconnect={"noise": 0.2}, ssgd={"noise": 0.25},
        nso={"noise": 0.01, **absolute}, sam={"rho": 0.05},
    )  # fmt: skip
    assert found == ["0", "0.3", "0.5", "0.25", "–", "–"]


def test_where_there_was_no_noise_none_is_claimed_and_of_methods_from_elsewhere_nothing(tmp_path):
    """Of runs that log no noise: the schedule tells of those whose noise never began."""
    late, unit = {"noise": 0.25, "noise_schedule": "1-1S"}, {"noise_schedule": "9-9S", "noise_unit": "step"}
    found = sizes(
        tmp_path, **{"ssgd": late, "ssgd_": {**late, "noise_schedule": "1S-1"}, "ssgd__": late | unit},
        weight_noise={"noise": 0.25, "noise_ramp": [0, 3]}, **{"my_methods:Ahead": {"noise": 0.3}},
    )  # fmt: skip
    assert sorted(found) == sorted(["0", "0.25", "0.25", "0", "–"])
    rows = [{"valid_wer": 20.0, "relative_noise": size} for size in (0.0, 0.4, 0.0)]
    for number, (of, wanted) in enumerate(((rows, "0.4"), (rows[:1], "0"))):
        run = make_run(tmp_path / str(number), of, method="ssgd", noise=0.5)
        assert results_table(compare([read_run(run)])).rows[0][2] == wanted


@pytest.mark.parametrize("settings, begins", [
    ({"method": "ssgd", "noise": 0.2, "noise_schedule": "2-3S"}, 3),
    ({"method": "ssgd", "noise": 0.2, "noise_schedule": "20-3S", "noise_unit": "step"}, 3),
    ({"method": "sam", "rho": 0.2, "noise_ramp": [0, 2]}, 2),
    ({"method": "swa", "average_start": 20}, 3),
    ({"method": "none", "noise_schedule": "2-3S"}, 1),
    ({"method": "ssgd", "noise": 0.2}, 1),
])  # fmt: skip
def test_figures_of_a_checkpoint_before_the_noise_began_are_said_to_be_those_of_training_without(
    settings, begins, tmp_path
):
    for best in (1, 2, 3):
        values = [20.0 if epoch == best else 30.0 for epoch in (1, 2, 3)]
        run = make_run(tmp_path / str(best), values, **settings)
        said = [text for text in notes(compare([read_run(run)])) if text.startswith("Best before noise")]
        wanted = f"Best before noise or average began, so that the figures are of training without: {best}."
        assert said == [wanted] * (best < begins)
