"""The methods that S-SGD is compared with: how each is made for a small network, and its equation, slow and plain.

An equation gets the weights w, a function gradient(weights, examples), and the number of steps done; it gives the
gradient that the step is to use. Parameters are in the order of the network's: weight, bias, weight, bias.
"""

import torch
from torch import nn

from seqssgd.optim import (
    IVON,
    MRWP,
    MSAM,
    NSO,
    SAM,
    CovarianceNoise,
    DropConnect,
    OneSidedNoise,
    RandomNoise,
    ShapedNoise,
    SymmetricNoise,
    noise_groups,
)
from seqssgd.optim.halves import Halves
from seqssgd.optim.reference import scaled_noise, unit_noise

X, Y = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).double(), torch.ones(5, 2).double()
SEED = 6


def network(dtype=torch.float64):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)


def losses_of(model, x=X, y=Y):
    dtype = next(model.parameters()).dtype
    return (model(x.to(dtype)) - y.to(dtype)).square().mean(1)


def loss_of(model):
    return losses_of(model).mean()


def bits(model):
    return [p.detach().clone() for p in model.parameters()]


def same_bits(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


ALL = slice(None)


def perturbation(w, draw, distribution, granularity, level):
    matrices = [0, 2]
    z = unit_noise([w[i].shape for i in matrices], distribution, SEED, draw, torch.float64)
    noise = [torch.zeros_like(x) for x in w]
    for i, n in zip(matrices, scaled_noise([w[i] for i in matrices], z, level, granularity, ["0", "2"]), strict=True):
        noise[i] = n
    return noise


def plus(w, n, factor=1.0):
    return [x + factor * y for x, y in zip(w, n, strict=True)]


def combined(*weighted):
    return [sum(factor * g for factor, g in zip(*pair, strict=True)) for pair in _columns(weighted)]


def _columns(weighted):
    factors, gradients = zip(*weighted, strict=True)
    return [(factors, column) for column in zip(*gradients, strict=True)]


def one_sided(copies, *noise):
    def equation(w, gradient, step):
        points = [plus(w, perturbation(w, step * copies + i, *noise)) for i in range(copies)]
        return combined(*[(1 / copies, gradient(point, ALL)) for point in points])

    return equation


def nso(pairs, clean_weight, *noise):
    def equation(w, gradient, step):
        terms = [(clean_weight, gradient(w, ALL))]
        for i in range(pairs):
            n = perturbation(w, step * pairs + i, *noise)
            terms += [((1 - clean_weight) / (2 * pairs), gradient(plus(w, n, sign), ALL)) for sign in (+1, -1)]
        return combined(*terms)

    return equation


def mrwp(clean_weight, *noise):
    def equation(w, gradient, step):
        noisy = gradient(plus(w, perturbation(w, step, *noise)), slice(2, 5))
        return combined((clean_weight, gradient(w, slice(0, 2))), (1 - clean_weight, noisy))

    return equation


def sam(rho, eta=None, moved=(0, 1, 2, 3)):
    def equation(w, gradient, step):
        g = gradient(w, ALL)
        scale = [x.abs() + eta if eta else torch.ones_like(x) for x in w]
        norm = torch.cat([(scale[i] * g[i]).flatten() for i in moved]).norm()
        e = [rho * scale[i] ** 2 * g[i] / norm if i in moved else torch.zeros_like(g[i]) for i in range(4)]
        return gradient(plus(w, e), ALL)

    return equation


def dropconnect(q):
    def equation(w, gradient, step):
        uniform = unit_noise([w[0].shape, w[2].shape], "uniform", SEED, step, torch.float64)
        kept = [(u >= 2 * q - 1).double() / (1 - q) for u in uniform]
        masks = [kept[0], torch.ones_like(w[1]), kept[1], torch.ones_like(w[3])]
        g = gradient([x * m for x, m in zip(w, masks, strict=True)], ALL)
        return [y * m for y, m in zip(g, masks, strict=True)]

    return equation


def covariance(s, diagonal, centred=False):
    def equation(w, gradient, step):
        (epsilon,) = unit_noise([(len(X),)], "gaussian", SEED, step, torch.float64)
        epsilon = epsilon - centred * epsilon.mean()
        each = [gradient(w, slice(i, i + 1)) for i in range(len(X))]
        noise = combined(*[(s * epsilon[i] / len(X), g) for i, g in enumerate(each)])
        if diagonal:
            signs = unit_noise([x.shape for x in w], "rademacher", SEED, step, torch.float64)
            noise = [n * sign for n, sign in zip(noise, signs, strict=True)]
        return plus(gradient(w, ALL), noise)

    return equation


def msam(rho):
    momentum = []

    def equation(w, gradient, step):
        v = momentum if step else [torch.zeros_like(x) for x in w]
        size = torch.cat([x.flatten() for x in v]).norm()
        g = gradient(plus(w, v, -rho / size if step else 0.0), ALL)
        momentum[:] = [0.9 * x + y + 1e-2 * z for x, y, z in zip(v, g, w, strict=True)]  # as SGD in the test has it
        return g

    return equation


def ahead(level):
    def make(model, level=level, **base):
        return MSAM(torch.optim.SGD(model.parameters(), **base), rho=level)

    return make


def weighed(level, **settings):
    def make(model, level=level, **base):
        return CovarianceNoise(torch.optim.SGD(model.parameters(), **base), noise=level, seed=SEED, **settings)

    return make


def noisy(method, level, **settings):
    def make(model, level=level, **base):
        return method(torch.optim.SGD(noise_groups(model, noise=level), **base), seed=SEED, **settings)

    return make


def sharp(level, **settings):
    def make(model, level=level, **base):
        return SAM(torch.optim.SGD(model.parameters(), **base), rho=level, **settings)

    return make


def variational(**settings):
    def make(model, level=1.0, *, momentum=0.9, **base):
        groups = [{"params": list(model.parameters()), "noise": level}]
        return IVON(groups, betas=(momentum, 0.9), ess=50.0, hess_init=0.5, seed=SEED, **base, **settings)

    return make


class Split(RandomNoise):
    """S-SGD by halves, in a class without a setting for it."""

    def pass_signs(self):
        return (+1, -1)

    def share(self):
        return Halves()


UNIFORM, GAUSSIAN = dict(distribution="uniform"), dict(distribution="gaussian")
METHODS = {  # name: how it is made, the equation (None: it has a test of its own), the passes of a step
    "weight_noise": (noisy(OneSidedNoise, 0.4), one_sided(1, "rademacher", "layer", 0.4), 1),
    "two_draws": (noisy(OneSidedNoise, 0.4, copies=2), one_sided(2, "rademacher", "layer", 0.4), 2),
    "smoothout": (
        noisy(OneSidedNoise, 0.2, granularity="absolute", **UNIFORM), one_sided(1, "uniform", "absolute", 0.2), 1,
    ),
    "adasmoothout": (
        noisy(OneSidedNoise, 0.3, copies=3, granularity="filter", **UNIFORM), one_sided(3, "uniform", "filter", 0.3), 3,
    ),
    "graves": (
        noisy(OneSidedNoise, 0.1, granularity="absolute", **GAUSSIAN), one_sided(1, "gaussian", "absolute", 0.1), 1,
    ),
    "nso": (noisy(NSO, 0.1), nso(1, 0.0, "gaussian", "absolute", 0.1), 2),
    "nso_clean": (
        noisy(NSO, 0.1, pairs=2, clean_weight=0.3), nso(2, 0.3, "gaussian", "absolute", 0.1), 5,
    ),
    "mrwp": (noisy(MRWP, 0.1), mrwp(0.5, "gaussian", "filter_std", 0.1), 2),
    "mrwp_clean": (noisy(MRWP, 0.1, clean_weight=0.2), mrwp(0.2, "gaussian", "filter_std", 0.1), 2),
    "sam": (sharp(0.3), sam(0.3), 2),
    "asam": (sharp(0.5, adaptive=True, eta=0.1), sam(0.5, eta=0.1), 2),
    "covariance": (weighed(1.5), covariance(1.5, diagonal=False), 1),
    "covariance_diagonal": (weighed(1.5, diagonal=True), covariance(1.5, diagonal=True), 2),
    "covariance_centred": (weighed(1.5, centred=True), covariance(1.5, diagonal=False, centred=True), 1),
    "msam": (ahead(0.3), msam(0.3), 1),
    "dropconnect": (noisy(DropConnect, 0.4), dropconnect(0.4), 1),
    "ssgd_shaped": (noisy(ShapedNoise, 0.3), None, 2),
    "ssgd_shaped_halves": (noisy(ShapedNoise, 0.3, signs="halves"), None, 2),
    "ssgd_balanced": (noisy(SymmetricNoise, 0.3, balance=True), None, 2),
    "ssgd_shaped_step": (noisy(ShapedNoise, 0.3, precondition=True, average_over="row"), None, 2),
    "ivon": (variational(), None, 1),
    "ivon_square": (variational(estimate="square"), None, 1),
    "ivon_batch": (variational(signs="batch"), None, 2),
    "ivon_layers": (variational(signs="batch", average_over="layer"), None, 2),
    "ivon_halves": (variational(signs="halves"), None, 2),
    "ivon_steps": (variational(signs="steps"), None, 1),
}  # fmt: skip
GRADIENTS = [name for name, method in METHODS.items() if method[1]]  # methods that are a gradient for any optimizer
HALVES = ("mrwp", "mrwp_clean", "ivon_halves", "ssgd_shaped_halves")
WEIGHED = ("covariance", "covariance_diagonal", "covariance_centred")
ASCENTS = ("sam", "asam")


def make(name, dtype=torch.float64, lr=0.1, momentum=0.9, weight_decay=1e-2, **options):
    model = network(dtype)
    return model, METHODS[name][0](model, lr=lr, momentum=momentum, weight_decay=weight_decay, **options)


def one_loop(model, optimizer, x=X, y=Y, share=1.0):
    for part in optimizer.passes():
        (share * part.mean(losses_of(model, *part.take(x, y)))).backward()


def train(model, optimizer, steps):
    for _ in range(steps):
        one_loop(model, optimizer)
        optimizer.step()
        optimizer.zero_grad()
