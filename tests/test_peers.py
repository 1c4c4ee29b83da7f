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
    make,
    network,
    one_loop,
    same_bits,
    train,
)
from torch import nn
from torch.func import functional_call

from seqssgd.optim import LambdaNoise, schedules

every_method = pytest.mark.parametrize("name", METHODS)
every_gradient = pytest.mark.parametrize("name", GRADIENTS)


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
