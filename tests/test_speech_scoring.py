"""Word and character error rates against hand-counted examples, a plain edit distance and NIST's sclite."""

import random
import re
import shutil
import subprocess
import sys
import time

import pytest

from seqssgd.errors import UserError
from seqssgd.speech.scoring import Alignment, ErrorCounts, RealTimeFactor, score
from seqssgd.speech.wsj import scoring_filter


def edit_distance(reference: list[str], hypothesis: list[str]) -> int:
    row = list(range(len(hypothesis) + 1))
    for i, left in enumerate(reference, 1):
        previous, row = row, [i]
        for j, right in enumerate(hypothesis, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (left != right)))
    return row[-1]


def corrupted(seed: int, utterances: int = 40) -> tuple[dict[str, str], dict[str, str]]:
    """Sentences, and what a recogniser with about a fifth of its words wrong makes of them."""
    generator = random.Random(seed)
    vocabulary = [f"w{number}" for number in range(200)]
    references, hypotheses = {}, {}
    for number in range(utterances):
        words = generator.choices(vocabulary, k=generator.randrange(0, 15))
        heard = []
        for word in words:
            fate = generator.random()
            heard += [] if fate < 0.06 else [generator.choice(vocabulary)] if fate < 0.15 else [word]
            heard += [generator.choice(vocabulary)] if generator.random() < 0.05 else []
        name = f"s{number % 5}-u{number:03}"
        references[name], hypotheses[name] = " ".join(words), " ".join(heard)
    return references, hypotheses


def test_words_are_counted_as_by_hand_and_over_the_corpus_not_per_utterance():
    references = {"a": "the cat sat on the mat", "b": "yes", "c": "no no"}
    hypotheses = {"a": "the cat sit on mat", "b": "yes yes", "c": ""}
    result = score(references, hypotheses)
    assert [alignment.counts for alignment in result.alignments] == [
        ErrorCounts(hits=4, substitutions=1, deletions=1),
        ErrorCounts(hits=1, insertions=1),
        ErrorCounts(deletions=2),
    ]
    assert result.counts == ErrorCounts(5, 1, 3, 1)
    assert result.rate == 100 * 5 / 9  # not the mean of 2/6, 1/1 and 2/2


def test_characters_include_the_space_between_words_and_no_other():
    result = score({"a": " ab  c "}, {"a": "abc"}, unit="char")
    assert result.counts == ErrorCounts(hits=3, deletions=1)
    assert result.alignments[0].pairs == (("a", "a"), ("b", "b"), (" ", None), ("c", "c"))


def test_the_alignment_is_shown_with_its_errors_below():
    result = score({"x7": "the cat sat on the mat"}, {"x7": "the old cat sit on mat"})
    assert result.alignments[0].lines() == [
        "x7: 3 of 6 (S 1, D 1, I 1)",
        "REF: the *** cat sat on the mat",
        "HYP: the old cat sit on *** mat",
        "         I       S      D",
    ]
    assert score({"x": ""}, {"x": ""}).alignments[0].lines() == ["x: 0 of 0", "REF:", "HYP:", ""]


def test_the_report_starts_with_the_worst_utterance():
    report = score({"a": "x", "b": "x y", "c": "x"}, {"a": "x", "b": "", "c": "z"}).report()
    assert re.findall(r"^\w+: \d of \d", report, re.MULTILINE) == ["b: 2 of 2", "c: 1 of 1", "a: 0 of 1"]


def test_confusions_are_ordered_by_frequency_and_then_by_the_alphabet():
    references = {"1": "b n", "2": "b n", "3": "b k", "4": "x", "5": "k", "6": ""}
    hypotheses = {"1": "d n", "2": "d m", "3": "d k", "4": "x uh", "5": "", "6": "uh ah"}
    found = score(references, hypotheses).confusions()
    assert found.substitutions == [(("b", "d"), 3), (("n", "m"), 1)]
    assert found.deletions == [("k", 1)]
    assert found.insertions == [("uh", 2), ("ah", 1)]
    assert score(references, hypotheses).confusions(most=1).substitutions == [(("b", "d"), 3)]


@pytest.mark.parametrize("unit", ["word", "char"])
def test_errors_are_the_edit_distance_and_pairs_spell_both_texts(unit):
    split = str.split if unit == "word" else list
    references, hypotheses = corrupted(seed=1)
    generator = random.Random(2)
    for number in range(60):  # short texts of few words have many alignments of equal cost
        name = f"t{number}"
        references[name], hypotheses[name] = (
            " ".join(generator.choices("abc", k=generator.randrange(7))) for _ in range(2)
        )
    result = score(references, hypotheses, unit)
    for alignment in result.alignments:
        reference, hypothesis = split(references[alignment.id]), split(hypotheses[alignment.id])
        assert alignment.counts.errors == edit_distance(reference, hypothesis)
        assert alignment.counts.reference == len(reference)
        assert [left for left, _ in alignment.pairs if left is not None] == reference
        assert [right for _, right in alignment.pairs if right is not None] == hypothesis


def sclite_counts(folder, references: dict[str, str], hypotheses: dict[str, str]) -> list[int]:
    """Sentences, words, correct, substituted, deleted, inserted."""
    for name, texts in (("ref", references), ("hyp", hypotheses)):
        (folder / name).write_text("".join(f"{text} ({id_})\n" for id_, text in texts.items()))
    program = ["sclite"] if shutil.which("sclite") else ["sctk", "sclite"]
    command = [*program, "-r", "ref", "trn", "-h", "hyp", "trn", "-i", "rm", "-o", "rsum", "stdout"]
    output = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=60).stdout
    cells = re.search(r"\| Sum .*", output)[0].replace("|", " ").split()[1:]
    return [int(cell) for cell in cells[:6]]


@pytest.mark.skipif(not (shutil.which("sclite") or shutil.which("sctk")), reason="NIST's sclite is not installed")
@pytest.mark.parametrize("seed", [3, 4])
def test_counts_are_those_of_sclite(tmp_path, seed):
    references, hypotheses = corrupted(seed)
    assert "" in references.values()
    references["s9-u1"], hypotheses["s9-u1"] = "", "two words"  # which sclite counts as insertions
    references["s9-u2"], hypotheses["s9-u2"] = "three words more", ""
    counts = score(references, hypotheses).counts
    assert sclite_counts(tmp_path, references, hypotheses) == [
        len(references),
        counts.reference,
        counts.hits,
        counts.substitutions,
        counts.deletions,
        counts.insertions,
    ]


def test_a_corpus_without_any_reference_has_an_infinite_rate_and_an_empty_one_none():
    assert score({"a": ""}, {"a": "x"}).rate == float("inf")
    assert score({"a": ""}, {"a": ""}).rate == 0
    assert score({}, {}).counts == ErrorCounts()


def test_upper_and_lower_case_differ():
    assert score({"a": "Yes"}, {"a": "yes"}).counts == ErrorCounts(substitutions=1)


def test_different_ids_are_refused_and_named():
    with pytest.raises(UserError, match="2 utterances have a reference and no hypothesis: b, c;"):
        score({"a": "x", "b": "x", "c": "x"}, {"a": "x"})
    with pytest.raises(UserError, match="1 utterances have a hypothesis and no reference: z;"):
        score({"a": "x"}, {"a": "x", "z": "x"})
    with pytest.raises(ValueError, match="'phone' is not one of word, char"):
        score({}, {}, unit="phone")


def test_the_filter_of_wsj_is_applied_to_both_sides():
    references = {"a": "<NOISE> THE SHARE-HOLDER *ROSE* :COLON", "b": "<NOISE>"}
    hypotheses = {"a": "THE SHAREHOLDER <UNK> ROSE COLON", "b": "<SPOKEN_NOISE>"}
    assert score(references, hypotheses, normalize=scoring_filter).counts == ErrorCounts(hits=4)
    assert score(references, hypotheses).counts.errors > 0


def test_without_jiwer_the_pip_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(UserError, match=r"jiwer is not installed: pip install 'seqssgd\[recipes\]'"):
        score({"a": "x"}, {"a": "x"})


def with_rate(errors: list[int], words: int) -> dict:
    """References and hypotheses of ``words`` words each, of which the given numbers are wrong."""
    references = {f"u{number}": " ".join(["x"] * words) for number in range(len(errors))}
    hypotheses = {
        f"u{number}": " ".join(["y"] * wrong + ["x"] * (words - wrong)) for number, wrong in enumerate(errors)
    }
    return {"references": references, "hypotheses": hypotheses}


def test_the_interval_is_that_of_the_normal_approximation():
    generator = random.Random(5)
    errors = [sum(generator.random() < 0.2 for _ in range(10)) for _ in range(400)]
    result = score(**with_rate(errors, words=10))
    mean = sum(errors) / 400
    deviation = (sum((error - mean) ** 2 for error in errors) / 400 / 400) ** 0.5  # of the mean of an utterance
    low, high = result.interval()
    assert low == pytest.approx(10 * (mean - 1.96 * deviation), abs=0.15)
    assert high == pytest.approx(10 * (mean + 1.96 * deviation), abs=0.15)
    assert result.interval() == (low, high)
    assert result.interval(seed=1) != (low, high)
    narrow = result.interval(level=0.5)
    assert low < narrow[0] < result.rate < narrow[1] < high


def test_the_interval_over_speakers_is_wider_where_a_speaker_is_as_bad_in_all_that_he_says():
    errors = [5 if number < 100 else 0 for number in range(200)]
    result = score(**with_rate(errors, words=5))
    speakers = {f"u{number}": f"speaker {number // 20}" for number in range(200)}  # all right or all wrong
    low, high = result.interval(speakers)
    assert high - low > 3 * (result.interval()[1] - result.interval()[0])
    assert result.interval(dict.fromkeys(speakers, "one")) is None
    assert all(round(end * 10 / 100, 9).is_integer() for end in (low, high))  # ten speakers of equal weight


def test_the_interval_leaves_out_draws_that_have_no_reference():
    result = score({"a": "x y", "b": ""}, {"a": "x z", "b": ""})
    assert result.interval() == (50.0, 50.0)
    assert score({"a": "", "b": ""}, {"a": "x", "b": ""}).interval() is None


def test_the_real_time_factor_sums_time_and_audio_and_forgets_what_failed():
    factor = RealTimeFactor()
    assert factor.value != factor.value
    for _ in range(2):
        with factor.measure(audio_seconds=0.5):
            time.sleep(0.02)
    with pytest.raises(RuntimeError), factor.measure(audio_seconds=100.0):
        raise RuntimeError
    assert factor.audio_seconds == 1.0
    assert 0.04 <= factor.value < 0.5


def test_counts_of_an_alignment_follow_its_pairs():
    pairs = (("a", "a"), ("b", None), (None, "c"), ("d", "e"), ("f", "g"))
    assert Alignment("x", pairs).counts == ErrorCounts(1, 2, 1, 1)
