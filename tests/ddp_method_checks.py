"""What the other methods must do under DistributedDataParallel; run by ``distributed_checks.py``."""

import contextlib

import torch
from peer_methods import ASCENTS, HALVES, METHODS, WEIGHED, network
from ranks import (
    WORLD,
    assert_same_on_every_rank,
    assert_same_weights,
    loss_fn,
    make_model,
    make_sam,
    mine,
    minibatches,
    step_all,
)
from torch.nn.parallel import DistributedDataParallel

from seqssgd.optim import IVON, CovarianceNoise
from seqssgd.optim.reference import unit_noise


def sam_under_ddp_has_a_perturbation_of_each_ranks_own_data():
    model, alone = make_model(), make_model()
    ddp = DistributedDataParallel(model)
    optimizer, reference = make_sam(model), make_sam(alone)
    for batch in minibatches():
        for part in optimizer.passes():
            with contextlib.nullcontext() if part.last else ddp.no_sync():
                loss_fn(ddp, mine(batch)).backward()
        for rank in range(WORLD):
            for _ in reference.passes():
                (loss_fn(alone, batch[rank::WORLD]) / WORLD).backward()
        step_all(optimizer, reference)
        assert_same_on_every_rank(model.parameters())
    assert_same_weights(model, alone)


def covariance_noise_weighs_the_examples_of_each_rank_by_noise_of_its_own():
    for diagonal in (False, True):
        model, alone = make_model(), make_model()
        ddp = DistributedDataParallel(model)
        sgd, reference = (torch.optim.SGD(net.parameters(), lr=0.1) for net in (model, alone))
        optimizer = CovarianceNoise(sgd, noise=2.0, diagonal=diagonal, seed=7)

        def losses(net, x):
            return net(x).sub(1).square().mean((1, 2))

        for step, batch in enumerate(minibatches()):
            for part in optimizer.passes():
                with contextlib.nullcontext() if part.last else ddp.no_sync():
                    part.mean(losses(ddp, mine(batch))).backward()
            for rank in range(WORLD):
                own = losses(alone, batch[rank::WORLD])
                (epsilon,) = unit_noise([own.shape], "gaussian", 7, step * WORLD + rank, own.dtype)
                noise = torch.autograd.grad((2 * epsilon * own).mean(), alone.parameters(), retain_graph=True)
                signs = unit_noise([n.shape for n in noise], "rademacher", 7, step, own.dtype)
                own.mean().div(WORLD).backward()
                for p, n, sign in zip(alone.parameters(), noise, signs, strict=True):
                    p.grad += (n * sign if diagonal else n) / WORLD
            step_all(optimizer, reference)
            assert_same_on_every_rank(model.parameters())
        assert_same_weights(model, alone)


def ivon_has_the_curvature_of_the_whole_minibatch_on_every_rank():
    for signs in ("one", "batch", "steps"):
        model, alone = make_model(), make_model()
        ddp = DistributedDataParallel(model)
        optimizer, reference = (
            IVON(net.parameters(), 0.1, ess=100.0, betas=(0.9, 0.9), hess_init=0.3, signs=signs, seed=7)
            for net in (model, alone)
        )
        batches = list(minibatches(4))
        for number, batch in enumerate(batches):
            steps = number != 2  # the last two are of one step
            for part in optimizer.passes():
                with contextlib.nullcontext() if part.last and steps else ddp.no_sync():
                    loss_fn(ddp, mine(batch)).backward()
            for _ in reference.passes():
                loss_fn(alone, batch).backward()
            if not steps:
                continue
            step_all(optimizer, reference)
            assert_same_on_every_rank([optimizer.state[p]["hess"] for p in model.parameters()])
            assert_same_on_every_rank(model.parameters())
        for p, q in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(optimizer.state[p]["hess"], reference.state[q]["hess"], rtol=1e-9, atol=1e-11)


def every_method_accumulates_as_one_process_on_all_of_the_data(bucket_view=False):
    """All loops but the last without synchronisation."""
    generator = torch.Generator().manual_seed(8)
    batches = torch.randn(4, 8, 4, dtype=torch.float64, generator=generator)
    for name, (make, *_) in METHODS.items():
        model, alone = network(), network()
        ddp = DistributedDataParallel(model, gradient_as_bucket_view=bucket_view)
        optimizer, reference = (make(net, lr=0.1, momentum=0.9) for net in (model, alone))
        own = (*ASCENTS, *WEIGHED, *HALVES)  # where a rank's perturbation or weights are those of its own data

        def losses(net, x):
            return net(x).sub(1).square().mean(1)

        for pair in (batches[:2], batches[2:]):
            for number, batch in enumerate(pair):
                for part in optimizer.passes():
                    synchronised = part.last and number == 1
                    with contextlib.nullcontext() if synchronised else ddp.no_sync():
                        part.mean(losses(ddp, part.take(mine(batch)))).backward()
                for part in reference.passes():
                    part.mean(losses(alone, part.take(batch))).backward()
            assert_same_on_every_rank([p.grad for p in model.parameters()])
            step_all(optimizer, reference)
        assert_same_on_every_rank(model.parameters())
        for p, q in zip(model.parameters(), alone.parameters(), strict=True):
            if name not in own:
                torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


def every_method_accumulates_so_where_gradients_are_views_of_its_buckets():
    every_method_accumulates_as_one_process_on_all_of_the_data(bucket_view=True)


def dropconnect_keeps_gradients_that_were_added_by_hand():
    model, alone = network(), network()
    ddp = DistributedDataParallel(model)
    optimizer, reference = (METHODS["dropconnect"][0](net, lr=0.1, momentum=0.9) for net in (model, alone))
    batch = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    for net in (model, alone):
        for p in net.parameters():
            p.grad = torch.ones_like(p)
    for _ in optimizer.passes():
        ddp(mine(batch)).square().mean().backward()
    for _ in reference.passes():
        alone(batch).square().mean().backward()
    for p, q in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-11)


CHECKS = (
    sam_under_ddp_has_a_perturbation_of_each_ranks_own_data,
    covariance_noise_weighs_the_examples_of_each_rank_by_noise_of_its_own,
    ivon_has_the_curvature_of_the_whole_minibatch_on_every_rank,
    every_method_accumulates_as_one_process_on_all_of_the_data,
    every_method_accumulates_so_where_gradients_are_views_of_its_buckets,
    dropconnect_keeps_gradients_that_were_added_by_hand,
)
