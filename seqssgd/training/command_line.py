"""The command line that every recipe answers to."""

import contextlib
import dataclasses
import difflib
import itertools
import re
import typing
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..documents import NotTaken, check_keys, check_places, parse_yaml
from ..errors import UserError
from ..networks import choose
from ..options import options_in
from ..sections import with_section
from .config import OptimConfig, is_positive, optim_class, require
from .methods import is_elsewhere
from .unused import check_used, named_methods


@dataclass
class Command:
    """A recipe's command line, read.

    Attributes:
        config: the configuration: what the result depends on.
        data: the folder of prepared data.
        out: the run directory.
        max_steps, max_minutes: limits of this call, for :func:`fit`; no part of the configuration.
    """

    config: Any
    data: Path
    out: Path
    max_steps: int | None
    max_minutes: float | None


def parse_recipe(config_class: type, argv: Sequence[str] | None = None, description: str = "") -> Command:
    """Reads ``--config FILE --data DIR --out RUN [--max-steps N] [--max-minutes M] [--KEY VALUE ...]``.

    Args:
        config_class: a dataclass with the recipe's settings, one of them ``seed``, nested dataclasses such as
            ``optim: OptimConfig`` and ``training: TrainingConfig`` included. Each is a key of the file and, with dots,
            an option, which overrides the file.
        argv: the arguments; None: those of the program.

    Raises:
        UserError: an unknown key, a wrong value, a setting that does nothing, a missing or empty data folder.
    """
    from jsonargparse import ArgumentParser, Namespace  # here: a program with a configuration of its own needs none

    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, description=description, parser_mode=_strict())
    parser.add_argument("--config", action="config", help="a YAML file of settings")
    parser.add_argument("--data", type=str, required=True, metavar="DIR", help="the folder of prepared data")
    parser.add_argument("--out", type=str, required=True, metavar="RUN", help="the run directory; resumed if it exists")
    parser.add_argument("--max-steps", type=int | None, default=None, help="finish after so many steps in all")
    parser.add_argument("--max-minutes", type=float | None, default=None, help="stop, to be resumed, after so many")
    files, options = _split_off_files(argv)
    paths = [word.removeprefix("--config=") for word in files if word != "--config"]
    require(all(paths), "--config", "", "the name of a file; give one")
    for name in paths:  # each is read several times
        once = " (a pipe can be read only once)" if name == "-" or Path(name).is_fifo() else ""
        require(Path(name).is_file(), "--config", name, f"a file{once}; give the name of one")
        try:  # before jsonargparse reads it, which takes a key twice, and as many values as it holds
            check_places(parse_yaml(Path(name).read_bytes()))
        except ValueError as error:
            raise UserError(f"--config {name}: {error}") from None
    _check_values(options)
    config_class, plain_class = _with_methods(config_class, named_methods(paths, options)), config_class
    config_class = choose(config_class, lambda key: _given(key, files, options))
    parser.add_class_arguments(config_class, as_group=False)
    if (left_open := _left_open(config_class)) is not None:
        parser.set_defaults(left_open)
    try:
        parsed = parser.parse_args(files + options)  # the files first: an option holds wherever it stands
        _check_filled(parsed, config_class, Namespace)
        settings = parser.instantiate(parsed)
    except (ArgumentError, UnicodeDecodeError) as error:
        raise UserError(_one_line(str(error), _keys(config_class), files)) from error
    names = [field.name for field in dataclasses.fields(config_class)]
    config = plain_class(**{name: settings[name] for name in names})
    if isinstance(getattr(config, "optim", None), OptimConfig):
        check_used(config.optim, paths, options)
    for key in ("data", "out"):
        require(bool(settings[key]), f"--{key}", settings[key], "the name of a folder; give one")
        require(_is_unicode(settings[key]), f"--{key}", settings[key], "a name in UTF-8; rename the folder")
    for key in ("max_steps", "max_minutes"):
        require(is_positive(settings[key]), f"--{key.replace('_', '-')}", settings[key], "a number > 0")
    data = Path(settings.data)
    if not data.is_dir() or not any(data.iterdir()):
        state = "an empty folder" if data.is_dir() else "not a folder"
        raise UserError(f"--data {data}: {state}; prepare the data with the recipe's program in data_prep/")
    return Command(config, data, Path(settings.out), settings.max_steps, settings.max_minutes)


def _is_unicode(name: str) -> bool:
    """Whether a file's name is text in UTF-8: TensorBoard takes no other."""
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _check_values(options: Sequence[str]) -> None:
    """Makes sure that the values of options are YAML that can be used, or no YAML: jsonargparse's own reader takes a
    key twice, and ends with a traceback where a tag does not fit (``--optim.lr '!!timestamp x'``)."""
    for before, word in itertools.pairwise(["", *options]):
        option, equals, value = word.partition("=") if word.startswith("--") else (before, "=", word)
        try:
            check_keys(value if equals else "")
        except NotTaken as error:
            raise UserError(f"{option.removeprefix('--')}: {error}") from None


def _with_methods(config_class: Any, methods: Sequence[str]) -> Any:
    """A recipe's class of configurations, with settings for methods from elsewhere in its section ``optim``."""
    others = [name for name in methods if is_elsewhere(name)]
    field = next((field for field in dataclasses.fields(config_class) if field.name == "optim"), None)
    if not others or field is None:
        return config_class
    return with_section(config_class, "optim", optim_class(others), keep=True)


def _left_open(config_class: Any) -> dict[str, None] | None:
    """The settings of methods, null: a section ``optim`` that is not given has those of none, whatever is asked for."""
    field = next((field for field in dataclasses.fields(config_class) if field.name == "optim"), None)
    default = None if field is None or field.default_factory is dataclasses.MISSING else field.default_factory()
    if not isinstance(default, OptimConfig) or default.method != "none":
        return None
    return dict.fromkeys(f"optim.{key}" for key in ("betas", *(key for key in default.unset() if key != "noise")))


def _strict() -> str:
    """The name under which jsonargparse knows its own YAML, of files and of values alike, with each key given once."""
    import yaml
    from jsonargparse import get_loader, set_loader

    plain = get_loader("yaml")

    def load(text: str) -> Any:
        try:
            parse_yaml(text.encode(errors="replace"))
            return plain(text)
        except NotTaken:
            raise
        except ValueError as error:  # no YAML, or too much of it: as a value it is a text, as a file it is refused
            raise yaml.YAMLError(str(error)) from None

    set_loader("seqssgd", load, (yaml.YAMLError, NotTaken))
    return "seqssgd"


def _check_filled(parsed: Any, config_class: Any, group: type, prefix: str = "") -> None:
    """Makes sure that every setting has a value and every group of settings is one; those in ``group`` are."""
    kinds = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        kind: Any = kinds[field.name]
        key, value = prefix + field.name, parsed[field.name]
        if dataclasses.is_dataclass(kind):
            require(isinstance(value, group), key, value, "a group of settings; see --help for them")
            _check_filled(value, kind, group, f"{key}.")
        elif value is None and type(None) not in typing.get_args(kind):
            raise UserError(f"{key}: has no value; give it one, or leave it out")


def _split_off_files(argv: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The arguments that are ``--config FILE``, and all others."""
    import sys

    rest, files = list(sys.argv[1:] if argv is None else argv), []
    for index in reversed([i for i, word in enumerate(rest) if word == "--config" or word.startswith("--config=")]):
        end = index + 1 + (rest[index] == "--config")
        files[:0], rest[index:end] = rest[index:end], []
    return files, rest


def _given(key: str, files: Sequence[str], options: Sequence[str]) -> str | None:
    """The text that a dotted key is given: by the last option that does, or else by the last file."""
    section, _, name = key.rpartition(".")
    found = None
    for file in (word.removeprefix("--config=") for word in files if word != "--config"):
        content: Any = parse_yaml(Path(file).read_bytes()) if Path(file).is_file() else None
        for part in key.split("."):
            content = content.get(part) if isinstance(content, dict) else None
        found = content if isinstance(content, str) else found
    for option, value in options_in(options):
        if option == key:
            found = value
        elif option == section:  # --model '{name: gru}'
            with contextlib.suppress(ValueError, AttributeError):
                found = parse_yaml(value.encode()).get(name, found)
    return found


def _keys(config_class: type, prefix: str = "") -> list[str]:
    keys = []
    for field in dataclasses.fields(config_class):
        keys.append(prefix + field.name)
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            keys.extend(_keys(field.type, f"{prefix}{field.name}."))
    return keys


def _one_line(message: str, keys: list[str], files: list[str]) -> str:
    """jsonargparse's message, which may run over many lines, as one that starts with the key, or names the file."""
    text = re.sub("(got|[Vv]alue:)$", r"\1 ''", " ".join(message.split()))  # --optim.lr "$UNSET"
    if unreadable := re.match(r"(Problems parsing|Unexpected) config: ?|(?='utf-8' codec)", text):
        names = ", ".join(word.removeprefix("--config=") for word in files if word != "--config")
        return f"--config {names}: no settings in YAML ({text[unreadable.end() :] or 'nothing at all'})"
    unknown = (
        re.fullmatch(r"Group '(?P<group>.+)' does not accept option '(?P<key>.+)'", text)
        or re.fullmatch(r"Option '(?P<group>)(?P<key>.+)' is not accepted", text)
        or re.match(r"unrecognized arguments: --(?P<group>)(?P<key>[^ =]+)", text)
    )
    if unknown:
        key = ".".join(filter(None, (unknown["group"], unknown["key"])))
        close = difflib.get_close_matches(key, [*keys, "max-steps", "max-minutes"], n=1)
        return f"{key}: no such setting{f'; did you mean {close[0]}?' if close else '; --help lists them all'}"
    text = re.sub(r'^Parser key "(.+?)": ', r"\1: ", text)
    if group := re.match(r"(\S+): Unable to load config ('(.*?)') - (.*)", text):
        if Path(group[3]).is_file():
            return f"{group[1]}: {group[3]}: {group[4]}"
        named = f", or give --{group[1]}.name {group[2]}" if f"{group[1]}.name" in keys else ""
        return f"{group[1]}: {group[2]} is not a group of settings; see --help for them{named}"
    if fixed := re.match(r"(\S+: )Does not validate .*?Subtypes: \[tuple\[([^\]]*)\], .* Given value: (.*)", text):
        return f"{fixed[1]}{fixed[3]} is not [{fixed[2]}]; write it so, in brackets, or null"
    text = re.sub(r"Expected an? <class 'list'>\. Got value: (.*)", r"\1 is no list; write it in brackets: [\1]", text)
    if choices := re.match(r"(\S+: )Does not validate .*?list\[typing\.Literal\[(.*?)\]\].* Given value: (.*)", text):
        return f"{choices[1]}{choices[3]} is no list of {choices[2]}; write it in brackets, such as [recurrent, dense]"
    if union := re.match(r"(\S+: )Does not validate .*?Subtypes: \[(.*?)\] Errors: .* Given value: (.*)", text):
        found = re.findall(r"<class '(\w+)'>|(dict)\[", union[2])
        kinds = ["a mapping, such as {name: value}" if dict_ else kind for kind, dict_ in found if kind != "NoneType"]
        if kinds:
            return f"{union[1]}expected {' or '.join(kinds)}, or null, got {union[3]}"
    text = re.sub(r"Expected an? <class '(\w+)'>\. Got value:", r"expected \1, got", text)
    if percent := re.fullmatch(r"\S+: expected float, got (\d+\.?\d*)%", text):
        return f"{text}; a share is a fraction, {float(percent[1]) / 100:g}"
    return re.sub(r"Expected a typing\.Literal\[(.*?)\]\. Got value:", r"expected one of \1, got", text)
