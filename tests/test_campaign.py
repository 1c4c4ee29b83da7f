"""A few seconds of the campaign: each kind of trial can succeed, and notices what it looks for."""

import os
import random

import pytest
import torch
from campaign.inputs import BATCH, Inputs, Reader, mutate, reader_try
from campaign.kills import Kills
from campaign.powercut import Disk
from campaign.trainings import RECIPES, Trainings
from programs import load

from seqssgd.training import build_optimizer, parse_recipe
from seqssgd.training.methods import METHODS


@pytest.mark.timeout(600)
def test_a_killed_training_and_one_that_is_not_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    kills = Kills(tmp_path)
    training = kills.trainings.recipe("ptb_lstm", "ssgd")
    monkeypatch.setattr(kills.trainings, "any", lambda chance: training)
    found = kills.trial(random.Random(3))
    assert found["trials"] == 1 and "failed" not in found
    kills.whole[training.name] = (["something else"], kills.whole[training.name][1])
    assert kills.trial(random.Random(4))["failed"] == 1


def test_every_recipe_takes_every_method_as_the_campaign_gives_it(tmp_path, monkeypatch):
    """Or a trial would end before it began; what is given is read, not trained."""
    for name in ("text", "images", "speech", "photos"):
        monkeypatch.setattr(Trainings, name, tmp_path)
    (tmp_path / "data").touch()
    trainings = Trainings(tmp_path)
    for recipe in RECIPES:
        for method in METHODS:
            training = trainings.recipe(recipe, method)
            program = load(f"recipes/{recipe}/train.py")
            config = parse_recipe(program.Config, [word.replace("OUT", str(tmp_path)) for word in training.arguments])
            build_optimizer(torch.nn.Linear(2, 2), config.config.optim)


def test_readers_that_raise_hang_or_take_memory_are_noticed(tmp_path):
    def outcome(read):
        return reader_try(Reader("x", b"", read, (ValueError,)), b"content", tmp_path)["outcome"]

    def refuses(content, place):
        raise ValueError("no")

    assert outcome(lambda content, place: 1) == "read" and outcome(refuses) == "refused"
    assert outcome(lambda content, place: [].x).startswith("traceback: AttributeError")
    assert outcome(lambda content, place: bytearray(os.urandom(1)) * 2**31).startswith("memory: ")
    assert len({mutate(b"some content that is mutated", random.Random(i)) for i in range(BATCH)}) > BATCH / 2
    assert Inputs.name == "inputs"


def test_what_was_not_synced_may_be_lost(tmp_path):
    root = tmp_path / "disk"
    root.mkdir()
    disk = Disk(root, 10**9, lambda state: None)
    try:
        (root / "a").write_bytes(b"synced")
        (root / "b").write_bytes(b"not synced")
        for path in (root / "a", root):
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
        (root / "c").write_bytes(b"after the folder")
        os.replace(root / "a", root / "d")
    finally:
        for name, real in disk.real.items():
            setattr(os, name, real)
    disk.image(tmp_path / "after", random.Random(0), strict=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "after").iterdir()} == {"a": b"synced", "b": b""}
