"""What S-SGD must do under DistributedDataParallel; run by ``distributed_checks.py``."""

import contextlib

import torch
import torch.distributed as dist
from ranks import (
    WORLD,
    assert_same_on_every_rank,
    assert_same_weights,
    loss_fn,
    make_model,
    make_optimizer,
    mine,
    minibatches,
    raises,
    step_all,
)
from torch import nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from seqssgd.optim import IVON, ShapedNoise, SymmetricNoise, noise_groups
from seqssgd.optim.reference import ReferenceSymmetricNoise


def train_alone():
    model = make_model()
    optimizer = make_optimizer(model)
    for batch in minibatches():
        for _ in optimizer.passes():
            loss_fn(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def ddp_with_one_synchronisation_a_step_is_one_process_on_the_whole_minibatch(bucket_view=False):
    model = make_model()
    ddp = DistributedDataParallel(model, gradient_as_bucket_view=bucket_view)
    reductions = []

    def count(state, bucket):
        reductions.append(bucket.index())
        future = dist.all_reduce(bucket.buffer().div_(WORLD), async_op=True).get_future()
        return future.then(lambda f: f.value()[0])

    ddp.register_comm_hook(None, count)
    optimizer = make_optimizer(model)
    for batch in minibatches():
        before = len(reductions)
        for part in optimizer.passes():
            assert_same_on_every_rank(model.parameters())  # at w+n and w-n too
            with contextlib.nullcontext() if part.last else ddp.no_sync():
                loss_fn(ddp, mine(batch)).backward()
        assert len(reductions) == before + 1
        assert_same_on_every_rank([p.grad for p in model.parameters()])
        optimizer.step()
        optimizer.zero_grad()
    assert_same_on_every_rank(model.parameters())
    assert_same_weights(model, train_alone())


def ddp_with_a_loop_over_passes_for_each_accumulated_minibatch(bucket_view=False):
    """As Accelerate and Hugging Face's Trainer do it: all but the last loop without synchronisation."""
    model, alone = make_model(), make_model()
    ddp = DistributedDataParallel(model, gradient_as_bucket_view=bucket_view)
    optimizer, reference = make_optimizer(model), make_optimizer(alone)
    batches = list(minibatches())
    for pair in zip(batches[::2], batches[1::2], strict=False):
        for number, batch in enumerate(pair):
            with contextlib.nullcontext() if number == 1 else ddp.no_sync():
                for part in optimizer.passes():
                    with contextlib.nullcontext() if part.last else ddp.no_sync():
                        loss_fn(ddp, mine(batch)).backward()
            for _ in reference.passes():
                loss_fn(alone, batch).backward()
        assert_same_on_every_rank([p.grad for p in model.parameters()])
        step_all(optimizer, reference)
    assert_same_weights(model, alone)


def ddp_accumulates_so_where_gradients_are_views_of_its_buckets():
    ddp_with_a_loop_over_passes_for_each_accumulated_minibatch(bucket_view=True)


def ddp_whose_gradients_are_views_of_its_buckets():
    ddp_with_one_synchronisation_a_step_is_one_process_on_the_whole_minibatch(bucket_view=True)


def train_by_ranks(share, signs="ranks"):
    """A sign on each rank, which sees ``share(batch)``: one pass, one synchronisation."""
    model = make_model()
    ddp = DistributedDataParallel(model)
    optimizer = make_optimizer(model, signs=signs)
    for batch in minibatches():
        for part in optimizer.passes():
            assert part.last and part.sign == (-1 if dist.get_rank() else +1)
            assert part.cost == (2 if signs == "pairs" else 1)
            loss_fn(ddp, share(batch)).backward()
        assert_same_on_every_rank([p.grad for p in model.parameters()])
        optimizer.step()
        optimizer.zero_grad()
        assert_same_on_every_rank(model.parameters())
    return model


def a_sign_on_each_rank_is_the_mean_at_both_points_over_the_data_of_each():
    model = train_by_ranks(mine)
    reference = make_model()
    groups, names = noise_groups(reference, 0.5), {p: name for name, p in reference.named_parameters()}
    order = [names[p] for group in groups for p in group["params"]]
    twin = ReferenceSymmetricNoise(torch.optim.Adam(groups, lr=0.01))
    for batch in minibatches():

        def gradients_at(weights, path, batch=batch):
            leaves = {name: w.clone().requires_grad_() for name, w in zip(order, weights, strict=True)}
            loss = loss_fn(lambda x: functional_call(reference, leaves, (x,)), batch[path::WORLD])
            return torch.autograd.grad(loss, list(leaves.values()))

        twin.step(gradients_at)
    assert_same_weights(model, reference)


def a_sign_on_each_rank_with_one_minibatch_for_both_is_the_papers_step():
    model = train_by_ranks(lambda batch: batch, "pairs")
    assert_same_weights(model, train_alone())


def curvature_of_a_pair_of_processes_is_that_of_one_with_both_signs():
    """By layer, and by weight, over several loops of a step; the gradients of DDP are the mean over both signs."""
    for method in ("layers", "shaped", "balanced", "ivon"):
        model, alone = make_model(), make_model()
        ddp = DistributedDataParallel(model)

        def make(net, signs, method=method):
            if method == "ivon":
                return IVON(net.parameters(), 0.1, ess=50.0, betas=(0.9, 0.9), hess_init=0.3, signs=signs, seed=7)
            base = torch.optim.SGD(noise_groups(net, noise=0.5), lr=0.1, momentum=0.9)
            if method == "shaped":
                return ShapedNoise(base, signs=signs, precondition=True, seed=7)
            optimizer = SymmetricNoise(base, signs=signs, balance=method == "balanced", seed=7)
            if method == "layers":
                optimizer.record_curvature()
            else:
                optimizer._balance.first = 1
            return optimizer

        optimizer, reference = make(model, "pairs"), make(alone, "batch")
        batches = list(minibatches(6))
        for pair in zip(batches[::2], batches[1::2], strict=True):
            for number, batch in enumerate(pair):
                for part in optimizer.passes():
                    assert part.cost == 2
                    for last in (False, True):  # what comes in one pass adds up too
                        with contextlib.nullcontext() if number == 1 and last else ddp.no_sync():
                            (loss_fn(ddp, batch) / 4).backward()
                for _ in reference.passes():
                    (loss_fn(alone, batch) / 2).backward()
            if method == "layers":
                found, wanted = optimizer.curvature(), reference.curvature()
                assert list(found) == list(wanted)
                for name, figures in wanted.items():
                    torch.testing.assert_close(torch.stack(found[name]), torch.stack(figures), rtol=1e-9, atol=1e-12)
            step_all(optimizer, reference)
            assert_same_on_every_rank(model.parameters())
        assert_same_weights(model, alone, method)
        assert not any(p._backward_hooks for p in model.parameters())


def curvature_is_that_of_the_data_of_all_processes():
    model, alone = make_model(), make_model()
    ddp = DistributedDataParallel(model)
    optimizer, reference = make_optimizer(model), make_optimizer(alone)
    for each in (optimizer, reference):
        each.record_curvature()
    batches = list(minibatches(4))
    for pair in zip(batches[::2], batches[1::2], strict=True):
        for number, batch in enumerate(pair):  # two loops of one step; all but the last pass are not synchronised
            for part in optimizer.passes():
                with contextlib.nullcontext() if part.last and number == 1 else ddp.no_sync():
                    (loss_fn(ddp, mine(batch)) / 2).backward()
            for _ in reference.passes():
                (loss_fn(alone, batch) / 2).backward()
        found, wanted = optimizer.curvature(), reference.curvature()
        assert list(found) == list(wanted) and len(wanted) == 3
        assert_same_on_every_rank([torch.stack(figures) for figures in found.values()])
        for name, figures in wanted.items():
            torch.testing.assert_close(torch.stack(found[name]), torch.stack(figures), rtol=1e-9, atol=1e-12)
        step_all(optimizer, reference)


class Skipping(nn.Module):
    """A network that may leave a layer out."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x, skips):
        hidden = self.first(x).tanh()
        return self.last(hidden if skips else hidden + self.second(hidden))


def a_layer_that_one_rank_skips_has_no_gradient_there_and_that_of_the_others_in_the_mean():
    def make(net, signs, method):
        if method == "ivon":
            return IVON(net.parameters(), 0.1, ess=50.0, betas=(0.9, 0.9), hess_init=0.3, signs=signs, seed=7)
        base = torch.optim.SGD(noise_groups(net, noise=0.5), lr=0.1)
        return ShapedNoise(base, signs=signs, precondition=True, seed=7)

    for method in ("ivon", "shaped"):
        torch.manual_seed(3)
        model, alone = Skipping().double(), Skipping().double()
        alone.load_state_dict(model.state_dict())
        ddp = DistributedDataParallel(model, find_unused_parameters=True)
        optimizer, reference = make(model, "pairs", method), make(alone, "batch", method)
        for batch in minibatches(3):
            for part in optimizer.passes():
                ddp(batch, part.sign < 0).sub(1).square().mean().backward()
            for part in reference.passes():
                alone(batch, part.sign < 0).sub(1).square().mean().backward()
            step_all(optimizer, reference)
            assert_same_on_every_rank(model.parameters())
        assert_same_weights(model, alone, method)


def halves_that_are_not_one_share_of_the_minibatches_of_all_are_refused_on_every_rank():
    batch, model = minibatches(1, 9)[0], make_model()
    before, ddp = [p.detach().clone() for p in model.parameters()], DistributedDataParallel(model)

    def run(optimizer, sizes, reduce):
        own = batch[: sum(sizes)].split(sizes)[dist.get_rank()]
        for part in optimizer.passes():
            with contextlib.nullcontext() if part.last else ddp.no_sync():
                reduce(ddp(part.take(own)).sub(1).square()).backward()

    means = make_optimizer(model, signs="halves")
    sums = make_optimizer(model, signs="halves", reduction="sum", seed=1)
    for sizes, shares in (((5, 4), "0.4 to 0.5"), ((2, 7), "0.4286 to 0.5")):
        raises(RuntimeError, f"shares of them (from {shares})", lambda sizes=sizes: run(means, sizes, torch.mean))
        assert all(map(torch.equal, model.parameters(), before))
        means.zero_grad()
    for optimizer, sizes, reduce in ((means, (6, 2), torch.mean), (sums, (5, 4), torch.sum)):
        run(optimizer, sizes, reduce)
        optimizer.step()
        optimizer.zero_grad()
        assert_same_on_every_rank(model.parameters())


def balanced_levels_are_those_of_the_data_of_all_processes():
    model, alone = make_model(), make_model()
    ddp = DistributedDataParallel(model)
    optimizer, reference = (make_optimizer(net, balance=True) for net in (model, alone))
    for each in (optimizer, reference):
        each._balance.first = 1
    for batch in minibatches(4):
        for part in optimizer.passes():
            with contextlib.nullcontext() if part.last else ddp.no_sync():
                loss_fn(ddp, mine(batch)).backward()
        for _ in reference.passes():
            loss_fn(alone, batch).backward()
        step_all(optimizer, reference)
        assert_same_on_every_rank(model.parameters())
    assert_same_weights(model, alone)


def a_seed_for_each_process_is_refused_where_curvature_is_measured_and_there_alone():
    def ivon(net, **settings):
        return IVON(net.parameters(), 0.1, ess=50.0, seed=dist.get_rank(), **settings)

    def shaped(net):
        return ShapedNoise(torch.optim.SGD(noise_groups(net, noise=0.5), lr=0.1), seed=-dist.get_rank())

    def recording(net):
        optimizer = make_optimizer(net, seed=2**70 + dist.get_rank())
        optimizer.record_curvature()
        return optimizer

    def run(make, model):
        for _ in make(model).passes():
            loss_fn(model, minibatches(1)[0]).backward()

    pairs = {"signs": "pairs", "balance": True}
    refused = (ivon, lambda net: ivon(net, signs="batch"), shaped, recording,
               lambda net: make_optimizer(net, seed=dist.get_rank(), **pairs))  # fmt: skip
    for make in refused:
        model = make_model()
        raises(RuntimeError, "give all of them one seed=", lambda make=make, model=model: run(make, model))
        assert_same_weights(model, make_model())
    for make in (lambda net: ivon(net, estimate="square"), lambda net: make_optimizer(net, seed=dist.get_rank())):
        run(make, make_model())


CHECKS = (
    ddp_with_one_synchronisation_a_step_is_one_process_on_the_whole_minibatch,
    ddp_whose_gradients_are_views_of_its_buckets,
    ddp_with_a_loop_over_passes_for_each_accumulated_minibatch,
    ddp_accumulates_so_where_gradients_are_views_of_its_buckets,
    a_sign_on_each_rank_is_the_mean_at_both_points_over_the_data_of_each,
    a_sign_on_each_rank_with_one_minibatch_for_both_is_the_papers_step,
    curvature_of_a_pair_of_processes_is_that_of_one_with_both_signs,
    curvature_is_that_of_the_data_of_all_processes,
    a_layer_that_one_rank_skips_has_no_gradient_there_and_that_of_the_others_in_the_mean,
    halves_that_are_not_one_share_of_the_minibatches_of_all_are_refused_on_every_rank,
    balanced_levels_are_those_of_the_data_of_all_processes,
    a_seed_for_each_process_is_refused_where_curvature_is_measured_and_there_alone,
)
