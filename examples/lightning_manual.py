"""S-SGD in Lightning with manual optimization: the three lines, in training_step.

python examples/lightning_manual.py [gpt2|lstm]
"""

import lightning as L
import torch
from tiny import chosen_model, clean_loss, minibatches, text
from torch import nn

from seqssgd.optim import SymmetricNoise, noise_groups


class Module(L.LightningModule):
    """Optimizes by itself; clips as well, which the Trainer leaves to it."""

    def __init__(self, model: nn.Module, noise: float = 0.1):
        super().__init__()
        self.automatic_optimization = False
        self.model, self.noise = model, noise

    def training_step(self, batch: dict, batch_idx: int) -> None:
        optimizer = self.optimizers()
        for part in optimizer.passes():  # the weights are w+n, then w-n, then exactly w again
            loss = self.model(**part.take(batch)).loss
            self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        optimizer.step()  # counts as one: max_steps and global_step are steps, not passes
        optimizer.zero_grad()
        self.lr_schedulers().step()
        self.log("loss", loss, prog_bar=True)

    def configure_optimizers(self) -> tuple[list, list]:
        optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(self.model, noise=self.noise), lr=0.5, momentum=0.9))
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=60)
        return [optimizer], [scheduler]


def trainer(**settings) -> L.Trainer:
    """A Trainer; ``settings`` are any of its arguments."""
    return L.Trainer(**{**dict(max_steps=60, accelerator="cpu", log_every_n_steps=1), **settings})


if __name__ == "__main__":
    model, data = chosen_model(), text()
    trainer(logger=False, enable_checkpointing=False).fit(Module(model), minibatches(data))
    print(f"loss without noise {clean_loss(model, data):.3f}")
