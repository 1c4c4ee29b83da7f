"""What products with a matrix tell of it: its largest eigenvalues, its trace, and how its eigenvalues are spread."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


class Matrix(Protocol):
    """A symmetric matrix, such as :class:`seqssgd.landscape.CurvatureOperator`."""

    size: int
    dtype: torch.dtype
    device: torch.device
    matvec: Callable[[Tensor], Tensor]


class Estimate(NamedTuple):
    """A value with the bounds of its 95 % confidence interval."""

    value: float
    low: float
    high: float


def mean(samples: Sequence[float] | np.ndarray) -> Estimate:
    """The mean of independent samples, with the interval of Student's t; unbounded for fewer than two."""
    from scipy.stats import t

    samples = np.asarray(samples, dtype=np.float64)
    middle, count = float(samples.mean()), len(samples)
    if count < 2:
        return Estimate(middle, -math.inf, math.inf)
    half = float(t.ppf(0.975, count - 1) * samples.std(ddof=1) / math.sqrt(count))
    return Estimate(middle, middle - half, middle + half)


def as_linear_operator(matrix: Matrix) -> "LinearOperator":
    """The matrix for :mod:`scipy.sparse.linalg`."""
    from scipy.sparse.linalg import aslinearoperator

    dtype = np.float64 if matrix.dtype == torch.float64 else np.float32

    def matvec(vector: np.ndarray) -> np.ndarray:
        given = torch.as_tensor(vector.reshape(-1), dtype=matrix.dtype, device=matrix.device)
        return matrix.matvec(given).cpu().numpy().astype(dtype)

    return aslinearoperator(_Products((matrix.size, matrix.size), np.dtype(dtype), matvec))


class _Products:
    """What scipy takes for a linear operator."""

    def __init__(self, shape: tuple[int, int], dtype: np.dtype, matvec: Callable[[np.ndarray], np.ndarray]):
        self.shape, self.dtype, self.matvec = shape, dtype, matvec


class NotConverged(RuntimeError):
    """An iteration came to its limit."""


class Eigenpairs(NamedTuple):
    """``values`` (k,), the largest first, and their ``vectors`` (size, k)."""

    values: np.ndarray
    vectors: np.ndarray


def top_eigenvalues(
    matrix: Matrix,
    count: int = 1,
    tolerance: float = 1e-4,
    start: np.ndarray | None = None,
    restarts: int = 30,
    basis: int = 20,
) -> Eigenpairs:
    """The largest eigenvalues, by ARPACK.

    Args:
        matrix: the matrix.
        count: how many.
        tolerance: relative, of an eigenvalue.
        start: a vector to start from, near the first one if it is known; None: one that is the same in every call.
        restarts: at most so many; each costs up to ``basis`` products.
        basis: vectors of the matrix's size that are held, and the fewest products; few will do from a good start.

    Raises:
        NotConverged: they did not converge.

    Source: Lehoucq, Sorensen, Yang, ARPACK Users' Guide (1998).
    """
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh

    if matrix.size <= max(count + 1, 20):
        dense = np.stack([matrix.matvec(row).cpu().double().numpy() for row in _unit_vectors(matrix)])
        values, vectors = np.linalg.eigh((dense + dense.T) / 2)
        return Eigenpairs(values[::-1][:count], vectors[:, ::-1][:, :count])
    if start is None:
        start = np.random.default_rng(0).standard_normal(matrix.size)
    operator = as_linear_operator(matrix)
    try:
        settings: dict = {"which": "LA", "tol": tolerance, "v0": start.astype(operator.dtype)}
        settings |= {"maxiter": restarts, "ncv": min(max(basis, 2 * count + 1), matrix.size)}
        values, vectors = eigsh(operator, count, **settings)
    except ArpackNoConvergence as error:
        raise NotConverged(
            f"the largest eigenvalues did not converge to {tolerance:g} in {restarts} restarts "
            f"({len(error.eigenvalues)} of {count} did); allow more restarts or a larger tolerance"
        ) from None
    order = np.argsort(values)[::-1]
    return Eigenpairs(values[order].astype(np.float64), vectors[:, order])


def trace(matrix: Matrix, products: int = 30, seed: int = 0) -> Estimate:
    """The trace, by Hutch++: exact on the span of some products, and a mean over random signs for the rest.

    Args:
        matrix: the matrix.
        products: in all, at least 6; a third makes the span, a third its trace, a third the rest.
        seed: of the random signs.

    Raises:
        ValueError: fewer than 6 products.

    Source: Meyer, Musco, Musco, Woodruff, "Hutch++" (SOSA 2021), Algorithm 1.
    """
    if products < 6:
        raise ValueError(f"products={products}: there must be at least 6")
    third = min(products // 3, matrix.size)
    generator = torch.Generator().manual_seed(seed)
    sketch = torch.stack([matrix.matvec(_signs(matrix, generator)) for _ in range(third)], 1)
    span = torch.linalg.qr(sketch)[0]
    on_span = sum(float(column @ matrix.matvec(column)) for column in span.T)
    rest = []
    for _ in range(products - 2 * third):
        vector = _signs(matrix, generator)
        vector = vector - span @ (span.T @ vector)
        rest.append(float(vector @ matrix.matvec(vector)))
    return Estimate(*(on_span + bound for bound in mean(rest)))


def spectral_density(matrix: Matrix, steps: int = 30, probes: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """How the eigenvalues are spread, by stochastic Lanczos quadrature with full reorthogonalisation.

    Args:
        matrix: the matrix; ``steps`` vectors of its size are held.
        steps: products of a probe.
        probes: random starting vectors.
        seed: of these.

    Returns:
        nodes and weights, each (probes, steps): the share of eigenvalues near a node is its weight, averaged over the
        probes. A smaller matrix has fewer nodes; the others have weight 0.

    Source: Ubaru, Chen, Saad, SIAM J. Matrix Anal. Appl. 38 (2017); Ghorbani, Krishnan, Xiao (ICML 2019).
    """
    nodes, weights = np.zeros((probes, steps)), np.zeros((probes, steps))
    generator = torch.Generator().manual_seed(seed)
    for probe in range(probes):
        vector = _signs(matrix, generator) / math.sqrt(matrix.size)
        basis, diagonal, beside = [vector], [], []
        for _ in range(min(steps, matrix.size)):
            product = matrix.matvec(basis[-1])
            diagonal.append(float(product @ basis[-1]))
            for _ in range(2):  # once is not enough in single precision
                for known in basis:
                    product = product - (product @ known) * known
            norm = float(product.norm())
            if norm <= 1e-6 * max(map(abs, diagonal)) or len(diagonal) == min(steps, matrix.size):
                break
            beside.append(norm)
            basis.append(product / norm)
        found, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
        nodes[probe, : len(found)], weights[probe, : len(found)] = found, vectors[0] ** 2
    return nodes, weights


@dataclass
class LayerTraces:
    """tr H of every layer, from products with random signs over all layers at once.

    Attributes:
        names: of the layers.
        samples: (probes, layers): rᵀ(Hr) over the layer.
        squared_norms: ‖w_l‖² of every layer.
        sizes: its number of weights N_l.
    """

    names: list[str]
    samples: np.ndarray
    squared_norms: np.ndarray
    sizes: np.ndarray

    def of_layer(self, index: int) -> Estimate:
        """tr H_l."""
        return mean(self.samples[:, index])

    @property
    def total(self) -> Estimate:
        """The trace over all these layers."""
        return mean(self.samples.sum(1))

    @property
    def relative(self) -> Estimate:
        """R = Σ_l ‖w_l‖²/N_l · tr H_l: to second order, noise of level c raises the loss by ½c²R."""
        return mean(self.samples @ (self.squared_norms / self.sizes))

    def relative_of_layer(self, index: int) -> Estimate:
        """The layer's part of R."""
        return mean(self.samples[:, index] * (self.squared_norms[index] / self.sizes[index]))


def layer_traces(matrix: Matrix, params: Sequence[Tensor], layers: Sequence[str], probes: int = 6, seed: int = 0
                 ) -> LayerTraces:  # fmt: skip
    """The trace of every layer's own block, by Hutchinson's estimate.

    Args:
        matrix: over ``params`` and no others.
        params: the weights.
        layers: the name of the layer of each; those with one name are one layer, as in
            :func:`seqssgd.optim.noise_groups`.
        probes: products.
        seed: of the random signs.
    """
    names = list(dict.fromkeys(layers))
    number = torch.tensor([names.index(layer) for layer in layers])
    counts = torch.tensor([p.numel() for p in params])
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for _ in range(probes):
        signs = _signs(matrix, generator)
        product = (signs * matrix.matvec(signs)).split(counts.tolist())
        of_tensors = torch.stack([part.double().sum().cpu() for part in product])
        samples.append(torch.zeros(len(names), dtype=torch.double).index_add(0, number, of_tensors).numpy())
    norms = torch.stack([p.detach().double().square().sum().cpu() for p in params])
    zeros = torch.zeros(len(names), dtype=torch.double)
    squared = zeros.index_add(0, number, norms).numpy()
    return LayerTraces(names, np.stack(samples), squared, zeros.index_add(0, number, counts.double()).numpy())


def _signs(matrix: Matrix, generator: torch.Generator) -> Tensor:
    bits = torch.randint(2, (matrix.size,), generator=generator, dtype=torch.int8)
    return (2 * bits - 1).to(matrix.device, matrix.dtype)


def _unit_vectors(matrix: Matrix) -> Tensor:
    return torch.eye(matrix.size, dtype=matrix.dtype, device=matrix.device)
