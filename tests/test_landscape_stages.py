"""What is measured of a run, stage by stage: tiny runs of the three recipes as subjects."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from landscape_runs import TINY, classifier, text, train

from seqssgd.landscape import CurvatureOperator
from seqssgd.landscape.sharpness import WeightNoise, sam_sharpness
from seqssgd.landscape.spectrum import Estimate
from seqssgd.landscape.stages import STAGES, NoRelativeLevel, StageSettings, noise_level, run_stage
from seqssgd.landscape.subjects import open_run
from seqssgd.landscape.variance import VarianceSplit
from seqssgd.speech import recognizer
from seqssgd.speech.finished import load_for_run, load_recognizer

datasets = pytest.importorskip("datasets")
import tones  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        patch.setenv("HF_DATASETS_CACHE", str(folder))
        yield


@pytest.fixture(scope="module")
def language(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("language")
    return train("ptb_lstm", "small_cpu", text(folder / "data"), folder / "run", *TINY)


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    tiny = ["--model.network.width", 8, "--model.network.layers", 2, "--model.features.bins", 12]
    tiny += ["--corpus.batch_seconds", 8, "--max-steps", 6]
    return train("wsj_sgcn", "an4_ssgd", tones.prepare(folder / "data"), folder / "run", *tiny)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return classifier(tmp_path_factory.mktemp("images"))


SETTINGS = StageSettings(terms=40, figure_terms=40, levels=(0.2,), draws=2, probes=2, steps=4)


# ---- a run as a subject ----------------------------------------------------------------------------------------------


def test_a_language_model_is_read_window_by_window_from_the_zero_state(language):
    subject = open_run(language)
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
    subject = open_run(run)
    assert CurvatureOperator(subject.objective("train", 40)).method == "exact"
    weights = [p.clone() for p in subject.model.parameters()]
    for stage in STAGES:
        found = run_stage(subject, stage, SETTINGS)
        assert ("left_out" in found) == (kind == "speech" and stage == "calibration"), found
    assert all(torch.equal(p, w) for p, w in zip(subject.model.parameters(), weights, strict=True))


def test_errors_are_those_of_the_whole_split_no_example_twice(language, images):
    subject = open_run(language)
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


def test_an_error_rate_is_of_all_batches_or_of_none(images):
    subject = open_run(images)
    batches = [subject.load("test", lambda count, i=i: list(range(i, i + 4)))[0] for i in (0, 4)]
    whole = subject.losses
    subject.losses = lambda outputs, batch: whole(outputs, batch) * (math.nan if batch is batches[0] else 1)
    loss, error, count = subject.loss_and_error(batches)
    assert math.isnan(loss) and math.isnan(error) and count == 8
    subject.losses = whole
    assert math.isfinite(subject.loss_and_error(batches)[1])


def test_a_split_of_a_single_example_has_it_once(speech):
    subject = open_run(speech)
    load = subject.load
    subject.load = lambda split, choose: load(split, lambda count: choose(1))
    loss, error, count = subject.loss_and_error(subject.spread("test", 1000))
    assert count == 1 and math.isfinite(loss) and math.isfinite(error)


# ---- what a stage says of what it cannot measure ---------------------------------------------------------------------


def test_too_few_examples_and_losses_that_are_not_finite_are_said(language, monkeypatch):
    monkeypatch.setattr("seqssgd.landscape.stages.UNSTABLE", 1e-6)
    subject = open_run(language)
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


def test_a_loss_that_is_not_finite_is_said(language):
    subject = open_run(language)
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
    subject = open_run(language)
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
    found = run_stage(open_run(language), "eigenvalues", SETTINGS)
    assert found["lambda_max"] and found["of_halves"][0] is None and found["of_halves"][1]
    assert "of a half of the data is not known: in 30 restarts" in found["warning"]


def test_a_network_that_cannot_be_differentiated_twice_is_named(speech):
    subject = open_run(speech)
    subject.losses = lambda logits, batch: recognizer.ctc_loss(logits, *batch[2:5]) / batch[4]
    found = run_stage(subject, "traces", SETTINGS)
    assert "_ctc_loss_backward" in found["left_out"] and "Relu" in found["left_out"]
    assert "noise" in run_stage(subject, "sharpness", SETTINGS)  # what needs one gradient is measured
