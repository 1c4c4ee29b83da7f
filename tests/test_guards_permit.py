"""What the guards must leave alone: unusual gradients, copies of optimizers, parameters that join or go, no noise."""

import copy
import gc
import pickle
import weakref
from contextlib import nullcontext

import pytest
import torch
from peer_methods import losses_of, network
from refusals import one_step_of
from regression import equal, loss_of, regression, weights_of
from torch import nn

from seqssgd.optim import SinglePass, SymmetricNoise, guards, noise_groups


def test_gradients_with_a_graph_of_their_own_accumulate():
    model, optimizer = regression()
    each = []
    with pytest.warns(UserWarning, match="create_graph=True"):
        for _ in optimizer.passes():
            each.append(torch.autograd.grad(loss_of(model), list(model.parameters())))
            loss_of(model).backward(create_graph=True)
    for p, a, b in zip(model.parameters(), *each, strict=True):
        torch.testing.assert_close(p.grad.detach(), (a + b) / 2)
    model.zero_grad()


def test_dense_gradients_on_top_of_sparse_ones_accumulate():
    table = nn.Embedding(5, 3, sparse=True)
    head = nn.Linear(3, 5)
    groups = [*noise_groups(table, 0.3), *noise_groups(head, 0.3)]
    optimizer = SymmetricNoise(torch.optim.SGD(groups, lr=0.1))
    seen = []
    for _ in optimizer.passes():
        for loss in (head(table(torch.tensor([1, 2]))).sum(), table.weight.square().sum()):
            seen.append(torch.autograd.grad(loss, table.weight, retain_graph=True)[0].to_dense())
            loss.backward()
    torch.testing.assert_close(table.weight.grad, sum(seen) / 2)
    optimizer.step()


def test_gradients_in_one_flat_buffer_accumulate():
    model, optimizer = regression()
    other, reference = regression()
    buffer = torch.zeros(sum(p.numel() for p in model.parameters()))
    start = 0
    for p in model.parameters():
        p.grad = buffer[start : start + p.numel()].view_as(p)
        start += p.numel()
    one_step_of(other, reference)
    for _ in optimizer.passes():
        loss_of(model).backward()
    optimizer.step()
    assert equal(weights_of(model), weights_of(other))


@pytest.mark.parametrize("views", [False, True])
def test_data_parallel_training_in_a_single_process_is_as_without(views, tmp_path):
    def train(wrapped):
        model, optimizer = regression()
        net = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=views) if wrapped else model
        for _ in range(2):
            for part in optimizer.passes():
                with nullcontext() if part.last or not wrapped else net.no_sync():
                    loss_of(net).backward()
            optimizer.step()
            optimizer.zero_grad()
        return weights_of(model)

    expected = train(wrapped=False)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        assert equal(train(wrapped=True), expected)
    finally:
        torch.distributed.destroy_process_group()


def test_the_watch_goes_with_its_optimizer_and_copies_have_their_own():
    model, optimizer = regression()
    weight = model[0].weight
    assert len(weight._post_accumulate_grad_hooks) == 1
    twin_model, twin = pickle.loads(pickle.dumps(copy.deepcopy((model, optimizer))))
    loss_of(model).backward()
    one_step_of(twin_model, twin)
    with pytest.raises(RuntimeError, match="did not come through"):
        one_step_of(model, optimizer)
    loss_of(twin_model).backward()
    with pytest.raises(RuntimeError, match="did not come through"):
        one_step_of(twin_model, twin)
    del optimizer
    gc.collect()
    assert not weight._post_accumulate_grad_hooks


def test_weights_that_join_later_are_watched():
    model, optimizer = regression()
    extra = nn.Parameter(torch.ones(3, 3))
    optimizer.add_param_group({"params": [extra], "noise": 0.1})
    extra.sum().backward()
    with pytest.raises(RuntimeError, match=r"shape \(3, 3\), did not come through"):
        next(optimizer.passes())


def test_an_optimizer_without_noise_is_left_alone():
    model = network(torch.float32)
    for optimizer in (SinglePass(torch.optim.SGD(model.parameters(), lr=0.1)), regression(noise=0.0)[1]):
        assert not any(p._post_accumulate_grad_hooks for group in optimizer.param_groups for p in group["params"])
        for _ in optimizer.passes():
            optimizer.zero_grad()
            losses_of(model).mean().backward()
        losses_of(model).mean().backward()
        optimizer.step()


def test_gradients_accumulate_without_noise_over_several_loops():
    model = network(torch.float32)
    for groups in (noise_groups(model, noise=0.0), noise_groups(model, noise=0.1)):
        optimizer = SymmetricNoise(torch.optim.SGD(groups, lr=0.0))
        gradients = []
        for minibatches in (1, 2):
            for _ in range(minibatches):  # the second loop finds gradients, and without noise no hook tells of more
                for _ in optimizer.passes():
                    losses_of(model).mean().backward()
            gradients.append([p.grad.clone() for p in model.parameters()])
            optimizer.step()
            optimizer.draws = 0  # the same noise once more
            optimizer.zero_grad()
        for one, two in zip(*gradients, strict=True):
            torch.testing.assert_close(2 * one, two)


def test_a_weight_in_the_place_of_one_that_is_gone_is_watched(monkeypatch):
    """Parameters are known by their address, which Python uses again."""
    monkeypatch.setattr(guards, "_compiles", lambda: False)  # else all are watched anew
    watch, weight = guards.GradientWatch(), nn.Parameter(torch.ones(2))
    gone = nn.Parameter(torch.ones(2))
    watch._covered[id(weight)] = weakref.ref(gone)
    watch.cover([weight])
    weight.sum().backward()
    with pytest.raises(RuntimeError, match="did not come through passes"):
        watch.check_outside(lambda p: "this")
