"""A run directory: everything that one training run leaves behind, and nothing of any other."""

import contextlib
import dataclasses
import errno
import json
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..documents import parse_json, read_json, read_yaml
from ..errors import FULL, UserError
from ..files import atomic_path, is_leftover, make_folder, naming, sync_folder
from ..locks import alone, is_ours, release, take_lock, try_lock
from ..notes import warn
from ..processes import is_main, refused_together
from . import layout
from .checkpoints import checksums
from .environment import environment, read_environment, warn_of_changes
from .metrics import check_result, read_rows
from .settings import check_kinds, check_same, completed, flatten, plain


class RunDirectory:
    """Opens the directory of a run, new or begun earlier by the same configuration.

    It holds ``config.yaml`` (the resolved configuration), ``environment.json`` (of the first start), ``metrics.jsonl``
    (one row per line), TensorBoard events, ``checkpoints/`` and, when the run is finished, ``result.json``. Only the
    main process writes.

    Args:
        path: the directory. It is made if need be; if it exists it must be empty or a run of this configuration.
        config: all that the run's result depends on, as a dictionary or a dataclass, nested; the entry ``seed`` is
            repeated in environment.json. Settings of a dataclass that a run of an earlier version lacks had their
            defaults (see :mod:`seqssgd.runs.settings`).
        noted: what config.yaml has beside the settings, such as the fingerprint of the data. Entries of it that a run
            of an earlier version lacks are no difference.
        data: the folder of the data, for environment.json: evaluations look there.

    Raises:
        UserError: the directory belongs to another configuration or is no run at all, cannot be written to, or another
            process is training in it.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        config: Any,
        noted: Mapping[str, Any] | None = None,
        data: str | os.PathLike | None = None,
    ):
        self.path = Path(path)
        self.data = None if data is None else str(Path(data).resolve())
        self._noted = plain(noted or {})
        self._checksums: dict[str, str] | None = None
        self.checkpoints = self.path / layout.CHECKPOINTS
        self._writer = self._lock = None
        self._metrics = self.path / layout.METRICS
        self._like = None if isinstance(config, Mapping) else config
        settings = plain(config if isinstance(config, Mapping) else dataclasses.asdict(config))
        self.config = {**settings, **self._noted}
        try:
            with refused_together():
                if is_main():
                    self._open()
        except BaseException:
            self.close()  # or the lock would be held for as long as this process lives
            raise

    def _open(self) -> None:
        try:
            self._make()
        except OSError as error:
            if error.errno in FULL:
                raise
            raise UserError(f"{self.path}: cannot write there ({error.strerror}); choose another directory") from error

    def _make(self) -> None:
        make_folder(self.path)
        known = self.path / layout.CONFIG
        if known.is_file():
            self._compare(known)
        elif any(not is_leftover(entry) for entry in self.path.iterdir() if entry.name != layout.LOCK):
            raise UserError(f"{self.path}: not empty, and not a run (no {layout.CONFIG}); choose another directory")
        if not os.access(self.path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        busy = f"{self.path}: another process is training there; wait for it or stop it"
        self._lock = take_lock(self.path / layout.LOCK, busy)
        for leftover in filter(is_leftover, self.path.rglob(".*")):
            leftover.unlink(missing_ok=True)
        if not known.is_file():  # first of all: from here on the directory is a run, wherever a kill may hit
            _write(known, yaml.safe_dump(self.config, sort_keys=False))
        make_folder(self.checkpoints)
        self._record_environment(self.path / layout.ENVIRONMENT)

    def _record_environment(self, file: Path) -> None:
        """Writes what there is at the first start; later says what has changed since, and where the data lie now."""
        now = {**environment(self.config.get("seed")), "data": self.data}
        if not file.is_file():
            _write(file, json.dumps(now, indent=2))
            return
        try:
            old = read_environment(self.path)
        except UserError as error:
            warn(f"{error}; whether this is the environment that the run began in is not known")
            return
        warn_of_changes(old, now)
        if self.data is not None and old.get("data") != self.data:
            _write(file, json.dumps({**old, "data": self.data}, indent=2))

    def _compare(self, known: Path) -> None:
        old = read_yaml(known, "choose another directory")
        if not isinstance(old, Mapping):
            raise UserError(f"{known}: not the configuration of a run; choose another directory")
        if self._like is not None:
            try:
                check_kinds(old, type(self._like))
            except ValueError as error:
                raise UserError(f"{known}: {error}; put the run's own back, or choose another directory") from None
            old = completed(old, self._like)
        old = flatten(old)
        new = flatten(self.config)
        later = {key for key in flatten(self._noted) if key not in old}
        check_same(self.path, old, {key: value for key, value in new.items() if key not in later})

    def checksums(self) -> dict[str, str]:
        """Those of :func:`seqssgd.runs.checkpoints.checksums`, taken once."""
        if self._checksums is None:
            self._checksums = checksums(self.path)
        return self._checksums

    # ---- metrics ---------------------------------------------------------------------------------------------------

    def start_metrics(self, length: int, step: int) -> None:
        """Cuts metrics.jsonl to its first ``length`` bytes, as it was at ``step``, and goes on from there."""
        if not is_main():
            return
        with naming(self._metrics), open(self._metrics, "ab") as file:
            if file.tell() < length:
                raise UserError(f"{self._metrics}: shorter than at the last checkpoint; choose another directory")
            file.truncate(length)
        sync_folder(self.path)
        rows = read_rows(self._metrics)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        # TensorBoard forgets all from ``step`` on, of which some belongs to a future that is now trained once more
        _hush_writers()
        with self._to_tensorboard():
            self._writer = SummaryWriter(self.path / layout.TENSORBOARD, purge_step=step)
        for row in rows:
            if row.get("step") == step:
                self._show(row)

    def metrics_length(self) -> int:
        """The bytes that metrics.jsonl has now, all of them safely on disk, as are TensorBoard's events."""
        if self._writer is not None:
            with self._to_tensorboard():
                self._writer.flush()
        with naming(self._metrics), open(self._metrics, "ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def write_metrics(self, row: Mapping[str, Any]) -> None:
        """Adds a row: ``kind``, ``step`` and named values. Infinite and undefined values become null."""
        if not is_main():
            return
        with naming(self._metrics), open(self._metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(row)) + "\n")
        self._show(row)

    def _show(self, row: Mapping[str, Any]) -> None:
        if self._writer is None:  # no TensorBoard is installed
            return
        with self._to_tensorboard():
            for name, value in row.items():
                if name not in ("kind", "step") and isinstance(value, (int, float)):
                    self._writer.add_scalar(f"{row['kind']}/{name}", value, row["step"])

    def _to_tensorboard(self) -> contextlib.AbstractContextManager:
        return naming(self.path / layout.TENSORBOARD)

    def close(self) -> None:
        """Writes out what TensorBoard still holds, and lets other processes in."""
        writer, lock = self._writer, self._lock
        self._writer = self._lock = None
        try:
            if writer is not None:
                with self._to_tensorboard():
                    writer.close()
        finally:
            if lock is not None:
                release(lock)

    # ---- the result ------------------------------------------------------------------------------------------------

    def result(self) -> dict[str, Any] | None:
        """What result.json holds; None if the run never finished.

        Raises:
            UserError: it is damaged.
        """
        file = self.path / layout.RESULT
        if not is_main() or not file.is_file():
            return None
        try:
            check_result(result := parse_json(file.read_bytes()))
        except ValueError as error:
            raise UserError(
                f"{file} is damaged ({error}); delete it, and the same command makes it again from the last checkpoint"
            ) from None
        return result

    def drop_result(self) -> None:
        """Removes result.json: the run goes on, and is not finished."""
        if is_main():
            (self.path / layout.RESULT).unlink(missing_ok=True)
            sync_folder(self.path)

    def forget_evaluations(self, checkpoint: str) -> None:
        """Takes the figures of a checkpoint that is about to be replaced out of evaluation.json."""
        file = self.path / layout.EVALUATION
        if not file.is_file():
            return
        busy = f"{file}: an evaluation has been writing there for a minute; delete it at the end of the training"
        try:
            with alone(self.path / layout.EVALUATION_LOCK, busy, wait=60):
                known = read_json(file, "delete it, and evaluate again at the end", dict[str, dict])
                kept = {split: figures for split, figures in known.items() if figures.get("checkpoint") != checkpoint}
                if kept != known:
                    _write(file, json.dumps(kept, indent=2))
        except UserError as error:  # no reason to end a training
            warn(str(error))

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Writes result.json."""
        if is_main():
            _write(self.path / layout.RESULT, json.dumps(_finite(result), indent=2))


def in_use(path: Path) -> bool:
    """Whether a process is training in a run directory, be it this one; never true of another on a file system without
    locks."""
    if is_ours(path / layout.LOCK):
        return True
    try:
        with open(path / layout.LOCK, "r+b") as file:
            return try_lock(file.fileno()) == "held"
    except OSError:  # there is none yet, or it is another user's
        return False


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text + ("" if text.endswith("\n") else "\n"), encoding="utf-8")


def _finite(value: Any) -> Any:
    """``value`` with null for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _hush_writers() -> None:
    """What TensorBoard's thread raises on a full disk is raised again in ours: it need not be shown there as well."""
    shown = threading.excepthook
    if getattr(shown, "hushes", False):
        return

    def show(args: Any) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__name__ == "_AsyncWriterThread"):
            shown(args)

    show.hushes = True  # pyright: ignore[reportFunctionMemberAccess]
    threading.excepthook = show
