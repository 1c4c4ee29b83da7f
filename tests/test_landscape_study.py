"""``seqssgd landscape`` on tiny runs of the three recipes: what it measures, how it goes on, and what it refuses."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from landscape_runs import TINY, text, train
from programs import coloured_images, places, replaced

from seqssgd import cli
from seqssgd.errors import UserError
from seqssgd.landscape import CurvatureOperator
from seqssgd.landscape.section import barrier_table, section
from seqssgd.landscape.sharpness import WeightNoise, sam_sharpness
from seqssgd.landscape.spectrum import Estimate
from seqssgd.landscape.stages import STAGES, TERMS, NoRelativeLevel, StageSettings, noise_level, run_stage
from seqssgd.landscape.study import FILE, _barriers, read
from seqssgd.landscape.subjects import open_run
from seqssgd.landscape.surface import read_surface
from seqssgd.landscape.variance import VarianceSplit
from seqssgd.speech import recognizer
from seqssgd.speech.finished import load_for_run, load_recognizer

datasets = pytest.importorskip("datasets")
import tones  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def own_cache_and_few_terms(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TERMS, "language", (60, 60))
        folder = tmp_path_factory.mktemp("cache")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        patch.setenv("HF_DATASETS_CACHE", str(folder))
        yield


@pytest.fixture(scope="module")
def language(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("language")
    data = text(folder / "data")
    return [train("ptb_lstm", "small_cpu", data, folder / f"run{seed}", *TINY, "--seed", seed) for seed in range(3)]


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    tiny = ["--model.network.width", 8, "--model.network.layers", 2, "--model.features.bins", 12]
    tiny += ["--corpus.batch_seconds", 8, "--max-steps", 6]
    return train("wsj_sgcn", "an4_ssgd", tones.prepare(folder / "data"), folder / "run", *tiny)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    tiny = ["--corpus.valid", 10, "--corpus.pad", 1, "--batch_size", 10, "--bn_images", 20]
    tiny += ["--training.precision", "fp32", "--max-steps", 3]
    return train("cifar_cnn", "resnet20_cpu", coloured_images(folder / "data"), folder / "run", *tiny)


SETTINGS = StageSettings(terms=40, figure_terms=40, levels=(0.2,), draws=2, probes=2, steps=4)
SMALL = ["--terms", "60", "--points", "5", "--side", "3", "--levels", "0.2", "--processes", "1", "--device", "cpu"]


def run_program(*words: object) -> int:
    return cli.main(["landscape", *map(str, words)])


# ---- a run as a subject ----------------------------------------------------------------------------------------------


def test_a_language_model_is_read_window_by_window_from_the_zero_state(language):
    subject = open_run(language[0])
    batches = subject.batches("train", 120)
    windows = torch.cat([torch.cat([x, y[-1:]]) for x, y in batches], 1)
    assert windows.shape == (7, 20)
    total = 0.0
    for window in windows.T:
        logits = subject.model(window[:-1, None])[0][:, 0]
        total += F.cross_entropy(logits, window[1:], reduction="sum").item()
    objective = subject.objective("train", 120)
    assert objective.terms == 120 and objective.loss == pytest.approx(total / 120, rel=1e-5)
    halves = [subject.objective("train", 120, half) for half in (0, 1)]
    assert sum(half.loss * half.terms for half in halves) == pytest.approx(total, rel=1e-5)


def test_speech_has_the_loss_of_training_and_the_error_rate_of_evaluation(speech):
    subject = open_run(speech)
    model, tokenizer = load_recognizer(speech)
    data = load_for_run(speech, subject_data(speech), "test")
    targets = tokenizer.encode_all(data.texts, data.ids)
    texts, _ = recognizer.transcribe_set(model, data, tokenizer, torch.device("cpu"))
    wanted = {key: tokenizer.normalize(text) for key, text in zip(data.ids, data.texts, strict=True)}
    losses = []
    for index, labels in enumerate(targets):
        features = model.features(data.waveform(index)[None], torch.tensor([data.samples[index]]))
        logits, lengths = model(*features)
        losses.append(recognizer.ctc_loss(logits, lengths, labels[None], torch.tensor([len(labels)])) / len(labels))
    from seqssgd.speech.scoring import score

    found = subject.figures(("test",), 1000)
    assert found["test loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-4)
    assert found["test error"] == pytest.approx(score(wanted, texts).rate)


def subject_data(run: Path) -> str:
    words = json.loads((run / "environment.json").read_text())["command"]
    return words[words.index("--data") + 1]


def test_images_have_their_statistics_taken_anew_at_every_change_of_the_weights(images):
    subject = open_run(images)
    before = subject.figures(("test",), 1000)
    buffers = [b.clone() for b in subject.model.buffers() if b.ndim]
    with torch.no_grad():
        next(subject.model.parameters()).mul_(3.0)  # the scale of a layer before a batch norm is of no matter
    assert subject.figures(("test",), 1000)["test loss"] != pytest.approx(before["test loss"], rel=1e-2)
    subject.recalibrate()
    assert subject.figures(("test",), 1000)["test loss"] == pytest.approx(before["test loss"], rel=1e-3)
    with torch.no_grad():
        next(subject.model.parameters()).div_(3.0)
    subject.recalibrate()
    for now, then in zip((b for b in subject.model.buffers() if b.ndim), buffers, strict=True):
        torch.testing.assert_close(now, then, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["language", "speech", "images"])
def test_every_recipe_is_differentiated_twice_exactly_and_has_every_figure(kind, request):
    run = request.getfixturevalue(kind)
    subject = open_run(run[0] if isinstance(run, list) else run)
    assert CurvatureOperator(subject.objective("train", 40)).method == "exact"
    weights = [p.clone() for p in subject.model.parameters()]
    for stage in STAGES:
        found = run_stage(subject, stage, SETTINGS)
        assert ("left_out" in found) == (kind == "speech" and stage == "calibration"), found
    assert all(torch.equal(p, w) for p, w in zip(subject.model.parameters(), weights, strict=True))


# ---- the program -----------------------------------------------------------------------------------------------------


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


def test_errors_are_those_of_the_whole_split_no_example_twice(language, images):
    subject = open_run(language[0])
    batches = subject.spread("test", 10**9)
    joined = torch.cat([torch.cat([x, y[-1:]]) for x, y in batches], 1).T  # windows of 7 tokens that overlap in one
    assert torch.equal(joined[:-1, -1], joined[1:, 0])
    assert sum(y.numel() for _, y in batches) >= 40
    few = subject.spread("test", 24)
    assert sum(y.numel() for _, y in few) == 24
    model = open_run(images)
    loss, error, count = model.loss_and_error(model.spread("test", 10**9))
    images_, labels = (torch.cat(parts) for parts in zip(*model.spread("test", 10**9), strict=True))
    with torch.no_grad():
        logits = model.model(images_)
    assert count == len(labels) and loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
    assert error == pytest.approx(100 * (logits.argmax(1) != labels).float().mean().item(), abs=1e-4)


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


def test_runs_that_do_not_fit_are_refused(refuse, language, speech, images, tmp_path):
    assert "has another model than" in refuse(language[0], speech)
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


def test_too_few_examples_and_losses_that_are_not_finite_are_said(language, monkeypatch):
    monkeypatch.setattr("seqssgd.landscape.stages.UNSTABLE", 1e-6)
    subject = open_run(language[0])
    few = run_stage(subject, "eigenvalues", StageSettings(terms=12, figure_terms=12))
    assert "on two halves of 12 tokens: too few of them for a stable value" in few["warning"]
    assert few["of_halves"][0] != few["of_halves"][1]
    outputs = subject.outputs
    clean = outputs(subject.batches("train", 40)[0]).mean()

    def sometimes(batch):
        found = outputs(batch)
        return found if abs(found.mean() - clean) < 1e-6 else found * float("nan")

    subject.outputs = sometimes
    found = run_stage(subject, "robustness", SETTINGS)
    assert "not finite under some perturbations" in found["warning"]


def test_a_barrier_is_that_of_a_tent_between_the_runs_and_rounding_is_none():
    a = np.linspace(-0.5, 1.5, 21)
    tent = (1 - abs(2 * a - 1))[:, None]
    flat = np.full_like(tent, 0.1) + 1e-17 * a[:, None]
    surface = SimpleNamespace(a=a, values={"loss": tent, "error": flat})
    barriers = _barriers(surface)
    assert barriers["loss"] == pytest.approx(1)
    found = {"surfaces": {"line a – b": {"barriers": {**barriers, "error": 1.4e-17, "lost": None}}}}
    assert barrier_table(found).rows == [["a – b", "1", "0", "–"]]


def test_weights_that_are_not_finite_are_refused_and_a_loss_that_is_not_is_said(language, tmp_path, refuse):
    run = shutil.copytree(language[0], tmp_path / "run")
    state = torch.load(run / "checkpoints/best.pt", weights_only=True)
    name = next(iter(state["model"]))
    state["model"][name].view(-1)[0] = float("nan")
    torch.save(state, run / "checkpoints/best.pt")
    said = refuse(language[1], run)
    assert f"{run}: its checkpoint best.pt has weights that are not finite (" in said and "leave the run out" in said
    subject = open_run(language[0])
    losses = subject.losses
    subject.losses = lambda outputs, batch: losses(outputs, batch) * float("nan")
    assert "of the training data is not finite" in run_stage(subject, "eigenvalues", SETTINGS)["left_out"]
    assert math.isnan(sam_sharpness(subject.objective("train", 40)))


@pytest.mark.parametrize(
    "optim, level",
    [
        ({"method": "ssgd", "noise": 0.3}, 0.3),
        ({"method": "two_draws", "noise": 0.2, "granularity": "filter"}, 0.2),
        ({"method": "adasmoothout", "noise": 0.1}, 0.1),
        ({"method": "none", "noise": 0.3}, 0.5),  # left over
        ({"method": "sam", "noise": 0.0}, 0.5),
        ({"method": "ssgd", "noise": 0.01, "granularity": "absolute"}, "granularity absolute"),
        ({"method": "graves", "noise": 0.01}, "granularity absolute"),
        ({"method": "mrwp", "noise": 0.01}, "granularity filter_std"),
        ({"method": "dropconnect", "noise": 0.3}, "level of dropconnect"),
        ({"method": "covariance", "noise": 0.3}, "level of covariance"),
        ({"method": "ivon"}, "level of ivon"),
    ],
)
def test_a_level_is_a_fraction_of_the_norm_or_there_is_none(optim, level):
    if isinstance(level, float):
        assert noise_level(optim) == level
    else:
        with pytest.raises(NoRelativeLevel, match=level):
            noise_level(optim)


def test_the_variance_is_that_under_the_runs_own_noise(language, monkeypatch):
    asked = []

    def noted(gradient, halves, examples, noise, level):
        asked.append((noise._source.distribution, noise._source.granularity, len(noise.params), level))
        return VarianceSplit(level, 2 * examples, *[Estimate(1.0, 1.0, 1.0)] * 5)

    monkeypatch.setattr("seqssgd.landscape.stages.variance_split", noted)
    subject = open_run(language[0])
    every = len(WeightNoise(subject.model).params)
    own = {"method": "weight_noise", "noise": 0.2, "only": ["recurrent"], "granularity": "tensor"}
    own["distribution"] = "gaussian"
    subject.settings["optim"] = own
    assert run_stage(subject, "variance", SETTINGS)["level"] == 0.2
    subject.settings["optim"] = {**own, "method": "none"}
    run_stage(subject, "variance", SETTINGS)
    [(*kind, count, level), plain] = asked
    assert (kind, level) == (["gaussian", "tensor"], 0.2) and 0 < count < every
    assert plain == ("rademacher", "layer", every, 0.5)
    subject.settings["optim"] = {"method": "dropconnect", "noise": 0.2}
    assert "dropconnect" in run_stage(subject, "variance", SETTINGS)["left_out"] and len(asked) == 2
    subject.settings["optim"] = {"method": "ssgd_shaped", "noise": 0.2}
    assert "variance is that of flat noise" in run_stage(subject, "variance", SETTINGS)["warning"]
    subject.settings["optim"] = {"method": "ssgd", "noise": 0.2, "balance": True}
    assert "average is over draws of flat noise" in run_stage(subject, "calibration", SETTINGS)["warning"]


def test_a_half_that_does_not_converge_leaves_the_eigenvalue_of_the_whole(language, monkeypatch):
    from seqssgd.landscape import stages

    top, calls = stages.top_eigenvalues, []

    def sometimes(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise stages.NotConverged("in 30 restarts")
        return top(*args, **kwargs)

    monkeypatch.setattr(stages, "top_eigenvalues", sometimes)
    found = run_stage(open_run(language[0]), "eigenvalues", SETTINGS)
    assert found["lambda_max"] and found["of_halves"][0] is None and found["of_halves"][1]
    assert "of a half of the data is not known: in 30 restarts" in found["warning"]


def test_a_network_that_cannot_be_differentiated_twice_is_named(speech):
    subject = open_run(speech)
    subject.losses = lambda logits, batch: recognizer.ctc_loss(logits, *batch[2:5]) / batch[4]
    found = run_stage(subject, "traces", SETTINGS)
    assert "_ctc_loss_backward" in found["left_out"] and "Relu" in found["left_out"]
    assert "noise" in run_stage(subject, "sharpness", SETTINGS)  # what needs one gradient is measured
