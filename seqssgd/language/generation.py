"""Text that a language model writes."""

import math

import torch
from torch import nn

from ..data.lines import split_lines
from ..data.tokenizers import Tokenizer
from ..errors import UserError


@torch.no_grad()
def generate(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompt: str = "",
    length: int = 100,
    temperature: float = 1.0,
    seed: int = 0,
) -> str:
    """Continues a text by sampling.

    Args:
        model: the language model; computes where its weights are.
        tokenizer: the tokenizer of the run.
        prompt: how the text begins, at the start of a line; may be empty.
        length: number of tokens to add.
        temperature: logits are divided by it; below 1 the likely becomes likelier, 0 always takes the likeliest.
        seed: the same seed gives the same text on the same device.

    Returns:
        The prompt and its continuation.

    Raises:
        UserError: a length below 1, a negative or infinite temperature, or a word of the prompt that is unknown.
    """
    if length < 1:
        raise UserError(f"length={length}: it must be at least 1")
    if not 0 <= temperature < math.inf:
        raise UserError(f"temperature={temperature}: it must be a number from 0 up")
    # the stream that the model learned has an <eos> before every line; the prompt's last line goes on
    ids = [tokenizer.eos_id, *tokenizer.encode(split_lines(prompt), "the prompt")[:-1].tolist()]
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    training = model.training
    model.eval()
    state = None
    for _ in range(length):
        new = ids if state is None else ids[-1:]
        logits, state = model(torch.tensor(new, device=device)[:, None], state)
        last = logits[-1, 0].double().cpu()
        if temperature == 0:
            ids.append(int(last.argmax()))
        else:
            probabilities = ((last - last.max()) / temperature).softmax(0)  # no overflow at a tiny temperature
            ids.append(int(torch.multinomial(probabilities, 1, generator=generator)))
    model.train(training)
    return tokenizer.decode(ids[1:])
