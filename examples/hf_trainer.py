"""S-SGD in Hugging Face's Trainer: one mixin.

python examples/hf_trainer.py [gpt2|lstm]
"""

import tempfile

import torch
from tiny import chosen_model, clean_loss, text
from torch import nn
from transformers import Trainer, TrainingArguments

from seqssgd.integrations.transformers import MultiPassMixin
from seqssgd.optim import LambdaNoise, SymmetricNoise, noise_groups, schedules


class MultiPassTrainer(MultiPassMixin, Trainer):
    """Takes every training step at w+n and at w-n."""


def trainer(model: nn.Module, data: list, folder: str, noise: float = 0.1, **arguments) -> Trainer:
    """A Trainer for ``model``; ``arguments`` are any of TrainingArguments."""
    optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(model, noise=noise), lr=0.5, momentum=0.9))
    noise_schedule = LambdaNoise(optimizer, schedules.ramp(start=2, length=10))
    optimizer.register_step_post_hook(lambda *_: noise_schedule.step())
    usual = dict(max_steps=60, gradient_accumulation_steps=2, max_grad_norm=1.0, logging_steps=20, disable_tqdm=True)
    return MultiPassTrainer(
        model,
        TrainingArguments(folder, report_to="none", use_cpu=True, **{**usual, **arguments}),
        train_dataset=data,
        optimizers=(optimizer, None),  # None: the learning-rate schedule that the arguments ask for
    )


if __name__ == "__main__":
    model, data = chosen_model(), text()
    with tempfile.TemporaryDirectory() as folder:
        trainer(model, data, folder).train()  # with resume_from_checkpoint=True it goes on with the same noise
    print(f"loss without noise {clean_loss(model, data):.3f}")
