"""Rank correlations against scipy's, and their intervals by how often they hold what they are of."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from seqssgd.landscape.figures import _contours, _sharpness, draw
from seqssgd.landscape.order import rank_correlation
from seqssgd.landscape.section import notes, order_table
from seqssgd.landscape.study import read
from seqssgd.landscape.surface import Surface


def test_it_is_spearmans_with_ties_too():
    x, y = [1.0, 2.0, 2.0, 5.0, 7.0, 3.0], [3.0, 3.0, 1.0, 4.0, 9.0, 0.0]
    assert rank_correlation(x, y).value == pytest.approx(spearmanr(x, y).statistic, rel=1e-12)
    assert rank_correlation(x, [1.0] * 6).value == 0


@pytest.mark.parametrize("count", [5, 12])
@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_the_interval_holds_the_truth_in_19_of_20_samples(count, rho):
    pearson = 2 * np.sin(np.pi * rho / 6)
    one, other = np.random.default_rng(7).standard_normal((2, 600, count))
    samples = zip(np.exp(one), (pearson * one + np.sqrt(1 - pearson**2) * other) ** 3, strict=True)
    held = [low - 0.02 <= rho <= high + 0.02 for _, low, high in (rank_correlation(x, y) for x, y in samples)]
    assert 0.93 < np.mean(held) <= 1.0  # ranks are few: never too seldom, by the error of 600 samples


def test_agreement_of_a_few_ranks_does_not_prove_much_and_of_many_does():
    five, thirty = (rank_correlation(range(n), range(n)) for n in (5, 30))
    assert five.value == thirty.value == 1 and five.high == thirty.high == 1
    assert five.low < 0.6 < 0.97 < thirty.low
    mirrored = rank_correlation(range(5), range(5)[::-1])
    assert mirrored.low == -1 and mirrored.high == pytest.approx(-five.low, abs=0.05)


def test_too_few_and_numbers_that_are_none_are_refused():
    with pytest.raises(ValueError, match="3 pairs"):
        rank_correlation([1, 2, 3], [1, 2, 3])
    with pytest.raises(ValueError, match="finite"):
        rank_correlation([1, 2, 3, np.nan], [1, 2, 3, 4])


def test_the_table_has_a_row_for_every_measure_that_enough_runs_have():
    runs = {
        str(i): {
            "errors": {"loss": i**2, "error": 9.0 - i},
            "traces": {"trace": [10.0 * i, 0, 99], "relative_trace": [-1.0 * i, -9, 9]},
            "sharpness": {
                "noise": [{"level": 0.3, "clean": i / 2, "increase": [i % 3, None, None]}],
                "keskar": 1.0 if i < 3 else None,
            },
        }
        for i in range(6)
    }
    table = order_table({"settings": {"split": "test"}, "runs": runs})
    assert table.head == ["ρ of", "test loss", "test error", "runs"]
    assert [row[0] for row in table.rows] == [
        "training loss",
        "tr H",
        "R",
        "rise at c = 0.3",
    ]  # λ_max, Keskar and SAM: not, or too few
    for row in table.rows[:2]:
        assert [cell[:5] for cell in row[1:3]] == ["+1.00", "-1.00"]
    assert [cell[:5] for cell in table.rows[2][1:3]] == ["-1.00", "+1.00"] and table.rows[2][3] == "6"


def test_a_last_checkpoint_that_is_the_best_counts_once():
    runs = {
        f"r{i}": {"errors": {"loss": i + 1.0, "error": 2.0 * i}, "eigenvalues": {"lambda_max": float(i)}}
        for i in range(5)
    }
    (row,) = order_table({"settings": {"split": "test"}, "runs": runs}).rows
    twice = {**runs, **{f"{name}@last": run for name, run in runs.items()}}
    assert order_table({"settings": {"split": "test"}, "runs": twice}).rows == [row] and row[-1] == "5"


def test_many_checkpoints_have_a_panel_for_each_training():
    noise = [{"level": 0.1, "increase": [0.1, 0.05, 0.2]}]
    names = [f"{run}@{checkpoint}" for run in "abc" for checkpoint in ("best", "last")]
    figure = _sharpness({name: {"sharpness": {"noise": noise}} for name in names})
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c"]
    for axes in figure.axes:
        assert axes.get_legend_handles_labels()[1][:2] == ["best", "last"] and len(axes.lines) == 7
    (alone,) = _sharpness({name: {"sharpness": {"noise": noise}} for name in names[:2]}).axes
    assert alone.get_legend_handles_labels()[1][:2] == names[:2]


def test_what_is_empty_or_not_finite_is_not_drawn(monkeypatch):
    monkeypatch.setattr("seqssgd.landscape.figures.picture_files", lambda figure, name: figure() and {})
    found = read(Path(__file__).parents[1] / "results/landscape/ptb_dropout/landscape.json")
    [run] = found["runs"].values()
    run["traces"]["layers"], run["robustness"]["curves"] = {}, {}
    run["density"]["nodes"][0] = run["variance"]["data"][0] = None
    assert list(draw(found, {})) == ["sharpness", "density"]
    run["density"]["nodes"] = []
    assert list(draw(found, {})) == ["sharpness"]


def test_notes_count_what_the_columns_are_from_and_explain_what_is_shown():
    folder = Path(__file__).parents[1] / "results/landscape"
    said = "\n".join(notes(read(folder / "ptb_dropout/landscape.json")))
    assert "test loss and error (next tokens) in the tables on 82,420 tokens." in said
    assert "robustness: losses and error rates (next tokens) on about 2,000 tokens of each split" in said
    assert all(word in said for word in ("R = ", "Keskar", "SAM"))
    lines = "\n".join(notes(read(folder / "an4_noise/landscape.json")))  # and variance, and no more
    assert not any(word in lines for word in ("R = ", "Keskar", "SAM:", "Curvature", "in the tables"))
    assert "on about 48 utterances of each split" in lines


def test_warnings_that_differ_by_numbers_are_one_line():
    common = {"checkpoint": "best.pt", "terms_are": "tokens", "errors_are": "next tokens"}
    warnings = {
        "a": "λ_max is -1.5e-3 on 48 tokens",
        "b": "λ_max is 2, and 3 on 48 tokens",
        "c": "λ_max is 7 on 9 tokens",
    }
    runs = {name: {**common, "eigenvalues": {"warning": warning}} for name, warning in warnings.items()}
    found = {
        "settings": {"terms": 48, "figure_terms": 9, "split": "test"},
        "runs": runs,
        "surfaces": {},
        "complete": True,
    }
    assert notes(found)[-2:] == ["a: λ_max is -1.5e-3 on 48 tokens; likewise c.", "b: λ_max is 2, and 3 on 48 tokens."]


@pytest.mark.parametrize(("height", "scale"), [(8.0, 1), (1.0, "auto")])
def test_a_plane_that_would_be_a_strip_is_not_drawn_to_scale(height, scale):
    a, b = np.linspace(0, 16, 5), np.linspace(0, height, 5)
    plane = Surface(
        a, b, {"test_error": np.add.outer(a, b)}, np.ones((5, 5), bool), {"x": (0.0, 0.0), "y": (16.0, 0.0)}
    )
    axes = _contours({"plane": plane}, "test_error").axes[0]
    assert axes.get_aspect() == scale and ("not to one scale" in axes.get_title()) == (scale == "auto")
