"""Muon where it can step, AdamW where it cannot."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.optim import AdamW, Muon

from .groups import params_of
from .together import Together

EACH = ("layers", "names", "roles", "param_names")  # the entries of a group that have a value for each parameter


class MuonAdamW(Together):
    """Muon for the matrices, AdamW for all other parameters, as one optimizer.

    Both have one learning rate: Muon's update is scaled to the size that AdamW's has (``match_rms_adamw`` of
    ``torch.optim.Muon``; Liu et al., "Muon is scalable for LLM training", 2025, Eq. 4).

    Args:
        params: parameters, or groups of them; a group with both kinds becomes two.
        lr: learning rate of both.
        momentum: of Muon.
        betas: of AdamW.
        weight_decay: of both, decoupled.

    Raises:
        ValueError: there is no matrix among the parameters.

    >>> import torch
    >>> from seqssgd.optim import SymmetricNoise, noise_groups
    >>> model = torch.nn.Linear(4, 8)
    >>> optimizer = SymmetricNoise(MuonAdamW(noise_groups(model, noise=0.3), lr=1e-3))
    >>> [type(each).__name__ for each in optimizer.base.optimizers]
    ['Muon', 'AdamW']
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.1,
    ):
        groups = list(params)
        groups = groups if groups and isinstance(groups[0], dict) else [{"params": groups}]
        matrices, rest = _of(groups, lambda p: p.ndim == 2), _of(groups, lambda p: p.ndim != 2)
        if not matrices:
            raise ValueError("no parameter is a matrix, and Muon steps matrices alone; take AdamW")
        muon = Muon(matrices, lr=lr, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        adamw = [AdamW(rest, lr=lr, betas=betas, weight_decay=weight_decay)] if rest else []
        super().__init__(muon, *adamw)


def _of(groups: list[dict[str, Any]], wanted: Callable[[Tensor], bool]) -> list[dict[str, Any]]:
    """The groups with those parameters alone that are wanted, and of the entries with one value each theirs.

    Which entries those are is known by name: ``betas`` are two values, and no value for each of two parameters.
    """
    found = []
    for group in groups:
        params = params_of(group)
        chosen = [index for index, p in enumerate(params) if wanted(p)]
        each = {key: group[key] for key in EACH if key in group}
        if chosen:
            found.append({**group, **{key: [value[i] for i in chosen] for key, value in each.items()},
                          "params": [params[i] for i in chosen]})  # fmt: skip
    return found
