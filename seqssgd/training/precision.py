"""Which precision this machine can train a network in, and which suits it."""

from pathlib import Path

import torch
from torch import nn

from .. import processes
from ..documents import read_yaml
from ..errors import UserError
from ..runs import layout
from .config import TrainingConfig
from .logs import say


def settle_precision(model: nn.Module, config: TrainingConfig, run: Path) -> None:
    """Makes sure that a network can be trained in ``training.precision``; what ``auto`` is becomes the setting.

    A run that was begun goes on in the precision that it has, wherever it goes on.

    Args:
        model: the network, on its device.
        config: changed in place.
        run: the run directory.

    Raises:
        UserError: the network cannot be trained in it.
    """
    if config.precision != "auto":
        check_precision(model, config)
        return
    begun = run / layout.CONFIG
    old = read_yaml(begun, "choose another directory") if begun.is_file() else None
    section = old.get("training") if isinstance(old, dict) else None
    stored = processes.from_main(section.get("precision") if isinstance(section, dict) else None)
    if stored in ("fp32", "bf16", "fp16"):
        config.precision = stored
        check_precision(model, config)
        return
    reason = processes.from_main(_against_bf16(model))
    config.precision = "bf16" if reason is None else "fp32"
    say(f"training.precision auto is {config.precision}" + (f": {reason}" if reason else ""))


def check_precision(model: nn.Module, config: TrainingConfig) -> None:
    """Tries the recurrent layers of a model in ``training.precision``: processors without instructions for it lack what
    torch takes for an LSTM there, and say so only when it is called.

    Raises:
        UserError: one of them cannot be run.
    """
    if config.precision != "fp32" and (layer := _impossible(model, config.precision)) is not None:
        raise UserError(
            f"training.precision: this machine's {_device(model).type.upper()} cannot train this network "
            f"({layer}) in {config.precision}; use fp32"
        )


def _against_bf16(model: nn.Module) -> str | None:
    """Why the network is better not trained in bfloat16 here; None if there is no reason."""
    device = _device(model)
    if device.type == "cuda":
        multiplies = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # sums of products of two numbers; without the instruction it is slower than single precision
        known = getattr(torch.cpu, "get_capabilities", dict)()
        multiplies = any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    if not multiplies:
        return f"this machine's {device.type.upper()} does not multiply in bf16"
    layer = _impossible(model, "bf16")
    return layer and f"torch has no {layer} in bf16 here"


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _impossible(model: nn.Module, precision: str) -> str | None:
    """The class of a recurrent layer that cannot be run in a precision; None if all can."""
    half = torch.float16 if precision == "fp16" else torch.bfloat16
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
            return type(layer).__name__
    return None
