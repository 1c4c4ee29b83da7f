"""Whether this machine can train a network in half precision."""

import torch
from torch import nn

from ..errors import UserError
from .config import TrainingConfig


def check_precision(model: nn.Module, config: TrainingConfig) -> None:
    """Tries the recurrent layers of a model in ``training.precision``: processors without instructions for it lack what
    torch takes for an LSTM there, and say so only when it is called.

    Raises:
        UserError: one of them cannot be run.
    """
    if config.precision == "fp32":
        return
    half = torch.float16 if config.precision == "fp16" else torch.bfloat16
    for layer in model.modules():
        weight = next(layer.parameters(), None)
        if not isinstance(layer, nn.RNNBase) or weight is None:
            continue
        device = weight.device
        inputs = torch.zeros(2, 2, layer.input_size, device=device, requires_grad=True)
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):  # for dropout between layers
                with torch.autocast(device.type, half):
                    outputs, _ = layer(inputs)
                torch.autograd.grad(outputs.sum(), inputs)
        except RuntimeError as error:
            if "could not create a primitive" not in str(error):
                raise
            raise UserError(
                f"training.precision: this machine's {device.type.upper()} cannot train this network "
                f"({type(layer).__name__}) in {config.precision}; use fp32"
            ) from error
