"""Which characters a transcript may hold.

Unicode's format characters (category Cf) are not seen by themselves. Those that spelling needs stay: U+200C and U+200D
(zero-width non-joiner and joiner, in Persian, Indic scripts and others), U+180E (Mongolian), and the number signs and
joiners that are drawn. All others are taken out: soft hyphens, direction marks and embeddings, zero-width spaces, word
joiners, byte-order marks, tags. Control characters, unassigned ones, those for private use and U+FFFD, which stands
for what could not be decoded, are no text.
"""

import unicodedata

KEPT = {0x200C, 0x200D, 0x180E, *range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD,
        *range(0x13430, 0x13440)}  # fmt: skip


def clean(text: str) -> str:
    """The transcript without invisible characters that are no part of its spelling, words separated by single spaces.

    >>> clean("co\\u00adop  \\u200eA\\ufeffB")
    'coop AB'
    """
    if text.isascii():
        return " ".join(text.split())
    return " ".join("".join(character for character in text if not _is_removed(character)).split())


def no_text(text: str) -> list[str]:
    """The characters of a cleaned transcript that are no text, in order."""
    return sorted({c for c in text if c == "\ufffd" or not (c.isprintable() or ord(c) in KEPT)})


def _is_removed(character: str) -> bool:
    return unicodedata.category(character) == "Cf" and ord(character) not in KEPT
