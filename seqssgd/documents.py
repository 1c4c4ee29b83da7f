"""YAML and JSON that may come from anywhere: small, flat, in UTF-8, and no key given twice."""

import json
from pathlib import Path
from typing import Any

from .errors import UserError

LARGEST = 1_000_000  # bytes of YAML: a configuration has some thousands
DEEPEST = 50  # collections within collections
MOST = 100_000  # values, those counted again that an alias (*name) repeats
WRONG_VALUE = (AttributeError, IndexError, KeyError, OverflowError, TypeError)  # YAML's own reader, of !!bool x


class GivenTwice(ValueError):
    """A key that a mapping has twice, of which YAML's own reader takes the last."""


def read_yaml(path: str | Path, mend: str) -> Any:
    """The contents of a YAML file.

    Args:
        path: the file.
        mend: what the message says to do, if it cannot be used.

    Raises:
        UserError: it is not there, no YAML in UTF-8, gives a key twice, or is larger or deeper than any configuration.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {mend}") from None
    try:
        return parse_yaml(content)
    except ValueError as error:
        raise UserError(f"{path}: {error}; {mend}") from None


def parse_yaml(content: bytes) -> Any:
    """The value of a YAML document.

    Raises:
        ValueError: as :func:`read_yaml`; the message names the line, but no file and no mend.
    """
    import yaml

    if len(content) > LARGEST:
        raise ValueError(f"more than {LARGEST:,} bytes, which no configuration has")
    try:
        return yaml.load(content.decode("utf-8-sig"), _loader())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or (str(error).splitlines() or ["nothing at all"])[0]
        raise ValueError(f"no settings in YAML ({reason}{where})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"no settings in YAML (not UTF-8: wrong byte at offset {error.start:,})") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    except WRONG_VALUE as error:
        raise ValueError(f"no settings in YAML (a value is not of the kind that its tag says: {error})") from None


def check_places(settings: Any) -> None:
    """Makes sure that no setting is given under a dotted key (``optim.lr``) and in a group (``optim: {lr: …}``), of
    which one would be lost.

    Raises:
        GivenTwice: one is.
    """
    for key in settings if isinstance(settings, dict) else ():
        group = str(key)
        while "." in group:
            group = group.rpartition(".")[0]
            if group in settings:
                raise GivenTwice(f"{key} is a key of {group}, which is there, too: give it in one place")
    for value in settings.values() if isinstance(settings, dict) else ():
        check_places(value)


def check_keys(text: str) -> None:
    """Makes sure that no mapping in a text has a key twice, if that text is YAML; whatever else is wrong is let pass.

    Raises:
        GivenTwice: one has.
    """
    try:
        parse_yaml(text.encode(errors="replace"))
    except GivenTwice:
        raise
    except ValueError:
        pass


def parse_json(content: str | bytes) -> Any:
    """The value of a JSON document.

    Raises:
        ValueError: it is none, or nested too deep.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deep") from None


def printable(value: Any) -> Any:
    """Nested values whose texts have no control characters: no line breaks, nothing that a terminal obeys."""
    if isinstance(value, dict):
        return {printable(key): printable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [printable(entry) for entry in value]
    return "".join(c if c.isprintable() else " " for c in value) if isinstance(value, str) else value


def _loader() -> type:
    """YAML's safe loader with limits: it makes plain values, and no more of them than the file lets expect."""
    import yaml

    class Loader(yaml.SafeLoader):
        def __init__(self, stream: str) -> None:
            super().__init__(stream)
            self.count, self.depth = 0, 0
            self.sizes: dict[yaml.Node, int] = {}

        def compose_node(self, parent: Any, index: Any) -> Any:
            event, before = self.peek_event(), self.count
            line = event.start_mark.line + 1
            self.depth += 1
            if self.depth > DEEPEST:
                raise ValueError(f"line {line}: nested deeper than {DEEPEST} levels")
            node = super().compose_node(parent, index)
            assert node is not None  # the stubs allow for it, the parser does not
            self.depth -= 1
            self.count += self.sizes.get(node, MOST) if isinstance(event, yaml.AliasEvent) else 1
            if self.count > MOST:
                raise ValueError(f"line {line}: more than {MOST:,} values, with those that aliases repeat")
            self.sizes.setdefault(node, self.count - before)
            return node

        def compose_mapping_node(self, anchor: Any) -> Any:
            node, lines = super().compose_mapping_node(anchor), {}
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                merges = key.tag.endswith(":merge")
                name, line = key.value if merges else self.construct_object(key), key.start_mark.line + 1
                if name in lines:  # yes and true, or 1 and 0x1, are one key, too
                    raise GivenTwice(f"{key.value} is given twice, in lines {lines[name]} and {line}: keep one of them")
                lines[name] = line
            return node

    return Loader
