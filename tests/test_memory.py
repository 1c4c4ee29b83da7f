"""Freed memory stays with the process that trains, and with it alone."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from seqssgd.training import TrainingConfig, setup
setup(TrainingConfig(device="cpu", threads=1), 0)
def step():
    del_me = [torch.ones(2_000_000) for _ in range(3)]  # 8 MB each
for _ in range(20):  # until every block has its place in the heap: one that is new is cleared
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(os, "confstr"), reason="glibc's")
def test_a_training_does_not_have_the_same_pages_cleared_at_every_step():
    if not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
        pytest.skip("glibc's")

    def faults(**environment: str) -> int:
        words = [sys.executable, "-c", FAULTS]
        done = subprocess.run(words, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
        return int(done.stdout)

    pages = 20 * 3 * 8_000_000 // os.sysconf("SC_PAGESIZE")
    assert faults() < pages / 100
    # Nobody's setting would leave it to the layout of the heap; with one of the user's own nothing is kept.
    assert faults(MALLOC_MMAP_THRESHOLD_="100000") > pages / 3
