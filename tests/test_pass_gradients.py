"""What the passes leave in the gradients: means, halves, mixed precision."""

from contextlib import nullcontext

import pytest
import torch
from regression import X, Y, equal, gradients, loss_of, regression, weights_of
from torch import nn
from torch.nn.utils import parametrize

from seqssgd.optim import SymmetricNoise, noise_groups

# ---- gradients -------------------------------------------------------------------------------------------------------


def test_clipping_between_loop_and_step_sees_the_mean_gradient():
    model, optimizer = regression()
    each = []
    for _ in optimizer.passes():
        each.append(torch.autograd.grad(loss_of(model), list(model.parameters())))
        loss_of(model).backward()
    for p, a, b in zip(model.parameters(), *each, strict=True):
        torch.testing.assert_close(p.grad, (a + b) / 2)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_accumulate_in_either_nesting(set_to_none):
    halves = [(X[:3], Y[:3]), (X[3:], Y[3:])]
    results = []
    for nesting in ("whole", "outer", "inner"):
        model, optimizer = regression()
        for _ in range(2):
            optimizer.zero_grad(set_to_none=set_to_none)
            if nesting == "whole":
                for _ in optimizer.passes():
                    loss_of(model).backward()
            elif nesting == "outer":
                for x, y in halves:
                    for _ in optimizer.passes():
                        (loss_of(model, x, y) / 2).backward()
            else:
                for _ in optimizer.passes():
                    for x, y in halves:
                        (loss_of(model, x, y) / 2).backward()
            optimizer.step()
        results.append(list(model.parameters()))
    for whole, outer, inner in zip(*results, strict=True):
        torch.testing.assert_close(outer, whole)
        torch.testing.assert_close(inner, whole)


def test_gradients_that_were_there_before_are_added_to_in_place():
    model, optimizer = regression()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    addresses = [p.grad.data_ptr() for p in model.parameters()]
    for _ in optimizer.passes():
        loss_of(model).backward()
    with_ones = gradients(model)
    assert [p.grad.data_ptr() for p in model.parameters()] == addresses
    optimizer.zero_grad()
    for _ in optimizer.passes():
        loss_of(model).backward()
    for a, b in zip(with_ones, gradients(model), strict=True):
        torch.testing.assert_close(a, b + 1)


def copies_in_a_loop(optimizer, model) -> int:
    """How many tensors a pass loop copies beside the weights, of which it keeps copies in buffers."""

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        copies = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.copies += func is torch.ops.aten.clone.default
            return func(*args, **(kwargs or {}))

    loops = optimizer.passes()
    with Count() as count:
        next(loops)  # up to the first pass
    loss_of(model).backward()
    for _ in loops:
        loss_of(model).backward()
    return count.copies


def test_gradients_that_zero_grad_has_left_at_zero_are_not_copied():
    model, optimizer = regression()
    twin, other = regression()
    for step in range(3):
        assert copies_in_a_loop(optimizer, model) == 0, step
        copies_in_a_loop(other, twin)
        optimizer.step(), other.step()
        optimizer.zero_grad(set_to_none=False), other.zero_grad()
    assert all(p.grad is not None for p in model.parameters())
    assert equal(weights_of(model), weights_of(twin))


def test_what_is_written_to_gradients_at_zero_is_kept():
    results = []
    for write in (lambda p: p.grad.add_(1), lambda p: setattr(p, "grad", torch.ones_like(p)), None):
        model, optimizer = regression()
        copies_in_a_loop(optimizer, model)
        optimizer.zero_grad(set_to_none=False)
        for p in model.parameters() if write else ():
            write(p)
        assert copies_in_a_loop(optimizer, model) == (len(list(model.parameters())) if write else 0)
        results.append(gradients(model))
    for added, replaced, plain in zip(*results, strict=True):
        torch.testing.assert_close(added, plain + 1)
        torch.testing.assert_close(replaced, plain + 1)


def test_a_base_optimizer_that_clears_in_its_own_way_is_not_believed():
    class Keeps(torch.optim.SGD):
        def zero_grad(self, set_to_none=True):
            """Leaves everything as it is."""

    model, optimizer = regression(base=Keeps)
    copies_in_a_loop(optimizer, model)
    before = gradients(model)
    optimizer.zero_grad(set_to_none=False)
    copies_in_a_loop(optimizer, model)
    for once, twice in zip(before, gradients(model), strict=True):
        torch.testing.assert_close(twice, 2 * once)


def test_a_parameter_used_in_one_pass_only_counts_half():
    model, optimizer = regression()
    for part in optimizer.passes():
        loss = model[0].bias.sum()
        (loss + model[2].bias.sum() if part.index == 0 else loss).backward()
    torch.testing.assert_close(model[0].bias.grad, torch.ones(8))
    torch.testing.assert_close(model[2].bias.grad, torch.full((2,), 0.5))


# ---- halves ----------------------------------------------------------------------------------------------------------


def test_take_splits_any_nesting_along_any_dimension():
    model, optimizer = regression(signs="halves")
    time_major = torch.arange(15).view(3, 5)
    batch = {"x": [torch.arange(5), (torch.arange(10).view(5, 2), "name", None)], "n": torch.tensor(7)}
    halves = []
    for part in optimizer.passes():
        halves.append((part.take(batch), part.take(time_major, dim=1), part.take(torch.arange(5), torch.arange(5))))
    for (nested, columns, pair), where in zip(halves, [slice(0, 2), slice(2, 5)], strict=True):
        assert nested["x"][0].tolist() == list(range(5))[where]
        assert nested["x"][1][0].tolist() == torch.arange(10).view(5, 2)[where].tolist()
        assert nested["x"][1][1:] == ("name", None) and nested["n"].item() == 7
        assert torch.equal(columns, time_major[:, where])
        assert isinstance(pair, tuple) and torch.equal(pair[0], pair[1])


def test_take_gives_whole_batches_in_the_other_modes():
    model, optimizer = regression()
    for part in optimizer.passes():
        assert part.take(X) is X
        assert part.take(X, Y) == (X, Y) or part.take(X, Y)[0] is X


def test_halves_are_weighted_by_their_sizes():
    model, optimizer = regression(signs="halves")
    x, y = X[:5], Y[:5]
    each = []
    for part in optimizer.passes():
        xs, ys = part.take(x, y)
        each.append(torch.autograd.grad(loss_of(model, xs, ys), list(model.parameters())))
        loss_of(model, xs, ys).backward()
    for p, a, b in zip(model.parameters(), *each, strict=True):
        torch.testing.assert_close(p.grad, 0.4 * a + 0.6 * b)


def test_halves_that_are_not_taken_or_cannot_be_are_errors():
    model, optimizer = regression(signs="halves")
    with pytest.raises(RuntimeError, match="take"):
        for _ in optimizer.passes():
            loss_of(model).backward()
    optimizer.zero_grad()
    with pytest.raises(ValueError, match="at least 2"):
        for part in optimizer.passes():
            part.take(X[:1])
    with pytest.raises(ValueError, match="one size"):
        for part in optimizer.passes():
            part.take(X, Y[:3])
    with pytest.raises(RuntimeError, match="different minibatches"):
        for part in optimizer.passes():
            part.take(X if part.index == 0 else X[:4])
    with pytest.raises(TypeError, match="PackedSequence"):
        for part in optimizer.passes():
            part.take(nn.utils.rnn.pack_sequence([X]))


def test_a_batch_of_one_trains_once_the_noise_is_off():
    model, optimizer = regression(noise=0.0, signs="halves")
    for part in optimizer.passes():
        assert part.take(X[:1]) is not None and part.sign == 0 and part.last
        loss_of(model, X[:1], Y[:1]).backward()
    optimizer.step()


# ---- mixed precision -------------------------------------------------------------------------------------------------


def test_a_scaler_changes_nothing_and_clips_the_mean():
    results = []
    for scaled in (False, True):
        model, optimizer = regression()
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=2.0**10)
        for _ in range(3):
            for _ in optimizer.passes():
                scaler.scale(loss_of(model)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        results.append(weights_of(model))
    assert equal(*results)  # powers of two scale without rounding


def test_a_scaler_that_skips_the_step_leaves_exact_weights():
    model, optimizer = regression()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    clean = weights_of(model)
    for part in optimizer.passes():
        scaler.scale(loss_of(model) * (float("inf") if part.index == 0 else 1)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert equal(weights_of(model), clean) and scaler.get_scale() == 2.0
    optimizer.zero_grad()
    for _ in optimizer.passes():
        scaler.scale(loss_of(model)).backward()
    scaler.step(optimizer)
    assert not equal(weights_of(model), clean)


def test_one_outer_autocast_region_sees_the_weights_of_every_pass():
    results = []
    for outer in (True, False):
        model, optimizer = regression()
        with torch.autocast("cpu", torch.bfloat16, enabled=outer):
            loss_of(model)  # fills the cache of casts with the clean weights
            for _ in optimizer.passes():
                with torch.autocast("cpu", torch.bfloat16):
                    loss = loss_of(model)
                loss.backward()
        results.append(gradients(model))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class Symmetric(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).T


def test_what_is_cached_of_a_parametrized_weight_is_made_anew_in_every_pass():
    results = []
    for cached in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        parametrize.register_parametrization(model, "weight", Symmetric())
        optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(model, noise=0.5), lr=0.1), model=model)
        x = torch.randn(3, 4)
        with parametrize.cached() if cached else nullcontext():
            before = model(x).detach()
            for _ in optimizer.passes():
                model(x).square().mean().backward()
            assert torch.equal(model(x), before)
        results.append(gradients(model))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
