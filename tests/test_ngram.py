"""The n-gram estimator against the definition written out, against KenLM, and against the laws of probability."""

import math
import random
from functools import cache

import pytest

from seqssgd.errors import UserError
from seqssgd.speech.ngram import BEGIN, END, FALLBACK, UNKNOWN, characters, estimate

CORPUS = [
    line.split()
    for line in """the cat sat on the mat
the dog sat on the cat
a dog ate the mat
the cat ate

a cat sat
yes
the the the cat""".split("\n")
]


def corpus(seed: int, sentences: int = 250) -> list[list[str]]:
    """Sentences of a random walk over words of unequal frequency, enough of them to estimate discounts from."""
    generator = random.Random(seed)
    words = [f"w{number}" for number in range(60)]
    text = []
    for _ in range(sentences):
        at, sentence = 0, []
        for _ in range(generator.randrange(1, 9)):
            at = (at * 3 + int(generator.paretovariate(0.8))) % 60
            sentence.append(words[at])
        text.append(sentence)
    return text


def kneser_ney(sentences: list[list[str]], order: int):
    """p(word, context) by the formulas of Chen and Goodman, slowly: every count is looked up in the whole text."""
    padded = [(BEGIN, *sentence, END) for sentence in sentences]
    occurrences = [
        line[start : start + length]
        for length in range(1, order + 1)
        for line in padded
        for start in range(len(line) - length + 1)
    ]
    grams = set(occurrences)
    words = {gram[0] for gram in grams if len(gram) == 1} - {BEGIN} | {UNKNOWN}

    @cache
    def count(gram):
        if len(gram) == order or gram[0] == BEGIN:
            return occurrences.count(gram)
        return len({line[i - 1] for line in padded for i in range(1, len(line)) if line[i : i + len(gram)] == gram})

    @cache
    def discounts(length):
        n = [0, 0, 0, 0, 0]
        for gram in grams:
            if len(gram) == length and gram != (BEGIN,) and 1 <= count(gram) <= 4:
                n[count(gram)] += 1
        if not all(n[1:]):
            return FALLBACK
        y = n[1] / (n[1] + 2 * n[2])
        found = (1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3])
        return found if all(0 < d < i + 1 for i, d in enumerate(found)) else FALLBACK

    @cache
    def probability(word, context):
        after = {other: count((*context, other)) for other in words}
        total = sum(after.values())
        lower = probability(word, context[1:]) if context else 1 / len(words)
        if not total:
            return lower
        d = (0, *discounts(len(context) + 1))
        weight = sum(d[min(c, 3)] for c in after.values()) / total
        return max(after[word] - d[min(after[word], 3)], 0) / total + weight * lower

    return probability, words


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_are_those_of_the_definition(order):
    model = estimate(CORPUS, order)
    probability, words = kneser_ney(CORPUS, order)
    assert set(model.vocabulary) == words
    contexts = {
        tuple([BEGIN, *line][:end][-(order - 1) :]) if order > 1 else () for line in CORPUS for end in (1, 2, 3)
    }
    contexts |= {("mat", "mat", "mat")[: order - 1], ("never", "sat", "on")[: order - 1], ()}
    for context in contexts:
        for word in words:
            found = 10 ** model.log10(word, context)
            assert found == pytest.approx(probability(word, context[-(order - 1) :] if order > 1 else ()), rel=1e-9)


def test_discounts_are_estimated_where_the_corpus_allows_it():
    sentences = corpus(1)
    model = estimate(sentences, 2)
    probability, words = kneser_ney(sentences, 2)
    fixed = estimate(sentences[:3], 2)
    assert len(words) > 40
    for word in sorted(words)[:15]:
        for context in ((BEGIN,), ("w1",), ("w7",)):
            assert 10 ** model.log10(word, context) == pytest.approx(probability(word, context), rel=1e-9)
    # in the small one every bigram occurs once: a single occurrence after a word leaves half to the unigrams
    assert any(10**weight == pytest.approx(FALLBACK[0]) for weight in fixed.backoffs[0].values())
    assert not any(10**weight == pytest.approx(FALLBACK[0]) for weight in model.backoffs[0].values())


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_sum_to_one_after_every_context(order):
    sentences = corpus(2, sentences=80)
    model = estimate(sentences, order, vocabulary=["unseen", "w1"])
    contexts = {gram[:-1] for table in model.probabilities for gram in table}
    contexts |= {gram for table in model.probabilities[: order - 1] for gram in table} | {("w0", "unseen")}
    assert len(contexts) > (1 if order == 1 else 50)
    for context in sorted(contexts)[::5]:
        assert math.fsum(10 ** model.log10(word, context) for word in model.vocabulary) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("order", [2, 4])  # KenLM reads no models of single words
def test_kenlm_reads_the_file_and_agrees_on_the_perplexity_of_other_text(tmp_path, order):
    kenlm = pytest.importorskip("kenlm")
    path = tmp_path / "model.arpa"
    model = estimate(corpus(3), order)
    model.write_arpa(path)
    read = kenlm.Model(str(path))
    assert read.order == order
    others = [*corpus(4, sentences=30), ["w1", "neverseen", "w2"], []]
    total = sum(read.score(" ".join(sentence)) for sentence in others)
    tokens = sum(len(sentence) + 1 for sentence in others)
    assert model.perplexity(others) == pytest.approx(10 ** (-total / tokens), rel=1e-4)
    assert model.perplexity(corpus(3)) < model.perplexity(others)
    for sentence in others[:5]:
        scores = [score for score, _, _ in read.full_scores(" ".join(sentence))]
        padded = [BEGIN, *sentence, END]
        assert scores == pytest.approx([model.log10(padded[i], padded[:i]) for i in range(1, len(padded))], abs=1e-5)


def test_the_file_is_what_the_format_says(tmp_path):
    estimate([["a", "b"], ["a"]], 2).write_arpa(tmp_path / "model.arpa")
    lines = (tmp_path / "model.arpa").read_text().split("\n")
    assert lines[:3] == ["\\data\\", "ngram 1=5", "ngram 2=4"]
    assert lines[-3:] == ["", "\\end\\", ""]
    body = [line.split("\t") for line in lines if "\t" in line]
    unigrams, bigrams = body[:5], body[5:]
    assert {row[1] for row in unigrams} == {"<s>", "</s>", "<unk>", "a", "b"}
    assert {row[1] for row in bigrams} == {"<s> a", "a b", "a </s>", "b </s>"}
    assert {row[1] for row in unigrams if len(row) == 3} == {"<s>", "a", "b"}  # what something occurs after
    assert all(len(row) == 2 for row in bigrams)


def test_words_of_the_vocabulary_that_do_not_occur_get_what_the_unknown_word_gets():
    model = estimate(CORPUS, 3, vocabulary=["cat", "zebra"])
    assert model.vocabulary.count("cat") == 1
    assert model.log10("zebra", ["the"]) == model.log10("neverheard", ["the"]) == model.log10(UNKNOWN, ["the"])
    assert model.log10("cat", ["the"]) > model.log10("zebra", ["the"])


def test_models_over_characters_have_a_separator_for_the_space():
    model = estimate([characters("to be"), characters(" or  not ")], 3)
    assert set(model.vocabulary) == {*"tobern", "|", END, UNKNOWN}
    assert model.log10("n", ["r", "|"]) > model.log10("b", ["r", "|"])


def test_text_that_cannot_make_a_model_is_refused():
    with pytest.raises(UserError, match="no text"):
        estimate([], 3)
    with pytest.raises(UserError, match="sentence 2: '<s>' cannot be a word"):
        estimate([["a"], ["<s>"]], 2)
    with pytest.raises(UserError, match="'two words' cannot be a word"):
        estimate([["two words"]], 2)
    with pytest.raises(ValueError, match="order=0"):
        estimate([["a"]], 0)
