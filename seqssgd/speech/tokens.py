"""Tokenizers of speech recognition: a transcript in, one label per character or word piece out, and back.

Label 0 is the blank of connectionist temporal classification (Graves et al. 2006) and stands in no transcript. Both
kinds have ``encode``, ``decode``, ``normalize``, ``labels``, ``vocab_size`` and ``save``; :func:`load_tokenizer` reads
either back.
"""

import hashlib
import json
import re
import string
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from seqssgd.data.tokenizers import damage_noticed, read_tokenizer, save_tokenizer, train_sentencepiece
from seqssgd.errors import UserError, require

BLANK, SPACE, UNKNOWN = "<blank>", "<space>", "<unknown>"
CASES = {"upper": str.upper, "lower": str.lower, "keep": str}
_LETTERS = {"upper": string.ascii_uppercase, "lower": string.ascii_lowercase, "keep": string.ascii_letters}
_TAG = re.compile(r"(?<!\S)<\w+>(?!\S)")  # <NOISE>, <SPOKEN_NOISE>, <UNK>: what was heard and is no word


class LabelTokenizer:
    """What both kinds share: how a transcript is cleaned, and the checks.

    Args:
        labels: how every label is written, the blank first.
        case: ``"upper"``, ``"lower"`` or ``"keep"``; transcripts are brought to it, and texts come out in it.
        drop: characters that are taken out of transcripts.
    """

    blank_id = 0
    level: str
    file: str
    _known: Collection[str]  # the characters that have labels

    def __init__(self, labels: Sequence[str], case: str, drop: str) -> None:
        if case not in CASES:
            raise UserError(f"case {case!r} is not one of {', '.join(CASES)}")
        self.labels, self.case, self.drop = list(labels), case, drop
        self.vocab_size = len(self.labels)

    def normalize(self, text: str) -> str:
        """What of a transcript is to be recognised, which is what ``decode`` should give.

        Words in angle brackets, such as ``<NOISE>``, and the characters to drop are left out; words are separated by
        single spaces.
        """
        text = CASES[self.case](_TAG.sub(" ", text))
        return " ".join(text.translate(dict.fromkeys(map(ord, self.drop))).split())

    def encode(self, text: str, name: str = "the text") -> Tensor:
        """The labels of a transcript, 1-D int64.

        Raises:
            UserError: it has characters that the tokenizer does not know; the message names them and the ``name``.
        """
        return self.encode_all([text], [name])[0]

    def encode_all(self, texts: Iterable[str], names: Iterable[str]) -> list[Tensor]:
        """The labels of many transcripts; one error for all unknown characters, with the first name that has each."""
        encoded, unknown = [], {}
        for text, name in zip(texts, names, strict=True):
            text = self.normalize(text)
            encoded.append(torch.tensor(self._encode(text), dtype=torch.int64))
            for character in sorted(set(text).difference(self._known)):
                unknown.setdefault(character, name)
        if unknown:
            shown = [
                f"{character!r} (U+{ord(character):04X}) in {name}" for character, name in list(unknown.items())[:5]
            ]
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise UserError(
                f"characters that the tokenizer does not know: {', '.join(shown)}{more}; "
                "add them to its symbols, drop them, or mend the transcripts"
            )
        return encoded

    def unknown(self, text: str) -> list[str]:
        """The characters of a transcript that the tokenizer does not know, in order."""
        return sorted(set(self.normalize(text)).difference(self._known))

    @property
    def fingerprint(self) -> str:
        """Differs between tokenizers that may give one text other labels, or one label another text."""
        settings = json.dumps([self.level, self.case, self.drop]).encode()
        return hashlib.sha256(settings + self._content()).hexdigest()

    def decode(self, labels: Iterable[int]) -> str:
        """The text of labels, what has none left out, words separated by single spaces."""
        raise NotImplementedError

    def _encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def _content(self) -> bytes:
        """The contents of :attr:`file`."""
        raise NotImplementedError

    def save(self, folder: str | Path) -> None:
        """Writes ``tokenizer.json`` and a file with the labels into an existing folder."""
        save_tokenizer(Path(folder), type(self), {"case": self.case, "drop": self.drop}, self._content())


class CharacterTokenizer(LabelTokenizer):
    """One label per character, the space included.

    Args:
        characters: those after the blank, in the order of their labels; the space is one of them.
        case: see :class:`LabelTokenizer`.
        drop: see :class:`LabelTokenizer`.

    >>> tokenizer = CharacterTokenizer.train()
    >>> tokenizer.vocab_size, tokenizer.encode("<NOISE> it's a").tolist()
    (29, [11, 22, 2, 21, 1, 3])
    >>> tokenizer.decode([11, 22, 2, 21, 1, 3])
    "IT'S A"
    """

    level = "character"
    file = "labels.txt"

    def __init__(self, characters: Sequence[str], case: str = "upper", drop: str = "") -> None:
        characters = list(characters)
        if " " not in characters or len({*characters}) < len(characters) or any(len(c) != 1 for c in characters):
            raise UserError("a character tokenizer needs single characters, a space among them, and none twice")
        if wrong := [c for c in characters if c != " " and (c.isspace() or "\ud800" <= c <= "\udfff")]:
            raise UserError(f"{ascii(wrong[0])} cannot be a symbol: transcripts are words between single spaces, in "
                            "UTF-8; leave it out of tokens.symbols")  # fmt: skip
        super().__init__([BLANK, *characters], case, drop)
        self.ids = {character: i for i, character in enumerate(self.labels) if i}
        self._known = self.ids.keys()

    @classmethod
    def train(
        cls, texts: Iterable[str] = (), case: str = "upper", symbols: str | None = "", drop: str = ""
    ) -> "CharacterTokenizer":
        """Space, apostrophe, the 26 letters, and further symbols.

        Args:
            texts: the training transcripts.
            case: see :class:`LabelTokenizer`.
            symbols: further characters; ``None``: whatever else the transcripts hold, in code-point order.
            drop: see :class:`LabelTokenizer`.
        """
        base = [character for character in " '" + _LETTERS.get(case, "") if character not in drop]
        further: Iterable[str] = symbols or ()
        if symbols is None:
            cleaner = cls([" "], case, drop)
            further = sorted({character for text in texts for character in cleaner.normalize(text)})
        return cls([*base, *(c for c in dict.fromkeys(further) if c not in base)], case, drop)

    def decode(self, labels: Iterable[int]) -> str:
        """The text of labels, blanks left out, words separated by single spaces."""
        return " ".join("".join(self.labels[i] for i in labels if i).split())

    def _encode(self, text: str) -> list[int]:
        return [self.ids.get(character, 0) for character in text]

    def _content(self) -> bytes:
        return "".join(f"{SPACE if label == ' ' else label}\n" for label in self.labels).encode()

    @classmethod
    def _restore(cls, content: bytes, case: str, drop: str) -> "CharacterTokenizer":
        blank, *labels = content.decode().split("\n")[:-1]
        if blank != BLANK:
            raise KeyError(blank)
        return cls([" " if label == SPACE else label for label in labels], case, drop)


class PieceTokenizer(LabelTokenizer):
    """Word pieces of a sentencepiece model (Kudo and Richardson 2018) whose piece 0 is the blank.

    Args:
        model: the serialized sentencepiece model.
        case: see :class:`LabelTokenizer`.
        drop: see :class:`LabelTokenizer`.
    """

    level = "pieces"
    file = "tokenizer.model"

    def __init__(self, model: bytes, case: str = "upper", drop: str = "") -> None:
        sentencepiece = require("sentencepiece")
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise UserError(f"{self.file} is not a sentencepiece model") from None
        if self.processor.pad_id() != self.blank_id:
            raise UserError(f"{self.file} is no model for speech: its piece 0 is not the blank")
        self.model = model
        pieces = [self.processor.id_to_piece(i) for i in range(self.processor.get_piece_size())]
        super().__init__(pieces, case, drop)
        self._known = {character for i, piece in enumerate(pieces) if i > 1 for character in piece} - {"▁"} | {" "}

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, case: str = "upper", drop: str = "") -> "PieceTokenizer":
        """A model of ``vocab_size`` labels, the blank and sentencepiece's unknown piece included.

        Raises:
            UserError: the transcripts allow no such number, or hold no text.
        """
        cleaner = LabelTokenizer([], case, drop)
        lines = [line for text in texts if (line := cleaner.normalize(text))]
        if not lines:
            raise UserError("word pieces cannot be found in transcripts without text")
        special = {"pad_id": 0, "pad_piece": BLANK, "unk_id": 1, "unk_piece": UNKNOWN}
        return cls(train_sentencepiece(lines, vocab_size, "the transcripts", "vocab_size", **special), case, drop)

    def decode(self, labels: Iterable[int]) -> str:
        """The text of labels, blanks and the unknown piece left out, words separated by single spaces."""
        return " ".join(self.processor.decode([int(i) for i in labels if i > 1]).split())

    def _encode(self, text: str) -> list[int]:
        return self.processor.encode(text)

    def _content(self) -> bytes:
        return self.model

    @classmethod
    def _restore(cls, content: bytes, case: str, drop: str) -> "PieceTokenizer":
        return cls(content, case, drop)


TOKENIZERS = {kind.level: kind for kind in (CharacterTokenizer, PieceTokenizer)}


def load_tokenizer(folder: str | Path) -> CharacterTokenizer | PieceTokenizer:
    """Reads back the tokenizer that ``save`` wrote into a folder.

    Raises:
        UserError: the folder holds no tokenizer of speech, or a damaged one.
    """
    with damage_noticed(folder, "use that of another run, or train again"):
        kind, settings, content = read_tokenizer(folder, TOKENIZERS)
        return kind._restore(content, settings["case"], settings["drop"])


def check_labels(targets: Sequence[Tensor], output_size: int, names: Sequence[str]) -> None:
    """Makes sure that all labels lie in 1 … ``output_size`` - 1; ``ctc_loss`` on a CPU accepts any others in silence.

    Raises:
        UserError: one does not; the message has the name of its utterance.
    """
    for labels, name in zip(targets, names, strict=True):
        if len(labels) and not (0 < int(labels.min()) and int(labels.max()) < output_size):
            wrong = next(int(label) for label in labels if not 0 < label < output_size)
            raise UserError(f"{name} has the label {wrong}; those of a model with {output_size} outputs are 1 to "
                            f"{output_size - 1}, and 0 is the blank")  # fmt: skip


def required_frames(labels: Tensor) -> int:
    """The fewest output frames that can spell the labels: U, and a blank between each two equal neighbours."""
    return len(labels) + int((labels[1:] == labels[:-1]).sum())
