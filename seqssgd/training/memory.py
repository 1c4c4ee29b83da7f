"""Memory that a step gives back is kept for the next one."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST_BLOCK = 32 << 20  # that glibc can be told to take from memory that it keeps
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tells the C library not to return freed memory to the system in this process; whether it obeys.

    By itself glibc returns the large blocks of a step as they are freed, such as logits, and has the system clear the
    same pages anew in the next one: of a small language model's step on a CPU a sixth. The process keeps what it once
    needed. Settings of the user's own (``MALLOC_…`` in the environment) and other systems are left alone.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    tell = getattr(ctypes.CDLL(None), "mallopt", None)
    return tell is not None and tell(M_MMAP_THRESHOLD, LARGEST_BLOCK) == tell(M_TRIM_THRESHOLD, NEVER) == 1
