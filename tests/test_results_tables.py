"""What the tables of results are made of beside comparisons: effects over recipes, and sizes of noise by estimate."""

import json

import pytest
from made_runs import make_run, seeds
from programs import ROOT, generated_lines, load

from seqssgd.data.text import write_text_dataset
from seqssgd.errors import UserError
from seqssgd.language.finished import load_language_model
from seqssgd.optim.noise import norm_of
from seqssgd.report import compare, read_run

TABLES, SIZES = load("results/tables.py"), load("results/noise_sizes.py")


def test_effects_are_those_at_equal_passes_form_by_form(tmp_path):
    runs = seeds(tmp_path, "none", [20.0, 20.6]) + seeds(tmp_path, "one", [19.0], method="weight_noise", noise=0.2)
    runs += seeds(tmp_path, "halves", [18.0, 18.4], method="ssgd", noise=0.2, signs="halves")
    runs += seeds(tmp_path, "twice", [17.0], method="ssgd", noise=0.2, passes=40)  # of other passes: no effect
    comparison = compare([read_run(run) for run in runs])
    rows = [line.strip("| ").split(" | ") for line in TABLES.effects_table({"an4": comparison}).splitlines()]
    assert rows[0][-1] == "AN4, gated ConvNet, Δ WER in %"
    cells = {row[0]: row[1] for row in rows[2:]}
    assert cells["one-sided noise"].startswith("one seed: −1.30 (−")
    assert cells["S-SGD by halves"].startswith("−2.10 (−")
    assert cells["S-SGD, the paper's form (half the epochs)"] == cells["S-SGD, late in training"] == "not run"
    for noise in (0.1, 0.3):  # of a method that has no row, as many as there are
        runs += seeds(tmp_path, f"nso{noise}", [18.0], method="nso", noise=noise)
    assert TABLES.effects(compare([read_run(run) for run in runs])).keys() == TABLES.effects(comparison).keys()
    runs += seeds(tmp_path, "level", [17.0], method="ssgd", noise=0.4, signs="halves")
    with pytest.raises(UserError, match=r"S-Adam 0\.2, halves and S-Adam 0\.4, halves are both S-SGD by halves; "):
        TABLES.effects(compare([read_run(run) for run in runs]))


def test_sizes_that_were_not_logged_are_those_at_the_weights_of_the_run_that_is_given(tmp_path, monkeypatch, capsys):
    sets = {name: generated_lines(40, 15, seed=i) for i, name in enumerate(("train", "valid", "test"))}
    write_text_dataset(tmp_path / "data", sets, "15 words")
    words = [
        "--config",
        ROOT / "recipes/ptb_lstm/small_cpu.yaml",
        "--data",
        tmp_path / "data",
        "--out",
        tmp_path / "run",
    ]
    words += ["--model.hidden_size", 6, "--batch_size", 5, "--sequence_length", 4]
    words += ["--training.epochs", 1, "--training.threads", 1]
    assert load("recipes/ptb_lstm/train.py").main([str(word) for word in words]) == 0

    absolute = {"granularity": "absolute", "distribution": "gaussian"}
    for name, optim in (("nso", {"noise": 0.01, **absolute}), ("sam", {"rho": 0.05}), ("ssgd", {"noise": 0.5})):
        make_run(tmp_path / "made" / name, [20.0], method=name, **optim)
    monkeypatch.setattr(SIZES, "RESULTS", tmp_path)
    monkeypatch.setattr(TABLES, "RESULTS", tmp_path)
    assert TABLES.estimates("made") == ""
    SIZES.main(["made", "--run", str(tmp_path / "run"), "--of", "SGD"])
    found = json.loads((tmp_path / "made/noise_sizes.json").read_text())["c"]

    model, _ = load_language_model(tmp_path / "run")
    everything, matrices = list(model.parameters()), [p for p in model.parameters() if p.ndim > 1]
    assert found["SAM"] == pytest.approx(0.05 / norm_of(everything), rel=1e-6)
    assert found["NSO 0.01"] == pytest.approx(
        0.01 * sum(p.numel() for p in matrices) ** 0.5 / norm_of(matrices), rel=1e-6
    )
    assert set(found) == {"SAM", "NSO 0.01"}  # S-SGD's is its level
    assert f"SAM: {found['SAM']:.2g}" in TABLES.estimates("made") and "weights of SGD:" in TABLES.estimates("made")
