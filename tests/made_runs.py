"""Run directories without a training: what the report reads, with chosen figures."""

import json
from pathlib import Path

import yaml

from seqssgd.report import compare, read_run
from seqssgd.runs.errors import write_errors

SPEECH = {"model": {"width": 190}, "seed": 0, "data": {"fingerprint": "ab"}}
SSGD = {"method": "ssgd", "noise": 0.2}
NONE = (None,) * 6  # of a difference: delta, low, high, p, holm, paired


def make_run(path: Path, values, *, settings=None, test=None, passes=20, seconds=60.0, finished=True, **optim) -> Path:
    """A run with the given metrics after each epoch: dictionaries, or values of valid_wer.

    Args:
        settings: of config.yaml beside optim; ``training`` is filled with as many epochs as there are values.
        test: figures of evaluation.json's test split, of the best checkpoint; a number is a WER.
        passes, seconds: of an epoch.
        optim: of config.yaml.
    """
    values = [value if isinstance(value, dict) else {"valid_wer": value} for value in values]
    path.mkdir(parents=True)
    optim = {"method": "none", "base": "adam", "noise": 0.0, "signs": "batch", **optim}
    config = {**SPEECH, "training": {"epochs": len(values)}, **(settings or {}), "optim": optim}
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    rows = [{"kind": "train", "step": 1, "epoch": 1, "passes": passes / 10, "seconds": 1.0, "loss": 1.0}]
    for epoch, metrics in enumerate(values, 1):
        rows.append({"kind": "valid", "step": 10 * epoch, "epoch": epoch, "passes": passes * epoch, "lr": 0.1})
        rows[-1] |= {"noise": 0.0, "train_loss": 3.0 / epoch, "seconds": seconds * epoch, "units_per_second": 5.0}
        rows[-1] |= metrics
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        result = {"steps": rows[-1]["step"], "epochs": len(values), "stopped_early": False}
        (path / "result.json").write_text(json.dumps(result))
    if test is not None:
        figures = {"checkpoint": "best.pt", **(test if isinstance(test, dict) else {"wer": test})}
        (path / "evaluation.json").write_text(json.dumps({"test": figures}))
    return path


def seeds(folder: Path, name: str, tests, **kwargs) -> list[Path]:
    """A run for each test WER, with seeds from 0 and a validation WER that is higher by one."""
    return [
        make_run(folder / f"{name}{seed}", [90.0, test + 1], test=test, settings={"seed": seed}, **kwargs)
        for seed, test in enumerate(tests)
    ]


def compared(paths, **kwargs):
    return compare([read_run(path) for path in paths], **kwargs)


def by_label(comparison):
    return {row.group.label: row for row in comparison.rows}


# ---- recognisers, whose evaluations kept the errors of every utterance -----------------------------------------------

WORDS = {"ann": 31, "bob": 52, "cid": 17, "dot": 40, "eve": 24}


def counts(*errors: int, words=WORDS):
    return {("speaker", name): (count, words[name]) for name, count in zip(words, errors, strict=True)}


ADAM = [counts(9, 14, 3, 12, 5), counts(12, 13, 8, 10, 9)]
HALVES = [counts(8, 10, 4, 9, 3), counts(10, 15, 5, 8, 4), counts(7, 12, 2, 11, 6)]


def evaluated(path, of_speakers, seed, speakers=True, **optim):
    """A run whose evaluation kept its errors: two utterances of every speaker, of which the first has all errors."""
    errors, words = (sum(pair[i] for pair in of_speakers.values()) for i in (0, 1))
    known = {"substitutions": errors - 1, "deletions": 0, "insertions": 1, "reference": words}
    test = {"wer": 100 * errors / words, "wer_counts": known}
    make_run(path, [90.0, 20.0], test=test, settings={"seed": seed}, **optim)
    kept = {}
    for (_, name), (count, units) in of_speakers.items():
        kept |= {f"{name}-1": (count, units - 5), f"{name}-2": (0, 5)}
    write_errors(path, "test", {key: key.partition("-")[0] for key in kept} if speakers else None, {"wer": kept})
    return path
