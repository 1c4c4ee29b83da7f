"""Settings that would do nothing are refused, or said."""

from typing import Any

import pytest
from command_lines import Config, reader
from torch import nn

from seqssgd.documents import parse_yaml
from seqssgd.errors import UserError
from seqssgd.images import config as images
from seqssgd.speech import config as speech
from seqssgd.training import OptimConfig, unused
from seqssgd.training.unused import idle


@pytest.fixture
def parse(tmp_path):
    return reader(tmp_path)


# ---- beside a method, a base or a schedule --------------------------------------------------------------------------

NOTHING, NESTING = "does nothing, as optim.base", "optim: {base: adamw, momentum: 0.9}"
COSINE = "optim: {lr_schedule: cosine, lr_milestones: [3]}"
NOISY, PLAIN, UNNAMED = "optim: {method: ssgd, noise: 0.3}", "optim: {method: none}", "optim: {lr: 0.2}"


@pytest.mark.parametrize(
    "yaml, options, message",
    [
        (PLAIN, ["--optim.noise", "0.3"], "optim.noise: 0.3 does nothing, as optim.method is none"),
        (UNNAMED, ["--optim.noise=0.3"], "optim.noise: 0.3 does nothing, as optim.method is none"),
        (None, ["--optim", "{noise: 0.3}"], "optim.noise: 0.3 does nothing, as optim.method is none"),
        (NOISY, ["--optim.method", "none", "--optim.noise", "0.3"], "optim.noise: 0.3 does nothing, after"),
        (PLAIN, ["--optim.signs", "halves"], "optim.signs: 'halves' does nothing"),
        (PLAIN, ["--optim.rho", "0.1"], "optim.rho: 0.1 does nothing"),
        (PLAIN, ["--optim.noise_schedule", "1-1S"], "optim.noise_schedule: '1-1S' does nothing"),
        ("optim: {noise: 0.3}", [], "optim.noise: 0.3 does nothing, as there is no optim.method"),
        (PLAIN, ["--optim.method", "ssgd"], "optim.noise: ssgd without a level is sgd alone"),
        (NOISY, ["--optim.noise", "0"], "optim.noise: ssgd without a level is sgd alone"),
        ("optim: {method: covariance}", [], "optim.noise: covariance without a level"),
        (None, ["--optim.base", "adam", "--optim.momentum", "0.9"], f"optim.momentum: 0.9 {NOTHING} adam has none"),
        (PLAIN, ["--optim.betas", "[0.8, 0.9]"], f"optim.betas: (0.8, 0.9) {NOTHING} sgd has none; leave it out"),
        ("optim: {betas: [0.8, 0.9]}", [], f"optim.betas: (0.8, 0.9) {NOTHING} sgd has none"),
        (NESTING, ["--optim.momentum", "0.5"], f"optim.momentum: 0.5 {NOTHING} adamw has none"),
        (None, ["--optim.method", "ivon", "--optim.momentum=0.5"], "optim.momentum: 0.5 does nothing, as optim.method"),
        (
            None,
            ["--optim.method", "ivon", "--optim.base", "adam"],
            "optim.base: 'adam' does nothing, as optim.method ivon",
        ),
        (None, ["--optim.method", "ivon", "--optim.base_settings", "{nesterov: true}"], "optim.base_settings: {'nest"),
        ("optim: {method: ivon}", ["--optim.base=adam"], "optim.base: 'adam' does nothing, as optim.method ivon has"),
        (COSINE, ["--optim.lr_period", "4"], "optim.lr_period: 4 does nothing, as optim.lr_schedule cosine has none"),
        (
            None,
            ["--optim.lr_milestones", "[3]"],
            "optim.lr_milestones: [3] does nothing, as optim.lr_schedule constant",
        ),
        ("optim: {lr_divisor: 2}", [], "optim.lr_divisor: 2.0 does nothing, as optim.lr_schedule constant has none"),
    ],
)
def test_settings_that_do_nothing_are_refused(parse, yaml, options, message):
    with pytest.raises(UserError) as error:
        parse(*options, yaml=yaml)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "yaml, options, left_out",
    [
        (NOISY, ["--optim.method", "none"], {"optim.noise": 0.3}),
        (NOISY, ["--optim.noise", "0.5", "--optim.method=none"], {"optim.noise": 0.5}),
        ("optim: {method: none, noise: 0.3, signs: halves}", [], {"optim.noise": 0.3, "optim.signs": "halves"}),
        (NESTING, [], {"optim.momentum": 0.9}),
        ("optim: {momentum: 0.9}", ["--optim.base", "adam"], {"optim.momentum": 0.9}),
        ("optim: {momentum: 0.9}", ["--optim.method", "ivon"], {"optim.momentum": 0.9}),
        (None, ["--optim.base", "adam", "--optim.method", "ivon"], {"optim.base": "adam"}),
        ("optim: {base: adam, betas: [0.8, 0.9]}", ["--optim.base", "sgd"], {"optim.betas": (0.8, 0.9)}),
        ("optim: {method: msam, rho: 0.3, momentum: 0.9}", [], {}),
        ("optim: {base: adam, betas: [0.8, 0.9]}", ["--optim.method", "ivon"], {"optim.base": "adam"}),
        (NOISY, ["--optim.method", "sam", "--optim.noise", "0"], {}),
        (PLAIN, ["--optim.noise", "0", "--optim.noise_seed", "3"], {}),
        (PLAIN, ["--optim.method", "ssgd", "--optim.noise", "0.2"], {}),
        (COSINE, [], {"optim.lr_milestones": [3]}),
        (COSINE, ["--optim.lr_divisor", "2", "--optim.lr_schedule", "steps"], {}),
        (
            COSINE,
            ["--optim.lr_divisor", "2", "--optim.lr_schedule=sgdr"],
            {"optim.lr_divisor": 2.0, "optim.lr_milestones": [3]},
        ),
        (None, [], {}),
    ],
)
def test_no_method_makes_a_file_its_baseline_and_tells_what_that_leaves_out(parse, yaml, options, left_out):
    config = parse(*options, yaml=yaml).config
    assert {key: value for by in unused.left_out(config.optim).values() for key, value in by.items()} == left_out


# ---- beside others, or for a network ---------------------------------------------------------------------------------


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn = nn.Embedding(5, 4), nn.LSTM(4, 4)


IDLE = {  # settings of a section, and of which warnings are given
    "optim: noise_unit=step": "optim.noise_unit: step does nothing without optim.noise_schedule or optim.noise_ramp",
    "optim: noise_unit=step noise_ramp=[0,2]": "",
    "optim: lr_warmup_unit=step": "optim.lr_warmup_unit: step does nothing without optim.lr_warmup",
    "optim: lr_warmup_unit=step lr_warmup=9": "",
    "optim: method=none noise=0 bn_stats=none": "optim.bn_stats: none does nothing with optim.method none",
    "optim: method=swa noise=0 bn_stats=none": "optim.bn_stats: none does nothing with optim.method swa",
    "optim: bn_stats=none": "optim.bn_stats: none does nothing with this network, which has no batch norm",
    "optim: only=[recurrent,conv]": "optim.only: conv does nothing with this network, which has no such weights",
    "optim: only=[recurrent,embedding]": "",
    "tokens: vocab_size=300": "tokens.vocab_size: 300 does nothing with tokens.level character",
    "tokens: symbols=a level=sentencepiece": "tokens.symbols: 'a' does nothing with tokens.level sentencepiece",
    "tokens: vocab_size=300 level=sentencepiece": "",
    "augment: time_width=9": "augment.time_width: 9 does nothing with augment.time_masks 0",
    "augment: time_share=0.1": "augment.time_share: 0.1 does nothing with augment.time_masks 0",
    "augment: frequency_masks=2 frequency_width=0": "augment.frequency_masks: 2 does nothing with augment.freq",
    "augment: frequency_masks=2 frequency_width=9 time_masks=1 time_width=9": "",
    "bn_images=9": "bn_images: 9 does nothing with corpus.valid 0, as there is no validation",
    "bn_images=9 corpus.valid=9": "",
}  # fmt: skip


@pytest.mark.parametrize("asked", IDLE)
def test_settings_that_do_nothing_beside_others_are_said(asked):
    section, _, words = asked.rpartition(": ")
    given = {key: parse_yaml(text.encode()) for key, text in (word.split("=") for word in words.split())}
    optim = OptimConfig(**{"method": "ssgd", "noise": 0.5, **(given if section == "optim" else {})})
    config: Any = Config(optim=optim)
    if section in ("tokens", "augment"):
        kinds = {"tokens": speech.TokensConfig, "augment": speech.AugmentConfig}
        config = speech.Config(optim=optim, **{section: kinds[section](**given)})
    elif not section:
        corpus = images.CorpusConfig(valid=given.pop("corpus.valid", 0))
        config = images.Config(optim=optim, corpus=corpus, **given)
    assert [text.startswith(IDLE[asked]) for text in idle(config, Network())] == [True] * bool(IDLE[asked])
