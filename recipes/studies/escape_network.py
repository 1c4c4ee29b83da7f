"""A network with one hidden layer over data that scikit-learn ships, many copies of it trained side by side."""

import math
from dataclasses import dataclass
from functools import cache

import torch
from scipy.optimize import minimize
from torch import Tensor

from seqssgd.landscape.escape import Passages, WeightNoise, Weights, first_passage

DECAY = 2e-3  # of the L2 penalty ½·DECAY·‖w‖², without which there is no minimum
DATA = {"cancer": "load_breast_cancer", "wine": "load_wine"}


@dataclass(frozen=True)
class Network:
    """Inputs - tanh - softmax with cross entropy and an L2 penalty; weights are [(P, h, n), (P, h), (P, k, h), (P, k)]
    for P copies, n inputs, h hidden units and k classes. Perturbed are the two matrices, as ``noise_groups`` does.

    Attributes:
        inputs: (examples, n), each standardised.
        targets: (examples,), the classes.
    """

    inputs: Tensor
    targets: Tensor
    hidden: int

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        classes = int(self.targets.max()) + 1
        return [(self.hidden, self.inputs.shape[1]), (self.hidden,), (classes, self.hidden), (classes,)]

    def to(self, dtype: torch.dtype) -> "Network":
        return Network(self.inputs.to(dtype), self.targets, self.hidden)

    def loss(self, weights: Weights) -> Tensor:
        """The training loss over all examples, with the penalty, of every copy: (P,)."""
        _, scores = self._forward(weights, None)
        right = scores.gather(1, self.targets.expand(len(scores), 1, -1))
        fit = (scores.logsumexp(1, keepdim=True) - right).mean((1, 2))
        return fit + DECAY / 2 * sum(w.flatten(1).square().sum(1) for w in weights)

    def gradient(self, weights: Weights, batch: Tensor | None = None) -> list[Tensor]:
        """Of the cross entropy alone: the penalty is the optimizer's weight decay, and feels no noise.

        Args:
            batch: (P, B), the examples that each copy sees; None: all.
        """
        hidden, scores = self._forward(weights, batch)
        error = scores.softmax(1)
        targets = (self.targets if batch is None else self.targets[batch]).view(-1, 1, scores.shape[2])
        error.scatter_add_(
            1, targets.expand(len(scores), -1, -1), error.new_full((1, 1, 1), -1).expand_as(error[:, :1])
        )
        error /= scores.shape[2]
        back = (weights[2].mT @ error) * (1 - hidden.square())
        if batch is None:
            first = (back.flatten(0, 1) @ self.inputs).view(weights[0].shape)
        else:
            first = back @ self.inputs[batch]
        return [first, back.sum(2), error @ hidden.mT, error.sum(2)]

    def _forward(self, weights: Weights, batch: Tensor | None) -> tuple[Tensor, Tensor]:
        """Hidden activations (P, h, B) and scores (P, k, B)."""
        first, bias, second, last = weights
        if batch is None:  # all copies in one product
            hidden = (first.flatten(0, 1) @ self.inputs.T).view(*first.shape[:2], -1)
        else:
            hidden = first @ self.inputs[batch].mT
        hidden = hidden.add_(bias.unsqueeze(2)).tanh_()
        return hidden, torch.baddbmm(last.unsqueeze(2), second, hidden)

    def minimum(self, seed: int) -> list[Tensor]:
        """The minimum that L-BFGS, then Newton's method find from random weights, as one copy of float64.

        Raises:
            RuntimeError: it is none: the gradient is not 0 or the Hessian not positive there.
        """
        network = self.to(torch.float64)
        generator = torch.Generator().manual_seed(seed)
        start = [torch.randn(s, generator=generator, dtype=torch.float64) / s[-1] ** 0.5 for s in self.shapes]
        flat = torch.cat([w.flatten() if w.ndim == 2 else torch.zeros_like(w) for w in start])

        def full(flat: Tensor) -> tuple[Tensor, Tensor]:
            weights = self.unflatten(flat)
            gradient = torch.cat([g.flatten() for g in network.gradient(weights)])
            return network.loss(weights)[0], gradient + DECAY * flat

        found = minimize(
            lambda x: tuple(part.numpy() for part in full(torch.from_numpy(x))),
            flat.numpy(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 20_000, "maxfun": 40_000, "ftol": 0, "gtol": 1e-7},
        )
        flat = torch.from_numpy(found.x)
        for _ in range(4):
            flat = flat - torch.linalg.solve(self.hessian(flat), full(flat)[1])
        if not (full(flat)[1].norm() < 1e-10 and torch.linalg.eigvalsh(self.hessian(flat))[0] > 0):
            raise RuntimeError(f"seed {seed}: L-BFGS and Newton's method ended at no minimum; take another seed")
        return [w.clone() for w in self.unflatten(flat)]

    def hessian(self, flat: Tensor) -> Tensor:
        """(N, N), of the loss with its penalty at flat weights (N,), float64."""
        network = self.to(torch.float64)
        return torch.autograd.functional.hessian(lambda x: network.loss(self.unflatten(x))[0], flat)

    def covariance(self, weights: Weights) -> Tensor:
        """(N, N), of the gradients of the single examples at the weights of one copy, float64."""
        network, count = self.to(torch.float64), len(self.inputs)
        copies = [w.double().expand(count, *w.shape[1:]) for w in weights]
        each = torch.cat([g.flatten(1) for g in network.gradient(copies, torch.arange(count).view(-1, 1))], 1)
        return torch.cov(each.T, correction=0)

    def unflatten(self, flat: Tensor) -> list[Tensor]:
        """Weights of P copies from (P, N), or of one copy from (N,)."""
        flat = flat.view(-1, flat.shape[-1])
        sizes = [torch.Size(shape).numel() for shape in self.shapes]
        parts = flat.split(sizes, dim=1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]


@cache
def load(name: str, hidden: int) -> Network:
    """The network over a data set of scikit-learn."""
    from sklearn import datasets

    found = getattr(datasets, DATA[name])()
    inputs, targets = torch.from_numpy(found.data).double(), torch.from_numpy(found.target)
    return Network((inputs - inputs.mean(0)) / inputs.std(0), targets.long(), hidden)


@cache
def solved(data: str, hidden: int, seed: int) -> tuple[Network, list[Tensor]]:
    network = load(data, hidden)
    return network, network.minimum(seed)


@dataclass(frozen=True)
class Training:
    """Copies of a network that start at one minimum and are trained on with SGD and weight decay.

    Attributes:
        data, hidden: of the network. minimum: the seed of the start from which its minimum was sought.
        rate: η.
        batch: B examples a step, drawn with replacement for each copy; of the halves, B/2 each.
        noise: ``minibatch``; ``none``: the gradient of all examples; ``constant``: that and normal noise of the
            covariance that minibatches have at the minimum; ``white``: and isotropic noise of the same trace.
        method, level: of weight noise, ‖n‖ = level·‖w‖ for either matrix, of components ± one size, as seqssgd.optim's
            default.
        levels: of L/L*, L the training loss of all examples with the L2 penalty; whose first passages are timed.
        time: η times steps, at most.
        look: time between looks at the loss.
    """

    data: str
    hidden: int
    minimum: int
    rate: float
    batch: int
    noise: str
    levels: tuple[float, ...]
    time: float
    particles: int
    method: str = "none"
    level: float = 0.0
    look: float = 2.0
    seed: int = 0

    @property
    def unit(self) -> float:
        return self.rate

    def passages(self) -> Passages:
        network, minimum = solved(self.data, self.hidden, self.minimum)
        lowest = float(network.loss(minimum))
        fast, generator = network.to(torch.float32), torch.Generator().manual_seed(self.seed)
        noise = WeightNoise(self.method, [self.level, 0, self.level, 0], seed=self.seed)
        spread = self._spread(network, minimum)

        def step(weights: list[Tensor]) -> list[Tensor]:
            batch = None
            if self.noise == "minibatch":
                batch = torch.randint(len(network.inputs), (len(weights[0]), self.batch), generator=generator)
            gradients = noise.gradient(fast.gradient, weights, batch)
            if spread is not None:
                drawn = torch.randn(len(weights[0]), len(spread), generator=generator) @ spread
                gradients = [g + extra for g, extra in zip(gradients, network.unflatten(drawn), strict=True)]
            return [w - self.rate * (g + DECAY * w) for w, g in zip(weights, gradients, strict=True)]

        start = [w.float().repeat(self.particles, *[1] * (w.ndim - 1)) for w in minimum]
        every = max(1, round(self.look / self.rate))
        steps = math.ceil(self.time / self.rate / every) * every
        return first_passage(start, step, lambda w: fast.loss(w) / lowest, self.levels, steps, every)

    def _spread(self, network: Network, minimum: list[Tensor]) -> Tensor | None:
        """A root of the added noise's covariance, (N, N); None: no noise is added."""
        if self.noise not in ("constant", "white"):
            return None
        covariance = network.covariance(minimum) / self.batch
        if self.noise == "white":
            covariance = torch.eye(len(covariance)) * covariance.trace() / len(covariance)
        values, vectors = torch.linalg.eigh(covariance)
        return (vectors * values.clamp_min(0).sqrt() @ vectors.T).float()

    def predicted(self) -> dict[str, float]:
        return {}
