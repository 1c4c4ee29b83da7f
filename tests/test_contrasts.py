"""The primary contrasts of the plan: what is chosen on validation, and what is tested, against scipy."""

import json

import numpy as np
import pytest
import scipy.stats
from made_runs import ADAM, HALVES, evaluated, make_run
from programs import load

from seqssgd.report.comparison import holm
from seqssgd.report.paired import paired_bootstrap

program = load("results/contrasts.py")
ASKED = program.CONTRASTS["demo_regularised"]

# validation and test perplexity by alternative and seed: the best on validation is the worst on the test set
FIGURES = {
    "none": {0: (81.0, 60.0), 1: (82.0, 61.0), 2: (80.5, 60.5), 3: (81.5, 61.5)},
    "weight_noise-0.2": {0: (79.0, 50.0)},
    "weight_noise-0.4": {0: (78.0, 59.0), 1: (78.5, 58.0), 2: (77.0, 59.5), 3: (78.1, 58.6)},
    "halves-0.4": {0: (77.5, 57.0), 1: (77.0, 56.0), 2: (77.9, 56.5), 3: (78.3, 58.0)},
    "halves-0.7": {0: (79.5, 40.0)},
    "phases-0.2": {0: (78.8, 59.0), 1: (78.0, 58.4)},
    "late_sam-0.05": {0: (70.0, 50.0)},
}


@pytest.fixture
def folder(tmp_path):
    for name, seeds in FIGURES.items():
        for seed, (valid, test) in seeds.items():
            make_run(
                tmp_path / f"{name}_s{seed}", [{"valid_perplexity": valid}], test={"perplexity": test},
                settings={"seed": seed},
            )  # fmt: skip
    return tmp_path


def figures_of(name, but=()):
    return [test for seed, (_, test) in FIGURES[name].items() if seed not in but]


def test_the_best_on_validation_is_tested_without_the_seed_that_chose_it(folder):
    best, halves = program.contrasts(folder, ASKED)
    assert best.names == ("halves-0.4", "none") and halves.names == ("halves-0.4", "weight_noise-0.4")
    mine, others = figures_of("halves-0.4", but=[0]), figures_of("none", but=[0])
    expected = scipy.stats.ttest_ind(mine, others, equal_var=False)
    assert (best.delta, best.p) == pytest.approx((np.mean(mine) - np.mean(others), expected.pvalue))
    assert (best.low, best.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    expected = scipy.stats.ttest_ind(figures_of("halves-0.4"), figures_of("weight_noise-0.4"), equal_var=False)
    assert halves.p == pytest.approx(expected.pvalue)
    assert [row.holm for row in (best, halves)] == holm([best.p, halves.p, 1.0])[:2]  # one of three was not run
    assert f"| the best noise − none | `halves-0.4` − `none` | 56.83 ± {np.std(mine, ddof=1):.2f} (3) − 61.00" in (
        program.table([best, halves])
    )


def test_what_has_not_been_run_is_no_row_and_one_run_a_side_no_test(folder):
    assert not program.contrasts(folder / "nothing", ASKED)
    for seed in (0, 1):
        make_run(
            folder / f"two_draws-0.2_s{seed}", [{"valid_perplexity": 79.0}], settings={"seed": seed},
            test={"perplexity": 59.0} if seed == 0 else None,
        )  # fmt: skip
    rows = program.contrasts(folder, ASKED)
    assert [row.contrast.arm for row in rows] == ["the best noise", "phases", "halves"]
    assert rows[1].p is rows[1].holm is None and rows[1].sides[1].n == 1
    assert [rows[0].holm, rows[2].holm] == holm([rows[0].p, rows[2].p, 1.0])[:2]  # of all that were planned


def test_recognisers_have_the_interval_over_the_same_speakers_too(tmp_path):
    for name, side in (("none", ADAM), ("halves-0.2", HALVES)):
        for seed, run in enumerate(side):
            evaluated(tmp_path / f"{name}_s{seed}", run, seed)
    (row,) = program.contrasts(tmp_path, program.CONTRASTS["ocean"])
    assert row.figure == "test_wer" and row.paired == (*paired_bootstrap(HALVES, ADAM), "5 speakers and over seeds")
    head, _, line = program.table([row]).splitlines()
    assert "| test WER | Δ (95 %) | paired (95 %) | p; Holm |" in head
    shown = " to ".join(f"{end:+.2f}".replace("-", "−") for end in row.paired[:2])
    assert f") | {shown}, over 5 speakers and over seeds | " in line and head.count("|") == line.count("|")


def test_of_every_arm_all_seeds_of_the_trial_that_validation_chose_are_kept(folder):
    make_run(
        folder / "sgd_s0", [{"valid_perplexity": 70.0}], settings={"seed": 0}
    )  # not tested: it has more trials to come
    kept = {run.path.name for run in program.kept(folder)}
    assert kept == {f"{name}_s{seed}" for name in FIGURES for seed in FIGURES[name]} - {
        "weight_noise-0.2_s0",
        "halves-0.7_s0",
    }
    assert {run.path.name for run in program.first_trials(folder)} == {f"{name}_s0" for name in [*FIGURES, "sgd"]}


def test_the_best_accuracy_on_validation_is_the_highest(tmp_path):
    for name, accuracy in (("halves-0.2", 70.0), ("halves-0.4", 80.0)):
        make_run(tmp_path / f"{name}_s0", [{"valid_accuracy": accuracy}])
    assert program.chosen(program.trials(tmp_path), ["halves"]) == "halves-0.4"


def test_a_trial_that_diverged_is_not_chosen_however_good_it_was_before(folder):
    result = folder / "halves-0.4_s0/result.json"
    result.write_text(json.dumps({**json.loads(result.read_text()), "diverged": "its weights are not finite"}))
    assert program.chosen(program.trials(folder), ["halves"]) == "halves-0.7"


def test_unfinished_runs_are_not_tested(folder):
    (folder / "halves-0.4_s3/result.json").unlink()
    assert [row.sides[0].n for row in program.contrasts(folder, ASKED)] == [2, 3]


def test_one_run_has_no_deviation_and_no_p_value_is_0():
    one, three = program.Estimate(20.0, None, 1), program.Estimate(9.0, 0.5, 3)
    row = program.Found(program.Contrast("a", "b"), "test_wer", ("a", "b"), (one, three), 11.0, 10.0, 12.0, 1e-5, 2e-5)
    line = program.table([row]).splitlines()[-1]
    assert "| 20.00 (1) − 9.00 ± 0.50 (3) |" in line and "| < 0.001; < 0.001 |" in line
