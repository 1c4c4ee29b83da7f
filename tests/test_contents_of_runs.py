"""What a run directory says of itself: the files that its model depends on, its kind, its data, its names."""

import re
from pathlib import Path

import pytest
from made_runs import make_run

from seqssgd.errors import UserError
from seqssgd.report import compare, read_run
from seqssgd.runs import checkpoints
from seqssgd.runs.checkpoints import check_files, checksums, find_checkpoint
from seqssgd.runs.reading import data_folder, record
from seqssgd.runs.recipes import read_section
from seqssgd.training import RunDirectory


def test_files_that_a_model_depends_on_are_those_of_its_checkpoint(tmp_path):
    run = tmp_path / "run"
    (run / "tokenizer").mkdir(parents=True)
    (run / "tokenizer/vocabulary.txt").write_text("<eos>\na\nb\n")
    (run / "config.yaml").write_text("model: {hidden_size: 3}\noptim: {lr: 1}\nseed: 0\n")
    state = {"files": checksums(run)}
    check_files(run, state, Path("best.pt"))
    check_files(run, {}, Path("best.pt"))  # an earlier version's
    (run / "config.yaml").write_text("# a comment\nseed: 4\nmodel: {hidden_size: 3}\n")
    check_files(run, state, Path("best.pt"))
    (run / "tokenizer/vocabulary.txt").write_text("<eos>\nb\na\n")
    with pytest.raises(UserError, match=r"tokenizer/vocabulary\.txt is not the one that best\.pt was trained with"):
        check_files(run, state, Path("best.pt"))
    (run / "tokenizer/vocabulary.txt").unlink()
    with pytest.raises(UserError, match=r"tokenizer/vocabulary\.txt is missing"):
        check_files(run, state, Path("best.pt"))
    (run / "tokenizer/vocabulary.txt").write_text("<eos>\na\nb\n")
    (run / "config.yaml").write_text("model: {hidden_size: 4}\n")
    with pytest.raises(UserError, match=r"config\.yaml is not the one"):
        check_files(run, state, Path("best.pt"))


def test_a_run_of_another_kind_is_called_what_it_is(tmp_path):
    kinds = {
        "a language model": "model: {}\nsequence_length: 3\n",
        "a speech recogniser": "model: {}\ntokens: {}\naugment: {}\n",
        "an image classifier": "model: {}\nbn_images: 3\n",
    }
    for kind, settings in kinds.items():
        (tmp_path / "config.yaml").write_text(settings)
        for wanted in kinds:
            if wanted != kind:
                with pytest.raises(UserError, match=f"is a run of {kind}; give one of {wanted}"):
                    read_section(tmp_path, "model", wanted)


def test_the_last_checkpoint_in_place_of_the_best_is_said(tmp_path, capsys):
    checkpoints.save_step(make(tmp_path / "checkpoints"), {"model": {}}, 7, keep=2)
    assert find_checkpoint(tmp_path).name == "step-00000007.pt"
    assert re.fullmatch(
        r"note: \S+ has no best checkpoint .*; taking the last, step-00000007\.pt\n", capsys.readouterr().err
    )
    find_checkpoint(tmp_path, "last")
    checkpoints.save(tmp_path / "checkpoints/best.pt", {})
    find_checkpoint(tmp_path)
    assert capsys.readouterr().err == ""


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_a_run_knows_where_its_data_lay(tmp_path):
    (tmp_path / "data").mkdir()
    RunDirectory(tmp_path / "run", {"seed": 0}, data=tmp_path / "data").close()
    assert data_folder(tmp_path / "run", None) == tmp_path / "data"
    assert data_folder(tmp_path / "run", "elsewhere") == Path("elsewhere")
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"data, the data of \S+run, is not there any more; give their folder"):
        data_folder(tmp_path / "run", None)
    RunDirectory(tmp_path / "run", {"seed": 0}, data=tmp_path / "moved").close()
    assert data_folder(tmp_path / "run", None) == tmp_path / "moved"
    (tmp_path / "run/environment.json").write_text("[]")
    with pytest.raises(UserError, match=r"environment\.json is damaged \(.*\); put the run's own back, or delete it"):
        data_folder(tmp_path / "run", None)
    (tmp_path / "run/environment.json").unlink()
    with pytest.raises(UserError, match="does not say where its data lie; give their folder"):
        data_folder(tmp_path / "run", None)


def test_an_evaluation_is_not_added_to_a_damaged_file(tmp_path):
    file = tmp_path / "evaluation.json"
    for content, said in (("{test", "Expecting property name"), ('{"test": 3}', "test: 3 is not a group")):
        file.write_text(content)
        with pytest.raises(
            UserError,
            match=rf"evaluation\.json is damaged \({said}.*\); delete it, and evaluate again: seqssgd evaluate --run",
        ):
            record(tmp_path, "valid", {"loss": 1.0})
        assert file.read_text() == content


def test_what_an_earlier_version_did_not_note_is_no_difference(tmp_path):
    RunDirectory(tmp_path, {"lr": 1}, {"data": {"fingerprint": "a"}}).close()
    RunDirectory(tmp_path, {"lr": 1}, {"data": {"fingerprint": "a", "audio": "b"}}).close()
    with pytest.raises(UserError, match=r"data\.fingerprint = a, now c"):
        RunDirectory(tmp_path, {"lr": 1}, {"data": {"fingerprint": "c", "audio": "b"}})
    with pytest.raises(UserError, match=r"momentum = \(absent\), now 1"):
        RunDirectory(tmp_path, {"lr": 1, "momentum": 1}, {"data": {"fingerprint": "a"}})


# ---- reports of foreign runs -----------------------------------------------------------------------------------------


def test_names_from_foreign_runs_are_text_everywhere(tmp_path):
    from seqssgd.report import summary, write_report
    from seqssgd.report.tables import Table

    evil = "<script>alert(1)</script>\n| x | [y](javascript:z) $\\frac{ \x1b[31m"
    run = make_run(tmp_path / "=1+1", [3.0, 2.0], settings={"model": {"name": evil}}, base=evil, passes=10)
    other = make_run(
        tmp_path / "b", [3.0, 2.5], settings={"model": {"name": "z"}}, base="=cmd|' /C calc'!A0", noise=0.1, passes=10
    )
    comparison = compare([read_run(run), read_run(other)])
    write_report(comparison, tmp_path / "out")
    markdown = (tmp_path / "out/report.md").read_text()
    table = Table(["run"], [["one\nline\tof it"]]).markdown()
    assert table.splitlines()[2:] == ["| one line of it |"]
    for text in (markdown, summary(comparison)):
        assert "<script" not in text and "\x1b" not in text and "](javascript" not in text
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows if line.startswith("| method | run")}) <= 1
    assert "<script>alert" not in (tmp_path / "out/report.html").read_text()
    for line in (tmp_path / "out/report.csv").read_text().splitlines():
        for cell in re.findall(r'(?:^|,)"?([^",])', line):
            assert cell not in "=+@"
