"""Trainings of another length: the same course of the learning rate, the same number of passes."""

import math
import sys

import pytest
from programs import ROOT
from toy_task import toy_config

from seqssgd.errors import UserError
from seqssgd.optim.schedules import phases
from seqssgd.training.config import LR_SCHEDULES

sys.path.insert(0, str(ROOT / "recipes/studies"))

from scaling import absolute, in_phases, late, scaled, with_restarts  # noqa: E402

TABLE_1 = ["37S-25S-25S", "75-50-25S", "75-25S-50", "75-25S-25S"]


def config(epochs: int, **optim):
    return toy_config(optim, {"epochs": epochs})


def changed(old, settings: dict):
    """``old`` with the settings under dotted keys."""
    sections = {"optim": {}, "training": {}}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        sections[section][name] = value
    optim = {
        key: getattr(old.optim, key) for key in ("lr_schedule", "lr_constant_epochs", "lr_divisor", "lr_milestones")
    }
    return toy_config({**optim, **sections["optim"]}, sections["training"])


def rates(c) -> list[float]:
    factor = LR_SCHEDULES[c.optim.lr_schedule](c.optim, c.training.epochs)
    return [factor(epoch) for epoch in range(c.training.epochs)]


@pytest.mark.parametrize("factor", [0.5, 1, 2, 3])
@pytest.mark.parametrize(("epochs", "optim"), [
    (20, {"lr_schedule": "zaremba", "lr_constant_epochs": 7, "lr_divisor": 1.5}),
    (8, {"lr_schedule": "zaremba", "lr_constant_epochs": 3, "lr_divisor": 2}),
    (40, {"lr_schedule": "steps", "lr_milestones": [16, 30]}),
    (56, {"lr_schedule": "sgdr", "lr_period": 8}),
    (20, {"lr_schedule": "cosine"}),
])  # fmt: skip
def test_the_learning_rate_takes_the_same_course_over_more_or_fewer_epochs(epochs, optim, factor):
    old = config(epochs, **optim)
    new = changed(old, scaled(old, factor))
    assert new.training.epochs == factor * epochs
    before, after = rates(old), rates(new)
    if optim["lr_schedule"] != "zaremba":
        same = [(before[epoch], after[int(epoch * factor)]) for epoch in range(epochs) if epoch * factor % 1 == 0]
        assert len(same) >= epochs // 2 and all(new == pytest.approx(old) for old, new in same)
    else:  # falls begin with whole epochs
        assert after[-1] == pytest.approx(before[-1]) and after[0] == 1
        off = [abs(math.log(after[int(epoch * factor)] / before[epoch])) for epoch in range(epochs)]
        assert max(off) <= max(1, 1 / factor) * math.log(optim["lr_divisor"]) * 1.001
        assert after.count(1) == factor * before.count(1) == factor * (optim["lr_constant_epochs"] + 1)
    if factor == 1:
        assert after == before


def test_a_warm_up_takes_the_same_share_of_the_training():
    old = config(40, lr_schedule="cosine", lr_warmup=4)
    assert scaled(old, 0.5)["optim.lr_warmup"] == 2 and scaled(old, 0.1)["optim.lr_warmup"] == 1
    assert "optim.lr_warmup" not in scaled(config(40, lr_schedule="cosine"), 0.5)


@pytest.mark.parametrize("factor", [0.5, 1, 3])
def test_a_recipes_own_noise_takes_the_same_course(factor):
    noise = {"method": "ssgd", "noise": 0.3, "noise_schedule": "4-2S-2S-2", "noise_ramp": [2, 4]}
    old = config(10, **noise)
    settings = scaled(old, factor)
    new = config(settings["training.epochs"], **noise | {key: settings[f"optim.{key}"] for key in noise if "_" in key})
    before, after = (c.optim._noise() for c in (old, new))
    whole = [epoch for epoch in range(10) if epoch * factor % 1 == 0]
    assert [after(int(epoch * factor)) for epoch in whole] == pytest.approx([before(epoch) for epoch in whole])
    baseline = absolute(old, {"optim.method": "none", "epochs": factor})
    assert baseline == {"optim.method": "none", "training.epochs": 10 * factor}  # it would refuse a course


def test_epochs_that_cannot_be_divided_are_refused():
    with pytest.raises(UserError, match=r"training\.epochs: 35 × 0\.5 is no whole number; take a multiple of 2$"):
        scaled(config(35), 0.5)


@pytest.mark.parametrize("text", TABLE_1)
def test_phases_of_the_papers_length_are_the_papers(text):
    passes = 174 if text.startswith("37S") else 175
    found = in_phases(config(passes, lr_schedule="steps", lr_milestones=[75, 125]), text)
    lengths = [int(part.rstrip("S")) for part in text.split("-")]
    assert found == {
        "optim.noise_schedule": text,
        "optim.noise_unit": "epoch",
        "training.epochs": sum(lengths),
        "optim.lr_milestones": [lengths[0], lengths[0] + lengths[1]],
    }


@pytest.mark.parametrize("text", TABLE_1)
@pytest.mark.parametrize("passes", [4, 6, 12, 20, 36, 80, 81])
def test_phases_take_exactly_the_passes_of_the_epochs_without_noise(text, passes):
    if text == TABLE_1[0] and passes % 2:
        with pytest.raises(UserError, match="81 is odd"):
            in_phases(config(passes), text)
        return
    found = in_phases(config(passes), text)
    phases = found["optim.noise_schedule"].split("-")
    lengths = [int(part.rstrip("S")) for part in phases]
    assert [part.endswith("S") for part in phases] == [part.endswith("S") for part in text.split("-")]
    assert sum(length * (1 + part.endswith("S")) for length, part in zip(lengths, phases, strict=True)) == passes
    assert found["training.epochs"] == sum(lengths)
    wanted = [int(part.rstrip("S")) * passes / 175 for part in text.split("-")]
    assert all(abs(length - share) < 1.5 for length, share in zip(lengths, wanted, strict=True)), (lengths, wanted)


def test_words_that_are_no_phases_are_refused():
    with pytest.raises(UserError, match="phases '75-S'"):
        in_phases(config(10), "75-S")


@pytest.mark.parametrize(("epochs", "share", "clean"), [(16, 0.5, 8), (8, 0.25, 6), (10, 0.9, 1)])
def test_late_noise_is_on_in_the_last_epochs_alone(epochs, share, clean):
    found = late(config(epochs), share)
    factor = phases(found.pop("optim.noise_schedule"))
    assert [factor(epoch) for epoch in range(epochs)] == [0.0] * clean + [1.0] * (epochs - clean)
    assert found == {"optim.noise_unit": "epoch"}


@pytest.mark.parametrize(("epochs", "share"), [(5, 0.5), (4, 0.0), (4, 1.0), (4, 0.01)])
def test_a_share_that_is_no_whole_number_of_epochs_is_refused(epochs, share):
    with pytest.raises(UserError, match=r"training\.epochs: \S+ of \d+ is no whole number of epochs"):
        late(config(epochs), share)


@pytest.mark.parametrize(("epochs", "periods", "first"), [(300, 5, 10), (80, 3, 12), (35, 3, 5), (2, 3, 1)])
def test_restarts_end_with_the_training(epochs, periods, first):
    found = with_restarts(config(epochs), periods)
    assert found == {"optim.lr_schedule": "sgdr", "optim.lr_period": first, "optim.lr_multiplier": 2}
