"""What is shown: no control character, formula, script or secret among it; plain text tables.

What reaches the terminal is UTF-8 whatever the locale. Which keys hold a secret is told by the kind
of their name: for recipes, flags and logs alike.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from tell_plugins.core import paths

HIDDEN = "***"
_SECRET = re.compile(r"(^|[_-])(token|secret|key|password|webhook)([_-]url)?$", re.IGNORECASE)
_OPEN = ("vera_projection_prng_key", "reft_layer_key")  # settings of ms-swift that lock nothing


def is_secret(name: str) -> bool:
    """Whether what stands under this name is a secret."""
    return name not in _OPEN and _SECRET.search(name) is not None


def secret_keys(values: Mapping[str, Any]) -> Iterator[str]:
    """The names that hold a secret, those inside of mappings (`ENV`) as `outer.inner`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from (f"{name}.{inner}" for inner in secret_keys(value))
        elif value and is_secret(str(name)):
            yield str(name)


def hide_secrets(text: str, argv: Sequence[str]) -> str:
    """`text`, which tells of the command line `argv`, without the values of its secrets."""
    for place, part in enumerate(argv):
        name, equals, value = part.partition("=")
        if name.startswith("--") and is_secret(name.lstrip("-")):
            value = value if equals else "".join(argv[place + 1 : place + 2])
            text = text.replace(value, HIDDEN) if value else text
    return text


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    indent: str = "  ",
    right: Collection[str] = (),
) -> str:
    """A table as text; numbers get thousands separators, None shows as a dash.

    Numbers stand to the right, and so do the columns named in `right`.
    """
    columns = []
    for place, name in enumerate(header):
        cells = [row[place] for row in rows]
        texts = [name, *map(_cell, cells)]
        width = max(map(len, texts))
        numbers = cells and all(isinstance(cell, (int, float, type(None))) for cell in cells)
        to_right = numbers or name in right
        columns.append([f"{text:{'>' if to_right else '<'}{width}}" for text in texts])
    return "\n".join(indent + "  ".join(line).rstrip() for line in zip(*columns, strict=True))


def count_of(number: int, what: str, ending: str = "s") -> str:
    """`1 row`, `2,000 rows`."""
    return f"{number:,} {what}{'' if number == 1 else ending}"


def _cell(cell: object) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:g}" if isinstance(cell, float) else str(cell)


# all but tab and line break; and what turns the direction of a line around
_CONTROL = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
_COLOUR = r"\x1b\[[0-9;]*m"
_BAR = r"\r|\x1b\[[AK]"  # how a progress bar goes back over itself
_SHOWN = {1: re.compile(f"({_COLOUR})|{_CONTROL}"), 2: re.compile(f"({_COLOUR}|{_BAR})|{_CONTROL}")}


def shown_text(text: str) -> str:
    """`text` with its control characters written out (`\\x1b`), as texts of files are shown."""
    return re.sub(_CONTROL, lambda match: _written(match[0]), text)


def _written(character: str) -> str:
    return character.encode("unicode_escape").decode()


def csv_cell(value: Any) -> Any:
    """A cell that a spreadsheet does not take for a formula; numbers, and lists of numbers parted
    by ", ", stay as they are."""
    if not isinstance(value, str) or len(value) < 2 or value[0] not in "=+-@\t\r":
        return value
    try:
        for number in value.split(", "):
            float(number)
    except ValueError:
        return "'" + value
    return value


def markdown_cell(value: Any) -> str:
    """A cell of a Markdown table; what would be a tag of HTML is text."""
    text = str(value).replace("|", "\\|").replace("\n", " ")
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)


class _Shown:
    """A stream that shows text; everything else is the stream's own."""

    def __init__(self, stream: Any, number: int) -> None:
        self._stream, self._pattern = stream, _SHOWN[number]

    def write(self, text: str) -> int:
        kept = self._pattern.sub(lambda match: match[1] or _written(match[0]), text)
        if not paths.IS_CHECKOUT:
            kept = kept.replace("./run.sh", "tell")  # the command that the package installs
        self._stream.write(kept)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def safe_output() -> Iterator[None]:
    """Standard output and error that take any text, closed ones included."""
    before = sys.stdout, sys.stderr
    for number, name in ((1, "stdout"), (2, "stderr")):
        # of a closed one, a stream to nowhere; it gets the lowest free number, which is the same
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
        setattr(sys, name, _Shown(stream, number))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
