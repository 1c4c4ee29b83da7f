"""Labels of transcripts: what is cleaned, what comes back, and what is refused by name."""

import json

import pytest
import torch
from programs import generated_lines

from seqssgd.errors import UserError
from seqssgd.speech.tokens import (
    CharacterTokenizer,
    PieceTokenizer,
    check_labels,
    load_tokenizer,
    required_frames,
)

TEXTS = [line.upper() for line in generated_lines(60)] + ["IT'S <NOISE> A DAY", "AARD VARK"]


def tokenizers() -> list:
    return [CharacterTokenizer.train(TEXTS), PieceTokenizer.train(TEXTS, 40)]


# ---- text ------------------------------------------------------------------------------------------------------------


def test_english_characters_have_their_places_with_the_blank_first():
    assert CharacterTokenizer.train().labels == ["<blank>", " ", "'", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    assert CharacterTokenizer.train(case="lower").labels == ["<blank>", " ", "'", *"abcdefghijklmnopqrstuvwxyz"]
    assert CharacterTokenizer.train(case="keep").vocab_size == 3 + 2 * 26
    assert CharacterTokenizer.train(symbols=".-.A").labels[29:] == [".", "-"]


def test_further_symbols_are_found_in_the_transcripts_on_request():
    texts = ["a.b é-f <NOISE>", "*q* _x_ é"]
    assert CharacterTokenizer.train(texts).vocab_size == 29
    assert CharacterTokenizer.train(texts, symbols=None).labels[29:] == ["*", "-", ".", "_", "É"]
    assert CharacterTokenizer.train(texts, symbols=None, drop="*_").labels[29:] == ["-", ".", "É"]
    assert "'" not in CharacterTokenizer.train(texts, drop="'").labels


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("<NOISE> he  SAID\t<spoken_noise>", "HE SAID"),
        ("<UNK> so <NOISE> <NOISE> IT", "SO IT"),
        ("a<b>c", "A<B>C"),  # no word of its own
        ("<a b>", "<A B>"),
        ("*ROSE* -DASH", "ROSE -DASH"),
        ("<NOISE>", ""),
        ("", ""),
        ("* *", ""),
    ],
)
def test_transcripts_are_cleaned_before_they_become_labels(text, clean):
    tokenizer = CharacterTokenizer.train(symbols="-<>", drop="*")
    assert tokenizer.normalize(text) == clean
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == clean
    assert CharacterTokenizer.train(case="lower", symbols="-<>", drop="*").normalize(text) == clean.lower()


@pytest.mark.parametrize("kind", [0, 1], ids=["characters", "pieces"])
def test_transcripts_come_back_from_their_labels(kind):
    tokenizer = tokenizers()[kind]
    for text, labels in zip(TEXTS, tokenizer.encode_all(TEXTS, map(str, range(len(TEXTS)))), strict=True):
        assert labels.dtype == torch.int64 and labels.ndim == 1
        assert 0 < labels.min() and labels.max() < tokenizer.vocab_size == len(tokenizer.labels)
        assert tokenizer.decode(labels.tolist()) == tokenizer.decode(labels) == tokenizer.normalize(text)
        assert torch.equal(tokenizer.encode(text.lower()), labels)
    assert tokenizer.labels[0] == "<blank>" and tokenizer.blank_id == 0
    assert tokenizer.decode([]) == "" and tokenizer.encode(" <NOISE> ").shape == (0,)
    spaced = tokenizer.encode("A DAY").tolist()
    assert tokenizer.decode([0, *spaced, 0]) == "A DAY"  # the blank spells nothing
    assert kind == 0 or tokenizer.decode([*spaced, 1]) == "A DAY"  # nor does the unknown piece


def test_characters_spell_and_pieces_take_fewer_labels():
    characters, pieces = tokenizers()
    assert characters.encode("a b'c").tolist() == [3, 1, 4, 2, 5]
    assert pieces.vocab_size == 40
    assert sum(map(len, pieces.encode_all(TEXTS, TEXTS))) < 0.8 * sum(map(len, characters.encode_all(TEXTS, TEXTS)))


def test_unknown_characters_are_all_named_with_the_first_utterance_that_has_each():
    texts = ["A DAY", "A DÉ", "DAÏ 2É", "A DAY"]
    for tokenizer in tokenizers():
        with pytest.raises(
            UserError, match=r"'É' \(U\+00C9\) in u1, '2' \(U\+0032\) in u2, 'Ï' \(U\+00CF\) in u2; add"
        ):
            tokenizer.encode_all(texts, ["u0", "u1", "u2", "u3"])
        with pytest.raises(UserError, match="and 5 more; add them"):
            tokenizer.encode("0123456789")
        with pytest.raises(UserError, match=r"U\+2581"):  # what sentencepiece writes for a space
            tokenizer.encode("A▁DAY")


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [0, 1], ids=["characters", "pieces"])
def test_a_saved_tokenizer_labels_as_before_and_damage_is_noticed(tmp_path, kind):
    tokenizer = [
        CharacterTokenizer.train(["é ß\u0085"], "lower", None, "*'"),
        PieceTokenizer.train(TEXTS, 30, "lower", "*"),
    ]
    tokenizer = tokenizer[kind]
    tokenizer.save(tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = load_tokenizer(tmp_path)
    assert type(again) is type(tokenizer) and again.labels == tokenizer.labels
    assert (again.case, again.drop) == ("lower", tokenizer.drop)
    assert torch.equal(again.encode("A *DAY"), tokenizer.encode("a day"))
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again.save(tmp_path)
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    for name, content in (
        (tokenizer.file, b"\xff\n"),
        (tokenizer.file, b""),
        ("tokenizer.json", b"[" * 100_000),
        ("tokenizer.json", b"[]"),
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b'{"level": "word", "lowercase": false}'),  # of a language model
        ("tokenizer.json", f'{{"level": "{tokenizer.level}"}}'.encode()),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            UserError, match="the tokenizer in .* is damaged|is not a sentencepiece model|is no model for speech"
        ):
            load_tokenizer(tmp_path)
        (tmp_path / name).write_bytes(files[name])
    (tmp_path / tokenizer.file).unlink()
    with pytest.raises(UserError, match=f"{tokenizer.file} is missing"):
        load_tokenizer(tmp_path)


def test_the_file_of_labels_can_be_read_by_people_and_decoders(tmp_path):
    CharacterTokenizer.train(case="lower", symbols=".").save(tmp_path)
    lines = (tmp_path / "labels.txt").read_text().split("\n")
    assert lines == ["<blank>", "<space>", "'", *"abcdefghijklmnopqrstuvwxyz", ".", ""]
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == {"level": "character", "case": "lower", "drop": ""}
    (tmp_path / "labels.txt").write_text("\n".join(lines[1:]))
    with pytest.raises(UserError, match="damaged"):
        load_tokenizer(tmp_path)


def test_a_sentencepiece_model_of_a_language_model_is_refused():
    from seqssgd.data.tokenizers import SentencePieceTokenizer

    with pytest.raises(UserError, match="piece 0 is not the blank"):
        PieceTokenizer(SentencePieceTokenizer.train(TEXTS, 40, False, "text").model)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: CharacterTokenizer("AB"), "a space among them"),
        (lambda: CharacterTokenizer(" ABA"), "none twice"),
        (lambda: CharacterTokenizer([" ", "AB"]), "single characters"),
        (lambda: CharacterTokenizer(" A", case="title"), "case 'title' is not one of upper, lower, keep"),
        (lambda: PieceTokenizer.train(TEXTS, 9_999), r"vocab_size 9999 does not suit the transcripts: .* at most \d+"),
        (lambda: PieceTokenizer.train(TEXTS, 4), r"vocab_size 4 does not suit the transcripts: .* more than \d+"),
        (lambda: PieceTokenizer.train(["<NOISE>", ""], 40), "without text"),
    ],
)
def test_impossible_tokenizers_are_named(make, reason):
    with pytest.raises(UserError, match=reason):
        make()


# ---- checks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0, -1, 29, 1000])
def test_labels_that_ctc_would_accept_in_silence_are_refused_with_their_utterance(wrong):
    targets = [torch.tensor([1, 28]), torch.tensor([], dtype=torch.int64), torch.tensor([5, wrong, 7])]
    check_labels(targets[:2], 29, ["a", "b"])
    with pytest.raises(UserError, match=f"^c has the label {wrong}; .* 29 outputs are 1 to 28"):
        check_labels(targets, 29, ["a", "b", "c"])


@pytest.mark.parametrize("labels", [[], [3], [1, 1], [1, 2, 1], [4, 4, 4], [1, 2, 2, 3, 3, 3]], ids=str)
def test_required_frames_are_the_fewest_with_which_ctc_has_a_path(labels):
    needed = required_frames(torch.tensor(labels, dtype=torch.int64))
    log_probs = torch.full((12, 1, 5), 0.2).log()
    for frames in range(12):
        loss = torch.nn.functional.ctc_loss(
            log_probs,
            torch.tensor([labels or [1]]),
            torch.tensor([frames]),
            torch.tensor([len(labels)]),
            reduction="sum",
        )
        assert loss.isfinite().item() == (frames >= needed), (frames, needed)
