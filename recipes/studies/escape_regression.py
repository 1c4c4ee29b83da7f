"""Linear regression with targets that do not depend on the inputs, the case that Mori et al. (2022) solve."""

from dataclasses import dataclass

import torch
from torch import Tensor

from seqssgd.landscape.escape import Passages, first_passage
from seqssgd.landscape.escape_theory import mean_first_passage, mori_exponent


@dataclass(frozen=True)
class Regression:
    """Loss ½(y - w·x)² with x and y standard normal, new in every step: L(w) = ½(1 + ‖w‖²), H = I, L* = ½ at w = 0.

    Attributes:
        dimensions: d, of x and w.
        rate: η.
        batch: B.
        noise: ``minibatch``: the gradient of B examples; ``constant``: the full gradient and normal noise of the
            covariance that minibatches have at the minimum, I/B, which is white here.
        levels: of L/L*, whose first passages are timed.
        time: η times steps, at most.
    """

    dimensions: int
    rate: float
    batch: int
    noise: str
    levels: tuple[float, ...]
    time: float
    particles: int
    seed: int = 0

    @property
    def unit(self) -> float:
        return self.rate

    def passages(self) -> Passages:
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        def step(weights: list[Tensor]) -> list[Tensor]:
            w = weights[0]
            if self.noise == "constant":
                return [w - self.rate * (w + normal(*w.shape) / self.batch**0.5)]
            inputs = normal(len(w), self.batch, self.dimensions)
            errors = (inputs @ w.unsqueeze(2)).squeeze(2) - normal(len(w), self.batch)
            return [w - self.rate * (errors.unsqueeze(1) @ inputs).squeeze(1) / self.batch]

        start = torch.zeros(self.particles, self.dimensions)
        value = lambda weights: 1 + weights[0].square().sum(1)  # noqa: E731
        return first_passage([start], step, value, self.levels, int(self.time / self.rate))

    def predicted(self) -> dict[str, list[float]]:
        """Mean times to each level of the diffusion with the same mean and covariance of steps, ``exact`` for it.

        The covariance of a gradient is (1 + ‖w‖²)I + wwᵀ; Mori et al. leave the last term out, which their theory does
        not see and which is along the way out: their time is ``mori``.
        """
        d, temperature, tiny = self.dimensions, self.rate / (2 * self.batch), 1e-6
        grows = {"exact": (0, 0) if self.noise == "constant" else (2, 1)}
        if self.noise == "minibatch":
            grows["mori"] = (1, 1)
        found = {}
        for name, (along, across) in grows.items():

            def drift(r: float, across: int = across) -> float:
                return -r + (d - 1) / r * temperature * (1 + across * r * r)

            def diffusion(r: float, along: int = along) -> float:
                return temperature * (1 + along * r * r)

            ends = [(level - 1) ** 0.5 for level in self.levels]
            found[name] = [mean_first_passage(tiny, end, tiny, drift, diffusion) for end in ends]
        return found

    @property
    def exponent(self) -> float:
        """Mori et al.'s power of the level."""
        return mori_exponent(1.0, self.rate / self.batch, self.dimensions)
