"""Products of the Hessian of a loss, or of its Gauss-Newton part, with vectors."""

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from ..optim.limits import check_settings
from .fast import FastTwice
from .objective import Objective, weights_restored

Kind = Literal["hessian", "gauss_newton"]
Method = Literal["auto", "exact", "differences"]
# The step of central differences over the norm of the weights, where rounding and curvature of the third order are in
# balance for smooth networks. An absolute step would be spread over millions of weights.
STEP = {torch.float64: 1e-5, torch.float32: 3e-3}
GRAPHS = 2e9
# Functions whose slope jumps: between two points there are kinks, and differences see them while derivatives do not.
_KINKED = re.compile(
    r"(Relu|LeakyRelu|Prelu|Rrelu|Threshold|Hardtanh|Hardswish|Hardsigmoid|Hardshrink|Softshrink|Abs|Clamp|Maximum|"
    r"Minimum|MaxPool|AdaptiveMaxPool|FractionalMaxPool|Max|Min|Amax|Amin)(?![a-z])"
)


class NotDifferentiable(RuntimeError):
    """The network cannot be differentiated twice, and differences are no way out."""


class CurvatureOperator:
    """A symmetric matrix over the weights, known by its products with vectors.

    Args:
        objective: the loss L.
        params: the weights that the matrix is over; None: all that the objective has.
        kind: ``"hessian"``: ∂²L/∂w². ``"gauss_newton"``: Jᵀ (∂²L/∂z²) J with the model's outputs z and J = ∂z/∂w, what
            the Hessian is without the curvature of the outputs; never negative where the loss is convex in z.
        method: ``"exact"``: by differentiating twice. ``"differences"``: (∇L(w + εv) - ∇L(w - εv)) / 2ε with ε from
            :data:`STEP`, for smooth networks. ``"auto"``: exact, or else, if the network is smooth, differences.
        keep_graph: whether the graphs of the gradients stay in memory, so that a product costs one backward pass in
            place of two and a forward pass; None: if there is a single batch, or all graphs take less than
            :data:`GRAPHS` bytes, going by the smallest batch. Then the weights must not be written to while the
            operator is in use.

    Attributes:
        method: the one in use, ``"exact"`` or ``"differences"``.
        reason: why it is not exact, or None.
        products: how many there were.

    Raises:
        ValueError: an unknown choice.
        NotDifferentiable: the network cannot be differentiated twice, and central differences are no way out.

    Source: B. Pearlmutter, Neural Computation 6 (1994); Schraudolph, Neural Computation 14 (2002) for Gauss-Newton.
    """

    def __init__(
        self,
        objective: Objective,
        params: Sequence[Tensor] | None = None,
        kind: Kind = "hessian",
        method: Method = "auto",
        keep_graph: bool | None = None,
    ):
        check_settings(CurvatureOperator, kind=kind, method=method)
        if kind == "gauss_newton" and method == "differences":
            raise ValueError("the Gauss-Newton matrix is not to be had by differences of gradients; use exact")
        self.objective, self.kind = objective, kind
        self.params = objective.params if params is None else list(params)
        single = len(objective.batches) == 1
        self.keep_graph = single if keep_graph is None else keep_graph
        self.size = sum(p.numel() for p in self.params)
        self.dtype, self.device = self.params[0].dtype, self.params[0].device
        self.products, self.reason, self._graphs = 0, None, {}
        self._probed_bytes = 0
        self.method = method if method == "differences" else self._probe(method)
        if keep_graph is None and not single and self.method == "exact":
            shares = [_numbers(batch) for batch in objective.batches]
            self.keep_graph = self._probed_bytes * sum(shares) < GRAPHS * min(shares)

    def __repr__(self) -> str:
        graphs = ", graphs kept" if self.method == "exact" and self.keep_graph else ""
        how = "exact" if self.method == "exact" else f"central differences of {STEP[self.dtype]:g} ‖w‖"
        return f"{self.kind} of {self.size:,} weights over {self.objective.terms:,} loss terms, {how}{graphs}"

    # ---- products ------------------------------------------------------------------------------------------------

    def matvec(self, vector: Tensor) -> Tensor:
        """The product with a vector (size,), in the same order as ``params``."""
        self.products += 1
        pieces = [part.view_as(p) for part, p in zip(vector.split([p.numel() for p in self.params]), self.params,
                                                     strict=True)]  # fmt: skip
        total = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        if self.method == "differences":
            self._add_differences(pieces, total)
            return total
        with self.objective.frozen():
            for index in range(len(self.objective.batches)):
                self._add(self._product(index, pieces), total)
        return total

    def _product(self, index: int, pieces: list[Tensor]) -> Sequence[Tensor | None]:
        graph: Any = self._graphs.get(index)
        if graph is None:
            batch = self.objective.batches[index]
            graph = self._hessian_graph(batch) if self.kind == "hessian" else self._gauss_newton_graph(batch)
            if self.keep_graph:
                self._graphs[index] = graph
        if self.kind == "hessian":
            return self._grad(graph, self.params, pieces)
        outputs, of_leaf, leaf, transposed, dual = graph
        moved = self._grad(transposed, [dual], pieces, keep=True)[0]  # J v
        weighed = None if moved is None else self._grad([of_leaf], [leaf], [moved])[0]  # ∂²L/∂z² J v
        return [None] * len(self.params) if weighed is None else self._grad([outputs], self.params, [weighed])

    def _grad(
        self, outputs: Sequence[Tensor | None], inputs: Sequence[Tensor], vectors: Sequence[Tensor], keep: bool = False
    ) -> Sequence[Tensor | None]:
        pairs = [(o, v) for o, v in zip(outputs, vectors, strict=True) if o is not None and o.requires_grad]
        if not pairs:
            return [None] * len(inputs)
        at, along = zip(*pairs, strict=True)
        return torch.autograd.grad(at, inputs, along, retain_graph=self.keep_graph or keep, allow_unused=True)

    def _hessian_graph(self, batch: Any) -> tuple[Tensor | None, ...]:
        """The gradient of the batch's share of L, with its graph."""
        objective = self.objective
        with FastTwice():
            loss = objective.losses(objective.outputs(batch), batch).sum() / objective.terms
        return torch.autograd.grad(loss, self.params, create_graph=True, allow_unused=True)

    def _gauss_newton_graph(self, batch: Any) -> tuple:
        """z, ∂L/∂z as a function of a copy of z, and Jᵀu as a function of u, whose derivative along v is J v."""
        objective = self.objective
        with FastTwice():
            outputs = objective.outputs(batch)
        leaf = outputs.detach().requires_grad_()
        loss = objective.losses(leaf, batch).sum() / objective.terms
        (of_leaf,) = torch.autograd.grad(loss, leaf, create_graph=True)
        dual = torch.zeros_like(outputs, requires_grad=True)
        transposed = torch.autograd.grad(outputs, self.params, dual, create_graph=True, allow_unused=True)
        return outputs, of_leaf, leaf, transposed, dual

    def _add(self, gradients: Sequence[Tensor | None], total: Tensor, scale: float = 1.0) -> None:
        parts = total.split([p.numel() for p in self.params])
        for part, gradient in zip(parts, gradients, strict=True):
            if gradient is not None:
                part.add_(gradient.detach().reshape(-1), alpha=scale)

    @torch.no_grad()
    def _add_differences(self, pieces: list[Tensor], total: Tensor) -> None:
        norm = torch.cat([piece.reshape(-1) for piece in pieces]).norm()
        weights = torch.cat([p.reshape(-1) for p in self.params]).norm()
        if norm == 0:
            return
        step = (STEP.get(self.dtype, STEP[torch.float32]) * weights / norm).item()
        with weights_restored(self.params) as saved:
            for sign in (1, -1):
                for p, w, piece in zip(self.params, saved, pieces, strict=True):
                    torch.add(w, piece, alpha=sign * step, out=p)
                with torch.enable_grad():
                    gradients = self.objective.gradient()
                known = {id(p): g for p, g in zip(self.objective.params, gradients, strict=True)}
                self._add([known[id(p)] for p in self.params], total, sign / (2 * step))

    # ---- whether it can be done ------------------------------------------------------------------------------------

    def _probe(self, method: str) -> str:
        """Tries a product on the batch with the fewest numbers in it."""
        batch = min(self.objective.batches, key=_numbers)
        trial = self  # of a single batch: its graph is needed anyway
        if len(self.objective.batches) > 1:
            trial = copy.copy(self)
            trial.objective, trial.keep_graph, trial._graphs = copy.copy(self.objective), True, {}
            trial.objective.batches = [batch]
        try:
            with self.objective.frozen():
                self._check_differentiable(batch)
                ones = [torch.ones_like(p) for p in self.params]
                if trial is self:
                    trial._product(0, ones)
                else:
                    with _saved_bytes() as saved:
                        trial._product(0, ones)
                    (graph,) = trial._graphs.values()
                    saved |= _held_bytes(_nodes(_tensors(graph)))
                    self._probed_bytes = sum(saved.values())
            return "exact"
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            self._graphs = {}
            found = re.search(r"derivative for '?(\S+?)'? is not implemented", str(error))
            self.reason = f"no second derivative of {found[1]}" if found else str(error).splitlines()[0]
        kinks = self._kinks(batch)
        if method == "exact" or self.kind == "gauss_newton" or kinks:
            why = f"; differences of gradients would be wrong, as the network has kinks ({kinks})" if kinks else ""
            hint = "; take seqssgd.landscape.ctc_loss" if "ctc" in self.reason else ""
            raise NotDifferentiable(f"{type(self.objective.model).__name__}: {self.reason}{why}{hint}")
        return "differences"

    def _check_differentiable(self, batch: Any) -> None:
        """Autograd takes what was marked as differentiable once for a constant, without a word."""
        loss = self.objective.losses(self.objective.outputs(batch), batch).sum()
        gradients = torch.autograd.grad(loss, self.params, create_graph=True, allow_unused=True)
        if any(node.name() == "torch::autograd::Error" for node in _nodes(gradients)):
            kind = torch.autograd.function.BackwardCFunction
            own = {type(node).__name__ for node in _nodes([loss]) if isinstance(node, kind)}
            raise RuntimeError(
                f"no second derivative of a function that is differentiable once ({', '.join(sorted(own))})"
            )

    def _kinks(self, batch: Any) -> str:
        """The names of functions with kinks between weights and loss; empty if it is smooth."""
        with self.objective.frozen():
            loss = self.objective.losses(self.objective.outputs(batch), batch).sum()
        found = [_KINKED.match(node.name()) for node in _nodes([loss])]
        return ", ".join(sorted({match[0] for match in found if match}))


@contextmanager
def _saved_bytes() -> Iterator[dict[int, int]]:
    """How many bytes graphs that are built inside hold, by address."""
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # no cycle of an output with its own node

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


def _tensors(graph: Any) -> list[Tensor]:
    if isinstance(graph, Tensor):
        return [graph]
    return [tensor for part in graph or () for tensor in _tensors(part)]


def _held_bytes(nodes: set[Any]) -> dict[int, int]:
    """How many bytes nodes of our own hold beside what they saved, as the recursions of CTC do, by address."""
    found: dict[int, int] = {}
    waiting: list[Any] = [vars(node) for node in nodes if isinstance(node, torch.autograd.function.BackwardCFunction)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, (tuple, list)):
            waiting.extend(value)
        elif isinstance(value, dict):
            waiting.extend(value.values())
        elif type(value).__module__.startswith(f"{__package__}."):
            waiting.extend(vars(value).values())
    return found


def _nodes(tensors: Sequence[Tensor | None]) -> set[Any]:
    """The nodes of the graphs of some tensors."""
    seen: set[Any] = set()
    waiting = [tensor.grad_fn for tensor in tensors if tensor is not None]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return seen


def _numbers(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return batch.numel()
    return sum(map(_numbers, batch)) if isinstance(batch, (tuple, list)) else 0
