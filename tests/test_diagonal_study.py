"""The study of the diagonal's estimates: its exact diagonal, its estimates and its errors, where they are known."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from seqssgd.errors import UserError

PROGRAM = Path(__file__).parents[1] / "recipes/studies/diagonal.py"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("diagonal_study", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize("name", ["lstm", "ctc", "resnet8"])
def test_the_exact_diagonal_is_that_of_differences_of_gradients(study, name):
    torch.manual_seed(1)
    this = study.NETWORKS[name]()
    exact = study.exact_diagonal(this)
    smallest = min(range(len(this.weights)), key=lambda i: this.weights[i].numel())
    weight = this.weights[smallest]

    before = weight.detach().clone()
    found, epsilon = [], 1e-5
    for i in range(weight.numel()):  # central differences of the gradient, in double precision
        ends = []
        for sign in (+1, -1):
            with torch.no_grad():
                weight.view(-1)[i] += sign * epsilon
            ends.append(torch.autograd.grad(this.loss(torch.arange(study.EXAMPLES)), weight)[0].flatten()[i])
            with torch.no_grad():
                weight.copy_(before)
        found.append((ends[0] - ends[1]) / (2 * epsilon))
    torch.testing.assert_close(exact[smallest].flatten(), torch.stack(found), rtol=1e-4, atol=1e-6)
    assert torch.equal(weight, before)


def test_on_a_quadratic_loss_the_pair_is_off_by_its_direction_alone_and_every_method_is_right_on_average(study):
    steepness = torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.double)
    layer = nn.Linear(3, 1, bias=False).double()
    this = study.Subject(layer, lambda examples: (steepness * layer.weight**2).sum() / 2, [layer.weight])
    torch.testing.assert_close(study.exact_diagonal(this)[0], steepness)
    torch.manual_seed(0)
    drawn = [study.estimates(this, 0.3) for _ in range(2000)]
    for method in study.METHODS:
        rows = torch.stack([each[method][0].flatten() for each in drawn])
        assert ((rows.mean(0) - steepness[0]).abs() < 5 * rows.std(0) / 2000**0.5 + 1e-9).all()
    # of one data set for all: the two of a pair, its halves and its steps are the same
    for each in drawn[:5]:
        torch.testing.assert_close(each["batch"], each["halves"])
        torch.testing.assert_close(each["batch"], each["steps"])
        assert (each["batch"][0] >= 0).all()  # n∘Hn


def test_tables_have_a_row_for_each_level_and_method(study):
    figures = {"lstm": study.study("lstm", 3, levels=(0.1,))}
    lines = study.markdown(figures).splitlines()
    assert lines[0] == "lstm:" and [line.split(" | ")[0] for line in lines[4:]] == [
        f"| 0.1 {method}" for method in study.METHODS
    ]
    assert all(line.count("|") == 12 for line in lines[2:])


def test_errors_are_bias_and_the_spread_that_a_running_mean_leaves(study):
    torch.manual_seed(0)
    exact = torch.tensor([3.0, 4.0], dtype=torch.double)
    rows = exact + torch.tensor([0.5, 0.0]) + 2.0 * torch.randn(100_000, 2, dtype=torch.double)
    found = study.errors(rows, exact)
    assert found["bias"] == pytest.approx(0.1, abs=0.01)
    assert found["one estimate"] == pytest.approx((0.25 + 8) ** 0.5 / 5, rel=0.01)
    assert found["β₂ 0.99"] == pytest.approx((0.25 + 8 * 0.01 / 1.99) ** 0.5 / 5, rel=0.01)
    weights = [torch.tensor([[1.0, 3.0], [5.0, 7.0]])]
    assert study.by_row(weights).tolist() == [2.0, 2.0, 6.0, 6.0] and study.by_weight(weights).tolist() == [1, 3, 5, 7]


def test_the_program_writes_its_figures_and_refuses_draws_without_a_spread(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "study", lambda name, draws: {"weight": {}, "row": {}})
    assert study.main(["--networks", "lstm", "--json", str(tmp_path / "new/folder/figures.json")]) == 0
    assert json.loads((tmp_path / "new/folder/figures.json").read_text()) == {"lstm": {"weight": {}, "row": {}}}
    with pytest.raises(UserError, match="--draws 1: it must be at least 2"):
        study.main(["--draws", "1"])
