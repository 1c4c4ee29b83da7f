"""Networks from elsewhere that give something else than their task needs are refused."""

import sys

import pytest
import torch
from programs import coloured_images, load, refused
from torch import nn

from seqssgd.errors import UserError
from seqssgd.language.networks import NETWORKS
from seqssgd.language.networks import check_network as check_text_network
from seqssgd.language.task import build_model
from seqssgd.networks import Networks
from seqssgd.speech.config import RecognizerConfig
from seqssgd.speech.networks import NETWORKS as SPEECH_NETWORKS
from seqssgd.speech.recognizer import Recognizer

WRONG = {  # what forward of a network of text gives instead: what is said of it
    "logits.transpose(0, 1), state": r"gives logits of shape \(3, 2, 5\); wanted \(T, B, V\), here \(2, 3, 5\)",
    "logits[..., :-1], state": r"gives logits of shape \(2, 3, 4\); wanted \(T, B, V\)",
    "logits": "gives a Tensor; wanted two things: logits",
    "None, state": "gives logits of type NoneType; wanted",
    "logits, None": "gives a state of type NoneType; wanted those of zero_state",
    "logits, state[0]": "gives a state of type Tensor; wanted",
    "logits, (state[0].transpose(0, 1),)": r"gives a state of a tuple of shapes \(3, 1, 4\); wanted .* \(1, 3, 4\)",
}


class ToyText(nn.Module):
    def __init__(self, vocab_size: int, wrong: str = ""):
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(vocab_size, 4), nn.RNN(4, 4)
        self.output, self.wrong, self.norm = nn.Linear(4, vocab_size), wrong, nn.BatchNorm1d(4)

    def forward(self, tokens, state=None):
        hidden, last = self.rnn(torch.dropout(self.embedding(tokens), 0.1, True), None if state is None else state[0])
        logits = self.output(self.norm(hidden.flatten(0, 1)).view_as(hidden))
        names = {"logits": logits, "state": (last,)}
        return eval(self.wrong, names) if self.wrong else (logits, (last,))

    def zero_state(self, batch_size):
        return (torch.zeros(1, batch_size, 4),)


class ToySpeech(nn.Module):
    def __init__(self, input_size: int, output_size: int, wrong: str = ""):
        super().__init__()
        self.output, self.subsampling, self.wrong = nn.Linear(input_size, output_size), 2, wrong

    def forward(self, features, lengths):
        names = {"logits": self.output(features[:, ::2]), "lengths": (lengths + 1) // 2}
        return eval(self.wrong or "(logits, lengths)", names)


class ToyImages(nn.Module):
    def __init__(self, num_classes: int, wrong: str = ""):
        super().__init__()
        self.output, self.wrong = nn.Linear(3, num_classes), wrong

    def forward(self, images):
        return eval(self.wrong or "logits", {"logits": self.output(images.mean((2, 3)))})


@pytest.mark.parametrize("wrong", WRONG)
def test_a_network_of_text_that_gives_something_else_is_refused(wrong):
    with pytest.raises(UserError, match=f"^model.name: 'test_odd_networks:ToyText' {WRONG[wrong]}"):
        build_model(NETWORKS.settings("test_odd_networks:ToyText", wrong=wrong), 5)


@pytest.mark.parametrize("vocab_size", [2, 3, 4, 9])
def test_the_look_at_what_a_network_gives_leaves_no_trace(vocab_size):
    settings = NETWORKS.settings("test_odd_networks:ToyText")
    torch.manual_seed(0)
    made, after = settings.build(vocab_size=vocab_size), torch.rand(3)
    torch.manual_seed(0)
    looked_at = build_model(settings, vocab_size)
    assert torch.equal(after, torch.rand(3)) and all(module.training for module in looked_at.modules())
    state = looked_at.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in made.state_dict().items())
    made.zero_state = None
    with pytest.raises(UserError, match="needs zero_state"):
        check_text_network("x", made, vocab_size)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ("(logits.transpose(0, 1), lengths)", r"logits of shape \(40, 2, 7\); wanted \(B, T', V\), here \(2, 40, 7\)"),
        ("logits", "a Tensor; wanted two things"),
        ("(logits[:, :-1], lengths)", r"logits of shape \(2, 39, 7\)"),
        ("(logits, 2 * lengths)", r"lengths \[80, 40\] for \[79, 40\] frames; wanted T / 2, rounded up: \[40, 20\]"),
    ],
)
def test_a_network_of_speech_that_gives_something_else_is_refused(wrong, said):
    def recognizer(wrong):
        network = SPEECH_NETWORKS.settings("test_odd_networks:ToySpeech", wrong=wrong)
        return Recognizer(RecognizerConfig(network=network), 7)

    assert recognizer("").network.subsampling == 2
    with pytest.raises(UserError, match=f"^model.network.name: 'test_odd_networks:ToySpeech' gives {said}"):
        recognizer(wrong)


def test_a_network_of_images_that_gives_something_else_is_refused(tmp_path, capsys):
    data = coloured_images(tmp_path / "data")
    main, file = load("recipes/cifar_cnn/train.py").main, tmp_path / "config.yaml"
    file.write_text("{batch_size: 20, training: {epochs: 1}, corpus: {pad: 1}, bn_images: 0}")
    words = ["--config", file, "--data", data, "--model.name", "test_odd_networks:ToyImages", "--out", tmp_path / "run"]
    said = refused(capsys, main, *words, "--model.wrong", "logits[:, :2]")
    wanted = "gives logits of shape (2, 2); wanted (B, classes), here (2, 3)"
    assert said == f"error: model.name: 'test_odd_networks:ToyImages' {wanted}" and not (tmp_path / "run").exists()
    assert main([str(word) for word in words]) == 0


@pytest.mark.parametrize("argument", ["name", "build", "networks", "elsewhere"])
def test_an_argument_with_the_name_of_what_every_section_has_is_refused(argument, monkeypatch):
    made: dict = {}
    exec(f"def made(vocab_size: int, {argument}: int = 3): ...", made)
    monkeypatch.setattr(sys.modules[__name__], "Clashing", made["made"], raising=False)
    with pytest.raises(UserError, match=f"^'test_odd_networks:Clashing': its argument {argument} has a name that"):
        Networks({}, given=("vocab_size",)).section("test_odd_networks:Clashing")
