"""IVON: against its equations, slow and plain; what its estimate is worth; samples; what is refused.

Accumulation, scaling, resuming, closures and leaving the loop are in ``test_peers.py``, data-parallel training in
``ddp_method_checks.py``.
"""

import math

import pytest
import torch
from peer_methods import X, Y, bits, losses_of, network, same_bits
from torch import nn
from torch.func import functional_call

from seqssgd.optim import IVON, LambdaNoise, chunks, noise_groups, schedules
from seqssgd.optim.reference import unit_noise

SETTINGS = {"ess": 40.0, "betas": (0.8, 0.9), "weight_decay": 0.03, "hess_init": 0.4}


def gradients(model, weights, examples=slice(None)):
    names = [name for name, _ in model.named_parameters()]
    leaves = [w.clone().requires_grad_() for w in weights]
    outputs = functional_call(model, dict(zip(names, leaves, strict=True)), (X[examples],))
    return torch.autograd.grad(nn.functional.mse_loss(outputs, Y[examples]), leaves)


class TwinIVON:
    """The equations of the paper for a list of weights, with every n, g and ĥ written out."""

    def __init__(
        self,
        model,
        lr,
        ess,
        betas,
        weight_decay,
        hess_init,
        radius=math.inf,
        signs="one",
        estimate="price",
        average="weight",
    ):
        self.model, self.lr, self.ess, self.betas, self.delta = model, lr, ess, betas, weight_decay
        self.h0, self.radius, self.signs, self.estimate = hess_init, radius, signs, estimate
        self.w, self.step_number = bits(model), 0
        self.m, self.h = [torch.zeros_like(w) for w in self.w], [torch.full_like(w, hess_init) for w in self.w]
        self.first, self.average = None, average

    def step(self, factor=1.0):
        step, halves = self.step_number, [slice(0, 2), slice(2, 5)]
        draw = step // 2 if self.signs == "steps" else step
        z = unit_noise([w.shape for w in self.w], "gaussian", 6, draw, torch.float64)
        n = [factor * e / (self.ess * (h + self.delta)).sqrt() for e, h in zip(z, self.h, strict=True)]
        if self.signs == "steps":
            points = [(1.0, 1 - 2 * (step % 2), slice(None))]
        elif self.signs == "one":
            points = [(1.0, 1, slice(None))]
        elif self.signs == "batch":
            points = [(0.5, 1, slice(None)), (0.5, -1, slice(None))]
        else:
            points = [(2 / 5, 1, halves[0]), (3 / 5, -1, halves[1])]
        g, estimates = [torch.zeros_like(w) for w in self.w], [torch.zeros_like(w) for w in self.w]
        for share, sign, examples in points:
            moved = [w + sign * x for w, x in zip(self.w, n, strict=True)]
            found = gradients(self.model, moved, examples)
            for i, one in enumerate(found):
                g[i] += share * one
                estimates[i] += share * sign * n[i] * one * self.ess * (self.h[i] + self.delta) / factor**2
        if self.estimate == "square":
            estimates = [one**2 for one in g]
        if self.average == "row":
            estimates = [e if e.ndim == 1 else e.mean(1, keepdim=True) * torch.ones_like(e) for e in estimates]
        elif self.average == "layer":
            estimates = [e.mean() * torch.ones_like(e) for e in estimates]
        if self.signs == "steps" and step % 2 == 0:
            self.first, estimates = estimates, None
        elif self.signs == "steps":
            estimates = [(a + b) / 2 for a, b in zip(self.first, estimates, strict=True)]
        b1, b2 = self.betas
        self.step_number += 1
        for i, w in enumerate(self.w):
            h, d = self.h[i], self.delta
            if estimates is not None:
                e = estimates[i]
                h = b2 * h + (1 - b2) * e + 0.5 * (1 - b2) ** 2 * (h - e) ** 2 / (h + d)
            self.h[i] = h
            self.m[i] = b1 * self.m[i] + (1 - b1) * g[i]
            change = (self.m[i] / (1 - b1**self.step_number) + d * w) / (h + d)
            self.w[i] = w - self.lr * (self.h0 + d) * change.clamp(-self.radius, self.radius)


def one_step(model, optimizer):
    for part in optimizer.passes():
        part.mean(losses_of(model, *part.take(X, Y))).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize(
    "signs, estimate, radius",
    [(signs, "price", math.inf) for signs in ("one", "batch", "halves", "steps")]
    + [("one", "price", 0.3), ("one", "square", math.inf), ("batch", "square", math.inf)],
)
def test_it_takes_the_steps_of_its_equations(signs, estimate, radius):
    model, reference = network(), network()
    optimizer = IVON(model.parameters(), 0.1, **SETTINGS, clip_radius=radius, signs=signs, estimate=estimate, seed=6)
    twin = TwinIVON(reference, 0.1, **SETTINGS, radius=radius, signs=signs, estimate=estimate)
    for _ in range(5):
        one_step(model, optimizer)
        twin.step()
        states = [optimizer.state[p] for p in model.parameters()]
        for fast, slow in (
            (list(model.parameters()), twin.w),
            ([state["hess"] for state in states], twin.h),
            ([state["momentum"] for state in states], twin.m),
        ):
            for a, b in zip(fast, slow, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        assert not optimizer.base.estimates  # a copy of the weights that is not needed between steps
    assert any((state["hess"] - 0.4).abs().max() > 0.01 for state in states)


@pytest.mark.parametrize("signs", ["one", "batch", "halves"])
def test_large_tensors_are_worked_on_in_pieces_to_the_same_bits(signs, monkeypatch):
    found = []
    for size in (10**6, 5):
        monkeypatch.setattr(chunks, "CHUNK", size)
        model = network(torch.float32)
        model[2].weight.data = model[2].weight.detach().T.contiguous().T  # one that no pieces are made of
        optimizer = IVON(model.parameters(), 0.1, **SETTINGS, clip_radius=0.5, signs=signs)
        for _ in range(3):
            one_step(model, optimizer)
        found.append(bits(model) + [optimizer.state[p]["hess"] for p in model.parameters()])
    assert same_bits(*found)


@pytest.mark.parametrize("signs", ["one", "batch", "steps"])
@pytest.mark.parametrize("average", ["row", "layer"])
def test_its_estimate_is_averaged_over_rows_or_layers(average, signs):
    model, reference = network(), network()
    optimizer = IVON(model.parameters(), 0.1, **SETTINGS, signs=signs, average_over=average, seed=6)
    twin = TwinIVON(reference, 0.1, **SETTINGS, signs=signs, average=average)
    for _ in range(4):
        one_step(model, optimizer)
        twin.step()
        for p, w, h in zip(model.parameters(), twin.w, twin.h, strict=True):
            torch.testing.assert_close(p, w, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(optimizer.state[p]["hess"], h, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("radius", [math.inf, 0.3])
def test_it_agrees_with_the_authors_program_on_the_same_perturbations(radius, monkeypatch):
    program = pytest.importorskip("ivon", reason="ivon-opt, the authors' package, is not installed")
    model, other = network(), network()
    optimizer = IVON(model.parameters(), 0.1, **SETTINGS, clip_radius=radius)
    settings = {key: value for key, value in SETTINGS.items() if key != "betas"}
    theirs = program.IVON(other.parameters(), 0.1, beta1=0.8, beta2=0.9, clip_radius=radius, **settings)
    points = []

    @torch.no_grad()
    def sample(source, entries, draw):
        for p, point in zip(model.parameters(), points, strict=True):
            p.copy_(point)

    monkeypatch.setattr(optimizer, "_sample", sample)
    for _ in range(6):
        with theirs.sampled_params(train=True):
            points[:] = bits(other)
            theirs.zero_grad()
            losses_of(other).mean().backward()
        theirs.step()
        one_step(model, optimizer)
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-7)  # they draw in single precision


def test_a_schedule_scales_the_noise_and_the_estimate_is_none_the_larger():
    model, reference = network(), network()
    optimizer = IVON(model.parameters(), 0.1, **SETTINGS, signs="batch", seed=6)
    noise = LambdaNoise(optimizer, schedules.ramp(start=0, length=4))
    twin = TwinIVON(reference, 0.1, **SETTINGS, signs="batch")
    noise.step()
    for factor in (0.25, 0.5, 0.75, 1.0):
        one_step(model, optimizer)
        twin.step(factor)
        noise.step()
    for p, w in zip(model.parameters(), twin.w, strict=True):
        torch.testing.assert_close(p, w, rtol=1e-9, atol=1e-12)


def test_weights_without_noise_are_stepped_on_and_keep_their_curvature():
    model = network()
    groups = noise_groups(model, 1.0)
    optimizer = IVON(groups, 0.1, **SETTINGS, seed=6)
    for _ in range(3):
        one_step(model, optimizer)
    for p in (model[0].bias, model[2].bias):
        assert (optimizer.state[p]["hess"] == 0.4).all() and optimizer.state[p]["momentum"].any()
    assert not (optimizer.state[model[0].weight]["hess"] == 0.4).any()


def diagonal(model):
    """The exact diagonal of the Hessian, for each parameter."""
    found = []
    for index, p in enumerate(model.parameters()):

        def of(flat, index=index, p=p):
            weights = [w if i != index else flat.view_as(w) for i, w in enumerate(bits(model))]
            names = [name for name, _ in model.named_parameters()]
            outputs = functional_call(model, dict(zip(names, weights, strict=True)), (X,))
            return nn.functional.mse_loss(outputs, Y)

        found.append(torch.autograd.functional.hessian(of, p.detach().flatten()).diagonal().view_as(p))
    return found


def estimates(signs, draws=600, ess=1e4):
    """Many ĥ at the same weights, shape (draws, weights), with the exact diagonal; h stays at its start."""
    rows = []
    model = network()
    optimizer = IVON(model.parameters(), 0.0, ess=ess, weight_decay=0.0, signs=signs)
    parameters = list(model.parameters())
    for _ in range(draws):
        for part in optimizer.passes():
            part.mean(losses_of(model, *part.take(X, Y))).backward()
        found = optimizer.diagonal.pop(optimizer.entries())
        rows.append(torch.cat([found[i].flatten() for i in range(len(parameters))]))
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack(rows), torch.cat([d.flatten() for d in diagonal(model)])


def test_the_estimate_has_the_diagonal_of_the_hessian_as_its_mean_and_that_of_a_pair_is_the_sharper():
    """The mean over weights and draws: within four standard errors, taken over the draws."""
    spread = {}
    for signs in ("one", "batch"):
        rows, exact = estimates(signs)
        errors = rows - exact
        for weighting in (torch.ones_like(exact), exact):
            each = (errors * weighting).sum(1)
            assert abs(each.mean()) < 4 * each.std() / len(each) ** 0.5
        spread[signs] = float(errors.square().mean().sqrt())
    assert spread["one"] > 20 * spread["batch"]  # σ = 0.01: one sample has n∘∇L on top, a hundred times ∇L
    assert (rows.mean(0) - exact).norm() < 0.25 * exact.norm()


def test_an_estimate_far_below_leaves_the_precision_above_zero():
    weight = nn.Parameter(torch.zeros(3))
    rule = IVON([weight], 0.1, ess=10.0, betas=(0.9, 0.5), weight_decay=0.1).base  # the update alone
    for _ in range(200):
        weight.grad = torch.ones(3)
        rule.estimates = {id(weight): -2 * rule.curvature(rule.param_groups[0], weight)}
        rule.step()
        assert (rule.curvature(rule.param_groups[0], weight) > 0).all()
    assert weight.isfinite().all()


# ---- samples ---------------------------------------------------------------------------------------------------------


def test_samples_are_draws_of_the_posterior_and_leave_the_exact_weights():
    model = network(torch.float32)
    optimizer = IVON(model.parameters(), 0.1, **SETTINGS, seed=6, model=model)
    for _ in range(3):
        one_step(model, optimizer)
    clean, before = bits(model), torch.get_rng_state()
    draws = []
    for index in optimizer.samples(2000):
        if index == 0:
            with pytest.raises(RuntimeError, match="inside a loop"):
                optimizer.step()
            with pytest.raises(RuntimeError, match="inside a loop"):
                optimizer.state_dict()
            with torch.no_grad():
                model.eval()(X.float())
        draws.append(model[0].weight.detach().clone())
    assert same_bits(bits(model), clean) and torch.equal(before, torch.get_rng_state())
    deviation = (40.0 * (optimizer.state[model[0].weight]["hess"] + 0.03)).rsqrt()
    z = (torch.stack(draws) - clean[0]) / deviation
    assert z.mean(0).abs().max() < 5 / 2000**0.5 and (z.square().mean(0) - 1).abs().max() < 5 * (2 / 2000) ** 0.5
    again = next(iter(optimizer.samples(1)))
    assert again == 0
    one = [model[0].weight.detach().clone() for _ in optimizer.samples(1)]
    assert torch.equal(one[0], draws[0])
    model.train()
    one_step(model, optimizer)


@pytest.mark.parametrize("error", [ValueError, None])
def test_samples_that_end_early_leave_the_exact_weights(error):
    model = network(torch.float32)
    optimizer = IVON(model.parameters(), 0.1, **SETTINGS)
    clean = bits(model)
    try:
        for _ in optimizer.samples(3):
            assert not same_bits(bits(model), clean)
            if error is None:
                break
            raise error
    except ValueError:
        pass
    assert same_bits(bits(model), clean)
    one_step(model, optimizer)


def test_draws_in_one_region_of_autocast_are_not_those_of_its_cache():
    model = network(torch.float32)
    optimizer = IVON(model.parameters(), 0.1, **SETTINGS)
    each = []
    with torch.no_grad():
        for _ in optimizer.samples(3):
            with torch.autocast("cpu", torch.bfloat16):
                each.append(model(X.float()))
        with torch.autocast("cpu", torch.bfloat16):
            together = [model(X.float()) for _ in optimizer.samples(3)]
            clean = model(X.float())
        assert same_bits(together, each) and not torch.equal(each[0], each[1])
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model(X.float()), clean)


def test_a_model_is_not_saved_at_a_draw():
    model = network(torch.float32)
    optimizer = IVON(model.parameters(), 0.1, **SETTINGS, model=model)
    for index in optimizer.samples(2):
        with pytest.raises(RuntimeError, match=r"take the state dict of the model inside a loop over samples\(\)"):
            model.state_dict()
        with pytest.raises(RuntimeError, match=r"cannot step inside a loop over samples\(\)"):
            optimizer.step()
        with torch.no_grad():
            model.eval()(X.float())
        assert index < 2
    model.state_dict()


def test_samples_without_noise_are_the_weights():
    model = network(torch.float32)
    optimizer = IVON(noise_groups(model, 0.0), 0.1, **SETTINGS)
    clean = bits(model)
    assert [index for index in optimizer.samples(3) if same_bits(bits(model), clean)] == [0, 1, 2]


def test_draws_in_inference_mode_are_those_outside_of_it_and_training_goes_on():
    trained = []
    for mode in (torch.inference_mode, torch.no_grad):
        model = network(torch.float32)
        optimizer = IVON(model.parameters(), 0.1, **SETTINGS)
        with mode():  # before the first step: what is made here is used in training too
            outputs = [model(X.float()).clone() for _ in optimizer.samples(2)]
        one_step(model, optimizer)
        trained.append(bits(model) + outputs)
    assert same_bits(*trained)


@pytest.mark.parametrize("count", [0, -1, 2.5])
def test_no_draws_are_no_average(count):
    with pytest.raises(ValueError, match="the number of draws must be a whole number >= 1"):
        next(IVON(network().parameters(), 0.1, **SETTINGS).samples(count))


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_impossible_settings_are_refused_at_once():
    weight = nn.Parameter(torch.ones(2, 2))
    for settings, word in (
        ({"ess": 0.0}, "ess=0.0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"hess_init": 0.0}, "hess_init=0.0"),
        ({"clip_radius": 0.0}, "clip_radius=0.0"),
        ({"betas": (0.9, 1.0)}, r"betas=\(0.9, 1.0\) of parameter group 0 must be two numbers >= 0 and < 1"),
        ({"betas": (0.9, 0.99, 0.999)}, "must be two numbers"),
        ({"betas": 0.9}, "betas=0.9 of parameter group 0 must be two numbers"),
        ({"ess": "many"}, "ess='many' of parameter group 0 must be a finite number > 0"),
        ({"lr": float("nan")}, "lr=nan of parameter group 0 must be a finite number >= 0"),
        ({"signs": "ranks"}, "signs='ranks' must be one of one, batch, halves, steps"),
        ({"estimate": "fisher"}, "estimate='fisher'"),
        ({"reduction": "none"}, "reduction='none'"),
    ):
        with pytest.raises(ValueError, match=word):
            IVON([weight], **{"lr": 0.1, "ess": 10.0, **settings})
    with pytest.raises(ValueError, match="IVON needs weights of float32 or more, not torch.bfloat16"):
        IVON([nn.Parameter(torch.ones(2, dtype=torch.bfloat16))], 0.1, ess=10.0)


def test_a_group_may_say_that_it_has_no_limit():
    limited, free = network(), network()
    for model, own in ((limited, {}), (free, {"clip_radius": None})):
        one_step(model, IVON([{"params": list(model.parameters()), **own}], 0.1, **SETTINGS, clip_radius=1e-3))
    assert all((p - q).abs().max() > 1e-3 for p, q in zip(limited.parameters(), free.parameters(), strict=True))


@pytest.mark.parametrize("other", [torch.optim.Adam, torch.optim.SGD])
def test_the_state_of_another_optimizer_is_refused(other):
    """Its betas, weight decay and noise level would mean something else here."""
    optimizer, before = IVON(network().parameters(), 0.1, **SETTINGS), SETTINGS["betas"]
    with pytest.raises(ValueError, match="another optimizer's, not IVON's: its parameter groups have no ess"):
        optimizer.load_state_dict(other(network().parameters(), lr=0.01).state_dict())
    assert optimizer.param_groups[0]["betas"] == before and optimizer.param_groups[0]["lr"] == 0.1
