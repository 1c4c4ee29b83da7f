"""Long recordings through a network in overlapping chunks, whose logits are put together as if it had seen all at once.

A chunk carries frames of context on both sides, and only the logits between them are kept. Where the context covers
the network's receptive field these equal the logits of the whole recording, and memory depends on the chunk alone.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def chunked_logits(
    network: Callable[[Tensor], Tensor],
    inputs: Tensor,
    chunk: int,
    past: int,
    future: int,
    stride: int = 1,
) -> Tensor:
    """The logits of one long recording.

    Args:
        network: from successive inputs (T, …) of one recording to logits (T', V). Input ``stride · t`` is where the
            logits of frame t begin, wherever the inputs are cut.
        inputs: (N, …), features or samples. What depends on the whole recording, such as a normalisation, has to be
            done before.
        chunk: inputs per chunk, context left out; rounded up to a multiple of ``stride``.
        past: inputs before ``stride · t`` that frame t depends on.
        future: inputs after ``stride · t`` that frame t depends on.
        stride: inputs per frame of the logits.

    Returns:
        As many frames as ``network(inputs)`` has, (T', V), on the CPU; equal up to rounding where ``past`` and
        ``future`` are what the network depends on, or more.

    Raises:
        ValueError: sizes that make no sense, or a network with fewer frames than ``stride`` promises.
    """
    return torch.cat(
        list(logits_in_chunks(lambda first, end: network(inputs[first:end]), len(inputs), chunk, past, future, stride))
    )


def logits_in_chunks(
    network: Callable[[int, int], Tensor], count: int, chunk: int, past: int, future: int, stride: int = 1
) -> Iterator[Tensor]:
    """The logits of :func:`chunked_logits` a chunk at a time, each (T', V), on the CPU.

    Args:
        network: from the first input, and that after the last one, to logits (T', V); the last may be beyond the end.
        count: inputs of the recording.
        chunk, past, future, stride: as of :func:`chunked_logits`.
    """
    if min(chunk, stride) < 1 or min(past, future) < 0:
        raise ValueError(
            f"chunk={chunk} and stride={stride} must be at least 1, past={past} and future={future} at least 0"
        )
    chunk, past = (math.ceil(size / stride) * stride for size in (chunk, past))
    for begin in range(0, max(1, count), chunk):
        first, end = max(0, begin - past), begin + chunk + future
        logits = network(first, end)[(begin - first) // stride :]
        if end >= count:  # all that follows has been seen
            yield logits.cpu()
            return
        if len(logits) < chunk // stride:
            raise ValueError(
                f"the network made {len(logits)} frames of what should give {chunk // stride} or more; "
                f"stride={stride} or future={future} does not suit it"
            )
        yield logits[: chunk // stride].cpu()
