r"""S-SGD once more, slow and plain: the place where the paper's Eq. 3 is read as code.

.. math:: w \leftarrow w - \eta\,\tfrac12\bigl(\nabla L(w+n) + \nabla L(w-n)\bigr), \qquad \|n\|_2 = c\,\|w\|_2

(Sung, Choi, Park, Choi, Shin 2020). No in-place tricks, and no code of the fast :class:`~seqssgd.optim.SymmetricNoise`
but the seed of a draw: n is a tensor of its own, its signs are read bit by bit, w+n and w-n are sums, and the two
gradients are lists. The tests hold the fast one to this one, for every optimizer of ``torch.optim``.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from .noise import Distribution, Granularity, _mix

Gradients = list[Tensor]


class ReferenceSymmetricNoise:
    """Steps ``base`` as Eq. 3 says.

    Args:
        base: over groups of :func:`seqssgd.optim.noise_groups`.
        distribution, granularity, signs, seed: as of :class:`~seqssgd.optim.SymmetricNoise`; of the ``signs``,
            ``"batch"``, ``"halves"`` and ``"steps"``.
    """

    distribution: Distribution
    granularity: Granularity

    def __init__(
        self,
        base: Optimizer,
        distribution: Distribution = "rademacher",
        granularity: Granularity = "layer",
        signs: str = "batch",
        seed: int = 0,
    ):
        self.base, self.distribution, self.granularity = base, distribution, granularity
        self.signs, self.seed, self.count = signs, seed, 0

    def step(
        self, gradients_at: Callable[[list[Tensor], int], Sequence[Tensor]], shares: tuple[float, float] = (0.5, 0.5)
    ) -> None:
        """One step.

        Args:
            gradients_at: gives the gradients, in the order of the groups, at some weights; its second argument is the
                number of the pass.
            shares: how much the gradient at w+n counts, and how much that at w-n: the sizes of the halves.
        """
        params = [p for group in self.base.param_groups for p in group["params"]]
        w = [p.detach().clone() for p in params]
        n = self.noise(w)
        plus = [x + y for x, y in zip(w, n, strict=True)]
        minus = [x - y for x, y in zip(w, n, strict=True)]
        if self.signs == "steps":  # a sign a step, both of the same n
            mean = gradients_at(minus if self.count % 2 else plus, 0)
        else:
            first, second = gradients_at(plus, 0), gradients_at(minus, 1)
            mean = [shares[0] * a + shares[1] * b for a, b in zip(first, second, strict=True)]
        for p, gradient in zip(params, mean, strict=True):
            p.grad = gradient
        self.base.step()
        self.count += 1

    def noise(self, w: list[Tensor]) -> list[Tensor]:
        """n for all the weights ``w``, 0 for those without a level."""
        levels = [group["noise"] for group in self.base.param_groups for _ in group["params"]]
        layers = [name for group in self.base.param_groups for name in group["layers"]]
        noisy = [i for i, level in enumerate(levels) if level]
        draw = self.count // 2 if self.signs == "steps" else self.count
        z = unit_noise([w[i].shape for i in noisy], self.distribution, self.seed, draw, w[0].dtype)
        noise = [torch.zeros_like(x) for x in w]
        scaled = scaled_noise([w[i] for i in noisy], z, levels[noisy[0]], self.granularity, [layers[i] for i in noisy])
        for i, n in zip(noisy, scaled, strict=True):
            noise[i] = n
        return noise


def unit_noise(
    shapes: Sequence[Sequence[int]], distribution: Distribution, seed: int, draw: int, dtype: torch.dtype
) -> list[Tensor]:
    """The unscaled noise of one draw for weights of ``shapes``, in their order."""
    generator = torch.Generator().manual_seed(_mix(seed, draw, 0, 0))
    noise = []
    for shape in shapes:
        count = torch.Size(shape).numel()
        if distribution == "gaussian":
            z = torch.empty(count, dtype=dtype).normal_(generator=generator)
        elif distribution == "uniform":
            z = torch.empty(count, dtype=dtype).uniform_(-1, 1, generator=generator)
        else:
            words = torch.empty((count + 63) // 64, dtype=torch.int64).random_(-(2**63), None, generator=generator)
            words = [word % 2**64 for word in words.tolist()]
            bits = [(words[k // 64] >> (k % 64)) & 1 for k in range(count)]
            z = torch.tensor([1.0 if bit else -1.0 for bit in bits], dtype=dtype)
        noise.append(z.reshape(shape))
    return noise


def scaled_noise(
    weights: Sequence[Tensor], z: Sequence[Tensor], level: float, granularity: Granularity, layers: Sequence[str]
) -> list[Tensor]:
    """Scales ``z`` so that every unit of the granularity has norm level·‖w‖, or its elements the level's size."""
    if granularity == "absolute":
        return [level * zw for zw in z]
    if granularity == "filter_std":
        out = []
        for w, zw in zip(weights, z, strict=True):
            out.append(torch.stack([level * wf.norm() * zf for wf, zf in zip(w, zw, strict=True)]))
        return out
    if granularity == "filter":
        out = []
        for w, zw in zip(weights, z, strict=True):
            out.append(torch.stack([zf * (level * wf.norm() / zf.norm()) for wf, zf in zip(w, zw, strict=True)]))
        return out
    names = [str(i) for i in range(len(weights))] if granularity == "tensor" else layers
    out = []
    for mine, zw in zip(names, z, strict=True):
        together = [i for i, name in enumerate(names) if name == mine]
        norm_w = torch.cat([weights[i].flatten() for i in together]).norm()
        norm_z = torch.cat([z[i].flatten() for i in together]).norm()
        out.append(zw * (level * norm_w / norm_z))
    return out
