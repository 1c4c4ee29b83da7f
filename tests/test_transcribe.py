"""Single recordings: `seqssgd transcribe`, and recordings of any length."""

import dataclasses
import json
import os
import re
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from programs import refused

from seqssgd import cli
from seqssgd.speech.tokens import CharacterTokenizer

soundfile = pytest.importorskip("soundfile")
import tones  # noqa: E402
from sphere_files import sphere  # noqa: E402

from seqssgd.data.containers import NO_LENGTH  # noqa: E402
from seqssgd.speech import recordings  # noqa: E402
from seqssgd.speech.config import FeatureConfig, RecognizerConfig  # noqa: E402
from seqssgd.speech.decode import BeamSearch  # noqa: E402
from seqssgd.speech.finished import load_recognizer  # noqa: E402
from seqssgd.speech.networks import NETWORKS  # noqa: E402
from seqssgd.speech.ngram import estimate  # noqa: E402
from seqssgd.speech.recognizer import Recognizer  # noqa: E402
from seqssgd.speech.recordings import read_wave, recording_logits, transcribe  # noqa: E402

CONFIG = RecognizerConfig(FeatureConfig(bins=20), NETWORKS.settings("sgcn", width=8, layers=2, kernel=5, subsampling=3))


def model_of(config: RecognizerConfig = CONFIG, seed: int = 3) -> Recognizer:
    """One whose weights are large enough to hear something in everything."""
    torch.manual_seed(seed)
    model = Recognizer(config, CharacterTokenizer.train().vocab_size).eval()
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    if config.features.normalization == "global":
        model.features.measure([(torch.randn(2, 20_000) / 10, torch.tensor([20_000, 20_000]))])
    return model


@pytest.fixture
def run(tmp_path) -> Path:
    """A run directory as train.py leaves it."""
    folder, tokenizer = tmp_path / "run", CharacterTokenizer.train()
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "tokenizer").mkdir()
    tokenizer.save(folder / "tokenizer")
    settings = {"recipe": "wsj_sgcn", "model": dataclasses.asdict(CONFIG), "tokenizer": tokenizer.fingerprint}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    torch.save({"model": model_of().state_dict()}, folder / "checkpoints/best.pt")
    return folder


def write(path: Path, samples: np.ndarray, rate: int = 16_000, **options) -> Path:
    soundfile.write(path, samples, rate, **options)
    return path


SPEECH = tones.waveform("ABCD DAB CABBAGE")


# ---- recordings of any length ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", ["utterance", "global", "none"])
@pytest.mark.parametrize("front_end", ["stack", "conv2d"])
def test_chunks_of_a_recording_give_the_logits_of_the_whole(normalization, front_end):
    model = model_of(RecognizerConfig(
        FeatureConfig(bins=20, normalization=normalization),
        NETWORKS.settings("sgcn", width=8, layers=2, kernel=5, front_end=front_end),
    ))  # fmt: skip
    for samples in (399, 400, 560, 16_000, 50_001):
        wave = torch.randn(samples) / 10
        with torch.no_grad():
            features, frames = model.features(wave[None], torch.tensor([samples]))
            logits, lengths = model(features, frames)
        expected = logits[0, : lengths[0]]
        for seconds in (0.2, 0.33, 1.0, 30.0):
            found = recording_logits(model, wave, seconds)
            assert found.shape == expected.shape == (model.output_frames(samples), 29)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_no_more_than_a_chunk_and_its_context_is_computed_at_a_time():
    model, longest = model_of(), []
    model.features.register_forward_pre_hook(lambda *_: pytest.fail("all features at once"))
    before = model.features.log_mel
    model.features.log_mel = lambda waves, lengths: longest.append(waves.shape[1]) or before(waves, lengths)
    model.network.register_forward_pre_hook(lambda module, inputs: longest.append(160 * inputs[0].shape[1]))
    recording_logits(model, torch.randn(160_000) / 10, 1.0)
    assert max(longest) < 24_000 and len(longest) > 19


# ---- files -----------------------------------------------------------------------------------------------------------


def test_samples_are_those_of_the_file_whatever_its_format(tmp_path):
    expected = torch.from_numpy(SPEECH / 32_768.0).float()
    for name, subtype in (
        ("a.wav", None),
        ("b.flac", "PCM_24"),
        ("c.aiff", None),
        ("d.wav", "FLOAT"),
        ("e.wav", "ALAW"),
    ):
        wave, rate = read_wave(write(tmp_path / name, SPEECH / 32_768, subtype=subtype), 16_000)
        assert rate == 16_000 and wave.dtype == torch.float32
        torch.testing.assert_close(wave, expected, rtol=0, atol=0.02 if subtype == "ALAW" else 1e-6)
    (tmp_path / "e.wv1").write_bytes(sphere(SPEECH[:, None]))
    assert torch.equal(read_wave(tmp_path / "e.wv1", 16_000)[0], expected)
    ogg, _ = read_wave(write(tmp_path / "f.ogg", SPEECH), 16_000)
    assert len(ogg) == len(expected) and float((ogg - expected).square().mean()) < 1e-3


def test_other_rates_are_resampled_and_channels_mixed_on_request(tmp_path):
    time = np.arange(44_100) / 44_100
    tone = np.rint(8_000 * np.sin(2 * np.pi * 500 * time)).astype(np.int16)
    wave, rate = read_wave(write(tmp_path / "a.wav", tone, 44_100), 16_000)
    expected = 8_000 / 32_768 * torch.sin(2 * torch.pi * 500 * torch.arange(16_000) / 16_000)
    assert rate == 44_100 and abs(len(wave) - 16_000) < 20
    torch.testing.assert_close(wave[200:15_800], expected[200:15_800], rtol=0, atol=2e-3)
    both = np.stack([SPEECH, 3 * (SPEECH // 4)], 1)
    wave, _ = read_wave(write(tmp_path / "stereo.wav", both), 16_000, mix=True)
    torch.testing.assert_close(wave, torch.from_numpy(both.mean(1) / 32_768).float(), rtol=0, atol=1 / 32_768)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_down_every_file(run, tmp_path, capsys):
    model, tokenizer = load_recognizer(run)
    files = [write(tmp_path / "a.wav", SPEECH), write(tmp_path / "b.flac", SPEECH[::-1], 8_000)]
    texts = [transcribe(model, tokenizer, read_wave(file, 16_000)[0]) for file in files]
    assert texts[0] and texts[1] and texts[0] != texts[1]
    arguments = ["transcribe", "--run", str(run), "--device", "cpu"]
    assert cli.main([*arguments, str(files[0])]) == 0
    assert capsys.readouterr().out == f"{texts[0]}\n"
    assert cli.main([*arguments, *map(str, files), "--chunk-seconds", "1"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{files[0]}: {texts[0]}\n{files[1]}: {texts[1]}\n"
    assert said.err == f"note: {files[1]} has 8,000 Hz, the model hears 16,000 Hz; expect more errors\n"
    assert cli.main([*arguments, "--json", *map(str, files)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    seconds = len(SPEECH) / 16_000
    assert [row["text"] for row in rows] == texts and [row["file"] for row in rows] == list(map(str, files))
    assert rows[0]["seconds"] == pytest.approx(seconds, abs=1e-3)
    assert rows[1]["seconds"] == pytest.approx(2 * seconds, abs=1e-2)


def test_unusable_files_take_a_line_each_and_the_others_are_written_down(run, tmp_path, capsys):
    good = write(tmp_path / "good.wav", SPEECH)
    nan = SPEECH.astype(np.float32) / 32_768
    nan[5] = np.nan
    whole = good.read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.wav").write_text("<!DOCTYPE html>")
    (tmp_path / "none.wav").write_bytes(b"")
    bad = {
        "absent.wav": "there is no such file",
        "cut.wav": "is cut off: ",
        "page.wav": "cannot be decoded",
        "none.wav": "is empty",
        write(tmp_path / "stereo.wav", np.stack([SPEECH, SPEECH], 1)).name: "has 2 channels where one is meant; mix",
        write(tmp_path / "nan.wav", nan, subtype="FLOAT").name: "has 1 samples that are not finite",
        write(tmp_path / "silent.wav", SPEECH[:0]).name: "holds no samples",
        "run": "cannot be read (Is a directory)",
    }
    files = [str(tmp_path / name) for name in bad]
    arguments = ["transcribe", "--run", str(run), "--device", "cpu"]
    assert cli.main([*arguments, *files[:4], str(good), *files[4:]]) == 2
    said = capsys.readouterr()
    assert said.out.startswith(f"{good}: ") and len(said.out.splitlines()) == 1
    for line, file, reason in zip(said.err.splitlines(), files, bad.values(), strict=True):
        assert line.startswith(f"error: {file}: {reason}")
    assert cli.main([*arguments, "--mix", str(tmp_path / "stereo.wav"), str(good)]) == 0
    mixed, alone = (line.split(": ")[1] for line in capsys.readouterr().out.splitlines())
    assert mixed == alone  # the mean of two equal channels
    assert cli.main([*arguments, str(write(tmp_path / "short.wav", SPEECH[:300]))]) == 0
    assert capsys.readouterr().out == "\n"  # shorter than a frame


def test_whole_numbers_of_32_bits_are_heard_like_those_of_24(run, tmp_path, capsys):
    arguments = ["transcribe", "--run", str(run), "--device", "cpu"]
    texts = []
    noise = np.random.default_rng(0).integers(0, 256, len(SPEECH))
    for name, subtype in (("a.wav", "PCM_24"), ("b.wav", "PCM_32")):
        samples = (SPEECH.astype(np.int32) << 16) + (noise if subtype == "PCM_32" else 0)
        assert cli.main([*arguments, str(write(tmp_path / name, samples.astype(np.int32), subtype=subtype))]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != "\n"


def test_a_recording_without_a_length_is_heard_to_its_end_with_a_note(run, tmp_path, capsys):
    whole = write(tmp_path / "whole.wav", SPEECH).read_bytes()
    (tmp_path / "piped.wav").write_bytes(whole[:40] + b"\x00\xf0\xff\x7f" + whole[44:])
    assert cli.main(["transcribe", "--run", str(run), str(tmp_path / "whole.wav"), str(tmp_path / "piped.wav")]) == 0
    said = capsys.readouterr()
    first, second = (line.split(": ", 1)[1] for line in said.out.splitlines())
    assert first == second and first
    assert said.err == f"note: the header of {tmp_path / 'piped.wav'} {NO_LENGTH}\n"


def test_file_names_that_are_not_utf_8_are_transcribed(run, tmp_path, capsys):
    name = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    os.rename(write(tmp_path / "a.wav", SPEECH), name)
    absent = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav")
    assert cli.main(["transcribe", "--run", str(run), "--json", os.fsdecode(name), absent]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["text"] and "caf\\udce9.wav" in json.loads(said.out)["file"]
    assert "\\udcff.wav: there is no such file" in said.err


def test_whatever_one_file_raises_the_others_are_transcribed(run, tmp_path, capsys, monkeypatch):
    good, bad = write(tmp_path / "good.wav", SPEECH), write(tmp_path / "bad.wav", SPEECH)
    real = recordings.recognise

    def recognise(model, tokenizer, path, *arguments):
        if path == str(bad):
            raise ZeroDivisionError("by zero")
        return real(model, tokenizer, path, *arguments)

    monkeypatch.setattr(recordings, "recognise", recognise)
    assert cli.main(["transcribe", "--run", str(run), str(bad), str(good)]) == 2
    said = capsys.readouterr()
    assert said.err == f"error: {bad}: cannot be used (ZeroDivisionError: by zero)\n" and said.out.startswith(str(good))


def test_a_pipe_is_transcribed_like_a_file(run, tmp_path, capsys):
    file = write(tmp_path / "a.wav", SPEECH)
    os.mkfifo(tmp_path / "pipe")
    feeder = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(file.read_bytes()))
    feeder.start()
    assert cli.main(["transcribe", "--run", str(run), str(tmp_path / "pipe")]) == 0
    feeder.join()
    heard = capsys.readouterr().out
    assert cli.main(["transcribe", "--run", str(run), str(file)]) == 0
    assert capsys.readouterr().out == heard != "\n"


MEASURE = """
import resource, sys
from seqssgd import cli
from seqssgd.data.progress import ProgressBar
ProgressBar.__init__.__defaults__ = (0, "utterances", 0.0, False)  # a line at once, however fast the machine is
run, *files = sys.argv[1:]
for file in files:
    assert cli.main(["transcribe", "--mix", "--run", run, file]) == 0
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.stderr)
"""


def test_memory_does_not_grow_with_the_length_of_a_recording_and_long_ones_show_progress(run, tmp_path):
    files = []
    for minutes in (1, 11):  # of 48 kHz stereo floats: 253 MB, of which most is a hole in the file
        files.append(tmp_path / f"{minutes}.wav")
        size = minutes * 60 * 48_000 * 8
        with open(files[-1], "wb") as sparse:
            sparse.write(b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + struct.pack("<I", 16))
            sparse.write(struct.pack("<HHIIHH", 3, 2, 48_000, 48_000 * 8, 8, 32) + b"data" + struct.pack("<I", size))
            sparse.write(np.repeat(SPEECH / 32_768, 6).astype("<f4").tobytes())
            sparse.truncate(44 + size)
    done = subprocess.run([sys.executable, "-c", MEASURE, run, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    short, first, long, second, rest = re.split(r"^peak (\d+)\n", done.stderr, flags=re.MULTILINE)
    assert short == rest == "" and "660 s of" in long
    assert int(second) < int(first) + 40


def test_a_recording_in_blocks_of_any_size_gives_the_logits_of_the_whole():
    model, wave = model_of(), torch.from_numpy(SPEECH / 32_768).float()
    whole = recording_logits(model, wave)
    for size in (100, 399, 4001):
        found = torch.cat(list(recordings.logits_of(model, wave.split(size), 0.5)))
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)


def test_beam_search_with_a_language_model_is_that_of_evaluation(run, tmp_path, capsys):
    pytest.importorskip("flashlight.lib.text.decoder", reason="needs pip install 'seqssgd[beam]'")
    pytest.importorskip("kenlm", reason="needs pip install 'seqssgd[beam]'")
    lm, file = tmp_path / "lm.arpa", write(tmp_path / "a.wav", SPEECH)
    estimate([["ABCD", "DAB", "CABBAGE"], ["DAB", "ABCD"]], 2).write_arpa(lm)
    model, tokenizer = load_recognizer(run)
    logits = recording_logits(model, read_wave(file, 16_000)[0])
    expected = BeamSearch(tokenizer, lm, ["ABCD", "DAB", "CABBAGE"], 0.7, 1.5, beam=20).n_best(logits)[0].text
    options = ["--beam", "20", "--lm", str(lm), "--alpha", "0.7", "--beta", "1.5"]
    assert cli.main(["transcribe", "--run", str(run), *options, str(file)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{expected}\n" and "knows 3 of 3 words of the lexicon" in said.err


def test_wishes_that_make_no_sense_are_refused_before_any_file_is_read(run, tmp_path, capsys):
    arguments = ["transcribe", "--run", run, tmp_path / "absent.wav"]
    assert "--chunk-seconds 0: it must be at least 1" in refused(capsys, cli.main, *arguments, "--chunk-seconds", 0)
    assert "give --beam 100 with them" in refused(capsys, cli.main, *arguments, "--lm", "x.arpa")
    assert "the device abacus cannot be used here" in refused(capsys, cli.main, *arguments, "--device", "abacus")
    (run / "tokenizer/tokenizer.json").write_text('{"level": "character", "case": "lower", "drop": ""}')
    assert "is not the tokenizer that" in refused(capsys, cli.main, *arguments)
