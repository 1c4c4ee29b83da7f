"""The networks that can be trained as language models."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..networks import Networks, check_shape, probing

# A network takes the size of the vocabulary, and reads (tokens (T, B), state or None) to (logits (T, B, V), new state):
# a tuple of tensors with the batch in their second dimension, of the shapes that ``zero_state(batch)`` has, where a
# dimension that is 0 there is of any size.
NETWORKS = Networks(
    {
        "lstm": "seqssgd.models.lstm:LSTMLanguageModel",
        "gru": "seqssgd.models.gru:GRULanguageModel",
        "transformer": "seqssgd.models.transformer:TransformerLanguageModel",
    },
    given=("vocab_size",),
)


def check_network(name: str, network: Any, vocab_size: int) -> None:
    """Makes sure that a network, on the CPU, gives what is said above, by a look at two steps of some columns.

    Raises:
        UserError: it does not; time and batch cannot be taken for each other, nor for V.
    """
    steps, columns = [size for size in (2, 3, 4) if size != vocab_size][:2]
    whose = f"model.name: {name!r}"
    with probing(network):
        given = network(torch.zeros(steps, columns, dtype=torch.long), None)
        zero: Any = network.zero_state(columns) if callable(getattr(network, "zero_state", None)) else None
    if not (isinstance(given, tuple) and len(given) == 2):
        raise UserError(f"{whose} gives a {type(given).__name__}; wanted two things: logits (T, B, V), and the state")
    check_shape(whose, "logits", given[0], {"T": steps, "B": columns, "V": vocab_size})
    if not _is_state(zero):
        raise UserError(f"{whose} needs zero_state(batch_size), which gives a tuple of tensors; write it")
    if not (_is_state(given[1]) and fits(given[1], zero)):
        raise UserError(
            f"{whose} gives a state of {_shapes(given[1])}; wanted those of zero_state({columns}), {_shapes(zero)}"
        )


def fits(state: Sequence[Tensor], zero: Sequence[Tensor]) -> bool:
    """Whether a state has the shapes of the state before the first token; what is of size 0 there grows."""
    return len(state) == len(zero) and all(
        own.ndim == its.ndim and all(b in (a, 0) for a, b in zip(own.shape, its.shape, strict=True))
        for own, its in zip(state, zero, strict=True)
    )


def _is_state(thing: Any) -> bool:
    """Whether it is a tuple of tensors with a dimension for the batch."""
    return isinstance(thing, tuple) and bool(thing) and all(isinstance(x, Tensor) and x.ndim > 1 for x in thing)


def _shapes(state: Any) -> str:
    if not (isinstance(state, (tuple, list)) and all(isinstance(each, Tensor) for each in state)):
        return f"type {type(state).__name__}"
    return f"a {type(state).__name__} of shapes {', '.join(str(tuple(each.shape)) for each in state)}"
