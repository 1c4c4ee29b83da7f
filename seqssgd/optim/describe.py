"""What noise does to the weights of a model, layer by layer, and what it leaves alone."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from .groups import params_of, pattern_of
from .noise import norm_of
from .roles import LEFT_ALONE, Kind, kinds


@dataclass(frozen=True)
class Layer:
    """A layer with a noise level.

    Attributes:
        name: of the layer.
        role: its weights' role, or what else they are.
        shapes: of its weights.
        level: the noise level.
        norm: ‖n‖ of a perturbation (its expected root mean square where that is not fixed), frozen weights not
            counted; None where it cannot be told beforehand.
        trained: the parameters that require gradients; those that do not are not perturbed.
        size: all its parameters.
    """

    name: str
    role: str
    shapes: tuple[tuple[int, ...], ...]
    level: float
    norm: float | None
    trained: int
    size: int


@dataclass(frozen=True)
class LeftAlone:
    """What has no noise level, of one kind.

    Attributes:
        reason: why.
        names: of the parameters, with ``*`` for the numbers of layers.
        trained: the parameters that require gradients.
        size: all of them.
    """

    reason: str
    names: tuple[str, ...]
    trained: int
    size: int


@dataclass(frozen=True, repr=False)
class Description:
    """What :func:`describe` finds. ``str()`` makes a table of it, ``repr()`` a line.

    Attributes:
        layers: those with a noise level.
        left: what has none.
    """

    layers: tuple[Layer, ...]
    left: tuple[LeftAlone, ...]

    @property
    def noisy(self) -> int:
        """The parameters that are perturbed."""
        return sum(layer.trained for layer in self.layers)

    @property
    def trained(self) -> int:
        """The parameters that require gradients."""
        return self.noisy + sum(left.trained for left in self.left)

    def __repr__(self) -> str:
        return f"<{summary(self.noisy, self.trained, [layer.level for layer in self.layers if layer.trained])}>"

    def __str__(self) -> str:
        rows = [("layer", "role", "shape", "level", "‖n‖", "trained")]
        for layer in self.layers:
            shapes = " + ".join("×".join(map(str, shape)) or "1" for shape in layer.shapes)
            norm = "–" if layer.norm is None else f"{layer.norm:.4g}"
            trained = "yes" if layer.trained == layer.size else "in part" if layer.trained else "no"
            rows.append((layer.name, layer.role, shapes, f"{layer.level:g}", norm, trained))
        lines = [*_table(rows, "<<<>><"), "", repr(self)[1:-1]]
        frozen = sum(layer.size - layer.trained for layer in self.layers)
        if frozen:
            lines.append(f"frozen, and not perturbed until they require gradients: {frozen:,}")
        if self.left:
            rows = [(f"{left.size:,}", f"{left.reason}: {_some(left.names)}") for left in self.left]
            lines += ["left alone:", *(f"  {line}" for line in _table(rows, "><"))]
        return "\n".join(lines)


def describe(optimizer_or_groups: Optimizer | Iterable[dict[str, Any]], model: nn.Module | None = None) -> Description:
    """What noise does to each layer (role, shapes, level, ‖n‖, trained or not), what it leaves alone, and why.

    Args:
        optimizer_or_groups: what :func:`noise_groups` gave, or an optimizer over it. With sharded weights (FSDP2) call
            it on every rank: the norms are summed over all.
        model: tells names and roles where the groups do not, which were made by hand.

    Raises:
        TypeError: a model in place of an optimizer.

    >>> from torch import nn
    >>> from seqssgd.optim import noise_groups
    >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10))
    >>> _ = [nn.init.constant_(p, 0.5) for p in model.parameters()]
    >>> print(describe(noise_groups(model, noise=0.5)))
    layer  role       shape  level    ‖n‖  trained
    0      embedding  10×4     0.5  1.581  yes
    1      dense      10×4     0.5  1.581  yes
    <BLANKLINE>
    noise 0.5 on 80 of 90 trained parameters (88.9 %)
    left alone:
      10  biases, also those of positions and of experts: *.bias
    """
    given: Any = optimizer_or_groups
    if isinstance(given, nn.Module):
        raise TypeError(
            f"describe(optimizer, model) takes the optimizer, or noise_groups(model, noise=...), not the "
            f"{type(given).__name__} alone: the noise levels are in the groups"
        )
    groups = list(getattr(given, "param_groups", given))
    key = getattr(optimizer_or_groups, "level_key", "noise")
    known = {} if model is None else kinds(model)
    layers: list[Layer] = []
    left: dict[str, list[tuple[str, Tensor]]] = {}
    for number, group in enumerate(groups):
        rows = list(_parameters(group, number, known))
        if group.get(key):
            together: dict[str, list[tuple[str, Tensor]]] = {}
            for _, layer, role, p in rows:
                together.setdefault(layer, []).append((role, p))
            layers += [_layer(optimizer_or_groups, group, name, own, group[key]) for name, own in together.items()]
        else:
            for name, _, role, p in rows:
                left.setdefault(LEFT_ALONE.get(role, "level 0"), []).append((name, p))
    return Description(tuple(layers), tuple(_left_alone(reason, own) for reason, own in left.items()))


def summary(noisy: int, trained: int, levels: Sequence[float]) -> str:
    """One line: which levels on how many parameters."""
    if not noisy:
        return f"no noise on {trained:,} trained parameters"
    low, high = min(levels), max(levels)
    level = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    return f"noise {level} on {noisy:,} of {trained:,} trained parameters ({100 * noisy / trained:.1f} %)"


def summary_of_groups(groups: Iterable[Mapping[str, Any]], key: str) -> str:
    """:func:`summary` of parameter groups whose level is their entry ``key``."""
    sizes = [(group.get(key, 0.0), sum(_size(p) for p in group["params"] if p.requires_grad)) for group in groups]
    noisy = [(level, size) for level, size in sizes if level and size]
    return summary(sum(size for _, size in noisy), sum(size for _, size in sizes), [level for level, _ in noisy])


def _parameters(
    group: Mapping[str, Any], number: int, known: Mapping[int, Sequence[Kind]]
) -> Iterator[tuple[str, str, str, Tensor]]:
    """Name, layer, role and tensor of each parameter of ``group``, as far as it tells or is ``known``."""
    params = params_of(group)
    numbered = [f"group {number}, parameter {index}" for index in range(len(params))]
    places = [known.get(id(p), [Kind("", name, name)])[0] for p, name in zip(params, numbered, strict=True)]
    layers = group.get("layers") or [place.layer for place in places]
    names = group.get("names") or group.get("layers") or [place.name for place in places]
    roles = group.get("roles") or [place.kind for place in places]
    return zip(names, layers, roles, params, strict=True)


def _layer(optimizer: Any, group: dict[str, Any], name: str, own: Sequence[tuple[str, Tensor]], level: float) -> Layer:
    trained = [p for _, p in own if p.requires_grad]
    return Layer(
        name,
        ", ".join(dict.fromkeys(role for role, _ in own)),
        tuple(() if is_lazy(p) else tuple(p.shape) for _, p in own),
        float(level),
        _noise_norm(optimizer, group, trained, float(level)),
        sum(map(_size, trained)),
        sum(_size(p) for _, p in own),
    )


def _left_alone(reason: str, own: Sequence[tuple[str, Tensor]]) -> LeftAlone:
    names = tuple(dict.fromkeys(pattern_of(name) for name, _ in own))
    return LeftAlone(reason, names, sum(_size(p) for _, p in own if p.requires_grad), sum(_size(p) for _, p in own))


def _size(p: Tensor) -> int:
    return 0 if is_lazy(p) else p.numel()


def _noise_norm(optimizer: Any, group: dict[str, Any], weights: list[Tensor], level: float) -> float | None:
    """‖n‖ over ``weights``; None if the optimizer's noise has none that is known beforehand."""
    if any(is_lazy(p) or p.is_meta for p in weights):
        return None
    if hasattr(optimizer, "noise_norm"):
        return optimizer.noise_norm(group, weights)
    return None if hasattr(optimizer, "passes") else level * norm_of(weights)


def _table(rows: Sequence[Sequence[str]], align: str) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [[f"{c:{a}{w}}" for c, a, w in zip(row, align, widths, strict=True)] for row in rows]
    return ["  ".join(row).rstrip() for row in cells]


def _some(names: Sequence[str], most: int = 4) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
