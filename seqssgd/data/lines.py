"""Lines of text: one rule for where they end, and one for what is text, whatever program reads them."""

import io
from pathlib import Path

from seqssgd.errors import UserError

MARK = "\ufeff"  # the byte-order mark that some programs write at the beginning of UTF-8


def split_lines(text: str) -> list[str]:
    """The lines of a text, without their ends: line feed, carriage return, or both, as in text files.

    Nothing else ends a line; ``str.splitlines`` also cuts at form feeds, U+0085, U+2028 and others.

    >>> split_lines("a\\r\\nb\\u2028c\\n")
    ['a', 'b\\u2028c']
    """
    return [line.rstrip("\n") for line in io.StringIO(text.removeprefix(MARK), newline=None)]


def read_lines(path: str | Path, content: bytes | None = None) -> list[str]:
    """The lines of a UTF-8 text file, without line ends and byte-order mark; blank lines are kept, so numbers agree.

    ``content`` are the bytes of the file if it is not on disk but, say, in an archive.

    Raises:
        UserError: no such file, not UTF-8 (the message gives the offset of the first wrong byte), or no text in it.
    """
    try:
        data = Path(path).read_bytes() if content is None else content
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give the path of a text file") from None
    if wide := _wide_encoding(data):
        raise UserError(f"{path} is not UTF-8 text but {wide}; convert it, for example with: "
                        f"iconv -f {wide} -t UTF-8 OLD > NEW")  # fmt: skip
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text: wrong byte 0x{error.object[error.start]:02x} at offset {error.start:,}; "
            "convert it from the encoding that it is in, such as ISO-8859-1: iconv -f ISO-8859-1 -t UTF-8 OLD > NEW"
        ) from None
    if "\0" in text:
        raise UserError(f"{path} is no text: it has a zero byte at offset {data.index(0):,}; give a text file in UTF-8")
    lines = split_lines(text)
    if not any(line.strip() for line in lines):
        raise UserError(f"{path} is empty; give a file with at least one line of text")
    return lines


def _wide_encoding(data: bytes) -> str | None:
    """UTF-16 or UTF-32, if a mark at the beginning or the places of zero bytes show that a text is in it."""
    if data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    start = data[:4000]
    zeros = [start[place::4].count(0) for place in range(4)]
    most = len(start) // 4
    if not most or sum(zeros) < 0.3 * len(start):
        return None
    if zeros[1] + zeros[2] >= 1.6 * most and min(zeros[0], zeros[3]) < 0.2 * most:
        return "UTF-32LE" if zeros[3] > zeros[0] else "UTF-32BE"
    return "UTF-16LE" if zeros[1] + zeros[3] > zeros[0] + zeros[2] else "UTF-16BE"
