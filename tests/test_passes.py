"""The pass protocol: exact restoring, loud errors, one optimizer with its base."""

import copy
import pickle
import sys

import pytest
import torch
from regression import equal, loss_of, regression, weights_of
from torch import nn

from seqssgd.optim import MultiPassOptimizer, gradients, guards, passes
from seqssgd.optim import part as parts

# ---- where the weights are -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_two_points_lie_symmetric_about_weights_that_come_back_exactly(dtype):
    model, optimizer = regression()
    model.to(dtype)
    clean, seen, signs = weights_of(model), [], []
    for part in optimizer.passes():
        seen.append(weights_of(model))
        signs.append((part.index, part.sign, part.last))
    assert signs == [(0, 1, False), (1, -1, True)]
    assert equal(weights_of(model), clean)
    epsilon = torch.finfo(dtype).eps
    for name, w in clean.items():
        plus, minus = seen[0][name], seen[1][name]
        if name.endswith("bias"):
            assert torch.equal(plus, w) and torch.equal(minus, w)
        else:
            assert not torch.equal(plus, w)
            assert (plus + minus - 2 * w).abs().max() <= 8 * epsilon * w.abs().max()
            assert ((plus - w).norm() / w.norm()).item() == pytest.approx(0.5, rel=20 * epsilon)


def test_noise_is_new_in_every_step_and_the_same_within_one():
    model, optimizer = regression()

    def first_point():
        for part in optimizer.passes():
            if part.index == 0:
                point = model[0].weight.detach().clone()
        return point

    a, b = first_point(), first_point()
    assert torch.equal(a, b)  # no step in between: the micro-batches of one step share their noise
    model.zero_grad()
    optimizer.step(lambda: None)  # without gradients: the weights stay
    assert not torch.equal(first_point(), a)


def test_two_successive_steps_have_opposite_signs_of_one_perturbation():
    model, optimizer = regression(signs="steps")
    w = model[0].weight.detach().clone()
    offsets, signs = [], []
    for _ in range(4):
        for part in optimizer.passes():
            offsets.append(model[0].weight.detach() - w)
            signs.append((part.index, part.sign, part.last))
        optimizer.step(lambda: None)
    assert signs == [(0, 1, True), (0, -1, True)] * 2
    torch.testing.assert_close(offsets[0], -offsets[1])
    torch.testing.assert_close(offsets[2], -offsets[3])
    assert not torch.allclose(offsets[0], offsets[2])


def test_the_global_random_state_is_never_touched():
    model, optimizer = regression()
    before = torch.get_rng_state()
    for _ in optimizer.passes():
        pass
    optimizer.step(lambda: None)
    assert torch.equal(before, torch.get_rng_state())


def test_ranks_and_reruns_draw_the_same_noise_and_seeds_draw_other_noise():
    def point(seed):
        model, optimizer = regression(seed=seed)
        return [model[0].weight.detach().clone() for _ in optimizer.passes()][0]

    assert torch.equal(point(0), point(0))
    assert not torch.equal(point(0), point(1))


def test_parameter_addresses_never_change_and_no_noise_is_kept():
    model, optimizer = regression(base=torch.optim.Adam)
    addresses = [p.data_ptr() for p in model.parameters()]
    for _ in range(3):
        for _ in optimizer.passes():
            loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [p.data_ptr() for p in model.parameters()] == addresses
    state = optimizer.state_dict()
    assert set(state) == {"state", "param_groups", "perturbation"}
    assert all(isinstance(value, int | str) for value in state["perturbation"].values())
    assert all(set(entry) == {"step", "exp_avg", "exp_avg_sq"} for entry in state["state"].values())
    extra = sum(b.numel() for b in optimizer._run.buffers)
    assert extra == sum(p.numel() for p in model.parameters() if p.ndim > 1)  # one copy of what is perturbed


# ---- leaving the loop early ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, None], ids=["exception", "interrupt", "break"])
@pytest.mark.parametrize("at", [0, 1])
def test_leaving_the_loop_brings_the_exact_weights_back(error, at):
    model, optimizer = regression()
    clean = weights_of(model)
    try:
        for part in optimizer.passes():
            loss_of(model).backward()
            if part.index == at:
                assert not equal(weights_of(model), clean)
                if error is None:
                    break
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert equal(weights_of(model), clean)
    with pytest.raises(RuntimeError, match="half-way"):
        optimizer.step()
    optimizer.zero_grad()
    for _ in optimizer.passes():  # and the next loop is as good as the first
        loss_of(model).backward()
    optimizer.step()
    fresh, reference = regression()
    for _ in reference.passes():
        loss_of(fresh).backward()
    reference.step()
    assert equal(weights_of(model), weights_of(fresh))


@pytest.mark.parametrize("module", [passes, parts, gradients, guards])
def test_an_interrupt_at_any_line_of_the_protocol_brings_the_weights_back(module):
    hits = 0
    for nth in range(1, 2000, 5 if module is guards else 1):
        model, optimizer = regression()
        clean = weights_of(model)
        count = 0

        def trace(frame, event, _arg):
            nonlocal count
            if frame.f_code.co_filename != module.__file__:
                return None
            if event == "line":
                count += 1
                if count == nth:  # noqa: B023 the loop's own number is meant
                    raise KeyboardInterrupt
            return trace  # noqa: B023

        sys.settrace(trace)
        try:
            for _ in optimizer.passes():
                loss_of(model).backward()
        except KeyboardInterrupt:
            hits += 1
        finally:
            sys.settrace(None)
        assert equal(weights_of(model), clean), f"interrupted at line event {nth}"
        if count < nth:
            break
    assert hits > 10 and count < nth  # it was interrupted all the way through, and then not any more


def test_an_interrupt_between_a_move_and_the_loops_body_brings_the_weights_back(monkeypatch):
    """Python handles a signal after a call, so that the generator's own ``finally`` never sees it."""
    model, optimizer = regression()
    clean = weights_of(model)

    def interrupted(generator):
        next(generator)
        assert not equal(weights_of(model), clean)
        raise KeyboardInterrupt

    monkeypatch.setattr(parts, "next", interrupted, raising=False)
    loop = optimizer.passes()
    with pytest.raises(KeyboardInterrupt):
        for _ in loop:
            pass
    assert equal(weights_of(model), clean)
    with pytest.raises(RuntimeError, match="half-way"):
        optimizer.step()


@pytest.mark.parametrize("late", [False, True])
def test_the_values_of_the_weights_are_looked_at_in_the_first_loop_with_noise_and_in_no_other(late, monkeypatch):
    looked = []
    monkeypatch.setattr(passes, "norms_of", lambda weights: looked.append(1) or guards.norms_of(weights))
    model, optimizer = regression()
    optimizer.param_groups[0]["noise"] = 0.0 if late else 0.5
    for _ in range(2):
        for _ in optimizer.passes():
            loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    if late:
        assert not looked
        optimizer.param_groups[0]["noise"] = 0.5
        for _ in optimizer.passes():
            loss_of(model).backward()
        for _ in optimizer.passes():
            loss_of(model).backward()
    assert len(looked) == 2  # one for each pass


def test_weights_that_are_no_numbers_are_not_taken_for_changed():
    model, optimizer = regression()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    clean = weights_of(model)
    for _ in optimizer.passes():
        loss_of(model).backward()
    assert all(torch.equal(value.nan_to_num(7), clean[name].nan_to_num(7)) for name, value in weights_of(model).items())
    optimizer.step()
    assert not equal(weights_of(model), clean)


# ---- loud errors -----------------------------------------------------------------------------------------------------


def test_what_must_not_happen_inside_the_loop_is_an_error():
    model, optimizer = regression()
    clean = weights_of(model)
    for forbidden in (
        lambda: optimizer.passes(),
        lambda: next(made_before),  # noqa: B023
        lambda: optimizer.state_dict(),
        lambda: optimizer.load_state_dict({}),
        lambda: optimizer.step(),
        lambda: optimizer.step(lambda: loss_of(model)),
        lambda: optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]}),
        lambda: copy.deepcopy(optimizer),
    ):
        made_before = optimizer.passes()
        for _ in optimizer.passes():
            with pytest.raises(RuntimeError, match="inside a loop over passes"):
                forbidden()
            break
        assert equal(weights_of(model), clean)


def test_a_step_without_passes_is_an_error_unless_nothing_would_move():
    model, optimizer = regression()
    loss_of(model).backward()
    with pytest.raises(RuntimeError, match="without passes"):
        optimizer.step()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()  # as checkpointing libraries do to initialise the state
    model, optimizer = regression(noise=0.0)
    optimizer.step()


def test_weights_changed_between_forward_and_backward_are_noticed():
    model, optimizer = regression()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        for part in optimizer.passes():
            if part.index == 0:
                loss = loss_of(model)
        loss.backward()


# ---- one optimizer with its base -------------------------------------------------------------------------------------


def test_groups_state_and_defaults_are_the_bases_own():
    model, optimizer = regression(base=torch.optim.Adam)
    assert isinstance(optimizer, torch.optim.Optimizer)
    for name in ("param_groups", "state", "defaults"):
        assert getattr(optimizer, name) is getattr(optimizer.base, name)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups is optimizer.base.param_groups
    extra = nn.Parameter(torch.ones(3, 3))
    optimizer.add_param_group({"params": [extra], "noise": 0.25})
    assert optimizer.base.param_groups[-1]["params"][0] is extra
    seen = []
    for _ in optimizer.passes():
        seen.append((extra.detach() - 1).norm().item())
    assert seen == pytest.approx([0.75, 0.75])


def test_step_hooks_run_once_a_step():
    model, optimizer = regression()
    calls = []
    optimizer.register_step_pre_hook(lambda opt, *_: calls.append(("pre", opt)))
    optimizer.register_step_post_hook(lambda opt, *_: calls.append(("post", opt)))
    for _ in optimizer.passes():
        loss_of(model).backward()
    optimizer.step()
    assert calls == [("pre", optimizer), ("post", optimizer)]


def test_state_dict_hooks_run():
    model, optimizer = regression()
    calls = []
    optimizer.register_state_dict_pre_hook(lambda opt: calls.append("save pre"))
    optimizer.register_state_dict_post_hook(lambda opt, state: calls.append("save post"))
    optimizer.register_load_state_dict_pre_hook(lambda opt, state: calls.append("load pre"))
    optimizer.register_load_state_dict_post_hook(lambda opt: calls.append("load post"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["save pre", "save post", "load pre", "load post"]


def test_a_checkpoint_of_the_bare_optimizer_loads_and_keeps_the_levels():
    model, optimizer = regression(base=torch.optim.Adam)
    bare = torch.optim.Adam([{"params": g["params"]} for g in optimizer.param_groups], lr=0.3)
    loss_of(model).backward()
    bare.step()
    optimizer.load_state_dict(bare.state_dict())
    assert [g["noise"] for g in optimizer.param_groups] == [0.5, 0.0]
    assert optimizer.param_groups[0]["lr"] == 0.3 and optimizer.param_groups[0]["layers"] == ["0", "2"]


def test_a_checkpoint_over_other_groups_is_refused_and_goes_on_as_the_error_says():
    model, optimizer = regression(base=torch.optim.Adam)
    bare = torch.optim.Adam(model.parameters(), lr=0.3)
    loss_of(model).backward()
    bare.step()
    with pytest.raises(ValueError, match=r"1 parameter groups and the optimizer 2.*optimizer\.state\.update"):
        optimizer.load_state_dict(bare.state_dict())
    plain = torch.optim.Adam(model.parameters())
    plain.load_state_dict(bare.state_dict())
    optimizer.state.update(plain.state)
    for p in model.parameters():
        assert torch.equal(optimizer.base.state[p]["exp_avg"], bare.state[p]["exp_avg"])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
def test_copies_are_independent_and_continue_alike(duplicate):
    pair = regression(base=torch.optim.Adam)
    for _ in pair[1].passes():
        loss_of(pair[0]).backward()
    pair[1].step()
    twin_model, twin = duplicate(pair)
    for model, optimizer in (pair, (twin_model, twin)):
        optimizer.zero_grad()
        for _ in optimizer.passes():
            loss_of(model).backward()
        optimizer.step()
    assert equal(weights_of(pair[0]), weights_of(twin_model))
    assert twin.param_groups[0]["params"][0] is not pair[1].param_groups[0]["params"][0]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
def test_a_copy_made_before_the_step_makes_no_empty_step(duplicate):
    """Copies of parameters have no gradients."""
    pair = regression()
    for _ in pair[1].passes():
        loss_of(pair[0]).backward()
    _, twin = duplicate(pair)
    with pytest.raises(RuntimeError, match="passes"):
        twin.step()
    before = weights_of(pair[0])
    pair[1].step()
    assert not equal(weights_of(pair[0]), before)


def test_frozen_weights_are_not_moved():
    model, optimizer = regression()
    model[0].weight.requires_grad_(False)
    frozen = model[0].weight.clone()
    for _ in optimizer.passes():
        assert torch.equal(model[0].weight, frozen)


@pytest.mark.parametrize("signs", [(), None, 1])
def test_a_method_without_passes_or_hooks_is_named(signs):
    class Unfinished(MultiPassOptimizer):
        def pass_signs(self):
            return super().pass_signs() if signs is None else signs

    parameter = nn.Parameter(torch.ones(2))
    optimizer = Unfinished(torch.optim.SGD([{"params": [parameter], "noise": 0.1}], lr=0.1))
    error = NotImplementedError if signs is None else ValueError
    with pytest.raises(error, match=r"Unfinished(.pass_signs\(\) gave| has no pass_signs)"):
        next(optimizer.passes())
    assert parameter.tolist() == [1.0, 1.0]
