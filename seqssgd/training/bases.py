"""The optimizers that step, inside a method."""

from collections.abc import Callable
from typing import Any

from torch.optim import SGD, Adam, AdamW, Optimizer

# Every base optimizer: (parameter groups, configuration) -> optimizer.
BASES: dict[str, Callable[[Any, Any], Optimizer]] = {
    "sgd": lambda groups, c: SGD(groups, lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay),
    # fused: on a CPU, where it is not the default, an eighth of the time, which for small models is much of a step
    "adam": lambda groups, c: Adam(groups, lr=c.lr, betas=c.betas, weight_decay=c.weight_decay, fused=True),
    "adamw": lambda groups, c: AdamW(groups, lr=c.lr, betas=c.betas, weight_decay=c.weight_decay, fused=True),
}
