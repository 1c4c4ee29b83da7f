"""A finished run as a folder to give away: its weights as safetensors, what they depend on, and a card.

The folder takes the place of the run wherever a model is used, scored or evaluated; it cannot be trained further.
Nothing in it names a folder of the machine that it was trained on, and nothing in it is code. (What its configuration
names as ``module:Class`` is imported, as of any run.)
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..documents import parse_json, printable
from ..errors import UserError, require
from ..files import atomic_folder, atomic_path
from . import layout
from .environment import read_environment
from .outputs import check_output
from .settings import read_config

CARD = "README.md"
USES = {  # by the kind of the recipe: what the hub calls it, and how it is used
    "a language model": ("text-generation", ["perplexity --run {folder} text.txt", "generate --run {folder}"]),
    "a speech recogniser": ("automatic-speech-recognition", ["transcribe --run {folder} recording.wav"]),
    "an image classifier": ("image-classification", ["evaluate --run {folder} --data data/images --split test"]),
}
LIMITS = "It knows the data that it was trained on and little else: expect far more errors elsewhere. "
OF_BEST = "The figures are those of one run, at the checkpoint that was the best on validation."
OF_ANOTHER = (
    f"Its weights are those of {{}}. The figures in {layout.METRICS} and {layout.RESULT} are of the run; those called "
    "the best are of another checkpoint."
)
_BEST = (layout.BEST, layout.WEIGHTS)
# What a checkpoint to give away has; others have what training goes on from, too.
_KEPT = ("model", "metrics", "step", "epoch", "files")


def export(run: str | Path, out: str | Path, checkpoint: str = "best", about: str = "", half: bool = False) -> Path:
    """Writes the folder, whole or not at all; returns its path.

    Args:
        run: the run directory.
        out: a folder that is not there yet, or empty.
        checkpoint: of this run, as in :func:`seqssgd.runs.checkpoints.find_checkpoint`.
        about: what the card says of the training data and their licence.
        half: stores weights in half precision (float16), in half of the space; they are used in float32 all the same.

    Raises:
        UserError: not a run of a recipe, no such checkpoint, or a damaged one or one of another run, or ``out`` holds
            something or cannot be written, or a text is not UTF-8.
    """
    from .checkpoints import check_files, find_checkpoint, is_finite, load_evaluated
    from .recipes import read_recipe

    run, out = Path(run), Path(out)
    for option, text in (("--about", about), ("--out", out.name)):
        _check_text(option, text)  # both go onto the card
    _check_empty(out)
    recipe, _ = read_recipe(run, settled=False)
    path = find_checkpoint(run, checkpoint, own=True)
    state = load_evaluated(path)
    check_files(run, state, path)
    if not is_finite(state["model"].values()):
        raise UserError(f"{path}: its weights are not finite; give another --checkpoint")
    state = {key: state[key] for key in _KEPT if key in state}
    if half:
        state = {**state, "model": {name: _halved(tensor, path) for name, tensor in state["model"].items()}}
    text = card(run, printable(out.name), recipe.kind, state, about, path.name)
    evaluations = _evaluations(run, path.name)
    with atomic_folder(out) as folder:
        _copy_record(run, folder, evaluations)
        if (run / layout.TOKENIZER).is_dir():
            shutil.copytree(run / layout.TOKENIZER, folder / layout.TOKENIZER, ignore=shutil.ignore_patterns(".*"))
        (folder / CARD).write_text(text, encoding="utf-8", errors="backslashreplace")  # a command may name any file
        save(folder / layout.WEIGHTS, state)
    return out


def export_record(run: str | Path, out: str | Path) -> Path:
    """Writes what a run says of itself, without its weights, and without folders of this machine; returns the folder.

    Raises:
        UserError: not a run directory, or ``out`` holds something or cannot be written.
    """
    run, out = Path(run), Path(out)
    _check_empty(out)
    read_config(run)
    with atomic_folder(out) as folder:
        _copy_record(run, folder)
        for file in run.glob(layout.ERRORS):
            shutil.copyfile(file, folder / file.name)
    return out


def _check_text(option: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{option}: {text!r} is not UTF-8 text; give it in that encoding") from None


def _check_empty(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out {out}: not an empty folder; choose another one")
    check_output(out)


def _copy_record(run: Path, folder: Path, evaluations: Mapping[str, Any] | None = None) -> None:
    """Copies what a run says of itself, of its evaluations all or those that are given."""
    environment = _environment(run)
    for name in (layout.CONFIG, layout.METRICS, layout.RESULT, layout.EVALUATION):
        if (run / name).is_file() and not (name == layout.EVALUATION and evaluations is not None):
            shutil.copyfile(run / name, folder / name)
    if evaluations:
        (folder / layout.EVALUATION).write_text(json.dumps(evaluations, indent=2) + "\n", encoding="utf-8")
    if environment:
        (folder / layout.ENVIRONMENT).write_text(json.dumps(environment, indent=2) + "\n", encoding="utf-8")


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Writes the weights of a checkpoint as safetensors; what else it says goes into the file's metadata."""
    safetensors = require("safetensors.torch")
    packed = torch.contiguous_format  # and each by itself: tied ones twice
    weights = {name: tensor.detach().cpu().clone(memory_format=packed) for name, tensor in state["model"].items()}
    known = {key: value for key, value in state.items() if key != "model"}
    content = safetensors.save(weights, metadata={"format": "pt", "checkpoint": json.dumps(known)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def load(path: Path) -> dict[str, Any]:
    """What :func:`save` wrote, as the checkpoint that it came from.

    Raises:
        UserError: the file is damaged, or was not written by :func:`save`.
    """
    safetensors = require("safetensors")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            known = parse_json((file.metadata() or {})["checkpoint"].encode())
            return {**known, "model": {name: file.get_tensor(name) for name in file.keys()}}
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{path}: damaged, or not exported by seqssgd ({type(error).__name__}: {error}); take another copy"
        ) from None


def card(run: Path, name: str, kind: str, state: Mapping[str, Any], about: str, checkpoint: str) -> str:
    """The model card, in Markdown with the hub's metadata, of the checkpoint of that name, whose contents are given."""
    from ..report import group_runs
    from .reading import read_run

    of, environment, evaluations = read_run(run), _environment(run), _evaluations(run, checkpoint)
    if not of.rows:
        raise UserError(f"{run}: it was never evaluated, so that there are no figures for its card; train on")
    (group,) = group_runs([of])
    task, uses = USES.get(kind, ("other", []))
    count = of.result.get("parameters") or sum(tensor.numel() for tensor in state["model"].values())
    lines = ["---", "library_name: seqssgd", f"pipeline_tag: {task}", "---", f"# {name}", ""]
    lines += [f"{kind[0].upper()}{kind[1:]} of {count:,} parameters, trained with {group.label}.", ""]
    lines += [about, ""] if about else []
    lines += ["```sh", *(f"seqssgd {use.format(folder=name)}" for use in uses), "```", ""] if uses else []
    lines += ["## Figures", "", "| data | figure | value |", "| --- | --- | ---: |"]
    lines += [f"| {data} | {figure} | {value:.2f} |" for data, figure, value in figures(state, evaluations)]
    last = of.rows[-1]
    made = f"{last['epoch']} epochs, {last['passes']:,.0f} passes, {last['seconds'] / 60:.0f} minutes"
    files = f"Every setting is in {layout.CONFIG}, every evaluation in {layout.METRICS}."
    halved = any(tensor.dtype == torch.float16 for tensor in state["model"].values())
    stored = "Weights are stored in half precision, figures are of the full one. " if halved else ""
    place = environment.get("cpu") or "an unknown machine"
    lines += [
        "",
        stored + LIMITS + (OF_BEST if "metrics" in state else OF_ANOTHER.format(checkpoint)),
        "",
        "## Training",
        "",
        f"{made} on {place}. {files}",
    ]
    if "command" in environment:
        commit = f", at commit {str(environment['commit'])[:12]}" if environment.get("commit") else ""
        lines += ["", f"By seqssgd {environment.get('packages', {}).get('seqssgd', __version__)}{commit}:", "", "```sh"]
        lines += [" ".join(["python", *environment["command"]]), "```"]
    return "\n".join(lines) + "\n"


def figures(state: Mapping[str, Any], evaluations: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, float]]:
    """Data, figure and value: of validation those of the checkpoint, of other data those that evaluations saved."""
    found = [("validation", key.removeprefix("valid_"), value) for key, value in state.get("metrics", {}).items()]
    for split, known in evaluations.items():
        found += [(split, key, value) for key, value in known.items() if isinstance(value, float)]
    return [entry for entry in found if entry[1] != "real_time_factor"]


def _evaluations(run: Path, checkpoint: str) -> dict[str, Any]:
    """What evaluations of a checkpoint found; an exported one has those that it was exported with, too."""
    from .reading import read_run

    names = _BEST if checkpoint == layout.WEIGHTS else (checkpoint,)
    return {split: known for split, known in read_run(run).evaluations.items() if known.get("checkpoint") in names}


def _halved(tensor: torch.Tensor, path: Path) -> torch.Tensor:
    if tensor.dtype != torch.float32:
        return tensor
    if not (found := tensor.half()).isfinite().all():
        raise UserError(f"{path}: has weights beyond what half precision can hold; export it without --half")
    return found


def _environment(run: Path) -> dict[str, Any]:
    """environment.json without folders of the machine: of the data none, in the command their last names."""
    found = {key: value for key, value in read_environment(run).items() if key != "data"}
    if "command" in found:
        found["command"] = [_without_folders(word) for word in found["command"]]
    return found


def _without_folders(word: str) -> str:
    """A word of a command, an absolute path in it shortened to its last name."""
    option, is_given, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + is_given + (Path(value).name if Path(value).is_absolute() else value)
