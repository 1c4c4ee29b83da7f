"""Language models and lexicons of beam search: n-gram models in KenLM's forms, and the words that may come out."""

import gzip
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..data.archives import RATIO, ROOM
from ..data.lines import read_lines
from ..errors import UserError, require
from .ngram import SEPARATOR
from .tokens import LabelTokenizer

LM_FILE = "an ARPA file or a binary of KenLM"
LONGEST = 1_000_000  # characters of a line
LEAST = 0.2  # share of the words, or labels, that must be known


def arpa_words(path: str | os.PathLike) -> list[str]:
    """The words of an ARPA file, ``<s>``, ``</s>`` and ``<unk>`` left out.

    Raises:
        UserError: there is no such file, or it is no ARPA file.
    """
    path = Path(path)
    words, inside, read = [], False, 0
    try:
        most = ROOM + RATIO * path.stat().st_size
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            for line in iter(lambda: file.readline(LONGEST), ""):
                if (read := read + len(line)) > most or len(line) == LONGEST:
                    raise UserError(f"{path}: unpacks to far more than an ARPA file of its size does")
                if line.startswith("\\"):
                    if inside:
                        return [word for word in words if word.lower() not in ("<s>", "</s>", "<unk>")]
                    inside = line.strip() == "\\1-grams:"
                elif inside and line.strip():
                    words.append(line.split()[1])
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, IndexError) as error:
        raise UserError(f"{path}: cannot be read as an ARPA file ({str(error) or type(error).__name__})") from None
    raise UserError(f"{path}: not a whole ARPA file, there is no end of its single words")


def read_lexicon(
    lexicon: str | os.PathLike | Iterable[str], tokenizer: LabelTokenizer
) -> tuple[dict[str, list[int]], list[str]]:
    """The labels of every word, as the tokenizer writes it, and the words that it cannot spell."""
    if isinstance(lexicon, (str, os.PathLike)):
        try:
            given = [line.split()[0] for line in read_lines(Path(lexicon)) if line.split()]
        except UserError as error:
            raise UserError(f"{lexicon}: cannot be read as a lexicon ({error})") from None
    else:
        given = list(lexicon)
    words = dict.fromkeys(word for name in given if (word := tokenizer.normalize(name)))
    if not words:
        raise UserError("the lexicon holds no words that the tokenizer keeps")
    spellings, skipped = {}, []
    for word in words:
        if tokenizer.unknown(word):
            skipped.append(word)
        else:
            spellings[word] = tokenizer.encode(word).tolist()
    return spellings, skipped


def read_lm(path: str | os.PathLike, names: Sequence[str], over_labels: bool) -> tuple[Any, int]:
    """Flashlight's view of an n-gram model, to which word ``i`` is ``names[i]``, and how many of them it knows."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such language model; it should be {LM_FILE}")
    kenlm = require("kenlm", "beam")
    with open(path, "rb") as file:
        begin = file.read(200).lstrip().lower()
    if begin.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path}: this is a web page, not {LM_FILE}; download the file itself")
    config = kenlm.Config()
    config.show_progress, config.arpa_complain = False, kenlm.ARPALoadComplain.NONE
    try:
        model = kenlm.Model(str(path), config)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not {LM_FILE}, or not all of it, or of order 1 ({reason})") from None
    if over_labels and SEPARATOR in names and SEPARATOR not in model:
        raise UserError(
            f"{path}: has no {SEPARATOR!r}, the space of a model over characters; if it is over words, give a lexicon "
            "too, such as its own words"
        )
    if not over_labels and SEPARATOR in model:
        raise UserError(f"{path}: is over characters, since it has {SEPARATOR!r}; a lexicon needs one over words")
    known = sum(name in model for name in names)
    del model  # flashlight reads the file itself
    wrapper = require("flashlight.lib.text.decoder.kenlm", "beam")
    dictionary = require("flashlight.lib.text.dictionary", "beam")
    return wrapper.KenLM(str(path), dictionary.Dictionary(list(names))), known
