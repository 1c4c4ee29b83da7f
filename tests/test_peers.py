"""The methods that S-SGD is compared with: each against its equation, and the laws that hold for all of them."""

import copy

import pytest
import torch
from peer_methods import (
    ASCENTS,
    GRADIENTS,
    HALVES,
    METHODS,
    WEIGHED,
    X,
    Y,
    bits,
    loss_of,
    losses_of,
    network,
    same_bits,
)
from torch import nn
from torch.func import functional_call

from seqssgd.optim import (
    MRWP,
    MSAM,
    NSO,
    SAM,
    CovarianceNoise,
    DropConnect,
    LambdaNoise,
    OneSidedNoise,
    ShapedNoise,
    SymmetricNoise,
    WeightAverage,
    noise_groups,
    schedules,
)

every_method = pytest.mark.parametrize("name", METHODS)
every_gradient = pytest.mark.parametrize("name", GRADIENTS)


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


@every_gradient
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
    parts, values = [], [loss_of(model).item()]
    for part in optimizer.passes():
        loss = part.mean(losses_of(model, *part.take(X, Y)))
        loss.backward()
        parts.append(part)
        values.append(loss.item())
    assert [part.index for part in parts] == list(range(METHODS[name][2]))
    assert len({round(value, 9) for value in values}) == 1 or name not in WEIGHED  # what is logged is not weighed
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
                part.mean(losses_of(model, *part.take(X, Y))).backward()
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


@every_gradient
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
    if name in HALVES + WEIGHED:
        with pytest.raises(RuntimeError, match="closure|part.mean"):
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
                    (part.mean(losses_of(model, *part.take(x, y))) / 2).backward()
        else:
            one_loop(model, optimizer, *(torch.cat(tensors) for tensors in zip(*MICROS, strict=True)))
        optimizer.step()
        optimizer.zero_grad()
    return list(model.parameters())


@every_method
def test_gradients_accumulate_in_either_nesting(name):
    """Micro-batches inside the loop are one minibatch; outside, SAM's each have a perturbation of their own."""
    inner, outer, whole = (accumulated(name, nesting) for nesting in ("inner", "outer", "whole"))
    equal = [("inner", "outer")] if name not in ASCENTS else []
    if name not in HALVES + WEIGHED:  # the halves of the whole are other halves, and it has other weights
        equal += [("inner", "whole")]
    results = {"inner": inner, "outer": outer, "whole": whole}
    for a, b in equal:
        for p, q in zip(results[a], results[b], strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
    if name in ASCENTS:
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
    for clip in (0.1, None):
        results = []
        for scaled in (False, True):
            model, optimizer = make(name, dtype=torch.float32)
            scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**10)
            for _ in range(3):
                for part in optimizer.passes():
                    scaler.scale(part.mean(losses_of(model, *part.take(X, Y)))).backward()
                if clip is not None:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
            remembered = [
                value for p in model.parameters() for value in optimizer.state[p].values() if value is not None
            ]
            results.append([*bits(model), *remembered, *optimizer.position().get("means", {}).values()])
        if name in ASCENTS:  # the norm of scaled gradients rounds otherwise
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
            scaler.scale(part.mean(losses_of(model, *part.take(X, Y))) * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        assert same_bits(bits(model), clean) and scaler.get_scale() == 2.0
        optimizer.zero_grad()
        for part in optimizer.passes():
            scaler.scale(part.mean(losses_of(model, *part.take(X, Y)))).backward()
        scaler.step(optimizer)
        assert not same_bits(bits(model), clean) and all(p.isfinite().all() for p in model.parameters())


@every_method
def test_a_step_without_passes_is_an_error_and_randomness_is_private(name):
    model, optimizer = make(name)
    before = torch.get_rng_state()
    loss_of(model).backward()
    with pytest.raises(RuntimeError, match="without passes"):
        optimizer.step()
    optimizer.zero_grad()
    train(model, optimizer, 2)
    assert torch.equal(before, torch.get_rng_state())


@every_method
def test_late_start_has_one_clean_pass_until_then(name):
    model, optimizer = make(name)
    noise = LambdaNoise(optimizer, schedules.ramp(start=2, length=0))
    signs = []
    for _ in range(3):
        signs.append(
            [part.sign for part in optimizer.passes() if [part.mean(losses_of(model, *part.take(X, Y))).backward()]]
        )
        optimizer.step()
        optimizer.zero_grad()
        noise.step()
    assert signs[:2] == [[0], [0]] and len(signs[2]) == METHODS[name][2]
    assert optimizer.draws == 1


def test_a_build_of_torch_without_processes_has_every_method(monkeypatch):
    def trained(name):
        model, optimizer = make(name)
        train(model, optimizer, 2)
        return bits(model)

    wanted = {name: trained(name) for name in METHODS}
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    for name in ("is_initialized", "get_rank", "get_world_size"):
        monkeypatch.delattr(torch.distributed, name)
    for name in METHODS:
        assert same_bits(trained(name), wanted[name]), name


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
        (lambda: SAM(torch.optim.SGD([weight], lr=0.1), adaptive="no"), "adaptive='no' must be True or False"),
        (lambda: SymmetricNoise(base(), balance="no"), "balance='no' must be True or False"),
        (lambda: ShapedNoise(base(), precondition=1), "precondition=1 must be True or False"),
        (lambda: CovarianceNoise(torch.optim.SGD([weight], lr=0.1), noise=0.1, centred=None), "centred=None must be"),
        (lambda: MSAM(torch.optim.SGD([weight], lr=0.1, momentum=0.9), rho=-1.0), "not -1.0"),
        (lambda: MSAM(torch.optim.SGD([weight], lr=0.1), rho=0.1), "has none: give SGD momentum=0.9"),
        (lambda: MSAM(torch.optim.Adagrad([weight]), rho=0.1), "has none: give Adagrad"),
        (lambda: OneSidedNoise(torch.optim.SGD([weight], lr=0.1)), "noise_groups"),
        (lambda: CovarianceNoise(torch.optim.SGD([weight], lr=0.1), noise=-1.0), "not -1.0"),
        (lambda: CovarianceNoise(torch.optim.SGD(noise_groups(network(), 0.1), lr=0.1), noise=0.1), "one level"),
        (lambda: WeightAverage(torch.optim.SGD([weight], lr=0.1), network(), decay=1.0), "decay=1.0"),
        (lambda: WeightAverage(torch.optim.SGD([weight], lr=0.1), network(), start=-1), "start=-1"),
    ):
        with pytest.raises(ValueError, match=word):
            build()


def test_what_a_method_needs_in_the_loop_it_asks_for():
    for name, word in (("sam", "backward"), ("mrwp", "part.take"), ("covariance", "part.mean")):
        model, optimizer = make(name)
        clean = bits(model)
        with pytest.raises(RuntimeError, match=word):
            for _ in optimizer.passes():
                pass
        assert same_bits(bits(model), clean)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam", "RMSprop"])
def test_momentum_sam_looks_along_the_momentum_of_any_optimizer_that_has_some(name):
    model = network()
    settings = {"momentum": 0.9} if name == "RMSprop" else {}
    base = getattr(torch.optim, name)(model.parameters(), lr=0.01, **settings)
    optimizer = MSAM(base, rho=0.2)
    train(model, optimizer, 2)
    key = "momentum_buffer" if settings else "exp_avg"
    momentum = torch.cat([base.state[p][key].flatten() for p in model.parameters()])
    clean = torch.cat([w.flatten() for w in bits(model)])
    for part in optimizer.passes():
        moved = torch.cat([w.flatten() for w in bits(model)]) - clean
        torch.testing.assert_close(moved, -0.2 * momentum / momentum.norm())
        part.mean(losses_of(model)).backward()


def test_momentum_sam_refuses_a_momentum_that_it_cannot_find():
    class Velocity(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for state in self.state.values():
                state["velocity"] = state.pop("momentum_buffer")

    model = network()
    optimizer = MSAM(Velocity(model.parameters(), lr=0.1, momentum=0.9), rho=0.2)
    with pytest.raises(
        ValueError, match=r"the state of Velocity has none under the name .* \(velocity\); take another"
    ):
        train(model, optimizer, 2)


@pytest.mark.parametrize("name", ["sam", "asam", "msam", "ssgd_shaped", "ivon", "ivon_batch", "ivon_square"])
def test_sparse_gradients_are_refused_where_they_cannot_be_reckoned_with(name):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Embedding(4, 3, sparse=True), nn.Linear(3, 2)

    model = Words()
    optimizer = METHODS[name][0](model, lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match="takes no sparse gradients, as of nn.Embedding"):
        for _ in range(2):
            for _ in optimizer.passes():
                model.out(model.table(torch.arange(2))).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", ["sam", "asam", "msam"])
@pytest.mark.parametrize("factor", [0.0, 1e-4])  # nothing, and so little that 1/norm is beyond float16
def test_ascents_in_float16_take_gradients_of_any_size(name, factor):
    model, optimizer = make(name, dtype=torch.float16)
    level = next(iter(optimizer.param_groups))[optimizer.level_key]
    for _ in range(2):
        for part in optimizer.passes():
            moved = sum((entry.weight - entry.saved).float().square().sum() for entry in optimizer.entries()) ** 0.5
            (part.mean(losses_of(model)) * factor).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(p.isfinite().all() for p in model.parameters())
    assert moved == 0 or abs(moved / level - 1) < 0.05 or (factor and name == "asam")


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("diagonal", [False, True])
def test_covariance_noise_has_the_second_moments_of_the_gradients_or_their_diagonal(diagonal, centred):
    """Over 1,000 draws; the bounds are five standard deviations of an entry of the estimate."""
    weight, s, draws = nn.Parameter(torch.zeros(3, dtype=torch.float64)), 2.0, 1000
    examples = torch.tensor([[1.0, 0.5, 0.0], [2.0, -1.0, 1.0], [0.0, 1.0, 3.0], [1.0, 1.0, 1.0]]).double()
    optimizer = CovarianceNoise(torch.optim.SGD([weight], lr=0.0), noise=s, diagonal=diagonal, centred=centred)
    noise = torch.empty(draws, 3, dtype=torch.float64)
    for draw in range(draws):
        for part in optimizer.passes():
            part.mean(examples @ weight).backward()  # the gradients are the examples
        noise[draw] = weight.grad - examples.mean(0)
        optimizer.step()
        optimizer.zero_grad()
    rows = examples - centred * examples.mean(0)
    wanted = s**2 / 4 * (rows.T @ rows / 4)
    if diagonal:
        wanted = wanted.diag().diag()
    size = (s**2 / 4 * (rows.T @ rows / 4)).diag().sqrt()
    bound = 5 * (2 / draws) ** 0.5 * torch.outer(size, size)
    assert ((noise.T @ noise / draws - wanted).abs() < bound).all()
    assert (noise.mean(0).abs() < 5 * size / draws**0.5).all()
