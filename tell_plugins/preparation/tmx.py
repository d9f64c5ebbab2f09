"""Translation memories (TMX) as a stream of sentence pairs.

The file is read in pieces and no tree is built, so memory does not grow with it. Entity
declarations are refused, so a file cannot blow itself up or read others; the bare DOCTYPE line
that names the format's DTD, which most TMX files carry, is harmless: expat never fetches it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.parsers import expat

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.core.progress import track

_BLOCK = 1 << 18
_CODE = frozenset(("bpt", "ept", "it", "ph", "ut"))  # inline elements that hold formatting codes
MAX_SEGMENT = 200_000  # characters of one segment


def read_pairs(path: Path, languages: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The texts of each translation unit that has all of `languages` (codes such as "en").

    Blanks are closed up, formatting codes left out. Raises UserError for a file that is no TMX,
    is broken, or declares entities.
    """
    if not path.is_file():
        raise UserError(f"no file '{path}'", where="--tmx", remedy="correct the path")
    units = _Units(path, tuple(languages))
    with path.open("rb") as file, track(path.stat().st_size, f"reading {path.name}", "B") as bar:
        bar.unit_scale = True
        while block := file.read(_BLOCK):
            units.feed(block)
            bar.update(len(block))
            yield from units.take()
        units.feed(b"", last=True)
        yield from units.take()
    if not units.seen:
        raise UserError(
            "no translation unit (<tu>) is in it", where=paths.shown(path), remedy="name a TMX file"
        )


class _Units:
    """Collects the translation units of a TMX file that is fed piece by piece."""

    def __init__(self, path: Path, languages: tuple[str, ...]) -> None:
        self.seen = 0
        self._path, self._languages = path, languages
        self._done: list[tuple[str, ...]] = []
        self._texts: dict[str, str] = {}
        self._language: str | None = None
        self._segment: list[str] | None = None
        self._length = 0
        self._code_depth = 0
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text
        self._parser.EntityDeclHandler = self._entity
        self._parser.SkippedEntityHandler = self._unknown_entity
        self._parser.StartDoctypeDeclHandler = self._doctype

    def feed(self, block: bytes, last: bool = False) -> None:
        try:
            self._parser.Parse(block, last)
        except expat.ExpatError as error:
            raise self._error(f"no XML: {expat.errors.messages[error.code]}") from None
        except (LookupError, ValueError) as error:  # an encoding of several bytes, or of nobody
            raise self._error(
                f"it cannot be read as it is encoded: {error}",
                "iconv -f ENCODING -t UTF-8, and correct the name in its first line",
            ) from None

    def take(self) -> list[tuple[str, ...]]:
        done, self._done = self._done, []
        return done

    def _error(self, found: str, remedy: str = "name a whole TMX file") -> UserError:
        line = self._parser.CurrentLineNumber
        return UserError(found, where=f"{paths.shown(self._path)}, line {line}", remedy=remedy)

    def _entity(self, name: str, *_: Any) -> None:
        raise self._error(f"it declares an entity ('{name}'), which is refused")

    def _unknown_entity(self, name: str, _parameter: bool) -> None:
        raise self._error(f"it uses an entity ('{name}') that it does not define")

    def _doctype(self, _name: str, _system: Any, _public: Any, has_subset: bool) -> None:
        if has_subset:
            raise self._error("it declares a document type of its own, which is refused")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "tu":
            self._texts = {}
        elif name == "tuv":
            code = attributes.get("xml:lang") or attributes.get("lang") or ""
            self._language = code.replace("_", "-").partition("-")[0].lower()
        elif name == "seg":
            self._segment, self._length = [], 0
        elif name in _CODE:
            self._code_depth += 1

    def _text(self, text: str) -> None:
        if self._segment is None or self._code_depth:
            return
        self._length += len(text)
        if self._length > MAX_SEGMENT:
            raise self._error(f"a segment has more than {MAX_SEGMENT:,} characters")
        self._segment.append(text)

    def _end(self, name: str) -> None:
        if name == "seg" and self._segment is not None:
            text = " ".join("".join(self._segment).split())
            if self._language and text:
                self._texts.setdefault(self._language, text)
            self._segment = None
        elif name in _CODE:
            self._code_depth -= 1
        elif name == "tu":
            self.seen += 1
            if all(language in self._texts for language in self._languages):
                self._done.append(tuple(self._texts[language] for language in self._languages))
