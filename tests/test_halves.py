"""Halves of a minibatch: their gradient is that of the whole, with every way to reduce a loss."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from seqssgd.optim import MRWP, SymmetricNoise, noise_groups
from seqssgd.optim.reference import scaled_noise, unit_noise

PAD = 0
TOKENS = torch.tensor(
    [[3, 1, 4, 1, 5], [2, 6, PAD, PAD, PAD], [5, 3, 5, PAD, PAD], [2, PAD, PAD, PAD, PAD], [6, 5, 4, 3, 2]]
)


class Tagger(nn.Module):
    """Tokens (B, T) in, losses (B, T) out; float64."""

    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(7, 4), nn.Linear(4, 7)
        self.double()

    def forward(self, tokens):
        logits = self.out(torch.tanh(self.table(tokens)))
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)


def make(**options):
    torch.manual_seed(2)
    model = Tagger()
    return model, SymmetricNoise(torch.optim.SGD(noise_groups(model, 0.5), lr=0.1), signs="halves", **options)


def expected(model, loss, tokens=TOKENS):
    """d/dw of loss(all losses (B, T)) with the first half of the sentences at w+n and the others at w-n."""
    names, weights = zip(*((name, p.detach()) for name, p in model.named_parameters()), strict=True)
    moved = [i for i, w in enumerate(weights) if w.ndim > 1]
    z = unit_noise([weights[i].shape for i in moved], "rademacher", 0, 0, torch.float64)
    noise = dict(zip(moved, scaled_noise([weights[i] for i in moved], z, 0.5, "tensor", None), strict=True))
    leaves = [w.clone().requires_grad_() for w in weights]
    half = len(tokens) // 2
    losses = []
    for sign, part in ((1, tokens[:half]), (-1, tokens[half:])):
        point = {name: p + sign * noise.get(i, 0) for i, (name, p) in enumerate(zip(names, leaves, strict=True))}
        losses.append(functional_call(model, point, (part,)))
    return torch.autograd.grad(loss(torch.cat(losses)), leaves)


def assert_gradients(model, wanted):
    for p, g in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-10, atol=1e-13)


def token_mean(losses):
    return (losses * (TOKENS != PAD)).sum() / (TOKENS != PAD).sum()


@pytest.mark.parametrize("as_what", ["mask", "lengths", "list"])
def test_a_mean_over_tokens_is_that_over_all_tokens_of_the_minibatch(as_what):
    model, optimizer = make()
    mask = TOKENS != PAD
    count = {"mask": mask, "lengths": mask.sum(1), "list": mask.sum(1).tolist()}[as_what]
    wanted = expected(model, token_mean)
    for part in optimizer.passes():
        tokens = part.take(TOKENS, count=count)
        model(tokens)[tokens != PAD].mean().backward()
    assert_gradients(model, wanted)


def test_without_a_count_every_sentence_counts_alike():
    model, optimizer = make()
    wanted = expected(model, lambda losses: losses.mean(1).mean())
    for part in optimizer.passes():
        model(part.take(TOKENS)).mean(1).mean().backward()
    assert_gradients(model, wanted)


@pytest.mark.parametrize("divisor", [1, len(TOKENS), 15], ids=["sum", "by the sentences", "num_items_in_batch"])
def test_a_sum_is_that_over_the_whole_minibatch_whatever_it_is_divided_by(divisor):
    model, optimizer = make(reduction="sum")
    wanted = expected(model, lambda losses: losses.sum() / divisor)
    for part in optimizer.passes():
        (model(part.take(TOKENS)).sum() / divisor).backward()
    assert_gradients(model, wanted)


def test_time_major_tokens_are_counted_along_their_dimension():
    model, optimizer = make()
    wanted = expected(model, token_mean)
    for part in optimizer.passes():
        tokens = part.take(TOKENS.T, dim=1, count=TOKENS.T != PAD).T
        model(tokens)[tokens != PAD].mean().backward()
    assert_gradients(model, wanted)


def test_micro_batches_of_a_sum_are_one_minibatch():
    model, optimizer = make(reduction="sum")
    for part in optimizer.passes():
        for rows in (TOKENS[:2], TOKENS[2:4]):
            model(part.take(rows)).sum().backward()
    first = [p.grad.clone() for p in model.parameters()]
    order = [0, 2, 1, 3]  # the first halves, then the second
    assert_gradients(model, expected(model, torch.sum, TOKENS[order]))
    optimizer.zero_grad()
    for rows in (TOKENS[:2], TOKENS[2:4]):
        for part in optimizer.passes():
            model(part.take(rows)).sum().backward()
    assert_gradients(model, first)


def test_a_half_without_a_token_counts_for_nothing():
    model, optimizer = make()
    tokens = TOKENS[[0, 1]].clone()
    tokens[1] = PAD
    wanted = expected(model, lambda losses: losses[0].mean(), tokens)
    for part in optimizer.passes():
        x = part.take(tokens, count=tokens != PAD)
        ((model(x) * (x != PAD)).sum() / (x != PAD).sum().clamp_min(1)).backward()
    assert_gradients(model, wanted)


def test_counts_that_say_nothing_or_contradict_are_refused():
    for options, take, word in (
        (dict(reduction="sum"), lambda part: part.take(TOKENS, count=TOKENS != PAD), "says it is a sum"),
        ({}, lambda part: part.take(TOKENS, count=15), "an entry for each example"),
        ({}, lambda part: part.take(TOKENS, count=torch.ones(3)), "one size"),
        ({}, lambda part: (part.take(TOKENS), part.take(TOKENS, count=TOKENS != PAD)), "in every take"),
    ):
        _, optimizer = make(**options)
        with pytest.raises(ValueError, match=word):
            for part in optimizer.passes():
                take(part)
    _, optimizer = make(reduction="sum")
    with pytest.raises(RuntimeError, match="says that the losses are sums"):
        for part in optimizer.passes():
            part.take(TOKENS)
            part.mean(torch.ones(2))
    with pytest.raises(ValueError, match="reduction='none' must be one of mean, sum"):
        make(reduction="none")


def test_a_whole_minibatch_needs_no_count():
    model, optimizer = make()
    optimizer.param_groups[0]["noise"] = 0.0
    for part in optimizer.passes():
        assert part.take(TOKENS, count=TOKENS != PAD) is TOKENS


# ---- what the passes took --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [None, "mrwp"])
@pytest.mark.parametrize("forgets", [0, 1])
def test_a_pass_that_does_not_take_its_half_is_noticed(method, forgets):
    model = nn.Linear(2, 2)
    base = torch.optim.SGD(noise_groups(model, 0.1), lr=0.1)
    optimizer = MRWP(base) if method else SymmetricNoise(base, signs="halves")
    x = torch.arange(10.0).view(5, 2)
    with pytest.raises(RuntimeError, match=f"pass {forgets} did not take it"):
        for part in optimizer.passes():
            y = x if part.index == forgets else part.take(x)
            model(y).sum().backward()


MICRO_BATCHES = {"sizes": ((TOKENS, None), (TOKENS[:2], None)), "counts": ((TOKENS[:2],) * 2, (TOKENS[2:4],) * 2)}


def mean_of(model, part, tokens, counted):
    x = part.take(tokens, count=tokens != PAD) if counted else part.take(tokens)
    return model(x)[x != PAD].mean() if counted else model(x).mean()


@pytest.mark.parametrize("what", MICRO_BATCHES)
def test_minibatches_of_unlike_halves_in_one_pass_are_refused_and_a_loop_around_each_is_exact(what):
    counted = what == "counts"
    batches = [tokens for tokens, _ in MICRO_BATCHES[what]]
    model, optimizer = make()
    with pytest.raises(ValueError, match=r"(?s)different shares.*loop over passes\(\) around each.*reduction=\"sum\""):
        for part in optimizer.passes():
            for tokens in batches:
                (mean_of(model, part, tokens, counted) / 2).backward()
    optimizer.zero_grad()
    each = []
    for tokens in batches:
        weights = (tokens != PAD) if counted else torch.ones_like(tokens)
        each.append(expected(model, lambda a, w=weights: (a * w).sum() / w.sum() / 2, tokens))
    for tokens in batches:
        for part in optimizer.passes():
            (mean_of(model, part, tokens, counted) / 2).backward()
    assert_gradients(model, [a + b for a, b in zip(*each, strict=True)])


@pytest.mark.parametrize("counted", [False, True])
def test_minibatches_of_like_halves_share_a_pass(counted):
    batches = TOKENS[:2], TOKENS[:2].flip(1)
    model, optimizer = make()
    weights = [(tokens != PAD) if counted else torch.ones_like(tokens) for tokens in batches]
    each = [expected(model, lambda a, w=w: (a * w).sum() / w.sum(), t) for t, w in zip(batches, weights, strict=True)]
    for part in optimizer.passes():
        for tokens in batches:
            mean_of(model, part, tokens, counted).backward()
    assert_gradients(model, [a + b for a, b in zip(*each, strict=True)])


def test_a_method_with_weights_of_its_own_takes_minibatches_of_any_sizes_in_one_pass():
    model = nn.Linear(2, 2)
    optimizer, whole = MRWP(torch.optim.SGD(noise_groups(model, 0.1), lr=0.1)), torch.arange(10.0).view(5, 2)
    lengths = []
    for part in optimizer.passes():
        for x in (whole, whole[:2]):
            mine = part.take(x)
            lengths.append(len(mine))
            model(mine).sum().backward()
    assert lengths[0] + lengths[2] == 5 and lengths[1] + lengths[3] == 2  # of each minibatch all, in two parts


def test_one_count_serves_two_takes_on_any_device():
    count = torch.ones(4, device="meta")
    model, optimizer = make()
    with pytest.raises(ValueError, match="not compared"):
        for part in optimizer.passes():
            part.take(TOKENS[:4], count=count), part.take(TOKENS[:4], count=count)
            part.take(TOKENS[:4], count=torch.ones(4, device="meta"))


def test_a_minibatch_without_a_counted_item_has_no_gradient_and_keeps_those_before():
    model, optimizer = make()
    for part in optimizer.passes():
        mean_of(model, part, TOKENS, True).backward()
    before = [p.grad.clone() for p in model.parameters()]
    for part in optimizer.passes():
        part.take(TOKENS, count=torch.zeros(5))
        model(TOKENS).mean().backward()  # even of a loss that is not 0
    for p, g in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_counts_that_are_no_numbers_of_items_are_refused(wrong):
    _, optimizer = make()
    with pytest.raises(ValueError, match="negative, infinite or no number"):
        for part in optimizer.passes():
            part.take(TOKENS, count=torch.tensor([1.0, 2, 3, 4, wrong]))


def test_a_count_that_has_not_the_dimension_of_the_examples_is_named():
    _, optimizer = make()
    with pytest.raises(
        ValueError, match=r"take\(dim=1\): count= of shape \(5,\) has no such dimension.*lengths\[None, :\]"
    ):
        for part in optimizer.passes():
            part.take(TOKENS.T, dim=1, count=torch.ones(5))
    _, optimizer = make()
    for part in optimizer.passes():
        half = part.take(TOKENS.T, dim=1, count=torch.ones(5)[None, :])
        assert half.shape[1] < 5
