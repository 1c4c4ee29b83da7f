"""How likely a language model finds a text."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.tokenizers import Tokenizer
from ..errors import UserError


class Perplexity(NamedTuple):
    """``perplexity`` = exp(mean of −ln p) over ``predictions`` predicted tokens."""

    perplexity: float
    predictions: int


@torch.no_grad()
def perplexity(model: nn.Module, stream: Tensor, device: torch.device | str = "cpu", window: int = 512) -> Perplexity:
    """Perplexity of one stream, read in order and whole, at batch 1, with one state carried from end to end.

    As in Zaremba et al.'s test, the first token only starts the model: N tokens give N − 1 predictions. The model
    is moved to ``device`` and left in the mode, training or evaluation, in which it came.

    Args:
        model: the language model.
        stream: (N,) token ids.
        device: where to compute.
        window: tokens read at once; bounds the memory and does not change the result.

    Raises:
        UserError: fewer than two tokens.
    """
    if len(stream) < 2:
        raise UserError(f"a text of {len(stream)} token has nothing to predict; give at least two")
    training = model.training
    model.to(device).eval()
    total, state = 0.0, None
    for first in range(0, len(stream) - 1, window):
        tokens = stream[first : first + window + 1].to(device)
        logits, state = model(tokens[:-1, None], state)
        losses = F.cross_entropy(logits[:, 0].float(), tokens[1:], reduction="none")
        total += losses.sum(dtype=torch.float64).item()
    model.train(training)
    predictions = len(stream) - 1
    mean = total / predictions
    return Perplexity(math.exp(mean) if mean < 700 else mean * math.inf, predictions)


def describe(score: Perplexity, stream: Tensor, tokenizer: Tokenizer) -> str:
    """One line on the perplexity of a stream: what it is, and over which tokens it was taken."""
    unknown = 0 if tokenizer.unk_id is None else int((stream == tokenizer.unk_id).sum())
    return (
        f"perplexity {score.perplexity:.3f}, {len(stream):,} tokens with <eos> ({unknown:,} unknown), "
        f"{score.predictions:,} predictions"
    )
