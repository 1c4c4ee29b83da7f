"""Beam search in pieces against the same search over the whole."""

import math
import resource

import pytest
import torch

from seqssgd.speech.beam_stream import BeamStream
from seqssgd.speech.decode import BeamSearch
from seqssgd.speech.ngram import characters, estimate
from seqssgd.speech.tokens import CharacterTokenizer

pytest.importorskip("flashlight.lib.text.decoder", reason="needs pip install 'seqssgd[beam]'")
pytest.importorskip("kenlm", reason="needs pip install 'seqssgd[beam]'")

SENTENCES = ["AB A", "BA", "A B", "AB AB", "BB", "BAB A BB", "ABBA AB"]
WORDS = sorted({word for line in SENTENCES for word in line.split()})
KINDS = ["nothing", "characters", "words", "a lexicon"]


@pytest.fixture(scope="module")
def searches(tmp_path_factory):
    """By kind, searches whose beam is narrow enough to prune all the time."""
    folder, tokenizer = tmp_path_factory.mktemp("lm"), CharacterTokenizer(" AB")
    estimate([characters(line) for line in SENTENCES], 3, vocabulary="AB|").write_arpa(folder / "characters.arpa")
    estimate([line.split() for line in SENTENCES], 3).write_arpa(folder / "words.arpa")
    return {
        "nothing": BeamSearch(tokenizer, beam=9),
        "characters": BeamSearch(tokenizer, folder / "characters.arpa", alpha=0.8, beta=0.4, beam=12),
        "words": BeamSearch(tokenizer, folder / "words.arpa", WORDS, alpha=0.7, beta=0.6, beam=15),
        "a lexicon": BeamSearch(tokenizer, None, WORDS, beta=0.5, beam=6),
    }


def speech(frames: int, seed: int) -> torch.Tensor:
    """Logits (T, 4) as those of speech: mostly blanks, and labels that are more or less clear."""
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(frames, 4, generator=generator)
    logits[:, 0] += 3 * (torch.rand(frames, generator=generator) < 0.7)
    return logits


def streamed(search, logits, size, **options):
    stream = BeamStream(search, **options)
    for part in logits.split(size):
        stream.add(part)
    return stream.finish()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 37, 400, 5000])
def test_the_best_hypothesis_in_pieces_is_that_of_the_whole(searches, kind, size, capsys):
    search = searches[kind]
    for seed, frames in enumerate((1, 2, 60, 300, 1700)):
        logits = speech(frames, seed)
        whole, found = search.n_best(logits)[0], streamed(search, logits, size)
        assert (found.text, found.labels) == (whole.text, whole.labels) and (frames < 300 or len(found.text) > 50)
        assert found.score == pytest.approx(whole.score, rel=1e-4, abs=1e-3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", KINDS)
def test_what_waits_for_a_decision_is_bounded(searches, kind):
    """Here by so little that the beam has to be decided for, which changes nothing in the end."""
    search, logits = searches[kind], speech(20_000, 7)
    stream, waiting = BeamStream(search, kept=2000), []
    for part in logits.split(400):
        stream.add(part)
        waiting.append(len((search.decoder.get_all_final_hypothesis() or [part])[0].tokens))
    found = stream.finish()
    assert max(waiting) < 700 and len(found.text) > 1000
    assert found.text == search.n_best(logits)[0].text


def test_a_search_serves_one_recording_after_another(searches):
    search = searches["words"]
    logits = [speech(700, seed) for seed in (1, 2)]
    expected = [search.n_best(one)[0].text for one in logits]
    BeamStream(search).add(logits[1])  # begun, and given up
    assert [streamed(search, one, 250).text for one in logits] == expected and expected[0] != expected[1]


def test_nothing_and_the_impossible(searches):
    for search in searches.values():
        assert streamed(search, torch.zeros(0, 4), 1) == search.n_best(torch.zeros(0, 4))[0]
    only = BeamSearch(CharacterTokenizer(" AB"), lexicon=["AB"])
    logits = torch.full((1, 4), -math.inf)
    logits[0, 2] = 0.0  # certainly the A of AB and nothing after it
    assert streamed(only, logits, 1) == only.n_best(logits)[0]
    with pytest.raises(ValueError, match="NaN"):
        BeamStream(only).add(torch.full((1, 4), math.nan))


def test_where_the_beam_never_agrees_the_best_is_taken_and_that_is_said(searches, capsys):
    """Two labels that are nearly alike before a long silence: whatever follows, either may still be the best."""
    logits = torch.full((6000, 4), -40.0)
    logits[:, 0] = 40.0
    logits[5, 2:], logits[5, 0] = torch.tensor([9.0, 8.9]), -40.0
    search = searches["nothing"]
    found = streamed(search, logits, 500, kept=4000)
    assert found.text == "A" == search.n_best(logits)[0].text
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(
        "note: the hypotheses of the beam, 9 at most, do not agree on what was"
    )
    assert streamed(search, logits, 500).text == "A" and capsys.readouterr().err == ""  # enough room to wait


def test_memory_does_not_grow_with_the_recording(searches):
    """Ten minutes at 50 frames a second; over the whole, the states alone would take some 50 MB more."""
    search, before = searches["characters"].with_weights(0.8, 0.4), None
    stream = BeamStream(search)
    for number, part in enumerate(speech(60_000, 3).split(1000)):
        stream.add(part)
        if number == 5:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000  # kB
    assert len(stream.finish().text) > 10_000
