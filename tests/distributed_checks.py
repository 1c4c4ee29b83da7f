"""Runs every check of two data-parallel ranks: ``distributed_checks.py RANK FOLDER``, once for each rank.

All checks share one pair of processes, since starting one costs seconds. A rank writes what became of each check
into ``FOLDER/RANK.json``: null, or the traceback.
"""

import json
import sys
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import ddp_checks
import ddp_method_checks
import fsdp_checks
import torch
import torch.distributed as dist
from ranks import WORLD

CHECKS = {check.__name__: check for check in (*ddp_checks.CHECKS, *ddp_method_checks.CHECKS, *fsdp_checks.CHECKS)}


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("error")
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # nothing here changes it in place
    patience = timedelta(seconds=60)  # with a rank that has left a check half-way
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD, timeout=patience)
    outcomes = {}
    for name, check in CHECKS.items():
        try:
            check()
            outcomes[name] = None
        except Exception:
            outcomes[name] = traceback.format_exc()
        (folder / f"{rank}.json").write_text(json.dumps(outcomes))
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
