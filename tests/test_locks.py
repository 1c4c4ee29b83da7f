"""Locks of files, against another process that has one."""

import json
import subprocess
import sys

import pytest

from seqssgd.locks import is_ours, release, take_lock
from seqssgd.runs import layout


@pytest.mark.skipif(sys.platform == "win32", reason="another kind of lock")
def test_a_process_that_only_asks_whether_a_run_is_in_use_does_not_refuse_it(tmp_path, monkeypatch):
    """It has the lock for as long as it asks, which here ends while it is waited for."""
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        other.stdout.readline()  # it has the lock
        monkeypatch.setattr("seqssgd.locks.time.sleep", lambda seconds: other.communicate("\n"))
        handle = take_lock(tmp_path / "lock", "in use")
    assert is_ours(tmp_path / "lock") and other.returncode == 0  # it had ended before
    release(handle)
    assert not is_ours(tmp_path / "lock")


RECORDING = """
import sys
from seqssgd.runs.reading import record
for index in range(100):
    record(sys.argv[1], f"{sys.argv[2]}{index}", {"wer": 1.0})
"""


def test_of_two_evaluations_at_once_none_is_lost(tmp_path):
    programs = [subprocess.Popen([sys.executable, "-c", RECORDING, tmp_path, split]) for split in ("valid", "test")]
    assert [program.wait() for program in programs] == [0, 0]
    found = json.loads((tmp_path / layout.EVALUATION).read_text())
    assert set(found) == {f"{split}{index}" for split in ("valid", "test") for index in range(100)}
