"""Tokenizers of language models: lines of text in, one stream of token ids out, and back.

All kinds have ``encode``, ``decode``, ``vocab_size``, ``eos_id``, ``unk_id`` and ``save``; :func:`load_tokenizer`
reads any back. Every line that is not blank ends with the token ``<eos>``.
"""

import contextlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seqssgd.documents import NotTaken, parse_json
from seqssgd.errors import UserError, require
from seqssgd.files import atomic_path

EOS, UNK = "<eos>", "<unk>"
RESERVED = "\u2585"  # which sentencepiece writes for what it does not know
_TO_SPACES = dict.fromkeys(map(ord, RESERVED), " ")
SETTINGS = "tokenizer.json"  # beside the file with the tokens: the level, and whether text is lowercased


class WordTokenizer:
    """One token per word, where words are what whitespace separates.

    Args:
        words: the vocabulary in the order of the ids. It holds ``<eos>``; if it holds ``<unk>``, that token
            stands for every word outside the vocabulary.
        lowercase: whether text is lowercased first.
    """

    level = "word"
    file = "vocabulary.txt"

    def __init__(self, words: Sequence[str], lowercase: bool = False) -> None:
        self.words = list(words)
        self.lowercase = lowercase
        self.ids = {word: i for i, word in enumerate(self.words)}
        if EOS not in self.ids or len(self.ids) != len(self.words):
            raise UserError(f"a vocabulary holds {EOS} and no word twice; this one does not: prepare the text again")
        self.vocab_size = len(self.words)
        self.eos_id = self.ids[EOS]
        self.unk_id = self.ids.get(UNK)

    def encode(self, lines: Iterable[str], name: str = "text") -> Tensor:
        """Turns lines into a 1-D int64 tensor of ids, ``<eos>`` after every line; blank lines are skipped.

        Raises:
            UserError: a word outside a vocabulary without ``<unk>``, or the word ``<eos>`` itself. The message
                names the word, its line (from 1) and the text's ``name``.
        """
        ids: list[int] = []
        for number, line in sentences(lines, self.lowercase, name):
            words = self.tokens(line)
            try:
                ids.extend([self.ids[word] for word in words])
            except KeyError as error:
                if self.unk_id is None:
                    raise UserError(
                        f"{name}, line {number}: the {self.level} {error.args[0]!r} is not in the vocabulary, which "
                        f"has no {UNK}; change it, or prepare the training text with --vocab-size "
                        f"below {self.vocab_size:,}, so that rare {self.level}s become {UNK}"
                    ) from None
                ids.extend([self.ids.get(word, self.unk_id) for word in words])
            ids.append(self.eos_id)
        return torch.tensor(ids, dtype=torch.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids: words joined by spaces, ``<eos>`` as the end of a line."""
        lines = " ".join(self.words[i] if i != self.eos_id else "\n" for i in ids)
        return lines.replace(" \n", "\n").replace("\n ", "\n")

    @staticmethod
    def tokens(line: str) -> list[str]:
        """The tokens of a line, as they are written."""
        return line.split()

    def save(self, folder: Path) -> None:
        """Writes ``tokenizer.json`` and ``vocabulary.txt`` into an existing folder."""
        content = "".join(f"{word}\n" for word in self.words).encode()
        save_tokenizer(Path(folder), type(self), {"lowercase": self.lowercase}, content)

    @classmethod
    def train(cls, lines: Iterable[str], vocab_size: int | None, lowercase: bool, name: str) -> "WordTokenizer":
        """The ``vocab_size`` most frequent tokens of the lines, ``<eos>`` and ``<unk>`` included; all for ``None``.

        ``<unk>`` is in the vocabulary if a word was cut off (or if the text itself holds it). The order is
        ``<eos>``, ``<unk>``, then by falling frequency; words that are equally frequent are in code-point order.
        """
        counts = Counter(word for _, line in sentences(lines, lowercase, name) for word in cls.tokens(line))
        known = [UNK] if UNK in counts else []
        ranked = sorted(counts.keys() - {UNK}, key=lambda word: (-counts[word], word))
        if vocab_size is not None and vocab_size < 3:
            least = f"{EOS}, {UNK} and one {cls.level}"
            raise UserError(f"--vocab-size {vocab_size}: a {cls.level} vocabulary needs at least {least}")
        if vocab_size is not None and vocab_size < 1 + len(known) + len(ranked):
            known, ranked = [UNK], ranked[: vocab_size - 2]
        return cls([EOS, *known, *ranked], lowercase)


class CharacterTokenizer(WordTokenizer):
    """One token per character, the single space between words among them; else as :class:`WordTokenizer`.

    >>> tokenizer = CharacterTokenizer.train(["a b", "ba"], None, False, "text")
    >>> tokenizer.words, tokenizer.encode(["b a"]).tolist()
    (['<eos>', 'a', 'b', ' '], [2, 3, 1, 0])
    >>> tokenizer.decode([2, 3, 1, 0, 1])
    'b a\\na'
    """

    level = "character"

    @staticmethod
    def tokens(line: str) -> list[str]:
        """The characters of a line."""
        return list(line)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids, ``<eos>`` as the end of a line."""
        return "".join(self.words[i] if i != self.eos_id else "\n" for i in ids)


class SentencePieceTokenizer:
    """Word pieces of a sentencepiece model (Kudo and Richardson 2018), with ``<eos>`` after every line.

    Args:
        model: the serialized sentencepiece model.
        lowercase: whether text is lowercased first.
    """

    level = "sentencepiece"
    file = "tokenizer.model"

    def __init__(self, model: bytes, lowercase: bool = False) -> None:
        sentencepiece = require("sentencepiece")
        self.model = model
        self.lowercase = lowercase
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise UserError(f"{self.file} is not a sentencepiece model: prepare the text again") from None
        self.vocab_size = self.processor.get_piece_size()
        self.eos_id = self.processor.eos_id()
        self.unk_id = self.processor.unk_id()

    def encode(self, lines: Iterable[str], name: str = "text") -> Tensor:
        """Turns lines into a 1-D int64 tensor of ids, ``<eos>`` after every line; blank lines are skipped.

        A character that the training text lacked becomes the unknown token.

        Raises:
            UserError: the text holds ``<eos>`` itself; the message names the line (from 1) and the ``name``.
        """
        ids: list[int] = []
        for _, line in sentences(lines, self.lowercase, name):
            ids.extend(self.processor.encode(line))
            ids.append(self.eos_id)
        return torch.tensor(ids, dtype=torch.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids, ``<eos>`` as the end of a line."""
        lines: list[list[int]] = [[]]
        for i in ids:
            if i == self.eos_id:
                lines.append([])
            else:
                lines[-1].append(int(i))
        return "\n".join(self.processor.decode(line) for line in lines)

    def save(self, folder: Path) -> None:
        """Writes ``tokenizer.json`` and ``tokenizer.model`` into an existing folder."""
        save_tokenizer(Path(folder), SentencePieceTokenizer, {"lowercase": self.lowercase}, self.model)

    @classmethod
    def train(
        cls, lines: Iterable[str], vocab_size: int | None, lowercase: bool, name: str
    ) -> "SentencePieceTokenizer":
        """Fits a unigram model of ``vocab_size`` pieces that covers every character of the lines as it stands."""
        if vocab_size is None:
            raise UserError("sentencepiece needs to be told the number of pieces: add --vocab-size, for example 5000")
        text = [line for _, line in sentences(lines, lowercase, name)]
        special = {"unk_id": 0, "unk_piece": "<unknown>", "eos_id": 1, "eos_piece": EOS}
        # <unknown> leaves <unk>, which many corpora write, an ordinary word
        return cls(train_sentencepiece(text, vocab_size, name, **special), lowercase)


Tokenizer = WordTokenizer | SentencePieceTokenizer
TOKENIZERS = {kind.level: kind for kind in (WordTokenizer, CharacterTokenizer, SentencePieceTokenizer)}


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Reads back the tokenizer that ``save`` wrote into a folder.

    Raises:
        UserError: the folder holds no tokenizer, or a damaged one.
    """
    with damage_noticed(folder, "prepare the text again"):
        kind, settings, data = read_tokenizer(folder, TOKENIZERS)
        content: Any = data if kind is SentencePieceTokenizer else data.decode().split("\n")[:-1]
        return kind(content, bool(settings["lowercase"]))


def sentences(lines: Iterable[str], lowercase: bool, name: str = "text") -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with single spaces between words, and their numbers from 1.

    Byte-order marks are dropped: they lie within a text that was joined from several files.

    Raises:
        UserError: a line holds ``<eos>``, or a zero byte.
    """
    for number, line in enumerate(lines, 1):
        line = " ".join((line.lower() if lowercase else line).replace("\ufeff", "").split())
        if EOS in line:
            raise UserError(f"{name}, line {number}: {EOS} stands for the end of a line; remove it from the text")
        if "\0" in line:
            raise UserError(f"{name}, line {number}: it holds a zero byte, which is no text; remove it")
        if line:
            yield number, line


def train_sentencepiece(text: list[str], vocab_size: int, name: str, setting: str = "--vocab-size", **options) -> bytes:
    """A unigram model of ``vocab_size`` pieces that covers every character of the lines of ``text`` as it stands.

    ``options`` are sentencepiece's, of the special pieces above all; those that are not named there do not exist.

    Raises:
        UserError: the text allows no such number of pieces; the message names the ``setting``, text and limit.
    """
    sentencepiece = require("sentencepiece")
    if vocab_size < 3:
        raise UserError(f"{setting} {vocab_size}: word pieces need at least 3, two of which are special")
    reserved = [character for character in RESERVED if any(character in line for line in text)]
    if reserved:  # lines that hold these would be left out; as pieces of their own they need not be learned
        options["user_defined_symbols"] = reserved
        text = [part for line in text if (part := " ".join(line.translate(_TO_SPACES).split()))] or text
    model = io.BytesIO()
    settings: dict[str, Any] = {"bos_id": -1, "eos_id": -1, "pad_id": -1} | options
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text),
            model_writer=model,
            vocab_size=vocab_size,
            character_coverage=1.0,
            normalization_rule_name="identity",
            max_sentence_length=max(10, max(len(line.encode()) for line in text) + 1),  # longer lines are ignored
            minloglevel=2,
            **settings,
        )
    except RuntimeError as error:
        limit = re.search(r"value <= (\d+)|(\d+) vs (\d+)", str(error))
        if limit is None:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise UserError(f"sentencepiece finds no pieces in {name}: {reason}") from None
        most, _, fewest = limit.groups()
        mend = f"this text allows at most {most}" if most else f"its characters alone need more than {fewest}"
        raise UserError(f"{setting} {vocab_size} does not suit {name}: {mend}") from None
    return model.getvalue()


def save_tokenizer(folder: Path, kind: type, settings: Mapping[str, object], content: bytes) -> None:
    """Writes ``tokenizer.json``, with the settings, and the file of that kind of tokenizer."""
    settings = {"level": kind.level, **settings}
    for name, data in ((kind.file, content), (SETTINGS, f"{json.dumps(settings)}\n".encode())):
        file = folder / name
        if not file.is_file() or file.read_bytes() != data:  # a finished run that is called again stays untouched
            with atomic_path(file) as path:
                path.write_bytes(data)


def read_tokenizer(folder: str | Path, kinds: Mapping[str, type]) -> tuple[Any, dict, bytes]:
    """The kind of tokenizer in a folder, its settings and the contents of its file."""
    settings = parse_json((Path(folder) / SETTINGS).read_bytes())
    kind: Any = kinds[settings["level"]]
    return kind, settings, (Path(folder) / kind.file).read_bytes()


@contextlib.contextmanager
def damage_noticed(folder: str | Path, mend: str) -> Iterator[None]:
    """Whatever goes wrong in reading a tokenizer becomes a ``UserError`` that says what to do about it."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: {folder} does not hold a tokenizer") from None
    except UserError:
        raise
    except NotTaken as error:
        raise UserError(f"the tokenizer in {folder} is damaged ({SETTINGS}: {error}); {mend}") from None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise UserError(f"the tokenizer in {folder} is damaged ({SETTINGS}); {mend}") from None
