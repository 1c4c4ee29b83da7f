import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # the twin and the toy tasks that several test files share
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start: threads that wait burn a core


@pytest.fixture(autouse=True)
def _one_thread_and_a_fixed_seed():
    torch.set_num_threads(1)  # small tensors are slower on two, and results do not depend on the machine
    torch.manual_seed(0)


@pytest.fixture
def real_data() -> Path:
    """The folder of real corpora that the environment names."""
    folder = os.environ.get("SEQSSGD_DATA")
    if not folder:
        pytest.skip("set SEQSSGD_DATA to a folder with the real corpora (ptb/, an4/, sphere/, cifar10/)")
    return Path(folder).resolve()
