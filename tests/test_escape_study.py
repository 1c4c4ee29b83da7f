"""The study of escape: its landscapes against brute force and exact times, its program stopped and resumed."""

import dataclasses
import json
import math
import sys
import time

import numpy as np
import pytest
import torch
from programs import ROOT, load, refused, start

from seqssgd.errors import require, run_cli
from seqssgd.landscape.escape_theory import mean_first_passage

sys.path.insert(0, str(ROOT / "recipes/studies"))
import escape_network  # noqa: E402
import escape_valley  # noqa: E402
from escape_cells import cells  # noqa: E402
from escape_network import DECAY, Network, Training  # noqa: E402
from escape_regression import Regression  # noqa: E402
from escape_tables import growth, ratio  # noqa: E402
from escape_valley import MINIMUM, Valley, curvature, height, threshold  # noqa: E402

from seqssgd.landscape.escape import Rate, WeightNoise, time_ratio  # noqa: E402

PROGRAM = load("recipes/studies/escape.py")

# ---- the toy valley --------------------------------------------------------------------------------------------------


def test_the_points_of_the_valley():
    slope = lambda x: 2 * x**3 - 16 * x + 2.5  # noqa: E731
    for point, sign in ((escape_valley.LEFT, 1), (escape_valley.SADDLE, -1), (MINIMUM, 1)):
        assert slope(point) == pytest.approx(0, abs=1e-9) and sign * curvature(point) > 0
    middle = (height(MINIMUM) + height(escape_valley.SADDLE)) / 2
    assert height(escape_valley.HALF) == pytest.approx(middle)


@pytest.mark.parametrize("relative", [False, True])
def test_the_threshold_is_where_gradient_descent_on_the_pair_leaves(relative):
    def stays(level):
        x = MINIMUM
        for _ in range(20_000):
            n = level * (x if relative else MINIMUM)
            slopes = [2 * y**3 - 16 * y + 2.5 for y in (x + n, x - n)]
            x -= 1e-4 * sum(slopes) / 2 * (1 if relative else 10)
        return x > 0

    critical = threshold(relative) / (1 if relative else MINIMUM)
    assert stays(0.98 * critical) and not stays(1.04 * critical)


def test_sharpness_is_an_identity_of_white_noise():
    settings = {"noise": "white", "strength": 9.0, "time": 2.0, "particles": 40, "end": -1.0}
    flat, sharp = (Valley(sharpness=k, **settings) for k in (1.0, 4.0))
    assert sharp.unit == flat.unit / 4
    runs = [cell.passages() for cell in (flat, sharp)]
    assert runs[0].passed.any() and torch.equal(runs[0].steps, runs[1].steps)  # powers of 2: to the bit
    assert sharp.predicted()["exact"] == pytest.approx(flat.predicted()["exact"] / 4, rel=1e-5)
    assert sharp.predicted()["formula"] == pytest.approx(flat.predicted()["formula"] / 4, rel=1e-9)


@pytest.mark.parametrize(
    "cell",
    [
        Valley("white", 9.0, time=20, particles=300, every=5),
        Valley("minibatch", 0.5, time=10, particles=300, every=5),
        Valley("minibatch", 0.5, method="pair", level=0.5, time=10, particles=300, every=5),
    ],
    ids=["white", "minibatch", "pair"],
)
def test_simulated_times_are_the_exact_ones(cell):
    passages = cell.passages()
    low, high = passages.rate(0, cell.unit).time_interval(0.999)
    assert passages.passed.float().mean() > 0.8
    assert low < cell.predicted()["exact"] < high


def test_the_pair_alone_leaves_above_the_threshold_only_and_one_sided_noise_below_it():
    settings = {"end": -1.0, "step": 0.01, "time": 10.0, "particles": 20}
    below, above = 0.98 * threshold(False), 1.05 * threshold(False)
    passed = [Valley(method="pair", level=level, **settings).passages().passed.sum() for level in (below, above)]
    assert passed == [0, 20]
    assert Valley(method="one-sided", level=below, **settings).passages().passed.any()
    turned = Valley(method="pair", level=below, dimensions=4, **settings).passages()  # other coordinates' noise is left
    assert turned.passed.any()


# ---- linear regression -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise, tolerance", [("constant", 0.12), ("minibatch", 0.25)])
def test_regression_in_small_steps_follows_its_diffusion(noise, tolerance):
    cell = Regression(3, 0.02, 1, noise, (1.05, 1.09), 100.0, 600)
    passages = cell.passages()
    assert passages.passed.float().mean() > 0.99
    for index, level in enumerate(cell.levels):
        # looked at in steps, the sphere of a loss seems farther away by a share of a step's deviation
        seen = (math.sqrt(level - 1) + 0.5826 * math.sqrt(0.02**2 * (1 + 2 * (level - 1)))) ** 2 + 1
        exact = dataclasses.replace(cell, levels=(seen,)).predicted()["exact"][0]
        assert passages.rate(index, cell.unit).time == pytest.approx(exact, rel=tolerance)


def test_the_theories_of_regression():
    cell = Regression(1, 0.3, 1, "minibatch", (1000.0, 4000.0), 1.0, 1)
    times = cell.predicted()
    slopes = {name: math.log(both[1] / both[0]) / math.log(4) for name, both in times.items()}
    assert slopes["mori"] == pytest.approx(cell.exponent, rel=0.01) == pytest.approx(1 / 0.3 + 0.5, rel=0.02)
    assert slopes["exact"] == pytest.approx(1 / 0.6 + 0.5, rel=0.02)  # with the term that theory leaves out
    constant = dataclasses.replace(cell, noise="constant", levels=(1.5,)).predicted()
    assert set(constant) == {"exact"}
    known = mean_first_passage(1e-6, math.sqrt(0.5), 1e-6, lambda r: -r, lambda r: 0.15)
    assert constant["exact"][0] == pytest.approx(known)


# ---- the network -----------------------------------------------------------------------------------------------------


def network(examples=40):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(examples, 5, generator=generator, dtype=torch.float64)
    return Network(inputs, (inputs[:, 0] > 0.3).long() + (inputs[:, 1] > 0.5).long(), 4)


def slow_loss(net, weights, copy, batch):
    """Cross entropy of one copy on some examples, by torch's own modules."""
    first, bias, second, last = (w[copy] for w in weights)
    scores = torch.nn.functional.linear(
        torch.tanh(torch.nn.functional.linear(net.inputs[batch], first, bias)), second, last
    )
    return torch.nn.functional.cross_entropy(scores, net.targets[batch])


def test_loss_gradient_and_covariance_are_those_of_single_copies():
    net = network()
    weights = [torch.randn(3, *shape, dtype=torch.float64).requires_grad_() for shape in net.shapes]
    batch = torch.randint(len(net.inputs), (3, 6))
    whole = torch.arange(len(net.inputs)).expand(3, -1)
    detached = [w.detach() for w in weights]
    for chosen, found in ((batch, net.gradient(detached, batch)), (whole, net.gradient(detached))):
        expected = torch.autograd.grad(sum(slow_loss(net, weights, i, chosen[i]) for i in range(3)), weights)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
    penalty = DECAY / 2 * sum(w.flatten(1).square().sum(1) for w in detached)
    plain = torch.stack([slow_loss(net, detached, i, whole[i]) for i in range(3)])
    torch.testing.assert_close(net.loss(detached), plain + penalty)
    each = []
    for example in range(len(net.inputs)):
        parts = torch.autograd.grad(slow_loss(net, weights, 1, [example]), weights)
        each.append(torch.cat([part[1].flatten() for part in parts]))
    one = [w[1:2] for w in detached]
    expected = torch.stack(each).T.cov(correction=0)
    torch.testing.assert_close(net.covariance(one), expected)


def test_the_minimum_is_one():
    net = network()
    weights = net.minimum(0)
    flat = torch.cat([w.flatten() for w in weights])
    gradient = torch.cat([g.flatten() for g in net.gradient(weights)]) + DECAY * flat
    assert gradient.norm() < 1e-10
    lowest = net.loss(weights)
    for _ in range(20):
        moved = net.unflatten(flat + 1e-3 * torch.randn_like(flat))
        assert net.loss(moved) > lowest
    assert torch.equal(torch.cat([w.flatten() for w in net.unflatten(flat)]), flat)


@pytest.fixture
def small(monkeypatch):
    net = network()
    monkeypatch.setattr(escape_network, "load", lambda data, hidden: net)
    escape_network.solved.cache_clear()
    yield Training("wine", 4, 0, 0.5, 4, "minibatch", (1.05, 1.2), 20.0, 16)
    escape_network.solved.cache_clear()


def test_training_with_each_noise_and_method(small):
    first, again, other = (dataclasses.replace(small, seed=seed).passages() for seed in (0, 0, 1))
    assert torch.equal(first.steps, again.steps) and not torch.equal(first.steps, other.steps)
    assert first.passed.any()
    still = dataclasses.replace(small, noise="none").passages()
    assert not still.passed.any()  # at the minimum nothing moves
    for noise in ("constant", "white"):
        net, minimum = escape_network.solved("wine", 4, 0)
        root = dataclasses.replace(small, noise=noise)._spread(net, minimum).double()
        covariance = net.covariance(minimum) / small.batch
        if noise == "white":
            covariance = torch.eye(len(covariance)) * covariance.trace() / len(covariance)
        torch.testing.assert_close(root.T @ root, covariance.double(), rtol=1e-3, atol=1e-7)
        low = dataclasses.replace(small, noise=noise, levels=(1.001,))  # white noise hardly raises the loss
        assert low.passages().passed.any()
    for method in ("one-sided", "pair", "halves"):
        noisy = dataclasses.replace(small, method=method, level=0.3).passages()
        assert not torch.equal(noisy.steps, first.steps)


def test_a_single_copy_trains_as_the_package_s_own_optimizer(small):
    from seqssgd.optim import SymmetricNoise

    net, minimum = escape_network.solved("wine", 4, 0)
    params = [torch.nn.Parameter(w.float()) for w in minimum]
    groups = [{"params": params[::2], "noise": 0.3}, {"params": params[1::2], "noise": 0.0}]
    base = torch.optim.SGD(groups, lr=0.5, weight_decay=DECAY)
    optimizer = SymmetricNoise(base, granularity="filter", seed=5)  # a copy is a filter of the stack
    noise, fast = WeightNoise("pair", [0.3, 0, 0.3, 0], seed=5), net.to(torch.float32)
    weights = [p.detach().clone() for p in params]
    for step in range(5):
        batch = torch.arange(4 * step, 4 * step + 4).unsqueeze(0)
        gradients = noise.gradient(fast.gradient, weights, batch)
        weights = [w - 0.5 * (g + DECAY * w) for w, g in zip(weights, gradients, strict=True)]
        for _ in optimizer.passes():
            slow_loss(fast, params, 0, batch[0]).backward()
        optimizer.step()
        optimizer.zero_grad()
    for a, b in zip(weights, params, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-4, atol=1e-5)


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_growth_tells_a_power_law_from_an_exponential():
    levels = [1.5, 2, 3, 4, 6]
    power, straight, bent = growth({c: 7 * c**3.2 for c in levels})
    assert power == pytest.approx(3.2) and straight == pytest.approx(1) and bent < 0.97
    _, straight, bent = growth({c: math.exp(2 * c) for c in levels})
    assert bent == pytest.approx(1) and straight < 0.97
    assert growth({1.5: 1.0, 2: 2.0}) is None


def test_a_ratio_without_escapes_is_a_bound():
    some, none = Rate(50, 500.0), Rate(0, 500.0)
    assert ratio(some, some) == "1.0 ({:.2f} to {:.1f})".format(*time_ratio(some, some)[1:])
    assert ratio(Rate(50, 71_500.0), some) == "140 (97 to 210)"
    assert ratio(none, some).startswith("> 1") and ratio(some, none).startswith("< 0.0")
    assert ratio(none, none) == "none passed"


# ---- the program -----------------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch):
    """Some fast cells in place of all, and no data needed."""
    chosen = {
        name: dataclasses.replace(cell, particles=20)
        for name, cell in cells(True, 0).items()
        if name.startswith("regression/")
    }
    assert len(chosen) >= 4
    monkeypatch.setattr(PROGRAM, "cells", lambda quick, seed: chosen)
    monkeypatch.setattr(PROGRAM, "draw", lambda results: {"picture": json.dumps(sorted(results)).encode()})
    monkeypatch.setattr(PROGRAM, "require", lambda module, extra: None)
    return chosen


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_study_that_was_stopped_goes_on_to_the_same_results(few, tmp_path, capsys, monkeypatch):
    options = ["--workers", "1", "--out"]
    assert PROGRAM.main([*options, str(tmp_path / "whole")]) == 0
    assert "| regression, d = 1" in capsys.readouterr().out
    made, simulate = [], PROGRAM.simulate

    def interrupted(out, name, cell, *rest):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(name)
        return simulate(out, name, cell, *rest)

    monkeypatch.setattr(PROGRAM, "simulate", interrupted)
    assert run_cli(lambda: PROGRAM.main([*options, str(tmp_path / "parts")])) == 130
    assert len(files(tmp_path / "parts")) == 2
    assert PROGRAM.main([*options, str(tmp_path / "parts"), "--max-minutes", "1e-9"]) == 0
    assert f"{len(few) - 2} cells left; the same command goes on" in capsys.readouterr().out
    monkeypatch.setattr(PROGRAM, "simulate", simulate)
    assert PROGRAM.main([*options, str(tmp_path / "parts")]) == 0
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    before = files(tmp_path / "whole")
    assert PROGRAM.main([*options, str(tmp_path / "whole")]) == 0 and files(tmp_path / "whole") == before


def test_bad_options_and_other_results_are_one_line(few, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert "--seed: -1 is not" in refused(capsys, PROGRAM.main, "--out", out, "--seed", "-1")
    assert "--workers 0" in refused(capsys, PROGRAM.main, "--out", out, "--workers", "0")
    for minutes in ("0", "nan"):
        assert "--max-minutes" in refused(capsys, PROGRAM.main, "--out", out, "--max-minutes", minutes)
    (tmp_path / "file").write_text("")
    assert "choose another folder" in refused(capsys, PROGRAM.main, "--out", tmp_path / "file")
    name, cell = next(iter(few.items()))
    (out / "cells").mkdir(parents=True, exist_ok=True)
    PROGRAM.simulate(out, name, dataclasses.replace(cell, seed=cell.seed + 1))
    assert "made with other settings" in refused(capsys, PROGRAM.main, "--out", out)
    monkeypatch.setattr(PROGRAM, "require", require)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert "sklearn is not installed: pip install 'seqssgd[study]'" in refused(capsys, PROGRAM.main, "--out", out)


def test_every_cell_has_random_numbers_of_its_own():
    for quick in (True, False):
        found = cells(quick, 0)
        assert len({cell.seed for cell in found.values()}) == len(found)
        assert cells(quick, 0) == found != cells(quick, 1)
        assert {type(cell).__name__ for cell in found.values()} == {"Valley", "Regression", "Training"}


def test_two_processes_make_what_one_makes_and_end_when_the_study_is_killed(tmp_path):
    pytest.importorskip("sklearn")
    process = start("recipes/studies/escape.py", "--quick", "--out", tmp_path / "two")
    deadline = time.monotonic() + 200
    while not files(tmp_path / "two") and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=60)  # the workers have its output open: this returns once they are gone
    made = {path.name: text for path, text in files(tmp_path / "two" / "cells").items() if path.suffix == ".json"}
    (tmp_path / "one" / "cells").mkdir(parents=True)
    for name, cell in cells(True, 0).items():
        if PROGRAM._path(tmp_path / "two", name).name in made:
            PROGRAM.simulate(tmp_path / "one", name, cell)
    assert made and {path.name: text for path, text in files(tmp_path / "one" / "cells").items()} == made


def test_tables_and_pictures_of_made_up_results(tmp_path):
    """Every table and picture is made from the cells' names and settings alone; no simulation is needed to draw."""
    results = {}
    generator = np.random.default_rng(0)
    for name, cell in cells(False, 0).items():
        rows = []
        for index, level in enumerate(cell.levels):
            escapes = int(generator.integers(0, 60)) if "pair" in name else 40 - 5 * index
            predicted = {k: v if isinstance(v, float) else v[index] for k, v in cell.predicted().items()}
            row = {"level": level, "escapes": escapes, "particles": 64, "exposure": 50.0 * 2**index, "spread": 0.2}
            rows.append({**row, "median": None, "trend": None, "predicted": predicted})
        results[name] = {"settings": PROGRAM._plain(cell), "diverged": 0, "passages": rows}
    text = PROGRAM.markdown(results)
    assert text.count("| --- |") >= 5 and "nan" not in text
    pictures = PROGRAM.draw(results)
    assert set(pictures) == {"valley", "barrier", "ratio", "ssgd"}
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())
