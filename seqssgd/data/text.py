"""Prepared text: a folder with one sentence per line in ``train.txt``, ``valid.txt`` and ``test.txt``, the tokenizer,
and ``dataset.json`` (counts, and a checksum of every file). The streams of tokens read from it, cut for training.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from seqssgd.data import prepared
from seqssgd.data.lines import read_lines as read_lines
from seqssgd.data.tokenizers import EOS, TOKENIZERS, UNK, Tokenizer, WordTokenizer, load_tokenizer, sentences
from seqssgd.errors import UserError, require

SPLITS = ("train", "valid", "test")
KIND = "text"  # of data


class TextDataset:
    """A prepared text: ``info`` (the contents of ``dataset.json``), ``tokenizer``, and the streams of its splits."""

    def __init__(self, folder: Path, info: dict, tokenizer: Tokenizer) -> None:
        self.folder, self.info, self.tokenizer = folder, info, tokenizer

    def split(self, name: str) -> Tensor:
        """The stream of ``"train"``, ``"valid"`` or ``"test"``: a 1-D int64 tensor with ``<eos>`` after every line.

        Raises:
            UserError: the split is missing or empty, or its file is not the one that was prepared.
        """
        if name not in self.info["splits"]:
            raise UserError(f"{self.folder} has no split {name!r}; it has {', '.join(self.info['splits'])}")
        prepared.check_files(self.folder, self.info, [f"{name}.txt"])
        return self.tokenizer.encode(read_lines(self.folder / f"{name}.txt"), f"{self.folder / name}.txt")


def load_text(folder: str | Path) -> TextDataset:
    """Opens a folder that ``data_prep/ptb.py`` or ``data_prep/text.py`` wrote.

    Raises:
        UserError: no such folder, a folder that was not prepared, or one whose tokenizer was changed afterwards.
    """
    folder = Path(folder)
    info = prepared.read_info(folder, KIND)
    if info is None:
        what = "does not exist" if not folder.exists() else "is not a prepared text (it has no dataset.json)"
        raise UserError(
            f"{folder} {what}; write it with: python data_prep/ptb.py --source PTB --out {folder}, "
            f"or python data_prep/text.py --train FILE --out {folder}"
        )
    prepared.check_files(folder, info, [name for name in info["sha256"] if name.removesuffix(".txt") not in SPLITS])
    return TextDataset(folder, info, load_tokenizer(folder))


def write_text_dataset(
    out: str | Path,
    splits: Mapping[str, Sequence[str]],
    name: str,
    level: str = "word",
    vocab_size: int | None = None,
    lowercase: bool = False,
) -> bool:
    """Prepares a text: makes the tokenizer from the training lines and writes everything into the folder ``out``.

    The folder is built beside ``out`` and renamed, so ``out`` is never half-written. If ``out`` already is this
    text, prepared with these settings, nothing is done.

    Args:
        out: the folder to write; it may exist if it is empty.
        splits: lines of ``"train"``, ``"valid"`` and ``"test"``; blank lines are dropped.
        name: what the text is called in messages.
        level: ``"word"``, ``"character"`` or ``"sentencepiece"``.
        vocab_size: number of different tokens, ``<eos>`` and ``<unk>`` included. ``None`` but for pieces: every
            training word or character, or, if another split holds one that training lacks, those seen at least twice.
        lowercase: whether text is lowercased, here and wherever the tokenizer is used.

    Returns:
        Whether anything was written; ``False`` if the text was already there.

    Raises:
        UserError: ``out`` holds something else or cannot be written; a split without text; an impossible
            ``vocab_size``; a word outside the vocabulary if that has no ``<unk>``.
    """
    out = Path(out).resolve()
    fingerprint = _fingerprint(splits, prepared.FORMAT, level, vocab_size, lowercase)
    if prepared.is_prepared(out, fingerprint, KIND):
        return False
    for split in SPLITS:
        if not any(line.strip() for line in splits[split]):
            raise UserError(f"{name}: the {split} text is empty; give at least one line")
    tokenizer, streams = _tokenize(splits, name, level, vocab_size, lowercase)
    counts = {}
    for split, lines in splits.items():
        full = sum(1 for line in lines if line.strip())
        unknown = 0 if tokenizer.unk_id is None else int((streams[split] == tokenizer.unk_id).sum())
        blank = len(lines) - full
        counts[split] = {"lines": full, "tokens": len(streams[split]), "unknown": unknown, "blank_lines": blank}
    info = {"name": name, "level": level, "lowercase": lowercase, "vocab_size": tokenizer.vocab_size}
    info |= {"splits": counts, "fingerprint": fingerprint}

    def fill(folder: Path) -> None:
        for split, lines in splits.items():
            text = "".join(f"{line}\n" for _, line in sentences(lines, tokenizer.lowercase))
            (folder / f"{split}.txt").write_bytes(text.encode())
        tokenizer.save(folder)

    require("seqssgd.data.preparing").write_folder(out, info, fill)
    return True


def summary(dataset: TextDataset) -> str:
    """What a prepared text holds, one line per split: lines, tokens, and what was dropped or is unknown."""
    rows = [
        f"{dataset.folder}: {dataset.info['name']}, {dataset.info['level']} level, "
        f"vocabulary {dataset.tokenizer.vocab_size:,}"
    ]
    for split, count in dataset.info["splits"].items():
        row = f"  {split:<6}{count['lines']:>11,} lines {count['tokens']:>13,} tokens"
        if count["unknown"]:
            row += f"   {100 * count['unknown'] / count['tokens']:.2f} % unknown"
        if count["blank_lines"]:
            row += f"   {count['blank_lines']:,} blank lines dropped"
        rows.append(row)
    return "\n".join(rows)


def columns(stream: Tensor, batch_size: int) -> Tensor:
    """Cuts a stream into ``batch_size`` contiguous columns, read in parallel (Zaremba et al. 2014).

    Args:
        stream: (N,) token ids.
        batch_size: number of columns B.

    Returns:
        (N // B, B), time first: column b holds tokens b·(N // B), b·(N // B) + 1, …; the tail is left out.

    Raises:
        UserError: fewer than two tokens per column, so that there would be nothing to predict.
    """
    if batch_size < 1:
        raise UserError(f"batch size {batch_size}: it must be at least 1")
    length = len(stream) // batch_size
    if length < 2:
        raise UserError(
            f"a text of {len(stream):,} tokens is too short for batch size {batch_size}, which needs at least "
            f"{2 * batch_size:,}; use a smaller batch size or more text"
        )
    return stream[: length * batch_size].view(batch_size, length).t().contiguous()


class Windows(Sequence[tuple[Tensor, Tensor]]):
    """The minibatches of truncated back-propagation through time: windows of ``length`` rows, in order.

    Window i is a pair (inputs, targets), both (T, B): rows i·T … i·T + T − 1 of the columns, and the rows one later.
    Rows at the end that fill no window are left out, as in Zaremba et al.'s program.

    Args:
        data: (rows, B) token ids, from :func:`columns`.
        length: time steps T of a window.

    Raises:
        UserError: fewer than T + 1 rows.
    """

    def __init__(self, data: Tensor, length: int) -> None:
        if length < 1:
            raise UserError(f"windows of {length} time steps: there must be at least 1")
        rows, batch_size = data.shape
        if rows < length + 1:
            raise UserError(
                f"a text of about {rows * batch_size:,} tokens is too short for batch size {batch_size} and windows of "
                f"{length}, which need {(length + 1) * batch_size:,}; make either smaller or use more text"
            )
        self.data, self.length = data, length

    def __len__(self) -> int:
        return (len(self.data) - 1) // self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        first = index * self.length
        return self.data[first : first + self.length], self.data[first + 1 : first + 1 + self.length]


def _tokenize(
    splits: Mapping[str, Sequence[str]], name: str, level: str, vocab_size: int | None, lowercase: bool
) -> tuple[Tokenizer, dict[str, Tensor]]:
    """The tokenizer that the training lines give, and the stream of every split."""
    names = {split: f"{name} ({split})" for split in splits}
    tokenizer = TOKENIZERS[level].train(splits["train"], vocab_size, lowercase, names["train"])
    try:
        return tokenizer, {split: tokenizer.encode(lines, names[split]) for split, lines in splits.items()}
    except UserError:
        if not isinstance(tokenizer, WordTokenizer) or tokenizer.unk_id is not None:
            raise
        # <unk> has to stand for something in training too, or the model would never learn what it means
        counts = tokenizer.encode(splits["train"]).bincount(minlength=tokenizer.vocab_size).tolist()
        repeated = [word for word, count in zip(tokenizer.words, counts, strict=True) if count > 1 and word != EOS]
        if vocab_size is not None or not repeated or len(repeated) + 1 == tokenizer.vocab_size:
            raise
    tokenizer = type(tokenizer)([EOS, UNK, *repeated], lowercase)
    return tokenizer, {split: tokenizer.encode(lines, names[split]) for split, lines in splits.items()}


def _fingerprint(splits: Mapping[str, Sequence[str]], *settings) -> str:
    digest = hashlib.sha256(json.dumps(settings).encode())
    for split, lines in splits.items():
        digest.update(f"\n\0{split}\n".encode())
        digest.update("\n".join(lines).encode())
    return digest.hexdigest()
