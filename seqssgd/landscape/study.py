"""The standard set of measurements on finished runs: each kept as soon as it is there, so that any call goes on."""

import hashlib
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..documents import read_json
from ..errors import UserError
from ..files import atomic_path
from ..locks import alone
from ..runs.settings import comparable, flatten
from .form import Landscape
from .stages import STAGES, TERMS, StageSettings, run_stage
from .subjects import Subject, open_run
from .surface import Figures, Plane, Surface, line, measure, plane, random_slice, weights_of

FILE = "landscape.json"
PARTS = (*STAGES, "lines", "plane", "slices")  # what there is to measure


@dataclass(frozen=True)
class Spec:
    """A run to be opened: the arguments of :func:`open_run`, as strings, so that every process can open it."""

    run: str
    data: str | None
    checkpoint: str
    device: str


@dataclass
class Study:
    """The landscape of some runs.

    Attributes:
        specs: of the runs.
        out: the folder for ``landscape.json``, figures and surfaces.
        split: beside the training set.
        terms: loss terms for curvature and sharpness; None: by the kind of the run.
        points: of a line; 4k + 1, so that both runs are among them.
        side: points along each side of a plane or slice.
        levels: of the noise.
        parts: of :data:`PARTS`, what is measured; another call may add others.
        processes: that share the work, with one thread each.
        deadline: of :func:`time.time`: nothing is begun after it.
        say: shows a line of progress.
    """

    specs: Sequence[Spec]
    out: Path
    split: str = "test"
    terms: int | None = None
    points: int = 21
    side: int = 9
    levels: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5)
    parts: tuple[str, ...] = PARTS
    processes: int = 1
    deadline: float = math.inf
    say: Callable[[str], None] = print
    surfaces: dict[str, Surface] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Measures what is not known yet, until the deadline; returns the contents of landscape.json.

        Raises:
            UserError: runs that do not fit together, three that span no plane, a folder with another study or another
                process, or lines on which the runs themselves are no points.
        """
        if self.points < 5 or self.points % 4 != 1:
            below = max(5, (self.points - 1) // 4 * 4 + 1)
            near = f"{below} or {below + 4}" if self.points > 5 else "5"
            raise UserError(
                f"--points {self.points}: a line goes from -0.5 to 1.5, and has points at both runs, 0 and 1, only if "
                f"they are 4k + 1; give {near}"
            )
        self.names = _names(self.specs)
        subjects = {name: _open(spec) for name, spec in zip(self.names, self.specs, strict=True)}
        self._check(subjects)
        first = next(iter(subjects.values()))
        terms, figure_terms = TERMS[first.kind]
        self.settings = StageSettings(self.terms or terms, figure_terms, self.levels, split=self.split)
        for subject in subjects.values():
            subject.batches(self.split, figure_terms)  # a split that is missing is found out before anything is done
        shapes = self._shapes(subjects)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.out}: cannot write there ({error.strerror}); choose another folder") from None
        busy = f"{self.out}: another process is measuring there; wait for it, or choose another folder"
        with alone(self.out / ".lock", busy):  # or each would write its own figures over those of the other
            return self._measured(subjects, shapes)

    def _measured(self, subjects: Mapping[str, Subject], shapes: Mapping[str, tuple]) -> dict[str, Any]:
        found = self._begun(subjects)
        for name, stage, result in self._stages(found):
            found["runs"][name][stage] = result
            self._write(found)
            seconds = result.get("seconds", 0)
            note = result.get("left_out") or result.get("warning")
            self.say(f"{name}: {stage}, {seconds:.0f} s{f'; warning: {note}' if note else ''}")
        for name, (shape, a, b, spec) in shapes.items():
            self.surfaces[name] = self._measure(name, shape, a, b, spec)
        found["surfaces"] |= {name: self._describe(surface) for name, surface in self.surfaces.items()}
        found["complete"] = self._complete(found)
        self._write(found)
        return found

    # ---- single runs -----------------------------------------------------------------------------------------------

    def _stages(self, found: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Every stage that is not known yet with its result; stage by stage, so that all runs have the first ones."""
        waiting = [
            (name, spec, stage)
            for stage in STAGES
            for name, spec in zip(self.names, self.specs, strict=True)
            if stage in self.parts and stage not in found["runs"][name]
        ]
        if self.processes == 1:
            for name, spec, stage in waiting:
                if time.time() > self.deadline:
                    return
                yield name, stage, _work(spec, stage, self.settings)
            return
        from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
        from multiprocessing import get_context

        waiting, running = iter(waiting), {}
        pool = ProcessPoolExecutor(self.processes, get_context("spawn"), torch.set_num_threads, (1,))
        try:
            while True:
                while len(running) < self.processes and time.time() <= self.deadline:
                    if (job := next(waiting, None)) is None:
                        break
                    name, spec, stage = job
                    running[pool.submit(_work, spec, stage, self.settings)] = name, stage
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED)[0]:
                    yield *running.pop(future), future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    # ---- surfaces --------------------------------------------------------------------------------------------------

    def _shapes(self, subjects: Mapping[str, Subject]) -> dict[str, tuple]:
        """Every line, plane and slice by name: with coordinates, and the run whose model is moved."""
        weights = {name: weights_of(subject.model) for name, subject in subjects.items()}
        first, *others = self.names
        spec = dict(zip(self.names, self.specs, strict=True))
        along = np.linspace(-0.5, 1.5, self.points)
        shapes = {}
        try:
            for other in others if "lines" in self.parts else ():
                shape = line(weights[first], weights[other], (first, other))
                shapes[f"line {first} – {other}"] = shape, along, [0.0], spec[first]
            for trio in [self.names[:3]] if len(self.names) > 2 and "plane" in self.parts else ():
                shape = plane([weights[name] for name in trio], trio)
                sides = [_margin(values, self.side) for values in zip(*shape.positions.values(), strict=True)]
                shapes[f"plane {', '.join(trio)}"] = shape, *sides, spec[first]
        except ValueError as error:
            raise UserError(f"{error}; give other runs or checkpoints") from None
        side = np.linspace(-1, 1, self.side)
        for name in self.names if "slices" in self.parts else ():
            shapes[f"slice {name}"] = random_slice(weights[name], 0, name), side, side, spec[name]
        return shapes

    def _measure(self, name: str, shape: Plane, a: np.ndarray, b: np.ndarray, spec: Spec) -> Surface:
        path = self.out / f"{file_name(name)}.npz"
        settings = (self.split, self.settings.figure_terms)
        build = partial(_build, spec, *settings)
        deadline = time.monotonic() + self.deadline - time.time()
        surface = measure(shape, a, b, build, path, str(settings), self.processes, deadline)
        state = "" if surface.complete else f", {int(surface.done.sum())} of {surface.done.size} points so far"
        lost = f"; not finite at {surface.missing} points" if surface.missing else ""
        self.say(f"{name}{state}{lost}")
        return surface

    def _describe(self, surface: Surface) -> dict[str, Any]:
        return {
            "points": surface.done.size,
            "done": int(surface.done.sum()),
            "not_finite": surface.missing,
            "positions": surface.positions,
            **({} if surface.b.size > 1 else {"barriers": _barriers(surface)}),
        }

    # ---- the file --------------------------------------------------------------------------------------------------

    def _begun(self, subjects: Mapping[str, Subject]) -> dict[str, Any]:
        """What an earlier call has left, checked to be of the same runs and settings."""
        digests = {name: _digest(subject) for name, subject in subjects.items()}
        new = {
            "format": 1,
            "complete": False,
            "settings": _plain({**asdict(self.settings), "points": self.points, "side": self.side}),
            "runs": {
                name: {
                    "path": spec.run,
                    "kind": subject.kind,
                    "checkpoint": subject.checkpoint.name,
                    "digest": digests[name],
                    "terms_are": subject.terms,
                    "errors_are": subject.error,
                    "noise": subject.settings["optim"].get("noise", 0.0),
                }
                for (name, subject), spec in zip(subjects.items(), self.specs, strict=True)
            },
            "surfaces": {},
        }
        path = self.out / FILE
        if not path.exists():
            return new
        known = read(path)
        same = (
            known["settings"] == new["settings"]
            and {name: run.get("digest") for name, run in known["runs"].items()} == digests
        )
        if not same:
            raise UserError(f"{path}: of other runs, checkpoints or settings; choose another folder, or delete it")
        return {**known, "complete": False}  # which an earlier call with fewer parts may have been

    def _write(self, found: Mapping[str, Any]) -> None:
        with atomic_path(self.out / FILE) as temporary:
            temporary.write_text(json.dumps(_plain(found), indent=2) + "\n", encoding="utf-8")

    def _complete(self, found: Mapping[str, Any]) -> bool:
        stages = all(stage in run for run in found["runs"].values() for stage in STAGES if stage in self.parts)
        return stages and all(surface["done"] == surface["points"] for surface in found["surfaces"].values())

    def _check(self, subjects: Mapping[str, Subject]) -> None:
        (first, one), *others = subjects.items()
        shapes = [(name, tuple(p.shape)) for name, p in one.model.named_parameters()]
        data, *others_data = comparable([flatten({"data": s.settings.get("data", {})}) for s in subjects.values()])
        for (name, subject), its_data in zip(others, others_data, strict=True):
            if [(key, tuple(p.shape)) for key, p in subject.model.named_parameters()] != shapes:
                raise UserError(f"{name} has another model than {first}; give runs of one model")
            if its_data != data:
                raise UserError(f"{name} was trained on other data than {first}; give runs of one task")


def parse_run(word: str, data: str | None, checkpoint: str, device: str) -> Spec:
    """RUN, or RUN@CHECKPOINT for another checkpoint than that of the others."""
    run, at, own = word.rpartition("@")
    if at and not Path(word).is_dir():
        return Spec(run, data, own, device)
    return Spec(word, data, checkpoint, device)


def read(path: str | Path) -> dict[str, Any]:
    """The contents of a landscape.json.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} is missing; write it with: seqssgd landscape RUN… --out {path.parent}")
    found = read_json(path, "delete it, and measure again", Landscape)
    if not found["runs"]:
        raise UserError(f"{path} is damaged (runs: there are none); delete it, and measure again")
    return found


def _work(spec: Spec, stage: str, settings: StageSettings) -> dict[str, Any]:
    began = time.monotonic()
    result = run_stage(_open(spec), stage, settings)
    return _plain({**result, "seconds": round(time.monotonic() - began, 1)})


@lru_cache(maxsize=4)
def _open(spec: Spec) -> Subject:
    return open_run(spec.run, spec.data, spec.checkpoint, spec.device)


def _build(spec: Spec, split: str, terms: int) -> tuple[nn.Module, Callable[[], Figures]]:
    subject = open_run(spec.run, spec.data, spec.checkpoint, spec.device)  # its own: its weights are moved

    def figures() -> Figures:
        subject.recalibrate()
        return subject.figures(("train", split), terms)

    return subject.model, figures


def _names(specs: Sequence[Spec]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart, with the checkpoints where these differ."""
    parts = [Path(spec.run).resolve().parts for spec in specs]
    checkpoints = [f"@{Path(spec.checkpoint).stem}" for spec in specs]
    if len(set(zip(parts, checkpoints, strict=True))) < len(specs):
        raise UserError("a run is given twice; give each once, or other checkpoints of it: RUN@last")
    shown = checkpoints if len(set(checkpoints)) > 1 else [""] * len(specs)
    for length in itertools.count(1):
        names = ["/".join(part[-length:]) + at for part, at in zip(parts, shown, strict=True)]
        if len(set(names)) == len(names):
            return names
    raise AssertionError


def _margin(values: Sequence[float], count: int) -> np.ndarray:
    low, high = min(values), max(values)
    return np.linspace(low - 0.2 * (high - low), high + 0.2 * (high - low), count)


def _barriers(surface: Surface) -> dict[str, float | None]:
    """How far each figure rises, between two solutions, above the straight line through its values at them.

    Source: Frankle, Dziugaite, Roy, Carbin (ICML 2020), section 2.
    """
    inside = (surface.a > -1e-9) & (surface.a < 1 + 1e-9)
    a, found = surface.a[inside], {}
    for name, values in surface.values.items():
        y = values[inside, 0]
        found[name] = float((y - (y[0] + (y[-1] - y[0]) * a)).max()) if np.isfinite(y).all() else None
    return found


def _digest(subject: Subject) -> str:
    digest = hashlib.sha256()
    for tensor in subject.model.parameters():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def file_name(name: str) -> str:
    """The name of a surface's file, without its ending."""
    return "".join(c if c.isalnum() or c in "._" else "-" for c in name)


def _plain(value: Any) -> Any:
    """As it comes back from JSON, which has no numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def default_processes() -> int:
    """Two, or one on a machine with a single core."""
    return min(2, os.cpu_count() or 1)
