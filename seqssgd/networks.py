"""The networks of a task by name, ``NAME`` or ``module:Class``: a network's settings are the arguments of its class.

A configuration has a section for the network, of which ``name`` chooses the class and everything else is handed to it.
So a network is one class, in this package or anywhere Python finds it, and its defaults and their documentation stand
in one place.
"""

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, ClassVar

from .errors import UserError
from .named import load_named
from .sections import with_section


@dataclass
class NetworkSettings:
    """The section of a network; :meth:`Networks.section` makes one for each.

    Attributes:
        name: of the network.
    """

    name: str
    networks: ClassVar["Networks"]

    def build(self, **given: Any) -> Any:
        """The network with these settings.

        Args:
            given: what the task hands to it.

        Raises:
            ValueError: from the network, for settings that make no sense.
        """
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return self.networks.find(own.pop("name"))(**given, **self.networks.fixed(self.name), **own)

    @property
    def elsewhere(self) -> bool:
        """Whether the network lies outside of this package, so that what it gives has to be looked at."""
        return self.name not in self.networks.known


class Networks:
    """The networks that a task can train.

    Args:
        known: name to class, as ``module:Class``, or to that and arguments which are no settings.
        given: the arguments that the task itself hands to every network, by name.

    >>> networks = Networks({"lstm": "seqssgd.models.lstm:LSTMLanguageModel"}, given=("vocab_size",))
    >>> networks.settings("lstm", hidden_size=8)
    lstm(name='lstm', hidden_size=8, num_layers=2, dropout=0.0, init_scale=0.1)
    >>> networks.settings("lstm", hidden_size=8).build(vocab_size=20).output
    Linear(in_features=8, out_features=20, bias=True)
    """

    def __init__(self, known: Mapping[str, str | tuple[str, Mapping[str, Any]]], given: tuple[str, ...]) -> None:
        self.known, self.given = dict(known), given
        self.section = cache(self._section)

    @property
    def default(self) -> str:
        """The network of a configuration that names none, as those of earlier versions do: the first."""
        return next(iter(self.known))

    def field(self) -> Any:
        """The field of a dataclass that holds the settings of one of these networks; those of the default."""
        default: Any = self.section(self.default)
        return field(default_factory=default, metadata={"networks": self})

    def settings(self, name: str, **values: Any) -> NetworkSettings:
        """The settings of a network, those that are not given at its defaults."""
        return self.section(name)(**values)

    def find(self, name: str) -> Callable[..., Any]:
        """What builds the network of that name.

        Raises:
            UserError: there is none.
        """
        known = self.known.get(name, name if ":" in name else None)
        if known is None:
            raise UserError(f"{name!r} is not one of {', '.join(self.known)}, and no module:Class")
        path = known if isinstance(known, str) else known[0]
        found = load_named(None, path)
        if not callable(found):
            raise UserError(f"{name!r}: {path} is not a class")
        return found

    def of_section(self, section: Any) -> type[NetworkSettings] | None:
        """What a section of a config.yaml is, if its network is known here without importing anyone's; else None."""
        name = section.get("name", self.default) if isinstance(section, Mapping) else self.default
        return self.section(name) if isinstance(name, str) and name in self.known else None

    def restored(self, section: Mapping[str, Any]) -> NetworkSettings:
        """The settings of a section of a config.yaml.

        Raises:
            UserError: there is no such network.
            TypeError: it has other settings.
        """
        name = section.get("name", self.default)
        own = {key: value for key, value in section.items() if key != "name"}
        if unknown := own.keys() - {field.name for field in dataclasses.fields(self.section(name))}:
            raise TypeError(f"{name} has no setting {', '.join(sorted(unknown))}")
        return self.settings(name, **own)

    def fixed(self, name: str) -> Mapping[str, Any]:
        """The arguments of a network that are no settings."""
        known = self.known.get(name)
        return {} if known is None or isinstance(known, str) else known[1]

    def _section(self, name: str) -> type[NetworkSettings]:
        """The dataclass of the settings of a network.

        Raises:
            UserError: there is no such network, or its class cannot be called so.
        """
        found = self.find(name)
        parameters = inspect.signature(found, eval_str=True).parameters.values()
        lacking = [key for key in self.given if key not in {parameter.name for parameter in parameters}]
        if lacking:
            raise UserError(f"{name!r}: its class does not take {', '.join(lacking)}, as this task's must")
        fields: list[tuple[str, Any, Any]] = [("name", str, field(default=name))]
        for parameter in parameters:
            if parameter.name in (*self.given, *self.fixed(name)) or parameter.kind in _VARIADIC:
                continue
            if parameter.name in _TAKEN:
                raise UserError(f"{name!r}: its argument {parameter.name} has a name that every network's section has; "
                                "rename it")  # fmt: skip
            kind = Any if parameter.annotation is parameter.empty else parameter.annotation
            default = parameter.default
            if default is parameter.empty:
                raise UserError(f"{name!r}: its argument {parameter.name} needs a default, to be a setting")
            made = field(default=default) if default.__hash__ else field(default_factory=partial(copy, default))
            fields.append((parameter.name, kind, made))
        namespace = {
            "__doc__": _documentation(found, name, self.known, [entry[0] for entry in fields[1:]]),
            "networks": self,
        }
        title = re.sub(r"\W", "_", name)
        return dataclasses.make_dataclass(title, fields, bases=(NetworkSettings,), namespace=namespace)


_TAKEN = ("name", "networks", "build", "elsewhere")  # what NetworkSettings has
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _documentation(found: Callable[..., Any], name: str, known: Iterable[str], settings: list[str]) -> str:
    """What the arguments of a class are, as the documentation of a dataclass."""
    text = inspect.getdoc(found) or ""
    about = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", text, re.MULTILINE)
    entries = re.split(r"\n(?=    \w)", about[1].rstrip()) if about else []
    kept = [entry for entry in entries if entry.strip().partition(":")[0] in settings]
    title = (text.splitlines() or [f"The network {name}."])[0]
    return "\n".join(
        [title, "", "Attributes:", f"    name: of the network: {', '.join(known)}, or module:Class.", *kept, ""]
    )


@contextmanager
def probing(network: Any) -> Iterator[None]:
    """For a look at what a network gives: in evaluation mode, without gradients.

    Afterwards its modes, its buffers and the random state are what they were.
    """
    import torch

    modes = [(module, module.training) for module in network.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    devices = {weight.device for weight in network.parameters() if weight.device.type == "cuda"}
    with torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
        network.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for buffer, value in buffers:
                buffer.copy_(value)


def check_shape(whose: str, what: str, got: Any, wanted: Mapping[str, int]) -> None:
    """Makes sure that a tensor of a network has its shape.

    Args:
        whose: the setting that names the network, and its name.
        what: the tensor is.
        got: the tensor.
        wanted: its dimensions, by name.

    Raises:
        UserError: it has another, or is no tensor.
    """
    import torch

    shape = tuple(got.shape) if isinstance(got, torch.Tensor) else None
    if shape != tuple(wanted.values()):
        found = f"of type {type(got).__name__}" if shape is None else f"of shape {shape}"
        raise UserError(f"{whose} gives {what} {found}; wanted ({', '.join(wanted)}), here {tuple(wanted.values())}")


def choose(config_class: type, named: Callable[[str], str | None], prefix: str = "") -> type:
    """A configuration's dataclass with the settings of the networks that are named in place of those of the default.

    Args:
        config_class: a dataclass; where it has none of :meth:`Networks.field`, also within, it stays as it is.
        named: dotted key of a setting to the value that is given for it; None if there is none.
        prefix: of the keys.

    Raises:
        UserError: there is no such network; the message begins with the key.
    """
    kinds = typing.get_type_hints(config_class)
    made = config_class
    for entry in dataclasses.fields(config_class):
        kind, key = kinds[entry.name], f"{prefix}{entry.name}"
        networks: Networks | None = entry.metadata.get("networks")
        if networks is not None:
            try:
                chosen = networks.section(named(f"{key}.name") or networks.default)
            except UserError as error:
                raise UserError(f"{key}.name: {error}") from None
        else:
            within = isinstance(kind, type) and dataclasses.is_dataclass(kind)
            chosen = choose(kind, named, f"{key}.") if within else kind
        if chosen is not kind:
            made = with_section(made, entry.name, chosen)
    return made
