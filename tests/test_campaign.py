"""A few seconds of the campaign: each kind of trial can succeed, and notices what it looks for."""

import json
import os
import random
import signal
import sys
from collections import Counter

import pytest
import torch
from campaign import figures
from campaign.inputs import BATCH, try_one
from campaign.kills import Kills
from campaign.mutations import mutate
from campaign.powercut import Disk
from campaign.processes import Child, Started
from campaign.reader import Reader, say
from campaign.trainings import RECIPES, Trainings
from programs import load

from seqssgd.errors import UserError
from seqssgd.training import build_optimizer, parse_recipe
from seqssgd.training.methods import METHODS


@pytest.fixture
def kills(tmp_path, monkeypatch) -> Kills:
    """Of one training, the smallest; forked whatever threads other tests have started."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("campaign.processes.threads", lambda: 1)
    monkeypatch.setattr("campaign.kills.STARTED", 0)
    kills = Kills(tmp_path)
    training = kills.trainings.recipe("ptb_lstm", "ssgd")
    monkeypatch.setattr(kills.trainings, "any", lambda chance: training)
    return kills


@pytest.mark.timeout(600)
def test_a_killed_training_and_one_that_is_not_the_same(kills):
    found = kills.trial(random.Random(3))
    assert found["trials"] == 1 and "failed" not in found and found["kills"] == found["of"]["ptb_lstm ssgd"] > 0
    ((name, (_, seconds)),) = kills.whole.items()
    kills.whole[name] = (["something else"], seconds)
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
            program = load(training.program)
            config = parse_recipe(program.Config, [word.replace("OUT", str(tmp_path)) for word in training.arguments])
            assert isinstance(build_optimizer(torch.nn.Linear(2, 2), config.config.optim), METHODS[method].kind)


def test_a_program_is_loaded_with_what_stands_beside_it(tmp_path, monkeypatch):
    """As Python runs it: the runner of studies has its arithmetic in a file of its own."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "beside_a_program.py").write_text("VALUE = 3\n")
    (tmp_path / "program.py").write_text("from beside_a_program import VALUE\n")
    assert load(str(tmp_path / "program.py")).VALUE == 3


def test_a_process_is_killed_whether_forked_or_started(tmp_path, monkeypatch):
    monkeypatch.setattr("campaign.processes.threads", lambda: 1)
    for process in (Child(lambda: signal.pause() or 0, tmp_path / "log"),
                    Started(["sleep", "60"], tmp_path / "log")):  # fmt: skip
        assert process.wait(0.05) is None
        process.kill(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM
    monkeypatch.setattr("campaign.processes.threads", lambda: 3)
    with pytest.raises(RuntimeError, match="3 threads"):
        Child(lambda: 0, tmp_path / "log")


# ---- inputs ----------------------------------------------------------------------------------------------------------


def test_readers_that_raise_hang_or_take_memory_are_noticed(tmp_path):
    def outcome(read):
        return try_one(Reader("x", b"", read, (ValueError,)), b"content", tmp_path)

    def refuses(content, place):
        raise ValueError("no")

    assert outcome(lambda content, place: 1) == "read" and outcome(refuses) == "refused"
    assert outcome(lambda content, place: [].x).startswith("AttributeError: ")
    assert "bytes of memory for 7 bytes" in outcome(lambda content, place: bytearray(os.urandom(1)) * 2**29)


def test_a_program_refuses_in_one_line_or_fails(tmp_path):
    def refuse(words):
        raise UserError(f"no {words[0]}")

    say(lambda words: 0, [], tmp_path)
    with pytest.raises(UserError, match="^error: no 3$"):
        say(refuse, [3], tmp_path)
    for main in (lambda words: 1, lambda words: print("what", file=sys.stderr) or 0, lambda words: [].x):
        with pytest.raises((AssertionError, AttributeError)):
            say(main, [], tmp_path)


@pytest.mark.parametrize("form", ["bytes", "json", "rows", "yaml", "torch"])
def test_mutations_are_many_and_repeatable(form, tmp_path):
    good = b'{"a": [1, 2.5, {"b": null}], "c": "text", "d": {"e": [3, 4]}}'
    if form == "torch":
        torch.save({"a": torch.ones(3), "b": {"c": [1, 2]}}, tmp_path / "x.pt")
        good = (tmp_path / "x.pt").read_bytes()
    made = [mutate(good, random.Random(i), form) for i in range(BATCH)]
    assert len(set(made)) > BATCH / 2 and made == [mutate(good, random.Random(i), form) for i in range(BATCH)]
    if form == "json":
        whole = Counter()
        for content in made:
            try:
                json.loads(content)
                whole["read"] += 1
            except ValueError:
                whole["damaged"] += 1
        assert min(whole["read"], whole["damaged"]) > BATCH / 5


# ---- power cuts ------------------------------------------------------------------------------------------------------


def test_what_was_not_synced_may_be_lost(tmp_path):
    root = tmp_path / "disk"
    root.mkdir()
    (root / "before").write_bytes(b"all along")
    events = []
    disk = Disk(root, lambda state: events.append(sorted(path.name for path in root.iterdir())))
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
        disk.release()
    assert events == [["a", "b", "before"]] * 2 + [["a", "b", "before", "c"]]
    disk.image(tmp_path / "after", random.Random(0), strict=True)
    found = {path.name: path.read_bytes() for path in (tmp_path / "after").iterdir()}
    assert found == {"a": b"synced", "b": b"", "before": b"all along"}


# ---- figures ---------------------------------------------------------------------------------------------------------


def test_figures_add_up_over_trials_and_commits(tmp_path, monkeypatch):
    file = tmp_path / "figures.json"
    for name, kills in (("one", 2), ("one", 3), ("two", 4)):
        monkeypatch.setattr(figures, "commit", lambda name=name: name)
        figures.add("kills", {"trials": 1, "kills": kills, "of": Counter({"ptb_lstm ssgd": kills})}, file)
    figures.add("soak", {"trials": 1, "seconds": 9, "memory growth in %": 0.5}, file)
    figures.add("soak", {"trials": 1, "seconds": 9, "memory growth in %": 0.1, "failed": 1, "note": "<b>"}, file)
    figures.add("ranks", {"trials": 1, "failed": 1, "note": "<i> (mended)"}, file)
    found = figures.read(file)
    lines = figures.table(found).splitlines()
    assert lines[2] == f"| all | 3 | {figures.TITLES['kills']} | 9 kills, 1 kinds of training | 0 |"
    assert lines[3].startswith("| all | 2 |") and "18 seconds, 0.5 memory growth in %" in lines[3]
    assert "| `one` | 2 | kills | 5 kills, 1 kinds of training | 0 |" in lines
    figures.add_all(found, tmp_path / "twice.json")
    figures.add_all(found, tmp_path / "twice.json")
    assert figures.totals(figures.read(tmp_path / "twice.json"))["kills"]["kills"] == 18
    page = figures.page(found)
    assert "ptb_lstm 9. By method: ssgd 9." in page and "- `two`, soak: &lt;b>" in page
    assert "<i>" not in page and "Earlier trials found 1 kinds of failure; all are fixed." in page


def test_the_page_is_the_one_that_the_figures_give():
    assert figures.PAGE.read_text(encoding="utf-8") == figures.page(figures.read())
