"""Runs side by side, from their directories: groups, names, means, baselines, tests, and what is refused."""

import json

import numpy as np
import pytest
import scipy.stats
import toy_task
import yaml
from made_runs import NONE, SSGD, by_label, compared, make_run, seeds

from seqssgd.cli import main
from seqssgd.errors import UserError
from seqssgd.report import group_runs, read_run, record, summary
from seqssgd.report.comparison import holm, welch
from seqssgd.report.metrics import best_evaluation
from seqssgd.report.tables import figure_title

SHAPED = {"method": "ssgd_shaped", "noise": 0.2}
NSO = {"method": "nso", "noise": 0.01, "distribution": "gaussian", "granularity": "absolute"}


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_means_deviations_differences_and_p_values_are_numpys_and_scipys(tmp_path):
    adam, ssgd = [20.3, 20.9, 19.6, 21.4], [18.8, 19.7, 17.9]
    rows = by_label(compared(seeds(tmp_path, "a", adam) + seeds(tmp_path, "b", ssgd, passes=40, **SSGD)))
    for label, values in (("Adam", adam), ("S-Adam 0.2", ssgd)):
        found = rows[label].figure("test_wer")
        assert found.n == len(values)
        np.testing.assert_allclose((found.mean, found.sd), (np.mean(values), np.std(values, ddof=1)))
        np.testing.assert_allclose(rows[label].figure("valid_wer").mean, np.mean(values) + 1)
    found, expected = rows["S-Adam 0.2"].against["equal epochs"], scipy.stats.ttest_ind(ssgd, adam, equal_var=False)
    np.testing.assert_allclose(found.delta, np.mean(ssgd) - np.mean(adam))
    np.testing.assert_allclose((found.low, found.high), expected.confidence_interval(0.95))
    np.testing.assert_allclose(found.p, expected.pvalue)
    assert found.baseline == "Adam" and 0.01 < found.p < 0.1


@pytest.mark.parametrize("values, others", [([1.0], [2.0, 3.0]), ([1.0, 2.0], [3.0]), ([1.0, 1.0], [2.0, 2.0])])
def test_there_is_no_test_without_two_seeds_on_each_side_or_without_variation(values, others):
    assert welch(values, others) is None


def test_one_side_that_does_not_vary_is_tested_all_the_same():
    low, high, p = welch([1.0, 1.0, 1.0], [2.0, 3.0, 4.0])
    assert p == pytest.approx(scipy.stats.ttest_1samp([2.0, 3.0, 4.0], 1.0).pvalue) and low < -2 < high


def test_differences_of_single_runs_are_shown_without_a_test(tmp_path):
    rows = by_label(compared(seeds(tmp_path, "a", [20.0]) + seeds(tmp_path, "b", [18.0], **SSGD)))
    found = rows["S-Adam 0.2"].against["equal epochs"]
    assert found == ("Adam", -2.0, *NONE[1:])
    assert rows["Adam"].figure("test_wer").sd is None


def test_a_single_run_has_the_interval_of_the_spread_of_all_others(tmp_path):
    values = {"a": [20.0, 21.0, 22.5], "b": [18.0, 19.0], "c": [17.0]}
    levels = {"a": {}, "b": SSGD, "c": SSGD | {"signs": "halves"}}
    comparison = compared(
        [run for name, tests in values.items() for run in seeds(tmp_path, name, tests, **levels[name])]
    )
    residuals = [x - np.mean(tests) for tests in values.values() for x in tests]
    sd = np.sqrt(np.square(residuals).sum() / 3)
    np.testing.assert_allclose(comparison.spread, (sd, 3))
    found = by_label(comparison)["S-Adam 0.2, halves"].against["equal epochs"]
    half = scipy.stats.t.ppf(0.975, 3) * sd * np.sqrt(1 + 1 / 3)
    np.testing.assert_allclose(
        (found.low, found.high), (17 - np.mean(values["a"]) - half, 17 - np.mean(values["a"]) + half)
    )
    assert found.p is None and found.holm is None
    tested = by_label(comparison)["S-Adam 0.2"].against["equal epochs"]
    assert tested.holm == tested.p and tested.high != found.high  # the only one that is tested


@pytest.mark.parametrize("seed", range(5))
def test_holms_correction_rejects_what_his_procedure_rejects(seed):
    """Step down (Holm 1979): the smallest p against level/k, the next against level/(k - 1), until one fails."""
    p = np.random.default_rng(seed).beta(0.4, 3, size=7).round(3).tolist() + [0.02, 0.02]
    for level in (0.01, 0.05, 0.2, 0.7):
        rejected = set()
        for rank, index in enumerate(np.argsort(p, kind="stable")):
            if p[index] > level / (len(p) - rank):
                break
            rejected.add(index)
        assert {index for index, corrected in enumerate(holm(p)) if corrected <= level + 1e-12} == rejected
    assert holm([]) == []


def test_curves_are_means_over_the_epochs_that_all_runs_have(tmp_path):
    a = make_run(tmp_path / "a", [50.0, 30.0, None, 20.0])
    b = make_run(tmp_path / "b", [40.0, 20.0, 15.0, 14.0], passes=22, settings={"seed": 1})
    (row,) = compared([a, b]).rows
    assert [point.epoch for point in row.curve] == [1, 2, 4]
    assert [point.passes for point in row.curve] == [21, 42, 84]
    np.testing.assert_allclose([p.mean for p in row.curve], [45, 25, 17])
    np.testing.assert_allclose([p.sd for p in row.curve], np.std([[50, 30, 20], [40, 20, 14]], axis=0, ddof=1))


def test_the_validation_figure_is_that_of_the_checkpoint_that_was_tested(tmp_path):
    """Best by WER: its CER is not the lowest."""
    values = [{"valid_wer": 30.0, "valid_cer": 9.0}, {"valid_wer": 20.0, "valid_cer": 10.0}]
    run = make_run(tmp_path / "run", values, test={"wer": 21.0, "cer": 10.5})
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"best": {**values[1], "step": 20, "epoch": 2}}))
    (row,) = (comparison := compared([run], metric="valid_cer")).rows
    assert figure_title(comparison, "valid_cer") == "valid CER"
    assert figure_title(compared([run]), "valid_wer") == "best valid WER"
    assert (row.figure("valid_cer").mean, row.figure("test_cer").mean) == (10.0, 10.5)
    (run / "result.json").unlink()  # an unfinished run does not say what is best
    assert best_evaluation(read_run(run), "valid_cer")["epoch"] == 1


def test_an_accuracy_is_best_when_high(tmp_path):
    values = [{"valid_accuracy": value, "valid_loss": loss} for value, loss in ((0.5, None), (0.75, 2.0), (0.6, 3.0))]
    low = make_run(tmp_path / "low", values)
    high = make_run(tmp_path / "high", [*values[:2], {"valid_accuracy": 0.8, "valid_loss": 2.5}], **SSGD)
    run = read_run(low)
    assert best_evaluation(run, "valid_accuracy")["epoch"] == best_evaluation(run, "valid_loss")["epoch"] == 2
    comparison = compared([low, high])
    assert comparison.metric == "valid_accuracy" and not comparison.lower_is_better
    assert [row.group.label for row in comparison.rows] == ["Adam", "S-Adam 0.2"]


@pytest.mark.parametrize(("kind", "verdict"), [("max", "Better"), ("min", "Worse")])
def test_which_values_of_a_metric_are_better_is_what_the_runs_were_chosen_by(tmp_path, kind, verdict):
    runs = []
    for name, values, optim in (("a", (60.0, 61.0, 62.0), {}), ("b", (80.0, 81.0, 82.5), SSGD)):
        for seed, value in enumerate(values):
            runs.append(make_run(tmp_path / f"{name}{seed}", [{"valid_f1": value}], settings={"seed": seed}, **optim))
            file = runs[-1] / "result.json"
            best = {"best": {"valid_f1": value, "step": 10, "epoch": 1}, "best_by": {"valid_f1": kind}}
            file.write_text(json.dumps({**json.loads(file.read_text()), **best}))
    text = summary(compared(runs))
    assert f"{'Higher' if kind == 'max' else 'Lower'} is better." in text
    assert f"after Holm's correction: {verdict}: S-Adam 0.2." in text


def test_methods_stand_family_by_family_whatever_their_figures(tmp_path):
    made = [
        {"method": "sam"},
        SSGD | {"signs": "halves"},
        SSGD,
        {"method": "weight_noise", "noise": 0.1},
        {},
        {"lr": 3.0},
    ]
    made.insert(1, SSGD | {"noise": 0.1})
    for order in (1, -1):
        runs = [make_run(tmp_path / f"{order}{n}", [30.0 + order * n], **optim) for n, optim in enumerate(made)]
        assert [row.group.label for row in compared(runs[::order]).rows] == [
            *("Adam", "Adam, lr 3", "weight noise 0.1", "S-Adam 0.1", "S-Adam 0.2", "S-Adam 0.2, halves", "SAM")
        ]


def test_a_run_without_validation_data_is_compared_by_its_evaluation(tmp_path):
    runs = [make_run(tmp_path / str(n), [{}, {}], test={"accuracy": a, "images": 5}) for n, a in enumerate((0.5, 0.7))]
    settings = yaml.safe_load((runs[1] / "config.yaml").read_text())
    (runs[1] / "config.yaml").write_text(yaml.safe_dump({**settings, "seed": 1}))
    record(runs[0], "train", {"a": 1.0, "accuracy": 0.9, "checkpoint": "best.pt"})  # what was learned is no result
    record(runs[1], "train", {"a": 1.0, "accuracy": 0.9, "checkpoint": "best.pt"})
    comparison = compared(runs)
    (row,) = comparison.rows
    assert comparison.figures == ["test_accuracy"] == [comparison.decisive] and comparison.drawn == "train_loss"
    assert row.figure("test_accuracy").mean == 0.6 and [point.mean for point in row.curve] == [3.0, 1.5]


# ---- groups ----------------------------------------------------------------------------------------------------------


def test_runs_are_grouped_by_everything_but_their_seeds_and_names(tmp_path):
    runs = [
        make_run(tmp_path / "ssgd_a", [30.0], **SSGD, noise_seed=3),
        make_run(tmp_path / "sgd", [30.0], settings={"seed": 7}, **SSGD, noise_seed=4),
        make_run(tmp_path / "ssgd_b", [30.0], settings={"seed": 8}, **SSGD, lr=0.5),
        make_run(tmp_path / "ssgd_c", [30.0], settings={"seed": 8, "model": {"width": 300}}, **SSGD),
    ]
    groups = group_runs(map(read_run, runs))
    assert [[run.path.name for run in group.runs] for group in groups] == [["ssgd_a", "sgd"], ["ssgd_b"], ["ssgd_c"]]
    assert [group.label for group in groups] == ["S-Adam 0.2", "S-Adam 0.2, lr 0.5", "S-Adam 0.2, width 300"]


def test_how_a_run_was_logged_and_on_how_many_threads_makes_no_other_method(tmp_path):
    watched = {
        "seed": 1,
        "training": {"epochs": 1, "log_every": 7, "threads": 3, "keep": 9, "device": "cpu", "graphs": True},
    }
    runs = [make_run(tmp_path / "a", [30.0]), make_run(tmp_path / "b", [30.0], settings=watched)]
    (group,) = group_runs(map(read_run, runs))
    assert len(group.runs) == 2 and group.label == "Adam"
    clipped = make_run(tmp_path / "c", [30.0], settings={"training": {"epochs": 1, "clip": 5.0}})
    assert len(group_runs(map(read_run, [*runs, clipped]))) == 2


@pytest.mark.parametrize("method", ["none", "sam", "ema"])
def test_two_seeds_of_noise_are_one_run_of_a_method_that_draws_none(tmp_path, method):
    runs = [make_run(tmp_path / str(seed), [30.0], method=method, noise_seed=seed) for seed in (0, 1)]
    with pytest.raises(UserError, match="the same settings and the same seed"):
        group_runs(map(read_run, runs))


def test_settings_that_did_not_exist_when_a_run_was_made_have_their_defaults(tmp_path):
    old = make_run(tmp_path / "old", [30.0], **SSGD)
    new = make_run(tmp_path / "new", [30.0], settings={"seed": 1}, **SSGD, bn_stats="both", betas=[0.9, 0.999])
    other = make_run(tmp_path / "other", [30.0], settings={"seed": 2}, **SSGD, bn_stats="first")
    assert [len(group.runs) for group in group_runs(map(read_run, (old, new, other)))] == [2, 1]


@pytest.mark.parametrize(
    "changes, labels",
    [
        ([{}, SSGD, SSGD | {"signs": "halves"}], ["SGD", "S-SGD 0.2", "S-SGD 0.2, halves"]),
        ([SSGD, SSGD | {"noise": 0.25}], ["S-SGD 0.2", "S-SGD 0.25"]),
        ([{}, {"epochs": 2}, {"epochs": 2, "lr": 3.0}], ["SGD, 1 epoch", "SGD", "SGD, lr 3"]),
        ([{"base": "adam"}, {"base": "adamw"}, SSGD | {"base": "adam"}], ["Adam", "AdamW", "S-Adam 0.2"]),
        ([{"method": "sam"}, {"method": "weight_noise", "noise": 0.1}], ["SAM", "weight noise 0.1"]),
        (
            [NSO, NSO | {"distribution": "uniform"}, NSO | {"granularity": "layer"}],
            ["NSO 0.01", "NSO 0.01, uniform", "NSO 0.01, per layer"],
        ),
        (
            [SSGD | {"distribution": "gaussian", "only": ["conv", "dense"]}, SSGD | {"noise_schedule": "1-1S"}],
            ["S-SGD 0.2, gaussian, conv, dense alone", "S-SGD 0.2, phases 1-1S"],
        ),
        ([SSGD, SSGD | {"noise_ramp": [2, 4]}], ["S-SGD 0.2", "S-SGD 0.2, ramp from 2 over 4"]),
        ([SSGD | {"balance": False}, SSGD | {"balance": True}], ["S-SGD 0.2", "S-SGD 0.2, balanced"]),
        (
            [SHAPED | {"precondition": False}, SHAPED | {"precondition": True}],
            ["S-SGD, shaped 0.2", "S-SGD, shaped 0.2, preconditioned"],
        ),
        ([{"lr": 1.0}, {"lr": 2.0}, {"lr": 2.0, "momentum": 0.9}, {"lr": 3.0}],  # none is that of most
         ["SGD, lr 1", "SGD, lr 2", "SGD, lr 2, momentum 0.9", "SGD, lr 3"]),
    ],
)  # fmt: skip
def test_a_group_is_named_by_its_method_and_what_tells_it_from_the_others(tmp_path, changes, labels):
    runs = []
    for number, change in enumerate(changes):
        epochs = change.get("epochs", 1)
        optim = {"base": "sgd"} | {key: value for key, value in change.items() if key != "epochs"}
        runs.append(make_run(tmp_path / str(number), [30.0] * epochs, **optim))
    assert [group.label for group in group_runs(map(read_run, runs))] == labels


# ---- baselines -------------------------------------------------------------------------------------------------------


def test_a_method_is_held_against_equal_epochs_and_equal_passes(tmp_path):
    make = {
        "adam": make_run(tmp_path / "adam", [30.0] * 2),
        "long": make_run(tmp_path / "long", [28.0] * 4, passes=20.2),  # equal within two percent
        "ssgd": make_run(tmp_path / "ssgd", [27.0] * 2, passes=40, **SSGD),
        "halves": make_run(tmp_path / "halves", [29.0] * 2, **SSGD, signs="halves"),
        "sgd": make_run(tmp_path / "sgd", [10.0] * 2, base="sgd"),  # another base optimizer
        "wide": make_run(tmp_path / "wide", [9.0] * 2, settings={"model": {"width": 300}}),  # another model
        "three": make_run(tmp_path / "three", [26.0] * 3, passes=28, **SSGD),  # passes that differ by more
        "adamw": make_run(tmp_path / "adamw", [9.0] * 2, **SSGD, base="adamw"),
        "other": make_run(tmp_path / "other", [9.0] * 2, settings={"model": {"width": 20}}, **SSGD),  # neither has one
    }
    against = {row.group.runs[0].path.name: row.against for row in compared(make.values()).rows}
    found = {name: [d and (d.baseline, d.delta) for d in row.values()] for name, row in against.items()}
    assert found["ssgd"] == [("Adam", -3.0), ("Adam, 4 epochs", -1.0)]
    assert found["halves"] == [("Adam", -1.0), ("Adam", -1.0)]
    assert found["three"] == found["other"] == found["adamw"] == [None, None]
    assert found["adam"] == [("Adam", None)] * 2 and found["wide"] == [("Adam, width 300", None)] * 2


def test_of_several_baselines_the_one_with_the_fewest_other_settings_is_taken(tmp_path):
    runs = [make_run(tmp_path / str(lr), [30.0 + lr], lr=lr) for lr in (0.1, 0.2)]
    runs.append(make_run(tmp_path / "ssgd", [29.0], lr=0.2, **SSGD))
    assert by_label(compared(runs))["S-Adam 0.2"].against["equal epochs"].delta == pytest.approx(-1.2)


def test_a_baseline_of_another_precision_is_said_to_be_one(tmp_path):
    runs = [make_run(tmp_path / "adam", [30.0], settings={"training": {"epochs": 1, "precision": "fp32"}})]
    runs.append(make_run(tmp_path / "ssgd", [29.0], settings={"training": {"epochs": 1, "precision": "bf16"}}, **SSGD))
    said = "Equal epochs, trained otherwise than the baseline: S-Adam 0.2 (training.precision bf16 against fp32)."
    assert said in summary(compared(runs))


def test_a_baseline_steps_on_as_many_minibatches(tmp_path):
    runs = []
    for optim, shift in (({"method": "none"}, 0), (SSGD, -2)):
        for count in (2, 8, 16):
            settings = {"training": {"epochs": 1, "accumulate": count}}
            path = tmp_path / f"{optim['method']}{count}"
            runs.append(make_run(path, [30.0 + count + shift], settings=settings, **optim))
    against = {name: row.against["equal passes"] for name, row in by_label(compared(runs)).items()}
    assert {name: (found.baseline, found.delta) for name, found in against.items()} == {
        "Adam, accumulate 2": ("Adam, accumulate 2", None), "Adam, accumulate 8": ("Adam, accumulate 8", None),
        "Adam, accumulate 16": ("Adam, accumulate 16", None),
        "S-Adam 0.2, accumulate 2": ("Adam, accumulate 2", -2.0),  # no value is usual: all are named
        "S-Adam 0.2, accumulate 8": ("Adam, accumulate 8", -2.0),
        "S-Adam 0.2, accumulate 16": ("Adam, accumulate 16", -2.0),
    }  # fmt: skip
    alone = compared([runs[3], runs[2]])  # 2 minibatches beside 16
    assert [row.against for row in alone.rows][1] == {"equal epochs": None, "equal passes": None}
    assert [row.group.label for row in alone.rows] == ["Adam", "S-Adam 0.2"]


@pytest.mark.parametrize("name", ["s-adam 0.2", "ssgd", "PATH"])
def test_any_method_can_be_the_baseline_of_all(tmp_path, name):
    runs = [make_run(tmp_path / "adam", [30.0] * 2), make_run(tmp_path / "ssgd", [27.0] * 2, passes=40, **SSGD)]
    runs.append(make_run(tmp_path / "long", [29.0] * 4))
    comparison = compared(runs, baseline=f"{runs[1]}/" if name == "PATH" else name)
    against = {label: list(row.against.items()) for label, row in by_label(comparison).items()}
    assert against == {
        "S-Adam 0.2": [("chosen baseline", ("S-Adam 0.2", *NONE)),
                       ("equal passes", ("Adam, 4 epochs", -2.0, *NONE[1:]))],
        "Adam": [("chosen baseline", ("S-Adam 0.2", 3.0, *NONE[1:])),
                 ("equal passes", ("Adam", *NONE))],
        "Adam, 4 epochs": [("chosen baseline", ("S-Adam 0.2", 2.0, *NONE[1:])),
                           ("equal passes", ("Adam, 4 epochs", *NONE))],
    }  # fmt: skip


# ---- real runs -------------------------------------------------------------------------------------------------------


def test_real_runs_are_compared(tmp_path, capsys):
    for seed in (0, 1):
        toy_task.train(tmp_path / f"run{seed}", toy_task.toy_config(training={"epochs": 2}, seed=seed))
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "run0"), str(tmp_path / "run1")]) == 0
    row = [cell.strip() for cell in capsys.readouterr().out.splitlines()[2].strip("|").split("|")]
    best = [json.loads((tmp_path / f"run{seed}/result.json").read_text())["best"]["valid_loss"] for seed in (0, 1)]
    assert row[:5] == ["S-SGD 0.5", "2", "0.5", "2", "20"]
    assert row[5] == f"{np.mean(best):.4f} ± {np.std(best, ddof=1):.4f}"


def test_a_limit_of_steps_within_an_epoch_leaves_one_evaluation_of_that_epoch(tmp_path):
    config = toy_task.toy_config(training={"epochs": 2})
    toy_task.train(tmp_path / "run", config, max_steps=7)
    assert not read_run(tmp_path / "run").finished
    toy_task.train(tmp_path / "run", config)
    run = read_run(tmp_path / "run")
    assert run.finished and [(row["epoch"], row["step"]) for row in run.rows] == [(1, 5), (2, 10)]


def test_the_bare_name_of_a_method_is_never_that_of_unusual_settings(tmp_path):
    usual = {"lr": 1.0, "width": 190, "dropout": 0.1}
    trials = [{"lr": 2.0}, {"lr": 0.5}, {"width": 256}, {"dropout": 0.0}, {"dropout": 0.2}]

    def labels(*trials):
        runs = []
        for number, trial in enumerate(trials):
            chosen = usual | trial
            model = {"model": {"dropout": chosen["dropout"], "width": chosen["width"]}}
            runs.append(make_run(tmp_path / f"{len(trials)}_{number}", [20.0], settings=model, lr=chosen["lr"]))
        return [group.label for group in group_runs([read_run(run) for run in runs])]

    named = ["Adam, lr 2", "Adam, lr 0.5", "Adam, width 256", "Adam, dropout 0", "Adam, dropout 0.2"]
    assert labels(*trials) == named and labels(*trials, {}) == [*named, "Adam"]
