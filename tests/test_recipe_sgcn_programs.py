"""The programs of recipes/wsj_sgcn as they are called: killed and resumed, evaluated, given wrong input."""

import csv
import json
import shutil
from pathlib import Path

import forked
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from programs import ROOT, kill_and_resume, load, outcome, refused, table_of, without_times

from seqssgd import cli
from seqssgd.commands.runs import evaluate as evaluate_run
from seqssgd.data.audio import decode
from seqssgd.data.recording import encode_flac
from seqssgd.report import compare, read_run, summary
from seqssgd.runs import checkpoints
from seqssgd.speech.decode import arpa_words
from seqssgd.speech.evaluation import wsj_text
from seqssgd.speech.scoring import score

datasets = pytest.importorskip("datasets")
import tones  # noqa: E402

from seqssgd.speech.finished import load_for_run, load_recognizer  # noqa: E402
from seqssgd.speech.recordings import transcribe  # noqa: E402

TRAIN = load("recipes/wsj_sgcn/train.py")
NGRAM = load("recipes/wsj_sgcn/ngram.py")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        patch.setenv("HF_DATASETS_CACHE", str(folder))  # of the processes
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tones.prepare(tmp_path_factory.mktemp("prepared") / "data")


def command(data: Path, out: Path, *options: object) -> list[str]:
    """A tiny model with all that makes resuming hard: noise, dropout, speeds and masks."""
    settings = ["--config", ROOT / "recipes/wsj_sgcn/an4_ssgd.yaml", "--data", data, "--out", out]
    settings += ["--model.network.width", 12, "--model.network.layers", 2, "--model.features.bins", 24]
    settings += ["--model.network.front_end", "stack", "--model.network.dropout", 0.1]
    settings += ["--augment.time_width", 5, "--augment.frequency_width", 3, "--corpus.batch_seconds", 4]
    settings += ["--optim.lr", 0.01, "--training.threads", 1, "--training.epochs", 2, *options]
    return [str(setting) for setting in settings]


def train(data: Path, out: Path, *options: object) -> dict:
    assert TRAIN.main(command(data, out, *options)) == 0
    return json.loads((out / "result.json").read_text())


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """A finished run that has learned something, for tests that change nothing in it."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("finished") / "run"
    options = ["--training.epochs", 20, "--training.evaluate_every", 10, "--model.network.width", 24]
    result = train(data, run, *options, "--optim.lr", 0.02, "--model.network.dropout", 0)
    assert result["nonfinite"] == 0 and result["best"]["valid_cer"] < 60
    return run


def test_a_run_is_described(finished, capsys):
    assert cli.main(["describe", str(finished)]) == 0
    assert table_of(load_recognizer(finished)[0], finished) in capsys.readouterr().out


def evaluate(capsys, run: Path, data: Path, *options: object) -> list[str]:
    """The lines that seqssgd evaluate prints."""
    capsys.readouterr()
    evaluate_run([str(option) for option in ("--run", run, "--data", data, "--device", "cpu", *options)])
    return capsys.readouterr().out.splitlines()


def heard(run: Path, data: Path, split: str, name: str = "best") -> tuple[dict[str, str], dict[str, str]]:
    """References and what the model hears in one recording after the other."""
    model, tokenizer = load_recognizer(run, name)
    found = load_for_run(run, data, split)
    texts = {key: transcribe(model, tokenizer, found.waveform(i)) for i, key in enumerate(found.ids)}
    return dict(zip(found.ids, found.texts, strict=True)), texts


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_killed_half_way_and_started_again_a_run_ends_with_the_same_bits(data, tmp_path):
    options = ["--training.checkpoint_every", 3, "--training.log_every", 7]
    train(data, tmp_path / "whole", *options)
    killed = tmp_path / "killed"
    kill_and_resume("recipes/wsj_sgcn/train.py", command(data, killed, *options), killed, "step-*[1-9]?.pt")
    assert outcome(killed) == outcome(tmp_path / "whole")


@pytest.mark.parametrize("options", [
    ["--optim.signs", "halves"],
    ["--optim.method", "none", "--optim.noise", 0, "--training.accumulate", 2, "--corpus.prefetch", 0],
    ["--tokens.level", "sentencepiece", "--tokens.vocab_size", 12, "--model.features.normalization", "global"],
], ids=["halves", "plain", "pieces"])  # fmt: skip
def test_every_form_of_training_resumes_to_the_same_bits_and_evaluates(data, tmp_path, capsys, options):
    result = train(data, tmp_path / "whole", *options)
    if "--training.accumulate" not in options:
        assert result["passes"] == (result["steps"] if "halves" in options else 2 * result["steps"])
    TRAIN.main([*command(data, tmp_path / "parts", *options), "--max-steps", str(result["steps"] // 2 + 1)])
    moved = shutil.copytree(data, tmp_path / "elsewhere")  # the place of the data is no part of the configuration
    train(moved, tmp_path / "parts", *options)
    models = [checkpoints.load_newest(tmp_path / run / "checkpoints")[1] for run in ("whole", "parts")]
    for key in ("model", "optimizer", "schedulers", "processes"):
        assert without_times(models[0][key]) == without_times(models[1][key])
    said = evaluate(capsys, tmp_path / "whole", data, "--split", "valid", "--checkpoint", "last")
    assert float(said[2].split()[1]) == pytest.approx(result["final"]["valid_wer"], abs=0.005)
    assert float(said[3].split()[1]) == pytest.approx(result["final"]["valid_cer"], abs=0.005)


# ---- evaluation ------------------------------------------------------------------------------------------------------


def test_evaluation_counts_the_errors_of_every_recording_by_itself(data, finished, tmp_path, capsys):
    report = tmp_path / "new/report.txt"
    said = evaluate(capsys, finished, data, "--report", report)
    references, texts = heard(finished, data, "test")
    assert said[0].startswith(f"{finished}/checkpoints/best.pt, {data}/test: 12 utterances, 0.00 hours at 16,000 Hz")
    assert said[1] == "decoding: greedy"
    speakers = {key: f"test-{i % 3}" for i, key in enumerate(references)}
    for line, name, unit in ((said[2], "WER", "word"), (said[3], "CER", "char")):
        found = score(references, texts, unit)
        counts, (low, high) = found.counts, found.interval(speakers)
        assert 0 < found.rate < 100  # it has learned something, and not all
        assert line == (
            f"{name} {found.rate:.2f} % ({counts.errors} of {counts.reference} "
            f"{'words' if unit == 'word' else 'characters'}: {counts.substitutions} substituted, {counts.deletions} "
            f"deleted, {counts.insertions} inserted), 95 % interval {low:.2f} to {high:.2f} (bootstrap over speakers)"
        )
    assert said[4].startswith("real-time factor 0.") and said[4].endswith(" (cpu, 1 threads)")
    pair, count = score(references, texts).confusions(1).substitutions[0]
    assert f"substituted: {pair[0]} → {pair[1]} ({count})" in "\n".join(said)
    written = report.read_text().split("\n\n")
    assert written[0].splitlines() == said
    assert report.read_text().count("REF:") == 12 and score(references, texts).report() in report.read_text()


def test_saved_figures_are_those_of_the_table_and_beam_search_does_not_replace_them(data, finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    evaluate(capsys, run, data, "--split", "valid", "--save")
    evaluate(capsys, run, data, "--save")
    kept = list(csv.DictReader((run / "errors_test.csv").read_text(encoding="utf-8").splitlines()))
    references, texts = heard(run, data, "test")
    for i, (row, utterance) in enumerate(zip(kept, references, strict=True)):
        assert (row["utterance"], row["speaker"]) == (utterance, f"test-{i % 3}")
        for rate, unit in (("wer", "word"), ("cer", "char")):
            counts = score({utterance: references[utterance]}, {utterance: texts[utterance]}, unit).counts
            assert (int(row[f"{rate}_errors"]), int(row[f"{rate}_reference"])) == (counts.errors, counts.reference)
    pytest.importorskip("flashlight.lib.text.decoder", reason="needs pip install 'seqssgd[beam]'")
    evaluate(capsys, run, data, "--save", "--beam", 5)
    saved = json.loads((run / "evaluation.json").read_text())
    assert set(saved) == {"valid", "test", "test_beam"} and saved["test_beam"]["decoding"] == "beam 5, beta 0"
    found = score(*heard(run, data, "test"))
    assert saved["test"]["wer"] == found.rate and saved["test"]["checkpoint"] == "best.pt"
    assert saved["test"]["wer_counts"]["reference"] == found.counts.reference
    assert saved["test"]["wer_interval"][0] <= found.rate <= saved["test"]["wer_interval"][1]
    shown = summary(compare([read_run(run)], "valid_wer"))
    assert "| test WER |" in shown and f" {found.rate:.2f} " in shown
    message = refused(capsys, evaluate_run, "--run", run, "--data", tones.prepare(tmp_path / "other", "AB"), "--save")
    assert f"other is not the corpus that {run} was trained on; give the folder of that" in message


def test_beam_search_takes_the_words_of_the_model_and_the_weights_that_are_best_on_validation(
    data, finished, tmp_path, capsys
):
    pytest.importorskip("flashlight.lib.text.decoder", reason="needs pip install 'seqssgd[beam]'")
    pytest.importorskip("kenlm", reason="needs pip install 'seqssgd[beam]'")
    lm, letters, more = (tmp_path / name for name in ("words.arpa", "letters.arpa", "more.txt"))
    more.write_text("\n".join(tones.texts(12, 2)).lower())  # the test set's: a model that knows what is said
    NGRAM.main([str(x) for x in ("--run", finished, "--data", data, "--text", more, "--out", lm)])
    NGRAM.main(
        [str(x) for x in ("--run", finished, "--text", more, "--level", "label", "--order", 4, "--out", letters)]
    )
    assert "from 52 sentences" in capsys.readouterr().out
    written = {word for size, seed in ((40, 0), (12, 2)) for text in tones.texts(size, seed) for word in text.split()}
    assert set(arpa_words(lm)) == written  # upper case, as the tokenizer writes
    greedy = evaluate(capsys, finished, data)
    words = evaluate(capsys, finished, data, "--beam", 20, "--lm", lm, "--alpha", 0, 1, "--beta", -20, 1)
    spelt = evaluate(capsys, finished, data, "--beam", 20, "--lm", letters, "--alpha", 0.5)
    rates = [float(lines[2].split()[1]) for lines in (greedy, words, spelt)]
    assert rates[1] < rates[0]
    assert spelt[1] == f"decoding: beam 20 with {letters}, alpha 0.5, beta 0"
    chosen = words[1].split("beam 20 with ")[1]
    alpha, beta = (float(chosen.split(f"{name} ")[1].split(",")[0]) for name in ("alpha", "beta"))
    grid = {}
    for weights in ((0, -20), (0, 1), (1, -20), (1, 1)):
        options = ["--beam", 20, "--lm", lm, "--alpha", weights[0], "--beta", weights[1], "--split", "valid"]
        grid[weights] = float(evaluate(capsys, finished, data, *options)[2].split()[1])
    assert (
        grid[alpha, beta] == min(grid.values()) < grid[0, -20]
        and f"chosen on validation (WER {grid[alpha, beta]:.2f} %)" in chosen
    )


def test_wsj_is_scored_with_its_filter(data, finished, tmp_path, capsys):
    """A model that is right but for a noise and a mark makes no error."""
    folder = tones.prepare(tmp_path / "wsj", scoring_filter="wsj")
    references, texts = heard(finished, folder, "test")
    rows = pq.read_table(folder / "test.parquet").to_pylist()
    for row in rows:
        row["text"] = f"<NOISE> {texts[row['id']]}" if texts[row["id"]] else "<NOISE>"
    pq.write_table(pa.Table.from_pylist(rows), folder / "heard.parquet")  # not in dataset.json: decoded and checked
    said = evaluate(capsys, finished, folder, "--split", "heard")
    assert said[1] == "decoding: greedy, scored with the filter of WSJ" and said[2].startswith("WER 0.00 % (0 of ")
    assert wsj_text("<noise> the :colon *rose*") == "THE COLON ROSE"


def test_a_network_that_has_heard_a_little_of_an4_hears_more_than_nothing(real_data, tmp_path, capsys):
    """The whole road on real speech: a tiny network, trained on the validation set alone, which is small."""
    prepared = tmp_path / "an4"
    load("data_prep/an4.py").main(["--source", str(real_data / "an4/an4_raw.bigendian.tar.gz"), "--out", str(prepared)])
    options = ["--corpus.train", "valid", "--training.epochs", 13, "--training.evaluate_every", 13]
    options += ["--model.network.width", 64, "--model.network.layers", 4, "--optim.method", "none", "--optim.noise", 0]
    options += ["--corpus.batch_seconds", 12, "--model.network.dropout", 0, "--augment.speeds", "[1.0]"]
    options += ["--augment.time_masks", 0, "--augment.frequency_masks", 0]
    result = train(prepared, tmp_path / "run", *options)
    assert result["final"]["valid_loss"] < 2.5
    said = evaluate(capsys, tmp_path / "run", prepared)
    assert " of 773 words: " in said[2] and " of 2,565 characters: " in said[3]
    assert float(said[3].split()[1]) < 90


# ---- wrong input -----------------------------------------------------------------------------------------------------


def test_data_that_the_model_cannot_use_are_refused(data, finished, tmp_path, capsys):
    def refuse(folder: Path, *options: object) -> str:
        return refused(capsys, evaluate_run, "--run", finished, "--data", folder, *options)

    assert "has no set 'dev'; it has test, train, valid" in refuse(data, "--split", "dev")
    assert "absent does not exist" in refuse(tmp_path / "absent")
    telephone = tones.prepare(tmp_path / "telephone", rate=8_000)
    message = refuse(telephone)
    assert f"telephone/test has recordings at 8,000 Hz, and {finished} was trained on 16,000 Hz" in message
    rows = pq.read_table(data / "test.parquet").to_pylist()
    (tmp_path / "marks").mkdir()
    pq.write_table(pa.Table.from_pylist([row | {"text": "A 1 ß"} for row in rows]), tmp_path / "marks/test.parquet")
    assert "'1' (U+0031) in test00" in refuse(tmp_path / "marks")
    (tmp_path / "text").mkdir()
    pq.write_table(pa.table({"id": ["a"], "text": ["A"]}), tmp_path / "text/test.parquet")
    assert "text/test has no column audio" in refuse(tmp_path / "text")
    for name in ("train", "valid"):
        shutil.copy(tmp_path / "text/test.parquet", tmp_path / f"text/{name}.parquet")
    message = refused(capsys, TRAIN.main, *command(tmp_path / "text", tmp_path / "run"))
    assert "text/train has no column audio" in message and not (tmp_path / "run").exists()
    assert "--lm, --lexicon, --alpha and --beta are of beam search" in refuse(data, "--lm", "x.arpa")


def test_a_run_goes_on_with_the_recordings_that_it_began_with_only(data, tmp_path, capsys):
    train(data, tmp_path / "run", "--max-steps", 1)
    folder = tmp_path / "silent"
    shutil.copytree(data, folder)
    table = pq.read_table(folder / "train.parquet")
    rows = table.to_pylist()
    for row in rows:
        row["audio"]["bytes"] = encode_flac(np.zeros_like(decode(row["audio"]["bytes"]).samples[:, 0]), 16_000)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), folder / "train.parquet")
    (folder / "dataset.json").unlink()  # or the changed file would be refused for itself
    said = refused(capsys, TRAIN.main, *command(folder, tmp_path / "run"))
    assert "a run of another configuration (data.train.content = " in said


def test_language_models_that_are_none_are_refused(data, finished, tmp_path, capsys):
    pytest.importorskip("flashlight.lib.text.decoder", reason="needs pip install 'seqssgd[beam]'")
    pytest.importorskip("kenlm", reason="needs pip install 'seqssgd[beam]'")
    (tmp_path / "page.arpa").write_text("<!DOCTYPE html>\n<title>404</title>\n")
    (tmp_path / "half.arpa").write_text("\\data\\\nngram 1=3\nngram 2=1\n\n\\1-grams:\n-1\tA\t-1\n")
    for options, reason in (
        (["--lm", tmp_path / "page.arpa"], "page.arpa: this is a web page, not an ARPA file"),
        (["--lm", tmp_path / "half.arpa"], "half.arpa: not an ARPA file or a binary of KenLM, or not all of it"),
        (["--lm", tmp_path / "absent.arpa"], "absent.arpa: there is no such language model"),
        (["--lexicon", tmp_path / "absent.txt"], "absent.txt: cannot be read as a lexicon"),
        (["--alpha", -1], "--alpha=-1.0 must not be negative"),
    ):
        arguments = ["--run", finished, "--data", data, "--beam", 5, *options]
        assert reason in refused(capsys, evaluate_run, *arguments)
    assert "--beam=0: it must be at least 1" in refused(
        capsys, evaluate_run, "--run", finished, "--data", data, "--beam", 0
    )


def test_a_tokenizer_or_a_checkpoint_of_another_run_is_refused(data, finished, tmp_path, capsys):
    """Even one with as many labels, which would turn every text into another one."""
    run = shutil.copytree(finished, tmp_path / "run")
    labels = (run / "tokenizer/labels.txt").read_text()
    for other in (labels.replace("A\nB\n", "B\nA\n"), labels + "0\n"):
        assert other != labels
        (run / "tokenizer/labels.txt").write_text(other)
        message = refused(capsys, evaluate_run, "--run", run, "--data", data)
        assert f"{run}/tokenizer is not the tokenizer that {run} was trained with" in message
    (run / "tokenizer/labels.txt").unlink()
    assert "labels.txt is missing" in refused(capsys, evaluate_run, "--run", run, "--data", data)
    (run / "tokenizer/labels.txt").write_text(labels)
    train(data, tmp_path / "more", "--tokens.symbols", "0", "--training.epochs", 1, "--model.network.width", 24)
    other = tmp_path / "more/checkpoints/best.pt"
    message = refused(capsys, evaluate_run, "--run", run, "--data", data, "--checkpoint", other)
    assert f"{other}: weights of another model (size mismatch for network.output.weight" in message


def test_a_language_model_needs_a_tokenizer_and_text(finished, tmp_path, capsys):
    absent, out = tmp_path / "absent", tmp_path / "out.arpa"
    for options, reason in (
        (["--run", finished], "there is no text to read; give --data, --text, or both"),
        (["--run", finished, "--text", absent], f"{absent} cannot be read"),
        (["--run", tmp_path, "--text", absent], "does not hold a tokenizer"),
        (["--run", finished, "--data", absent], f"{absent} does not exist"),
        (["--run", finished, "--text", __file__, "--order", 0], "--order 0: it must be at least 1"),
        (["--run", finished, "--text", __file__, "--level", "label"], "characters that the tokenizer does not know"),
    ):
        assert reason in refused(capsys, NGRAM.main, *options, "--out", out)
    assert not out.exists()


def test_folders_that_are_no_run_of_a_recogniser_are_refused(data, finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    for changed, reason in (
        ({**config, "model": {"hidden_size": 5}}, "describes no speech recogniser (section 'model'"),
        ({"model": 3}, "does not say which recipe reads the run"),
    ):
        (run / "config.yaml").write_text(yaml.safe_dump(changed))
        assert reason in refused(capsys, evaluate_run, "--run", run, "--data", data)
    (run / "config.yaml").unlink()
    assert "is not a run directory" in refused(capsys, evaluate_run, "--run", run, "--data", data)


def test_the_program_itself_ends_with_one_line_and_a_status(tmp_path):
    process = forked.program(
        "recipes/wsj_sgcn/train.py", *command(tmp_path / "absent", tmp_path / "run"), log=tmp_path / "log"
    )
    process.join(120)
    said = (tmp_path / "log").read_text()
    assert process.exitcode == 2 and len(said.splitlines()) == 1 and said.startswith("error: "), said
