"""What a trainer did, once more and by hand, on the minibatches that its model was shown.

A step: set w+n, ``torch.autograd.grad``; set w-n, ``torch.autograd.grad``; the mean; w again; clip; the base's step.
"""

import contextlib

import torch
from torch import nn

from seqssgd.optim.reference import ReferenceSymmetricNoise


@contextlib.contextmanager
def recording(model):
    """The keyword arguments of every call of ``model`` in training mode, in order."""
    seen = []

    def note(module, args, kwargs):
        assert not args
        if module.training:
            seen.append({name: value.clone() for name, value in kwargs.items() if isinstance(value, torch.Tensor)})

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def minibatches(seen, passes, accumulate):
    """The minibatches of the next step, taken off ``seen``: each was seen once in every pass, in whatever order."""
    calls, seen[:] = seen[: passes * accumulate], seen[passes * accumulate :]
    found = []
    for call in calls:
        same = [pair for pair in found if all(torch.equal(pair[0][name], call[name]) for name in call)]
        if same:
            same[0][1] += 1
        else:
            found.append([call, 1])
    assert [count for _, count in found] == [passes] * accumulate
    return [batch for batch, _ in found]


class Clipped:
    """A base optimizer that clips the gradient's norm first."""

    def __init__(self, base, norm):
        self.base, self.norm = base, norm

    @property
    def param_groups(self):
        return self.base.param_groups

    def step(self):
        if self.norm is not None:
            nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], self.norm)
        self.base.step()


def replay(model, base, seen, *, accumulate=1, clip=None, schedulers=(), stepped=lambda: None, autocast=None):
    """Trains ``model`` with the optimizer ``base`` (its groups have noise levels) on what a trainer's model saw.

    Returns the number of steps.
    """
    twin, steps = ReferenceSymmetricNoise(Clipped(base, clip)), 0
    params = [p for group in base.param_groups for p in group["params"]]
    saved = [torch.empty_like(p) for p in params]

    def gradients_at(weights, _):
        with torch.no_grad():
            for p, kept, w in zip(params, saved, weights, strict=True):
                kept.copy_(p)
                p.copy_(w)
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            # a model that is told how many tokens all minibatches of the step have divides by that itself
            count = 1 if "num_items_in_batch" in batches[0] else len(batches)
            loss = sum(model(**batch).loss for batch in batches) / count
        gradients = torch.autograd.grad(loss, params)
        with torch.no_grad():
            for p, kept in zip(params, saved, strict=True):
                p.copy_(kept)
        return gradients

    model.train()
    seen = list(seen)
    while seen:
        noisy = any(group["noise"] for group in base.param_groups)
        batches = minibatches(seen, 1 + noisy, accumulate)
        if noisy:
            twin.step(gradients_at)
        else:
            for p, gradient in zip(params, gradients_at([p.detach().clone() for p in params], 0), strict=True):
                p.grad = gradient
            twin.base.step()
        for scheduler in schedulers:
            scheduler.step()
        stepped()
        steps += 1
    return steps


def ulps(one, other):
    """The largest difference of two models' weights, in units in the last place of the largest weight of its tensor."""
    worst = 0.0
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        _, exponent = torch.frexp(q.detach().abs().max())
        unit = torch.finfo(q.dtype).eps * 2.0 ** (int(exponent) - 1)
        worst = max(worst, (p.detach() - q.detach()).abs().max().item() / unit)
    return worst
