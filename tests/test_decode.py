"""Greedy and beam search decoding against the enumeration of all alignments of tiny problems."""

import gzip
import itertools
import math
import sys
from collections import defaultdict

import pytest
import torch

from seqssgd.errors import UserError
from seqssgd.speech import language_models
from seqssgd.speech.decode import BeamSearch, GridPoint, arpa_words, greedy, grid_search, open_search
from seqssgd.speech.ngram import BEGIN, END, NGram, characters, estimate
from seqssgd.speech.scoring import score
from seqssgd.speech.tokens import CharacterTokenizer, PieceTokenizer

SENTENCES = ["AB A", "BA", "A B", "AB AB", "BB"]
WORDS = ["A", "B", "AB", "BA", "BB"]
EXACT = {"beam": 5000, "threshold": 1e4}  # nothing is pruned


def collapse(path) -> tuple[int, ...]:
    return tuple(label for label, _ in itertools.groupby(path) if label)


def all_labellings(logits: torch.Tensor) -> dict[tuple[int, ...], float]:
    """The probability of every sequence of labels: the sum over all alignments of it, blank 0."""
    frames, labels = logits.shape
    probabilities = logits.double().softmax(-1).tolist()
    summed: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(labels), repeat=frames):
        summed[collapse(path)] += math.prod(probabilities[t][label] for t, label in enumerate(path))
    return summed


def log_lm(model: NGram, words: list[str]) -> float:
    padded = [BEGIN, *words, END]
    return math.log(10) * sum(model.log10(padded[i], padded[:i]) for i in range(1, len(padded)))


def some_logits(seed: int, frames: int = 5, labels: int = 4) -> torch.Tensor:
    return 2 * torch.randn(frames, labels, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def tokenizer():
    return CharacterTokenizer(" AB")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model over characters and one over words, each with its file."""
    folder = tmp_path_factory.mktemp("lm")
    over_characters = estimate([characters(line) for line in SENTENCES], 3, vocabulary="AB|")
    over_words = estimate([line.split() for line in SENTENCES], 2)
    over_characters.write_arpa(folder / "characters.arpa")
    over_words.write_arpa(folder / "words.arpa")
    return {"characters": (over_characters, folder / "characters.arpa"), "words": (over_words, folder / "words.arpa")}


@pytest.fixture(autouse=True)
def _packages(request):
    if "greedy_" not in request.node.name:
        pytest.importorskip("flashlight.lib.text.decoder", reason="needs pip install 'seqssgd[beam]'")
        pytest.importorskip("kenlm", reason="needs pip install 'seqssgd[beam]'")


@pytest.mark.parametrize("blank", [0, 2])
def test_greedy_is_the_collapsed_best_path_of_the_frames_within_the_utterance(blank):
    logits = torch.randn(50, 9, 4)
    lengths = torch.randint(10, (50,))
    lengths[:2] = torch.tensor([0, 9])
    expected = [
        [label for label, _ in itertools.groupby(row[:length].argmax(-1).tolist()) if label != blank]
        for row, length in zip(logits, lengths.tolist(), strict=True)
    ]
    assert greedy(logits, lengths, blank) == expected
    assert expected[0] == [] and any(a == b for row in expected for a, b in itertools.pairwise(row))


def test_greedy_of_an_empty_batch_or_of_no_frames_is_empty():
    assert greedy(torch.zeros(2, 0, 4), torch.tensor([0, 0])) == [[], []]
    assert greedy(torch.zeros(0, 3, 4), torch.zeros(0, dtype=torch.int64)) == []


@pytest.mark.parametrize("seed", range(6))
def test_without_a_language_model_every_labelling_has_the_probability_summed_over_its_alignments(tokenizer, seed):
    logits = some_logits(seed)
    expected = all_labellings(logits)
    found = BeamSearch(tokenizer, **EXACT).n_best(logits)
    assert len(found) == len(expected) == len({hypothesis.labels for hypothesis in found})
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(math.log(expected[hypothesis.labels]), abs=1e-4)
        assert hypothesis.text == tokenizer.decode(hypothesis.labels)
    assert found[0].labels == max(expected, key=expected.get)
    assert [hypothesis.score for hypothesis in found] == sorted((h.score for h in found), reverse=True)


@pytest.mark.parametrize("seed", range(4))
def test_a_model_over_characters_scores_every_labelling_with_its_spaces_and_end(tokenizer, models, seed):
    model, path = models["characters"]
    logits = some_logits(10 + seed)
    alpha, beta = 0.3 * seed, 0.5 * seed - 0.5
    expected = {}
    for labels, probability in all_labellings(logits).items():
        symbols = ["|AB"[label - 1] for label in labels]
        words = len("".join(symbols).replace("|", " ").split())
        expected[labels] = math.log(probability) + alpha * log_lm(model, symbols) + beta * words
    found = BeamSearch(tokenizer, path, alpha=alpha, beta=beta, **EXACT).n_best(logits)
    assert {hypothesis.labels for hypothesis in found} == expected.keys()
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(expected[hypothesis.labels], abs=1e-4)
    assert found[0].labels == max(expected, key=expected.get)


def expected_texts(logits, lexicon, alpha, beta, model) -> dict[str, float]:
    """The score of every text of the lexicon's words; successive spaces, and those at the ends, are as one or none."""
    summed: dict[str, float] = defaultdict(float)
    for labels, probability in all_labellings(logits).items():
        words = "".join(" AB"[label - 1] for label in labels).split()
        if set(words) <= set(lexicon):
            summed[" ".join(words)] += probability
    return {
        text: math.log(probability) + (alpha * log_lm(model, text.split()) if model else 0.0) + beta * len(text.split())
        for text, probability in summed.items()
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("with_lm", [True, False])
def test_with_a_lexicon_every_text_of_its_words_has_the_score_summed_over_its_alignments(
    tokenizer, models, seed, with_lm
):
    model, path = models["words"] if with_lm else (None, None)
    logits = some_logits(20 + seed)
    alpha, beta, lexicon = 0.4 * seed, 1.0 - 0.5 * seed, WORDS[: 5 - seed // 2]
    expected = expected_texts(logits, lexicon, alpha, beta, model)
    found = BeamSearch(tokenizer, path, lexicon, alpha, beta, **EXACT).n_best(logits)
    assert {hypothesis.text for hypothesis in found} == expected.keys()
    assert len(found) == len(expected) > 10
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(expected[hypothesis.text], abs=1e-4)
        assert tokenizer.decode(hypothesis.labels) == hypothesis.text
    assert found[0].text == max(expected, key=expected.get)


def test_with_word_pieces_the_language_model_is_over_pieces_and_a_lexicon_is_refused(tmp_path):
    tokenizer = PieceTokenizer.train(["AB A", "B AB", "BA"], 6)
    lines = [[tokenizer.labels[i] for i in tokenizer.encode(line).tolist()] for line in SENTENCES]
    model = estimate(lines, 2)
    model.write_arpa(tmp_path / "pieces.arpa")
    logits = some_logits(30, frames=4, labels=6)
    found = BeamSearch(tokenizer, tmp_path / "pieces.arpa", alpha=0.6, **EXACT).n_best(logits)
    probabilities = all_labellings(logits)
    assert len(found) == len(probabilities) > 100
    for hypothesis in found:
        lm = log_lm(model, [tokenizer.labels[i] for i in hypothesis.labels])
        assert hypothesis.score == pytest.approx(math.log(probabilities[hypothesis.labels]) + 0.6 * lm, abs=1e-4)
        assert hypothesis.text == tokenizer.decode(hypothesis.labels)
    with pytest.raises(UserError, match="a lexicon needs a model over characters"):
        BeamSearch(tokenizer, lexicon=["AB"])


def test_a_narrow_beam_finds_less_and_never_more_than_there_is(tokenizer):
    logits = some_logits(40, frames=6)
    expected = all_labellings(logits)
    found = BeamSearch(tokenizer, beam=3).n_best(logits)
    assert 1 <= len(found) <= 3
    assert all(hypothesis.score <= math.log(expected[hypothesis.labels]) + 1e-4 for hypothesis in found)
    most = BeamSearch(tokenizer, token_beam=1).n_best(logits)
    assert [hypothesis.labels for hypothesis in most] == [tuple(greedy(logits[None], torch.tensor([6]))[0])]
    close = BeamSearch(tokenizer, beam=5000, threshold=0.5).n_best(logits)
    assert 1 <= len(close) < len(expected)


def test_a_minibatch_is_decoded_as_its_utterances_are_one_by_one_whatever_stands_in_the_padding(tokenizer, models):
    search = BeamSearch(tokenizer, models["words"][1], WORDS, 0.5, 0.5)
    logits, lengths = torch.randn(4, 8, 4), torch.tensor([8, 5, 1, 0])
    padded = logits.clone()
    for row, length in zip(padded, lengths.tolist(), strict=True):
        row[length:] = math.nan
    assert search(padded, lengths) == [
        search.n_best(row[:length])[0] for row, length in zip(logits, lengths.tolist(), strict=True)
    ]
    free = BeamSearch(tokenizer, models["characters"][1], alpha=0.5)
    empty = free.n_best(logits[0, :0])
    assert [(found.text, found.labels) for found in empty] == [("", ())]
    assert empty[0].score == pytest.approx(0.5 * log_lm(models["characters"][0], []), abs=1e-4)


def test_where_no_word_of_the_lexicon_fits_the_text_is_empty(tokenizer):
    logits = torch.full((1, 4), -math.inf)
    logits[0, 2] = 0.0  # certainly the A of AB and nothing after it
    found = BeamSearch(tokenizer, lexicon=["AB"]).n_best(logits)
    assert [(hypothesis.text, hypothesis.score) for hypothesis in found] == [("", -math.inf)]


def test_grid_search_rates_every_pair_and_puts_the_best_first(tokenizer, models):
    # A and B sound alike; that AB is a word, and that B follows A, is known to the language model alone
    references = {"1": "AB", "2": "AB A", "3": "BA"}
    logits = {}
    for number, (id_, text) in enumerate(references.items()):
        frames = torch.full((2 * len(text), 4), -6.0)
        for i, character in enumerate(text):
            frames[2 * i, tokenizer.encode(character) if character.strip() else 1] = 2.0
            frames[2 * i + 1, 0] = 2.0
            if character != " ":
                frames[2 * i, 2:] = torch.tensor([1.5, 1.9]) if i % 2 == 0 else torch.tensor([1.9, 1.5])
        logits[id_] = frames + 0.1 * some_logits(50 + number, len(frames))
    search = BeamSearch(tokenizer, models["words"][1], WORDS)
    alphas, betas = [0.0, 1.0, 4.0], [-1.0, 0.0, 8.0]
    points = grid_search(search, logits, references, alphas, betas)
    assert sorted((point.alpha, point.beta) for point in points) == [(a, b) for a in alphas for b in betas]
    rates = {}
    for alpha, beta in itertools.product(alphas, betas):
        fresh = BeamSearch(tokenizer, models["words"][1], WORDS, alpha, beta)
        rates[alpha, beta] = score(references, {id_: fresh.n_best(row)[0].text for id_, row in logits.items()}).rate
    assert {(point.alpha, point.beta): point.rate for point in points} == rates
    assert len(set(rates.values())) > 2
    assert points[0] == GridPoint(min(rates.values()), *min(rates, key=lambda at: (rates[at], at[0], abs(at[1]))))
    assert (search.alpha, search.beta) == (1.0, 0.0)


def test_a_lexicon_file_has_its_words_first_on_every_line(tokenizer, tmp_path):
    file = tmp_path / "lexicon.txt"
    file.write_text("ab A B |\n\n<unk> spn\nA(2) X\n")
    search = BeamSearch(tokenizer, lexicon=file)
    assert search.words == {"AB": [2, 3]}
    assert search.coverage == "1 of 2 words of the lexicon are left out, which the tokenizer cannot spell ('A(2)')"
    file.write_text("\ufeffab A B |\n\n<unk> spn\nA\nAB A B\n")
    assert BeamSearch(tokenizer, lexicon=file).words == {"AB": [2, 3], "A": [2]}


def test_the_words_of_an_arpa_file_are_a_lexicon(tokenizer, models, tmp_path):
    path = models["words"][1]
    assert sorted(arpa_words(path)) == sorted(WORDS)
    packed = tmp_path / "words.arpa.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert arpa_words(packed) == arpa_words(path)
    logits = some_logits(60)
    assert (
        BeamSearch(tokenizer, packed, arpa_words(packed)).n_best(logits)
        == BeamSearch(tokenizer, path, WORDS).n_best(logits)
    )  # fmt: skip


@pytest.mark.parametrize("filler", ["a", "-1 a\n"], ids=["one line", "lines"])
def test_a_small_language_model_that_stands_for_much_is_refused_before_all_is_read(tmp_path, monkeypatch, filler):
    monkeypatch.setattr(language_models, "ROOM", 1_000_000)
    path = tmp_path / "lm.arpa.gz"
    path.write_bytes(gzip.compress(b"\\1-grams:\n" + filler.encode() * 1_000_000))
    with pytest.raises(UserError, match="unpacks to far more than an ARPA file"):
        arpa_words(path)


def test_damaged_and_wrong_language_models_are_named(tokenizer, models, tmp_path):
    good = models["characters"][1].read_bytes()
    file = tmp_path / "lm.arpa"
    for content, message in (
        (b"  <!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (good[: len(good) // 2], "not an ARPA file or a binary of KenLM, or not all of it"),
        (b"", "not an ARPA file"),
        (b"mmap lm http://kheafield.com/code format version 5\n\0" + bytes(20), "not an ARPA file"),
        (gzip.compress(good)[:-30], "not an ARPA file"),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=message) as raised:
            BeamSearch(tokenizer, file)
        assert str(file) in str(raised.value) and "\n" not in str(raised.value)
    for path, message in ((tmp_path, "no such language model"), (tmp_path / "absent", "no such language model")):
        with pytest.raises(UserError, match=message):
            BeamSearch(tokenizer, path)
    estimate([["A"]], 1).write_arpa(file)
    with pytest.raises(UserError, match="or of order 1"):
        BeamSearch(tokenizer, file)
    for content in (b"<html>", good[:60], gzip.compress(good)[:60]):
        path = tmp_path / ("words.arpa.gz" if content[:1] == b"\x1f" else "words.arpa")
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"words\.arpa"):
            arpa_words(path)


def test_a_language_model_over_other_units_than_the_search_needs_is_refused(tokenizer, models, tmp_path):
    with pytest.raises(UserError, match="has no '|', the space of a model over characters; if it is over words"):
        BeamSearch(tokenizer, models["words"][1])
    with pytest.raises(UserError, match="is over characters"):
        BeamSearch(tokenizer, models["characters"][1], WORDS)
    lower = tmp_path / "lower.arpa"
    estimate([line.lower().split() for line in SENTENCES], 2).write_arpa(lower)
    with pytest.raises(UserError, match="knows none of the words of the lexicon, such as 'BB'; upper and lower case"):
        BeamSearch(tokenizer, lower, WORDS)


def test_a_language_model_that_knows_almost_no_word_is_refused_and_the_share_is_said(tokenizer, tmp_path):
    """As a model in small letters, in which digits and apostrophes alone are as in the lexicon."""
    path = tmp_path / "lm.arpa"
    words = ["A", "B", "AB", "BA", "BB", "AA", "ABA", "BAB", "AAB", "BBA"]
    estimate([[word.lower() for word in words], ["A", "b"]], 2).write_arpa(path)
    with pytest.raises(
        UserError, match="knows 1 of 10 of the words of the lexicon, such as 'BBA'; upper and lower case"
    ):
        BeamSearch(tokenizer, path, words)
    estimate([words[:8]], 2).write_arpa(path)
    assert BeamSearch(tokenizer, path, words).coverage == f"{path} knows 8 of 10 words of the lexicon (80 %)"


def test_one_odd_word_of_a_model_is_left_out_and_counted(tokenizer, tmp_path):
    path = tmp_path / "lm.arpa"
    estimate([line.split() for line in [*SENTENCES, "É A ,"]], 2).write_arpa(path)
    search = open_search(tokenizer, 10, path)
    assert sorted(search.words) == sorted(WORDS)
    assert search.coverage.startswith("2 of 7 words of the lexicon are left out, which the tokenizer cannot spell (")
    assert search.coverage.endswith(f"{path} knows 5 of 5 words of the lexicon (100 %)")
    logits = some_logits(61)
    assert search.n_best(logits)[0].text == BeamSearch(tokenizer, path, WORDS, beam=10).n_best(logits)[0].text


def test_wrong_arguments_are_refused(tokenizer, tmp_path):
    with pytest.raises(UserError, match="cannot spell .'CAB', 'C', 'CC', .*: it is of another alphabet"):
        BeamSearch(tokenizer, lexicon=["A", "CAB", "C", "CC", "CCC", "CCA"])
    with pytest.raises(UserError, match="holds no words"):
        BeamSearch(tokenizer, lexicon=["<unk>"])
    with pytest.raises(UserError, match="cannot be read as a lexicon"):
        BeamSearch(tokenizer, lexicon=tmp_path / "absent.txt")
    for wrong in (
        {"alpha": -1.0},
        {"alpha": math.inf},
        {"beta": math.nan},
        {"beam": 0},
        {"token_beam": 0},
        {"threshold": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            BeamSearch(tokenizer, **wrong)
    search = BeamSearch(tokenizer)
    with pytest.raises(ValueError, match=r"shape \(3, 5\); \(T, 4\)"):
        search.n_best(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="NaN"):
        search.n_best(torch.tensor([[0.0, math.nan, 0.0, 0.0]]))


@pytest.mark.parametrize("module", ["flashlight.lib.text.decoder", "kenlm"])
def test_without_a_package_the_pip_command_is_named(tokenizer, models, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"{module.split('.')[0]} is not installed: pip install 'seqssgd\[beam\]'"):
        BeamSearch(tokenizer, models["characters"][1])
