"""YAML and JSON that may come from anywhere: small, flat, in UTF-8, and no key given twice."""

import json
from pathlib import Path
from typing import Any

from .errors import UserError
from .kinds import misfit

LARGEST = 1_000_000  # bytes of YAML: a configuration has some thousands
DEEPEST = 50  # collections within collections
MOST = 100_000  # values, those counted again that an alias (*name) repeats
WRONG_VALUE = (AttributeError, IndexError, KeyError, OverflowError, TypeError)  # YAML's own reader, of !!bool x
TIMESTAMP = "tag:yaml.org,2002:timestamp"


class NotTaken(ValueError):
    """What is YAML or JSON, and no value to use: a key that is given twice, of which other readers take the last; a NUL
    character, which no name of a file has; a tag that its value does not fit."""


class TooMuch(ValueError):
    """More than any configuration has."""


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
        raise TooMuch(f"more than {LARGEST:,} bytes, which no configuration has")
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
        raise TooMuch("nested too deep") from None
    except (NotTaken, TooMuch):
        raise
    except (*WRONG_VALUE, ValueError) as error:
        raise NotTaken(f"no settings in YAML (a value is not of the kind that its tag says: {error})") from None


def check_places(settings: Any) -> None:
    """Makes sure that no setting is given under a dotted key (``optim.lr``) and in a group (``optim: {lr: …}``), of
    which one would be lost.

    Raises:
        NotTaken: one is.
    """
    for key in settings if isinstance(settings, dict) else ():
        group = str(key)
        while "." in group:
            group = group.rpartition(".")[0]
            if group in settings:
                raise NotTaken(f"{key} is a key of {group}, which is there, too: give it in one place")
    for value in settings.values() if isinstance(settings, dict) else ():
        check_places(value)


def check_keys(text: str) -> None:
    """Makes sure that a text that is YAML gives no key twice and its tags fit; whatever else is wrong is let pass.

    Raises:
        NotTaken: they do not.
    """
    try:
        parse_yaml(text.encode(errors="replace"))
    except NotTaken:
        raise
    except ValueError:
        pass


def read_json(path: str | Path, mend: str, form: Any = Any) -> Any:
    """The contents of a JSON file.

    Args:
        path: the file.
        mend: what the message says to do, if it cannot be used.
        form: what they should be, as an annotation (see :func:`seqssgd.kinds.misfit`).

    Raises:
        UserError: it is not there, no JSON, gives a key twice, or is not of that form.
    """
    try:
        found = parse_json(Path(path).read_bytes())
        wrong = misfit(form, found)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {mend}") from None
    except ValueError as error:
        wrong = str(error)
    if wrong is not None:
        raise UserError(f"{path} is damaged ({wrong}); {mend}")
    return found


def parse_json(content: str | bytes) -> Any:
    """The value of a JSON document.

    Raises:
        ValueError: it is none, or nested too deep, or an object has a key twice.
    """
    try:
        return json.loads(content, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise NotTaken(f"{twice} is given twice: keep one of them")
    return found


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
        yaml_implicit_resolvers = {  # a date is a text, as to jsonargparse
            first: [entry for entry in entries if entry[0] != TIMESTAMP]
            for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def __init__(self, stream: str) -> None:
            super().__init__(stream)
            self.count, self.depth = 0, 0
            self.sizes: dict[yaml.Node, int] = {}

        def compose_node(self, parent: Any, index: Any) -> Any:
            event, before = self.peek_event(), self.count
            line = event.start_mark.line + 1
            self.depth += 1
            if self.depth > DEEPEST:
                raise TooMuch(f"line {line}: nested deeper than {DEEPEST} levels")
            node = super().compose_node(parent, index)
            assert node is not None  # the stubs allow for it, the parser does not
            self.depth -= 1
            self.count += self.sizes.get(node, MOST) if isinstance(event, yaml.AliasEvent) else 1
            if self.count > MOST:
                raise TooMuch(f"line {line}: more than {MOST:,} values, with those that aliases repeat")
            self.sizes.setdefault(node, self.count - before)
            return node

        def compose_scalar_node(self, anchor: Any) -> Any:
            node = super().compose_scalar_node(anchor)
            if "\0" in node.value:
                raise NotTaken(f"line {node.start_mark.line + 1}: a NUL character (\\0), which no setting has")
            return node

        def compose_mapping_node(self, anchor: Any) -> Any:
            node, lines = super().compose_mapping_node(anchor), {}
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                merges = key.tag.endswith(":merge")
                name, line = key.value if merges else self.construct_object(key), key.start_mark.line + 1
                if name in lines:  # yes and true, or 1 and 0x1, are one key, too
                    raise NotTaken(f"{key.value} is given twice, in lines {lines[name]} and {line}: keep one of them")
                lines[name] = line
            return node

    return Loader
