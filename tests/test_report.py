"""Runs side by side, from their directories; and the tables in the README files, from the results."""

import importlib.util
import json
from pathlib import Path

import pytest
import toy_task

from seqssgd.cli import main
from seqssgd.errors import UserError
from seqssgd.report import best_row, plot, read_run, record, shared_metric, table, write_between

ROOT = Path(__file__).resolve().parents[1]


def make_run(path: Path, metrics: list[dict], **optim) -> Path:
    path.mkdir(parents=True)
    optim = {"method": "none", "base": "sgd", "noise": 0.0, "signs": "batch", **optim}
    (path / "config.yaml").write_text(json.dumps({"optim": optim}))
    rows = [{"kind": "train", "step": 1, "loss": 1.0}]
    for epoch, values in enumerate(metrics, 1):
        rows.append(
            {"kind": "valid", "step": 10 * epoch, "epoch": epoch, "passes": 20 * epoch, "seconds": 60.0 * epoch}
        )
        rows[-1].update({"train_loss": 1.0, "lr": 0.1, "noise": 0.0, "units_per_second": 5.0, **values})
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def perplexities(*values) -> list[dict]:
    return [{"valid_perplexity": value, "valid_loss": 1.0} for value in values]


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_a_table_holds_the_best_and_the_last_evaluation_of_every_run(tmp_path):
    a = make_run(tmp_path / "a", perplexities(150.0, 120.25, 130.5))
    b = make_run(tmp_path / "b", perplexities(140.0, 99.0), method="ssgd", noise=0.7, signs="halves", base="adam")
    head, _, *rows = cells(table([read_run(a), read_run(b)]))
    assert head == [
        "run",
        "method",
        "epochs",
        "passes",
        "best valid perplexity (epoch)",
        "last valid perplexity",
        "seconds",
    ]
    assert rows == [
        ["a", "SGD", "3", "60", "120.25 (2)", "130.50", "180"],
        ["b", "S-Adam 0.7, halves", "2", "40", "99.00 (2)", "99.00", "120"],
    ]


def test_runs_of_more_than_ten_minutes_are_timed_in_minutes(tmp_path):
    long = make_run(tmp_path / "long", perplexities(*[100.0] * 11))
    head, _, row = cells(table([read_run(long)]))
    assert (head[-1], row[-1]) == ("minutes", "11.0")


def test_an_accuracy_is_best_when_high_and_values_that_were_not_finite_never_are(tmp_path):
    values = [{"valid_accuracy": value, "valid_loss": loss} for value, loss in ((0.5, None), (0.75, 2.0), (0.6, 3.0))]
    run = read_run(make_run(tmp_path / "run", values))
    assert shared_metric([run]) == "valid_accuracy"
    assert best_row(run, "valid_accuracy")["epoch"] == 2
    assert best_row(run, "valid_loss")["epoch"] == 2
    with pytest.raises(UserError, match="never finite"):
        best_row(read_run(make_run(tmp_path / "other", [{"valid_wer": None}])), "valid_wer")


def test_test_figures_count_only_if_they_are_of_the_best_checkpoint(tmp_path):
    runs = [make_run(tmp_path / name, perplexities(100.0)) for name in ("best", "last")]
    for run in runs:
        record(run, "valid", {"perplexity": 1.0, "checkpoint": "best.pt"})
        record(run, "test", {"perplexity": 95.5, "checkpoint": f"{run.name}.pt"})
    head, _, *rows = cells(table([read_run(run) for run in runs]))
    assert head[-2] == "test perplexity of the best"
    assert [row[-2] for row in rows] == ["95.50", "–"]
    assert read_run(runs[0]).evaluations["valid"]["perplexity"] == 1.0  # a further split leaves the others


def test_what_cannot_be_compared_is_named(tmp_path, capsys):
    lm = make_run(tmp_path / "lm", perplexities(100.0))
    speech = make_run(tmp_path / "speech", [{"valid_wer": 0.2, "valid_cer": 0.1}])
    assert shared_metric([read_run(speech)]) == "valid_wer"
    young = make_run(tmp_path / "young", [])
    broken = make_run(tmp_path / "broken", perplexities(100.0))
    (broken / "metrics.jsonl").write_text('{"kind": ')
    for arguments, message in (
        ([lm, speech], "no metric in common"),
        ([lm, "--metric", "valid_wer"], "--metric valid_wer: not in all"),
        ([young], "no evaluation yet"),
        ([tmp_path / "nowhere"], "not a run directory (no config.yaml)"),
        ([broken], "damaged"),
        ([lm, "--plot", tmp_path / "curves.txt"], "--plot"),
    ):
        assert main(["compare", *map(str, arguments)]) != 0
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and message in lines[0], lines
    assert not list(tmp_path.glob("*curves*"))


def test_a_real_run_is_compared_and_drawn(tmp_path, capsys):
    toy_task.train(tmp_path / "run", toy_task.toy_config(training={"epochs": 2}))
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "run"), "--plot", str(tmp_path / "new/curves.png")]) == 0
    head, _, row = cells(capsys.readouterr().out.split("\n\n")[0])
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert row[1:4] == ["S-SGD 0.5", "2", "20"] and row[5] == f"{result['final']['valid_loss']:.2f}"
    assert (tmp_path / "new/curves.png").read_bytes().startswith(b"\x89PNG")


def test_curves_are_drawn_over_passes(tmp_path):
    run = read_run(make_run(tmp_path / "run", perplexities(300.0, 120.0, None)))
    plot([run], tmp_path / "curves.svg")
    assert "forward-backward passes" in (tmp_path / "curves.svg").read_text()


def test_text_is_replaced_between_its_marks_alone(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("a\n<!-- t: begin -->\nold\n<!-- t: end -->\nb\n<!-- u: begin -->\nkept\n<!-- u: end -->\n")
    write_between(path, "t", "new \\1")
    text = "a\n<!-- t: begin -->\nnew \\1\n<!-- t: end -->\nb\n<!-- u: begin -->\nkept\n<!-- u: end -->\n"
    assert path.read_text() == text
    with pytest.raises(UserError, match="needs the lines"):
        write_between(path, "absent", "new")
    assert path.read_text() == text


def results_program():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "results/tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_table_in_the_readme_files_is_that_of_the_results(tmp_path):
    for name, (readme, text) in results_program().tables().items():
        copy = tmp_path / "README.md"
        copy.write_text(readme.read_text())
        write_between(copy, f"results/{name}", text)
        assert copy.read_text() == readme.read_text(), f"{readme.name} is out of date for {name}: make tables"


def test_runs_that_a_table_quotes_can_be_repeated():
    """Each names the commit, unmodified, and the command that made it, and reached its end."""
    program = results_program()
    for run in [run for name in program.RUNS for run in program.read_runs(name)]:
        environment = json.loads((run.path / "environment.json").read_text())
        assert environment["commit"] and not environment["modified"], run.path
        assert environment["command"][0].startswith("recipes/") and environment["cpu"], run.path
        assert run.result["steps"] == run.rows[-1]["step"], run.path
