"""The page that holds the paper's rows beside our runs: it is that of the files, its verdicts those of the figures."""

import json
import re

import pytest
import yaml
from made_runs import seeds
from programs import ROOT, load

from seqssgd.errors import run_cli

PAPER = load("results/paper.py")
COMMAND = {"commit": "0123456789", "command": ["train.py", "--out", "my runs"]}


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Builds the page of one part over runs in ``tmp_path``; gives its text."""
    monkeypatch.setattr(PAPER, "RESULTS", tmp_path)
    PAPER.folder.cache_clear()
    adam = seeds(tmp_path / "an4", "adam_", [20.0, 20.4, 19.8])
    runs = [*adam, *seeds(tmp_path / "an4", "low_", [15.0, 15.3, 14.9], method="ssgd", noise=0.2)]
    runs += seeds(tmp_path / "an4", "same_", [20.1, 19.7, 20.5], method="ssgd", noise=0.1)
    runs += seeds(tmp_path / "an4", "high_", [25.0, 25.4, 24.9], method="ssgd", noise=0.9)
    runs += seeds(tmp_path / "an4", "one_", [18.0], method="weight_noise", noise=0.2)
    for run in runs:
        (run / "environment.json").write_text(json.dumps(COMMAND))

    def call(*rows: dict) -> str:
        PAPER.folder.cache_clear()
        part = {"title": "Table 4", "figure": "test_wer", "rows": list(rows)}
        (tmp_path / "paper.yaml").write_text(yaml.safe_dump({"parts": [part]}))
        return PAPER.build()[0]

    yield call
    PAPER.folder.cache_clear()


def row(name: str, **entries) -> dict:
    against = {"equal epochs": "an4/adam_*"} if name != "adam" else {}
    return {"row": name, "runs": f"an4/{name}_*", "scale": "reduced", "against": against, **entries}


def verdicts(text: str) -> dict[str, str]:
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    rows = [cells for cells in lines if len(cells) == len(PAPER.HEAD) and cells[0] != "---"]
    return {cells[0]: cells[-1] for cells in rows}


def test_the_page_is_that_of_the_files():
    PAPER.folder.cache_clear()
    assert PAPER.build()[0] == (ROOT / "results/README.md").read_text(encoding="utf-8"), "run make results"


def test_no_folder_of_the_machine_that_made_the_runs_is_on_the_page():
    assert not re.search(r"/(work|home|tmp|root)/", (ROOT / "results/README.md").read_text(encoding="utf-8"))


def test_runs_of_two_commits_have_each_its_command_without_the_time_it_was_to_stop_after(build, tmp_path):
    build(row("adam"))
    other = {"commit": "9876543210", "command": ["study.py", "--max-minutes", "9.4", "--", "--optim.lr", "2"]}
    (tmp_path / "an4/adam_2/environment.json").write_text(json.dumps(other))
    assert build(row("adam")).splitlines()[-1] == (
        "- adam: [adam_0](an4/adam_0), [adam_1](an4/adam_1), commit 0123456: `python train.py --out 'my runs'`; "
        "[adam_2](an4/adam_2), commit 9876543: `python study.py -- --optim.lr 2`"
    )


def test_verdicts_are_those_of_the_corrected_p_values(build):
    text = build(row("adam"), row("low"), row("same"), row("high"), row("one"), {"row": "WSJ", "command": "train.py"})
    assert verdicts(text) == {
        "row": "verdict",
        "adam": "baseline",
        "low": "at equal epochs: better",
        "same": "at equal epochs: no significant difference",
        "high": "at equal epochs: worse",
        "one": "at equal epochs: not tested",
        "WSJ": "not run",
    }
    assert "| 15.07 ± 0.21 | 3 | 0.2 |" in text
    assert "`python train.py --out 'my runs'`" in text and "commit 0123456" in text and "- WSJ: `train.py`" in text
    assert re.search(r"Adam, equal epochs: −2\.07 \(~−\d\.\d\d to [−+]\d\.\d\d\)", text)


def test_a_small_p_value_among_many_is_corrected(build, monkeypatch):
    asked = []
    monkeypatch.setattr(PAPER, "holm", lambda values: asked.extend(values) or [0.5] * len(values))
    text = build(row("low"), {**row("low"), "row": "twin"}, row("same"))
    assert len(asked) == 2  # the twin's is the same test
    assert set(verdicts(text).values()) == {"verdict", "at equal epochs: no significant difference"}


def test_full_rows_are_held_against_the_papers_figure(build):
    found = verdicts(
        build(row("low", scale="full", paper=15.0), {**row("low", scale="full", paper=17.0), "row": "far"})
    )
    assert (
        found["low"] == "at equal epochs: better; the paper's figure is within 14.55 to 15.58"
    )  # t of 2 degrees: 4.303
    assert found["far"].endswith("the paper's figure is outside 14.55 to 15.58")
    one = verdicts(build(row("one", scale="full", paper=15.0)))["one"]
    assert one == "at equal epochs: not tested; one seed, which tells nothing of the paper's figure"


@pytest.mark.parametrize(
    "entry, message",
    [
        (row("absent"), "an4/absent_*: no such runs"),
        (row("low", runs="an4/*w_*"), None),
        (row("low", runs="an4/*"), "not the runs of one method"),
        (row("low", runs="an4/low_0"), "not the runs of one method"),
        (row("low", scale="half"), "scale: 'half' is not one of full, reduced"),
        (row("low", verdict="better"), "no such entry: verdict"),
        ({"row": "WSJ"}, "give it a name, and runs, or the command"),
        (row("low", command="train.py"), "give it a name, and runs, or the command"),
        (row("low", against={"equal epochs": "ptb/none_*"}), "ptb/none_*: no such runs"),
    ],
)
def test_rows_that_cannot_be_filled_are_one_line(build, capsys, entry, message):
    assert run_cli(lambda: build(entry) and 0) == (2 if message else 0)
    said = capsys.readouterr().err
    assert said.count("\n") == bool(message) and (message or "") in said


def test_runs_that_were_not_evaluated_or_do_not_say_how_they_were_made_are_refused(build, tmp_path, capsys):
    def refused(entry: dict) -> str:
        assert run_cli(lambda: build(entry) and 0) == 2
        return capsys.readouterr().err

    (tmp_path / "an4/same_0/environment.json").unlink()
    assert "does not say by what command" in refused(row("same"))
    (tmp_path / "an4/low_1/evaluation.json").write_text(json.dumps({"test": {"checkpoint": "last.pt", "wer": 1.0}}))
    assert "an4/low_*: not all runs beside it have test_wer; evaluate" in refused(row("low"))
