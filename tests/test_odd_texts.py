"""Texts as people have them: in UTF-16, on one line, with marks, separators and characters that are not seen."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from programs import load, refused

from seqssgd.data.lines import read_lines, split_lines
from seqssgd.data.text import load_text
from seqssgd.data.tokenizers import SentencePieceTokenizer, load_tokenizer
from seqssgd.data.transcripts import clean, no_text
from seqssgd.errors import UserError
from seqssgd.language.generation import generate
from seqssgd.models.lstm import LSTMLanguageModel
from seqssgd.speech.tokens import CharacterTokenizer, PieceTokenizer
from seqssgd.speech.tokens import load_tokenizer as load_labels

TEXT = load("data_prep/text.py")
LIBRISPEECH = load("data_prep/librispeech.py")


# ---- transcripts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, kept", [
    ("می\u200cخواهم", "می\u200cخواهم"),  # Persian: the non-joiner is spelling
    ("क्\u200dष", "क्\u200dष"),  # Devanagari: so is the joiner
    ("co\u00adoperate", "cooperate"), ("\ufeffA B\ufeff", "A B"), ("\u200fשלום\u200e", "שלום"),
    ("\u202aA\u202c \u2066B\u2069", "A B"), ("a\u200bb", "ab"), ("a\u2060b", "ab"), ("A\u00a0B\u3000C", "A B C"),
    ("A\u2028B", "A B"), ("\u200b \u00ad", ""), ("plain  text", "plain text"),
])  # fmt: skip
def test_format_characters_of_a_transcript_are_kept_or_removed_but_cost_no_row(text, kept):
    assert clean(text) == kept and no_text(kept) == []


def test_what_is_no_text_is_still_found():
    assert no_text(clean("a\x07b\ufffdc\ue000\ud800")) == ["\x07", "\ud800", "\ue000", "\ufffd"]


# ---- lines -----------------------------------------------------------------------------------------------------------

SEPARATED = "one\u2028two\u0085three\x0cfour\x1cfive\r\nsix\rseven\n"


def test_one_rule_for_the_ends_of_lines_by_hub_by_file_and_in_a_prompt(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert split_lines(SEPARATED) == ["one\u2028two\u0085three\x0cfour\x1cfive", "six", "seven"]
    text = SEPARATED * 20
    (tmp_path / "text.txt").write_bytes(text.encode())
    splits = {name: datasets.Dataset.from_dict({"text": [text]}) for name in ("train", "validation", "test")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "set")
    files = [word for name in ("train", "valid", "test") for word in (f"--{name}", str(tmp_path / "text.txt"))]
    TEXT.main([*files, "--out", str(tmp_path / "a")])
    TEXT.main(["--hub", str(tmp_path / "set"), "--out", str(tmp_path / "b")])
    streams = [load_text(tmp_path / name).split("train") for name in "ab"]
    assert (
        streams[0].tolist() == streams[1].tolist()
        and (tmp_path / "a/train.txt").read_bytes() == (tmp_path / "b/train.txt").read_bytes()
    )
    tokenizer = load_text(tmp_path / "a").tokenizer
    model = LSTMLanguageModel(tokenizer.vocab_size, 4, 1, 0.0)
    assert generate(model, tokenizer, "one\u2028two", 1, 0).startswith("one two")  # not two lines


def test_byte_order_marks_cost_no_entry(tmp_path):
    (tmp_path / "a.txt").write_text("first\nsecond\n", encoding="utf-8-sig")
    assert read_lines(tmp_path / "a.txt") == ["first", "second"]
    chapter = tmp_path / "train-clean-100/1/2"
    chapter.mkdir(parents=True)
    for number in (0, 1):
        (chapter / f"1-2-000{number}.flac").write_bytes(b"fLaC")
    (chapter / "1-2.trans.txt").write_text("1-2-0000 FIRST ONE\n1-2-0001 NEXT\u200b ONE\n", encoding="utf-8-sig")
    found, rejected = LIBRISPEECH.read_set("train-clean-100", tmp_path / "train-clean-100")
    assert [row.text for row in found] == ["FIRST ONE", "NEXT ONE"] and not rejected
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train.csv").write_text("text\nhello\n", encoding="utf-8-sig")
    from seqssgd.data.hub import load_hub

    assert load_hub(str(tmp_path / "set"))["train"].column_names == ["text"]


NAMED = {"utf-16": "UTF-16", "utf-32": "UTF-32"} | {
    f"utf-{bits}-{order}e": f"UTF-{bits}{order.upper()}E" for bits in (16, 32) for order in "lb"
}


@pytest.mark.parametrize("encoding, named", NAMED.items())
def test_text_in_utf_16_gets_the_recipe_for_it(encoding, named, tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes("the cat sat on the mat\n".encode(encoding) * 9)
    said = refused(capsys, TEXT.main, "--train", tmp_path / "a.txt", "--out", tmp_path / "out")
    assert f"iconv -f {named} -t UTF-8" in said
    (tmp_path / "b.txt").write_bytes(b"what ISO-8859-1 makes of it\n" * 9 + b"a\0b")
    assert "a zero byte" in refused(capsys, TEXT.main, "--train", tmp_path / "b.txt", "--out", tmp_path / "out")


def test_a_zero_byte_of_a_data_set_is_named_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a b"] * 50 + ["c\0d"]})}).save_to_disk(
        tmp_path / "set"
    )
    said = refused(capsys, TEXT.main, "--hub", tmp_path / "set", "--out", tmp_path / "out")
    assert "holds a zero byte" in said and not (tmp_path / "out").exists()


def test_a_book_on_one_line_is_cut_by_its_words(tmp_path, capsys):
    words = [f"w{number % 97}" for number in range(20_000)]
    (tmp_path / "text8").write_text(" ".join(words))
    TEXT.main(["--train", str(tmp_path / "text8"), "--out", str(tmp_path / "out")])
    assert "cut from its words" in capsys.readouterr().out
    found = [(tmp_path / f"out/{name}.txt").read_text().split() for name in ("train", "valid", "test")]
    assert [len(part) for part in found] == [18_000, 1_000, 1_000] and sum(found, []) == words


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from seqssgd.data.hub import open_parquet

    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "a.parquet")
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file/cache")
    with pytest.raises(UserError, match=r"cannot be opened: .*file/cache.*set HF_HOME"):
        open_parquet("set", [tmp_path / "a.parquet"], "rows")


# ---- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symbols", ["-\n", "\n", "é\u2028", "\t", "\u00a0", "\ud800", "\r"])
def test_symbols_that_could_not_be_written_back_are_refused_before_training(symbols):
    with pytest.raises(UserError, match=r"cannot be a symbol: .*tokens\.symbols"):
        CharacterTokenizer.train(symbols=symbols)


def test_every_label_set_that_is_accepted_comes_back(tmp_path):
    for symbols in ("-.", "é\u200c\u0301", "<>_|#\\\"'", "\u2581\u2585", "日本語𝄞"):
        tokenizer = CharacterTokenizer.train(symbols=symbols, case="keep")
        tokenizer.save(tmp_path)
        again = load_labels(tmp_path)
        assert again.labels == tokenizer.labels and again.fingerprint == tokenizer.fingerprint


def test_sentencepiece_learns_from_lines_with_its_own_mark_for_the_unknown(tmp_path):
    lines = [f"rare{number % 7} \u2585 here {'abcdefg'[number % 7]}zu" for number in range(50)] + ["common words"] * 50
    tokenizer = SentencePieceTokenizer.train(lines, 30, False, "the text")
    stream = tokenizer.encode(lines)
    assert not bool((stream == tokenizer.unk_id).any())  # every character is covered: h occurs with U+2585 alone
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).encode(lines).tolist() == stream.tolist()
    labels = PieceTokenizer.train(lines, 30, "keep")
    assert all((labels.encode(line) > 1).all() for line in lines)
    assert labels.decode(labels.encode(lines[0])) == lines[0]


@pytest.mark.parametrize("size", [0, 1, 2, -5])
def test_impossible_numbers_of_pieces_are_refused_in_one_line(size, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("some words of a text\n" * 40)
    options = ["--train", tmp_path / "a.txt", "--out", tmp_path / "out", "--level", "sentencepiece"]
    assert f"--vocab-size {size}" in refused(capsys, TEXT.main, *options, f"--vocab-size={size}")
    with pytest.raises(UserError, match=f"vocab_size {size}"):
        PieceTokenizer.train(["some words"], size)


IN_ASCII = r"""
import sys
from pathlib import Path
from seqssgd.data.preparing import rejections
from seqssgd.data.shards import Rejected
sys.path.insert(0, sys.argv[2])
from test_speech_writer import SETS
from seqssgd.data.speech_writer import write_speech_dataset
out = Path(sys.argv[1])
assert open(out.parent / "probe", "w").encoding.lower() not in ("utf-8", "utf8")
left_out = [Rejected("train", "\u65e5", "Gr\xf6\xdfe\u2028", "is no \u672c")]
write_speech_dataset(out, SETS, "Gr\xf6\xdfe", left_out)
assert "is no \u672c" in rejections(out)
"""


def test_what_is_written_is_utf_8_in_every_locale(tmp_path):
    environment = {**os.environ, "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", IN_ASCII, str(tmp_path / "out"), str(Path(__file__).parent)]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/dataset.json").read_bytes().decode("utf-8"))["name"] == "Größe"
    assert "日" in (tmp_path / "out/rejected.jsonl").read_bytes().decode("utf-8")


def test_no_program_leaves_the_encoding_of_a_text_file_to_the_locale():
    """open, read_text and write_text say it, or read bytes."""
    root, found = Path(__file__).parents[1], []
    for folder in ("seqssgd", "data_prep", "recipes"):
        for path in sorted((root / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call):
                    continue
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                given = [
                    a.value for a in [*node.args, *(k.value for k in node.keywords)] if isinstance(a, ast.Constant)
                ]
                if name == "open" and isinstance(node.func, ast.Name):
                    binary = any(isinstance(value, str) and "b" in value for value in given)
                elif name in ("read_text", "write_text") and isinstance(node.func, ast.Attribute):
                    binary = False
                else:
                    continue
                if not binary and "encoding" not in [keyword.arg for keyword in node.keywords]:
                    found.append(f"{path.relative_to(root)}:{node.lineno}")
    assert found == []
