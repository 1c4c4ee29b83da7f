"""Minibatches loaded while the one before is trained on."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def prefetch(items: Iterable[T], load: Callable[[T], U], depth: int = 2) -> Iterator[U]:
    """``map(load, items)`` with up to ``depth`` results loaded ahead, in their order, by a thread.

    ``load`` must not draw from a global random generator, or a resumed run would differ from one that went on.
    What it raises is raised here, in its turn. ``depth`` 0 loads in the calling thread.
    """
    if depth == 0:
        yield from map(load, items)
        return
    with ThreadPoolExecutor(1, "loader") as pool:
        try:
            pending: deque = deque()
            for item in items:
                pending.append(pool.submit(load, item))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # the consumer may have gone
