"""Which weights are perturbed: by the role of their module, not by their number of dimensions."""

import math
import re
from collections.abc import Collection, Iterator
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .sharding import check_not_flattened

Role = Literal["recurrent", "conv", "dense", "embedding"]
ROLES: tuple[Role, ...] = get_args(Role)


def noise_groups(
    model: nn.Module, noise: float, only: Collection[Role] | None = None, include: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Parameter groups for any optimizer: the weights to perturb with ``"noise": noise``, all the rest with 0.

    Recurrent, convolutional, dense and embedding weights get the level. Biases, gains of norm layers and of weight
    normalisation, and parameters of modules that torch does not know get 0. A tied weight appears once. Weights
    behind a parametrization or ``weight_norm`` are perturbed where they are stored, in their unnormalised form.

    Args:
        model: the network. Every parameter of it ends up in one of the groups, frozen ones too.
        noise: the noise level c: a perturbation has c times the norm of the weights (the paper's "cσ").
        only: the roles to perturb, of ``"recurrent"``, ``"conv"``, ``"dense"``, ``"embedding"``; None: all of them.
        include: names, as in ``model.named_parameters()``, of further weights to perturb: those of your own modules.

    Returns:
        groups with the entries ``params``, ``noise`` and ``layers`` (for each parameter the name of its layer; the
        input and recurrent kernels of an LSTM layer share one; a name means nothing outside its group).

    Raises:
        ValueError: an unknown role or name, nothing to perturb, or weights flattened by FSDP1.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    >>> [(g["noise"], g["layers"]) for g in noise_groups(model, noise=0.5)]
    [(0.5, ['0']), (0.0, ['0.bias', '1.weight', '1.bias'])]
    """
    check_not_flattened(model)
    unknown = set(only or ()) - set(ROLES)
    if isinstance(only, str) or unknown:
        raise ValueError(f"only={only!r}: give a collection of roles out of {', '.join(ROLES)}")
    names = {id(p): name for name, p in model.named_parameters()}
    layers: dict[int, str] = {}
    for module_name, module in model.named_modules():
        for role, parameter, layer in _weights(module):
            if only is None or role in only:
                layers.setdefault(id(parameter), f"{module_name}.{layer}".strip(".") or role)
    for name in include:
        try:
            layers.setdefault(id(model.get_parameter(name)), name)
        except AttributeError:
            raise ValueError(f"include={name!r}: the model has no parameter of that name") from None
    noisy = [p for p in model.parameters() if id(p) in layers]
    if not noisy:
        raise ValueError(f"no weights to perturb: {type(model).__name__} has none with a role in {only or ROLES}")
    rest = [p for p in model.parameters() if id(p) not in layers]
    groups = [{"params": noisy, "noise": float(noise), "layers": [layers[id(p)] for p in noisy]}]
    if rest:
        groups.append({"params": rest, "noise": 0.0, "layers": [names[id(p)] for p in rest]})
    return groups


def _weights(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, str]]:
    """The weights that ``module`` itself owns: their role, the parameter, and the layer's name within the module."""
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        # weight_ih_l0, weight_hh_l0 and weight_hr_l0 make up layer l0, and their _reverse twins another layer
        stems = {re.sub(r"_(v|orig|raw)$", "", name) for name in _own_names(module)}
        for stem in sorted(name for name in stems if re.fullmatch(r"weight_(ih|hh|hr)(_l\d+)?(_reverse)?", name)):
            yield from _stored(module, "recurrent", stem, re.sub(r"^weight_(ih|hh|hr)_?", "", stem))
    elif isinstance(module, nn.MultiheadAttention):
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            yield from _stored(module, "dense", name, name)
    else:
        for role, classes in (
            ("conv", nn.modules.conv._ConvNd),
            ("dense", (nn.Linear, nn.Bilinear)),
            ("embedding", (nn.Embedding, nn.EmbeddingBag)),
        ):
            if isinstance(module, classes):
                yield from _stored(module, role, "weight", "")


def _own_names(module: nn.Module) -> set[str]:
    return set(module._parameters) | set(getattr(module, "parametrizations", {}))


def _stored(module: nn.Module, role: str, name: str, layer: str) -> Iterator[tuple[str, nn.Parameter, str]]:
    """The parameter in which the weight ``name`` is stored: itself, or the one behind a reparametrization."""
    if torch.nn.utils.parametrize.is_parametrized(module, name):
        parametrizations: Any = module.parametrizations
        originals = list(parametrizations[name].parameters(recurse=False))
        if len(originals) > 1:  # not asked of a single one, as spectral_norm moves its estimate at every look
            shape = getattr(module, name).shape
            originals = [p for p in originals if p.shape == shape]
        if originals:
            yield role, originals[-1], layer  # weight_norm stores its gain first and its direction second
        return
    for stored in (name, f"{name}_v", f"{name}_orig", f"{name}_raw"):  # weight_norm, pruning, weight drop
        parameter = module._parameters.get(stored)
        if parameter is not None:
            yield role, parameter, layer
            return


def check_level(group: dict[str, Any], key: str, index: int) -> None:
    """Refuses an impossible level, and a level for weights that noise cannot be added to.

    Args:
        group: a parameter group.
        key: its entry that is the level; absent: 0.
        index: its number, for the message.

    Raises:
        ValueError: the level is negative or not finite; the weights are sparse or complex.
    """
    level = group.get(key, 0.0)
    if not (isinstance(level, Real) and math.isfinite(level) and float(level) >= 0):
        raise ValueError(
            f"the noise level of parameter group {index} must be a finite number >= 0, not {level!r} "
            f'(its entry "{key}")'
        )
    if level == 0:
        return
    params = [group["params"]] if isinstance(group["params"], Tensor) else group["params"]
    for p in params:
        if p.layout is not torch.strided or not p.is_floating_point():
            kind = f"a {p.layout} tensor" if p.layout is not torch.strided else f"of type {p.dtype}"
            raise ValueError(
                f"a weight of shape {tuple(p.shape)} in parameter group {index} is {kind}; noise needs dense real "
                f'weights, so give it a group of its own with "{key}": 0'
            )
