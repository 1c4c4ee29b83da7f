"""Error rates of recognisers held against each other over the same utterances."""

import csv
import io
import itertools

import numpy as np
import pytest
import scipy.stats
from made_runs import ADAM, HALVES, SSGD, WORDS, by_label, compared, counts, evaluated

from seqssgd.cli import main
from seqssgd.errors import UserError
from seqssgd.report import paired as report_paired
from seqssgd.report import summary
from seqssgd.report.paired import paired_bootstrap
from seqssgd.report.tables import results_csv
from seqssgd.runs.errors import read_errors


@pytest.mark.parametrize(("runs", "others"), [(HALVES, ADAM), (HALVES[:1], ADAM[:1]), (ADAM[:1], HALVES)])
def test_the_interval_is_that_of_all_draws_there_are(monkeypatch, runs, others):
    drawn = np.array(list(itertools.product(range(len(WORDS)), repeat=len(WORDS))))
    words = np.array(list(WORDS.values()))[drawn].sum(1)

    # Student's quantile for the normal one: three seeds say less of their variance than all would
    stretch = scipy.stats.t.ppf(0.975, freedom) / 1.959964 if (freedom := len(runs) + len(others) - 2) else 1

    def means(side):
        errors = np.array([[count for count, _ in run.values()] for run in side])
        rates, n = 100 * errors[:, drawn].sum(2) / words, len(side)
        every = np.array([rates[list(taken)].mean(0) for taken in itertools.product(range(n), repeat=n)])
        return rates.mean(0) + stretch * np.sqrt(n / max(n - 1, 1)) * (every - rates.mean(0))

    expected = np.quantile(means(runs)[:, None] - means(others), [0.025, 0.975])
    monkeypatch.setattr(report_paired, "AT_ONCE", 30_000)  # draws times speakers: several blocks of draws
    found = paired_bootstrap(runs, others, draws=40_000)
    np.testing.assert_allclose(found, expected, atol=0.03 * np.ptp(expected))


@pytest.mark.parametrize("other", [
    counts(1, 2, 3, 4, words=dict(list(WORDS.items())[:4])),
    counts(1, 2, 3, 4, 5, words=WORDS | {"ann": 30}),
    counts(1, 2, 3, 4, 5, 6, words=WORDS | {"fay": 9}),
])  # fmt: skip
def test_other_utterances_are_refused(other):
    with pytest.raises(ValueError, match="not evaluated on the same utterances"):
        paired_bootstrap(ADAM, [other])


@pytest.mark.parametrize("n", [2, 3])
def test_the_interval_over_few_seeds_covers_as_often_as_it_says(n):
    """Of two methods that are the same, on so many equal speakers that seeds are all that varies."""
    random, covered, trials = np.random.default_rng(0), 0, 300
    for _ in range(trials):
        errors = random.normal(2000, 100, (2, n)).astype(int).tolist()
        sides = [[{("speaker", str(i)): (count, 10_000) for i in range(2)} for count in side] for side in errors]
        low, high = paired_bootstrap(*sides, draws=400)
        covered += low <= 0 <= high
    assert covered / trials > 0.9  # and not 0.79 or 0.86


def test_there_is_nothing_to_draw_from_one_speaker():
    with pytest.raises(ValueError, match="1 groups"):
        paired_bootstrap([counts(1, words={"ann": 9})], [counts(2, words={"ann": 9})])


# ---- from the runs ---------------------------------------------------------------------------------------------------


def recognisers(folder, **kwargs):
    runs, halves = [evaluated(folder / f"a{i}", run, i, **kwargs) for i, run in enumerate(ADAM)], {"signs": "halves"}
    return runs + [evaluated(folder / f"h{i}", run, i, **SSGD, **halves, **kwargs) for i, run in enumerate(HALVES)]


def test_a_comparison_has_the_interval_over_the_speakers(tmp_path):
    comparison = compared(recognisers(tmp_path))
    low, high = paired_bootstrap(HALVES, ADAM)
    label = "S-Adam 0.2, halves"
    found = by_label(comparison)[label].against["equal passes"]
    assert found.paired == (low, high, "5 speakers and over seeds")
    signed = [f"{value:+.2f}".replace("-", "−") for value in (found.delta, low, high)]
    expected = (
        "- Equal passes, 95 % intervals over the same 5 speakers and over seeds (paired bootstrap): "
        f"{label} {signed[0]} ({signed[1]} to {signed[2]})."
    )
    assert expected in summary(comparison).splitlines()
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(results_csv(comparison)))}
    assert [float(rows[label][f"equal_passes_paired_{end}"]) for end in ("low", "high")] == [low, high]
    assert rows["Adam"]["equal_passes_paired_low"] == ""


def test_intervals_over_a_single_seed_are_told_from_those_over_several(tmp_path):
    one = evaluated(tmp_path / "w", HALVES[0], 0, **{**SSGD, "method": "weight_noise"})
    said = [line for line in summary(compared([*recognisers(tmp_path), one])).splitlines() if "over the same" in line]
    passes = [line for line in said if line.startswith("- Equal passes")]
    assert sorted("side that has several" in line for line in passes) == [False, True]
    assert all(("weight noise" in line) == ("side that has several" in line) for line in passes)


def test_utterances_are_drawn_where_the_speakers_are_not_known(tmp_path):
    runs = recognisers(tmp_path, speakers=False)
    found = by_label(compared([runs[0], *runs[2:]]))["S-Adam 0.2, halves"].against["equal passes"]
    assert found.paired.over == "10 utterances and over the seeds of the side that has several"
    found = by_label(compared(runs[1:3]))["S-Adam 0.2, halves"].against["equal passes"]
    assert found.paired.over == "10 utterances but not over seeds"


def test_without_the_errors_of_one_run_there_is_none_and_the_others_say_so(tmp_path):
    runs = recognisers(tmp_path)
    other = evaluated(tmp_path / "once", counts(7, 12, 2, 11, 6), 0, **{**SSGD, "noise": 0.3})
    (other / "errors_test.csv").unlink()
    comparison = compared([*runs, other])
    rows = by_label(comparison)
    assert rows["S-Adam 0.2, halves"].against["equal passes"].paired
    assert rows["S-Adam 0.3"].against["equal passes"].paired is None
    lacking = "None, as runs lack the errors of the same utterances, which seqssgd evaluate --save keeps: S-Adam 0.3."
    assert summary(comparison).count(lacking) == 2  # equal epochs, equal passes
    (runs[-1] / "errors_test.csv").unlink()
    assert "bootstrap" not in summary(compared([*runs, other]))


def test_a_record_of_a_run_keeps_them(tmp_path):
    (run, *_), out = recognisers(tmp_path), tmp_path / "record"
    assert main(["export", str(run), "--record", "--out", str(out)]) == 0
    known = {"substitutions": 43, "deletions": 0, "insertions": 0, "reference": 164}
    assert read_errors(out, "test", "wer", known) == ADAM[0]


@pytest.mark.parametrize(("change", "message"), [
    (lambda text: text.replace("ann-1,ann,9,", "ann-1,ann,8,"), "does not add up to what evaluation.json says"),
    (lambda text: text.replace("ann-1,ann,9,", "ann-1,ann,x,"), "damaged (ValueError"),
    (lambda text: text.replace("speaker", "talker"), "damaged (KeyError: 'speaker')"),
    (lambda text: text.replace(",26\n", "\n", 1), "damaged (TypeError"),
    (lambda text: "", "does not add up"),
])  # fmt: skip
def test_a_damaged_file_of_errors_is_refused(tmp_path, change, message):
    runs = recognisers(tmp_path)
    file = runs[0] / "errors_test.csv"
    file.write_text(change(file.read_text()))
    with pytest.raises(UserError) as caught:
        compared(runs)
    assert message in str(caught.value)
    assert str(caught.value).endswith(f"evaluate test again: seqssgd evaluate --run {runs[0]} --save")
