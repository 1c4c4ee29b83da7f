"""S-SGD in Lightning with automatic optimization: one callback.

python examples/lightning_automatic.py [gpt2|lstm]
"""

import lightning as L
import torch
from tiny import chosen_model, clean_loss, minibatches, text
from torch import nn

from seqssgd.integrations.lightning import MultiPass
from seqssgd.optim import LambdaNoise, SymmetricNoise, noise_groups, schedules


class Module(L.LightningModule):
    """Any LightningModule: only the optimizer is another."""

    def __init__(self, model: nn.Module, noise: float = 0.1):
        super().__init__()
        self.model, self.noise = model, noise

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        loss = self.model(**batch).loss
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict:
        optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(self.model, noise=self.noise), lr=0.5, momentum=0.9))
        noise_schedule = LambdaNoise(optimizer, schedules.ramp(start=2, length=10))
        optimizer.register_step_post_hook(lambda *_: noise_schedule.step())
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=60)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def trainer(**settings) -> L.Trainer:
    """A Trainer; ``settings`` are any of its arguments."""
    usual = dict(max_steps=60, accumulate_grad_batches=2, gradient_clip_val=1.0, accelerator="cpu", log_every_n_steps=1)
    return L.Trainer(**{**usual, "callbacks": [MultiPass()], **settings})


if __name__ == "__main__":
    model, data = chosen_model(), text()
    trainer(logger=False, enable_checkpointing=False).fit(Module(model), minibatches(data))
    print(f"loss without noise {clean_loss(model, data):.3f}")
