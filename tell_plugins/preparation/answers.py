"""What the answers of an own task are: JSON and its schema, closed labels, numbers or free text."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError, unknown
from tell_plugins.core.numbers import final_number, whole_number
from tell_plugins.core.schemas import compile_schema
from tell_plugins.core.state_files import parse_json
from tell_plugins.core.text import normalise
from tell_plugins.preparation import forms
from tell_plugins.preparation.forms import Pair, TaskFile
from tell_plugins.recipe.tables import count_of

METRICS = ("json", "label", "translation", "number", "text")
MOST_LABELS = 150  # more different answers are free text
MOST_VALUES = 12  # a property with more different texts is free text
LONGEST_VALUE = 60  # characters of one value of an enumeration
NO_LABEL = "none"
_FEWEST_ROWS = 10  # fewer show nothing by answers that come again
_SHOWN = 5
_CHARS_SHOWN = 20  # of an answer, from where it is no JSON
_TIMES_SEEN = 4  # how often a value of an enumeration is seen, on average
_MOST_NEW = 0.05  # the chance of another value up to which there is none
_DEEPEST = 8  # levels of objects and lists that get a rule
_WHOLE = re.compile(r"[-+]?\d+(\.0+)?")
_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_TYPES: dict[type, str] = {
    **{str: "string", bool: "boolean", int: "integer", float: "number"},
    **{list: "array", dict: "object", type(None): "null"},
}


def kind_of(file: TaskFile) -> str:
    """The metric that the responses of a file call for, where the user names none."""
    responses = [pair.response for pair in file.pairs]
    if means_json(file):
        return "json"
    if are_labels(responses):
        return "label"
    return "number" if all(whole_number(text) is not None for text in responses) else "text"


def are_labels(texts: Sequence[str]) -> bool:
    """Whether answers are closed labels: a few short ones, most of which come again.

    Of numbers at most `MOST_VALUES` different ones are labels, and none with decimals.
    """
    counts = Counter(normalise(text) for text in texts)
    again = sum(count > 1 for count in counts.values())
    numbers = all(whole_number(text) is not None for text in counts)
    return (
        len(texts) >= _FEWEST_ROWS
        and 2 <= len(counts) <= (MOST_VALUES if numbers else MOST_LABELS)
        and 2 * len(counts) <= len(texts)
        and 2 * again >= len(counts)
        and all(len(text) <= LONGEST_VALUE and "\n" not in text.strip() for text in texts)
        and (not numbers or all(_WHOLE.fullmatch(text) for text in counts))
    )


def need_numbers(file: TaskFile) -> None:
    """UserError when a response ends with no number that can be read whole."""
    without = [pair.line for pair in file.pairs if final_number(pair.response) is None]
    if without:
        raise UserError(
            f"metric 'number', but responses end with none: {forms.lines_named(without, _SHOWN)}",
            where=paths.shown(file.path),
            allowed="a response that ends with `#### <number>`, or a number with a decimal point: "
            "12.5 or 1,234.5",
            remedy="correct the rows, or name another --metric",
        )


# ------------------------------------------------------------------------- JSON that is broken


def strict_json(text: str) -> Any:
    """The JSON value in `text` as the strict scorer takes it.

    Raises ValueError, which says where, for anything else.
    """
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        rest = text[error.pos : error.pos + _CHARS_SHOWN].strip()
        raise ValueError(f"{error.msg} at {repr(rest) if rest else 'its end'}") from None


def no_json(text: str) -> str | None:
    """Why a response is no JSON object or list; None where it is."""
    try:
        value = strict_json(text)
    except ValueError as error:
        return f"no JSON ({error})"
    return None if isinstance(value, dict | list) else "no JSON object or list"


def means_json(file: TaskFile) -> bool:
    """Whether most responses are JSON objects or lists, be they broken."""
    texts = [pair.response.strip() for pair in file.pairs]
    return 2 * sum(text[:1] + text[-1:] in ("{}", "[]") for text in texts) > len(texts)


def without_broken_json(file: TaskFile) -> TaskFile:
    """The file without answers that are broken JSON, with a note that lists them.

    A file of which nothing would be left stays as it is.
    """
    kept = [pair for pair in file.pairs if no_json(pair.response) is None]
    if not kept or len(kept) == len(file.pairs):
        return file
    note = forms.left_out(file.path, forms.problems_of(file, no_json))
    return replace(file, pairs=kept, notes=(*file.notes, note))


def with_json(file: TaskFile) -> TaskFile:
    """The file with answers that are Python's dicts and lists as JSON; a note says which."""
    broken = [pair for pair in file.pairs if no_json(pair.response) is not None]
    changed = {pair: text for pair in broken if (text := json_of_python(pair.response))}
    note = f"--repair-json: no answer of {file.path.name} is a Python dict or list"
    if changed:
        first, written = next(iter(changed.items()))
        lines = forms.lines_named([pair.line for pair in changed], None)
        note = (
            f"repaired: {len(changed)} answers of {file.path.name} are Python's and are written "
            f"as JSON, {lines}; the first: {first.response.strip()}  ->  {written}"
        )
    pairs = [pair._replace(response=changed.get(pair, pair.response)) for pair in file.pairs]
    return replace(file, pairs=pairs, notes=(*file.notes, note))


def json_of_python(text: str) -> str | None:
    """A Python dict or list as JSON, None where it is none or JSON could not say the same.

    That is so for tuples and sets, keys that are no texts or stand twice, infinite numbers, and
    texts side by side, where a comma may be missing.
    """
    text = text.strip()
    if not text.startswith(("{", "[")):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a backslash that Python only guesses at
            tree = ast.parse(text, mode="eval")
        value = ast.literal_eval(tree)
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
        written.encode()
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError, tokenize.TokenError):
        return None
    nodes = list(ast.walk(tree))
    keys = [
        [ast.dump(key) for key in node.keys if key] for node in nodes if isinstance(node, ast.Dict)
    ]
    once = all(len(set(names)) == len(names) for names in keys)
    texts = sum(isinstance(node, ast.Constant) and isinstance(node.value, str) for node in nodes)
    apart = texts == sum(token.type == tokenize.STRING for token in tokens)
    return written if json.loads(written) == value and once and apart else None


# ------------------------------------------------------------------------- the schema


def infer_schema(values: Sequence[Any]) -> dict[str, Any]:
    """A JSON schema that all `values` fit, and that leaves open what they do not show closed.

    Keys that all have are required; further ones are forbidden where all have the same keys. A
    text is an enumeration where its values come again so often that another is unlikely.
    """
    rule = _rule(values, 0) if values else {"type": ["array", "object"]}
    return {"$schema": _DRAFT, **rule}


def _rule(values: Sequence[Any], depth: int) -> dict[str, Any]:
    types = sorted({_TYPES[type(value)] for value in values})
    if types == ["integer", "number"]:
        types = ["number"]
    if types == ["string"]:
        if _are_closed(values):
            return {"enum": sorted(set(values))}
        return {"type": "string", "minLength": 1} if all(values) else {"type": "string"}
    rule: dict[str, Any] = {"type": types[0] if len(types) == 1 else types}
    if depth == _DEEPEST:
        return rule
    objects = [value for value in values if isinstance(value, dict)]
    items = [item for value in values if isinstance(value, list) for item in value]
    if objects:
        keys = dict.fromkeys(key for value in objects for key in value)
        rule["properties"] = {
            key: _rule([value[key] for value in objects if key in value], depth + 1) for key in keys
        }
        rule["required"] = [key for key in keys if all(key in value for value in objects)]
        if len(rule["required"]) == len(keys):
            rule["additionalProperties"] = False
    if items:
        rule["items"] = _rule(items, depth + 1)
    return rule


def _are_closed(texts: Sequence[str]) -> bool:
    """Whether the next row is unlikely to bring another text.

    By Good and Turing's estimate, the share of values seen once is the chance of a new one.
    """
    counts = Counter(texts)
    once = sum(count == 1 for count in counts.values())
    return (
        len(counts) <= MOST_VALUES
        and _TIMES_SEEN * len(counts) <= len(texts)
        and once <= _MOST_NEW * len(texts)
        and all(0 < len(text) <= LONGEST_VALUE for text in counts)
    )


def check_answers(file: TaskFile, schema: dict[str, Any]) -> None:
    """UserError when a response does not fit the schema, or the schema cannot be applied."""
    validator = compile_schema(schema, "--schema")

    def reason(text: str) -> str | None:
        try:
            found = next(iter(validator.iter_errors(strict_json(text))), None)
        except ValueError as error:
            return f"no JSON ({error})"
        return None if found is None else found.message[:120]

    problems = forms.problems_of(file, reason)
    if not problems:
        return
    remedy = "mend the rows, or give the right schema with --schema FILE; of answers that are no "
    remedy += "JSON, --drop-broken leaves the rows out, and --metric text takes them as they are"
    if any(reason(pair.response) and json_of_python(pair.response) for pair in file.pairs):
        remedy = f"where they are Python's, --repair-json writes them as JSON; or {remedy}"
    raise UserError(
        f"not all responses are JSON that fits the schema: {forms.told(problems)}",
        where=paths.shown(file.path),
        remedy=remedy,
    )


# ------------------------------------------------------------------------- the label


def label_of(schema: dict[str, Any], wanted: str | None) -> str | None:
    """The property that carries the label: `wanted`, else the only enumeration, else None.

    "none" wants no label. Raises UserError when `wanted` is no property of the schema.
    """
    properties = schema.get("properties", {})
    if wanted is not None and wanted in properties:
        return wanted
    if wanted is not None and wanted != NO_LABEL:
        raise unknown("property", wanted, [*properties, NO_LABEL], "--label")
    listed = [key for key, rule in properties.items() if isinstance(rule, dict) and "enum" in rule]
    return listed[0] if len(listed) == 1 and wanted is None else None


def label_in(response: str, key: str | None) -> str | None:
    """The label of an answer: what stands under `key` of a JSON one, None where nothing does; else
    the whole answer."""
    if key is None:
        return response
    try:
        answer = strict_json(response)
    except ValueError:
        return None
    value = answer.get(key) if isinstance(answer, dict) else None
    return None if value is None else str(value)


def labels_of(responses: Sequence[str], metric: str, key: str | None) -> list[str] | None:
    """The label of each answer, None where the answers have none."""
    if key is None and metric != "label":
        return None
    return [str(label_in(response, key)).strip() for response in responses]


def close_label(schema: dict[str, Any], key: str, responses: Sequence[str]) -> None:
    """Make the property that the user calls the label an enumeration of the trained labels."""
    if schema["properties"][key].get("type") == "string":
        labels = {label_in(response, key) for response in responses}
        schema["properties"][key] = {"enum": sorted(label for label in labels if label is not None)}


def one_spelling(files: dict[str, TaskFile], key: str | None, clean: bool) -> None:
    """Bring labels that differ only in blanks, case or Unicode form to their most frequent form.

    Raises UserError that names them unless `clean` says to. Blanks around labels that have no
    other form are taken off unasked.
    """
    found = [label_in(pair.response, key) for file in files.values() for pair in file.pairs]
    counts = Counter(label for label in found if label is not None)
    groups: dict[str, list[str]] = {}
    for form, _ in counts.most_common():
        groups.setdefault(normalise(form), []).append(form)
    several = [group for group in groups.values() if len(group) > 1]
    if several and not clean:
        shown = "; ".join(
            ", ".join(f"{form!r} ({count_of(counts[form], 'row')})" for form in group)
            for group in several[:_SHOWN]
        )
        raise UserError(
            f"labels that differ only in blanks, case or Unicode form: {shown}",
            where=paths.shown(files["train"].path),
            allowed="one form of each label",
            remedy="--clean-labels writes each in its most frequent form; or mend the rows",
        )
    to = {form: group[0].strip() for group in groups.values() for form in group}

    def written(pair: Pair) -> Pair:
        label = label_in(pair.response, key)
        if label is None or to[label] == label:
            return pair
        answer = to[label] if key is None else {**parse_json(pair.response), key: to[label]}
        text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
        return pair._replace(response=text)

    for name, file in files.items():
        files[name] = replace(file, pairs=[written(pair) for pair in file.pairs])
