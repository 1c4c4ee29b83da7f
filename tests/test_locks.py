"""Locks of files, against another process that has one."""

import os
import subprocess
import sys

import pytest

from seqssgd.locks import take_lock


@pytest.mark.skipif(sys.platform == "win32", reason="another kind of lock")
def test_a_process_that_only_asks_whether_a_run_is_in_use_does_not_refuse_it(tmp_path, monkeypatch):
    """It has the lock for as long as it asks, which here ends while it is waited for."""
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        other.stdout.readline()  # it has the lock
        monkeypatch.setattr("seqssgd.locks.time.sleep", lambda seconds: other.communicate("\n"))
        os.close(take_lock(tmp_path / "lock", "in use"))
