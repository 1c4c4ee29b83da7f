"""The methods that S-SGD is compared with: each against its equation, and the laws that hold for all of them."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from twin import scaled_noise, unit_noise

from seqssgd.optim import (
    MRWP,
    NSO,
    SAM,
    DropConnect,
    LambdaNoise,
    OneSidedNoise,
    WeightAverage,
    noise_groups,
    schedules,
)

X, Y = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).double(), torch.ones(5, 2).double()
SEED = 6


def network(dtype=torch.float64):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)


def loss_of(model, x=X, y=Y):
    dtype = next(model.parameters()).dtype
    return nn.functional.mse_loss(model(x.to(dtype)), y.to(dtype))


def bits(model):
    return [p.detach().clone() for p in model.parameters()]


def same_bits(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---- every method, and its equation ----------------------------------------------------------------------------------
# An equation gets the weights w, a function gradient(weights, examples), and the number of steps done; it gives the
# gradient that the step is to use. Parameters are in the order of the network's: weight, bias, weight, bias.

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


def noisy(method, level, **settings):
    def make(model, level=level, **base):
        return method(torch.optim.SGD(noise_groups(model, noise=level), **base), seed=SEED, **settings)

    return make


def sharp(level, **settings):
    def make(model, level=level, **base):
        return SAM(torch.optim.SGD(model.parameters(), **base), rho=level, **settings)

    return make


UNIFORM, GAUSSIAN = dict(distribution="uniform"), dict(distribution="gaussian")
METHODS = {  # name: how it is made, the equation, the passes of a step
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
    "dropconnect": (noisy(DropConnect, 0.4), dropconnect(0.4), 1),
}  # fmt: skip
HALVES = ("mrwp", "mrwp_clean")
every_method = pytest.mark.parametrize("name", METHODS)


def make(name, dtype=torch.float64, lr=0.1, momentum=0.9, weight_decay=1e-2, **options):
    model = network(dtype)
    return model, METHODS[name][0](model, lr=lr, momentum=momentum, weight_decay=weight_decay, **options)


def one_loop(model, optimizer, x=X, y=Y, share=1.0):
    for part in optimizer.passes():
        (share * loss_of(model, *part.take(x, y))).backward()


def train(model, optimizer, steps):
    for _ in range(steps):
        one_loop(model, optimizer)
        optimizer.step()
        optimizer.zero_grad()


@every_method
def test_a_method_takes_the_steps_of_its_equation(name):
    model, optimizer = make(name)
    reference = network()
    names = [key for key, _ in reference.named_parameters()]
    base = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)

    def gradient(weights, examples):
        leaves = [w.clone().requires_grad_() for w in weights]
        outputs = functional_call(reference, dict(zip(names, leaves, strict=True)), (X[examples],))
        return torch.autograd.grad(nn.functional.mse_loss(outputs, Y[examples]), leaves)

    for step in range(4):
        train(model, optimizer, 1)
        for p, g in zip(reference.parameters(), METHODS[name][1](bits(reference), gradient, step), strict=True):
            p.grad = g
        base.step()
        for p, q in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_sam_moves_and_measures_only_groups_with_a_radius_of_their_own():
    model, wanted = network(), network()
    matrices, biases = [model[0].weight, model[2].weight], [model[0].bias, model[2].bias]
    groups = [{"params": matrices, "rho": 0.3}, {"params": biases, "rho": 0.0}]
    optimizer = SAM(torch.optim.SGD(groups, lr=0.1), rho=0.7)
    for part in optimizer.passes():
        if part.index == 1:
            moved = [p - q for p, q in zip(model.parameters(), wanted.parameters(), strict=True)]
            assert torch.cat([x.flatten() for x in moved]).norm().item() == pytest.approx(0.3)
            assert not moved[1].any() and not moved[3].any()
        loss_of(model).backward()
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert optimizer.param_groups[-1]["rho"] == 0.7  # as any other default of the base optimizer


# ---- the laws --------------------------------------------------------------------------------------------------------


@every_method
def test_a_step_has_its_passes_and_says_what_they_cost(name):
    model, optimizer = make(name)
    parts = []
    for part in optimizer.passes():
        parts.append(part)
        loss_of(model, *part.take(X, Y)).backward()
    assert [part.index for part in parts] == list(range(METHODS[name][2]))
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert sum(part.cost for part in parts) == (1 if name in HALVES else len(parts))


@every_method
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, None], ids=["exception", "interrupt", "break"])
def test_leaving_the_loop_brings_the_exact_weights_back(name, error):
    for at in range(METHODS[name][2]):
        model, optimizer = make(name, dtype=torch.float32)
        clean = bits(model)
        try:
            for part in optimizer.passes():
                loss_of(model, *part.take(X, Y)).backward()
                if part.index == at:
                    assert same_bits(bits(model), clean) == (part.sign == 0)
                    if error is None:
                        break
                    raise error
        except (ValueError, KeyboardInterrupt):
            pass
        assert same_bits(bits(model), clean)
        with pytest.raises(RuntimeError, match="half-way"):
            optimizer.step()
        optimizer.zero_grad()
        train(model, optimizer, 1)
        fresh, reference = make(name, dtype=torch.float32)
        train(fresh, reference, 1)
        assert same_bits(bits(model), bits(fresh))


@every_method
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(name, tmp_path):
    whole = make(name, dtype=torch.float32)
    train(*whole, 7)
    first = make(name, dtype=torch.float32)
    train(*first, 3)
    torch.save({"model": first[0].state_dict(), "optimizer": first[1].state_dict()}, tmp_path / "c.pt")
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    model, optimizer = make(name, dtype=torch.float32)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    train(model, optimizer, 4)
    assert same_bits(bits(model), bits(whole[0]))


@every_method
@pytest.mark.parametrize("how", ["passes", "closure"])
def test_level_zero_is_the_bare_optimizer_to_the_bit(name, how):
    model, optimizer = make(name, level=0.0)
    bare = copy.deepcopy(model)
    base = torch.optim.SGD(bare.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    for _ in range(4):
        base.zero_grad()
        loss_of(bare).backward()
        base.step()
        if how == "passes":
            train(model, optimizer, 1)
        else:
            optimizer.step(closure_of(model, optimizer))
    assert same_bits(bits(model), bits(bare))


def closure_of(model, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    return closure


@every_method
def test_a_closure_gives_the_step_of_the_loop(name):
    model, optimizer = make(name)
    other, by_closure = make(name)
    if name in HALVES:
        with pytest.raises(RuntimeError, match="closure"):
            by_closure.step(closure_of(other, by_closure))
        return
    for _ in range(3):
        train(model, optimizer, 1)
        by_closure.step(closure_of(other, by_closure))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


MICROS = [(X[:3], Y[:3]), (X[1:4], Y[1:4])]


def accumulated(name, nesting, steps=2):
    model, optimizer = make(name)
    for _ in range(steps):
        if nesting == "outer":
            for x, y in MICROS:
                one_loop(model, optimizer, x, y, share=0.5)
        elif nesting == "inner":
            for part in optimizer.passes():
                for x, y in MICROS:
                    (loss_of(model, *part.take(x, y)) / 2).backward()
        else:
            one_loop(model, optimizer, *(torch.cat(tensors) for tensors in zip(*MICROS, strict=True)))
        optimizer.step()
        optimizer.zero_grad()
    return list(model.parameters())


@every_method
def test_gradients_accumulate_in_either_nesting(name):
    """Micro-batches inside the loop are one minibatch; outside, SAM's each have a perturbation of their own."""
    inner, outer, whole = (accumulated(name, nesting) for nesting in ("inner", "outer", "whole"))
    equal = [("inner", "outer")] if "sam" not in name else []
    equal += [("inner", "whole")] if name not in HALVES else []  # the halves of the whole are other halves
    results = {"inner": inner, "outer": outer, "whole": whole}
    for a, b in equal:
        for p, q in zip(results[a], results[b], strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
    if "sam" in name:
        model, optimizer = make(name)
        gradients = []
        for x, y in MICROS:
            optimizer.zero_grad()
            one_loop(model, optimizer, x, y)
            gradients.append([p.grad.clone() for p in model.parameters()])
        optimizer.zero_grad()
        for x, y in MICROS:
            one_loop(model, optimizer, x, y, share=0.5)
        for p, a, b in zip(model.parameters(), *gradients, strict=True):
            torch.testing.assert_close(p.grad, (a + b) / 2)


@every_method
def test_a_scaler_changes_nothing_and_a_skipped_step_leaves_exact_weights(name):
    results = []
    for scaled in (False, True):
        model, optimizer = make(name, dtype=torch.float32)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**10)
        for _ in range(3):
            for part in optimizer.passes():
                scaler.scale(loss_of(model, *part.take(X, Y))).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        results.append(bits(model))
    if "sam" in name:  # the norm of scaled gradients rounds otherwise
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)
    else:
        assert same_bits(*results)

    for bad in range(METHODS[name][2]):
        model, optimizer = make(name, dtype=torch.float32)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        clean = bits(model)
        for part in optimizer.passes():
            factor = float("inf") if part.index == bad else 1.0
            scaler.scale(loss_of(model, *part.take(X, Y)) * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        assert same_bits(bits(model), clean) and scaler.get_scale() == 2.0
        optimizer.zero_grad()
        for part in optimizer.passes():
            scaler.scale(loss_of(model, *part.take(X, Y))).backward()
        scaler.step(optimizer)
        assert not same_bits(bits(model), clean) and all(p.isfinite().all() for p in model.parameters())


@every_method
def test_a_step_without_passes_is_an_error_and_randomness_is_private(name):
    model, optimizer = make(name)
    before = torch.get_rng_state()
    loss_of(model).backward()
    with pytest.raises(RuntimeError, match="without passes"):
        optimizer.step()
    train(model, optimizer, 2)
    assert torch.equal(before, torch.get_rng_state())


@every_method
def test_late_start_has_one_clean_pass_until_then(name):
    model, optimizer = make(name)
    noise = LambdaNoise(optimizer, schedules.ramp(start=2, length=0))
    signs = []
    for _ in range(3):
        signs.append([part.sign for part in optimizer.passes() if [loss_of(model, *part.take(X, Y)).backward()]])
        optimizer.step()
        optimizer.zero_grad()
        noise.step()
    assert signs[:2] == [[0], [0]] and len(signs[2]) == METHODS[name][2] and any(signs[2])
    assert optimizer.draws == 1


def test_impossible_settings_are_refused_at_once():
    weight = nn.Parameter(torch.ones(2, 2))

    def base(level=0.1):
        return torch.optim.SGD([{"params": [weight], "noise": level}], lr=0.1)

    for build, word in (
        (lambda: OneSidedNoise(base(), copies=0), "copies=0"),
        (lambda: OneSidedNoise(base(), copies=1.5), "copies=1.5"),
        (lambda: NSO(base(), pairs=0), "pairs=0"),
        (lambda: NSO(base(), clean_weight=1.0), "clean_weight=1.0"),
        (lambda: MRWP(base(), clean_weight=float("nan")), "clean_weight=nan"),
        (lambda: DropConnect(base(1.0)), "must be below 1, not 1.0"),
        (lambda: SAM(torch.optim.SGD([weight], lr=0.1), rho=-1.0), "not -1.0"),
        (lambda: SAM(torch.optim.SGD([weight], lr=0.1), eta=0.0), "eta=0.0"),
        (lambda: OneSidedNoise(torch.optim.SGD([weight], lr=0.1)), "noise_groups"),
        (lambda: WeightAverage(torch.optim.SGD([weight], lr=0.1), network(), decay=1.0), "decay=1.0"),
        (lambda: WeightAverage(torch.optim.SGD([weight], lr=0.1), network(), start=-1), "start=-1"),
    ):
        with pytest.raises(ValueError, match=word):
            build()


def test_what_a_method_needs_in_the_loop_it_asks_for():
    for name, word in (("sam", "backward"), ("mrwp", "part.take")):
        model, optimizer = make(name)
        clean = bits(model)
        with pytest.raises(RuntimeError, match=word):
            for _ in optimizer.passes():
                pass
        assert same_bits(bits(model), clean)


# ---- averages --------------------------------------------------------------------------------------------------------


def averaging(**settings):
    model = network()
    return model, WeightAverage(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model, **settings)


@pytest.mark.parametrize("settings", [dict(decay=0.8), dict(decay=None), dict(decay=None, start=2)])
def test_the_average_is_that_of_the_weights_after_each_step(settings, tmp_path):
    model, optimizer = averaging(**settings)
    start, decay = settings.get("start", 0), settings["decay"]
    seen = []
    for step in range(6):
        if step == 4:  # interrupted and resumed
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c.pt")
            saved = torch.load(tmp_path / "c.pt", weights_only=True)
            model, optimizer = averaging(**settings)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
        train(model, optimizer, 1)
        if step < start:
            assert optimizer.averaged is model
            continue
        seen.append(bits(model))
        if decay is None:
            wanted = [torch.stack(weights).mean(0) for weights in zip(*seen, strict=True)]
        elif len(seen) == 1:
            wanted = seen[0]
        else:
            wanted = [decay * a + (1 - decay) * w for a, w in zip(wanted, seen[-1], strict=True)]
        for p, q in zip(optimizer.averaged.parameters(), wanted, strict=True):
            torch.testing.assert_close(p.detach(), q, rtol=1e-9, atol=1e-12)

    bare = network()
    base = torch.optim.SGD(bare.parameters(), lr=0.1, momentum=0.9)
    for _ in range(6):
        base.zero_grad()
        loss_of(bare).backward()
        base.step()
    assert same_bits(bits(model), bits(bare))  # training itself is not touched


def test_an_average_over_a_bare_checkpoint_begins_anew():
    model, optimizer = averaging(decay=0.5)
    train(model, optimizer, 3)
    optimizer.load_state_dict(optimizer.base.state_dict())
    assert optimizer.averaged is model
    train(model, optimizer, 1)
    assert optimizer.averaged is not model and same_bits(bits(optimizer.averaged), bits(model))


def test_a_skipped_step_does_not_count_in_the_average():
    model, optimizer = averaging(decay=None)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(loss_of(model) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert optimizer.averaged is model
