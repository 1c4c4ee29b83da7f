"""Averages of the weights beside an optimizer that knows nothing of them."""

import pytest
import torch
from peer_methods import bits, loss_of, network, same_bits

from seqssgd.optim import WeightAverage


def averaging(**settings):
    model = network()
    return model, WeightAverage(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model, **settings)


def train(model, optimizer):
    for _ in optimizer.passes():
        loss_of(model).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("settings", [dict(decay=0.8), dict(decay=None), dict(decay=None, start=2)])
def test_the_average_is_that_of_the_weights_after_each_step(settings, tmp_path):
    model, optimizer = averaging(**settings)
    start, decay = settings.get("start", 0), settings["decay"]
    seen = []
    for step in range(6):
        if step == 4:  # interrupted and resumed
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c.pt")
            saved = torch.load(tmp_path / "c.pt", weights_only=True)
            model, optimizer = averaging(**settings)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
        train(model, optimizer)
        if step < start:
            assert optimizer.averaged is model
            continue
        seen.append(bits(model))
        if decay is None:
            wanted = [torch.stack(weights).mean(0) for weights in zip(*seen, strict=True)]
        elif len(seen) == 1:
            wanted = seen[0]
        else:
            wanted = [decay * a + (1 - decay) * w for a, w in zip(wanted, seen[-1], strict=True)]
        for p, q in zip(optimizer.averaged.parameters(), wanted, strict=True):
            torch.testing.assert_close(p.detach(), q, rtol=1e-9, atol=1e-12)

    bare = network()
    base = torch.optim.SGD(bare.parameters(), lr=0.1, momentum=0.9)
    for _ in range(6):
        base.zero_grad()
        loss_of(bare).backward()
        base.step()
    assert same_bits(bits(model), bits(bare))  # training itself is not touched


def test_an_average_over_a_bare_checkpoint_begins_anew():
    model, optimizer = averaging(decay=0.5)
    for _ in range(3):
        train(model, optimizer)
    optimizer.load_state_dict(optimizer.base.state_dict())
    assert optimizer.averaged is model
    train(model, optimizer)
    assert optimizer.averaged is not model and same_bits(bits(optimizer.averaged), bits(model))


def test_a_skipped_step_does_not_count_in_the_average():
    model, optimizer = averaging(decay=None)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(loss_of(model) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert optimizer.averaged is model
