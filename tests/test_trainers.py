"""What trainers do around the passes: once a step, on the mean gradient, and on again after a checkpoint."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

for package in ("accelerate", "lightning", "transformers"):
    pytest.importorskip(package, reason="pip install 'seqssgd[examples]'")
import lightning  # noqa: E402
from explicit import recording, replay, ulps  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from lightning.pytorch.plugins import MixedPrecision  # noqa: E402
from programs import load  # noqa: E402

from seqssgd.integrations import multi_pass  # noqa: E402
from seqssgd.integrations.lightning import MultiPass  # noqa: E402
from seqssgd.integrations.transformers import MultiPassMixin  # noqa: E402
from seqssgd.optim import LambdaNoise, SymmetricNoise, noise_groups, schedules  # noqa: E402

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


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where Lightning writes what it is not told a place for


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


def test_lightning_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(tmp_path):
    Module = exactness.lightning_automatic.Module
    start = tiny.LSTM()
    whole, half, rest = Module(copy.deepcopy(start)), Module(copy.deepcopy(start)), Module(tiny.LSTM())
    epochs = {"max_steps": -1, "enable_checkpointing": True}
    saving = ModelCheckpoint(tmp_path, "{epoch}", save_on_train_epoch_end=True)
    fit(whole, max_epochs=3, **epochs)
    fit(half, max_epochs=2, callbacks=[MultiPass(), saving], **epochs)
    trainer = fit(rest, max_epochs=3, ckpt_path=tmp_path / "epoch=1.ckpt", **epochs)
    assert trainer.global_step == 12 and not equal(half, rest)
    assert equal(whole, rest)


def test_manual_optimization_counts_steps():
    module = exactness.lightning_manual.Module(tiny.LSTM())
    trainer = fit(module, program=exactness.lightning_manual, max_steps=3)
    assert trainer.global_step == module.optimizers().draws == 3


def lightning_twin(model, seen, autocast=None, accumulate=2, clip=1.0):
    base = torch.optim.SGD(noise_groups(model, noise=0.1), lr=0.5, momentum=0.9)
    schedulers = [
        torch.optim.lr_scheduler.LinearLR(base, 1.0, 0.1, total_iters=60),
        LambdaNoise(base, schedules.ramp(2, 10)),
    ]
    replay(model, base, seen, accumulate=accumulate, clip=clip, schedulers=schedulers, autocast=autocast)
    return model


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_lightning_with_mixed_precision(precision):
    model = tiny.gpt2()
    twin = copy.deepcopy(model)
    half = torch.bfloat16 if precision == "bf16-mixed" else torch.float16
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10) if half is torch.float16 else None
    plugin = MixedPrecision(precision, "cpu", scaler)
    with recording(model) as seen:
        fit(exactness.lightning_automatic.Module(model), max_steps=8, plugins=[plugin])
    moved = ulps(model, twin)
    assert ulps(model, lightning_twin(twin, seen, autocast=half)) < moved / 50  # what rounding to so few digits leaves


class OnExamples(lightning.LightningModule):
    """Sums over examples of which each is a matrix of its own; gets them as (images, targets)."""

    def __init__(self):
        super().__init__()
        self.model, self.seen = nn.Linear(4, 1), []

    def training_step(self, batch, batch_idx):
        images, targets = batch
        self.seen.append([len(images), len(targets)])
        return sum(self.model(x).mean() for x in images) / len(images)

    def configure_optimizers(self):
        return SymmetricNoise(torch.optim.SGD(noise_groups(self.model, 0.1), lr=0.1), signs="halves")


def test_lightning_halves_a_batch_as_the_callback_is_told():
    data = [(torch.full((3, 4), float(i)), {"boxes": torch.ones(i % 3, 4)}) for i in range(6)]
    loader = torch.utils.data.DataLoader(data, batch_size=6, collate_fn=lambda rows: tuple(zip(*rows, strict=True)))
    for settings, said in (({}, "dim=None"), ({"take": lambda part, batch: part.take(*batch, dim=None)}, None)):
        module = OnExamples()
        trainer = lightning.Trainer(**{**exactness.QUIET, "callbacks": [MultiPass(**settings)], "max_steps": 2})
        with pytest.raises((TypeError, ValueError), match=said) if said else nullcontext():
            trainer.fit(module, loader)
        assert module.seen == ([] if said else [[3, 3]] * 4)


def test_a_closure_of_lightnings_without_the_callback_is_refused():
    module = exactness.lightning_automatic.Module(tiny.LSTM())
    with pytest.raises(RuntimeError, match=r"callbacks=\[MultiPass\(\)\]"):
        fit(module, callbacks=[])


# ---- Hugging Face ----------------------------------------------------------------------------------------------------


def hf(model, folder, noise=0.1, data=DATA, **settings):
    return exactness.hf_trainer.trainer(model, data, str(folder), noise, **settings)


def test_the_hf_trainer_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(tmp_path):
    start = tiny.gpt2()
    whole, rest = copy.deepcopy(start), copy.deepcopy(start)
    settings = {"max_steps": 12, "save_steps": 6, "lr_scheduler_type": "constant"}
    hf(whole, tmp_path, **settings).train()
    trainer = hf(rest, tmp_path, **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert multi_pass(trainer.optimizer).draws == 9
    assert equal(whole, rest)


def padded():
    """Sentences of many lengths; what is behind their ends is no label."""
    lengths = torch.arange(64) % 10 + 2
    return [
        {**row, "labels": torch.where(torch.arange(12) < length, row["labels"], -100)}
        for row, length in zip(DATA, lengths, strict=True)
    ]


def hf_twin(model, seen, steps, autocast=None):
    base = torch.optim.SGD(noise_groups(model, noise=0.1), lr=0.5, momentum=0.9)
    rate = exactness.get_linear_schedule_with_warmup(base, 0, steps)
    schedulers = [rate, LambdaNoise(base, schedules.ramp(2, 10))]
    replay(model, base, seen, accumulate=2, clip=1.0, schedulers=schedulers, autocast=autocast)
    return model


def test_the_hf_trainer_divides_by_all_tokens_of_the_accumulated_minibatches(tmp_path):
    model = tiny.gpt2()
    twin = copy.deepcopy(model)
    with recording(model) as seen:
        hf(model, tmp_path, data=padded(), max_steps=8, save_strategy="no").train()
    counts = {int(call["num_items_in_batch"]) for call in seen}
    assert len(counts) > 2  # or nothing is tested
    assert ulps(model, hf_twin(twin, seen, 8)) < 50


def one_hf_step(folder, model, noise=1e-6, **settings):
    """How far one step of rate 1 goes, by halves or not, and the loss that the Trainer logs."""
    from transformers import Trainer, TrainingArguments

    class MultiPassTrainer(MultiPassMixin, Trainer):
        pass

    before = [p.detach().clone() for p in model.parameters()]
    optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(model, noise=noise), lr=1.0), **settings)
    arguments = TrainingArguments(
        str(folder), max_steps=1, per_device_train_batch_size=8, logging_steps=1, max_grad_norm=0, report_to=[],
        use_cpu=True, save_strategy="no", disable_tqdm=True, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer = MultiPassTrainer(model, arguments, train_dataset=padded(), optimizers=(optimizer, None))
    trainer.train()
    moved = [p.detach() - q for p, q in zip(model.parameters(), before, strict=True)]
    return torch.nn.utils.get_total_norm(moved), trainer.state.log_history[0]["loss"]


def test_the_hf_trainer_by_halves_has_the_gradient_and_the_loss_of_the_whole_minibatch(tmp_path):
    model = tiny.gpt2()
    whole, loss = one_hf_step(tmp_path, copy.deepcopy(model), signs="batch")
    halves, mean = one_hf_step(tmp_path, copy.deepcopy(model), signs="halves", reduction="sum")
    torch.testing.assert_close(halves, whole, rtol=1e-3, atol=0)
    assert mean == pytest.approx(loss, rel=1e-3)
    with pytest.raises(ValueError, match=r"number in the whole minibatch: .*reduction='sum'"):
        one_hf_step(tmp_path, model, signs="halves")


def test_the_hf_trainer_in_bfloat16(tmp_path):
    model = tiny.gpt2()
    twin = copy.deepcopy(model)
    with recording(model) as seen:
        hf(model, tmp_path, bf16=True, max_steps=8, save_strategy="no").train()
    moved = ulps(model, twin)
    assert ulps(model, hf_twin(twin, seen, 8, torch.bfloat16)) < moved / 50


def test_the_hf_trainer_without_the_mixin_is_told_of_it(tmp_path):
    from transformers import Trainer, TrainingArguments

    model = tiny.gpt2()
    optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(model, noise=0.1), lr=0.5))
    arguments = TrainingArguments(str(tmp_path), max_steps=1, report_to=[], use_cpu=True)
    with pytest.raises(RuntimeError, match="MultiPassMixin"):
        Trainer(model, arguments, train_dataset=DATA, optimizers=(optimizer, None)).train()


def test_the_mixin_after_the_trainer_is_refused():
    from transformers import Trainer

    with pytest.raises(TypeError, match=r"class Wrong: MultiPassMixin goes before the Trainer"):

        class Wrong(Trainer, MultiPassMixin):
            pass


def test_a_trainer_with_an_optimizer_without_passes_is_refused(tmp_path):
    trainer = hf(tiny.LSTM(), tmp_path)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="the trainer's optimizer is SGD, which has no passes"):
        trainer.train()


def test_accelerate_and_fabric_go_on_with_the_same_noise_and_schedule(tmp_path):
    for number, train in enumerate((exactness.accelerate_loop.train, exactness.fabric.train)):
        start, place = tiny.LSTM(), {("folder", "file")[number]: tmp_path / str(number)}
        whole, rest = copy.deepcopy(start), copy.deepcopy(start)
        data = [tiny.text(8)[0]] * 8  # one minibatch: no order that had to be kept
        train(whole, data, 12)
        train(copy.deepcopy(start), data, 6, **place)
        train(rest, data, 12, **place)
        assert equal(whole, rest)
