"""Symmetric weight noise once more, slow and plain: what the fast optimizer must agree with.

No in-place tricks, no shared code with ``seqssgd.optim`` but the seed of a draw: n is an explicit tensor, its signs are
read bit by bit, w+n and w-n are sums, and the gradients are averaged in a list.
"""

import torch

from seqssgd.optim.noise import _mix


def unit_noise(shapes, distribution, seed, draw, dtype):
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


def scaled_noise(weights, z, level, granularity, layers):
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
    if granularity == "tensor":
        layers = range(len(weights))
    out = []
    for mine, zw in zip(layers, z, strict=True):
        together = [i for i, name in enumerate(layers) if name == mine]
        norm_w = sum(weights[i].pow(2).sum() for i in together).sqrt()
        norm_z = sum(z[i].pow(2).sum() for i in together).sqrt()
        out.append(zw * (level * norm_w / norm_z))
    return out


class TwinSymmetricNoise:
    """``step(gradients_at)`` with ``gradients_at(weights, sign) -> list of gradients`` for every parameter."""

    def __init__(self, base, distribution="rademacher", granularity="layer", signs="batch", seed=0):
        self.base, self.distribution, self.granularity = base, distribution, granularity
        self.signs, self.seed, self.count = signs, seed, 0

    def step(self, gradients_at, shares=(0.5, 0.5)):
        params = [p for group in self.base.param_groups for p in group["params"]]
        levels = [group["noise"] for group in self.base.param_groups for _ in group["params"]]
        layers = [name for group in self.base.param_groups for name in group["layers"]]
        noisy = [i for i, level in enumerate(levels) if level]
        w = [p.detach().clone() for p in params]
        draw = self.count // 2 if self.signs == "steps" else self.count
        z = unit_noise([w[i].shape for i in noisy], self.distribution, self.seed, draw, w[0].dtype)
        noise = [torch.zeros_like(x) for x in w]
        scaled = scaled_noise([w[i] for i in noisy], z, levels[noisy[0]], self.granularity, [layers[i] for i in noisy])
        for i, n in zip(noisy, scaled, strict=True):
            noise[i] = n
        plus = [x + n for x, n in zip(w, noise, strict=True)]
        minus = [x - n for x, n in zip(w, noise, strict=True)]
        if self.signs == "steps":
            mean = gradients_at(minus if self.count % 2 else plus, 0)
        else:
            first, second = gradients_at(plus, 0), gradients_at(minus, 1)
            mean = [shares[0] * a + shares[1] * b for a, b in zip(first, second, strict=True)]
        for p, gradient in zip(params, mean, strict=True):
            p.grad = gradient
        self.base.step()
        self.count += 1
