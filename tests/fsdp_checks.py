"""What the methods must do under FSDP2; run by ``distributed_checks.py``."""

import torch
import torch.distributed as dist
from ranks import (
    WORLD,
    assert_same_on_every_rank,
    full,
    loss_fn,
    make_model,
    make_optimizer,
    make_sam,
    mine,
    minibatches,
    raises,
    sharded,
)
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

from seqssgd.optim import IVON, MSAM, DropConnect, ShapedNoise, SymmetricNoise, noise_groups
from seqssgd.optim.noise import GRANULARITIES, NORMS


def assert_noise(clean, moved, granularity, distribution):
    """Of the right norm over every unit; Rademacher noise of one magnitude, whichever shard it lies in."""
    weights = [name for name in clean if "weight" in name and "norm" not in name]
    assert len(weights) == 4
    for name in set(clean) - set(weights):
        assert torch.equal(clean[name], moved[name])
    if granularity == "layer":
        units = [weights[:2], *([name] for name in weights[2:])]
    else:
        units = [[name] for name in weights]
    for unit in units:
        w = torch.cat(
            [clean[name].flatten(1) if granularity == "filter" else clean[name].view(1, -1) for name in unit], 1
        )
        n = torch.cat([(moved[name] - clean[name]).view(len(w), -1) for name in unit], 1)
        torch.testing.assert_close(n.norm(dim=1), 0.5 * w.norm(dim=1), rtol=1e-10, atol=0)
        if distribution == "rademacher":
            torch.testing.assert_close(n.abs(), n.abs()[:, :1].expand_as(n), rtol=1e-10, atol=0)


def train_sharded(model, reference, optimizer):
    """Trains both; the reference takes its gradients at the very points where the sharded model was."""
    base = torch.optim.Adam(reference.parameters(), lr=0.01)
    for batch in minibatches(2):
        clean = {name: full(p) for name, p in model.named_parameters()}
        gradients = []
        for part in optimizer.passes():
            point = {name: full(p) for name, p in model.named_parameters()}
            assert_same_on_every_rank(point.values())
            assert_noise(clean, point, optimizer.source.granularity, optimizer.source.distribution)
            loss_fn(model, mine(batch)).backward()
            reference.load_state_dict(point)
            gradients.append(torch.autograd.grad(loss_fn(reference, batch), list(reference.parameters())))
            if part.index == 0:
                first = point
        for name, w in clean.items():
            torch.testing.assert_close(first[name] + point[name], 2 * w, rtol=1e-12, atol=1e-14)
            assert torch.equal(full(model.get_parameter(name)), w)
        reference.load_state_dict(clean)
        for p, q, a, b in zip(model.parameters(), reference.parameters(), *gradients, strict=True):
            q.grad = (a + b) / 2
            torch.testing.assert_close(full(p.grad), q.grad, rtol=1e-8, atol=1e-11)
        optimizer.step()
        optimizer.zero_grad()
        base.step()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(full(p), q.detach(), rtol=1e-8, atol=1e-10)


def fsdp_steps_as_one_process(granularities=NORMS, distribution="rademacher", **options):
    for granularity in granularities:
        model, reference = sharded(**options)
        optimizer = make_optimizer(model, granularity=granularity, distribution=distribution)
        train_sharded(model, reference, optimizer)


def fsdp_that_reshards_after_forward_steps_as_one_process():
    fsdp_steps_as_one_process(distribution="gaussian", reshard_after_forward=True)


def fsdp_that_does_not_reshard_after_forward_steps_as_one_process():
    fsdp_steps_as_one_process(["layer"], reshard_after_forward=False)


def hybrid_sharding_draws_the_same_noise_on_every_replica():
    for shape in ((WORLD, 1), (1, WORLD)):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
        model, reference = sharded(mesh)
        train_sharded(model, reference, make_optimizer(model))


def a_forward_without_backward_leaves_no_stale_weights():
    for where in ("before the loop", "in the first pass", "in the last pass"):
        for options in ({}, {"reshard_after_forward": False}):
            model, reference = sharded(**options)
            optimizer = make_optimizer(model)
            shards = dict(model.named_parameters())  # the model itself shows what it has gathered
            (batch,) = minibatches(1)

            def forward(model=model, reference=reference, shards=shards, batch=batch):
                """Must see the weights of now."""
                reference.load_state_dict({name: full(p) for name, p in shards.items()})
                output = model(batch)
                torch.testing.assert_close(output, reference(batch), rtol=1e-10, atol=1e-12)
                return output

            with torch.no_grad():
                forward()  # FSDP2 keeps its weights gathered, as no backward follows
            for part in optimizer.passes():
                forward().sum().backward()
                if where == "in the first pass" and part.index == 0 or where == "in the last pass" and part.last:
                    with torch.no_grad():
                        forward()
            with torch.no_grad():
                forward()


def shards_have_noise_of_their_own():
    wide = nn.Linear(64, 128, bias=False).double()
    with torch.no_grad():
        wide.weight.fill_(1.0)
    fully_shard(wide)
    optimizer = make_optimizer(wide)
    for part in optimizer.passes():
        if part.index == 0:
            first, second = (2 * (full(wide.weight) - 1)).chunk(WORLD)
    for shard in (first, second):
        torch.testing.assert_close(shard.abs(), torch.ones_like(shard))
    assert abs((first * second).sum().item()) < 5 * first.numel() ** 0.5  # uncorrelated, to five standard deviations


def weights_that_are_not_sharded_have_the_same_noise_on_every_rank_and_their_own():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(32, 64, bias=False), nn.Linear(64, 32, bias=False)).double()
    fully_shard(model[0])
    clean = [full(layer.weight) for layer in model]
    optimizer = make_optimizer(model)
    for _ in optimizer.passes():
        noise = [full(layer.weight) - w for layer, w in zip(model, clean, strict=True)]
        assert_same_on_every_rank(noise)
        for n, w in zip(noise, clean, strict=True):
            torch.testing.assert_close(n.norm(), 0.5 * w.norm(), rtol=1e-10, atol=0)
        for shard, whole in zip(noise[0].sign().chunk(WORLD), noise[1].sign().view(WORLD, -1), strict=True):
            assert abs((shard.flatten() @ whole).item()) < 5 * whole.numel() ** 0.5


# ---- refusals --------------------------------------------------------------------------------------------------------


def fsdp_without_model_is_refused():
    model, _ = sharded()
    optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(model, noise=0.5), lr=0.1))
    raises(ValueError, "pass model=", lambda: list(optimizer.passes()))


def fsdp_that_stays_gathered_after_backward_is_refused_and_named():
    model, _ = sharded()
    optimizer = make_optimizer(model)
    clean = [full(p) for p in model.parameters()]
    model.hidden.set_reshard_after_backward(False)
    raises(ValueError, "the FSDP2 module 'hidden' keeps its weights gathered", lambda: list(optimizer.passes()))
    model.hidden.set_reshard_after_backward(True)
    model.set_reshard_after_backward(False, recurse=False)
    raises(ValueError, "keeps its weights gathered after backward", lambda: list(optimizer.passes()))
    assert all(torch.equal(full(p), w) for p, w in zip(model.parameters(), clean, strict=True))
    for group in optimizer.param_groups:
        group["noise"] = 0.0
    for _ in optimizer.passes():  # nothing moves: gathered weights are not stale
        loss_fn(model, mine(minibatches(1)[0])).backward()
    optimizer.step()


def filters_torn_apart_and_mixed_shardings_are_refused():
    mesh = init_device_mesh("cpu", (WORLD,))
    weights = torch.ones(4, 4, dtype=torch.float64)
    rows = nn.Parameter(distribute_tensor(weights, mesh, [Shard(0)]))
    columns = nn.Parameter(distribute_tensor(weights, mesh, [Shard(1)]))
    replicated = nn.Parameter(distribute_tensor(weights, mesh))
    for granularity in GRANULARITIES:
        for params, text in (([columns], "sharded along dimension 0"), ([rows, replicated], "the same placements")):
            group = {"params": params, "noise": 0.5}
            base, model = torch.optim.SGD([group], lr=0.1), nn.ParameterList(params)
            optimizer = SymmetricNoise(base, granularity=granularity, model=model)
            raises(ValueError, text, lambda optimizer=optimizer: list(optimizer.passes()))
            assert all(torch.equal(full(p), weights) for p in params)


def what_needs_whole_weights_is_refused():
    model, _ = sharded()
    groups = noise_groups(model, noise=0.5)
    for said, make in (
        ('signs="ranks" with sharded weights', lambda: make_optimizer(model, signs="ranks")),
        ("balance=True with sharded weights", lambda: make_optimizer(model, balance=True)),
        ("curvature of sharded weights", lambda: make_optimizer(model).record_curvature()),
        ("ShapedNoise with sharded weights", lambda: ShapedNoise(torch.optim.SGD(groups, lr=0.1))),
        ("IVON with sharded weights", lambda: IVON(model.parameters(), 0.1, ess=100.0)),
        ("MSAM with sharded weights", lambda: MSAM(torch.optim.Adam(model.parameters()), rho=0.1)),
    ):
        raises(ValueError, said, make)


def sharded_halves_that_are_not_one_share_of_the_minibatches_of_all_are_refused():
    model, _ = sharded()
    optimizer, own = make_optimizer(model, signs="halves"), minibatches(1, 9)[0].split((5, 4))[dist.get_rank()]

    def run():
        for part in optimizer.passes():
            loss_fn(model, part.take(own)).backward()

    raises(RuntimeError, "(from 0.4 to 0.5)", run)


def weights_flattened_by_fsdp1_are_refused():
    for original in (False, True):
        model = FullyShardedDataParallel(make_model(), device_id=torch.device("cpu"), use_orig_params=original)
        raises(ValueError, "use torch.distributed.fsdp.fully_shard", lambda model=model: noise_groups(model, noise=0.5))


# ---- other methods ---------------------------------------------------------------------------------------------------


def sharded_sam_and_asam_step_as_one_process():
    for adaptive in (False, True):
        model, alone = sharded()
        optimizer, reference = make_sam(model, adaptive=adaptive), make_sam(alone, adaptive=adaptive)
        for batch in minibatches():
            for net, one, data in ((model, optimizer, mine(batch)), (alone, reference, batch)):
                for _ in one.passes():
                    loss_fn(net, data).backward()
                one.step()
                one.zero_grad()
        for p, q in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(full(p), q.detach(), rtol=1e-8, atol=1e-10)


def sharded_dropconnect_masks_weights_and_gradients_alike():
    model, _ = sharded()
    optimizer = DropConnect(torch.optim.SGD(noise_groups(model, noise=0.5), lr=0.1), model=model)
    for _ in optimizer.passes():
        dropped = {name: full(p) == 0 for name, p in model.named_parameters() if "weight" in name}
        loss_fn(model, mine(minibatches()[0])).backward()
    masks = torch.cat([mask.flatten() for name, mask in dropped.items() if "norm" not in name])
    assert 0.3 < masks.double().mean() < 0.7
    for name, mask in dropped.items():
        gradient = full(model.get_parameter(name).grad)
        assert not gradient[mask].any() and gradient[~mask].any()


CHECKS = (
    fsdp_steps_as_one_process,
    fsdp_that_reshards_after_forward_steps_as_one_process,
    fsdp_that_does_not_reshard_after_forward_steps_as_one_process,
    hybrid_sharding_draws_the_same_noise_on_every_replica,
    a_forward_without_backward_leaves_no_stale_weights,
    shards_have_noise_of_their_own,
    weights_that_are_not_sharded_have_the_same_noise_on_every_rank_and_their_own,
    fsdp_without_model_is_refused,
    fsdp_that_stays_gathered_after_backward_is_refused_and_named,
    filters_torn_apart_and_mixed_shardings_are_refused,
    what_needs_whole_weights_is_refused,
    sharded_halves_that_are_not_one_share_of_the_minibatches_of_all_are_refused,
    weights_flattened_by_fsdp1_are_refused,
    sharded_sam_and_asam_step_as_one_process,
    sharded_dropconnect_masks_weights_and_gradients_alike,
)
