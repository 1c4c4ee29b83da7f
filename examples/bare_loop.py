"""S-SGD in a loop of one's own, with all that such a loop may have.

Gradient accumulation, clipping, a learning-rate schedule, noise that starts late, bfloat16, an average of the weights.

    python examples/bare_loop.py [gpt2|lstm]
"""

import itertools

import torch
from tiny import chosen_model, clean_loss, minibatches, text
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import get_linear_schedule_with_warmup

from seqssgd.optim import LambdaNoise, SymmetricNoise, noise_groups, schedules

ACCUMULATE = 2


def train(model: nn.Module, data: list, steps: int = 60, noise: float = 0.1, bf16: bool = False) -> nn.Module:
    """Trains ``model`` and returns the average of its weights over the last steps."""
    optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(model, noise=noise), lr=0.5, momentum=0.9))
    scheduler = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=5, num_training_steps=steps)
    noise_schedule = LambdaNoise(optimizer, schedules.ramp(start=2, length=10))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    stream = itertools.chain.from_iterable(minibatches(data) for _ in itertools.count())
    for step in range(1, steps + 1):
        accumulated = list(itertools.islice(stream, ACCUMULATE))
        for _ in optimizer.passes():  # the weights are w+n, then w-n, then exactly w again
            for batch in accumulated:
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = model(**batch).loss / ACCUMULATE
                loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # clips the mean of the two gradients
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        noise_schedule.step()
        average.update_parameters(model)
        if step % 20 == 0:
            print(f"step {step}: loss {clean_loss(model, data):.3f}, of the average {clean_loss(average, data):.3f}")
            model.train()
    return average.module


if __name__ == "__main__":
    train(chosen_model(), text())
