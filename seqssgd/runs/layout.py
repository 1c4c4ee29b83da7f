"""The names in a run directory. No other module spells them."""

import re
from pathlib import Path
from urllib.parse import quote

CONFIG = "config.yaml"  # the resolved configuration, and what it was trained on
ENVIRONMENT = "environment.json"  # versions, commit, hardware, seed, command and data folder of the first start
METRICS = "metrics.jsonl"  # one row a line, of training and of validation
RESULT = "result.json"  # when the run is finished
EVALUATION = "evaluation.json"  # figures by split, which an evaluation adds afterwards
ERRORS = "errors_*.csv"  # of every utterance, by split, which an evaluation of speech adds
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
TOKENIZER = "tokenizer"  # of text and transcripts, so that the model can be used without the data
LOCK = ".lock"  # held by the process that trains
EVALUATION_LOCK = ".evaluation.lock"  # held while evaluation.json is read and written

BEST = "best.pt"  # the checkpoint that was the best in validation: weights alone
WEIGHTS = "model.safetensors"  # in place of all checkpoints, of a run that was exported


def errors_name(split: str) -> str:
    """The name of what an evaluation keeps of every utterance of a split."""
    return ERRORS.replace("*", quote(split, safe=""))  # sets have any name


def step_name(step: int) -> str:
    """The name of the checkpoint of a step."""
    return f"step-{step:08d}.pt"


def step_files(checkpoints: Path) -> dict[int, Path]:
    """The checkpoints of steps in a folder of them, by step, the last one first."""
    names = {path: re.fullmatch(r"step-(\d+)\.pt", path.name) for path in checkpoints.glob("step-*.pt")}
    found = {int(match[1]): path for path, match in names.items() if match}
    return dict(sorted(found.items(), reverse=True))
