"""Loss and errors over a line, a plane or a slice of the space of weights, point by point.

A surface is measured in an order that spreads the points early, so that one that was interrupted is a coarse picture.
"""

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError
from ..files import atomic_path

Figures = dict[str, float]


@dataclass
class Plane:
    """Weights w(a, b) = origin + a·first + b·second; a line if there is no second direction.

    Attributes:
        origin, first, second: one tensor for each of the model's parameters.
        positions: points of interest by name, each as (a, b).
    """

    origin: list[Tensor]
    first: list[Tensor]
    second: list[Tensor] | None = None
    positions: dict[str, tuple[float, float]] = field(default_factory=dict)

    def weights(self, a: float, b: float = 0.0) -> list[Tensor]:
        """The weights at a point."""
        moved = [w + a * u for w, u in zip(self.origin, self.first, strict=True)]
        return moved if self.second is None else [w + b * v for w, v in zip(moved, self.second, strict=True)]

    def fingerprint(self) -> str:
        """Of the plane as a set of numbers."""
        digest = hashlib.sha256()
        for tensors in (self.origin, self.first, self.second or []):
            for tensor in tensors:
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def weights_of(model: nn.Module) -> list[Tensor]:
    """Copies of a model's parameters."""
    return [p.detach().clone() for p in model.parameters()]


def line(start: Sequence[Tensor], end: Sequence[Tensor], names: tuple[str, str] = ("start", "end")) -> Plane:
    """The line through two solutions: ``start`` at a = 0, ``end`` at a = 1 (Goodfellow, Vinyals, Saxe 2015).

    Raises:
        ValueError: they are of different models, or equal.
    """
    _check_same_shapes([start, end])
    direction = [b - a for a, b in zip(start, end, strict=True)]
    if not _norm(direction) > 0:
        raise ValueError(f"{names[0]} and {names[1]} have the same weights; there is no line through them")
    return Plane(list(start), direction, None, {names[0]: (0.0, 0.0), names[1]: (1.0, 0.0)})


def plane(solutions: Sequence[Sequence[Tensor]], names: Sequence[str] = ("1", "2", "3")) -> Plane:
    """The plane through three solutions, in an orthonormal basis: distances in the picture are those of the weights.

    Raises:
        ValueError: not three, of different models, or on one line.

    Source: Garipov et al. (NeurIPS 2018), section 3.1.
    """
    if len(solutions) != 3:
        raise ValueError(f"a plane goes through three solutions, not {len(solutions)}")
    _check_same_shapes(solutions)
    origin, *others = solutions
    along = [[b - a for a, b in zip(origin, other, strict=True)] for other in others]
    lengths = [_norm(direction) for direction in along]
    if min(lengths) > 0:
        first = [u / lengths[0] for u in along[0]]
        shared = sum(float((u.double() * v.double()).sum()) for u, v in zip(first, along[1], strict=True))
        rest = [v - shared * u for u, v in zip(first, along[1], strict=True)]
        height = _norm(rest)
    if min(lengths) == 0 or height < 1e-3 * lengths[1]:
        raise ValueError(f"{', '.join(names)} lie on one line (or two are equal): they span no plane")
    second = [v / height for v in rest]
    places = ((0.0, 0.0), (lengths[0], 0.0), (shared, height))
    return Plane(list(origin), first, second, dict(zip(names, places, strict=True)))


def random_slice(weights: Sequence[Tensor], seed: int = 0, name: str = "solution") -> Plane:
    """Two random directions whose every filter has the norm of the filter of the weights; biases and the like stay.

    Source: Li, Xu, Taylor, Studer, Goldstein (NeurIPS 2018), section 4.
    """
    generator = torch.Generator().manual_seed(seed)

    def direction() -> list[Tensor]:
        found = []
        for w in weights:
            d = torch.randn(w.shape, generator=generator, dtype=w.dtype).to(w.device)
            if w.ndim < 2:
                found.append(torch.zeros_like(w))
                continue
            norms = [torch.linalg.vector_norm(t.flatten(1), dim=1) for t in (w, d)]
            scale = norms[0] / (norms[1] + 1e-10)
            found.append(d * scale.view(-1, *[1] * (w.ndim - 1)))
        return found

    return Plane(list(weights), direction(), direction(), {name: (0.0, 0.0)})


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))


def _check_same_shapes(solutions: Sequence[Sequence[Tensor]]) -> None:
    shapes = [[tuple(t.shape) for t in tensors] for tensors in solutions]
    if any(other != shapes[0] for other in shapes[1:]):
        raise ValueError("the solutions are of different models: their parameters have different shapes")


# ---- the values ------------------------------------------------------------------------------------------------------


@dataclass
class Surface:
    """What was measured.

    Attributes:
        a, b: coordinates; ``b`` is [0] of a line.
        values: figures by name, each (len(a), len(b)), NaN where there is none.
        done: which points were measured, (len(a), len(b)).
        positions: as of the :class:`Plane`.
    """

    a: np.ndarray
    b: np.ndarray
    values: dict[str, np.ndarray]
    done: np.ndarray
    positions: dict[str, tuple[float, float]]

    @property
    def complete(self) -> bool:
        """Whether all points were measured."""
        return bool(self.done.all())

    @property
    def missing(self) -> int:
        """Points at which some figure was measured and is not finite."""
        finite = np.all([np.isfinite(value) for value in self.values.values()], axis=0) if self.values else self.done
        return int((self.done & ~finite).sum())


def read_surface(path: str | Path) -> Surface:
    """Reads what :func:`measure` wrote.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            names, places = arrays["names"].tolist(), arrays["places"].tolist()
            values = {key.removeprefix("value/"): arrays[key] for key in arrays.files if key.startswith("value/")}
            positions = {name: tuple(place) for name, place in zip(names, places, strict=True)}
            return Surface(arrays["a"], arrays["b"], values, arrays["done"], positions)
    except FileNotFoundError:
        raise UserError(f"{path}: no such surface; measure it first") from None
    except Exception as error:  # a damaged archive raises almost anything
        raise UserError(f"{path}: no surface, or a damaged one ({type(error).__name__}); delete it") from None


def measure(
    shape: Plane,
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    build: Callable[[], tuple[nn.Module, Callable[[], Figures]]],
    path: str | Path,
    about: str = "",
    processes: int = 1,
    deadline: float = math.inf,
    save_every: float = 20.0,
) -> Surface:
    """Measures figures over a grid, and goes on where an earlier call was interrupted.

    Args:
        shape: the plane or line.
        a, b: coordinates of the grid; ``b`` is [0] for a line.
        build: makes the model and a function that gives its figures at the weights that it has, batch-norm statistics
            taken anew included. Called in every process, so it has to be one that can be pickled if there are several.
        path: of the .npz file, written as a whole every so often.
        about: what the figures depend on beside weights and grid, such as the data.
        processes: that share the points.
        deadline: of :func:`time.monotonic`: no point is begun after it.
        save_every: seconds between writings.

    Returns:
        what is known; see :attr:`Surface.complete`. A figure that is not finite is NaN.

    Raises:
        UserError: the file is of another surface.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    path = Path(path)
    digest = hashlib.sha256(f"{about} {shape.fingerprint()} {a.tolist()} {b.tolist()}".encode()).hexdigest()
    surface = _begun(path, digest) or Surface(a, b, {}, np.zeros((len(a), len(b)), bool), shape.positions)
    waiting = [index for index in _spread(len(a), len(b)) if not surface.done[index]]
    if not waiting:
        return surface
    saved = time.monotonic()
    try:
        with contextlib.closing(_figures(shape, a, b, waiting, build, processes, deadline)) as found:
            for index, figures in found:
                for name, value in figures.items():
                    known = surface.values.setdefault(name, np.full(surface.done.shape, np.nan))
                    known[index] = value if math.isfinite(value) else np.nan
                surface.done[index] = True
                if time.monotonic() - saved > save_every:
                    _save(surface, path, digest)
                    saved = time.monotonic()
    finally:  # Ctrl-C too costs no more than the points in hand
        _save(surface, path, digest)
    return surface


def _begun(path: Path, digest: str) -> Surface | None:
    if not path.exists():
        return None
    surface = read_surface(path)
    with np.load(path, allow_pickle=False) as arrays:
        if str(arrays["digest"]) != digest:
            raise UserError(f"{path}: a surface of other weights, grid or data; choose another folder, or delete it")
    return surface


def _save(surface: Surface, path: Path, digest: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names, places = list(surface.positions), list(surface.positions.values())
    arrays: dict = {f"value/{name}": value for name, value in surface.values.items()}
    arrays |= {"a": surface.a, "b": surface.b, "done": surface.done, "digest": digest}
    arrays |= {"names": np.array(names, dtype=str), "places": np.array(places, dtype=float).reshape(len(places), 2)}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def _spread(rows: int, columns: int) -> list[tuple[int, int]]:
    """All points of a grid: the corners and the middle first, then those half-way between, and so on."""

    def rank(index: int, count: int) -> int:
        step, level = max(1, 2 ** math.ceil(math.log2(max(count - 1, 1)))), 0
        while index % step and index != count - 1:
            step, level = step // 2, level + 1
        return level

    points = [(i, j) for i in range(rows) for j in range(columns)]
    return sorted(points, key=lambda point: (max(rank(point[0], rows), rank(point[1], columns)), point))


def _figures(
    shape: Plane,
    a: np.ndarray,
    b: np.ndarray,
    waiting: list[tuple[int, int]],
    build: Callable[[], tuple[nn.Module, Callable[[], Figures]]],
    processes: int,
    deadline: float,
) -> Generator[tuple[tuple[int, int], Figures], None, None]:
    points = ((index, (float(a[index[0]]), float(b[index[1]]))) for index in waiting)
    if processes == 1:
        worker = _Worker(shape, build)
        for index, place in points:
            if time.monotonic() > deadline:
                return
            yield index, worker(place)
        return
    from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
    from multiprocessing import get_context

    pool = ProcessPoolExecutor(processes, get_context("spawn"), _begin, (shape, build))
    try:
        running: dict = {}
        while True:
            while len(running) < 2 * processes and time.monotonic() <= deadline:
                if (point := next(points, None)) is None:
                    break
                running[pool.submit(_figures_at, point[1])] = point[0]
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED)[0]:
                yield running.pop(future), future.result()
    finally:
        pool.shutdown(cancel_futures=True)


class _Worker:
    """A model whose weights are put where they are asked for."""

    def __init__(self, shape: Plane, build: Callable[[], tuple[nn.Module, Callable[[], Figures]]]):
        self.shape = shape
        self.model, self.figures = build()
        self.params: list[Tensor] = list(self.model.parameters())
        _check_same_shapes([self.params, shape.origin])

    @torch.no_grad()
    def __call__(self, place: tuple[float, float]) -> Figures:
        torch._foreach_copy_(self.params, self.shape.weights(*place))
        return self.figures()


_worker: _Worker | None = None  # of a process of the pool


def _begin(shape: Plane, build: Callable) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = _Worker(shape, build)


def _figures_at(place: tuple[float, float]) -> Figures:
    assert _worker is not None  # which _begin has made
    return _worker(place)
