"""The task of recipes/ptb_lstm/train.py against loops by hand, and the configurations that are shipped with it."""

import dataclasses
import math

import pytest
import torch
import yaml
from programs import ROOT, generated_lines, load
from torch.func import functional_call

from seqssgd.data.text import columns, load_text, write_text_dataset
from seqssgd.errors import UserError
from seqssgd.language.networks import NETWORKS
from seqssgd.training import OptimConfig, TrainingConfig, build_optimizer, parse_recipe

TRAIN = load("recipes/ptb_lstm/train.py")
FOLDER = ROOT / "recipes/ptb_lstm"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


@pytest.fixture
def dataset(tmp_path):
    splits = {name: generated_lines(size, 9, seed) for seed, (name, size) in enumerate(LINES.items())}
    write_text_dataset(tmp_path / "data", splits, "generated")
    return load_text(tmp_path / "data")


LINES = {"train": 30, "valid": 12, "test": 5}


def task_of(dataset, batch_size=5, accumulate=1, **optim):
    """A task in float64 with windows of 4, and its optimizer."""
    model_config = NETWORKS.settings("lstm", hidden_size=6, num_layers=2, init_scale=0.4)
    config = TRAIN.Config(
        model_config, OptimConfig(**optim), TrainingConfig(accumulate=accumulate), batch_size, sequence_length=4
    )
    model = model_config.build(vocab_size=dataset.tokenizer.vocab_size).double()
    task = TRAIN.LanguageModelTask(model, dataset, config, torch.device("cpu"))
    return task, build_optimizer(model, config.optim)


def loss_by_hand(logits, targets):
    """The sum over time of the mean over the columns of -ln p, one element at a time."""
    total = 0.0
    for t in range(targets.shape[0]):
        surprises = [-logits[t, b].log_softmax(0)[targets[t, b]] for b in range(targets.shape[1])]
        total = total + sum(surprises) / len(surprises)
    return total


SSGD = {"method": "ssgd", "noise": 0.5, "lr": 0.3}


@pytest.mark.parametrize("optim", [
    {"lr": 0.3}, SSGD, {**SSGD, "signs": "halves"}, {**SSGD, "signs": "steps"}
], ids=["none", "batch", "halves", "steps"])  # fmt: skip
@pytest.mark.parametrize("levels", [[0.5] * 4, [0.0, 0.5, 0.5, 0.0, 0.0, 0.5]], ids=["always", "on and off"])
def test_losses_states_and_gradients_are_those_by_hand(dataset, optim, levels):
    """Five columns, so that halves are 2 and 3 of them; at w+n and w-n as the optimizer shows these points."""
    task, optimizer = task_of(dataset, **optim)
    model, states = task.model, {}
    task.start_epoch(0)
    for level, batch in zip(levels, task.batches(0), strict=False):
        if "noise" in optim:
            optimizer.param_groups[0]["noise"] = level
        mean, passes = None, 0
        for part in optimizer.passes():
            point = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
            loss, units = task.loss(batch, part)
            loss.backward()
            halved = optim.get("signs") == "halves" and level > 0
            mine = slice(*((0, 2), (2, 5))[part.index]) if halved else slice(0, 5)
            inputs, targets = (tensor[:, mine] for tensor in batch)
            state = states.get(part.index)
            if state is not None and state[0].shape[1] != inputs.shape[1]:
                state = None  # that of other columns
            logits, state = functional_call(model, point, (inputs, state))
            states[part.index] = tuple(s.detach() for s in state)
            expected = loss_by_hand(logits, targets)
            assert loss.item() == pytest.approx(expected.item(), rel=1e-6) and units == targets.numel()
            share = inputs.shape[1] / 5 if halved else 1 / 2 if optimizer_passes(optim, level) == 2 else 1
            gradients = torch.autograd.grad(expected, list(point.values()))
            mean = [share * g + (m if mean else 0) for g, m in zip(gradients, mean or gradients, strict=True)]
            passes += 1
        assert passes == optimizer_passes(optim, level)
        if passes == 1:
            states.pop(1, None)  # the path ends; it will begin anew
        for parameter, gradient in zip(model.parameters(), mean, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-7)
        optimizer.step()
        optimizer.zero_grad()


def optimizer_passes(optim: dict, level: float) -> int:
    return 2 if "noise" in optim and level > 0 and optim.get("signs") != "steps" else 1


def test_an_epoch_reads_every_column_through_with_one_state_from_zero(dataset):
    """At fixed weights the losses of the windows are slices of one reading of the whole text."""
    task, optimizer = task_of(dataset, lr=1e-300)
    data = columns(dataset.split("train"), 5)
    used = (len(data) - 1) // 4 * 4
    logits, _ = task.model(data[:used])
    expected = [loss_by_hand(logits[t : t + 4], data[t + 1 : t + 5]).item() for t in range(0, used, 4)]
    for epoch in range(2):
        task.start_epoch(epoch)
        losses = [task.loss(batch, part)[0].item() for batch in task.batches(epoch) for part in optimizer.passes()]
        assert losses == pytest.approx(expected, rel=1e-6)
    assert len(losses) == task.steps_per_epoch
    unreset = [task.loss(batch, part)[0].item() for batch in task.batches(2) for part in optimizer.passes()]
    assert unreset[0] != pytest.approx(expected[0], rel=1e-3)


def test_batches_can_begin_anywhere_and_accumulate_to_steps(dataset):
    task, _ = task_of(dataset, accumulate=3)
    windows = list(task.batches(0))
    assert task.steps_per_epoch == math.ceil(len(windows) / 3)
    assert task_of(dataset, accumulate=len(windows))[0].steps_per_epoch == 1
    refusal = rf"training\.accumulate: {len(windows) + 1} is not at most {len(windows)}, the minibatches of an epoch"
    with pytest.raises(UserError, match=refusal):
        task_of(dataset, accumulate=len(windows) + 1)
    for a, b in zip(task.batches(0, start=2), windows[2:], strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_a_loss_that_is_not_finite_does_not_spoil_the_windows_after_it(dataset):
    task, optimizer = task_of(dataset)
    batches, bias = task.batches(0), task.model.lstm.bias_hh_l0
    kept = bias.detach().clone()
    for broken in (False, True, False):
        with torch.no_grad():
            bias.copy_(torch.full_like(kept, math.nan) if broken else kept)
        losses = [task.loss(next(batches), part)[0].item() for part in optimizer.passes()]
        assert math.isfinite(losses[0]) is not broken


def test_validation_reads_the_columns_of_training_through_once(dataset):
    task, _ = task_of(dataset)
    data = columns(dataset.split("valid"), 5)
    used = (len(data) - 1) // 4 * 4
    logits, _ = task.model(data[:used])
    mean = loss_by_hand(logits, data[1 : used + 1]).item() / used
    metrics = task.evaluate()
    assert metrics["valid_loss"] == pytest.approx(mean, rel=1e-6)
    assert metrics["valid_perplexity"] == pytest.approx(math.exp(mean), rel=1e-6)


def test_training_is_logged_in_the_unit_of_validation(dataset):
    """Where nothing is learned or dropped, the loss over training's windows is a perplexity as validation's."""
    task, optimizer = task_of(dataset, lr=1e-300)
    task.valid = task.windows
    task.start_epoch(0)
    losses = [task.loss(batch, part)[0].item() for batch in task.batches(0) for part in optimizer.passes()]
    task.model.eval()
    with torch.no_grad():
        validated = task.evaluate()
    logged = task.train_metrics(sum(losses) / len(losses))
    assert logged == {"train_perplexity": pytest.approx(validated["valid_perplexity"])}
    assert task.train_metrics(1e6) == {"train_perplexity": math.inf}


def test_carried_states_survive_a_checkpoint(dataset):
    task, optimizer = task_of(dataset, **SSGD)
    batches = list(task.batches(0))
    for part in optimizer.passes():
        task.loss(batches[0], part)
    again, _ = task_of(dataset, **SSGD)
    again.model.load_state_dict(task.model.state_dict())
    again.load_state_dict(task.state_dict())
    assert set(again.states) == {0, 1}
    for part in optimizer.passes():
        for own, moved in zip(again.model.parameters(), task.model.parameters(), strict=True):
            own.data.copy_(moved)  # the same point for both, and each one's own state
        assert task.loss(batches[1], part)[0].item() == again.loss(batches[1], part)[0].item()


# ---- the shipped configurations --------------------------------------------------------------------------------------

PUBLISHED = {  # hidden, layers, dropout, init, T, clip, lr, constant epochs, divisor, epochs, parameters
    "small": (200, 2, 0.0, 0.1, 20, 5, 1, 4, 2, 13, 4_653_200),
    "medium": (650, 2, 0.5, 0.05, 35, 5, 1, 6, 1.2, 39, 19_780_400),
    "large": (1500, 2, 0.65, 0.04, 35, 10, 1, 14, 1.15, 55, 66_034_000),
    "rnn300": (300, 1, 0.5, 0.1, 30, 0.25 * 30, pytest.approx(20 / 30, rel=1e-4), 12, 1.15, 39, 6_732_400),
    "small_cpu": (200, 2, 0.0, 0.1, 20, 5, 1, 7, 1.5, 20, 4_653_200),
}
VARIANTS = {  # of which file, with which changes
    "small_ssgd": ("small", {"method": "ssgd", "noise": 0.7}),
    "medium_ssgd": ("medium", {"method": "ssgd", "noise": 0.8}),
    "large_ssgd": ("large", {"method": "ssgd", "noise": 0.8}),
    "rnn300_ssgd": ("rnn300", {"method": "ssgd", "noise": 0.7}),
    "small_cpu_ssgd": ("small_cpu", {"method": "ssgd", "noise": 0.7}),
    "small_cpu_halves": ("small_cpu", {"method": "ssgd", "noise": 0.7, "signs": "halves"}),
    "small_adam_ssgd": ("small", {"method": "ssgd", "noise": 0.7, "base": "adam", "lr": 0.001}),
}


TRANSFORMER = {"width": 200, "num_layers": 3, "heads": 4, "context": 128, "dropout": 0.1, "tied": True}
OTHERS = {"transformer_cpu": {"method": "none"}, "transformer_cpu_ssgd": {"method": "ssgd", "noise": 0.2}}


def parsed(name: str):
    return parse_recipe(TRAIN.Config, ["--config", str(FILES[name]), "--data", str(FOLDER), "--out", "unused"]).config


@pytest.mark.parametrize("name", OTHERS)
def test_a_shipped_transformer_is_one_of_about_the_size_of_the_small_lstm(name):
    config = parsed(name)
    assert dataclasses.asdict(config.model) == {"name": "transformer", **TRANSFORMER}
    plain = parsed("transformer_cpu")
    assert config == dataclasses.replace(plain, optim=dataclasses.replace(plain.optim, **OTHERS[name]))
    with torch.device("meta"):
        model = config.model.build(vocab_size=10_000)
    row = next(line for line in (FOLDER / "README.md").read_text().splitlines() if f"({name}.yaml)" in line)
    assert f"{sum(p.numel() for p in model.parameters()):,}" in row and f"| {config.training.epochs} |" in row
    assert max(group.get("noise", 0) for group in build_optimizer(model, config.optim).param_groups) == (
        config.optim.noise
    )


@pytest.mark.parametrize("name", sorted(FILES.keys() - OTHERS.keys()))
def test_a_shipped_configuration_says_what_its_name_promises(name):
    config, optim = parsed(name), parsed(VARIANTS[name][0] if name in VARIANTS else name).optim
    if name in VARIANTS:
        base, changes = VARIANTS[name]
        assert config == dataclasses.replace(parsed(base), optim=dataclasses.replace(optim, **changes))
    else:
        base = name
        assert config.optim.method == "none" and config.optim.base == "sgd" and config.optim.momentum == 0
    m, t = config.model, config.training
    settings = (m.hidden_size, m.num_layers, m.dropout, m.init_scale, config.sequence_length, t.clip)
    settings += (optim.lr, optim.lr_constant_epochs, optim.lr_divisor, t.epochs)
    assert settings == PUBLISHED[base][:-1] and optim.lr_schedule == "zaremba" and config.batch_size == 20
    with torch.device("meta"):
        model = config.model.build(vocab_size=10_000)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[base][-1]
    groups = build_optimizer(model, config.optim).param_groups
    assert max(group.get("noise", 0) for group in groups) == config.optim.noise
    assert len(yaml.safe_load(FILES[name].read_text())) == 6  # all of it, and nothing twice


def test_every_configuration_is_known_here_and_to_the_readme():
    assert set(FILES) == set(PUBLISHED) | set(VARIANTS) | set(OTHERS)
    readme = (FOLDER / "README.md").read_text()
    for name, path in FILES.items():
        if name in OTHERS:
            continue
        row = next(line for line in readme.splitlines() if line.startswith(f"| [{path.name}]({path.name}) |"))
        base = VARIANTS[name][0] if name in VARIANTS else name
        assert f"{PUBLISHED[base][-1]:,}" in row and f"| {PUBLISHED[base][-2]} |" in row
