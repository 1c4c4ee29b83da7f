"""Faults put into inputs: into their bytes, or into the values that their bytes stand for.

Not by Hypothesis, which makes values from descriptions of them and shrinks a failure within its own process: here good
files of some seventy forms are changed, their reader may take its process with it, and a seed alone repeats a fault.
"""

import io
import json
import random
import struct
from typing import Any

TOKENS = [
    *(b"\x00", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff" * 8, b"-1", b"1e999", b"NaN", b"null", b"[" * 200, b"{" * 200),
    *(b'"', b"\n", b"\\", b": ", b"*a", b"&a ", b"!!python/object:os.system ", b"\xef\xbb\xbf", "\u2028".encode()),
    *(b'{"a":' * 60_000, b"=", b"../" * 5, b"%s", b"0" * 50, b" " * 100, b"<<: ", b"\t", b"\r", b"\x1b[2J", b"9" * 30),
]
ODD = [None, True, False, 0, -1, 2, 0.5, 1e308, float("nan"), float("inf"), 10**30, "", "x" * 60, "1", "\u2028", "é\0",
       [], {}, [[]], [None], {"a": 1}, {"": {}}, "../" * 5, "\ud800"]  # fmt: skip


def mutate(content: bytes, chance: random.Random, form: str = "bytes") -> bytes:
    """``content`` with one to four faults.

    ``form`` is what the bytes are: of ``json``, ``rows`` of it, ``yaml`` and a checkpoint (``torch``) half of the
    faults are in the values.
    """
    if form != "bytes" and content and chance.random() < 0.5:
        return _of_values(content, chance, form)
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + chance.choice([1, 2, 4, 16, 256]))
        kind = chance.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at:end] = chance.randbytes(end - at)
        elif kind == 2:
            del data[at:end]
        elif kind == 3:
            data[at:at] = data[at:end]
        elif kind == 4:
            data[at:end] = chance.choice(TOKENS)
        elif kind == 5:
            del data[at:]
        elif len(data) >= 8:
            data[at : at + 4] = struct.pack("<I", chance.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, len(data)]))
    return bytes(data)


def _of_values(content: bytes, chance: random.Random, form: str) -> bytes:
    import torch
    import yaml

    if form == "torch":
        tree = torch.load(io.BytesIO(content), weights_only=True)
        tree = _changed(tree, chance, [*ODD[:-1], torch.zeros(0), torch.full((3,), float("nan")), torch.ones(2, 2)])
        torch.save(tree, buffer := io.BytesIO())
        return buffer.getvalue()
    if form == "yaml":
        return yaml.safe_dump(_changed(yaml.safe_load(content), chance, ODD[:-1]), sort_keys=False).encode()
    if form == "json":
        return json.dumps(_changed(json.loads(content), chance, ODD)).encode()
    lines = content.splitlines()
    at = chance.randrange(len(lines))
    lines[at] = json.dumps(_changed(json.loads(lines[at]), chance, ODD)).encode()
    return b"\n".join(lines) + b"\n"


def _changed(tree: Any, chance: random.Random, odd: list) -> Any:
    """A tree of values one or two of which are others, are gone, or stand under another key."""
    for _ in range(chance.randint(1, 2)):
        places = list(_places(tree))
        if not places:
            return chance.choice(odd)
        where, key = chance.choice(places)
        kind = chance.randrange(5)
        if kind == 0:
            del where[key]
        elif kind == 1 and isinstance(where, dict):
            where[f"{key}x"] = where.pop(key)
        elif kind == 2:
            other, name = chance.choice(places)
            where[key] = other[name] if other is not where[key] and not _within(other[name], where) else None
        else:
            where[key] = chance.choice(odd)
    return tree


def _places(tree: Any):
    if isinstance(tree, (dict, list)):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _places(tree[key])


def _within(tree: Any, part: Any) -> bool:
    """Whether ``part`` is the tree or somewhere in it, so that it must not be put there once more."""
    return tree is part or any(where is part or where[key] is part for where, key in _places(tree))
