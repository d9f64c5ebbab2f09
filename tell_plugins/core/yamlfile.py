"""One reading of YAML for recipes, sweeps and cards: that of ms-swift, with limits and with lines.

ms-swift 4.0 reads a recipe with OmegaConf: `1e-4` is a number at every level and a date is text.
Here a whole number that YAML would write otherwise (`007`, `0123456`, `2024_10_01`) stays text
too: as a name it must not change, and ms-swift reads the text as a number where it wants one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError, nearest, raise_all
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
_FLOAT = "tag:yaml.org,2002:float"
_INT = "tag:yaml.org,2002:int"
_TEXT = "tag:yaml.org,2002:str"
_PLAIN_INT = re.compile(r"-?(0|[1-9][0-9]{0,17})")


class _Loader(_SafeLoader):
    """The safe loader with OmegaConf's numbers and without dates."""

    def construct_whole(self, node: yaml.ScalarNode) -> int | str:
        text = str(node.value)
        return int(text) if _PLAIN_INT.fullmatch(text) else text


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in (_FLOAT, "tag:yaml.org,2002:timestamp")
    ]
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

# what libyaml says, and what it mostly comes from
_REMEDIES = (
    ("tab character", "indent with spaces, not with tabs"),
    ("cannot start any token", "put the text into quotes, and indent with spaces"),
    (
        "mapping values are not allowed",
        "put a text that holds ': ' into quotes, or mend the indent",
    ),
    ("could not find expected ':'", "write 'key: value'"),
    ("did not find expected key", "indent the keys of one level alike, and quote whole texts"),
    ("did not find expected ','", "close the bracket, and put ',' between its parts"),
    ("expected node content", "write a value, or close the bracket"),
    ("unexpected end of stream", "close the quote"),
    ("undefined alias", "put a text that begins with * into quotes"),
    ("alphabetic or numeric character", "put a text that begins with * or & into quotes"),
    ("another document", "keep one document: remove the line '---' between them"),
    ("unknown escape character", "write \\\\ for one backslash, or use single quotes"),
    ("could not determine a constructor", "remove the tag (the word that begins with !)"),
    ("control characters", "remove the character"),
    ("unhashable key", "a key is one text"),
)


@dataclass(frozen=True)
class Document:
    """A YAML file as it was read.

    Attributes:
        values: what stands in it; None for an empty file.
        lines: the line (from 1) of every key, by the keys that lead to it.
        written: how each value that is no text to YAML stands in the file, by its keys.
    """

    values: Any
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
    where = paths.shown(file)
    if file.stat().st_size > _LARGEST_FILE:
        raise UserError(
            f"{file.stat().st_size:,} bytes are too many",
            where=where,
            allowed=f"a YAML file of at most {_LARGEST_FILE:,} bytes",
            remedy="name the recipe, sweep or card; rows and long texts lie in files of their own",
        )
    return parse_yaml(paths.read_user_text(file), where)


def parse_yaml(text: str, where: str) -> Document:
    """Like `read_yaml`, for a text; `where` is named in errors."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return Document(None)
            walk = _Walk(where)
            walk.visit(node, ())
            raise_all(walk.problems)
            return Document(loader.construct_document(node), walk.lines, walk.written)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise _readable(error, where) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _no_yaml(str(error.reason), where, line) from None
    except ValueError as error:  # a number or a tagged value that is none
        raise UserError(
            f"no YAML: {error}", where=where, remedy="put the value into quotes"
        ) from None


class _Walk:
    """Notes lines and values as they are written, with every alias written out, up to a limit."""

    def __init__(self, where: str) -> None:
        self.lines: dict[Place, int] = {}
        self.written: dict[Place, str] = {}
        self.problems: list[UserError] = []  # keys that stand twice in a mapping
        self._where, self._nodes = where, 0

    def visit(self, node: yaml.Node, place: Place) -> None:
        self._nodes += 1
        self._refuse_too_much(node, len(place))
        if isinstance(node, yaml.ScalarNode) and node.tag != _TEXT:
            self.written[place] = str(node.value)
        if isinstance(node, yaml.SequenceNode):
            for number, part in enumerate(node.value):
                self.visit(part, (*place, str(number)))
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    self._note(key, (*place, str(key.value)))
                    self.visit(value, (*place, str(key.value)))

    def _note(self, key: yaml.ScalarNode, place: Place) -> None:
        line = key.start_mark.line + 1
        if place in self.lines and key.value != "<<":
            self.problems.append(
                UserError(
                    f"key '{key.value}' is given twice, first at line {self.lines[place]}",
                    where=f"{self._where}, line {line}",
                    remedy="remove one of them",
                )
            )
        self.lines.setdefault(place, line)

    def _refuse_too_much(self, node: yaml.Node, depth: int) -> None:
        found = None
        if isinstance(node, yaml.ScalarNode) and "\0" in node.value:
            found = "a NUL character in a value"
        elif depth > _DEEPEST:  # also where an alias stands for what holds it
            found = f"more than {_DEEPEST} levels"
        elif self._nodes > _MOST_NODES:
            found = f"more than {_MOST_NODES:,} values, aliases written out"
        if found:
            raise _no_yaml(found, self._where, node.start_mark.line + 1)


def _readable(error: yaml.MarkedYAMLError, where: str) -> UserError:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else None
    started = error.context_mark
    context = error.context or ""
    if context and started and line != started.line + 1:
        context += f" that begins at line {started.line + 1}"
    found = str(error.problem) + (f" ({context})" if context else "")
    return _no_yaml(found, where, line)


def _no_yaml(found: str, where: str, line: int | None) -> UserError:
    remedy = next((text for part, text in _REMEDIES if part in found), "correct that line")
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
        return UserError(
            f"unknown key '{key}'",
            where=where,
            allowed=", ".join(keys),
            remedy=f"did you mean '{match}'?" if match else "remove it",
        )
    cause = getattr(part.get("ctx", {}).get("error"), "__cause__", None)
    if isinstance(cause, UserError):
        return UserError(
            f"key '{key}': {cause.found}", where=where, allowed=cause.allowed, remedy=cause.remedy
        )
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
