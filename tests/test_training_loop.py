"""The training loop against a loop written down as the formulas say, one line of arithmetic after the other."""

import json
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import mse_loss
from toy_task import toy_config, train

from seqssgd.optim.reference import unit_noise
from seqssgd.runs import checkpoints
from seqssgd.training import Task

MINIBATCHES, SIZE = 7, 5  # an odd number of examples: the halves are unequal


def settings(optim=None, training=None):
    return toy_config(optim, {"checkpoint_every": None, **(training or {})})  # to write files is what takes the time


class SmallTask(Task):
    """Regression; nothing is carried from step to step and nothing is random."""

    best = ("error", "min")

    def __init__(self, config, dtype=torch.float64, bad=(), sizes=(SIZE,)):
        self.model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)
        self.accumulate, self.dtype, self.bad = config.training.accumulate, dtype, bad
        self.sizes = [sizes[index % len(sizes)] for index in range(MINIBATCHES)]
        self.steps_per_epoch = math.ceil(MINIBATCHES / self.accumulate)

    def data(self, epoch):
        generator = torch.Generator().manual_seed(epoch)
        data = [torch.randn(size, 5, generator=generator).to(self.dtype) for size in self.sizes]
        return [(xy[:, :3], xy[:, 3:]) for xy in data]

    def start_epoch(self, epoch):
        self.epoch = epoch

    def batches(self, epoch, start=0):
        for index, (x, y) in enumerate(self.data(epoch)[start:], start):
            yield (x * math.nan if (epoch, index) in self.bad else x), y

    def loss(self, batch, part):
        x, y = part.take(*batch)
        return mse_loss(self.model(x), y), len(x)

    def evaluate(self):
        x, y = self.data(100)[0]
        return {"error": mse_loss(self.model(x), y)}

    def grouped(self, epochs):
        """The minibatches of every step."""
        for epoch in range(epochs):
            data = self.data(epoch)
            for first in range(0, MINIBATCHES, self.accumulate):
                yield data[first : first + self.accumulate]


def mean_gradient(model, weights, minibatches):
    """Of the mean over minibatches of each one's mean loss, at ``weights``."""
    leaves = [w.clone().requires_grad_() for w in weights]
    at = dict(zip([name for name, _ in model.named_parameters()], leaves, strict=True))
    loss = sum(mse_loss(functional_call(model, at, (x,)), y) for x, y in minibatches) / len(minibatches)
    return torch.autograd.grad(loss, leaves)


def symmetric_gradient(model, level, signs, draws, minibatches):
    """The mean of the gradients at w+n and w-n, n of ``level`` times the norm of each weight matrix."""
    w = [p.detach().clone() for p in model.parameters()]
    z = unit_noise(
        [x.shape for x in w if x.ndim == 2], "rademacher", 0, draws // 2 if signs == "steps" else draws, w[0].dtype
    )
    n = [torch.zeros_like(x) if x.ndim == 1 else z.pop(0) * (level * x.norm() / x.numel() ** 0.5) for x in w]
    plus, minus = [x + y for x, y in zip(w, n, strict=True)], [x - y for x, y in zip(w, n, strict=True)]
    if signs == "steps":
        return mean_gradient(model, minus if draws % 2 else plus, minibatches)
    if signs == "batch":
        a, b = mean_gradient(model, plus, minibatches), mean_gradient(model, minus, minibatches)
        return [(x + y) / 2 for x, y in zip(a, b, strict=True)]
    total = [torch.zeros_like(x) for x in w]
    for x, y in minibatches:
        half = len(x) // 2
        a, b = mean_gradient(model, plus, [(x[:half], y[:half])]), mean_gradient(model, minus, [(x[half:], y[half:])])
        share = half / len(x)
        total = [t + share * p + (1 - share) * q for t, p, q in zip(total, a, b, strict=True)]
    return [t / len(minibatches) for t in total]


def plain_loop(model, steps, lrs, levels, signs="batch", clip=None):
    """Trains ``model`` with momentum 0.9 and returns how often clipping made a gradient smaller."""
    momentum, draws, clipped = [torch.zeros_like(p) for p in model.parameters()], 0, 0
    for minibatches, lr, level in zip(steps, lrs, levels, strict=True):
        if level:
            gradients = symmetric_gradient(model, level, signs, draws, minibatches)
            draws += 1
        else:
            gradients = mean_gradient(model, list(model.parameters()), minibatches)
        norm = math.sqrt(sum((g**2).sum().item() for g in gradients))
        if clip is not None and norm > clip:
            gradients, clipped = [g * (clip / (norm + 1e-6)) for g in gradients], clipped + 1  # torch's formula
        momentum = [0.9 * v + g for v, g in zip(momentum, gradients, strict=True)]
        with torch.no_grad():
            for p, v in zip(model.parameters(), momentum, strict=True):
                p -= lr * v
    return clipped


def twin_of(config, **settings):
    """A task whose model starts as the one that ``train`` builds from ``config``."""
    torch.manual_seed(config.seed)
    return SmallTask(config, **settings)


def assert_close(model, other):
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)


def assert_same_bits(model, other):
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def assert_differ(model, other):
    assert not any(torch.allclose(p, q, rtol=1e-3) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("accumulate", [1, 3])  # 7 minibatches by threes: the last step has one
@pytest.mark.parametrize("method, signs", [("none", "batch"), ("ssgd", "batch"), ("ssgd", "halves"), ("ssgd", "steps")])
def test_every_method_is_the_plain_loop(tmp_path, method, signs, accumulate, clip):
    config = settings({"method": method, "signs": signs}, {"epochs": 2, "accumulate": accumulate, "clip": clip})
    result, task = train(tmp_path, config, SmallTask)
    reference, count = twin_of(config), 2 * math.ceil(7 / accumulate)
    level = 0.5 if method == "ssgd" else 0.0
    clipped = plain_loop(reference.model, reference.grouped(2), [0.1] * count, [level] * count, signs, clip)
    assert_close(task.model, reference.model)
    assert_differ(task.model, twin_of(config).model)
    assert (clipped > 1) == (clip is not None)
    assert result["steps"] == count and result["epochs"] == 2 and result["finished"] and result["exit_code"] == 0
    assert result["units"] == 2 * MINIBATCHES * SIZE  # what was read, however many passes were made over it
    assert result["passes"] == 2 * MINIBATCHES * (2 if (method, signs) == ("ssgd", "batch") else 1)
    assert result["parameters"] == 3 * 5 + 5 + 5 * 2 + 2
    with torch.no_grad():
        assert result["final"]["error"] == task.evaluate()["error"].item()


@pytest.mark.parametrize("optim", [{"method": "ssgd", "signs": "halves"}, {"method": "peer_methods:Split"}], ids=str)
def test_halves_of_accumulated_minibatches_of_different_sizes_count_by_their_own_minibatch(tmp_path, optim):
    config = settings(optim, {"epochs": 1, "accumulate": 3})
    assert config.optim.halves and not settings({"method": "ssgd"}).optim.halves
    _, task = train(tmp_path, config, SmallTask, {"sizes": (5, 2)})
    reference = twin_of(config, sizes=(5, 2))
    plain_loop(reference.model, reference.grouped(1), [0.1] * 3, [0.5] * 3, "halves")
    assert_close(task.model, reference.model)


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_without_noise_it_is_the_loop_that_everybody_writes_to_the_bit(tmp_path, base):
    config = settings({"method": "none", "base": base}, {"epochs": 2, "clip": 0.3})
    _, task = train(tmp_path, config, SmallTask, {"dtype": torch.float32})
    reference = twin_of(config, dtype=torch.float32)
    make = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0, fused=True),
    }
    optimizer = make[base](reference.model.parameters())
    for ((x, y),) in reference.grouped(2):
        optimizer.zero_grad()
        mse_loss(reference.model(x), y).backward()
        nn.utils.clip_grad_norm_(reference.model.parameters(), 0.3)
        optimizer.step()
    assert_same_bits(task.model, reference.model)


SCHEDULES = {  # settings, and by hand for each of 3 epochs of 7 steps: learning rates and noise levels
    "noise by epoch": ({"noise_schedule": "1-1S-1"}, [0.1] * 21, [0.0] * 7 + [0.5] * 7 + [0.0] * 7),
    "noise by step": (
        {"noise_schedule": "9-3S-9", "noise_unit": "step"},
        [0.1] * 21,
        [0.0] * 9 + [0.5] * 3 + [0.0] * 9,
    ),
    "a ramp by step": (
        {"noise_ramp": (2, 4), "noise_unit": "step"},
        [0.1] * 21,
        [0.0] * 3 + [0.125, 0.25, 0.375] + [0.5] * 15,
    ),
    "phases times a ramp by epoch": (
        {"noise_schedule": "2S-1", "noise_ramp": (0, 2)},
        [0.1] * 21,
        [0.0] * 7 + [0.25] * 7 + [0.0] * 7,
    ),
    "zaremba": ({"lr_schedule": "zaremba", "lr_divisor": 2}, [0.1] * 7 + [0.05] * 7 + [0.025] * 7, [0.5] * 21),
    "steps": ({"lr_schedule": "steps", "lr_milestones": [2]}, [0.1] * 14 + [0.01] * 7, [0.5] * 21),
    "warm-up": ({"lr_warmup": 2}, [0.05] * 7 + [0.1] * 14, [0.5] * 21),
    "warm-up by step": (
        {"lr_warmup": 10, "lr_warmup_unit": "step", "lr_schedule": "steps", "lr_milestones": [1]},
        [0.01 * n for n in range(1, 8)] + [0.008, 0.009] + [0.01] * 12,
        [0.5] * 21,
    ),
    "cosine": ({"lr_schedule": "cosine"}, [0.1] * 7 + [0.075] * 7 + [0.025] * 7, [0.5] * 21),
    "sgdr": ({"lr_schedule": "sgdr", "lr_period": 1, "lr_multiplier": 2}, [0.1] * 14 + [0.05] * 7, [0.5] * 21),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_stepped_when_they_say(tmp_path, name):
    changes, lrs, levels = SCHEDULES[name]
    config = settings(changes, {"epochs": 3, "log_every": 1})
    result, task = train(tmp_path, config, SmallTask)
    reference = twin_of(config)
    plain_loop(reference.model, reference.grouped(3), lrs, levels)
    assert_close(task.model, reference.model)
    assert result["passes"] == sum(2 if level else 1 for level in levels)
    assert result["units"] == 21 * SIZE
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["kind"] == "train"]
    assert [row["lr"] for row in rows] == pytest.approx(lrs)  # each row tells the settings that its step was made with
    assert [row["noise"] for row in rows] == pytest.approx(levels)


# ---- mixed precision -------------------------------------------------------------------------------------------------


def half_precision_loop(model, steps, dtype, scaler):
    """What PyTorch's documentation recommends; returns the number of steps that the scaler skipped."""
    optimizer, skipped = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), 0
    for minibatches in steps:
        optimizer.zero_grad()
        for x, y in minibatches:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = mse_loss(model(x), y) / len(minibatches)
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        skipped += scaler.get_scale() < before
    return skipped


@pytest.mark.parametrize("precision, dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_is_autocast_with_a_scaler_for_fp16(tmp_path, precision, dtype):
    config = settings({"method": "none"}, {"epochs": 3, "accumulate": 2, "clip": 0.3, "precision": precision})
    result, task = train(tmp_path, config, SmallTask, {"dtype": torch.float32})
    reference, full = (twin_of(config, dtype=torch.float32) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "fp16")
    skipped = half_precision_loop(reference.model, reference.grouped(3), dtype, scaler)
    half_precision_loop(full.model, full.grouped(3), torch.float32, torch.amp.GradScaler("cpu", enabled=False))
    assert_same_bits(task.model, reference.model)
    assert not torch.equal(task.model[0].weight, full.model[0].weight)  # so it was not float32
    assert result["nonfinite"] == skipped and result["steps"] == 12
    assert (skipped > 0) == (
        precision == "fp16"
    )  # the first scale, 65536, is beyond fp16: it is halved, not the run lost
    state = checkpoints.load_newest(tmp_path / "checkpoints")[1]
    assert state["scaler"].get("scale") == (scaler.get_scale() if precision == "fp16" else None)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_noise_in_half_precision_comes_near_to_full_precision_and_resumes(tmp_path, precision):
    """That the second pass casts the moved weights anew, and that the scale is kept over an interruption."""
    runs = {}
    for name in ("fp32", precision):
        config = settings({"lr": 0.02}, {"epochs": 4, "clip": 1.0, "precision": name})
        _, runs[name] = train(tmp_path / name, config, SmallTask, {"dtype": torch.float32})
    start = twin_of(config, dtype=torch.float32).model
    for p, q, w in zip(
        *(model.parameters() for model in (runs[precision].model, runs["fp32"].model, start)), strict=True
    ):
        assert 0 < (p - q).norm() < 0.3 * (q - w).norm()
    train(tmp_path / "parts", config, SmallTask, {"dtype": torch.float32}, max_steps=3)
    _, resumed = train(tmp_path / "parts", config, SmallTask, {"dtype": torch.float32})
    assert_same_bits(resumed.model, runs[precision].model)


# ---- losses and gradients that are not finite ------------------------------------------------------------------------


@pytest.mark.parametrize("method, signs", [("none", "batch"), ("ssgd", "batch"), ("ssgd", "steps")])
def test_steps_with_a_loss_that_is_not_finite_are_left_out(tmp_path, method, signs):
    config = settings({"method": method, "signs": signs}, {"epochs": 2, "log_every": 1})
    bad = [(0, 2), (0, 3), (1, 0)]
    result, task = train(tmp_path, config, SmallTask, {"bad": bad})
    reference = twin_of(config)
    steps = [step for index, step in enumerate(reference.grouped(2)) if divmod(index, 7) not in bad]
    plain_loop(reference.model, steps, [0.1] * 11, [0.5 if method == "ssgd" else 0.0] * 11, signs)
    assert_close(task.model, reference.model)
    assert result["nonfinite"] == 3 and result["steps"] == 14 and result["epochs"] == 2
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert [index for index, loss in enumerate(losses) if loss is None] == [2, 3, 7]
    assert [row["nonfinite"] for row in rows if row["kind"] == "train"] == [0, 0, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3]
    seen = [loss for loss in losses[7:] if loss is not None]
    assert rows[-1]["train_loss"] == pytest.approx(sum(seen) / len(seen))


class SteepTask(SmallTask):
    """Its loss stays finite in the minibatches that are ``bad``, its gradient does not."""

    def batches(self, epoch, start=0):
        for index, batch in enumerate(self.data(epoch)[start:], start):
            yield *batch, (epoch, index) in self.bad

    def loss(self, batch, part):
        loss, units = super().loss(batch[:2], part)
        return loss + (torch.sqrt(self.model[0].bias * 0).sum() if batch[2] else 0), units


class InfiniteTask(SteepTask):
    """The other way round."""

    def loss(self, batch, part):
        loss, units = SmallTask.loss(self, batch[:2], part)
        return loss + (math.inf if batch[2] else 0), units


@pytest.mark.parametrize("task_class", [SmallTask, SteepTask, InfiniteTask])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_skipped_step_changes_neither_weights_nor_optimizer(tmp_path, task_class, accumulate):
    config = settings({}, {"accumulate": accumulate, "clip": 1.0, "checkpoint_every": 1})
    train(tmp_path, config, task_class, {"bad": [(0, 2 * accumulate)]}, max_steps=3)
    before, after = (checkpoints.load(tmp_path / f"checkpoints/step-0000000{step}.pt") for step in (2, 3))
    assert after["progress"]["nonfinite"] == 1
    assert all(torch.equal(before["model"][name], w) and w.isfinite().all() for name, w in after["model"].items())
    assert before["optimizer"]["perturbation"] == after["optimizer"]["perturbation"]
    buffers = [
        [entry["momentum_buffer"] for entry in state["optimizer"]["state"].values()] for state in (before, after)
    ]
    assert len(buffers[0]) == 4 and all(torch.equal(a, b) for a, b in zip(*buffers, strict=True))
