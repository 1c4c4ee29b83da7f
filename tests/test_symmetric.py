"""SymmetricNoise against its slow twin, for every optimizer of torch, and the laws that hold for each."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call

from seqssgd.optim import SinglePass, SymmetricNoise, noise_groups
from seqssgd.optim.reference import ReferenceSymmetricNoise

OPTIMIZERS = {
    "SGD": dict(lr=0.1, momentum=0.9, weight_decay=1e-3),
    "Adam": dict(lr=0.01),
    "AdamW": dict(lr=0.01),
    "Adamax": dict(lr=0.01),
    "NAdam": dict(lr=0.01),
    "RAdam": dict(lr=0.01),
    "Adagrad": dict(lr=0.01),
    "Adadelta": dict(lr=0.1),
    "Adafactor": dict(lr=0.01),
    "RMSprop": dict(lr=0.01, momentum=0.5),
    "Rprop": dict(lr=0.01),
    "ASGD": dict(lr=0.01),
    "Muon": dict(lr=0.01),
    "SparseAdam": dict(lr=0.01),
}


def test_the_matrix_covers_every_optimizer_of_torch():
    classes = {
        name
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    }
    assert classes - {"Optimizer", "LBFGS"} == set(OPTIMIZERS)


class SequenceModel(nn.Module):
    """Every role and a norm layer; float64, so that the twin agrees to many digits."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.conv = nn.Conv1d(6, 5, 3, padding=1)
        self.norm = nn.LayerNorm(5)
        self.rnn = nn.LSTM(5, 4, batch_first=True)
        self.out = nn.Linear(4, 7)

    def forward(self, tokens):
        x = torch.tanh(self.conv(self.embed(tokens).mT)).mT
        return self.out(self.rnn(self.norm(x))[0])


class Matrices(nn.Module):
    """For Muon, which takes matrices only."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.out = nn.Linear(6, 7, bias=False)

    def forward(self, tokens):
        return self.out(torch.tanh(self.embed(tokens)))


class SparseMatrices(nn.Module):
    """For SparseAdam, which takes sparse gradients only."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 7, sparse=True)

    def forward(self, tokens):
        return self.embed(tokens)


def make(name, noise=0.4, dtype=torch.float64, **options):
    torch.manual_seed(1)
    model = {"Muon": Matrices, "SparseAdam": SparseMatrices}.get(name, SequenceModel)().to(dtype)
    base = getattr(torch.optim, name)(noise_groups(model, noise=noise), **OPTIMIZERS[name])
    return model, SymmetricNoise(base, **options)


def batches(count, size=6):
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(7, (2, size, 5), generator=generator) for _ in range(count)]


def loss_fn(logits, targets):
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def train(model, optimizer, data):
    for inputs, targets in data:
        for part in optimizer.passes():
            x, y = part.take(inputs, targets)
            loss_fn(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


def bits(model):
    return [p.detach().clone() for p in model.parameters()]


def same_bits(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def run_twin(model, twin, data, halves=False):
    names = {id(p): name for name, p in model.named_parameters()}
    params = [p for group in twin.base.param_groups for p in group["params"]]
    for inputs, targets in data:
        half = len(inputs) // 2
        parts = [(inputs, targets)] * 2
        if halves:
            parts = [(inputs[:half], targets[:half]), (inputs[half:], targets[half:])]
        shares = (half / len(inputs), 1 - half / len(inputs)) if halves else (0.5, 0.5)

        def gradients_at(weights, path, parts=parts):
            leaves = {names[id(p)]: w.clone().requires_grad_() for p, w in zip(params, weights, strict=True)}
            x, y = parts[path]
            loss = loss_fn(functional_call(model, leaves, (x,)), y)
            return torch.autograd.grad(loss, list(leaves.values()))

        twin.step(gradients_at, shares)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_fast_form_equals_the_twin_for_every_optimizer(name):
    model, optimizer = make(name)
    reference = copy.deepcopy(model)
    twin = ReferenceSymmetricNoise(type(optimizer.base)(noise_groups(reference, 0.4), **OPTIMIZERS[name]))
    train(model, optimizer, batches(5))
    run_twin(reference, twin, batches(5))
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("granularity", ["tensor", "layer", "filter"])
@pytest.mark.parametrize("distribution", ["rademacher", "gaussian", "uniform"])
@pytest.mark.parametrize("signs", ["batch", "halves", "steps"])
def test_the_fast_form_equals_the_twin_in_every_mode(distribution, granularity, signs):
    options = dict(distribution=distribution, granularity=granularity, signs=signs, seed=11)
    model, optimizer = make("Adam", **options)
    reference = copy.deepcopy(model)
    twin = ReferenceSymmetricNoise(torch.optim.Adam(noise_groups(reference, 0.4), lr=0.01), **options)
    data = batches(4, size=5)  # five examples: the halves are unequal
    train(model, optimizer, data)
    run_twin(reference, twin, data, halves=signs == "halves")
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("how", ["passes", "closure"])
def test_level_zero_is_the_bare_optimizer_to_the_bit(name, how):
    model, optimizer = make(name, noise=0.0)
    bare = copy.deepcopy(model)
    base = type(optimizer.base)(bare.parameters(), **OPTIMIZERS[name])
    for inputs, targets in batches(4):
        loss_fn(bare(inputs), targets).backward()
        base.step()
        base.zero_grad()
        if how == "passes":
            train(model, optimizer, [(inputs, targets)])
        else:

            def closure(inputs=inputs, targets=targets):
                optimizer.zero_grad()
                loss = loss_fn(model(inputs), targets)
                loss.backward()
                return loss

            optimizer.step(closure)
    assert same_bits(bits(model), bits(bare))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("signs", ["batch", "steps"])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(name, signs, tmp_path):
    # float32, as NAdam loads its own float32 product as float64 when the weights are float64
    data = batches(7)
    model, optimizer = make(name, dtype=torch.float32, signs=signs)
    train(model, optimizer, data)

    first, optimizer_1 = make(name, dtype=torch.float32, signs=signs)
    train(first, optimizer_1, data[:3])  # an odd number: "steps" is in the middle of a pair
    torch.save({"model": first.state_dict(), "optimizer": optimizer_1.state_dict()}, tmp_path / "c.pt")
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    second, optimizer_2 = make(name, dtype=torch.float32, signs=signs)
    second.load_state_dict(saved["model"])
    optimizer_2.load_state_dict(saved["optimizer"])
    train(second, optimizer_2, data[3:])
    assert same_bits(bits(second), bits(model))


def test_lbfgs_and_things_that_are_no_optimizer_are_refused():
    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(TypeError, match="LBFGS"):
        SymmetricNoise(torch.optim.LBFGS([weight]))
    with pytest.raises(TypeError, match="torch.optim optimizer"):
        SymmetricNoise(torch.optim.Adam)
    inner = SymmetricNoise(torch.optim.SGD([{"params": [weight], "noise": 0.1}], lr=0.1))
    with pytest.raises(TypeError, match="already"):
        SymmetricNoise(inner)


def test_groups_without_any_level_are_refused():
    with pytest.raises(ValueError, match="noise_groups"):
        SymmetricNoise(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1))


@pytest.mark.parametrize("signs", ["batch", "halves", "steps"])
def test_a_closure_gives_the_step_of_the_loop(signs):
    data = batches(4)
    model, optimizer = make("Adam", signs=signs)
    other, by_closure = make("Adam", signs=signs)
    losses = []
    for inputs, targets in data:

        def closure(inputs=inputs, targets=targets):
            by_closure.zero_grad()  # Lightning's closures do so between forward and backward, others not at all
            loss = loss_fn(other(inputs), targets)
            loss.backward()
            return loss

        if signs == "halves":
            with pytest.raises(RuntimeError, match="closure"):
                by_closure.step(closure)
            return
        losses.append(by_closure.step(closure))
    train(model, optimizer, data)
    assert same_bits(bits(model), bits(other))
    assert all(loss.ndim == 0 and not loss.requires_grad for loss in losses)


def test_a_closure_may_leave_the_gradients_alone():
    inputs, targets = batches(1)[0]
    model, optimizer = make("SGD")
    other, by_closure = make("SGD")

    def closure():
        loss = loss_fn(other(inputs), targets)
        loss.backward()
        return loss

    def by_hand(net):  # a gradient that was there before the step
        parameters = list(net.parameters())
        for p, g in zip(parameters, torch.autograd.grad(net(inputs.flip(0)).sum(), parameters), strict=True):
            p.grad = g

    by_hand(model)
    train(model, optimizer, [(inputs, targets)])
    by_hand(other)
    mean = by_closure.step(closure)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)

    again, probe = make("SGD")
    values = []
    for _ in probe.passes():
        values.append(loss_fn(again(inputs), targets).item())
    assert mean.item() == pytest.approx(sum(values) / 2)


def test_single_pass_is_the_bare_optimizer_and_needs_no_levels():
    inputs, targets = batches(1)[0]
    model = SequenceModel().double()
    bare = copy.deepcopy(model)
    base = torch.optim.SGD(bare.parameters(), lr=0.1)
    loss_fn(bare(inputs), targets).backward()
    base.step()
    train(model, SinglePass(torch.optim.SGD(model.parameters(), lr=0.1)), [(inputs, targets)])
    assert same_bits(bits(model), bits(bare))


def test_schedulers_treat_it_as_any_optimizer():
    model, optimizer = make("SGD")
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, batches(1))
        scheduler.step()
    assert optimizer.base.param_groups[0]["lr"] == pytest.approx(0.05)
    plateau.step(1.0)
    plateau.step(2.0)
    assert optimizer.base.param_groups[0]["lr"] == pytest.approx(0.005)
