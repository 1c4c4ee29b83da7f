"""S-SGD in a loop with Lightning Fabric: the three lines.

python examples/fabric.py [gpt2|lstm]
"""

import itertools
from pathlib import Path

import torch
from lightning.fabric import Fabric
from tiny import chosen_model, clean_loss, minibatches, text
from torch import nn

from seqssgd.optim import LambdaNoise, SymmetricNoise, noise_groups, schedules


def train(model: nn.Module, data: list, steps: int = 60, noise: float = 0.1, file: Path | None = None, **settings):
    """Trains ``model``; goes on from the state in ``file``, if there is one. ``settings`` are any of Fabric."""
    fabric = Fabric(**{"accelerator": "cpu", "devices": 1, **settings})
    optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(model, noise=noise), lr=0.5, momentum=0.9))
    noise_schedule = LambdaNoise(optimizer, schedules.ramp(start=2, length=10))
    model, optimizer = fabric.setup(model, optimizer)
    state = {"model": model, "optimizer": optimizer}
    if file is not None and file.exists():
        fabric.load(file, state)  # the level, its schedule and the position in the noise are the optimizer's
    stream = itertools.chain.from_iterable(fabric.setup_dataloaders(minibatches(data)) for _ in itertools.count())
    while noise_schedule.time < steps:
        batch = next(stream)
        for part in optimizer.passes():  # the weights are w+n, then w-n, then exactly w again
            with fabric.no_backward_sync(model, enabled=not part.last):
                loss = model(**part.take(batch)).loss
                fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        noise_schedule.step()
        if noise_schedule.time % 20 == 0:
            fabric.print(f"step {noise_schedule.time}: loss {loss.item():.3f} at w-n")
    if file is not None:
        fabric.save(file, state)


if __name__ == "__main__":
    model, data = chosen_model(), text()
    train(model, data)
    print(f"loss without noise {clean_loss(model, data):.3f}")
