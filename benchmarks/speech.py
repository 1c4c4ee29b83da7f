"""Training and recognition speed of the speech recipe, against a bare PyTorch loop that finds its features ready.

    python benchmarks/speech.py [--threads 1] [--steps 40] [--rounds 5] [--models 12x190 12x300]

The bare loop is what one would write by hand: features that were computed before and lie in memory, forward, loss,
backward, clip, step. The recipe's loop reads the recordings, changes their speed, computes the features and masks them
too. Both train on the same minibatches of recordings made up here (tones and noise, 1 to 6 seconds, as FLAC), in
turns, and the ratios are taken turn by turn. Features and loading are the recipe's own, of a second epoch, when decoded
recordings are in memory, and of a first one, without the decoding ahead of time that hides some of it. Recognition is
one recording at a time, features and greedy decoding included.

Time on one machine with 2 cores: about 4 minutes.
"""

import argparse
import contextlib
import io
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from timing import Figures, benchmark, in_turns, ratio
from torch import Tensor, nn

from seqssgd.data.audio import read_pcm
from seqssgd.data.speech_rows import Utterance
from seqssgd.data.speech_writer import write_speech_dataset
from seqssgd.speech.config import AugmentConfig, Config, CorpusConfig, RecognizerConfig, TokensConfig
from seqssgd.speech.networks import NETWORKS
from seqssgd.speech.recognizer import Recognizer, ctc_loss
from seqssgd.speech.recordings import transcribe
from seqssgd.speech.task import SpeechTask, build_tokenizer, load_sets
from seqssgd.training import OptimConfig, RunDirectory, TrainingConfig, build_optimizer, fit

RATE, LETTERS = 16_000, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BATCH_SECONDS = 40.0


def recording(text: str, seed: int) -> bytes:
    """A tone of its own for every letter, 0.15 s each, and noise, as 16-bit samples."""
    time_axis = np.arange(round(0.15 * RATE)) / RATE
    tones = [np.sin(2 * np.pi * 200 * 1.1 ** LETTERS.find(letter) * time_axis) for letter in text]
    noise = np.random.default_rng(seed).standard_normal(len(text) * len(time_axis))
    return np.rint(6_000 * np.concatenate(tones) + 300 * noise).astype("<i2").tobytes()


def corpus(folder: Path, seconds: float) -> Path:
    """A prepared corpus with about so many seconds of training audio."""
    draw, sets = random.Random(0), {"train": [], "valid": []}
    lengths = {"train": seconds, "valid": 30.0}
    for name, total in lengths.items():
        while total > 0:
            text = "".join(draw.choices(LETTERS, k=draw.randint(7, 40)))
            key, data = f"{name}{len(sets[name])}", recording(text, len(sets[name]))
            read = partial(read_pcm, data, RATE, "<i2")
            sets[name].append(Utterance(key, text, "nobody", f"{key}.raw", len(data), read))
            total -= 0.15 * len(text)
    write_speech_dataset(folder, sets, "Tones")
    return folder


class TimedTask(SpeechTask):
    """Notes how much audio it has given out since the second minibatch was asked for: the first step is the warm-up."""

    started: float | None = None
    seconds = 0.0

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        for batch in super().batches(epoch, start):
            if self.started is not None:
                self.seconds += float(batch[4].sum())
            yield batch
            self.started = self.started or time.perf_counter()


def build_task(config: Config, sets: dict) -> TimedTask:
    """The recipe's task with a new model."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(config.tokens, sets["train"].texts)
    model = Recognizer(config.model, tokenizer.vocab_size)
    return TimedTask(model, tokenizer, sets, config, torch.device("cpu"))


def recipe_rate(config: Config, sets: dict, steps: int, precision: str, folder: Path) -> float:
    """Seconds of audio per second in the recipe's own loop."""
    task = build_task(config, sets)
    task.evaluate = lambda: {"valid_wer": 0.0}
    training = TrainingConfig(epochs=1_000, clip=5.0, precision=precision)
    with tempfile.TemporaryDirectory(dir=folder) as out, contextlib.redirect_stdout(io.StringIO()):
        fit(task, build_optimizer(task.model, config.optim), [], training, RunDirectory(out, {}), max_steps=steps + 1)
    return task.seconds / (time.perf_counter() - task.started)


def bare_rate(config: Config, sets: dict, batches: list[tuple[Tensor, ...]]) -> float:
    """Seconds of audio per second in a loop without anything around it, over features that are there."""
    model = build_task(config, sets).model
    optimizer = torch.optim.Adam(model.parameters(), lr=config.optim.lr)
    seconds = 0.0
    model.train()
    for step, (features, frames, targets, target_lengths, durations) in enumerate(batches):
        if step == 1:  # as there, the first step is the warm-up
            start = time.perf_counter()
        losses = ctc_loss(*model(features, frames), targets, target_lengths)
        (losses / target_lengths).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds += float(durations.sum()) if step else 0.0
    return seconds / (time.perf_counter() - start)


def front_rate(task: TimedTask, epoch: int) -> float:
    """Seconds of audio per second of reading, augmentation and features, one after the other."""
    start = time.perf_counter()
    return sum(float(batch[4].sum()) for batch in task.batches(epoch)) / (time.perf_counter() - start)


def real_time_factor(task: TimedTask) -> float:
    """Seconds to recognise the validation set, one recording at a time, per second of audio."""
    model = task.model.eval()
    waves = [task.valid.waveform(index) for index in range(len(task.valid))]
    start = time.perf_counter()
    for wave in waves:
        transcribe(model, task.tokenizer, wave)
    return (time.perf_counter() - start) / (sum(map(len, waves)) / RATE)


def measure(size: str, args: argparse.Namespace, folder: Path) -> Figures:
    steps, folder = args.steps, folder / "tones"
    if not folder.exists():
        corpus(folder, 10 * BATCH_SECONDS)
    layers, width = map(int, size.split("x"))
    config = Config(
        CorpusConfig(batch_seconds=BATCH_SECONDS, prefetch=0),
        TokensConfig(),
        RecognizerConfig(network=NETWORKS.settings("sgcn", layers=layers, width=width, dropout=0.1)),
        AugmentConfig(speeds=[0.9, 1.0, 1.1], time_masks=2, frequency_masks=2),
        OptimConfig(base="adam", lr=1e-4),
        TrainingConfig(),
    )
    kept = load_sets(folder, config)
    read = load_sets(folder, replace(config, corpus=replace(config.corpus, cache_gigabytes=0.0)))
    task, reading = build_task(config, kept), build_task(config, read)
    epochs = itertools.chain.from_iterable(task.batches(epoch) for epoch in itertools.count(1))
    batches = list(itertools.islice(epochs, steps + 1))
    loops = {
        "bare": lambda: bare_rate(config, kept, batches),
        "recipe": lambda: recipe_rate(config, kept, steps, "fp32", folder),
        "bf16": lambda: recipe_rate(config, kept, steps, "bf16", folder),
        "kept": lambda: front_rate(task, 1),
        "read": lambda: front_rate(reading, 1),
        "one": lambda: real_time_factor(task),
    }
    rates = in_turns(loops, args.rounds)
    return {
        "audio seconds per second, bare loop on features": statistics.median(rates["bare"]),
        "audio seconds per second, recipe": statistics.median(rates["recipe"]),
        "recipe / bare loop": ratio(rates["recipe"], rates["bare"]),
        "bf16 autocast / fp32, both the recipe": ratio(rates["bf16"], rates["recipe"]),
        "features and loading / step, recordings in memory": ratio(rates["recipe"], rates["kept"]),
        "features and loading / step, recordings decoded": ratio(rates["recipe"], rates["read"]),
        "real-time factor of recognition, one at a time": statistics.median(rates["one"]),
    }


if __name__ == "__main__":
    about = dict.fromkeys(("12x190", "12x300"), f"minibatches of {BATCH_SECONDS:g} s of audio")
    benchmark(__doc__.splitlines()[0], about, measure, threads=1)
