"""Which sign of the noise the passes of a step have: w + n is +1, w - n is -1."""

from collections.abc import Sequence
from typing import Literal

import torch.distributed as dist

from .processes import world_size

Signs = Literal["batch", "halves", "steps", "ranks", "pairs"]
BY_RANK = ("ranks", "pairs")


def signs_of(signs: str, draws: int) -> Sequence[int]:
    """The signs of the passes of a step, of which there were ``draws`` with noise before."""
    both = (+1, -1)
    if signs in BY_RANK:
        return both[dist.get_rank() % 2 :][:1]  # where the group is gone, that is an error
    return both[draws % 2 :][:1] if signs == "steps" else both


def check_processes(signs: str) -> None:
    """Checks that the data-parallel processes can share the signs out, where that is asked for.

    Raises:
        ValueError: their number is odd.
    """
    processes = world_size()
    if signs in BY_RANK and processes % 2:
        raise ValueError(f'signs="{signs}" needs an even number of data-parallel processes; there are {processes}')
