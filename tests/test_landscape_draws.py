"""Weights in few bits, calibration, and draws of a run's own noise, each against what is counted one by one."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from landscape_runs import TINY, text, train
from torch import nn

from seqssgd import cli
from seqssgd.landscape import own_noise
from seqssgd.landscape.calibration import BINS, Tally, calibration
from seqssgd.landscape.rounding import in_bits, rounded
from seqssgd.landscape.sharpness import WeightNoise
from seqssgd.landscape.stages import BITS, StageSettings, run_stage
from seqssgd.landscape.study import FILE, read
from seqssgd.landscape.subjects import open_run

SETTINGS = StageSettings(terms=40, figure_terms=40, draws=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    data = text(folder / "data")
    methods = {
        "plain": ["--optim.method", "none"],
        "halves": ["--optim.method", "ssgd", "--optim.signs", "halves", "--optim.noise", 0.5],
        "ivon": ["--optim.method", "ivon", "--optim.ess", 1e3, "--optim.hess_init", 0.01],
    }
    return {name: train("ptb_lstm", "small_cpu", data, folder / name, *TINY, *words) for name, words in methods.items()}


# ---- few bits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 2, 2), (6,)])
@pytest.mark.parametrize("bits", BITS)
def test_weights_go_to_the_nearest_of_the_steps_of_their_row(shape, bits):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(bits), dtype=torch.float64)
    weight[0] = 0
    found = rounded(weight, bits)
    assert found.shape == shape and found.dtype == weight.dtype
    for row, result in zip(weight.numpy().reshape(shape[0], -1), found.numpy().reshape(shape[0], -1), strict=True):
        top = 2 ** (bits - 1) - 1
        steps = np.abs(row).max() * np.arange(-top, top + 1) / top
        nearest = steps[np.abs(row[:, None] - steps).argmin(1)]
        np.testing.assert_allclose(result, nearest, rtol=1e-6, atol=1e-12)
        assert len(np.unique(result)) <= 2**bits - 1
    assert torch.equal(rounded(found, bits), found) or bits == 8  # what has few bits stays, but for the last digits


def test_the_weights_are_back_whatever_happens():
    model = nn.Linear(3, 2)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="in between"), in_bits([model.weight], 3):
        assert not torch.equal(model.weight, before["weight"])
        raise RuntimeError("in between")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def figures(subject):
    loss, error, _ = subject.loss_and_error(subject.spread("test", 10**9))
    return {"loss": loss, "error": error}


def test_figures_in_few_bits_are_those_of_a_model_with_such_weights(runs):
    subject = open_run(runs["plain"])
    found = run_stage(subject, "rounding", SETTINGS)["bits"]
    assert list(found) == ["clean", *map(str, BITS)]
    assert found["clean"] == figures(subject)
    other = open_run(runs["plain"])
    with torch.no_grad():
        for p in WeightNoise(other.model).params:
            p.copy_(rounded(p, 3))
    assert found["3"] == figures(other) != found["clean"]


# ---- calibration -----------------------------------------------------------------------------------------------------


def test_calibration_is_what_counting_prediction_by_prediction_gives():
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(400, 5, generator=generator)
    logits[0] = torch.tensor([100.0, 0, 0, 0, 0])  # confidence 1
    labels = torch.randint(5, (400,), generator=generator)
    doubtful = logits.softmax(1).amax(1) < 0.7  # right and not sure of it, beside those sure and wrong: bins tell these
    labels[doubtful] = logits[doubtful].argmax(1)
    tally = Tally()
    for part in torch.arange(400).split(150):
        tally.add(logits[part].log_softmax(1), labels[part])
    probabilities = logits.double().softmax(1).numpy()
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    loss = wrong = 0.0
    for row, label in zip(probabilities, labels.tolist(), strict=True):
        loss -= math.log(row[label]) / 400
        wrong += (row.argmax() != label) / 4
        bins[next(b for b in range(BINS) if row.max() <= (b + 1) / BINS + 1e-12)].append(
            (row.max(), row.argmax() == label)
        )
    error = sum(abs(sum(c for c, _ in b) - sum(r for _, r in b)) for b in bins) / 4
    assert tally.result() == pytest.approx((loss, wrong, error), rel=1e-5)


def test_several_models_are_averaged_by_their_probabilities(monkeypatch):
    monkeypatch.setattr("seqssgd.landscape.calibration.LABELS", 30)  # so that the models come more than once
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(12, 4, generator=generator), torch.arange(12) % 4) for _ in range(5)]
    scales, begun = (0.5, 1.0, 4.0), []
    now = {"scale": math.nan}

    def models():
        begun.append(1)
        for now["scale"] in scales:
            yield
        now["scale"] = math.nan

    found = calibration(batches, lambda batch: now["scale"] * batch[0], lambda batch: batch[1], models)
    assert len(begun) == 3
    tally = Tally()
    for x, labels in batches:
        tally.add(torch.stack([(s * x).double().softmax(1) for s in scales]).mean(0).log(), labels)
    assert found == pytest.approx(tally.result(), rel=1e-5)


@pytest.mark.parametrize("name, draws", [("plain", None), ("halves", 4), ("ivon", 4)])
def test_calibration_of_a_run_and_of_draws_of_its_own_noise(runs, name, draws, tmp_path, capsys):
    capsys.readouterr()
    assert cli.main(["landscape", f"{runs[name]}@last", "--out", str(tmp_path), "--only", "calibration"]) == 0
    shown, said = (tmp_path / "landscape.md").read_text(), capsys.readouterr().out
    assert "\nCalibration:\n\n| run | loss |" in said and "Curvature" not in said
    found = read(tmp_path / FILE)["runs"][name]["calibration"]
    assert "warning" not in found and "left_out" not in found
    subject = open_run(runs[name], checkpoint="last")
    loss, error, _ = subject.loss_and_error(subject.spread("test", 10**9))
    assert (found["weights"]["loss"], found["weights"]["error"]) == pytest.approx((loss, error), rel=1e-4)
    assert found.get("draws") == (2 * draws if draws else None) and ("averaged" in found) == bool(draws)
    assert "| ECE in % |" in shown and f"| {name} |" in shown


def test_draws_of_a_run_are_of_its_level_with_both_signs_and_the_weights_come_back(runs):
    subject = open_run(runs["halves"])
    params = WeightNoise(subject.model).params
    clean = [p.clone() for p in params]
    count, models = own_noise.draws_of(subject, 2)
    moved = [[p - w for p, w in zip(params, clean, strict=True)] for _ in models()]
    assert len(moved) == count == 4
    for plus, minus in (moved[:2], moved[2:]):
        for n, m, w in zip(plus, minus, clean, strict=True):
            torch.testing.assert_close(n, -m, rtol=1e-4, atol=1e-6)
            assert n.norm() > 0 and n.norm() < w.norm()
    first, later = moved[0], moved[2]
    assert not torch.equal(first[0], later[0])
    together = sum(n.square().sum() for n in first).sqrt() / sum(w.square().sum() for w in clean).sqrt()
    assert together.item() == pytest.approx(0.5, rel=0.05)
    assert all(torch.equal(p, w) for p, w in zip(params, clean, strict=True))
    subject.settings["optim"]["noise"] = 0.0
    assert own_noise.draws_of(subject, 2)[0] == 0


def test_draws_of_an_ivon_run_have_the_spread_of_its_posterior(runs):
    subject = open_run(runs["ivon"], checkpoint="last")
    weights = list(subject.model.parameters())
    clean = [p.clone() for p in weights]
    _, models = own_noise.draws_of(subject, 30)
    squares = [torch.zeros_like(p) for p in weights]
    for _ in models():
        for total, p, w in zip(squares, weights, clean, strict=True):
            total += (p - w).square() / 60
    assert all(torch.equal(p, w) for p, w in zip(weights, clean, strict=True))
    subject.settings["optim"]["signs"] = "pairs"  # as if two processes had trained it
    assert own_noise.draws_of(subject, 30)[0] == 60
    state = torch.load(subject.checkpoint, weights_only=True)["optimizer"]
    variances = {}
    for group in state["param_groups"]:
        for number in group["params"]:
            h = state["state"][number]["hess"]
            variances[tuple(h.shape)] = (1 / (group["ess"] * (h + group["weight_decay"]))).mean().item()
    for total in squares:
        if total.numel() > 100:
            assert total.mean().item() == pytest.approx(variances[tuple(total.shape)], rel=0.2)
    best = run_stage(open_run(runs["ivon"]), "calibration", SETTINGS)
    assert "best.pt has no optimizer's state" in best["warning"] and "averaged" not in best
