"""The run directory: one owner of its names, older configurations, checkpoints of others, lists and differences."""

import ast
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
import torch
import yaml
from programs import outcome
from toy_task import ToyTask, toy_config, train

from seqssgd.cli import main
from seqssgd.errors import UserError
from seqssgd.optim import SinglePass
from seqssgd.report.listing import list_runs
from seqssgd.runs import checkpoints, layout, plausible
from seqssgd.runs.comparing import differences
from seqssgd.runs.directory import RunDirectory, in_use
from seqssgd.runs.reading import read_run, record
from seqssgd.runs.settings import check_kinds, completed
from seqssgd.training import OptimConfig, TrainingConfig, build_optimizer, build_schedulers, fit

ROOT = Path(__file__).parents[1]
NAMES = {value for key, value in vars(layout).items() if key.isupper()} - {layout.LOCK, layout.EVALUATION_LOCK}


def strings(path: Path) -> set[str]:
    """The texts in a program that are neither documentation nor a part of a sentence."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return {value for value in constants if isinstance(value, str)}


def test_no_other_module_spells_the_names_in_a_run_directory():
    modules = [*ROOT.glob("seqssgd/**/*.py"), *ROOT.glob("recipes/**/*.py"), ROOT / "results/tables.py"]
    files = NAMES - {layout.CHECKPOINTS, layout.TENSORBOARD, layout.TOKENIZER}  # these are words, too
    spelled = {path.relative_to(ROOT).as_posix(): files & strings(path) for path in modules}
    assert {name: found for name, found in spelled.items() if found and name != "seqssgd/runs/layout.py"} == {}
    assert len(modules) > 100 and files == {
        *("config.yaml", "environment.json", "metrics.jsonl", "result.json", "evaluation.json"),
        *("errors_*.csv", "best.pt", "model.safetensors"),
    }


def edit(path: Path, change) -> None:
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config, sort_keys=False))


# ---- configurations of older versions --------------------------------------------------------------------------------


@dataclass
class Inner:
    width: int = 3
    twice: int | None = None

    def __post_init__(self):
        if self.width < 1:
            raise ValueError("width")
        self.twice = 2 * self.width if self.twice is None else self.twice


@dataclass
class Outer:
    inner: Inner = field(default_factory=Inner)
    rates: tuple[float, ...] = (1.0, 2.0)
    seed: int = 0


def test_what_a_configuration_lacks_has_its_default_and_what_follows_from_it():
    assert completed({"inner": {"width": 5}, "seed": 4, "data": {"a": 1}}, Outer) == {
        "inner": {"width": 5, "twice": 10},
        "rates": [1.0, 2.0],
        "seed": 4,
        "data": {"a": 1},
    }
    assert completed({"inner": {"width": 0, "of old": 1}}, Outer)["inner"] == {"width": 0, "twice": 6, "of old": 1}
    assert completed({"inner": "no section"}, Outer)["inner"] == "no section"


def test_a_bug_of_a_section_is_not_taken_for_a_setting_that_it_refuses():
    @dataclass
    class Broken:
        width: int = 3

        def __post_init__(self):
            if self.width != 3:
                raise AttributeError("a bug")

    with pytest.raises(AttributeError, match="a bug"):
        completed({"width": 5}, Broken)


def test_settings_of_another_type_are_named(tmp_path):
    check_kinds({"inner": {"width": 5}, "rates": [1, 2], "seed": 4}, Outer)
    for settings, said in (({"inner": {"width": "5"}}, "inner.width: '5' is not a whole number"),
                           ({"seed": False}, "seed: False is not a whole number"),  # which is equal to its default
                           ({"rates": [True, 2.0]}, "rates: True is not a number")):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{said}$"):
            check_kinds(settings, Outer)
    RunDirectory(tmp_path, Outer()).close()
    edit(tmp_path / "config.yaml", lambda settings: settings.update(seed=False))
    with pytest.raises(UserError, match=r"config\.yaml: seed: False is not a whole number; put the run's own back"):
        RunDirectory(tmp_path, Outer())


def test_a_run_of_a_version_without_some_settings_resumes_to_the_same_bits(tmp_path):
    config = toy_config()
    train(tmp_path / "whole", config)
    train(tmp_path / "old", config, max_steps=7)

    def forget(settings):  # as if they were new: their values here are the defaults
        for section, key in (("training", "log_curvature"), ("training", "max_nonfinite"), ("optim", "damping"),
                             ("optim", "only"), ("optim", "copies")):  # fmt: skip
            assert settings[section].pop(key) == asdict(config)[section][key]

    edit(tmp_path / "old/config.yaml", forget)
    from toy_task import ToyConfig

    run = RunDirectory(tmp_path / "old", config)
    assert isinstance(config, ToyConfig)
    task = ToyTask(config)
    optimizer = build_optimizer(task.model, config.optim)
    schedulers = build_schedulers(optimizer, config.optim, config.training.epochs)
    fit(task, optimizer, schedulers, config.training, run)
    rows, states, result = outcome(tmp_path / "old")
    known = outcome(tmp_path / "whole")
    # the limit of steps fell inside an epoch, where it added an evaluation
    assert [row for row in rows if row["step"] != 7] == known[0] and result == known[2]
    assert states["step-00000020.pt"]["model"] == known[1]["step-00000020.pt"]["model"]
    edit(tmp_path / "old/config.yaml", lambda settings: settings["training"].update(clip=1.0))
    with pytest.raises(UserError, match=r"another configuration \(training\.clip = 1\.0, now None\)"):
        RunDirectory(tmp_path / "old", config)


# ---- checkpoints of others -------------------------------------------------------------------------------------------


def resume(out: Path, config, optimizer=None, schedulers=None) -> str:
    task = ToyTask(config)
    built = optimizer(task.model) if optimizer else build_optimizer(task.model, config.optim)
    with pytest.raises(UserError) as error:
        fit(task, built, schedulers or [], config.training, RunDirectory(out, asdict(config)))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda state: state["progress"].update(tokens_seen=3), "of another version of seqssgd ('tokens_seen')"),
        (lambda state: state.pop("scaler"), "of another version of seqssgd (no 'scaler')"),
        (lambda state: state["optimizer"]["param_groups"].pop(), "other groups of parameters ([4, 2], now [4, 2, 0])"),
        (lambda state: state["schedulers"].append({}), "other schedulers (1, now 0)"),
    ],
    ids=["a later version", "an earlier version", "fewer groups", "more schedulers"],
)
def test_a_checkpoint_of_another_version_or_optimizer_is_refused_in_one_line(change, said, tmp_path):
    config = toy_config()
    train(tmp_path, config, max_steps=3)
    path = next(iter(layout.step_files(tmp_path / "checkpoints").values()))
    state = checkpoints.load(path)
    own = [len(group["params"]) for group in state["optimizer"]["param_groups"]]
    change(state)
    checkpoints.save(path, state)
    its = [len(group["params"]) for group in state["optimizer"]["param_groups"]]
    found = resume(tmp_path, config)
    assert found.startswith(f"{path}: ")
    assert said.replace("[4, 2], now [4, 2, 0]", f"{its}, now {own}") in found


def test_other_groups_of_the_same_parameters_are_refused_in_one_line(tmp_path):
    config = toy_config(optim={"method": "none", "noise": 0.0})
    train(tmp_path, config, max_steps=3)

    def in_two_groups(model):
        first, *others = model.parameters()
        return SinglePass(torch.optim.SGD([{"params": [first]}, {"params": others}], lr=0.1, momentum=0.9))

    assert "other groups of parameters ([6], now [1, 5])" in resume(tmp_path, config, in_two_groups)


# ---- lists and differences -------------------------------------------------------------------------------------------


def test_a_list_tells_how_far_the_runs_of_a_folder_are(tmp_path, capsys):
    train(tmp_path / "study/whole", toy_config())
    train(tmp_path / "study/limited", toy_config(), max_steps=7)
    train(tmp_path / "begun", toy_config(), max_minutes=1e-9)
    shutil.copytree(tmp_path / "begun", tmp_path / "damaged")
    (tmp_path / "damaged/metrics.jsonl").write_text("{}\n")
    shutil.copytree(tmp_path / "begun", tmp_path / "in two\nlines")
    held = RunDirectory(tmp_path / "held", {"seed": 0})
    capsys.readouterr()
    try:
        assert main(["runs", "list", str(tmp_path)]) == 0
    finally:
        held.close()
    head, *lines = capsys.readouterr().out.splitlines()
    found = {line.split()[0]: line.split()[1:] for line in lines}
    assert head.split() == ["run", "state", "epoch", "step", "metric", "minutes"]
    assert list(found) == ["begun", "damaged", "held", "in", "study/limited", "study/whole"]
    best = checkpoints.load(tmp_path / "study/whole/checkpoints/best.pt")["metrics"]["valid_loss"]
    assert found["study/whole"] == ["finished", "4/4", "20", "valid_loss", f"{best:.4g}", "0.0"]
    assert found["study/limited"][:3] == ["limited", "1/4", "7"]
    assert found["begun"][:3] == ["unfinished", "0/4", "1"] and found["held"][0] == "training"
    assert "damaged: metrics.jsonl: cannot be used (line 1" in lines[1]
    assert main(["runs", "list", str(tmp_path / "none")]) == 2 and "not a folder" in capsys.readouterr().err
    assert [entry.run for entry in list_runs(tmp_path / "begun")] == ["begun"]


def test_a_run_that_goes_on_beyond_a_limit_of_steps_is_unfinished_again_and_not_damaged(tmp_path):
    train(tmp_path / "run", toy_config(), max_steps=7)
    assert read_run(tmp_path / "run").result["steps"] == 7
    seen = []

    class Looking(ToyTask):
        def loss(self, batch, part):
            seen.append(read_run(tmp_path / "run").result)
            return super().loss(batch, part)

    train(tmp_path / "run", toy_config(), Looking)
    assert len(seen) > 13 and not any(seen) and read_run(tmp_path / "run").finished


def test_a_run_with_several_draws_a_step_is_what_its_settings_say(tmp_path):
    train(tmp_path / "run", toy_config({"method": "weight_noise", "signs": None, "copies": 3}))
    run = read_run(tmp_path / "run")
    assert run.rows[-1]["passes"] == 3 * 20
    plausible.check_settings(run.settings, run.rows, True, [])  # as of a recipe's run
    with pytest.raises(ValueError, match="optim.method: weight_noise, where metrics.jsonl has 15 passes at step 5"):
        plausible.check_settings({**run.settings, "optim.copies": 2}, run.rows, True, [])


def test_a_run_without_its_checkpoints_is_not_trained_anew(tmp_path):
    train(tmp_path / "run", toy_config(), max_steps=7)
    rows = (tmp_path / "run/metrics.jsonl").read_bytes()
    for path in layout.step_files(tmp_path / "run/checkpoints").values():
        path.unlink()
    with pytest.raises(UserError, match="no checkpoint of a step is left to go on from; choose another folder"):
        train(tmp_path / "run", toy_config())
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == rows and (tmp_path / "run/result.json").exists()


def test_a_run_that_cannot_go_on_keeps_its_result(tmp_path):
    train(tmp_path / "run", toy_config(), max_steps=7)
    for path in layout.step_files(tmp_path / "run/checkpoints").values():
        path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="damaged"):
        train(tmp_path / "run", toy_config())
    assert read_run(tmp_path / "run").result["steps"] == 7


def test_figures_of_a_best_model_go_when_it_is_replaced(tmp_path):
    train(tmp_path / "run", toy_config(), max_steps=7)
    record(tmp_path / "run", "test", {"loss": 1.0, "checkpoint": layout.BEST})
    record(tmp_path / "run", "other", {"loss": 1.0, "checkpoint": "step-00000007.pt"})
    train(tmp_path / "run", toy_config())
    assert read_run(tmp_path / "run").result["best"]["step"] > 7
    assert list(read_run(tmp_path / "run").evaluations) == ["other"]


def test_asking_in_the_process_that_trains_does_not_let_others_in(tmp_path):
    code = "import pathlib, sys; from seqssgd.runs.directory import in_use; print(in_use(pathlib.Path(sys.argv[1])))"
    run = RunDirectory(tmp_path / "run", {"seed": 0})
    for expected in (True, False):
        assert in_use(run.path) is expected
        other = subprocess.run([sys.executable, "-c", code, run.path], capture_output=True, text=True, check=True)
        assert other.stdout.strip() == str(expected)
        run.close()


def test_a_directory_that_cannot_be_opened_leaves_no_lock(tmp_path):
    RunDirectory(tmp_path / "run", {"seed": 0}).close()
    (tmp_path / "run/checkpoints").rmdir()
    (tmp_path / "run/checkpoints").touch()
    with pytest.raises(UserError, match="cannot write there"):
        RunDirectory(tmp_path / "run", {"seed": 0})
    assert not in_use(tmp_path / "run")


def test_a_training_that_is_refused_leaves_no_lock(tmp_path):
    config = toy_config({"noise_schedule": "9-9S"})
    with pytest.raises(ValueError, match="no noise"):
        train(tmp_path / "run", config)
    assert not in_use(tmp_path / "run")


def test_runs_of_one_configuration_do_not_differ_and_others_part_where_they_part(tmp_path, capsys):
    for name, settings in {"a": {}, "b": {}, "c": {"seed": 1}, "d": {"optim": {"lr": 0.05}}}.items():
        train(tmp_path / name, toy_config(**settings))
    assert differences(tmp_path / "a", tmp_path / "b") == []
    assert main(["runs", "diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "no difference but for times"
    assert main(["runs", "diff", str(tmp_path / "a"), str(tmp_path / "d")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "config.yaml: optim.lr 0.1 | 0.05"
    assert lines[1].startswith("metrics.jsonl: first at step 3: ")
    assert "checkpoints/step-00000020.pt: first " in lines[2]
    # one element of the last tensor, in the last checkpoint alone
    path = tmp_path / "b/checkpoints/step-00000020.pt"
    state = checkpoints.load(path)
    name, weight = list(state["model"].items())[-1]
    weight[1] += 0.5
    checkpoints.save(path, state)
    assert differences(tmp_path / "a", tmp_path / "b") == [
        f"checkpoints/step-00000020.pt: first model.{name}: 1 of 3 elements, by at most 0.5"
    ]


def test_tensors_of_every_type_are_held_against_each_other_to_the_bit(tmp_path):
    kinds = {
        "bfloat16": (torch.tensor([1.0, 2.0, 4.0], dtype=torch.bfloat16), torch.tensor([0.0, 0.0, 0.5]), "1 of 3", 0.5),
        "not contiguous": (torch.arange(6.0).view(2, 3).t(), torch.ones(3, 2), "6 of 6", 1),
        "scalar": (torch.tensor(3.0), torch.tensor(0.25), "1 of 1", 0.25),
        "bool": (torch.tensor([True, False]), torch.tensor([True, False]), "1 of 2", 1),
        "complex": (torch.tensor([1 + 1j, 2.0]), torch.tensor([3 + 4j, 0]), "1 of 2", 5),
        "integer": (torch.tensor([[1, 2], [3, 4]]), torch.tensor([[0, 0], [5, 7]]), "2 of 4", 7),
        "no number": (torch.tensor([float("nan"), 1.0]), torch.tensor([0.0, 2.0]), "1 of 2", 2),
        "negative zero": (torch.tensor([-0.0, 1.0]), torch.tensor([-0.0, 0.0]), "1 of 2", 0),
    }
    empty, runs = torch.empty(0, 3, dtype=torch.bfloat16), [tmp_path / name for name in "abc"]
    for run in runs:
        RunDirectory(run, toy_config()).close()
    for tensor, less, count, apart in kinds.values():
        other = tensor ^ less if tensor.dtype == torch.bool else (tensor - less).to(tensor.dtype)
        for run, found in zip(runs, (tensor, tensor.clone(), other), strict=True):
            checkpoints.save(run / "checkpoints/best.pt", {"model": {"empty": empty, "w": found}})
        assert differences(runs[0], runs[1]) == []
        said = f"checkpoints/best.pt: first model.w: {count} elements, by at most {apart}"
        assert differences(runs[0], runs[2]) == [said]


def test_a_run_without_a_step_in_common_is_held_against_by_its_best(tmp_path):
    train(tmp_path / "a", toy_config())
    train(tmp_path / "b", toy_config(), max_steps=7)
    kinds = [line.split(":")[0] for line in differences(tmp_path / "a", tmp_path / "b")]
    assert kinds == ["metrics.jsonl", "checkpoints/best.pt"]
    assert TrainingConfig().epochs == 1 and OptimConfig().method == "none"


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_a_changed_program_is_a_modification_and_a_changed_page_is_none(tmp_path):
    """Both of a recipe: the one makes figures, the other tells of them."""
    for folder in ("seqssgd", "recipes"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))

    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", tmp_path, *who, *words], check=True, capture_output=True)

    def modified():
        code = "from seqssgd.runs.environment import environment; print(environment(0)['modified'])"
        path = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", code], env=path, cwd=tmp_path, capture_output=True, check=True)
        return done.stdout

    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "all")
    with open(tmp_path / "recipes/ptb_lstm/README.md", "a") as page:
        page.write("more")
    assert modified() == b"False\n"
    with open(tmp_path / "recipes/ptb_lstm/train.py", "a") as program:
        program.write("# more")
    assert modified() == b"True\n"
