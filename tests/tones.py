"""A tiny corpus of speech: every letter is a tone of its own, 90 ms long, and between words there is silence."""

import random
from functools import partial
from pathlib import Path

import numpy as np

from seqssgd.data.audio import read_pcm
from seqssgd.data.speech_rows import Utterance
from seqssgd.data.speech_writer import write_speech_dataset

LETTERS = "ABCDE"
SIZES = {"train": 40, "valid": 10, "test": 12}


def waveform(text: str, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    """(N,) int16 samples of a text, with a little noise."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(0.09 * rate)) / rate
    parts = [np.sin(2 * np.pi * 300 * 1.5 ** (ord(c) - 65) * time) if c.isalpha() else 0 * time for c in f" {text} "]
    samples = np.concatenate(parts)
    return np.rint(8_000 * samples + 30 * generator.standard_normal(len(samples))).astype(np.int16)


def texts(count: int, seed: int, letters: str = LETTERS) -> list[str]:
    """Texts of one or two words, each of one to three letters."""
    generator = random.Random(seed)
    words = [["".join(generator.choices(letters, k=generator.randint(1, 3))) for _ in "12"] for _ in range(count)]
    return [" ".join(pair[: generator.randint(1, 2)]) for pair in words]


def prepare(folder: Path, letters: str = LETTERS, rate: int = 16_000, sizes: dict = SIZES, **info) -> Path:
    """A prepared corpus of three sets, each with three speakers."""
    sets = {}
    for number, (name, size) in enumerate(sizes.items()):
        sets[name] = []
        for i, text in enumerate(texts(size, number, letters)):
            data = waveform(text, rate, seed=i).tobytes()
            read = partial(read_pcm, data, rate, "<i2")
            sets[name].append(Utterance(f"{name}{i:02}", text, f"{name}-{i % 3}", f"{i}.raw", len(data), read))
    write_speech_dataset(folder, sets, "Tones", info=info)
    return folder
