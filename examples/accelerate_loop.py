"""S-SGD in a loop with Hugging Face's Accelerate: accumulation, clipping, checkpoints.

    python examples/accelerate_loop.py [gpt2|lstm]

(Not accelerate.py: a file of that name would hide the package from every program in this folder.)
"""

import itertools
from pathlib import Path

import torch
from accelerate import Accelerator
from tiny import chosen_model, clean_loss, minibatches, text
from torch import nn

from seqssgd.optim import LambdaNoise, SymmetricNoise, noise_groups, schedules


def train(model: nn.Module, data: list, steps: int = 60, noise: float = 0.1, folder: Path | None = None, **settings):
    """Trains ``model``; goes on from the state in ``folder``, if there is one. ``settings`` are any of Accelerator."""
    accelerator = Accelerator(**{"cpu": True, "gradient_accumulation_steps": 2, **settings})
    symmetric = SymmetricNoise(torch.optim.SGD(noise_groups(model, noise=noise), lr=0.5, momentum=0.9))
    scheduler = torch.optim.lr_scheduler.LinearLR(symmetric, 1.0, 0.1, total_iters=60)
    noise_schedule = LambdaNoise(symmetric, schedules.ramp(start=2, length=10))
    symmetric.register_step_post_hook(lambda *_: noise_schedule.step())
    model, optimizer, scheduler, loader = accelerator.prepare(model, symmetric, scheduler, minibatches(data))
    if folder is not None and folder.exists():
        accelerator.load_state(folder)  # the level, its schedule and the position in the noise are the optimizer's
    stream = itertools.chain.from_iterable(loader for _ in itertools.count())
    while noise_schedule.time < steps:
        batch = next(stream)  # before accumulate(), which looks whether it was the last one
        with accelerator.accumulate(model):
            for part in symmetric.passes():  # of the optimizer itself: Accelerate's proxy has a step() and no passes()
                loss = model(**part.take(batch)).loss
                accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        if accelerator.sync_gradients and noise_schedule.time % 20 == 0:
            accelerator.print(f"step {noise_schedule.time}: loss {loss.item():.3f} at w-n")
    if folder is not None:
        accelerator.save_state(folder)


if __name__ == "__main__":
    model, data = chosen_model(), text()
    train(model, data)
    print(f"loss without noise {clean_loss(model, data):.3f}")
