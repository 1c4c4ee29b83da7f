"""Two data-parallel ranks: the checks of ``distributed_checks.py``, all in one pair of processes on the CPU."""

import json

import distributed_checks
import forked
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
    program, logs = distributed_checks.__file__, [folder / f"{rank}.log" for rank in range(WORLD)]
    ranks = [forked.program(program, rank, folder, log=log) for rank, log in enumerate(logs)]
    try:
        for rank in ranks:
            rank.join(200)
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.exitcode for rank in ranks] == [0] * WORLD, "\n".join(log.read_text() for log in logs)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


@pytest.mark.parametrize("check", distributed_checks.CHECKS)
def test_two_ranks(outcomes, check):
    for rank, outcome in enumerate(outcomes):
        assert outcome[check] is None, f"rank {rank}: {outcome[check]}"
