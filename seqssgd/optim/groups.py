"""Which weights are perturbed: parameter groups with a noise level, and what is refused about them."""

import math
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .roles import LEFT_ALONE, NO_WEIGHTS, ROLES, Kind, Role, kinds
from .sharding import check_not_flattened

HIGHEST_LEVEL = 2.0  # of noise_groups; more than twice the weights' own norm is a slip, such as percent
UNSAID = 0.02  # the share of the weights that may be left alone without a warning

Patterns = str | Collection[str]


def noise_groups(
    model: nn.Module,
    noise: float,
    only: Collection[Role] | None = None,
    include: Patterns = (),
    exclude: Patterns = (),
    roles: Mapping[type[nn.Module] | str, Role] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for any optimizer: the weights to perturb with ``"noise": noise``, all the rest with 0.

    All weights get the level: those of recurrent, convolutional, dense and embedding layers, and the matrices (two
    dimensions or more) of modules that torch does not know. Biases, gains of norm layers and of weight normalisation,
    time constants of state spaces and the like get 0; :func:`describe` says which, and a warning if they are many. A
    tied weight appears once. Weights behind a parametrization or ``weight_norm`` are perturbed where they are stored,
    in their unnormalised form. Frozen weights are perturbed from when they require gradients.

    Args:
        model: the network. Every parameter of it ends up in one of the groups, frozen ones too.
        noise: the noise level c: a perturbation has c times the norm of the weights (the paper's "cσ").
        only: the roles to perturb, of ``"recurrent"``, ``"conv"``, ``"dense"``, ``"embedding"``, ``"other"`` (of
            modules that torch does not know); None: all of them.
        include: names of further parameters to perturb, as in ``model.named_parameters()``, with ``*`` for anything:
            ``"decoder.*.scale"``, or several of them.
        exclude: names of parameters to leave alone, in the same way. It goes before all else.
        roles: what your own modules are: a class of modules, or a pattern for names of modules or parameters -> role.
            All weights inside such a module have that role; if it is ``"recurrent"`` they count as one layer, as those
            of torch's own LSTM layers do, and share a norm. It names weights and selects none.

    Returns:
        groups with the entries ``params``, ``noise`` and, for each parameter, ``layers`` (the name of its layer; the
        input and recurrent kernels of an LSTM layer share one; a name means nothing outside its group), ``names`` and
        ``roles`` (what it is: its role, or why it has none).

    Raises:
        TypeError: ``model`` is no module, or an argument is of another type than it says here.
        ValueError: an unknown role, a pattern without a match, a level that is negative, not finite or above 2, no
            trainable weights to perturb, or weights flattened by FSDP1.

    Warns:
        UserWarning: more than 2 % of the trainable weights, biases and gains not counted, are left alone by rule.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    >>> [(g["noise"], g["layers"]) for g in noise_groups(model, noise=0.5)]
    [(0.5, ['0']), (0.0, ['0.bias', '1.weight', '1.bias'])]
    """
    _check_arguments(model, only, roles)
    check_not_flattened(model)
    if getattr(noise, "ndim", None) == 0:  # a tensor or an array of one number
        noise = float(noise)
    _check_new_level(noise)
    found = kinds(model)
    for key, role in (roles or {}).items():
        _give_role(model, found, key, role)
    included, excluded = _matching(found, include, "include"), _matching(found, exclude, "exclude")
    noisy, rest = _divided(model, found, only, included, excluded)
    if not any(p.requires_grad for p in noisy):
        raise ValueError(_nothing_to_perturb(model, noisy, rest, only, excluded))
    _warn_of_left_out(model, {p: place for p, place in rest.items() if id(p) not in excluded}, found)
    groups = [_group(noisy, float(noise))]
    return [*groups, _group(rest, 0.0)] if rest else groups


# ---- which -----------------------------------------------------------------------------------------------------------


def _divided(
    model: nn.Module,
    found: Mapping[int, list[Kind]],
    only: Collection[str] | None,
    included: Collection[int],
    excluded: Collection[int],
) -> tuple[dict[Tensor, Kind], dict[Tensor, Kind]]:
    """The parameters to perturb, and the rest, each with what it is."""
    noisy: dict[Tensor, Kind] = {}
    rest: dict[Tensor, Kind] = {}
    for p in model.parameters():
        first = found[id(p)][0]
        weight = _first(found[id(p)], ROLES)
        wanted = weight if only is None else _first(found[id(p)], only)
        if id(p) in excluded or not (wanted or id(p) in included):
            rest[p] = Kind("not chosen" if weight else first.kind, first.name, first.name)
        else:
            noisy[p] = (wanted or first._replace(layer=first.name))._replace(name=first.name)
    return noisy, rest


def _matching(found: Mapping[int, list[Kind]], patterns: Patterns, argument: str) -> set[int]:
    """The parameters with a name that one of ``patterns`` fits."""
    matching: set[int] = set()
    if not isinstance(patterns, str) and not _are_names(patterns):
        raise TypeError(f"{argument}={patterns!r}: give a name of parameters, or a list of names")
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        fitting = {key for key, places in found.items() if any(_fits(place.name, pattern) for place in places)}
        if not fitting:
            raise ValueError(f"{argument}={pattern!r}: the model has no parameter of that name")
        matching |= fitting
    return matching


def _are_names(given: Any) -> bool:
    return isinstance(given, Collection) and not isinstance(given, str) and all(isinstance(x, str) for x in given)


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.replace("_orig_mod.", ""), pattern)  # torch.compile's prefix


def _give_role(model: nn.Module, found: dict[int, list[Kind]], key: type[nn.Module] | str, role: Role) -> None:
    """Replaces the role of the weights that ``key`` fits, but for those whose role the user has named before."""
    modules = [
        path
        for path, module in model.named_modules()
        if (_fits(path, key) if isinstance(key, str) else isinstance(module, key))
    ]
    fitting = False
    for places in found.values():
        for index, place in enumerate(places):
            inside = [path for path in modules if not path or place.name.startswith(f"{path}.")]
            if not inside and not (isinstance(key, str) and _fits(place.name, key)):
                continue
            fitting = True
            if place.kind in ROLES and not place.given:
                layer = min(inside, key=len) or role if inside and role == "recurrent" else place.layer
                places[index] = place._replace(kind=role, layer=layer, given=True)
    if not fitting:
        raise ValueError(f"roles={{{key!r}: {role!r}}}: the model has no such module or parameter")


def _first(places: Iterable[Kind], wanted: Collection[str]) -> Kind | None:
    """The first of ``places`` whose kind is ``wanted``; one in a module that torch knows goes before others."""
    fitting = [place for place in places if place.kind in wanted]
    return min(fitting, key=lambda place: place.kind == "other", default=None)


def _group(places: Mapping[Tensor, Kind], noise: float) -> dict[str, Any]:
    return {
        "params": list(places),
        "noise": noise,
        "layers": [place.layer for place in places.values()],
        "names": [place.name for place in places.values()],
        "roles": [place.kind for place in places.values()],
    }


# ---- what is refused, and what is said -------------------------------------------------------------------------------


def _check_arguments(model: Any, only: Any, roles: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"noise_groups(model, noise=...) takes the model, whose modules tell what is a weight, not {type(model)}"
        )
    if not (only is None or _are_names(only)) or not set(only or ()) <= set(ROLES):
        raise ValueError(f"only={only!r}: give a collection of roles out of {', '.join(ROLES)}")
    if not isinstance(roles, Mapping | None):
        raise TypeError(f"roles={roles!r}: give a dictionary, such as {{MyCell: 'recurrent'}}; only= chooses roles")
    for key, role in (roles or {}).items():
        if not isinstance(key, str | type):
            raise TypeError(f"roles={{{key!r}: {role!r}}}: the key must be a class of modules, or a pattern for names")
        if role not in ROLES:
            raise ValueError(f"roles={{{key!r}: {role!r}}}: the role must be one of {', '.join(ROLES)}")


def _check_new_level(noise: float) -> None:
    check_level({"params": [], "noise": noise}, "noise", 0)
    if noise > HIGHEST_LEVEL:
        raise ValueError(
            f"noise={noise:g}: the level is a fraction of the norm of the weights, at most {HIGHEST_LEVEL:g} here; "
            f"for {noise:g} percent give {noise / 100:g}"
        )


def _nothing_to_perturb(
    model: nn.Module,
    noisy: Mapping[Tensor, Kind],
    rest: Mapping[Tensor, Kind],
    only: Collection[str] | None,
    excluded: Collection[int],
) -> str:
    name, what = type(model).__name__, "no weights to perturb"
    if noisy:
        what = f"{what}: all {len(noisy)} that {name} has are frozen"
    elif only is not None and not only:
        return f"{what}: only={only!r} names no role; give some of {', '.join(ROLES)}, or leave it out"
    elif any(id(p) in excluded and place.kind == "not chosen" for p, place in rest.items()):
        return f"{what}: exclude= names all that {name} has; leave some out of it"
    else:
        what = f"{what}: {name} has none with a role in {', '.join(only or ROLES)}"
    if any(place.kind == "complex" for place in rest.values()):
        what = f"{what}; to complex numbers noise cannot be added"
    possible = [place for p, place in rest.items() if p.requires_grad and place.kind != "complex"]
    if not possible or only is not None:
        return what
    patterns = ", ".join(repr(pattern) for pattern in dict.fromkeys(pattern_of(place.name) for place in possible))
    return f"{what}. Give include= to perturb some of those that are trained: {patterns}"


def _warn_of_left_out(model: nn.Module, rest: Mapping[Tensor, Kind], found: Mapping[int, list[Kind]]) -> None:
    """Warns if much of what is trained is left alone by a rule, and no bias or gain."""
    left: dict[str, list[str]] = {}
    size = 0
    for p, place in rest.items():
        if p.requires_grad and place.kind not in (*NO_WEIGHTS, "not chosen"):
            size += p.numel()
            left.setdefault(place.kind, []).append(pattern_of(place.name))
    trained = [p for p in model.parameters() if p.requires_grad and not is_lazy(p)]
    whole = size + sum(p.numel() for p in trained if _first(found[id(p)], ROLES))
    if size > UNSAID * whole:
        reasons = "; ".join(f"{LEFT_ALONE[kind]}: {', '.join(dict.fromkeys(names))}" for kind, names in left.items())
        warnings.warn(
            f"noise_groups leaves {size / whole:.1%} of the weights of {type(model).__name__} alone ({size:,} of "
            f"{whole:,}, biases and gains not counted). {reasons}. Give their names to include= to perturb them"
            f"{' (complex numbers cannot be)' if 'complex' in left else ''}, to exclude= if they are right as they are",
            stacklevel=3,
        )


def pattern_of(name: str) -> str:
    """``name`` with the numbers of layers replaced by ``*``, so that it stands for the others' too."""
    return re.sub(r"(?<![^.])\d+(?![^.])|(?<=_l)\d+", "*", name)


def params_of(group: Mapping[str, Any]) -> list[Tensor]:
    """The parameters of a group, which may be one that no optimizer has yet: those may hold a tensor alone.

    Or what can be read only once, as ``model.parameters()``: the group then holds a list of it, as torch would make.
    """
    if isinstance(group["params"], Iterator) and isinstance(group, dict):
        group["params"] = list(group["params"])
    return [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])


def check_trainable(groups: Iterable[dict[str, Any]], key: str) -> None:
    """Refuses groups with a level of which nothing is trained: the step would be the base optimizer's, unsaid.

    Args:
        groups: parameter groups.
        key: their entry that is the level.

    Raises:
        RuntimeError: some have a level, and all their parameters are frozen, or are on the meta device.
    """
    noisy = [group for group in groups if group.get(key)]
    if noisy and not any(p.requires_grad for group in noisy for p in group["params"]):
        raise RuntimeError(
            f'no weight with a noise level is trained: all parameters of the groups with "{key}" are frozen. Build the '
            'groups with noise_groups(model, noise=..., include=["names of what is trained"]), or set the level to 0'
        )
    if any(p.is_meta for group in noisy for p in group["params"]):
        raise RuntimeError(
            "weights with a noise level are on the meta device, where they have no values. Make the optimizer after "
            "model.to_empty(device=...), which puts other parameters into the model"
        )


def check_level(group: dict[str, Any], key: str, index: int) -> None:
    """Refuses an impossible level, and a level for weights that noise cannot be added to.

    Args:
        group: a parameter group.
        key: its entry that is the level; absent: 0.
        index: its number, for the message.

    Raises:
        ValueError: the level is negative or not finite; the weights are sparse or complex, or not as many as layers.
    """
    level = group.get(key, 0.0)
    if isinstance(level, bool) or not (isinstance(level, Real) and math.isfinite(level) and float(level) >= 0):
        hint = "; of a tensor give float(...)" if isinstance(level, Tensor) else ""
        raise ValueError(
            f"the noise level of parameter group {index} must be a finite number >= 0, not {level!r} "
            f'(its entry "{key}"){hint}'
        )
    if level == 0:
        return
    params, layers = params_of(group), group.get("layers")
    if layers and len(layers) != len(params):
        raise ValueError(
            f'parameter group {index} has {len(params)} parameters and {len(layers)} "layers", which are to be one for '
            'each: divide the lists "layers", "names" and "roles" of noise_groups as the parameters, or leave them out '
            "(each weight is then a layer of its own)"
        )
    for p in params:
        if p.requires_grad and (p.layout is not torch.strided or not p.is_floating_point()):
            kind = f"a {p.layout} tensor" if p.layout is not torch.strided else f"of type {p.dtype}"
            raise ValueError(
                f"a weight of shape {tuple(p.shape)} in parameter group {index} is {kind}; noise needs dense real "
                f'weights, so give it a group of its own with "{key}": 0'
            )
