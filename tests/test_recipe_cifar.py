"""The task of recipes/cifar_cnn/train.py against a loop by hand, and the configurations that are shipped with it."""

import dataclasses

import pytest
import torch
import yaml
from programs import ROOT, coloured_images, load
from torch.func import functional_call

from seqssgd.data.images import AugmentedBatches, Normalization, load_images
from seqssgd.errors import UserError
from seqssgd.images.config import CorpusConfig
from seqssgd.images.networks import NETWORKS, build_classifier
from seqssgd.images.scoring import recalibrate, score
from seqssgd.training import OptimConfig, TrainingConfig, build_optimizer, build_schedulers, parse_recipe

TRAIN = load("recipes/cifar_cnn/train.py")
FOLDER = ROOT / "recipes/cifar_cnn"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


@pytest.fixture
def dataset(tmp_path):
    return load_images(coloured_images(tmp_path / "data"))


def small_model():
    """With batch norm, which couples the images of a minibatch."""
    layers = [torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(144, 3))


def task_of(dataset, valid=10, batch_size=9, accumulate=1, bn_images=20, patience=None, seed=0, **optim):
    config = TRAIN.Config(
        NETWORKS.settings("resnet20"),
        CorpusConfig(valid=valid, pad=1),
        OptimConfig(**optim),
        TrainingConfig(accumulate=accumulate, patience=patience),
        batch_size,
        bn_images,
        seed,
    )
    task = TRAIN.ImageTask(small_model(), dataset, config, torch.device("cpu"))
    return task, build_optimizer(task.model, config.optim)


@pytest.mark.parametrize("signs", [None, "batch", "halves", "steps"])
def test_losses_and_gradients_are_those_by_hand_with_every_half_normalised_by_itself(dataset, signs):
    """Nine images, so that halves are 4 and 5 of them; at w+n and w-n as the optimizer shows these points."""
    optim = {"method": "ssgd", "noise": 0.5, "signs": signs} if signs else {}
    task, optimizer = task_of(dataset, lr=0.1, **optim)
    images, labels = next(task.batches(0))
    statistics = {name: tensor.clone() for name, tensor in task.model.named_buffers()}
    mean, passes = 0, 0
    for part in optimizer.passes():
        point = {name: p.detach().clone().requires_grad_() for name, p in task.model.named_parameters()}
        loss, units = task.loss((images, labels), part)
        loss.backward()
        mine = slice(*((0, 4), (4, 9))[part.index]) if signs == "halves" else slice(0, 9)
        logits = functional_call(task.model, (point, statistics), (images[mine],))
        picked = logits.log_softmax(1)[torch.arange(len(logits)), labels[mine]]
        expected = -picked.sum() / len(picked)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5) and units == len(picked)
        share = len(picked) / 9 if signs == "halves" else 1 / 2 if signs == "batch" else 1
        gradients = torch.autograd.grad(expected, list(point.values()))
        mean = [share * g + (mean[i] if mean else 0) for i, g in enumerate(gradients)]
        passes += 1
    assert passes == (2 if signs in ("batch", "halves") else 1)
    for parameter, gradient in zip(task.model.parameters(), mean, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_an_epoch_has_as_many_steps_as_whole_minibatches_make(dataset):
    for batch_size, accumulate, steps in ((9, 1, 5), (9, 2, 2), (50, 1, 1), (7, 3, 2)):
        task, _ = task_of(dataset, batch_size=batch_size, accumulate=accumulate)
        assert task.steps_per_epoch == steps
        batches = list(task.batches(0))
        assert len(batches) >= steps * accumulate and {len(labels) for _, labels in batches} == {batch_size}


def test_minibatches_are_of_the_images_not_held_out_as_seed_and_epoch_say(dataset):
    task, _ = task_of(dataset, seed=7)
    train, _ = dataset.split("train").hold_out(10)
    made = AugmentedBatches(train, Normalization(dataset.info["mean"], dataset.info["std"]), 9, pad=1, seed=7)
    for epoch, start in ((0, 0), (3, 0), (3, 4)):
        expected, given = list(made.epoch(epoch, start)), list(task.batches(epoch, start))
        assert len(given) == 5 - start
        for a, b in zip(expected, given, strict=True):
            assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_validation_is_accuracy_on_held_out_images_with_clean_statistics_and_changes_nothing(dataset):
    task, optimizer = task_of(dataset, method="ssgd", noise=1.0, lr=0.1)
    for batch in task.batches(0):
        for part in optimizer.passes():
            task.loss(batch, part)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    task.model.eval()
    with torch.no_grad():
        metrics = task.evaluate()
    assert all(torch.equal(before[name], tensor) for name, tensor in task.model.state_dict().items())
    train, valid = dataset.split("train").hold_out(10)
    normal = Normalization(dataset.info["mean"], dataset.info["std"])
    model = task.model
    shown = [model[0](images) for images, _ in list(AugmentedBatches(train, normal, 9, pad=1).epoch(0))[:3]]  # >= 20
    mean = torch.stack([hidden.mean((0, 2, 3)) for hidden in shown]).mean(0)
    var = torch.stack([hidden.var((0, 2, 3), correction=1) for hidden in shown]).mean(0)
    y = (model[0](normal(valid.images)) - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + 1e-5).sqrt()
    y = (y * model[1].weight.view(-1, 1, 1) + model[1].bias.view(-1, 1, 1)).relu().flatten(1)
    logits = model[4](y)
    right = (logits.argmax(1) == valid.labels).double().mean().item()
    assert metrics["valid_accuracy"] == pytest.approx(100 * right)
    expected = -logits.log_softmax(1)[torch.arange(10), valid.labels].mean().item()
    assert metrics["valid_loss"] == pytest.approx(expected, rel=1e-4)


def test_with_bn_images_0_the_running_statistics_are_used(dataset):
    task, _ = task_of(dataset, bn_images=0)
    task.model[1].running_mean.fill_(0.3)
    task.model.eval()
    expected = score(task.model, task.valid, task.normalization)
    assert task.evaluate() == {"valid_loss": expected.loss, "valid_accuracy": expected.accuracy}
    recalibrate(task.model, task.minibatches, 20)
    assert score(task.model, task.valid, task.normalization).loss != expected.loss


def test_without_held_out_images_all_are_trained_on_and_nothing_is_validated(dataset):
    task, _ = task_of(dataset, valid=0)
    assert task.best is None and task.evaluate() == {} and len(task.train.labels) == 60


def test_scores_do_not_depend_on_how_many_images_are_taken_at_a_time(dataset):
    task, _ = task_of(dataset)
    task.model.eval()
    whole = score(task.model, task.train, task.normalization, 50)
    parts = score(task.model, task.train, task.normalization, 7)
    assert whole.correct == parts.correct and whole.images == parts.images == 50
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)


def test_impossible_settings_are_refused(dataset):
    for settings, reason in (
        ({"valid": 60}, "corpus.valid: 60 of 60 images cannot be held out"),
        ({"batch_size": 51}, "batch_size: 51 is more than the 50 training images"),
        ({"batch_size": 25, "accumulate": 3}, "training.accumulate: 3 is not at most 2"),
        ({"batch_size": 1, "signs": "halves", "method": "ssgd"}, "batch_size: 1 cannot be halved"),
        ({"bn_images": -1}, "bn_images: -1"),
        ({"valid": 0, "patience": 2}, "training.patience: there is nothing to judge by"),
    ):
        with pytest.raises(UserError, match=reason):
            task_of(dataset, **settings)


# ---- the shipped configurations --------------------------------------------------------------------------------------

LEVELS = {"resnet20": (0.4, 0.5), "resnet56": (0.4, 0.5), "wrn28_2": (0.5, 0.7), "wrn28_4": (0.5, 0.7),
          "vgg6": (0.7, 0.9), "vgg16": (0.7, 0.9)}  # fmt: skip
PHASES = {"noise_schedule": "75-25S-25S", "lr_milestones": [75, 100]}
CPU = {"noise": 0.0, "method": "none", "lr_milestones": [9, 15]}
HALVES = {"signs": "halves", "noise_schedule": "9-12S", "lr_milestones": [9, 15]}
VARIANTS = {  # what differs from resnet20.yaml: in optim, epochs, and all else
    "resnet20_phases": (PHASES, 125, {}),
    "resnet20_sgdr": ({"lr_schedule": "sgdr", "lr_milestones": []}, 300, {}),
    "resnet20_large_batch": ({}, 175, {"batch_size": 256, "accumulate": 4}),
    "resnet20_cpu": (CPU, 21, {"valid": 5000, "precision": "auto"}),
    "resnet20_cpu_phases": ({"noise_schedule": "9-3S-3S", "lr_milestones": [9, 12]}, 15, {"valid": 5000}),
    "resnet20_cpu_halves": (HALVES, 21, {"valid": 5000}),
}


def parsed(name: str):
    return parse_recipe(TRAIN.Config, ["--config", str(FILES[name]), "--data", str(FOLDER), "--out", "unused"]).config


@pytest.mark.parametrize("name", FILES)
def test_a_shipped_configuration_says_what_its_name_promises(name):
    config = parsed(name)
    base = name if name in LEVELS else "resnet20"
    changes, epochs, others = VARIANTS.get(name, ({}, 175, {}))
    expected = OptimConfig(method="ssgd", noise=config.optim.noise, lr=0.1, momentum=0.9, weight_decay=1e-4,
                           lr_schedule="steps", lr_milestones=[75, 125])  # fmt: skip
    assert config.optim == dataclasses.replace(expected, **changes)
    low, high = LEVELS[base]
    assert low <= config.optim.noise <= high or config.optim.method == "none"
    assert config.model.name == base and config.training.epochs == epochs
    assert config.batch_size == others.get("batch_size", 128)
    assert config.training.accumulate == others.get("accumulate", 1)
    assert config.corpus == CorpusConfig(valid=others.get("valid", 0), pad=4, flip=True)
    assert config.training.precision == ("auto" if "cpu" in name else "fp32")
    groups = build_optimizer(build_classifier(NETWORKS.settings(base), 10), config.optim).param_groups
    assert max(group.get("noise", 0) for group in groups) == config.optim.noise
    assert len(yaml.safe_load(FILES[name].read_text())) == 7  # all of it, and nothing twice


def test_phases_and_halves_have_as_many_passes_as_sgd():
    def passes(name: str) -> float:
        config = parsed(name)
        optimizer = build_optimizer(torch.nn.Conv2d(1, 1, 1), config.optim)
        schedulers, total = build_schedulers(optimizer, config.optim, config.training.epochs), 0.0
        for _ in range(config.training.epochs):
            shares = [len(part.take(torch.zeros(2))) / 2 for part in optimizer.passes()]
            optimizer.step(lambda: None)
            total += sum(shares)
            for scheduler, _ in schedulers:
                scheduler.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001)
        return total

    assert passes("resnet20_phases") == 175
    assert passes("resnet20_cpu") == passes("resnet20_cpu_phases") == passes("resnet20_cpu_halves") == 21


def test_every_configuration_is_known_here_and_to_the_readme():
    assert set(FILES) == set(LEVELS) | set(VARIANTS)
    readme = (FOLDER / "README.md").read_text()
    for name, path in FILES.items():
        row = next(line for line in readme.splitlines() if line.startswith(f"| [{path.name}]({path.name}) |"))
        with torch.device("meta"):
            count = sum(p.numel() for p in build_classifier(parsed(name).model, 10).parameters())
        assert f"{count:,}" in row and f"| {parsed(name).training.epochs} |" in row
