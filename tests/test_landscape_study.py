"""``seqssgd landscape`` on tiny runs: what it writes, how it goes on, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from landscape_runs import TINY, classifier, text, train
from programs import coloured_images, places, replaced

from seqssgd import cli
from seqssgd.errors import UserError
from seqssgd.landscape.figures import draw
from seqssgd.landscape.section import barrier_table, notes, section
from seqssgd.landscape.stages import STAGES, TERMS, run_stage
from seqssgd.landscape.study import FILE, Spec, Study, _barriers, read
from seqssgd.landscape.subjects import open_run
from seqssgd.landscape.surface import read_surface


@pytest.fixture(scope="module", autouse=True)
def few_terms():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TERMS, "language", (60, 60))
        yield


@pytest.fixture(scope="module")
def language(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("language")
    data = text(folder / "data")
    return [train("ptb_lstm", "small_cpu", data, folder / f"run{seed}", *TINY, "--seed", seed) for seed in range(3)]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return classifier(tmp_path_factory.mktemp("images"))


SMALL = ["--terms", "60", "--points", "5", "--side", "3", "--levels", "0.2", "--processes", "1", "--device", "cpu"]


def run_program(*words: object) -> int:
    return cli.main(["landscape", *map(str, words)])


# ---- the program -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def drawn_once():
    """The pictures of equal figures are the same ones."""
    pictures = {}

    def draw_once(found, surfaces):
        key = json.dumps(found, sort_keys=True)
        if key not in pictures:
            pictures[key] = draw(found, surfaces)
        return pictures[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seqssgd.landscape.section.draw", draw_once)
        yield


@pytest.fixture(scope="module")
def measured(language, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("report") / "landscape"
    assert run_program(*language, "--out", out, *SMALL) == 0
    return out


def test_it_writes_figures_surfaces_and_a_section_of_the_comparison(measured, language, capsys, tmp_path):
    found = read(measured / FILE)
    assert found["complete"] and list(found["runs"]) == ["run0", "run1", "run2"]
    assert all(stage in run for run in found["runs"].values() for stage in STAGES)
    kinds = [name.split()[0] for name in found["surfaces"]]
    assert kinds == ["line", "line", "plane", "slice", "slice", "slice"]
    assert all(surface["done"] == surface["points"] for surface in found["surfaces"].values())
    # at a solution the surface has the figures of the run
    line = read_surface(measured / "line-run0---run1.npz")
    for place, run in ((0.0, language[0]), (1.0, language[1])):
        wanted = open_run(run).figures(("train", "test"), 60)
        index = abs(line.a - place).argmin()
        assert {name: values[index, 0] for name, values in line.values.items()} == pytest.approx(wanted, rel=1e-4)
    words = section(measured, pictures=False)
    assert not words.pictures and not words.parts and words.tables
    page = (measured / "landscape.html").read_text()
    for word in ("λ_max", "Relative trace by layer", "Barriers", "<svg"):
        assert word in page
    pictures = {path.stem.removeprefix("landscape_") for path in measured.glob("landscape_*.png")}
    assert pictures >= {"sharpness", "layers", "robustness", "density", "lines", "plane_test_loss", "slice_train_error"}
    capsys.readouterr()
    assert (
        cli.main(["compare", *map(str, language), "--partial", "--out", str(tmp_path), "--landscape", str(measured)])
        == 0
    )
    assert "Curvature and sharpness" in (tmp_path / "report.html").read_text()
    assert "## Landscape" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "landscape_lines.png").is_file()


def test_a_damaged_landscape_is_refused_with_its_file_and_entry(measured, tmp_path):
    """Some values are those of another kind."""
    found = json.loads((measured / FILE).read_bytes())
    chosen = list(places(found))[1:]
    tried = chosen[:: 1 + len(chosen) // 80]
    refused = []
    for number, at in enumerate(tried):
        (tmp_path / FILE).write_text(json.dumps(replaced(found, at, [None, "x", [], {}][number % 4])))
        try:
            section(tmp_path, pictures=False)
        except UserError as error:
            entry = ".".join(name for name in at if isinstance(name, str))
            assert str(error).startswith(f"{tmp_path / FILE} is damaged ({entry}"), error
            refused.append(at)
    assert len(refused) > len(tried) / 3
    found["runs"]["run1"]["variance"]["of_step"]["pair"] = None  # not finite, which is no damage
    (tmp_path / FILE).write_text(json.dumps(found))
    [table] = [table for name, table in section(tmp_path, pictures=False).tables.items() if name.startswith("Variance")]
    assert [row[0] for row in table.rows] == ["run0", "run2"]
    del found["runs"]["run0"]["variance"]["level"]
    (tmp_path / FILE).write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"runs\.run0\.variance\.level is missing\); delete it, and measure again"):
        section(tmp_path, pictures=False)


def test_a_bug_in_drawing_is_not_taken_for_damage(measured, monkeypatch):
    def broken(found, surfaces):
        raise KeyError("a bug")

    monkeypatch.setattr("seqssgd.landscape.section.draw", broken)
    with pytest.raises(KeyError, match="a bug"):
        section(measured)


def test_stopped_by_the_limit_it_goes_on_and_comes_to_the_same(measured, language, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("seqssgd.landscape.section.draw", lambda found, surfaces: {})  # which is most of the time
    out = tmp_path / "landscape"
    assert run_program(*language, "--out", out, *SMALL, "--max-minutes", "1e-6") == 0
    assert "Not all is measured yet" in capsys.readouterr().out
    assert not read(out / FILE)["complete"]
    calls = 0
    while not read(out / FILE)["complete"]:
        calls += 1
        assert calls < 40
        assert run_program(*language, "--out", out, *SMALL, "--max-minutes", "0.05") == 0
    found, wanted = ({**read(folder / FILE)} for folder in (out, measured))

    def without_times(tree):
        if isinstance(tree, dict):
            return {key: without_times(value) for key, value in tree.items() if key not in ("seconds", "path")}
        return tree

    assert without_times(found) == without_times(wanted)
    before = (out / FILE).read_bytes()
    assert run_program(*language, "--out", out, *SMALL) == 0
    assert (out / FILE).read_bytes() == before


def test_checkpoints_of_one_run_part_by_part(language, tmp_path, capsys, monkeypatch):
    run = shutil.copytree(language[0], tmp_path / "run")
    state = torch.load(run / "checkpoints/best.pt", weights_only=True)
    state["model"] = {key: value + 0.1 for key, value in state["model"].items()}
    torch.save(state, run / "checkpoints/step-00000007.pt")
    words = [f"{run}@best", f"{run}@step-00000007.pt", language[1], "--out", tmp_path / "out", *SMALL]
    assert run_program(*words, "--only", "variance", "errors") == 0
    found = read(tmp_path / "out" / FILE)
    assert found["complete"] and not found["surfaces"]
    assert list(found["runs"]) == ["run@best", "run@step-00000007", "run1@best"]
    for entry, wanted in zip(found["runs"].values(), (run, None, language[1]), strict=True):
        assert "variance" in entry and "traces" not in entry
        if wanted:
            subject = open_run(wanted)
            stream = torch.cat([y for _, y in subject.spread("test", 10**9)], 1)
            assert entry["errors"]["terms"] == stream.numel()
    assert found["runs"]["run@best"]["errors"] != found["runs"]["run@step-00000007"]["errors"]
    assert run_program(*words, "--only", "lines") == 0
    again = read(tmp_path / "out" / FILE)
    assert again["runs"] == found["runs"] and len(again["surfaces"]) == 2
    capsys.readouterr()
    assert run_program(*words, "--only", "line") == 2
    assert "--only line: it is none of errors, traces" in capsys.readouterr().err


def test_an_interrupted_call_for_more_is_not_complete(language, tmp_path, monkeypatch):
    words = [language[0], "--out", tmp_path / "out", *SMALL, "--only", "errors"]
    assert run_program(*words) == 0 and read(tmp_path / "out" / FILE)["complete"]

    def interrupted(subject, stage, settings):
        if stage == "sharpness":
            raise KeyboardInterrupt
        return run_stage(subject, stage, settings)

    monkeypatch.setattr("seqssgd.landscape.study.run_stage", interrupted)
    with pytest.raises(KeyboardInterrupt):
        spec = Spec(str(language[0]), None, "best", "cpu")
        parts = ("errors", "traces", "sharpness")
        Study([spec], tmp_path / "out", terms=60, points=5, side=3, levels=(0.2,), parts=parts).run()
    found = read(tmp_path / "out" / FILE)
    assert "traces" in found["runs"]["run0"] and not found["complete"]
    assert any("Not all is measured yet" in note for note in notes(found))


@pytest.mark.skipif(os.name == "nt", reason="needs fcntl")
def test_a_folder_that_another_process_measures_into_is_left_to_it(language, tmp_path, refuse):
    """Each would write its own figures over those of the other."""
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        other.stdout.readline()  # it has the lock
        said = refuse(language[0], "--only", "errors", out=tmp_path)
        other.communicate("\n")
    assert f"{tmp_path}: another process is measuring there" in said
    assert run_program(language[0], "--out", tmp_path, *SMALL, "--only", "errors") == 0


def test_two_processes_find_the_same(measured, language, tmp_path, monkeypatch):
    monkeypatch.setattr("seqssgd.landscape.section.draw", lambda found, surfaces: {})
    options = [*SMALL, "--processes", "2"]
    assert run_program(*language[:1], "--out", tmp_path / "two", *options) == 0
    found, wanted = read(tmp_path / "two" / FILE)["runs"]["run0"], read(measured / FILE)["runs"]["run0"]
    assert found["traces"]["trace"] == pytest.approx(wanted["traces"]["trace"], rel=1e-4)
    assert found["eigenvalues"]["lambda_max"] == pytest.approx(wanted["eigenvalues"]["lambda_max"], rel=1e-3)


# ---- wrong input -----------------------------------------------------------------------------------------------------


@pytest.fixture
def refuse(capsys, tmp_path):
    """What the program says on standard error when it refuses; checks that it is one line, and that nothing is left."""

    def check(*words, out=None, after=()):
        capsys.readouterr()
        folder = out or tmp_path / "out"
        before = sorted(folder.glob("*")) if folder.exists() else None
        assert run_program(*words, "--out", folder, *SMALL, *after) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        assert (sorted(folder.glob("*")) if folder.exists() else None) == before
        return lines[0]

    return check


def other_run(run: Path, folder: Path, change) -> Path:
    shutil.copytree(run, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    change(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    state = torch.load(folder / "checkpoints/best.pt", weights_only=True)
    state.pop("files")  # or else the checkpoint would belong to the configuration that it was trained with
    torch.save(state, folder / "checkpoints/best.pt")
    return folder


def test_runs_that_do_not_fit_are_refused(refuse, language, images, tmp_path):
    assert "has another model than" in refuse(language[0], images)
    wide = other_run(language[1], tmp_path / "wide", lambda c: c["model"].update(hidden_size=16))
    assert "weights of another model" in refuse(language[0], wide)
    strange = other_run(language[1], tmp_path / "strange", lambda c: c.update(model={"depth": 3}, recipe=None))
    assert "does not say which recipe reads the run" in refuse(strange)
    assert "not a run directory" in refuse(tmp_path / "nothing")
    assert "given twice" in refuse(language[0], language[0])
    copy = shutil.copytree(language[0], tmp_path / "copy")
    assert "have the same weights" in refuse(language[0], copy)


def test_three_on_a_line_are_refused(refuse, language, tmp_path):
    between = shutil.copytree(language[2], tmp_path / "between")
    one, two = (torch.load(run / "checkpoints/best.pt", weights_only=True) for run in language[:2])
    one["model"] = {key: (value + two["model"][key]) / 2 for key, value in one["model"].items()}
    torch.save(one, between / "checkpoints/best.pt")
    assert "lie on one line" in refuse(*language[:2], between)


def test_data_and_splits_that_are_missing_are_refused(refuse, language, images, tmp_path):
    assert "split 'dev' is missing" in refuse(language[0], "--split", "dev")
    bare = shutil.copytree(language[0], tmp_path / "bare")
    (bare / "environment.json").unlink()
    assert "give their folder (--data)" in refuse(bare)
    assert "is not the data" in refuse(images, "--data", coloured_images(tmp_path / "other", seed=1))
    unheld = other_run(images, tmp_path / "unheld", lambda c: c["corpus"].update(valid=0))
    assert "corpus.valid: 0" in refuse(unheld, "--split", "valid")


def test_settings_that_make_no_sense_are_refused(refuse, language, measured, tmp_path):
    for words, said in (
        (["--terms", "1"], "--terms 1"),
        (["--side", "2"], "--side 2"),
        (["--points", "2"], "--points 2"),
        (["--points", "20"], "only if they are 4k + 1; give 17 or 21"),
        (["--points", "4"], "give 5"),
        (["--levels", "-1"], "--levels -1.0"),
        (["--max-minutes", "0"], "--max-minutes 0"),
        (["--checkpoint", "none.pt"], "none.pt is not a file"),
    ):
        assert said in refuse(language[0], after=words)
    assert "of other runs, checkpoints or settings" in refuse(language[0], out=measured)
    assert f"--out {language[0]}: a run directory; choose another" in refuse(language[0], out=language[0])
    assert "cannot write there" in refuse(language[0], out=Path("/proc/x"))
    (tmp_path / "file").touch()
    assert "cannot write there" in refuse(language[0], out=tmp_path / "file")


def test_a_landscape_that_is_damaged_or_missing_is_refused(tmp_path, measured):
    with pytest.raises(UserError, match="landscape.json is missing"):
        section(tmp_path)
    (tmp_path / FILE).write_text("{")
    with pytest.raises(UserError, match="damaged"):
        section(tmp_path)


def test_a_barrier_is_that_of_a_tent_between_the_runs_and_rounding_is_none():
    a = np.linspace(-0.5, 1.5, 21)
    tent = (1 - abs(2 * a - 1))[:, None]
    flat = np.full_like(tent, 0.1) + 1e-17 * a[:, None]
    surface = SimpleNamespace(a=a, values={"loss": tent, "error": flat})
    barriers = _barriers(surface)
    assert barriers["loss"] == pytest.approx(1)
    found = {"surfaces": {"line a – b": {"barriers": {**barriers, "error": 1.4e-17, "lost": None}}}}
    assert barrier_table(found).rows == [["a – b", "1", "0", "–"]]


def test_weights_that_are_not_finite_are_refused(language, tmp_path, refuse):
    run = shutil.copytree(language[0], tmp_path / "run")
    state = torch.load(run / "checkpoints/best.pt", weights_only=True)
    name = next(iter(state["model"]))
    state["model"][name].view(-1)[0] = float("nan")
    torch.save(state, run / "checkpoints/best.pt")
    said = refuse(language[1], run)
    assert f"{run}: its checkpoint best.pt has weights that are not finite (" in said and "leave the run out" in said
