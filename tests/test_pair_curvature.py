"""The curvature that a pair of gradients gives away: against the twin, the written-out Hessian, and resuming."""

import json
import math

import pytest
import torch
from torch import nn
from toy_task import ToyTask, toy_config, train

from seqssgd.errors import UserError
from seqssgd.optim import SymmetricNoise, chunks, noise_groups
from seqssgd.optim.reference import scaled_noise, unit_noise
from seqssgd.report import compare, read_run
from seqssgd.report.curvature import curvature_section
from seqssgd.training import build_optimizer
from seqssgd.training.curvature import CurvatureLog
from seqssgd.training.progress import Progress

INPUTS = torch.randn(20, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(20) % 3


def network():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def loss(model):
    return nn.functional.cross_entropy(model(INPUTS), TARGETS)


def step(model, optimizer):
    for _ in optimizer.passes():
        loss(model).backward()
    optimizer.step()
    optimizer.zero_grad()


def optimizer_of(model, noise=0.4, lr=0.1, **settings):
    return SymmetricNoise(torch.optim.SGD(noise_groups(model, noise=noise), lr=lr), seed=7, **settings)


def hessian(model, index):
    """Of the weights of one layer."""
    weight = list(model.parameters())[index]

    def of(flat):
        named = {f"{index}.weight": flat.view_as(weight)}
        return nn.functional.cross_entropy(torch.func.functional_call(model, named, (INPUTS,)), TARGETS)

    return torch.autograd.functional.hessian(of, weight.detach().flatten())


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian", "uniform"])
def test_it_is_the_difference_of_the_twins_gradients_along_the_twins_noise(distribution):
    model = network()
    optimizer = optimizer_of(model, distribution=distribution)
    optimizer.record_curvature()
    assert optimizer.curvature() == {}
    for draw in range(3):
        weights = [model[0].weight, model[2].weight]
        z = unit_noise([w.shape for w in weights], distribution, 7, draw, torch.double)
        noise = scaled_noise([w.detach() for w in weights], z, 0.4, "layer", ["0", "2"])
        before = [w.detach().clone() for w in weights]
        gradients = []
        for sign in (1, -1):
            with torch.no_grad():
                for w, b, n in zip(weights, before, noise, strict=True):
                    w.copy_(b + sign * n)
            gradients.append(torch.autograd.grad(loss(model), weights))
        with torch.no_grad():
            for w, b in zip(weights, before, strict=True):
                w.copy_(b)
        step(model, optimizer)
        found = optimizer.curvature()
        assert list(found) == ["0", "2"]
        for name, n, plus, minus in zip(found, noise, *gradients, strict=True):
            along = float((n * (plus - minus)).sum() / 2)
            assert found[name].along.item() == pytest.approx(along, rel=1e-9)
            assert found[name].trace.item() == pytest.approx(along * n.numel() / float(n.square().sum()), rel=1e-9)


def test_averaged_over_steps_it_is_the_trace_of_every_layer():
    model = network()
    optimizer = optimizer_of(model, noise=0.03, lr=0.0)
    optimizer.record_curvature()
    samples = {"0": [], "2": []}
    for _ in range(400):
        step(model, optimizer)
        for name, layer in optimizer.curvature().items():
            samples[name].append(layer.trace)
    for name, values in samples.items():
        values = torch.stack(values)
        error = values.std() / len(values) ** 0.5
        wanted = torch.linalg.eigvalsh(hessian(model, int(name)))
        assert abs(values.mean() - wanted.sum()) < 3 * error
        assert error < 0.1 * wanted.abs().sum()


def test_recording_changes_no_bit_of_the_training_and_clipping_none_of_the_record():
    trained = []
    for record in (False, True):
        model = network()
        optimizer = optimizer_of(model)
        optimizer.record_curvature(record)
        for _ in range(4):
            step(model, optimizer)
        trained.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))


def test_gradients_that_were_there_before_do_not_count():
    found = []
    for earlier in (False, True):
        model = network()
        optimizer = optimizer_of(model)
        optimizer.record_curvature()
        if earlier:
            for p in model.parameters():
                p.grad = torch.ones_like(p)
        for _ in optimizer.passes():
            loss(model).backward()
        found.append([layer.along.item() for layer in optimizer.curvature().values()])
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def figures(optimizer):
    return {name: [float(x) for x in layer] for name, layer in optimizer.curvature().items()}


@pytest.mark.parametrize("change", ["frozen", "level"])
def test_it_is_of_the_layers_as_they_were_in_the_step(change):
    model = network()
    optimizer = optimizer_of(model)
    optimizer.record_curvature()
    step(model, optimizer)
    before = figures(optimizer)
    if change == "frozen":
        model[0].weight.requires_grad_(False)
    else:
        optimizer.param_groups[0]["noise"] = 0.0
    assert list(before) == ["0", "2"] and figures(optimizer) == before
    if change == "frozen":
        step(model, optimizer)
        assert list(figures(optimizer)) == ["2"]


@pytest.mark.parametrize("granularity", ["layer", "tensor", "absolute"])
def test_tensors_of_one_layer_may_have_noise_of_other_sizes(granularity):
    """As the kernels of an LSTM, by tensors: of a Hessian 2·1 and 7·1, exact with random signs."""
    small, large, empty = (
        nn.Parameter(torch.full((n,), w, dtype=torch.double)) for n, w in ((4, 0.1), (6, 5.0), (0, 1))
    )
    group = {"params": [small, large, empty], "noise": 0.1, "layers": ["rnn"] * 3}
    optimizer = SymmetricNoise(torch.optim.SGD([group], lr=0.0), granularity=granularity)
    optimizer.record_curvature()
    for _ in optimizer.passes():
        (small.square().sum() + 3.5 * large.square().sum() + empty.sum()).backward()
    (found,) = optimizer.curvature().values()
    assert found.trace.item() == pytest.approx(4 * 2 + 6 * 7)


def test_a_step_without_noise_has_none():
    model = network()
    optimizer = optimizer_of(model)
    optimizer.record_curvature()
    step(model, optimizer)
    optimizer.param_groups[0]["noise"] = 0.0
    step(model, optimizer)
    assert figures(optimizer) == {}
    optimizer.param_groups[0]["noise"] = 0.4
    step(model, optimizer)
    assert list(figures(optimizer)) == ["0", "2"]


def test_over_the_loops_of_one_step_it_is_that_of_their_mean_loss():
    found = []
    for loops in (1, 4):
        model = network()
        optimizer = optimizer_of(model)
        optimizer.record_curvature()
        for taken_back in (True, False, False):
            for rows in range(loops):
                for _ in optimizer.passes():
                    part = slice(rows, None, loops)
                    (nn.functional.cross_entropy(model(INPUTS[part]), TARGETS[part]) / loops).backward()
            if not taken_back:
                optimizer.step()
            optimizer.zero_grad()
        found.append(figures(optimizer))
    for name, values in found[0].items():
        assert found[1][name] == pytest.approx(values, rel=1e-9)


def test_a_loop_that_was_left_half_way_does_not_count():
    model = network()
    optimizer = optimizer_of(model)
    optimizer.record_curvature()
    step(model, optimizer)
    before = figures(optimizer)
    for _ in optimizer.passes():
        loss(model).backward()
        break
    assert figures(optimizer) == before


def test_where_there_is_no_such_pair_it_is_refused():
    for settings, said in (({"signs": "halves"}, 'not "halves"'), ({"signs": "steps"}, 'not "steps"'),
                           ({"granularity": "filter"}, 'granularity="filter"')):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            optimizer_of(network(), **settings).record_curvature()
    assert optimizer_of(network()).curvature() == {}


# ---- in the log ------------------------------------------------------------------------------------------------------


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_log_has_it_and_a_resumed_run_logs_the_same(tmp_path):
    pytest.importorskip("tensorboard")
    config = toy_config(training={"log_curvature": True})
    train(tmp_path / "whole", config)
    logged = [row for row in rows(tmp_path / "whole") if row["kind"] == "train"]
    assert all({"sharpness", "relative_trace"} <= set(row) for row in logged)
    assert any(name.startswith("trace/rnn") for name in logged[0]) and "trace/out" in logged[0]
    assert all(row["sharpness"] == pytest.approx(row["relative_trace"] * 0.5**2 / 2) for row in logged)
    for steps in (4, 5, 11):
        train(tmp_path / "parts", config, max_steps=steps)
    train(tmp_path / "parts", config)
    again = [row for row in rows(tmp_path / "parts") if row["kind"] == "train"]
    times = ("seconds", "units_per_second")
    for one, other in zip(logged, again, strict=True):
        assert {k: v for k, v in one.items() if k not in times} == {k: v for k, v in other.items() if k not in times}


class BeginsAtZero(ToyTask):
    """Its last layer has no noise in the first step."""

    def __init__(self, config):
        super().__init__(config)
        nn.init.zeros_(self.model.out.weight)


def test_balanced_noise_has_no_one_level_to_relate_a_trace_to(tmp_path):
    pytest.importorskip("tensorboard")
    train(tmp_path, toy_config({"balance": True}, training={"log_curvature": True}), BeginsAtZero)
    logged = [row for row in rows(tmp_path) if row["kind"] == "train"]
    assert all("sharpness" in row and "relative_trace" not in row for row in logged)
    assert all(math.isfinite(row["trace/out"]) for row in logged)
    run = read_run(tmp_path)
    assert [row["sharpness"] for row in run.curvature] == [row["sharpness"] for row in logged]
    section = curvature_section(compare([run]))
    assert "curvature_whole" in section.pictures and "curvature_layers" in section.pictures


def test_noise_of_an_absolute_size_has_no_relative_trace(tmp_path):
    """R is of ‖n‖ = level · ‖w‖."""
    train(tmp_path, toy_config({"granularity": "absolute", "noise": 0.01}, training={"log_curvature": True}))
    logged = [row for row in rows(tmp_path) if row["kind"] == "train"]
    assert logged and all("sharpness" in row and "relative_trace" not in row for row in logged)


def test_levels_that_differ_have_no_relative_trace(tmp_path):
    config = toy_config(training={"log_curvature": True})
    task = BeginsAtZero(config)
    optimizer = build_optimizer(task.model, config.optim)
    groups = [group for group in optimizer.param_groups if group["noise"]]
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, 2))], "noise": groups[0]["noise"] / 2})
    log = CurvatureLog(optimizer, Progress(), torch.amp.GradScaler("cpu", enabled=False), True)
    for part in optimizer.passes():
        task.loss(next(iter(task.batches(0))), part)[0].backward()
    log.note()
    assert "sharpness" in log.progress.curvature and "relative_trace" not in log.progress.curvature


def test_methods_without_a_pair_have_no_curvature_to_log(tmp_path):
    for optim, said in (
        ({"method": "none", "noise": 0.0}, "only optim.method ssgd"),
        ({"signs": "steps"}, "both signs"),
    ):
        with pytest.raises(UserError, match=f"training.log_curvature: .*{said}"):
            train(tmp_path / said[:4], toy_config(optim=optim, training={"log_curvature": True}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.filterwarnings("ignore:at a noise level")
def test_products_too_small_for_half_precision_count(dtype):
    """The loss ½‖w‖², whose trace is the number of weights; squares of its noise are below what float16 can tell."""
    layer = nn.Linear(64, 1, bias=False).to(dtype)
    nn.init.constant_(layer.weight, 0.01)
    optimizer = optimizer_of(nn.Sequential(layer), noise=0.03, lr=0.0)
    optimizer.record_curvature()
    for _ in optimizer.passes():
        (layer.weight.square().sum() / 2).backward()
    (found,) = optimizer.curvature().values()
    assert found.trace.item() == pytest.approx(64, rel=0.02)


def test_sums_are_in_double_precision_where_the_device_has_it():
    assert chunks.widest(torch.device("cpu")) is torch.float64 and chunks.widest(torch.device("mps")) is torch.float32


def test_large_tensors_are_summed_in_pieces(monkeypatch):
    found = []
    for size in (10**6, 3):
        monkeypatch.setattr(chunks, "CHUNK", size)
        model = network()
        optimizer = optimizer_of(model)
        optimizer.record_curvature()
        step(model, optimizer)
        found.append(torch.stack([torch.stack(figures) for figures in optimizer.curvature().values()]))
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)
