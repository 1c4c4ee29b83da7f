"""What each parameter of a model is: a weight with a role, or something that noise leaves alone, and why.

The class of the module decides where torch knows it. Elsewhere a parameter of two dimensions or more is a weight,
unless its name or its type says that it is none. A name that only hints at it needs a
second sign. ``docs/which_weights.md`` has every rule with its reason.
"""

import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

Role = Literal["recurrent", "conv", "dense", "embedding", "other"]
ROLES: tuple[Role, ...] = get_args(Role)

LEFT_ALONE = {
    "bias": "biases, also those of positions and of experts",
    "norm": "gains of norm layers and of activations",
    "gain": "gains of weight normalisation and scales of layers",
    "by name": "matrices that are gains by their names alone",
    "vector": "vectors and scalars of modules that torch does not know",
    "state space": "poles, time steps and decays of state spaces",
    "initial state": "learned initial states",
    "complex": "complex numbers: noise is drawn for real ones",
    "quantized": "whole or quantized numbers, which are not trained",
    "not chosen": "weights that only= or exclude= leaves out",
}
NO_WEIGHTS = ("bias", "norm", "gain")  # what "all weights" does not mean

_NORMS = (
    *(nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
    *(nn.CrossMapLRN2d, nn.LocalResponseNorm, nn.PReLU),
)
_RECURRENT_NAME = re.compile(r"weight_(ih|hh|hr)(_l\d+)?(_reverse)?")
_STORED = ("", "_v", "_orig", "_raw")  # as it is; under weight_norm, pruning, weight drop

# Names that people give to what is no weight, in modules that torch does not know.
_BIAS = re.compile(r"b(_[a-z0-9]+|\d*)")
_NORM_CLASS = re.compile(r"(?i).*(norm(alization)?(gated|\dd)?|grn)")
_NORM_MODULE = re.compile(r"(?i)(.*_)?(layer_?|batch_?|group_?|rms_?)?(norm|ln|bn)(_.*|\d*)")
_NORM_GAIN = re.compile(r"(?i)weight|gamma|beta|gain|scale|shift|[abg](_?\d)?")
_GAIN = re.compile(r"gain|(\w+_)?scale|layer_?scale\w*")
_GAIN_HINT = re.compile(r"(weight|kernel)\w*_g|gamma\w*|beta|lambda_?\d*")
_NO_GAIN = re.compile(r"gamma\w*(kernel|weight|proj)\w*")
_GAIN_CLASS = re.compile(r"Dora\w*Layer")  # peft's magnitudes of weights
_STATE_SPACE = re.compile(
    r"A_log(_\w+)?|log_(neg_)?A(_\w+)?|(inv_)?A_(real|imag|re|im)|Lambda(_\w+)?|dt|(inv|log)_(dt|delta|step)|dt_log"
    r"|time_(decay|first|faaaa|mix_\w+|maa_\w+)|(nu|theta|gamma)_log|recurrent_param|log_step_size"
)
_STATE_SPACE_BESIDE = re.compile(r"A|D")  # beside one of the names above
_INITIAL = re.compile(
    r"(?i)[hcs]_?0|(\w+_)?init(ial)?_(h|c|hx|cx|state|hidden|cell)s?|(h|c|state|hidden|cell)_init(ial)?"
)
_WEIGHT = re.compile(r".*(weight|kernel).*|[WUV]([a-z]{1,2}|[_\d].*)?")
_EMBEDDING = re.compile(r"(?i).*emb(ed|edding|eddings|s)?(_.*|\d*)")


class Kind(NamedTuple):
    """What a parameter is in one of the places where a model holds it.

    Attributes:
        kind: one of ``ROLES``, or a key of ``LEFT_ALONE``.
        layer: the name of its layer. Weights with equal names share a norm.
        name: of the parameter in this place.
        given: whether its role is one that the user has named.
    """

    kind: str
    layer: str
    name: str
    given: bool = False


def kinds(model: nn.Module) -> dict[int, list[Kind]]:
    """What each parameter of ``model`` is, by its id: once for each place that holds it, for tied weights have several.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    >>> [place.kind for (place,) in kinds(model).values()]
    ['dense', 'bias', 'norm', 'bias']
    """
    found: dict[int, list[Kind]] = {}
    weights: dict[str, dict[int, tuple[str, str]]] = {}  # of each module: parameter -> its role and layer
    for path, module in model.named_modules():
        if isinstance(module, ParametrizationList):
            known = weights[_owner(path)]
        else:
            known = weights[path] = {id(p): (role, _join(path, layer)) for role, p, layer in _weights(module)}
        for name, p in _own(module).items():
            kind, layer = known.get(id(p)) or _guess(module, path, name, p)
            kind = _unfit(p) or ("bias" if kind == "embedding" and _says_bias(_last(path)) else kind)
            found.setdefault(id(p), []).append(Kind(kind, layer or kind, _join(path, name)))
    return found


def _unfit(p: Tensor) -> str | None:
    if p.is_complex():
        return "complex"
    return "quantized" if not p.is_floating_point() or p.dtype.itemsize == 1 else None


def _join(*names: str) -> str:
    return ".".join(filter(None, names))


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _owner(path: str) -> str:
    """The module whose weight is behind the ``ParametrizationList`` at ``path``."""
    return path.rpartition("parametrizations.")[0].removesuffix(".")


# ---- modules of torch ------------------------------------------------------------------------------------------------


def _weights(module: nn.Module) -> Iterator[tuple[str, Tensor, str]]:
    """The weights of ``module`` that its class tells: their role, the parameter, and the layer's name within it."""
    known = _class(module)
    if issubclass(known, (nn.RNNBase, nn.RNNCellBase)):
        # weight_ih_l0, weight_hh_l0 and weight_hr_l0 make up layer l0, and their _reverse twins another layer
        stems = {_stem(name) for name in (*_own(module), *_parametrized(module))}
        for stem in sorted(name for name in stems if _RECURRENT_NAME.fullmatch(name)):
            yield from _stored(module, "recurrent", stem, _recurrent_layer(stem))
    elif issubclass(known, nn.MultiheadAttention):
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            yield from _stored(module, "dense", name, name)
    else:
        for role, classes in (
            ("conv", nn.modules.conv._ConvNd),
            ("dense", (nn.Linear, nn.Bilinear)),
            ("embedding", (nn.Embedding, nn.EmbeddingBag)),
        ):
            if issubclass(known, classes):
                yield from _stored(module, role, "weight", "")


def _class(module: nn.Module) -> type:
    """The class of ``module``; of one that was compiled by TorchScript, torch's class of the name it had before."""
    if isinstance(module, torch.jit.ScriptModule):
        return getattr(nn, module.original_name, nn.Module)
    return type(module)


def _own(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters(recurse=False, remove_duplicate=False))


def _parametrized(module: nn.Module) -> list[str]:
    parametrizations: Any = getattr(module, "parametrizations", ())
    return list(parametrizations) if is_parametrized(module) else []


def _stem(name: str) -> str:
    return re.sub(r"_(v|orig|raw)$", "", name)


def _recurrent_layer(name: str) -> str:
    return re.sub(r"^weight_(ih|hh|hr)_?", "", _stem(name))


def _stored(module: nn.Module, role: str, name: str, layer: str) -> Iterator[tuple[str, Tensor, str]]:
    """The parameter in which the weight ``name`` is stored: itself, or the one behind a reparametrization."""
    if is_parametrized(module, name):
        parametrizations: Any = module.parametrizations
        originals = list(parametrizations[name].parameters(recurse=False))
        if len(originals) > 1:  # not asked of a single one, as spectral_norm moves its estimate at every look
            shape = getattr(module, name).shape
            originals = [p for p in originals if p.shape == shape]
        if originals:
            yield role, originals[-1], layer  # weight_norm stores its gain first and its direction second
        return
    own = _own(module)
    for stored in (name + ending for ending in _STORED):
        if stored in own:
            yield role, own[stored], layer
            return


# ---- modules of other people -----------------------------------------------------------------------------------------


def _guess(module: nn.Module, path: str, name: str, p: Tensor) -> tuple[str, str]:
    """What the parameter ``name`` of ``module`` is, and its layer, where the class of the module does not tell."""
    kind = _kind(module, path, name, p)
    if kind == "recurrent":
        # Weight drop holds one kernel of a torch layer and leaves the other where it was.
        inner = [child for child, kind in module.named_children() if issubclass(_class(kind), nn.RNNBase)]
        return kind, _join(path, *inner[:1], _recurrent_layer(name))
    return kind, path if kind in ROLES and name == "weight" else _join(path, name)


def _kind(module: nn.Module, path: str, name: str, p: Tensor) -> str:
    known, attribute, full = _class(module), _last(path), name
    if isinstance(module, ParametrizationList):
        full, attribute = attribute, _last(_owner(path))
    elif isinstance(module, (nn.ParameterList, nn.ParameterDict)):
        full = f"{attribute}_{name}"
    matrix = not is_lazy(p) and sum(size > 1 for size in p.shape) > 1
    if _says_bias(full) or (known is nn.Module and _says_bias(attribute)):
        return "bias"
    if _BIAS.fullmatch(name) and not (matrix and _stands_alone(module, p)):
        return "bias"
    if issubclass(known, _NORMS) or known.__module__ == "torch.nn.modules.activation":
        return "norm"
    if _NORM_GAIN.fullmatch(name) and _NORM_CLASS.fullmatch(_class_name(module)):
        return "norm"
    if _GAIN.fullmatch(name) or _GAIN_CLASS.fullmatch(_class_name(module)):
        return "gain"
    hint = "norm" if _NORM_GAIN.fullmatch(name) and _NORM_MODULE.fullmatch(attribute) else ""
    if not hint and _GAIN_HINT.fullmatch(name) and not (matrix and _NO_GAIN.fullmatch(name)):
        hint = "gain"
    if hint and not (matrix and _stands_alone(module, p)):
        return hint
    if _STATE_SPACE.fullmatch(name) or (
        _STATE_SPACE_BESIDE.fullmatch(name) and any(map(_STATE_SPACE.fullmatch, _own(module)))
    ):
        return "state space"
    if _INITIAL.fullmatch(full):
        return "initial state"
    if hint:
        return "by name"
    if not is_lazy(p) and not matrix:
        if isinstance(module, ParametrizationList):
            return "gain"
        if p.ndim < 2 or not _WEIGHT.fullmatch(full):
            return "vector"
    return _role(module, attribute, full)


def _stands_alone(module: nn.Module, p: Tensor) -> bool:
    """Whether nothing beside ``p`` has a shape that makes it a bias or a gain.

    Such are those of a bias of as many numbers, beside a gain; a stack of matrices, beside their stacked biases; a
    tensor that is multiplied or added to with ``p`` spread over some of its dimensions.
    """
    for name, other in _own(module).items():
        if other is p or is_lazy(other):
            continue
        short, long = tuple(p.shape), tuple(other.shape)
        if short == long and (_says_bias(name) or re.fullmatch("gamma|beta|gain|scale|shift", name)):
            return False
        if any(short == long[:i] + long[i + 1 :] for i in range(len(long))):
            return False
        if short != long and len(short) == len(long) and all(s in (1, n) for s, n in zip(short, long, strict=True)):
            return False
    return True


def _role(module: nn.Module, attribute: str, name: str) -> str:
    if _RECURRENT_NAME.fullmatch(_stem(name)):
        return "recurrent"
    if _EMBEDDING.fullmatch(name) or (name == "weight" and _EMBEDDING.fullmatch(attribute)):
        return "embedding"
    # the Conv1D of transformers is a linear layer with its matrix transposed; experts are one in each slice
    return "dense" if re.fullmatch(r"Linear|Conv1D|\w*Experts", _class_name(module)) else "other"


def _class_name(module: nn.Module) -> str:
    return getattr(module, "original_name", None) or type(module).__name__


def _says_bias(name: str) -> bool:
    return not {"bias", "biases"}.isdisjoint(re.split(r"[_\d]+", name.lower()))
