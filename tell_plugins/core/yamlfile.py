"""One reading of YAML for recipes, sweeps and cards: that of ms-swift, with limits and with lines.

ms-swift 4.0 reads a recipe with OmegaConf: `1e-4` is a number at every level and a date is text.
Here a whole number that YAML would write otherwise (`007`, `0123456`, `2024_10_01`) stays text
too: as a name it must not change, and ms-swift reads the text as a number where it wants one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tell_plugins.core import paths
from tell_plugins.core.errors import Problems, UserError, nearest, raise_all
from tell_plugins.core.text import shortened

try:
    from yaml import CSafeLoader as _SafeLoader
except ImportError:  # a PyYAML without libyaml
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]

Place = tuple[str, ...]
_Model = TypeVar("_Model", bound=BaseModel)
_LARGEST_FILE = 1_000_000  # bytes; long texts have files of their own
_MOST_NODES = 10_000  # with every alias written out
_DEEPEST = 32
_FLOAT, _INT, _TEXT, _TIME = (
    f"tag:yaml.org,2002:{n}" for n in ("float", "int", "str", "timestamp")
)
_PLAIN_INT = re.compile(r"-?(0|[1-9][0-9]{0,17})")


class _Loader(_SafeLoader):
    """The safe loader with OmegaConf's numbers and without dates."""

    def construct_whole(self, node: yaml.ScalarNode) -> int | str:
        text = str(node.value)
        return int(text) if _PLAIN_INT.fullmatch(text) else text


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_FLOAT, _TIME)]
    for first, resolvers in _SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"""^(?:[-+]?[0-9]+(?:_[0-9]+)*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9]+(?:_[0-9]+)*[eE][-+]?[0-9]+
        |\.[0-9]+(?:_[0-9]+)*(?:[eE][-+][0-9]+)?
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
        re.VERBOSE,
    ),
    list("-+0123456789."),
)
_Loader.add_constructor(_INT, _Loader.construct_whole)

_REMEDIES = {  # a part of what libyaml says: what it mostly comes from
    "cannot start any token": "indent with spaces, not tabs; put quotes around the text",
    "mapping values": "put a text that holds ': ' into quotes, or mend the indent",
    "':'": "write 'key: value'",
    "expected key": "indent the keys of one level alike, and quote whole texts",
    "','": "close the bracket, and put ',' between its parts",
    "end of stream": "close the quote",
    "undefined alias": "put a text that begins with * into quotes",
    "another document": "keep one document: remove the line '---' between them",
    "constructor": "remove the tag (the word that begins with !)",
}


@dataclass
class Document:
    """A YAML file as it was read.

    Attributes:
        values: what stands in it; None for an empty file.
        lines: the line (from 1) of every key, by the keys that lead to it.
        written: how each value that is no text to YAML stands in the file, by its keys.
    """

    values: Any = None
    lines: dict[Place, int] = field(default_factory=dict)
    written: dict[Place, str] = field(default_factory=dict)

    def place(self, where: str, keys: Sequence[Any]) -> str:
        """`where` with the line of `keys`, or of as many of them as the file has."""
        known = tuple(map(str, keys))
        while known and known not in self.lines:
            known = known[:-1]
        return f"{where}, line {self.lines[known]}" if known else where

    def as_model(self, model: type[_Model], where: str, see: str) -> _Model:
        """The values as a pydantic model; `see` says where examples are.

        Raises UserErrors, each with its line, for values that the model does not take.
        """
        try:
            return model.model_validate(self.values)
        except ValidationError as error:
            parts = error.errors()
        raise_all([_wrong_value(p, self.place(where, p["loc"]), see, model) for p in parts])
        raise AssertionError("pydantic names what is wrong")


def read_yaml(file: Path) -> Document:
    """Read a YAML file. Raises UserError, with the line, for whatever is wrong with it."""
    size, where = file.stat().st_size, paths.shown(file)
    if size > _LARGEST_FILE:
        remedy = "rows and long texts lie in files of their own"
        allowed = f"a YAML file of at most {_LARGEST_FILE:,} bytes"
        raise UserError(f"{size:,} bytes are too many", where=where, allowed=allowed, remedy=remedy)
    return parse_yaml(paths.read_user_text(file), where)


def parse_yaml(text: str, where: str) -> Document:
    """Like `read_yaml`, for a text; `where` is named in errors."""
    try:
        root = yaml.compose(text, _Loader)
        if root is None:
            return Document()
        document = _noted(root, where)
        document.values = _Loader("").construct_document(root)
    except yaml.MarkedYAMLError as error:
        raise _readable(error, where) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _no_yaml(str(error.reason), where, line) from None
    except ValueError as error:  # a tagged value that is none
        raise UserError(f"no YAML: {error}", where=where, remedy="put it into quotes") from None
    return document


def _noted(root: yaml.Node, where: str) -> Document:
    """The lines and values of a file as they are written, up to the limits."""
    document, twice = Document(), Problems()
    for count, (place, key, node) in enumerate(_nodes(root, (), None)):
        line = (key or node).start_mark.line + 1
        if isinstance(node, yaml.ScalarNode) and "\0" in node.value:
            raise _no_yaml("a NUL character in a value", where, line)
        if len(place) > _DEEPEST:  # also where an alias stands for what holds it
            raise _no_yaml(f"more than {_DEEPEST} levels", where, line)
        if count > _MOST_NODES:
            raise _no_yaml(f"more than {_MOST_NODES:,} values, aliases written out", where, line)
        if isinstance(node, yaml.ScalarNode) and node.tag != _TEXT:
            document.written[place] = str(node.value)
        if key is None:
            continue
        if place in document.lines and key.value != "<<":
            found = f"key '{key.value}' is given twice, first at line {document.lines[place]}"
            twice.append(
                UserError(found, where=f"{where}, line {line}", remedy="remove one of them")
            )
        document.lines.setdefault(place, line)
    raise_all(twice)
    return document


def _nodes(
    node: yaml.Node, place: Place, key: yaml.ScalarNode | None
) -> Iterator[tuple[Place, yaml.ScalarNode | None, yaml.Node]]:
    """Every node with its place and its key, if any; aliases are written out."""
    yield place, key, node
    if isinstance(node, yaml.SequenceNode):
        for number, part in enumerate(node.value):
            yield from _nodes(part, (*place, str(number)), None)
    if isinstance(node, yaml.MappingNode):
        for inner, value in node.value:
            if isinstance(inner, yaml.ScalarNode):
                yield from _nodes(value, (*place, str(inner.value)), inner)


def _readable(error: yaml.MarkedYAMLError, where: str) -> UserError:
    mark, started = error.problem_mark or error.context_mark, error.context_mark
    line, found = mark.line + 1 if mark else None, str(error.problem)
    if error.context and started and line != started.line + 1:
        found += f" ({error.context} that begins at line {started.line + 1})"
    return _no_yaml(found, where, line)


def _no_yaml(found: str, where: str, line: int | None) -> UserError:
    remedy = next((text for part, text in _REMEDIES.items() if part in found), "correct that line")
    place = f"{where}, line {line}" if line else where
    return UserError(f"no YAML: {found}", where=place, remedy=remedy)


def _wrong_value(part: Any, where: str, see: str, model: type[BaseModel]) -> UserError:
    """One error of pydantic about a file as found, where, allowed, remedy."""
    location = [str(step) for step in part["loc"] if step != "[key]"]
    key = ".".join(location)
    if part["type"] == "missing":
        remedy = f"add '{location[-1]}: ...'"
        return UserError(f"key '{key}' is missing", where=where, remedy=remedy)
    if part["type"] == "extra_forbidden":
        keys = sorted(_keys_at(model, location[:-1]))
        match = nearest(location[-1], keys)
        remedy = f"did you mean '{match}'?" if match else "remove it"
        found = f"unknown key '{key}'"
        return UserError(found, where=where, allowed=", ".join(keys), remedy=remedy)
    cause = getattr(part.get("ctx", {}).get("error"), "__cause__", None)
    if isinstance(cause, UserError):
        found = f"key '{key}': {cause.found}"
        return UserError(found, where=where, allowed=cause.allowed, remedy=cause.remedy)
    message = str(part["msg"]).removeprefix("Value error, ")
    if not location:
        return UserError(message, where=where, remedy=f"see {see}")
    shown = "empty" if part["input"] is None else shortened(repr(part["input"]), 60)
    return UserError(f"key '{key}' is {shown}: {message}", where=where, remedy="correct it")


def _keys_at(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    """The keys of the mapping at a place of a file that a model describes."""
    hint: Any = model
    for step in location:
        if hasattr(hint, "model_fields"):
            fields = hint.model_fields.items()
            hint = next(f.annotation for name, f in fields if step in (name, f.alias))
        else:  # a part of a mapping or a list: dict[str, X] | None, tuple[X, ...]
            hint = next(part for part in get_args(hint) if part not in (str, ...))
        parts = [part for part in get_args(hint) if part is not type(None)]
        hint = parts[0] if type(None) in get_args(hint) else hint
    return [field.alias or name for name, field in hint.model_fields.items()]
