"""Runs side by side: what is missing or damaged is named, and what cannot be compared is refused."""

import json
from pathlib import Path

import pytest
import yaml
from made_runs import NONE, SSGD, by_label, compared, make_run, seeds
from programs import refused

from seqssgd.cli import main
from seqssgd.errors import UserError
from seqssgd.report import read_run, record, summary
from seqssgd.report.metrics import shared_metric

# ---- what is missing -------------------------------------------------------------------------------------------------


def test_tests_count_only_if_they_are_of_the_best_checkpoint_and_decide_only_if_all_runs_have_one(tmp_path, capsys):
    runs = seeds(tmp_path, "a", [20.0, 21.0]) + seeds(tmp_path, "b", [18.0, 17.0], **SSGD)
    assert compared(runs).decisive == "test_wer"
    record(runs[-1], "test", {"wer": 1.0, "checkpoint": "step-20.pt"})
    comparison = compared(runs)
    row = by_label(comparison)["S-Adam 0.2"]
    assert row.figure("test_wer") is None and by_label(comparison)["Adam"].figure("test_wer").mean == 20.5
    assert comparison.decisive == "valid_wer" and row.against["equal epochs"].delta == -3.0
    assert main(["compare", *map(str, runs)]) == 0
    assert "No test WER (not evaluated at the best checkpoint): b1." in capsys.readouterr().out


def test_evaluations_that_are_not_of_one_kind_are_named(tmp_path):
    runs = [make_run(tmp_path / "a", [30.0]), make_run(tmp_path / "b", [29.0], **SSGD)]
    best = {"wer": 20.0, "checkpoint": "best.pt", "utterances": 5}
    for run, decoding in zip(runs, ("beam 50 with big.arpa, alpha 0.3", "beam 8, beta 1"), strict=True):
        record(run, "test_beam", {**best, "decoding": decoding})
    text = "The test beam WER is not of one and the same evaluation: "
    said = f"{text}beam 50 with big.arpa, 5 utterances: a | beam 8, 5 utterances: b."
    assert said in summary(compared(runs))
    record(runs[1], "test_beam", {**best, "decoding": "beam 50 with big.arpa, alpha 0.5"})  # a weight of its own
    assert text not in summary(compared(runs))
    for run, words in zip(runs, (70, 90), strict=True):  # another test set
        record(run, "test_beam", {**best, "wer_counts": {"reference": words}})
    assert f"{text}5 utterances, 70 units of reference: a | " in summary(compared(runs))


def test_validation_data_decoded_once_more_are_no_result(tmp_path):
    run = make_run(tmp_path / "run", [30.0])
    for split in ("train_beam", "valid_beam"):
        record(run, split, {"wer": 10.0, "checkpoint": "best.pt"})
    assert compared([run]).decisive == "valid_wer"


def test_the_test_set_decides_before_other_splits_and_evaluations_leave_each_other_alone(tmp_path):
    run = make_run(tmp_path / "run", [30.0], test=20.0)
    for split in ("beam", "test_beam", "valid"):
        record(run, split, {"wer": 10.0, "checkpoint": "best.pt"})
    comparison = compared([run])
    assert comparison.figures == ["valid_wer", "test_wer", "beam_wer", "test_beam_wer"]
    assert comparison.decisive == "test_wer" and comparison.rows[0].figure("test_wer").mean == 20.0


def test_a_diverged_seed_is_named_and_its_method_has_no_mean(tmp_path, capsys):
    runs = [make_run(tmp_path / "good", [30.0]), make_run(tmp_path / "bad", [None], settings={"seed": 1})]
    runs.append(make_run(tmp_path / "ssgd", [29.0], **SSGD))
    comparison = compared(runs)
    assert [row.group.label for row in comparison.rows] == ["Adam", "S-Adam 0.2"]
    assert comparison.rows[0].figure("valid_wer") is None
    for baseline in ("Adam", "S-Adam 0.2"):  # whichever of the two lacks a value
        against = compared(runs, baseline=baseline).rows[baseline == "Adam"].against
        assert against["chosen baseline"] == (baseline, *NONE)
    assert main(["compare", *map(str, runs)]) == 0
    assert "No best valid WER (not finite): bad." in capsys.readouterr().out


def test_a_run_that_diverged_in_its_last_steps_counts_by_its_best_and_is_named(tmp_path, capsys):
    runs = [make_run(tmp_path / "good", [30.0]), make_run(tmp_path / "late", [31.0], settings={"seed": 1})]
    result = runs[1] / "result.json"
    result.write_text(json.dumps({**json.loads(result.read_text()), "diverged": "its weights are not finite"}))
    assert main(["compare", *map(str, runs)]) == 0
    said = capsys.readouterr().out
    assert "late diverged at its end (its weights are not finite); its best checkpoint counts." in said
    assert "good diverged" not in said


def test_unfinished_runs_are_left_out_and_named_or_taken_as_far_as_they_are(tmp_path, capsys):
    four = {"training": {"epochs": 4}}
    runs = [make_run(tmp_path / "done", [30.0] * 4)]
    runs.append(make_run(tmp_path / "killed", [31.0, 32.0], settings=four | {"seed": 1}, finished=False))
    with open(runs[1] / "metrics.jsonl", "a") as file:
        file.write('{"kind": "valid", "st')  # a line that was being written
    runs.append(make_run(tmp_path / "limited", [33.0, 34.0], settings=four | {"seed": 2}))  # by --max-steps
    runs.append(make_run(tmp_path / "young", [], settings=four | {"seed": 3}, finished=False))
    comparison = compared(runs)
    unfinished = "unfinished at epoch 2 of 4; --partial takes it in"
    limited = unfinished.replace("unfinished", "ended by a limit of steps")
    assert comparison.left_out == {"killed": unfinished, "limited": limited, "young": "no evaluation yet"}
    assert [len(row.group.runs) for row in comparison.rows] == [1]
    assert main(["compare", *map(str, runs)]) == 0
    assert f"Left out: killed: {unfinished}." in capsys.readouterr().out
    comparison = compared(runs, partial=True)
    assert {label: len(row.group.runs) for label, row in by_label(comparison).items()} == {
        "Adam": 1,
        "Adam, unfinished at step 20": 2,
    }
    assert list(comparison.left_out) == ["young"]
    ssgd = make_run(tmp_path / "ssgd", [29.0, 28.0], settings=four, finished=False, **SSGD)
    row = by_label(compared([runs[0], ssgd], partial=True))["S-Adam 0.2, unfinished at step 20"]
    assert row.against["equal epochs"] is None  # the baseline has made four
    with pytest.raises(UserError, match="nothing to compare .*limited: ended by a limit of steps at epoch 2 of 4"):
        compared(runs[1:])


def test_patience_ends_a_run_as_well_as_its_last_epoch_does(tmp_path):
    run = make_run(tmp_path / "run", [30.0], settings={"training": {"epochs": 4}})
    assert not read_run(run).finished
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"stopped_early": True}))
    assert read_run(run).finished


# ---- what is refused -------------------------------------------------------------------------------------------------


def damage(path: Path, name: str, text: str) -> Path:
    run = make_run(path, [30.0], test=20.0)
    (run / name).write_text(text)
    return run


ROW = '{"kind": "valid", "step": 10, "epoch": 1, "passes": 20, "seconds": 6, "valid_wer": 30.0}\n'
CONFIG = "optim: {method: none, base: sgd}\ntraining: {epochs: 1}\n"
RESULT = '{"steps": 10, "epochs": 1, "stopped_early": false}'
BEST = '{"step": 3, "epoch": 1, "valid_wer": "x"}'


def test_damaged_runs_are_named_with_what_is_wrong(tmp_path, capsys):
    cases = [
        ("metrics.jsonl", '{"kind": \n', "damaged"),
        ("metrics.jsonl", ROW + ROW.replace("10", "20"), "result.json ends differently"),
        ("metrics.jsonl", "[1]\n", "no row of metrics"),
        ("metrics.jsonl", ROW.replace('"epoch": 1, ', ""), "line 1: damaged (epoch is missing)"),
        ("metrics.jsonl", ROW.replace("20,", '"many",'), "passes: 'many' is not a number"),
        ("metrics.jsonl", ROW.replace("30.0", "[30]"), "line 1: damaged (valid_wer: [30] is not a number)"),
        ("metrics.jsonl", ROW.replace('"kind"', '"step": 3, "kind"'), "line 1: damaged (step is given twice"),
        ("config.yaml", "a: [", "no settings in YAML"),
        ("config.yaml", "words", "holds no settings"),
        ("config.yaml", "optim: {method: none, base: sgd}", "no training.epochs"),
        ("evaluation.json", "[1]", "holds no object"),
        ("config.yaml", CONFIG.replace("sgd", "[]"), "optim.base: [] is not a text"),
        ("config.yaml", CONFIG.replace("sgd", "sgd, noise: {a: 1}"), "optim.noise: {'a': 1} is not a number"),
        ("config.yaml", CONFIG.replace("1}", "'1'}"), "training.epochs: '1' is not a whole number"),
        ("config.yaml", f"{CONFIG}model: 3\nrecipe: ptb_lstm", "model: 3 is not a group of named values"),
        ("config.yaml", f"{CONFIG}model: {{name: []}}\nrecipe: ptb_lstm", "model.name: [] is not a text"),
        ("evaluation.json", '{"test": 3}', "test: 3 is not a group of named values"),
        ("evaluation.json", '{"test": {"wer": "3"}}', "test.wer: '3' is not a number"),
        ("result.json", "{", "Expecting property name"),
        ("result.json", RESULT.replace("1,", '"1",'), "epochs: '1' is not a whole number"),
        ("result.json", RESULT.replace("false", "0"), "stopped_early: 0 is not true or false"),
        ("result.json", RESULT.replace("}", ', "best": {"step": 3}}'), "best.epoch is missing"),
        ("result.json", RESULT.replace("}", f', "best": {BEST}}}'), "best.valid_wer: 'x' is not a number"),
        ("result.json", RESULT.replace("}", ', "steps": 1}'), "steps is given twice"),
        ("metrics.jsonl", ROW.replace("valid_wer", "valid_perplexity"), None),
        ("metrics.jsonl", ROW.replace('valid_wer": 30', 'valid_perplexity": 0'), "valid_perplexity: 0.0 is below 1"),
        ("metrics.jsonl", ROW.replace('wer": 30.0', 'accuracy": 100.1'), "valid_accuracy: 100.1 is above 100"),
        ("metrics.jsonl", ROW.replace("30.0", "-0.1"), "line 1: damaged (valid_wer: -0.1 is below 0)"),
        ("metrics.jsonl", ROW.replace("30.0", "130.0"), None),  # more words inserted than there are
        ("metrics.jsonl", ROW.replace("20,", "-20,"), "passes: -20 is below 0"),
        ("metrics.jsonl", ROW.replace("10", "11") + ROW, "line 2: damaged (step 10 comes after 11)"),
        ("metrics.jsonl", ROW.replace("20,", "21,") + ROW, "line 2: damaged (passes 20 comes after 21)"),
        ("config.yaml", CONFIG.replace("1}", "0}"), "training.epochs: 0, where metrics.jsonl has epoch 1"),
        ("result.json", RESULT.replace("1,", "99,"), "epochs: 99, where metrics.jsonl ends in epoch 1"),
        ("result.json", RESULT.replace("}", ', "seconds": -1}'), "seconds: -1 is below 0"),
        ("result.json", RESULT.replace("}", f', "best": {BEST[:-5]}-3}}}}'), "valid_wer: -3 is below 0"),
        (
            "result.json",
            RESULT.replace("}", f', "best": {BEST[:-5].replace("3", "11")}3}}}}'),
            "best: step 11 of epoch 1",
        ),
        ("evaluation.json", '{"test": {"wer": -1}}', "test.wer: -1 is below 0"),
        ("evaluation.json", '{"test": {"wer": 1, "perplexity": 0.9}}', "test.perplexity: 0.9 is below 1"),
    ]
    mends = {
        "config.yaml": "put the run's own",
        "metrics.jsonl": "repeat the run",
        "result.json": "delete it, and the co",
    }
    for number, (name, text, message) in enumerate(cases):
        run = damage(tmp_path / str(number), name, text)
        if message is None:
            read_run(run)
            continue
        line = refused(capsys, main, "compare", run)
        assert f"{run / name}: cannot be used (" in line and message in line, line
        assert mends.get(name, f"evaluate again: seqssgd evaluate --run {run} --save") in line


@pytest.mark.parametrize(
    "own, edited, message",
    [
        (SSGD, {"method": "none"}, "optim.method: none with noise 0, where metrics.jsonl has noise 0.2"),
        (SSGD, {"noise": 0.3}, "optim.method: ssgd with noise 0.3, where metrics.jsonl has noise 0.2"),
        (SSGD, {"method": "weight_noise"}, "optim.method: weight_noise, where metrics.jsonl has 20 passes at step 10"),
        (SSGD, {"noise_schedule": "1-1S"}, None),  # it may be below its level
        (SSGD, {"noise_schedule": "1-1S", "noise": 0.1}, "where metrics.jsonl has noise 0.2"),
        ({}, {**SSGD, "lr": 0.1}, "optim.method: ssgd with noise 0.2, where metrics.jsonl has noise 0"),
        ({}, {"method": "ema"}, "optim.method: ema, where the command in environment.json has none"),
        ({}, {"base": "sgd"}, "optim.base: sgd, where the command in environment.json has adam"),
        ({}, {"lr": 0.3}, "optim.lr: 0.3, where the command in environment.json has 1e-1"),
        ({}, {"lr": 0.1, "momentum": 0.5}, None),
    ],
)
def test_settings_that_a_runs_own_record_contradicts_are_refused(own, edited, message, tmp_path, capsys):
    settings = {"recipe": "ptb_lstm", "model": {"hidden_size": 3}}
    level, words = own.get("noise", 0.0), ["--optim.method=sam", "--optim.base", "adam", "--optim.lr", "1e-1"]
    row = {"valid_perplexity": 30.0, "noise": level}
    run = make_run(tmp_path / "run", [row, row], passes=20 if own else 10, settings=settings, lr=0.1, **own)
    (run / "metrics.jsonl").write_text("".join((run / "metrics.jsonl").read_text().splitlines(True)[1:]))
    command = ["recipes/ptb_lstm/train.py", *words, "--optim.method", own.get("method", "none")]
    (run / "environment.json").write_text(json.dumps({"command": command}))
    read_run(run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["optim"] |= edited
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    if message is None:
        read_run(run)
        return
    line = refused(capsys, main, "compare", run)
    assert f"{run / 'config.yaml'}: cannot be used (" in line and message in line, line
    assert "put the run's own config.yaml back" in line


def test_what_cannot_be_compared_is_named(tmp_path, capsys):
    wer = make_run(tmp_path / "wer", [30.0])
    other = make_run(tmp_path / "other", [{"valid_perplexity": 90.0}])
    data = make_run(tmp_path / "data", [30.0], settings={"data": {"fingerprint": "cd"}, "seed": 1})
    twin = make_run(tmp_path / "twin", [31.0], noise_seed=5)  # of no matter without noise
    both = make_run(tmp_path / "both", [31.0], **SSGD)
    again = make_run(tmp_path / "again", [31.0], **SSGD)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared/dataset.json").touch()
    for arguments, message in (
        ([wer, other], f"{other}: no metric in common with {wer} (valid_perplexity; valid_wer)"),
        ([wer, data], f"{data}: its data are not those of {wer} (data.fingerprint)"),
        ([wer, "--metric", "valid_cer"], "metric 'valid_cer': not in all of these runs; they share valid_wer"),
        ([wer, twin], f"{wer} and {twin}: the same settings and the same seed"),
        ([both, again], f"{both} and {again}: the same settings and the same seed"),
        ([wer, f"{tmp_path}/empty/../wer"], "given twice"),
        ([wer, both, "--baseline", "SAM"], "baseline 'SAM': none of these methods; they are Adam; S-Adam 0.2"),
        ([tmp_path / "nowhere"], f"{tmp_path}/nowhere: not a run directory (no config.yaml)"),
        ([tmp_path / "empty"], f"{tmp_path}/empty: not a run directory (no config.yaml)"),
        ([wer / "config.yaml"], "not a run directory"),
        ([wer, ""], "runs: the name that is given is empty; give one, or leave it out"),
        ([wer, "--out", ""], "out: the name that is given is empty; give one, or leave it out"),
        ([wer, "--out", tmp_path / "file"], f"{tmp_path}/file: cannot write there"),
        ([wer, "--out", other], f"--out {other}: a run directory; choose another folder"),
        ([wer, "--out", other / "report"], f"--out {other}/report: in {other}, a run directory"),
        ([wer, "--out", tmp_path / "prepared"], f"--out {tmp_path}/prepared: prepared data; choose another folder"),
    ):
        assert message in refused(capsys, main, "compare", *arguments)


def test_the_metric_is_one_that_all_runs_have_and_no_loss_if_there_is_another(tmp_path):
    a = read_run(make_run(tmp_path / "a", [{"valid_loss": 1.0, "valid_cer": 9.0, "valid_wer": 30.0}]))
    b = read_run(make_run(tmp_path / "b", [{"valid_loss": 1.0, "valid_cer": 9.0}]))
    assert [shared_metric(runs) for runs in ([a], [a, b])] == ["valid_wer", "valid_cer"]


@pytest.mark.parametrize("content", [None, "ef"])
def test_an_older_run_that_took_no_checksum_of_the_data_stands_beside_newer_ones(tmp_path, capsys, content):
    data = {"train": {"fingerprint": "ab", "content": "cd"}}
    new = make_run(tmp_path / "new", [30.0], settings={"data": data})
    known = {"fingerprint": "ab"} if content is None else {"fingerprint": "ab", "content": content}
    other = make_run(tmp_path / "other", [31.0], settings={"data": {"train": known}}, **SSGD)
    if content is None:
        [plain, noisy] = compared([new, other]).rows
        assert noisy.against["equal epochs"].delta == pytest.approx(1.0) and plain.group.is_baseline
    else:
        assert "(data.train.content)" in refused(capsys, main, "compare", new, other)
        known = {"data": {"train": {"fingerprint": "ab"}}}
        old = make_run(tmp_path / "old", [32.0], settings=known, method="sam", rho=0.05)  # hides nothing
        assert "(data.train.content)" in refused(capsys, main, "compare", old, new, other)
