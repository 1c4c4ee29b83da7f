"""``seqssgd describe``: what noise does to the model of a recipe's configuration, and of a run."""

import dataclasses

import pytest
import torch
import yaml
from programs import ROOT, coloured_images, generated_lines, load, refused

from seqssgd import cli
from seqssgd.data.text import write_text_dataset
from seqssgd.optim import describe, noise_groups

PTB = ROOT / "recipes/ptb_lstm/small_cpu_ssgd.yaml"
CIFAR = ROOT / "recipes/cifar_cnn/resnet20_phases.yaml"
TINY = ["--model.hidden_size", "6", "--batch_size", "5", "--sequence_length", "4", "--training.threads", "1"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "text"
    splits = {name: generated_lines(count) for name, count in (("train", 60), ("valid", 20), ("test", 20))}
    write_text_dataset(folder, splits, "made up", level="word")
    return folder


def said(capsys, *arguments):
    assert cli.main(["describe", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def table_of(model, level):
    return str(describe(noise_groups(model, noise=level)))


def test_a_configuration_is_described_as_training_begins_and_nothing_is_written(text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = said(capsys, PTB, "--data", text, "--", *TINY, "--optim.noise", "0.25", "--optim.signs", "pairs",
                 "--optim.noise_schedule", "75-25S")  # fmt: skip
    head, table = shown.split("\n\n", 1)
    assert head == "method ssgd, base sgd, noise_schedule 75-25S (in epochs)"
    rows = [line.split() for line in table.splitlines()]
    assert [row[:2] for row in rows[1:5]] == [
        ["embedding", "embedding"],
        ["lstm.l0", "recurrent"],
        ["lstm.l1", "recurrent"],
        ["output", "dense"],
    ]
    assert {row[-3] for row in rows[1:5]} == {"0.25"}
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_without_noise_names_what_it_leaves_alone(text, capsys):
    shown = said(capsys, PTB, "--data", text, "--", *TINY, "--optim.method", "none", "--optim.noise", "0")
    assert "method none" in shown and "no noise on" in shown and "level 0: embedding.weight, lstm.weight_ih_l*" in shown


def test_runs_are_described_with_the_weights_of_their_checkpoint(text, tmp_path, capsys):
    run = tmp_path / "run"
    options = ["--data", str(text), "--out", str(run), *TINY, "--training.epochs", "1"]
    assert load("recipes/ptb_lstm/train.py").main(["--config", str(PTB), *options]) == 0
    capsys.readouterr()
    from seqssgd.language.finished import load_language_model

    model, _ = load_language_model(run, "last")
    level = yaml.safe_load(PTB.read_text())["optim"]["noise"]
    assert said(capsys, run, "--checkpoint", "last").split("\n\n", 1)[1].strip() == table_of(model, level)
    settings = run / "config.yaml"  # as of two processes with a sign each
    settings.write_text(settings.read_text().replace("signs: batch", "signs: pairs"))
    assert said(capsys, run, "--checkpoint", "last").split("\n\n", 1)[1].strip() == table_of(model, level)
    with torch.no_grad():
        model.output.weight.mul_(2)
    assert table_of(model, level) not in said(capsys, run, "--checkpoint", "last")  # the norms are of its weights


def test_runs_of_image_classifiers_and_recognisers_too(tmp_path, capsys):
    from seqssgd.images.networks import NETWORKS, build_classifier
    from seqssgd.speech import networks as speech
    from seqssgd.speech.config import FeatureConfig, RecognizerConfig
    from seqssgd.speech.recognizer import Recognizer
    from seqssgd.speech.tokens import CharacterTokenizer
    from seqssgd.training import OptimConfig

    tokens = CharacterTokenizer.train()
    small = RecognizerConfig(
        FeatureConfig(bins=20), speech.NETWORKS.settings("sgcn", width=8, layers=2, kernel=5, subsampling=3)
    )
    optim = dataclasses.asdict(OptimConfig(method="ssgd", noise=0.5))
    for name, model, config in (
        ("speech", Recognizer(small, tokens.vocab_size),
         {"recipe": "wsj_sgcn", "model": dataclasses.asdict(small), "tokenizer": tokens.fingerprint}),
        ("images", build_classifier(NETWORKS.settings("resnet20"), 3),
         {"recipe": "cifar_cnn", "model": {"name": "resnet20"}, "data": {"classes": 3}}),
    ):  # fmt: skip
        run = tmp_path / name
        (run / "checkpoints").mkdir(parents=True)
        (run / "tokenizer").mkdir()
        tokens.save(run / "tokenizer")
        (run / "config.yaml").write_text(yaml.safe_dump({**config, "optim": {**optim, "betas": [0.9, 0.999]}}))
        torch.save({"model": model.state_dict()}, run / "checkpoints/best.pt")
        assert said(capsys, run).split("\n\n", 1)[1].strip() == table_of(model, 0.5)


def test_images_by_configuration(tmp_path, capsys):
    data = coloured_images(tmp_path / "colours")
    shown = said(capsys, CIFAR, "--data", data, "--", "--training.threads", "1", "--batch_size", "10")
    assert "conv" in shown and "16×3×3×3" in shown


def test_what_cannot_be_described_is_refused_with_the_mend(text, tmp_path, capsys):
    def refuse(*arguments):
        return refused(capsys, cli.main, "describe", *arguments)

    assert "no such file or directory" in refuse(tmp_path / "nothing")
    assert "the sizes of the model depend on the data; give --data" in refuse(PTB)
    assert "a configuration has no checkpoint" in refuse(PTB, "--checkpoint", "last")
    assert "is not a run directory" in refuse(tmp_path)
    assert "are for a configuration" in refuse(tmp_path, "--data", text)
    assert "optim.nois: no such setting" in refuse(PTB, "--data", text, "--", "--optim.nois", "1")
    words = tmp_path / "words.txt"
    words.write_text("the cat sat\n")
    assert f"{words}: no settings in YAML; give a recipe's" in refuse(words, "--data", text)
    own = tmp_path / "own.yaml"
    own.write_text("{seed: 1}")  # of any recipe
    assert f"{own}: there is no train.py beside it, and nothing else tells its recipe; give --program" in refuse(
        own, "--data", text
    )
    own.write_text("{model: {hidden_size: 8}, sequence_length: 5}")  # of one alone
    assert cli.main(["describe", str(own), "--data", str(text)]) == 0
    assert "lstm.bias_ih_l*" in capsys.readouterr().out
    program = tmp_path / "other.py"
    program.write_text("def main(argv):\n    return 0\n")
    assert "does not train by seqssgd.training.train" in refuse(PTB, "--data", text, "--program", program)
    program = tmp_path / "none.py"
    program.write_text("")
    assert "trains no recipe" in refuse(PTB, "--data", text, "--program", program)
    (tmp_path / "config.yaml").write_text("optim: {lr: 1}\nmodel: {hidden_size: 3}\nsequence_length: 5\n")
    assert "tokenizer" in refuse(tmp_path)
