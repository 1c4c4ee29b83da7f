"""Single recordings: `seqssgd transcribe`, and recordings of any length."""

import dataclasses
import json
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

from seqssgd.asr import (  # noqa: E402
    FeatureConfig,
    NetworkConfig,
    Recognizer,
    RecognizerConfig,
    load_recognizer,
    read_wave,
    recording_logits,
    transcribe,
)

CONFIG = RecognizerConfig(FeatureConfig(bins=20), NetworkConfig(width=8, layers=2, kernel=5, subsampling=3))


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
    settings = {"model": dataclasses.asdict(CONFIG), "tokenizer": tokenizer.fingerprint}
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
        NetworkConfig(width=8, layers=2, kernel=5, front_end=front_end),
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
        write(tmp_path / "stereo.wav", np.stack([SPEECH, SPEECH], 1)).name: "has 2 channels where one is meant; --mix",
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


def test_wishes_that_make_no_sense_are_refused_before_any_file_is_read(run, tmp_path, capsys):
    arguments = ["transcribe", "--run", run, tmp_path / "absent.wav"]
    assert "--chunk-seconds 0: it must be at least 1" in refused(capsys, cli.main, *arguments, "--chunk-seconds", 0)
    assert "--device abacus cannot be used here" in refused(capsys, cli.main, *arguments, "--device", "abacus")
    (run / "tokenizer/tokenizer.json").write_text('{"level": "character", "case": "lower", "drop": ""}')
    assert "is not the tokenizer that" in refused(capsys, cli.main, *arguments)
