"""Prepared text: tokenizers, the folder and what guards it, streams cut for training."""

import hashlib
import json
import os
import random

import pytest
import torch
from programs import generated_lines

from seqssgd.data.preparing import write_folder
from seqssgd.data.text import Windows, columns, load_text, read_lines, summary, write_text_dataset
from seqssgd.data.tokenizers import CharacterTokenizer, SentencePieceTokenizer, WordTokenizer, load_tokenizer
from seqssgd.errors import UserError

LINES = ["the cat  sat\ton the mat", "", "a café — naïve\u00a0façade", "   ", "日本語 <unk> the end"]
CLEAN = "the cat sat on the mat\na café — naïve façade\n日本語 <unk> the end\n"
SPLITS = {"train": generated_lines(60), "valid": generated_lines(9, seed=1), "test": generated_lines(8, seed=2)}


def snapshot(folder):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_lines_come_without_their_ends_and_byte_order_mark_and_blank_ones_are_kept(tmp_path):
    file = tmp_path / "text"
    file.write_bytes("\ufeffone\r\ntwo\rthree\n\nfïve\u2028still five".encode())
    assert read_lines(file) == ["one", "two", "three", "", "fïve\u2028still five"]
    assert read_lines("archive:member", b"a b\nc") == ["a b", "c"]


def test_text_in_another_encoding_is_refused_with_the_offset_of_the_first_wrong_byte(tmp_path):
    file = tmp_path / "latin1.txt"
    file.write_bytes(b"x" * 1234 + "é".encode("latin-1") + b"x")
    with pytest.raises(UserError, match=r"latin1\.txt is not UTF-8 text: wrong byte 0xe9 at offset 1,234; .*iconv"):
        read_lines(file)


@pytest.mark.parametrize("content", [b"", b"\n \n\t\n", "\ufeff\n".encode()])
def test_a_file_without_text_is_refused(tmp_path, content):
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(UserError, match="text is empty"):
        read_lines(tmp_path / "text")


def test_a_path_that_cannot_be_read_is_named(tmp_path):
    for path, reason in ((tmp_path / "absent", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=rf"{path} cannot be read \({reason}"):
            read_lines(path)


# ---- tokenizers ------------------------------------------------------------------------------------------------------


def test_words_come_back_from_their_ids_with_one_end_per_line():
    tokenizer = WordTokenizer.train(LINES, None, False, "text")
    ids = tokenizer.encode(LINES)
    assert ids.dtype == torch.int64 and (ids == tokenizer.eos_id).sum() == 3
    assert tokenizer.decode(ids.tolist()) == CLEAN
    assert tokenizer.decode(tokenizer.encode([]).tolist()) == ""


def test_the_vocabulary_is_ordered_by_frequency_then_code_points():
    lines = ["b a c c", "é a b <unk>", "c"]
    assert WordTokenizer.train(lines, None, False, "text").words == ["<eos>", "<unk>", "c", "a", "b", "é"]
    assert WordTokenizer.train(["b a"], None, False, "text").words == ["<eos>", "a", "b"]


@pytest.mark.parametrize("size", [3, 5, 7])
def test_a_limited_vocabulary_keeps_the_most_frequent_words_and_maps_the_rest_to_unknown(size):
    counts = {"e": 5, "d": 4, "c": 3, "b": 2, "a": 1}
    lines = [word for word, count in counts.items() for _ in range(count)]
    tokenizer = WordTokenizer.train(lines, size, False, "text")
    kept = list(counts)[: size - 2] if size < 7 else list(counts)
    assert tokenizer.words == ["<eos>", "<unk>", *kept] if size < 6 else ["<eos>", *kept]
    cut = sum(count for word, count in counts.items() if word not in kept)
    assert (tokenizer.encode(lines) == (tokenizer.unk_id if cut else -1)).sum() == cut


def test_an_unknown_word_without_unk_is_named_with_its_line():
    tokenizer = WordTokenizer(["<eos>", "a", "b"])
    with pytest.raises(UserError, match=r"novel\.txt, line 3: the word 'dog' is not in the vocabulary.* below 3"):
        tokenizer.encode(["a", "", "b dog a cat"], "novel.txt")


@pytest.mark.parametrize("words", [["a", "b"], ["<eos>", "a", "a"]])
def test_a_vocabulary_without_an_end_or_with_a_word_twice_is_refused(words):
    with pytest.raises(UserError, match="no word twice"):
        WordTokenizer(words)


def test_text_that_holds_the_end_token_is_refused_by_both_kinds():
    pieces = SentencePieceTokenizer.train(generated_lines(30), 30, False, "text")
    for tokenizer in (WordTokenizer(["<eos>", "<unk>", "a"]), pieces):
        with pytest.raises(UserError, match="text, line 2: <eos> stands for the end of a line"):
            tokenizer.encode(["a", "a <eos>"])


def test_lowercase_holds_wherever_the_tokenizer_is_used(tmp_path):
    tokenizer = WordTokenizer.train(["The THE Ärger"], None, True, "text")
    assert tokenizer.words == ["<eos>", "the", "ärger"]
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).encode(["tHE ÄRGER"]).tolist() == [1, 2, 0]


def test_byte_order_marks_within_a_text_are_no_part_of_its_words():
    assert WordTokenizer.train(["\ufeffone two", "\ufeffone"], None, False, "text").words == ["<eos>", "one", "two"]


def test_word_pieces_come_back_as_the_text_that_was_cut():
    lines = [*LINES, *generated_lines(50)]
    tokenizer = SentencePieceTokenizer.train(lines, 50, False, "text")
    assert tokenizer.vocab_size == 50
    ids = tokenizer.encode(lines)
    assert (ids == tokenizer.eos_id).sum() == 53 and not (ids == tokenizer.unk_id).any()  # <unk> is an ordinary word
    assert tokenizer.decode(ids.tolist()) == CLEAN + "".join(f"{line}\n" for line in lines[5:])
    assert (tokenizer.encode(["bЖ"]) == tokenizer.unk_id).sum() == 1


def test_word_pieces_say_what_sizes_are_possible():
    for size, reason in ((5, r"its characters alone need more than \d+"), (9999, r"this text allows at most \d+")):
        with pytest.raises(UserError, match=rf"--vocab-size {size} does not suit text: {reason}"):
            SentencePieceTokenizer.train(generated_lines(30), size, False, "text")
    with pytest.raises(UserError, match="add --vocab-size"):
        SentencePieceTokenizer.train(["a b"], None, False, "text")
    with pytest.raises(UserError, match="--vocab-size 2: a word vocabulary needs at least"):
        WordTokenizer.train(["a b"], 2, False, "text")


@pytest.mark.parametrize("level", [WordTokenizer, SentencePieceTokenizer])
def test_a_saved_tokenizer_reads_text_as_before_and_damage_is_noticed(tmp_path, level):
    lines = generated_lines(50) + ["odd\u0085word"]
    tokenizer = level.train(lines, 25, False, "text")
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert type(again) is level and torch.equal(again.encode(lines), tokenizer.encode(lines))
    for name, content in (
        (level.file, b"\xff\n"),
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"[]"),
        ("tokenizer.json", b'{"level": "phoneme", "lowercase": false}'),
    ):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="prepare the text again"):
            load_tokenizer(tmp_path)
        (tmp_path / name).write_bytes(whole)
    (tmp_path / level.file).unlink()
    with pytest.raises(UserError, match=f"{level.file} is missing"):
        load_tokenizer(tmp_path)


# ---- the prepared folder ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "size"), [("word", None), ("word", 12), ("sentencepiece", 30)])
def test_a_prepared_text_gives_the_streams_of_its_lines(tmp_path, level, size):
    splits = {**SPLITS, "valid": [*SPLITS["valid"], " ", "\ufeffba  ko"]}
    assert write_text_dataset(tmp_path / "out", splits, "made up", level, size) is True
    dataset = load_text(tmp_path / "out")
    tokenizer = dataset.tokenizer
    for split, lines in splits.items():
        stream = dataset.split(split)
        assert torch.equal(stream, tokenizer.encode(lines))
        counts = dataset.info["splits"][split]
        assert counts["tokens"] == len(stream) and counts["blank_lines"] == (split == "valid")
        assert counts["lines"] == (stream == tokenizer.eos_id).sum() == len(lines) - counts["blank_lines"]
        assert counts["unknown"] == (0 if tokenizer.unk_id is None else (stream == tokenizer.unk_id).sum())
    if size == 12:
        assert counts["unknown"] > 0 and "% unknown" in summary(dataset)
    assert "1 blank lines dropped" in summary(dataset)


def test_words_that_training_lacks_turn_rare_words_into_unknown(tmp_path):
    splits = {"train": ["a a b b c"], "valid": ["a new"], "test": ["b"]}
    write_text_dataset(tmp_path / "out", splits, "text")
    dataset = load_text(tmp_path / "out")
    assert dataset.tokenizer.words == ["<eos>", "<unk>", "a", "b"]
    assert dataset.split("train").tolist() == [2, 2, 3, 3, 1, 0] and dataset.split("valid").tolist() == [2, 1, 0]
    for train, size in (["a a"], None), (["a b"], None), (["a a b"], 9):  # nothing to cut, all to cut, told not to
        with pytest.raises(UserError, match=r"text \(valid\), line 1: the word 'new'"):
            write_text_dataset(tmp_path / "other", {**splits, "train": train, "test": ["a"]}, "text", vocab_size=size)
    assert not (tmp_path / "other").exists()


def test_preparing_again_changes_nothing_and_other_settings_are_refused(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    assert write_text_dataset(out, SPLITS, "text", vocab_size=12)
    before = snapshot(out)
    assert not write_text_dataset(out, SPLITS, "another name", vocab_size=12)
    other = {**SPLITS, "test": SPLITS["test"][:-1]}
    moved = {**SPLITS, "train": SPLITS["train"][:-1], "valid": [SPLITS["train"][-1], *SPLITS["valid"]]}
    for splits, settings in ((other, {}), (moved, {}), (SPLITS, {"vocab_size": 13}), (SPLITS, {"lowercase": True})):
        with pytest.raises(UserError, match="another source or with other settings"):
            write_text_dataset(out, splits, "text", **{"vocab_size": 12, **settings})
    assert snapshot(out) == before


def test_folders_that_hold_something_else_are_left_alone(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("…")
    (tmp_path / "file").write_text("…")
    for out, reason in (
        ("full", "not a prepared text"),
        ("file", "not a prepared text"),
        ("file/new", "cannot be written"),
    ):
        with pytest.raises(UserError, match=reason):
            write_text_dataset(tmp_path / out, SPLITS, "text")
    assert (tmp_path / "full/thesis.tex").read_text() == (tmp_path / "file").read_text() == "…"


def test_a_failure_while_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        write_text_dataset(tmp_path / "out", SPLITS, "text")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_another_process_writes_meanwhile_is_left_to_it(tmp_path):
    def fill(folder):
        (folder / "mine").touch()
        (tmp_path / "out").mkdir()
        (tmp_path / "out/theirs").touch()

    with pytest.raises(UserError, match="out: another process has written it meanwhile; run the same command again$"):
        write_folder(tmp_path / "out", {}, fill)
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["out", "out/theirs"]


def test_a_split_without_text_is_refused(tmp_path):
    with pytest.raises(UserError, match="text: the test text is empty"):
        write_text_dataset(tmp_path / "out", {**SPLITS, "test": ["", " "]}, "text")


def test_files_changed_after_preparation_are_refused(tmp_path):
    write_text_dataset(tmp_path / "out", SPLITS, "text")
    for name in ("train.txt", "vocabulary.txt"):
        path = tmp_path / "out" / name
        whole = path.read_bytes()
        path.write_bytes(whole.replace(b"ba", b"ko", 1))
        with pytest.raises(UserError, match=f"{name} has changed since it was prepared"):
            load_text(tmp_path / "out").split("train")
        with pytest.raises(UserError, match=f"{name} has changed"):  # a rerun does not pass over it either
            write_text_dataset(tmp_path / "out", SPLITS, "text")
        path.write_bytes(whole)
    (tmp_path / "out/valid.txt").unlink()
    with pytest.raises(UserError, match="valid.txt is missing"):
        load_text(tmp_path / "out").split("valid")
    assert len(load_text(tmp_path / "out").split("train"))  # what is whole can still be read
    with pytest.raises(UserError, match="no split 'dev'; it has train, valid, test"):
        load_text(tmp_path / "out").split("dev")


def test_checksums_are_those_of_the_files(tmp_path):
    write_text_dataset(tmp_path / "out", SPLITS, "text")
    info = json.loads((tmp_path / "out/dataset.json").read_text())
    assert set(info["sha256"]) == {"train.txt", "valid.txt", "test.txt", "vocabulary.txt", "tokenizer.json"}
    for name, checksum in info["sha256"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == checksum
    for key, other in (("fingerprint", "0" * 64), ("lowercase", True), ("checksum", "0" * 64)):
        (tmp_path / "out/dataset.json").write_text(json.dumps({**info, key: other}))
        with pytest.raises(UserError, match=r"dataset\.json is damaged .*\(it is not as it was written\); choose"):
            load_text(tmp_path / "out")
    del info["checksum"]  # as earlier versions wrote it
    (tmp_path / "out/dataset.json").write_text(json.dumps(info))
    load_text(tmp_path / "out")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 99, "splits": 1, "sha256": 1, "fingerprint": 1}'])
def test_a_damaged_or_newer_folder_is_refused(tmp_path, content):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(UserError, match="dataset.json is damaged or of another version"):
        load_text(tmp_path)


def test_folders_that_were_not_prepared_say_how_to(tmp_path):
    for folder, reason in ((tmp_path, "is not a prepared text"), (tmp_path / "absent", "does not exist")):
        with pytest.raises(UserError, match=rf"{folder} {reason}.*data_prep/ptb\.py --source"):
            load_text(folder)


# ---- streams cut for training ----------------------------------------------------------------------------------------


def test_columns_and_windows_are_the_readings_of_brute_force():
    generator = random.Random(0)
    for _ in range(60):
        size, batch, length = generator.randint(30, 300), generator.randint(1, 7), generator.randint(1, 9)
        stream = torch.randperm(1000)[:size]
        rows = size // batch
        if rows < length + 1:
            continue
        windows, read = Windows(columns(stream, batch), length), []
        for inputs, targets in windows:
            assert inputs.shape == targets.shape == (length, batch)
            read.append((inputs.tolist(), targets.tolist()))
        expected = []
        while (len(expected) + 1) * length + 1 <= rows:  # as many whole windows, with their targets, as fit
            first = len(expected) * length
            at = [[b * rows + first + t for b in range(batch)] for t in range(length)]
            expected.append((stream[torch.tensor(at)].tolist(), stream[torch.tensor(at) + 1].tolist()))
        assert read == expected and len(windows) == len(expected)


def test_windows_end_where_they_end():
    windows = Windows(columns(torch.arange(40), 4), 3)
    assert len(windows) == 3
    for index in (3, -1):
        with pytest.raises(IndexError):
            windows[index]


@pytest.mark.parametrize("batch", [0, -1, 6])
def test_a_batch_size_that_leaves_nothing_to_predict_is_refused(batch):
    with pytest.raises(UserError, match=f"batch size {batch}"):
        columns(torch.arange(11), batch)


def test_windows_longer_than_the_text_are_refused():
    data = columns(torch.arange(20), 4)
    assert len(Windows(data, 4)) == 1
    with pytest.raises(UserError, match="20 tokens is too short for batch size 4 and windows of 5, which need 24"):
        Windows(data, 5)
    with pytest.raises(UserError, match="windows of 0 time steps"):
        Windows(data, 0)


# ---- characters ------------------------------------------------------------------------------------------------------


def test_a_text_of_characters_is_every_character_of_it_and_the_ends_of_its_lines(tmp_path):
    assert write_text_dataset(tmp_path / "text", SPLITS, "made up", level="character")
    dataset = load_text(tmp_path / "text")
    lines = [" ".join(line.split()) for line in SPLITS["train"] if line.strip()]
    stream = dataset.split("train")
    assert len(stream) == sum(len(line) + 1 for line in lines)
    assert dataset.tokenizer.decode(stream.tolist()) == "\n".join(lines) + "\n"
    assert set(dataset.tokenizer.words) == {"<eos>"} | set("".join(lines))
    assert type(load_tokenizer(tmp_path / "text")) is CharacterTokenizer
    assert ", character level, vocabulary" in summary(dataset)
    assert not write_text_dataset(tmp_path / "text", SPLITS, "made up", level="character")  # nothing to do


def test_a_character_that_training_lacks_is_unknown_where_rare_ones_stand_for_it(tmp_path):
    splits = {"train": ["aab b", "a\u00e9"], "valid": ["ab\u00fc"], "test": ["b a"]}
    write_text_dataset(tmp_path / "text", splits, "made up", level="character")
    dataset = load_text(tmp_path / "text")
    assert dataset.tokenizer.words == ["<eos>", "<unk>", "a", "b"]  # the space and the é are there but once
    assert dataset.split("valid").tolist() == [2, 3, 1, 0] and dataset.info["splits"]["train"]["unknown"] == 2
    known = CharacterTokenizer.train(["ab"], None, False, "text")
    with pytest.raises(UserError, match="line 1: the character 'c' is not in the vocabulary"):
        known.encode(["abc"])
    with pytest.raises(UserError, match="a character vocabulary needs at least <eos>, <unk> and one character"):
        CharacterTokenizer.train(["ab"], 2, False, "text")
