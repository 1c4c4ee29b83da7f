"""What weight noise has to know of sharded weights (DTensor, FSDP2)."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def _is_a(thing: Any, module: str, name: str) -> bool:
    """``isinstance``, for a class of a part of torch that takes longer to import than torch itself.

    So long as nobody has imported it, nothing is of that class.
    """
    found = getattr(sys.modules.get(module), name, None)
    return found is not None and isinstance(thing, found)


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether ``tensor`` is a DTensor."""
    # asked of every weight several times a step, and of most this is the answer
    return type(tensor) not in (nn.Parameter, Tensor) and _is_a(tensor, "torch.distributed.tensor", "DTensor")


def is_gathering(module: nn.Module) -> "TypeGuard[FSDPModule]":
    """Whether ``module`` is one of FSDP2's, which gathers sharded weights when it is called."""
    return _is_a(module, "torch.distributed.fsdp", "FSDPModule")


def local(tensor: Tensor) -> Tensor:
    """The part of ``tensor`` on this rank; writing to it writes to ``tensor``."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def shard_index(weights: Sequence[Tensor]) -> int:
    """Which shard this rank holds, from 1, the same on all replicas of the shard; 0 for plain tensors."""
    for weight in weights:
        if is_sharded(weight):
            mesh, index = weight.device_mesh, 0
            for dim, placement in enumerate(weight.placements):
                if placement.is_shard():
                    index = index * mesh.size(dim) + mesh.get_local_rank(dim)
            return 1 + index
    return 0


def check_shards(weights: Sequence[Tensor]) -> None:
    """Refuses shards that one perturbation cannot be drawn over. All must be sharded alike, as FSDP2 does.

    Raises:
        ValueError: a weight is sharded along another dimension than its first (its filters would be torn apart), or
            otherwise than the weight before it.
    """
    sharded = [weight for weight in weights if is_sharded(weight)]
    for weight in sharded:
        if any(p.is_partial() or p.is_shard() and not p.is_shard(0) for p in weight.placements):
            raise ValueError(f"noise needs weights sharded along dimension 0, as FSDP2 does, not {weight.placements}")
        if weight.device_mesh != sharded[0].device_mesh or weight.placements != sharded[0].placements:
            raise ValueError("noise needs all sharded weights on one device mesh with the same placements")


def check_not_flattened(model: nn.Module) -> None:
    """Refuses FSDP1, which cuts the flattened weights of many layers into shards: a layer's norm is lost.

    Raises:
        ValueError: a module is wrapped by FullyShardedDataParallel.
    """
    if any(_is_a(module, "torch.distributed.fsdp", "FullyShardedDataParallel") for module in model.modules()):
        raise ValueError(
            "FullyShardedDataParallel (FSDP1) flattens the weights of several layers into one, so noise cannot follow "
            "the norm of each; use torch.distributed.fsdp.fully_shard (FSDP2)"
        )


def sum_over_shards(values: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Sums ``values``, one entry for each of ``weights``, over the ranks that share those weights out."""
    sharded = [weight for weight in weights if is_sharded(weight)]
    if not sharded:
        return values
    mesh, placements = sharded[0].device_mesh, sharded[0].placements
    mask = torch.tensor([is_sharded(weight) for weight in weights], device=values.device)
    summed = values.clone()
    for dim, placement in enumerate(placements):
        if placement.is_shard():
            dist.all_reduce(summed, group=mesh.get_group(dim))
    return torch.where(mask, summed, values)


def gathering_modules(model: nn.Module | None, weights: Sequence[Tensor]) -> "list[FSDPModule]":
    """The FSDP2 modules in ``model``: whenever weights move, they must be told to ``reshard()`` and gather anew.

    After a forward that no backward follows they go on using what they gathered for it. Modules that do so after
    backward too are refused: they would step on stale weights.

    Raises:
        ValueError: weights are sharded and ``model`` is unknown, or it keeps weights gathered.
    """
    if not any(is_sharded(weight) for weight in weights):
        return []
    found = []
    if model is None:
        raise ValueError("with FSDP2, pass model= so that its resharding can be checked")
    for name, module in model.named_modules():
        if is_gathering(module):
            found.append(module)
            state = module._get_fsdp_state()
            groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
            if any(group is not None and not group.reshard_after_backward for group in groups):
                raise ValueError(
                    f"the FSDP2 module '{name or type(module).__name__}' keeps its weights gathered after backward, so "
                    "the second pass would run on the weights of the first; call set_reshard_after_backward(True)"
                )
    return found
