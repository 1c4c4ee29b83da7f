"""The loss of CTC that can be differentiated twice, against a slow recursion and torch's."""

import pytest
import torch
from objectives import LENGTHS, UTTERANCES

from seqssgd.landscape import ctc_loss
from seqssgd.landscape.curvature import _nodes
from seqssgd.speech import recognizer


def slow_ctc(logits, lengths, targets, target_lengths):
    """Graves et al.'s forward recursion, one state at a time, in operations that torch differentiates as it likes."""
    losses = []
    for row, length, labels in zip(logits.log_softmax(-1), lengths.tolist(), targets.tolist(), strict=True):
        spelled = [0]
        for label in labels[: target_lengths[len(losses)]]:
            spelled += [label, 0]
        alpha = [row[0, spelled[s]] if s < 2 else row.new_tensor(-1e30) for s in range(len(spelled))]
        for t in range(1, length):
            before, alpha = alpha, []
            for s, label in enumerate(spelled):
                ways = before[max(s - 1, 0) : s + 1]
                if s > 1 and label and label != spelled[s - 2]:
                    ways = [*ways, before[s - 2]]
                alpha.append(torch.stack(ways).logsumexp(0) + row[t, label])
        losses.append(-torch.stack(alpha[-2:]).logsumexp(0))
    return torch.stack(losses)


def test_ctc_agrees_with_the_slow_recursion_to_the_second_derivative_and_with_torch_in_value():
    logits = torch.randn(5, 7, 5, dtype=torch.double, requires_grad=True)
    weights, vector = torch.rand(5, dtype=torch.double), torch.randn_like(logits)
    found = []
    for loss in (ctc_loss, slow_ctc):
        losses = loss(logits, *UTTERANCES)
        (gradient,) = torch.autograd.grad((losses * weights).sum(), logits, create_graph=True)
        (product,) = torch.autograd.grad(gradient, logits, vector)
        found.append((losses, gradient, product))
    for mine, slow in zip(*found, strict=True):
        torch.testing.assert_close(mine, slow, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[0][0].float(), recognizer.ctc_loss(logits, *UTTERANCES), rtol=1e-6, atol=1e-6)
    assert found[0][2].abs().max() > 0.1


def test_ctc_of_too_few_frames_is_infinite_and_of_the_others_as_alone():
    logits = torch.randn(5, 7, 5)
    lengths = LENGTHS.clone()
    lengths[0] = 3  # 1 1 2 needs four
    torch.testing.assert_close(
        ctc_loss(logits, lengths, *UTTERANCES[1:]), recognizer.ctc_loss(logits, lengths, *UTTERANCES[1:])
    )
    assert ctc_loss(logits, lengths, *UTTERANCES[1:]).isinf().tolist() == [True, False, False, False, False]


def test_ctc_has_no_third_derivative_and_says_so():
    logits = torch.randn(5, 7, 5, dtype=torch.double, requires_grad=True)
    (gradient,) = torch.autograd.grad(ctc_loss(logits, *UTTERANCES).sum(), logits, create_graph=True)
    (product,) = torch.autograd.grad(gradient.square().sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        product.square().sum().backward()


def test_what_the_recursions_of_ctc_hold_counts_as_memory_of_the_graph():
    from seqssgd.landscape.curvature import _held_bytes

    logits = torch.randn(2, 9, 5, dtype=torch.double, requires_grad=True)
    loss = ctc_loss(logits, torch.tensor([9, 7]), torch.tensor([[1, 2, 3], [4, 1, 0]]), torch.tensor([3, 2])).sum()
    gradient = torch.autograd.grad(loss, logits, create_graph=True)
    held = sum(_held_bytes(_nodes(gradient)).values())
    states, frames, both = 7, 9, 4
    shares, occupancy = 3 * frames * both * states, frames * 2 * states
    assert 8 * (shares + occupancy) <= held < 3 * 8 * (shares + occupancy)
