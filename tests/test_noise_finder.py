"""The noise finder: where it sees the price of noise, and its two trainings."""

import copy
import csv
import json
import math

import pytest
import torch
import yaml
from programs import ROOT, generated_lines, load, outcome, refused
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from seqssgd import cli
from seqssgd.data.text import write_text_dataset
from seqssgd.errors import UserError
from seqssgd.noise_finder import NoiseFinder
from seqssgd.optim import NoiseCurve, OneSidedNoise, SymmetricNoise, noise_finder, noise_groups
from seqssgd.optim.finder import BEARABLE, Point

CONFIG = ROOT / "recipes/ptb_lstm/small_cpu_ssgd.yaml"
TINY = ["--model.hidden_size", "6", "--batch_size", "5", "--sequence_length", "4", "--training.threads", "1"]


def curve_of(costs):
    return NoiseCurve([Point(0.1 * (index + 1), 2.0, 2.0 * (1 + cost)) for index, cost in enumerate(costs)], "--{}")


# ---- the suggestion --------------------------------------------------------------------------------------------------


def test_the_suggested_level_is_where_noise_begins_to_cost_too_much():
    curve = curve_of([0.0, 0.04, 0.2, 0.5])
    assert curve.level == pytest.approx(0.2 + 0.1 * 3 / 8)
    assert curve.advice == (
        "try noise levels from 0.059 to 0.24, and choose by validation: "
        "from 0.24 on noise costs more than 10% of the loss"
    )
    # one costly minibatch before a cheap one is no limit
    assert curve_of([0.0, 0.12, 0.06, 0.14, 0.5]).level == pytest.approx(0.3 + 0.1 / 2)
    # a loss that was not finite at the level after the last cheap one
    assert curve_of([0.0, 0.04, math.inf]).level == pytest.approx(0.2)


def test_a_curve_without_that_level_names_the_remedy():
    curve = curve_of([0.0, 0.02, 0.04])
    assert curve.level is None and curve.advice == (
        "no level to suggest: up to 0.3 noise costs less than 10% of the loss. A network that has learned little bears "
        "any noise: lengthen --warmup (language models need thousands of steps); if it has learned, raise --highest"
    )
    curve = curve_of([0.12, 0.5, math.inf])
    assert curve.level is None and curve.advice == (
        "no level to suggest: at 0.1 noise costs more than 10% of the loss already; lower --highest"
    )


def made_runs(folder, noisy_loss, warmup=20, steps=100):
    """The two trainings' metrics: a loss that falls, and the same times what noise of up to 1 does to it."""
    for name, highest in (("plain", 0.0), ("noisy", 1.0)):
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text(yaml.safe_dump({"optim": {"noise": highest / steps * 1_000_000}}))
        rows, losses, nonfinite = [{"kind": "valid", "step": 0}], [], 0
        for step in range(1, warmup + steps + 1):
            factor = noisy_loss(highest * max(0.0, (step - 1 - warmup) / steps))
            nonfinite += factor is None
            losses += [] if factor is None else [factor * (3 + math.exp(-step / 20))]
            if step % 10 == 0:
                loss = sum(losses) / len(losses) if losses else None
                rows.append({"kind": "train", "step": step, "loss": loss, "nonfinite": nonfinite})
                losses = []
        (folder / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return NoiseFinder(CONFIG, [], folder, warmup=warmup, steps=steps)


def test_a_known_price_is_found(tmp_path):
    curve = made_runs(tmp_path, lambda level: 1 + level**2).curve()
    assert [p.level for p in curve.points] == pytest.approx([0.045 + 0.1 * i for i in range(10)])
    assert curve.level == pytest.approx(math.sqrt(BEARABLE), rel=0.03)


def test_steps_that_do_not_divide_into_points_are_left_over_at_the_end(tmp_path):
    finder = made_runs(tmp_path, lambda level: 1 + level**2, steps=107)
    curve = finder.curve()
    assert curve.points[-1].level == pytest.approx(94.5 / 107)
    assert curve.level == pytest.approx(math.sqrt(BEARABLE), rel=0.03)


def test_a_loss_that_is_not_finite_is_an_infinite_price(tmp_path):
    curve = made_runs(tmp_path, lambda level: 1 + level**2 if level < 0.75 else None).curve()
    assert [math.isinf(p.cost) for p in curve.points] == [False] * 7 + [True] * 3  # the first of them in part
    assert curve.level == pytest.approx(math.sqrt(BEARABLE), rel=0.03)
    assert str(curve).splitlines()[-3].split()[2:] == ["inf", "+inf%"]
    paths = curve.save(tmp_path)
    assert paths[1].read_bytes().startswith(b"\x89PNG")


# ---- the trainings ---------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    splits = {"train": generated_lines(120), "valid": generated_lines(12, seed=1), "test": generated_lines(12, seed=2)}
    write_text_dataset(tmp_path / "data", splits, name="generated")
    return tmp_path / "data"


def find(data, out, *options, config=CONFIG, epochs=20):
    command = ["noise-finder", "--config", str(config), "--data", str(data), "--out", str(out)]
    return cli.main([*command, *options, "--", *TINY, "--training.epochs", str(epochs)])


def steps_of(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(row["noise"], row["loss"]) for row in rows if row["kind"] == "train"]


def test_both_trainings_are_the_recipes_own_and_part_where_noise_begins(data, tmp_path, capsys):
    out = tmp_path / "found"
    assert find(data, out, "--warmup", "5", "--steps", "20", "--highest", "100") == 0
    said = capsys.readouterr().out
    plain, noisy = steps_of(out / "plain"), steps_of(out / "noisy")
    assert [level for level, _ in plain] == [0.0] * 25
    assert [level for level, _ in noisy] == pytest.approx([0.0] * 5 + [5.0 * i for i in range(20)])
    assert plain[:6] == noisy[:6] and all(one[1] != two[1] for one, two in zip(plain[6:], noisy[6:], strict=True))

    alone = [*TINY, "--optim.method", "none", "--training.log_every", "1", "--training.evaluate_every", "100"]
    load("recipes/ptb_lstm/train.py").main(
        ["--config", str(CONFIG), "--data", str(data), "--out", str(tmp_path / "alone"), "--max-steps", "25", *alone]
    )
    assert steps_of(tmp_path / "alone") == plain

    with open(out / "noise-finder.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["level", "plain", "noisy", "cost"] and len(rows) == 10
    level, without, with_noise, cost = map(float, rows[3])
    assert level == pytest.approx(32.5)
    assert without == pytest.approx((plain[11][1] + plain[12][1]) / 2) and cost == with_noise / without - 1
    assert f"{level:11.4g}" in said and "noise-finder.png" in said
    curve = NoiseCurve([Point(*map(float, row[:3])) for row in rows], "--{}")
    assert curve.advice in said
    advice = said.splitlines()[-1]  # on where to take the signs from
    assert (curve.level is None) != advice.startswith(f"noise level {curve.level or 0:g}: take ")

    before = outcome(out / "noisy")
    assert find(data, out, "--warmup", "5", "--steps", "20", "--highest", "100") == 0
    again = capsys.readouterr().out
    assert again.count("already finished at step 25; nothing to do") == 2
    assert again[again.index("noise level") :] == said[said.index("noise level") :]
    assert outcome(out / "noisy") == before


def test_the_highest_level_follows_the_recipes_own(data, tmp_path, capsys):
    short = ("--warmup", "0", "--steps", "20")
    assert find(data, tmp_path / "a", *short) == 0  # three times 0.7
    assert steps_of(tmp_path / "a/noisy")[-1][0] == pytest.approx(2.1 * 19 / 20)
    assert capsys.readouterr().out.splitlines()[-1].startswith("no level to suggest: up to 1.9 ")
    assert find(data, tmp_path / "b", *short, config=CONFIG.parent / "small_cpu.yaml") == 0  # symmetric noise up to 1.5
    assert steps_of(tmp_path / "b/noisy")[-1][0] == pytest.approx(1.5 * 19 / 20)
    assert "method: ssgd" in (tmp_path / "b/noisy/config.yaml").read_text(encoding="utf-8")


def test_a_search_for_higher_levels_goes_on_from_the_one_before(data, tmp_path, capsys):
    short = ("--warmup", "3", "--steps", "20")
    assert find(data, tmp_path / "a", *short, "--highest", "1") == 0
    before = steps_of(tmp_path / "a/noisy")
    assert find(data, tmp_path / "a", *short, "--highest", "2.5") == 0
    said = capsys.readouterr().out
    for name in ("plain", "noisy"):
        assert f"resuming at step 23 from {tmp_path / 'a' / name}" in said
    after = steps_of(tmp_path / "a/noisy")
    assert len(before) == 23 and after[:23] == before and len(after) == len(steps_of(tmp_path / "a/plain")) == 3 + 50
    assert [level for level, _ in after[3:]] == pytest.approx([i / 20 for i in range(50)])  # as steep as before
    assert find(data, tmp_path / "b", *short[:2], "--steps", "50", "--highest", "2.5") == 0
    assert steps_of(tmp_path / "b/noisy") == after  # as if it had been asked for at once
    curves = [(tmp_path / name / "noise-finder.csv").read_text(encoding="utf-8") for name in "ab"]
    assert curves[0] == curves[1]


def test_a_signal_ends_the_search_with_its_status(data, tmp_path, monkeypatch):
    class Recipe:
        Config = load("recipes/ptb_lstm/train.py").Config
        main = staticmethod(lambda options: 143)

    monkeypatch.setattr("seqssgd.noise_finder.load_program", lambda path: Recipe)
    assert find(data, tmp_path / "found") == 143
    assert not (tmp_path / "found").exists()


def test_wrong_input_is_refused(data, tmp_path, capsys):
    def refusal(*options):
        command = ["noise-finder", "--config", CONFIG, "--data", data, "--out", tmp_path / "found"]
        return refused(capsys, cli.main, *command, *options)

    assert refusal("--program", "nowhere/train.py") == (
        "error: nowhere/train.py: no such program; give the path of a recipe's train.py"
    )
    missing = refused(capsys, cli.main, "noise-finder", "--config", "no.yaml", "--data", data, "--out", tmp_path / "x")
    assert missing == "error: no.yaml: no such file; give a recipe's settings in YAML"
    assert "README.md: no such program" in refusal("--program", ROOT / "README.md")
    other = refusal("--program", ROOT / "recipes/wsj_sgcn/ngram.py")
    assert "ngram.py: trains no recipe (it has no Config and main); give its train.py" in other
    assert f"--out {data}: prepared data; choose another folder" in refusal("--out", data)
    assert "--highest -1: it must be a number > 0" in refusal("--highest", "-1")
    assert "--warmup 0 --steps 9: at least 0 and 10" in refusal("--warmup", "0", "--steps", "9")
    assert "optim.method: sam has no noise level" in refusal("--", "--optim.method", "sam", "--optim.noise", "0")
    dropped = refusal("--", "--optim.method", "dropconnect", "--optim.noise", "0.1")
    assert "optim.method: the level of dropconnect is a probability; try some of them directly" in dropped
    assert "optim.nois: no such setting; did you mean optim.noise?" in refusal("--", "--optim.nois", "1")
    assert not (tmp_path / "found").exists()


def test_a_recipe_that_logs_curvature_is_searched_without(data, tmp_path, capsys):
    command = ["noise-finder", "--config", CONFIG, "--data", data, "--out", tmp_path / "found", "--steps", 10]
    options = ["--warmup", 0, "--", *TINY, "--training.epochs", 1000, "--training.log_curvature", "true"]
    assert cli.main([str(word) for word in (*command, *options)]) == 0


def test_a_training_that_ends_too_soon_is_refused(data, tmp_path, capsys):
    assert find(data, tmp_path / "found", epochs=1) == 2
    said = capsys.readouterr().err
    assert "ended before step 200 + 400; give fewer --warmup and --steps, or more --training.epochs" in said


def test_rows_and_settings_of_other_kinds_are_refused(tmp_path):
    finder = made_runs(tmp_path, lambda level: 1 + level**2)
    file, config = tmp_path / "plain/metrics.jsonl", tmp_path / "noisy/config.yaml"
    file.write_text(file.read_text().replace('"loss": ', '"lost": ', 1))
    with pytest.raises(UserError, match=r"plain/metrics\.jsonl, line \d+: damaged \(loss is missing\); delete"):
        finder.curve()
    config.write_text("optim: {noise: x}\n")
    with pytest.raises(UserError, match=r"noisy/config\.yaml: optim\.noise: 'x' is not a number; delete"):
        finder._level()


def test_a_loss_that_noise_has_no_share_of_is_refused(tmp_path):
    with pytest.raises(UserError, match="plain: the loss without noise is 0, not > 0"):
        made_runs(tmp_path, lambda level: 0.0).curve()


# ---- in a loop of one's own ------------------------------------------------------------------------------------------


def test_a_known_price_is_found_exactly():
    """‖w+n‖² and ‖w-n‖² have the mean ‖w‖²(1 + c²), which a learning rate of 0 leaves alone."""
    model = nn.Linear(10, 10, bias=False)
    optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(model, noise=0.01), lr=0.0))
    curve = noise_finder(model, optimizer, [None], lambda model, _: model.weight.square().sum(), highest=1.0, warmup=3)
    assert [p.level for p in curve.points] == pytest.approx([(40 * (i + 0.5) - 0.5) / 400 for i in range(10)])
    mean_squares = [sum((step / 400) ** 2 for step in range(40 * i, 40 * i + 40)) / 40 for i in range(10)]
    assert [p.cost for p in curve.points] == pytest.approx(mean_squares, rel=1e-5, abs=1e-6)
    assert curve.level == pytest.approx(math.sqrt(BEARABLE), rel=0.02)  # between two points the curve is a line


def test_the_search_trains_copies_on_the_same_minibatches():
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 1))
    inputs = torch.randn(64, 4)
    loader = DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True) + 1), batch_size=8, shuffle=True)
    optimizer = SymmetricNoise(torch.optim.Adam(noise_groups(model, noise=0.1), lr=0.01))
    before, rng, state = copy.deepcopy(model.state_dict()), torch.get_rng_state(), optimizer.state_dict()
    seen = []

    def loss_fn(trained, batch):
        loss = nn.functional.mse_loss(trained(batch[0]), batch[1])
        seen.append((trained, batch[0], loss.item()))
        return loss

    curve = noise_finder(model, optimizer, loader, loss_fn, highest=0.5, warmup=5, steps=20)
    assert torch.equal(torch.get_rng_state(), rng) and optimizer.state_dict() == state
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    after = seen[5:]
    (plain, *_), (noisy, *_) = after[0], after[1]
    assert plain is not noisy and model not in (plain, noisy)
    assert after[0][2] == after[1][2]  # the level begins at 0: the same minibatch, weights and dropout
    of_plain = [(x, loss) for trained, x, loss in after if trained is plain]
    of_noisy = [(x, loss) for trained, x, loss in after if trained is noisy]
    assert len(of_plain) == 20 and len(of_noisy) == 1 + 2 * 19
    assert all(torch.equal(of_plain[i][0], of_noisy[2 * i][0]) for i in range(1, 20))
    assert curve.points[3].plain == pytest.approx((of_plain[6][1] + of_plain[7][1]) / 2)
    assert curve.points[3].noisy == pytest.approx(sum(loss for _, loss in of_noisy[11:15]) / 4)


def test_a_search_that_cannot_find_anything_is_refused():
    model = nn.Linear(2, 2)
    optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(model, noise=0.1), lr=0.1))

    batch = torch.ones(3, 2)

    def search(batches=(batch,), loss_fn=lambda model, batch: model(batch).square().mean(), **settings):
        return noise_finder(model, optimizer, batches, loss_fn, **{"steps": 10, "warmup": 0, **settings})

    refused = [("highest", 0.0, "a finite number > 0"), ("highest", math.nan, "a finite number > 0")]
    refused += [("warmup", -1, "a whole number >= 0"), ("steps", 9, "a whole number >= 10")]
    refused += [("steps", "a", "a whole number >= 10"), ("highest", "1", "a finite number > 0")]
    for name, value, wanted in refused:
        with pytest.raises(ValueError, match=f"^{name}={value!r} must be {wanted}$"):
            search(**{name: value})
    with pytest.raises(ValueError, match="no minibatch left; give a list or a DataLoader"):
        search(iter([batch]))
    with pytest.raises(ValueError, match="the loss without noise is 0, not > 0"):
        search(loss_fn=lambda model, batch: 0 * model(batch).mean())
    with pytest.raises(ValueError, match="the loss without noise is not finite at step 0 to 1"):
        search(loss_fn=lambda model, batch: math.nan * model(batch).mean())
    with pytest.raises(TypeError, match="a tensor to call backward.. on, not float"):
        search(loss_fn=lambda model, batch: model(batch).mean().item())
    with pytest.raises(TypeError, match="SymmetricNoise around an optimizer, not torch.optim.sgd.SGD alone"):
        noise_finder(model, optimizer.base, [batch], nn.functional.mse_loss)
    optimizer.param_groups[0]["noise"] = 0.0
    with pytest.raises(ValueError, match="no parameter group has a noise level above 0"):
        search()


def test_a_loss_that_noise_makes_infinite_costs_all():
    model = nn.Linear(2, 2, bias=False)
    optimizer = OneSidedNoise(torch.optim.SGD(noise_groups(model, noise=0.1), lr=0.0))
    size = model.weight.norm().item()

    def loss_fn(model, batch):
        return model.weight.norm() if model.weight.norm() < 1.2 * size else model.weight.norm() / 0

    points = noise_finder(model, optimizer, [None], loss_fn, highest=2.0, warmup=0, steps=20).points
    assert not math.isinf(points[0].cost) and math.isinf(points[-1].cost)
