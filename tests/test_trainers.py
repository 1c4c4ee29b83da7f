"""What trainers do around the passes: once a step, on the mean gradient, and on again after a checkpoint."""

import pytest
import torch
from torch import nn

for package in ("accelerate", "lightning", "transformers"):
    pytest.importorskip(package, reason="pip install 'seqssgd[examples]'")
from programs import load  # noqa: E402

exactness = load("benchmarks/exactness.py")
tiny = exactness.tiny
DATA = tiny.text(64)
# of the trainers, not of this project
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
]


def equal(one, other):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


# ---- Lightning -------------------------------------------------------------------------------------------------------


class Counting(exactness.lightning_automatic.Module):
    """Counts what happens, and keeps the norm of the gradient before and after clipping."""

    def __init__(self, *args):
        super().__init__(*args)
        self.counts, self.norms, self.sums = {}, [], []

    def count(self, name):
        self.counts[name] = self.counts.get(name, 0) + 1

    def training_step(self, batch, batch_idx):
        self.count("training_step")
        self.log("examples", float(len(batch["input_ids"])), on_step=False, on_epoch=True, reduce_fx="sum")
        return super().training_step(batch, batch_idx)

    def on_before_zero_grad(self, optimizer):
        self.count("zero_grad")

    def on_before_optimizer_step(self, optimizer):
        self.count("before step")

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.count("batch")
        self.loss = outputs["loss"]

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.count("clip")
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        self.norms.append(nn.utils.get_total_norm([p.grad for p in self.parameters()]).item())


def fit(module, ckpt_path=None, program=exactness.lightning_automatic, **settings):
    trainer = program.trainer(**{**exactness.QUIET, **settings})
    trainer.fit(module, torch.utils.data.DataLoader(DATA, batch_size=8), ckpt_path=ckpt_path)
    return trainer


def test_lightning_does_all_but_the_passes_once_a_step():
    module = Counting(tiny.LSTM(), 0.1)
    trainer = fit(module, max_epochs=1, max_steps=-1, gradient_clip_val=1e-3)
    assert trainer.global_step == 4
    once = {"zero_grad": 4, "before step": 4, "batch": 8, "clip": 4}
    clean, noisy = 3, 1  # the ramp of the level begins after two steps, with 0; two minibatches are accumulated
    assert module.counts == {**once, "training_step": 2 * clean + 2 * 2 * noisy}
    assert module.norms == pytest.approx([1e-3] * 4, rel=1e-4)  # of the mean
    assert trainer.callback_metrics["examples"] == len(DATA)
