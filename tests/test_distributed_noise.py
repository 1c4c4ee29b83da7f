"""Two data-parallel ranks: the checks of ``distributed_checks.py``, all in one pair of processes on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import distributed_checks
import pytest
import torch.distributed as dist
from ranks import WORLD

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this build of torch has no gloo backend"
)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What each rank reports of each check."""
    folder = tmp_path_factory.mktemp("ranks")
    program = Path(distributed_checks.__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(program.parents[1]), *sys.path])}
    ranks = [
        subprocess.Popen(
            [sys.executable, program, str(rank), folder], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(WORLD)
    ]
    try:
        errors = [rank.communicate(timeout=200)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * len(ranks), "\n".join(errors)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(len(ranks))]


@pytest.mark.parametrize("check", distributed_checks.CHECKS)
def test_two_ranks(outcomes, check):
    for rank, outcome in enumerate(outcomes):
        assert outcome[check] is None, f"rank {rank}: {outcome[check]}"
