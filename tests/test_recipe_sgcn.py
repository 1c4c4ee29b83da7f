"""The task of recipes/wsj_sgcn/train.py against a computation by hand, and the configurations that are shipped."""

import dataclasses

import pytest
import torch
import yaml
from programs import ROOT, load
from torch.func import functional_call

from seqssgd.errors import UserError
from seqssgd.speech import task as speech_task
from seqssgd.speech.config import AugmentConfig, CorpusConfig, TokensConfig
from seqssgd.training import OptimConfig, TrainingConfig, build_optimizer, distributed, parse_recipe

datasets = pytest.importorskip("datasets")
import tones  # noqa: E402

from seqssgd.speech.config import FeatureConfig, RecognizerConfig  # noqa: E402
from seqssgd.speech.networks import NETWORKS  # noqa: E402
from seqssgd.speech.recognizer import Recognizer  # noqa: E402

TRAIN = load("recipes/wsj_sgcn/train.py")
FOLDER = ROOT / "recipes/wsj_sgcn"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
MODEL = RecognizerConfig(
    FeatureConfig(bins=8, window=0.02), NETWORKS.settings("sgcn", width=6, layers=2, kernel=3, subsampling=2)
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield tones.prepare(tmp_path_factory.mktemp("prepared") / "data")


def task_of(data, augment=None, model=MODEL, batch_seconds=3.0, speech_sets=None, accumulate=1, **optim):
    """A task and its optimizer."""
    torch.manual_seed(1)
    config = TRAIN.Config(
        CorpusConfig(batch_seconds=batch_seconds, buckets=2),
        TokensConfig(),
        model,
        AugmentConfig(**(augment or {})),
        OptimConfig(**{"base": "adam", "lr": 0.01, **optim}),
        TrainingConfig(accumulate=accumulate),
    )
    sets = speech_sets or TRAIN.load_sets(data, config)
    tokenizer = TRAIN.build_tokenizer(config.tokens, sets["train"].texts)
    recognizer = Recognizer(config.model, tokenizer.vocab_size)
    task = TRAIN.SpeechTask(recognizer, tokenizer, sets, config, torch.device("cpu"))
    return task, build_optimizer(recognizer, config.optim)


def test_two_processes_that_share_a_minibatch_see_it_augmented_alike(data, monkeypatch):
    monkeypatch.setitem(globals(), "build_optimizer", lambda *_: None)  # it wants the processes
    for module in (distributed, speech_task):
        monkeypatch.setattr(module, "world_size", lambda: 4)

    def features(rank, signs="pairs", start=0):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        task, _ = task_of(data, {"speeds": [0.9, 1.0, 1.1]}, batch_seconds=12.0, **SSGD, signs=signs)
        torch.manual_seed(rank)
        before = torch.get_rng_state()
        found = [batch[0] for batch in task.batches(1, start)]
        assert torch.equal(before, torch.get_rng_state()) == (signs == "pairs")
        return found

    first, second, third = (features(rank) for rank in range(3))
    assert len(first) > 1 and all(map(torch.equal, first, second))
    assert all(map(torch.equal, first[1:], features(0, start=1)))  # as a training that goes on has them
    assert not any(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, third, strict=True))
    features(1, "ranks")


def ctc_by_hand(logits, labels):
    """-ln of the summed probability of all alignments, by the forward recursion over labels with blanks between."""
    log_probs = logits.double().log_softmax(-1)
    states = [0]
    for label in labels:
        states += [label, 0]
    never = torch.tensor(-1e30, dtype=torch.float64)
    alpha = [log_probs[0, s] if i < 2 else never for i, s in enumerate(states)]
    for row in log_probs[1:]:
        before = alpha
        alpha = []
        for i, s in enumerate(states):
            ways = [before[i]] + ([before[i - 1]] if i else [])
            if i > 1 and s != 0 and s != states[i - 2]:
                ways.append(before[i - 2])
            alpha.append(torch.logsumexp(torch.stack(ways), 0) + row[s])
    return -torch.logsumexp(torch.stack(alpha[-2:]), 0)


SSGD = {"method": "ssgd", "noise": 0.3}


@pytest.mark.parametrize("optim", [
    {}, SSGD, {**SSGD, "signs": "halves"}, {**SSGD, "signs": "steps"}
], ids=["none", "batch", "halves", "steps"])  # fmt: skip
def test_losses_and_gradients_are_those_by_hand(data, optim):
    """Every utterance by itself, without padding, at the point that the optimizer shows; parts weighted by size."""
    task, optimizer = task_of(data, **optim)
    halved, double = optim.get("signs") == "halves", optim.get("signs", "batch") == "batch" and bool(optim)
    sizes = set()
    for batch in list(task.batches(0))[:3]:
        features, frames, targets, target_lengths, seconds = batch
        size, mean, shown = len(features), None, []
        for part in optimizer.passes():
            point = {name: p.detach().clone().requires_grad_() for name, p in task.model.named_parameters()}
            shown.append(torch.cat([p.detach().flatten() for p in point.values()]))
            loss, units = task.loss(batch, part)
            loss.backward()
            mine = range(size)
            if halved:
                mine = range(size // 2) if part.index == 0 else range(size // 2, size)
            losses = []
            for i in mine:
                alone = (features[i : i + 1, : frames[i]], frames[i : i + 1])
                logits, lengths = functional_call(task.model, point, alone)
                labels = targets[i, : target_lengths[i]].tolist()
                losses.append(ctc_by_hand(logits[0, : lengths[0]], labels) / len(labels))
            expected = sum(losses) / len(losses)
            assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
            assert units == pytest.approx(sum(seconds[i].item() for i in mine))
            share = len(mine) / size if halved else 1 / 2 if double else 1
            gradients = torch.autograd.grad(expected, list(point.values()))
            mean = [share * g + (m if mean else 0) for g, m in zip(gradients, mean or gradients, strict=True)]
        sizes.add(size)
        assert len(shown) == (2 if halved or double else 1)
        if len(shown) == 2:
            weights = torch.cat([p.detach().flatten() for p in task.model.parameters()])
            assert not torch.equal(*shown)
            torch.testing.assert_close(sum(shown) / 2, weights)
        for parameter, gradient in zip(task.model.parameters(), mean, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)
        optimizer.step()
        optimizer.zero_grad()
    assert not halved or any(size % 2 for size in sizes)  # halves of different sizes


@pytest.mark.parametrize("augment", [{"speeds": [0.9, 1.1]}, {"frequency_masks": 2, "frequency_width": 6}], ids=str)
def test_both_passes_see_the_same_augmented_features(data, augment):
    task, optimizer = task_of(data, augment, **SSGD)
    plain, _ = task_of(data)
    seen = []
    task.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    for batch, bare in zip(task.batches(0), plain.batches(0), strict=True):
        seen.clear()
        for part in optimizer.passes():
            task.loss(batch, part)[0].backward()
        optimizer.step()
        (first, lengths), (second, same_lengths) = seen
        assert torch.equal(first, second) and torch.equal(lengths, same_lengths)
        assert torch.equal(batch[2], bare[2]) and torch.equal(batch[4], bare[4])  # labels and seconds are untouched
        if "speeds" in augment:
            assert (lengths != bare[1]).all()
        else:
            changed = (first != bare[0]).any(1)  # (B, F): features that are masked in all frames of an utterance
            assert torch.equal(lengths, bare[1]) and changed.any() and not changed.all()


def test_batches_can_begin_anywhere_and_every_utterance_comes_once_an_epoch(data):
    task, _ = task_of(data)
    batches = list(task.batches(3))
    assert len(batches) == task.steps_per_epoch > 3
    for a, b in zip(task.batches(3, start=2), batches[2:], strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    found = [task.tokenizer.decode(row[:n].tolist()) for b in batches for row, n in zip(b[2], b[3], strict=True)]
    assert sorted(found) == sorted(task.train.texts)


def test_utterances_that_the_highest_speed_makes_too_short_are_left_out(data):
    """At no speed may the loss be infinite: all that is trained on has frames enough when it is played fastest."""
    model = dataclasses.replace(MODEL, network=dataclasses.replace(MODEL.network, subsampling=9))
    kept = {}
    for speed in (1.0, 2.0):
        task, _ = task_of(data, {"speeds": [speed]}, model)
        kept[speed] = len(task.selection.indices)
        for batch in task.batches(0):
            _, lengths = task.model(batch[0], batch[1])
            repeats = [(row[1:n] == row[: n - 1]).sum() for row, n in zip(batch[2], batch[3], strict=True)]
            assert (lengths >= batch[3] + torch.stack(repeats)).all()
    assert 0 < kept[2.0] < kept[1.0]


def test_validation_is_the_greedy_transcript_of_every_utterance_by_itself(data):
    task, optimizer = task_of(data, **SSGD)
    task.model.eval()
    errors, words, total, labels_seen = 0, 0, 0.0, 0
    for i in range(len(task.valid)):
        wave = task.valid.waveform(i)[None]
        with torch.no_grad():
            logits, _ = task.model(*task.model.features(wave, torch.tensor([wave.shape[1]])))
        path = logits[0].argmax(-1).tolist()
        labels = [s for t, s in enumerate(path) if s and (t == 0 or path[t - 1] != s)]
        heard = "".join(task.tokenizer.labels[s] for s in labels).split()
        said = task.valid.texts[i].split()
        errors, words = errors + distance(said, heard), words + len(said)
        total += ctc_by_hand(logits[0], task.valid_targets[i].tolist()).item()
        labels_seen += len(task.valid_targets[i])
    metrics = task.evaluate()
    assert metrics["valid_wer"] == pytest.approx(100 * errors / words)
    assert metrics["valid_loss"] == pytest.approx(total / labels_seen, rel=1e-5)


def distance(a: list[str], b: list[str]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, before = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]


def test_global_statistics_are_those_of_the_training_set(data):
    model = dataclasses.replace(MODEL, features=dataclasses.replace(MODEL.features, normalization="global"))
    task, _ = task_of(data, model=model)
    batches = list(task.batches(0))
    frames = torch.cat([row[:n] for batch in batches for row, n in zip(batch[0], batch[1], strict=True)])
    torch.testing.assert_close(frames.mean(0), torch.zeros(8), rtol=0, atol=1e-3)
    torch.testing.assert_close(frames.std(0), torch.ones(8), rtol=1e-2, atol=0)


def test_settings_that_make_no_sense_are_named_with_their_section(data):
    for change, reason in (
        ({"augment": {"speeds": [3.0]}}, r"augment\.factors=\(3\.0,\)"),
        ({"accumulate": 99}, r"training\.accumulate: 99 is not at most 12, the minibatches of an epoch$"),
        ({"augment": {"time_masks": -1}}, r"augment\.time_masks=-1"),
        ({"model": dataclasses.replace(MODEL, network=NETWORKS.settings("sgcn", width=0))}, r"model\.network\.width=0"),
        ({"model": dataclasses.replace(MODEL, features=FeatureConfig(bins=400))}, r"model\.features\.bins=400"),
        (
            {"batch_seconds": 0.5, "signs": "halves", **SSGD},
            r"^corpus \(lengths in samples at 16,000 Hz\): .* is too small for 3 utterances",
        ),
    ):
        with pytest.raises(UserError, match=reason):
            task_of(data, **change)


# ---- the shipped configurations --------------------------------------------------------------------------------------

BASES = {  # sets, width, epochs, parameters with 29 labels
    "an4": ("train valid test", 190, 80, 1_332_467),
    "ocean": ("train valid test", 190, 40, 1_332_467),
    "wsj_12x190": ("si284 dev93 eval92", 190, 40, 925_619),
    "wsj_12x300": ("si284 dev93 eval92", 300, 40, 2_187_209),
    "librispeech100_12x190": ("train-clean-100 dev-clean test-clean", 190, 50, 925_619),
}
CHANGES = {
    "ssgd": {"method": "ssgd", "noise": 0.3},
    "halves": {"method": "ssgd", "noise": 0.3, "signs": "halves"},
}
LEVELS = {"ocean": 0.1}  # of those that have their own


CONFORMER = {"width": 144, "layers": 4, "heads": 4, "kernel": 15, "reach": None, "subsampling": 3, "dropout": 0.1}
OTHERS = {"an4_conformer": {"method": "none"}, "an4_conformer_ssgd": {"method": "ssgd", "noise": 0.2}}


def parsed(name: str):
    return parse_recipe(TRAIN.Config, ["--config", str(FILES[name]), "--data", str(FOLDER), "--out", "unused"]).config


@pytest.mark.parametrize("name", OTHERS)
def test_a_shipped_conformer_is_an4s_but_for_network_and_optimizer(name):
    config, plain, an4 = parsed(name), parsed("an4_conformer"), parsed("an4")
    assert dataclasses.asdict(config.model.network) == {"name": "conformer", **CONFORMER}
    assert config == dataclasses.replace(plain, optim=dataclasses.replace(plain.optim, **OTHERS[name]))
    assert (config.corpus, config.tokens, config.augment) == (an4.corpus, an4.tokens, an4.augment)
    assert config.training == an4.training and config.model.features == an4.model.features
    model = Recognizer(config.model, 29)
    row = next(line for line in (FOLDER / "README.md").read_text().splitlines() if f"({name}.yaml)" in line)
    assert f"{sum(p.numel() for p in model.parameters()):,}" in row and f"| {config.training.epochs} |" in row


@pytest.mark.parametrize("name", sorted(FILES.keys() - OTHERS.keys()))
def test_a_shipped_configuration_says_what_its_name_promises(name):
    config, (base, _, variant) = parsed(name), name.rpartition("_")
    if variant in CHANGES:
        noise = LEVELS.get(base, CHANGES[variant]["noise"])
        optim = dataclasses.replace(parsed(base).optim, **CHANGES[variant] | {"noise": noise})
        assert config == dataclasses.replace(parsed(base), optim=optim)
    else:
        base = name
        assert config.optim.method == "none"
    names, width, epochs, parameters = BASES[base]
    corpus, network = config.corpus, config.model.network
    assert [corpus.train, corpus.valid, corpus.test] == names.split() and network.layers == 12
    assert network.width == width and config.training.epochs == epochs and config.optim.base == "adam"
    model = Recognizer(config.model, 29)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert (
        max(group.get("noise", 0) for group in build_optimizer(model, config.optim).param_groups) == config.optim.noise
    )
    assert len(yaml.safe_load(FILES[name].read_text())) == 7  # all of it, and nothing twice


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_method_can_halve_its_minibatches(name):
    corpus = parsed(name).corpus  # of which a minibatch may have to take three of the longest utterances
    longest = {"an4": 6.3}.get(name.split("_")[0], corpus.max_seconds)
    assert 3 * longest <= corpus.batch_seconds


def test_labels_of_wsj_are_what_was_said_without_noises_and_marks():
    text = '<NOISE> HE <*IN*> ,COMMA *ROSE* :COLON "DOUBLE-QUOTE'
    tokenizer = TRAIN.build_tokenizer(parsed("wsj_12x190").tokens, [text])
    said = 'HE IN ,COMMA ROSE COLON "DOUBLE-QUOTE'
    assert tokenizer.normalize(text) == said == tokenizer.decode(tokenizer.encode(text).tolist())
    assert tokenizer.vocab_size == 29 + len(',"-')


def test_every_configuration_is_known_here_and_to_the_readme():
    assert set(FILES) == {f"{base}{suffix}" for base in BASES for suffix in ("", "_ssgd", "_halves")} | set(OTHERS)
    readme = (FOLDER / "README.md").read_text()
    for name, path in FILES.items():
        if name in OTHERS:
            continue
        row = next(line for line in readme.splitlines() if line.startswith(f"| [{path.name}]({path.name}) |"))
        _, _, epochs, parameters = BASES[name.removesuffix("_ssgd").removesuffix("_halves")]
        assert f"{parameters:,}" in row and f"| {epochs} |" in row
