"""Runs of studies over tiny corpora: stopped, killed, failing, tuned."""

import json
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import yaml
from made_runs import make_run
from programs import ROOT, generated_lines, outcome, refused
from study_program import OVERRIDES, RECIPES, STUDIES, STUDY, TRAIN

from seqssgd.data.text import write_text_dataset

TINY = {"model.hidden_size": 6, "batch_size": 5, "sequence_length": 4, "training.threads": 1, "training.epochs": 2}
PAIR = {
    "shows": "a pair",
    "arms": {"none": {"optim.method": "none"}, "ssgd": {"optim.method": "ssgd", "epochs": 0.5, "noise": 1}},
}
TUNED = {
    "shows": "trials",
    "tuned": True,
    "arms": {"none": {"optim.method": "none", "lr": [0.001, 1]}, "ema": {"optim.method": "ema", "lr": [1, 0.001]}},
}
ONCE = {"shows": "an arm with one seed", "arms": {**PAIR["arms"], "ssgd": {**PAIR["arms"]["ssgd"], "seeds": 1}}}
A_STEP = 0.0005  # minutes: enough to begin a run on a busy machine, and never enough to end it
# The decay makes the weights infinite in one step: what is only large stays finite on some processors.
WILD = {"optim.method": "none", "lr": 1e30, "optim.weight_decay": 1e30}
FAILING = {"shows": "a failure", "arms": {"wild": WILD, **PAIR["arms"]}}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "data"
    write_text_dataset(
        folder, {name: generated_lines(60, 15, seed=i) for i, name in enumerate(("train", "valid", "test"))}, "15 words"
    )
    return folder


@pytest.fixture
def run(data, tmp_path, monkeypatch):
    """Runs one of these studies on a tiny network into ``tmp_path``/out; gives the exit status."""
    (tmp_path / "studies.yaml").write_text(
        yaml.safe_dump({"pair": PAIR, "tuned": TUNED, "failing": FAILING, "once": ONCE}, sort_keys=False)
    )
    recipe = {"config": str(ROOT / "recipes/ptb_lstm/small_cpu.yaml"), "data": str(data), "roles": ["recurrent"]}
    recipes = {"tiny": {**recipe, "options": {"optim.noise": 0.5, **TINY}}}
    (tmp_path / "recipes.yaml").write_text(yaml.safe_dump(recipes))
    monkeypatch.setattr(STUDY, "HERE", tmp_path)

    def call(study: str, *options: object) -> int:
        return STUDY.main([*words(study, tmp_path), *map(str, options)])

    return call


def words(study: str, folder: Path) -> list[str]:
    return ["--study", study, "--recipe", "tiny", "--out", str(folder / "out")]


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_study_trains_evaluates_and_compares_every_run_seed_by_seed(run, data, tmp_path, capsys):
    assert run("pair", "--seeds", 3, 4) == 0
    said = capsys.readouterr().out
    assert [line[3:] for line in said.splitlines() if line.startswith("== ")] == [
        "none/seed3", "ssgd/seed3", "none/seed4", "ssgd/seed4"
    ]  # fmt: skip
    runs = [tmp_path / "out" / name for name in ("none/seed3", "ssgd/seed3", "none/seed4", "ssgd/seed4")]
    results = [json.loads((path / "result.json").read_text()) for path in runs]
    assert [result["epochs"] for result in results] == [2, 1, 2, 1]
    assert len({result["passes"] for result in results}) == 1
    assert all("perplexity" in json.loads((path / "evaluation.json").read_text())["test"] for path in runs)
    assert "| S-SGD 0.5" in said and " 2 |" in said and "test perplexity" in said
    assert "4 runs finished, 0 left" in said and "error" not in said
    assert f"seqssgd compare {' '.join(map(str, (runs[0], runs[1], runs[2], runs[3])))} --out report" in said

    # the run is that of train.py
    settings = {**TINY, "training.epochs": 1, "optim.method": "ssgd", "optim.noise": 0.5, "optim.lr_constant_epochs": 3,
                "optim.lr_divisor": yaml.safe_load((runs[3] / "config.yaml").read_text())["optim"]["lr_divisor"],
                "seed": 4, "optim.noise_seed": 4}  # fmt: skip
    alone = ["--config", ROOT / "recipes/ptb_lstm/small_cpu.yaml", "--data", data, "--out", tmp_path / "alone"]
    TRAIN.main(
        [str(word) for word in [*alone, *(word for pair in settings.items() for word in (f"--{pair[0]}", pair[1]))]]
    )
    assert outcome(tmp_path / "alone") == outcome(runs[3])

    before = times(tmp_path / "out")
    assert run("pair", "--seeds", 3, 4) == 0
    assert times(tmp_path / "out") == before and "== " not in capsys.readouterr().out


def test_options_reach_the_arms_that_have_no_value_of_their_own_which_is_said(data, tmp_path, capsys):
    arms = {**PAIR["arms"], "late": {"optim.method": "ssgd", "late": 0.5, "optim.noise": 0.1}}
    assert OVERRIDES.check_overrides(arms, ["--optim.noise_schedule", "1-1S"]) == [
        "--optim.noise_schedule is not for late, which sets it"
    ]
    recipe = {"config": str(ROOT / "recipes/ptb_lstm/small_cpu.yaml"), "roles": [], "options": TINY}
    study = STUDY.build({"arms": arms}, recipe, data, tmp_path / "out", [0], ["--optim", "{noise: 0.4}"])
    assert [cell.config["optim"]["noise"] for cell in study.cells] == [0.0, 0.4, 0.1]
    assert capsys.readouterr().err == "note: --optim.noise is not for late, which sets it\n"


def test_an_arm_may_have_fewer_seeds_than_the_others(run, capsys):
    assert run("once", "--seeds", 5, 4, "--list") == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "none/seed5", "ssgd/seed5", "none/seed4"
    ]  # fmt: skip
    assert run("once", "--arms", "ssgd", "--list") == 0
    assert capsys.readouterr().out == "ssgd/seed0: not begun\n"


def test_a_time_limit_stops_a_study_and_the_same_command_goes_on(run, tmp_path, capsys):
    auto = ["--", "--training.precision", "auto"]  # which is another word in a run's own configuration
    assert run("pair", "--max-minutes", A_STEP, *auto) == 0
    said = capsys.readouterr().out
    assert "0 runs finished, 2 left; next is none/seed0\nthe same command goes on" in said
    assert not (tmp_path / "out/ssgd").exists() and not (tmp_path / "out/none/seed0/result.json").exists()
    assert run("pair", "--list", *auto) == 0
    assert capsys.readouterr().out == "none/seed0: begun\nssgd/seed0: not begun\n"
    assert run("pair", *auto) == 0
    said = capsys.readouterr().out
    assert "resuming at step " in said and "2 runs finished, 0 left" in said
    before = times(tmp_path / "out")
    assert run("pair", *auto) == 0
    assert "2 runs finished, 0 left" in capsys.readouterr().out and times(tmp_path / "out") == before


def test_a_killed_study_goes_on_with_the_run_that_it_was_at(run, tmp_path, capsys):
    script = tmp_path / "study.py"  # the program, with these studies
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\nfrom programs import load, Path\n"
        f"study = load('recipes/studies/run.py')\nstudy.HERE = Path({str(tmp_path)!r})\nsys.exit(study.main())\n"
    )
    options = ["--", "--training.checkpoint_every", "5"]
    second, log = tmp_path / "out/ssgd/seed0", tmp_path / "log"
    process = forked.program(
        script, *words("pair", tmp_path), *options, log=log, killed_after="ssgd/seed0/checkpoints/step-*.pt"
    )
    process.join(100)
    assert process.exitcode == -9 and not (second / "result.json").exists(), log.read_text()
    before = times(tmp_path / "out/none/seed0")
    assert run("pair", *options) == 0
    said = capsys.readouterr().out
    assert "== none/seed0" not in said and "resuming at step" in said and "2 runs finished, 0 left" in said
    now = times(tmp_path / "out/none/seed0")
    assert {path: now[path] for path in before} == before


def test_a_run_that_another_process_is_at_is_left_to_it(run, tmp_path, capsys):
    assert run("pair", "--max-minutes", A_STEP) == 0
    capsys.readouterr()
    code = "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX); print(); input()"
    lock = tmp_path / "out/none/seed0/.lock"
    with subprocess.Popen(
        [sys.executable, "-c", code, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        other.stdout.readline()  # it has the lock
        assert run("pair") == 0
        said = capsys.readouterr()
        assert "none/seed0: another process is training it" in said.out and "== none/seed0" not in said.out
        assert "== ssgd/seed0" in said.out and "1 runs finished, 1 left" in said.out and "error" not in said.err
        other.communicate("\n")
    assert run("pair") == 0
    assert "2 runs finished, 0 left" in capsys.readouterr().out


class Others:
    """Other processes at trials, each for so many looks, and a clock that moves with every sleep alone."""

    def __init__(self, monkeypatch, looks):
        self.now, self.looks, self.sleeps = 0.0, looks, []
        monkeypatch.setattr(STUDY, "time", self)
        monkeypatch.setattr(STUDY, "in_use", lambda path: self.look(path.parent.name) and path.name == "seed0")

    def look(self, name):
        self.looks[name] = self.looks.get(name, 0) - 1
        return self.looks[name] >= 0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.sleeps.append(seconds)
        assert len(self.sleeps) < 100, "it waits for ever"
        self.now += seconds


def test_no_trial_is_the_best_while_another_process_is_at_one(run, tmp_path, capsys, monkeypatch):
    others = Others(monkeypatch, {"ema-0.001": 10**9})
    assert run("tuned", "--seeds", 0, 1, "--max-minutes", 0.1) == 0
    said = capsys.readouterr().out
    assert said.count("ema-0.001/seed0: another process is training it") == 1 and "/seed1" not in said
    assert "3 runs finished, 1 left" in said  # what further seeds there will be is not known
    assert others.sleeps == [2, 2, 2] and said.count("waiting for the trials of other processes") == 1


@pytest.mark.parametrize("looks", [1, 2, 3, 10, 11])
def test_further_seeds_wait_for_the_trials_of_other_processes(run, tmp_path, capsys, monkeypatch, looks):
    """One is stopped at its trial, while another trial is made here or while it is waited for: it is made here."""
    others = Others(monkeypatch, {"ema-0.001": looks})
    assert run("tuned", "--seeds", 0, 1) == 0
    said = capsys.readouterr().out
    assert said.count("ema-0.001/seed0: another process is training it") == 1
    assert 0 < said.index("== ema-0.001/seed0") < said.index("/seed1") and " 0 left" in said
    assert len(others.sleeps) == max(0, looks - 2)  # it is passed over, and told of


def test_a_run_of_another_process_is_told_of_once(run, tmp_path, capsys, monkeypatch):
    """One of two that others are at is free long before the other."""
    Others(monkeypatch, {"ema-0.001": 3, "none-0.001": 20})
    assert run("tuned", "--seeds", 0, 1) == 0
    said = capsys.readouterr().out
    assert said.count("ema-0.001/seed0: another") == said.count("none-0.001/seed0: another") == 1
    assert said.index("== ema-0.001/seed0") < said.index("== none-0.001/seed0") < said.index("/seed1")


def test_without_further_seeds_nothing_is_waited_for(run, tmp_path, capsys, monkeypatch):
    others = Others(monkeypatch, {"ema-0.001": 10**9})
    assert run("tuned") == 0
    assert not others.sleeps and "3 runs finished, 1 left" in capsys.readouterr().out


def test_a_trial_that_failed_is_not_tried_again_while_others_are_waited_for(run, tmp_path, capsys, monkeypatch):
    whole, tried = STUDY.call, []

    def failing(program, options):
        tried.append(str(options))
        return 1 if "ema-1" in str(options) else whole(program, options)

    monkeypatch.setattr(STUDY, "call", failing)
    Others(monkeypatch, {"ema-0.001": 12})
    assert run("tuned", "--seeds", 0, 1) == 1
    assert sum("ema-1/seed0" in options for options in tried) == 1
    assert "error: failed: ema-1/seed0" in capsys.readouterr().err


def test_a_run_that_failed_here_and_was_made_by_another_process_is_no_failure(run, tmp_path, capsys, monkeypatch):
    whole, failed = STUDY.call, []

    def failing(program, options):
        if "ema-1/seed0" in str(options) and not failed:
            failed.append((program, options))
            return 1
        if len(failed) == 1:
            failed.append(whole(*failed[0]))  # the other process, meanwhile
        return whole(program, options)

    monkeypatch.setattr(STUDY, "call", failing)
    assert run("tuned") == 0
    assert len(failed) == 2 and "4 runs finished, 0 left" in capsys.readouterr().out


def test_a_run_that_fails_is_named_and_does_not_stop_the_others(run, tmp_path, capsys, monkeypatch):
    whole = STUDY.call
    monkeypatch.setattr(STUDY, "call", lambda program, words: 2 if "1e+30" in words else whole(program, words))
    assert run("failing") == 1
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == "error: failed: wild/seed0; the same command tries them again"
    assert "2 runs finished, 1 left; next is wild/seed0" in said.out and "| S-SGD 0.5" in said.out


@pytest.mark.parametrize("limit", [2, 1000])  # of steps that are not finite: it ends there, or makes all its steps
def test_a_run_that_diverged_is_named_as_that_and_is_not_tried_again(run, tmp_path, capsys, limit):
    reason, shown = {
        2: ("loss or gradients not finite for 2 steps in a row", "Left out: wild/seed0: diverged at epoch 1 of 2; "),
        1000: ("valid_perplexity was never finite, so that ", "No best valid perplexity (not finite): wild/seed0."),
    }[limit]
    for _ in range(2):
        assert run("failing", "--", "--training.max_nonfinite", limit) == 0
        said = capsys.readouterr()
        assert f"diverged, and not tried again: wild/seed0: {reason}" in said.out
        assert "3 runs finished, 0 left\n" in said.out and "failed" not in said.err and "| S-SGD 0.5" in said.out
        assert shown in said.out
    assert not (tmp_path / "out/wild/seed0/evaluation.json").exists()
    assert run("failing", "--list", "--", "--training.max_nonfinite", limit) == 0
    assert "wild/seed0: diverged\nnone/seed0: finished\n" in capsys.readouterr().out


def test_an_error_in_an_evaluation_is_named_and_does_not_stop_the_others(run, tmp_path, capsys, monkeypatch):
    whole = STUDY.evaluate
    monkeypatch.setattr(STUDY, "evaluate", lambda words: 1 / 0 if "none" in words[1] else whole(words))
    assert run("pair") == 1
    said = capsys.readouterr()
    assert "ZeroDivisionError" in said.err and "failed: none/seed0 (evaluation)" in said.err
    assert "2 runs finished" in said.out and (tmp_path / "out/ssgd/seed0/evaluation.json").exists()


def test_a_signal_ends_the_study_with_its_status(run, monkeypatch, capsys):
    monkeypatch.setattr(STUDY, "call", lambda program, options: 143)
    assert run("pair") == 143
    assert "== ssgd" not in capsys.readouterr().out


def test_of_the_trials_the_best_on_validation_goes_on_and_it_alone_is_tested(run, tmp_path, capsys):
    assert run("tuned", "--seeds", 0, 1) == 0
    said = capsys.readouterr().out
    assert [line[3:] for line in said.splitlines() if line.startswith("== ")] == [
        "none-0.001/seed0", "ema-1/seed0", "none-1/seed0", "ema-0.001/seed0", "ema-1/seed1", "none-1/seed1"
    ]  # fmt: skip
    tested = {str(path.parent.relative_to(tmp_path / "out")) for path in tmp_path.rglob("evaluation.json")}
    assert tested == {"none-1/seed0", "none-1/seed1", "ema-1/seed0", "ema-1/seed1"}
    assert "best on validation, of the finished trials: ema-1, none-1" in said
    assert "6 runs finished, 0 left" in said and "none-0.001" not in said.split("seqssgd compare")[1]

    result = tmp_path / "out/none-1/seed0/result.json"  # as if its weights had become infinite after its best epoch
    result.write_text(json.dumps({**json.loads(result.read_text()), "diverged": "its weights are not finite"}))
    assert run("tuned") == 0
    said = capsys.readouterr().out
    assert "best on validation, of the finished trials: ema-1, none-0.001\n" in said
    assert "not tried again: none-1/seed0: its weights are not finite\n" in said and "== " not in said


# ---- wrong input -----------------------------------------------------------------------------------------------------


def test_finished_runs_of_other_settings_are_refused(run, capsys):
    assert run("pair") == 0
    said = refused(capsys, lambda words: run(*words), "pair", "--", "--optim.lr", 0.5)
    assert "none/seed0: a run of another configuration (optim.lr = 1.0, now 0.5); choose another directory" in said


def test_finished_runs_are_left_alone_whatever_computed_them(run, capsys):
    """A study begun on one machine goes on on another."""
    assert run("pair", "--", "--training.threads", 1) == 0
    capsys.readouterr()
    assert run("pair", "--", "--training.threads", 2) == 0
    said = capsys.readouterr().out
    assert "2 of 2 runs finished" in said and "\n==" not in said
    said = refused(capsys, lambda words: run(*words), "pair", "--", "--training.log_every", 7)
    assert "training.log_every" in said


def test_studies_that_cannot_be_made_are_refused_before_anything_is_written(run, tmp_path, capsys):
    def refuse(*options: object) -> str:
        message = refused(capsys, lambda words: run(*words), *options)
        assert not (tmp_path / "out").exists()
        return message

    assert "--study piar: did you mean pair?" in refuse("piar")
    assert "--study xyz: there are pair, tuned, failing, once" in refuse("xyz")
    assert "--arms ssg: did you mean ssgd?" in refuse("pair", "--arms", "none", "ssg")
    assert "--recipe xyz: there are tiny" in refuse("pair", "--recipe", "xyz")
    assert "training.epochs: 3 × 0.5 is no whole number" in refuse("pair", "--", "--training.epochs", 3)
    assert "absent: not a folder" in refuse("pair", "--data", tmp_path / "absent")
    assert "training.epoch: no such setting; did you mean training.epochs?" in refuse(
        "pair", "--", "--training.epoch", 3
    )
    assert "none-0.001 and none-1 would be the same" not in refuse("tuned", "--max-minutes", 0)
    assert "--max-minutes nan: it must be" in refuse("pair", "--max-minutes", "nan")
    assert "--seeds: -1 is not a whole number from 0 to" in refuse("pair", "--seeds", 0, -1)
    assert "--seeds 1 1: give each of them once" in refuse("pair", "--seeds", 1, 1)
    (tmp_path / "optim.yaml").write_text("{method: sam, rho: 0.1}")
    for words, message in {
        "--seed 5": "--seed: a study sets it; give --seeds before --",
        "--optim.noise_seed=5": "--optim.noise_seed: a study sets it; give --seeds before --",
        "--out X": "--out: it is an option of the study; give it before --",
        "--data=X": "--data: it is an option of the study; give it before --",
        "--max-minutes 3": "--max-minutes: it is an option of the study; give it before --",
        "--max-steps 5": "--max-steps: a study makes whole runs; give --training.epochs",
        "--optim.method sam --optim.rho 0.1": "--optim.method: the study's arms set it; choose another study, or train",
        "--optim {method:\u00a0sam}": "--optim.method: the study's arms set it",
        f"--optim {tmp_path}/optim.yaml": "--optim.method: the study's arms set it",
        f"--config={tmp_path}/optim.yaml": "--config: a study has the file of its recipe; give single settings",
    }.items():
        assert message in refuse("pair", "--", *(word.replace("\u00a0", " ") for word in words.split(" "))), words
    assert "--optim.noise: the study's arms set it" in refuse("tuned", "--", "--optim.noise", 1)
    same = {"shows": "", "arms": {"a": {"optim.method": "none"}, "b": {"optim.method": "none", "epochs": 1}}}
    (tmp_path / "studies.yaml").write_text(yaml.safe_dump({"same": same}))
    assert "a and b would be the same run" in refuse("same")
    (tmp_path / "studies.yaml").write_text(yaml.safe_dump({"own": {**PAIR, "recipes": ["an4", "wsj"]}}))
    assert "--study own: it is made for an4, wsj, not for tiny" in refuse("own")


def test_a_study_without_recipe_is_refused_and_the_list_names_all(capsys):
    assert "give --study and --recipe" in refused(capsys, STUDY.main, "--study", "pair")
    assert "give --study and --recipe" in refused(capsys, STUDY.main)
    assert STUDY.main(["--list"]) == 0
    said = capsys.readouterr().out
    assert all(f"{name} " in said for name in STUDIES) and f"recipes: {', '.join(RECIPES)}" in said


@pytest.mark.parametrize("direction, expected", [("max", "none-2"), ("min", "none-1")])
def test_the_best_trial_is_what_the_task_calls_best(tmp_path, monkeypatch, direction, expected):
    monkeypatch.setattr(STUDY.Cell, "finished", True)
    cells = []
    for name, bleu in (("none-1", 20.0), ("none-2", 30.0)):
        run = make_run(tmp_path / name, [{"valid_bleu": bleu}])
        found = json.loads((run / "result.json").read_text())
        best = {"best": {"valid_bleu": bleu, "step": 10, "epoch": 1}, "best_by": {"valid_bleu": direction}}
        (run / "result.json").write_text(json.dumps({**found, **best}))
        cells.append(STUDY.Cell("none", name, 0, run, [], {}))
    assert STUDY.Study(TRAIN, tmp_path, True, cells).kept() == {expected}
