"""Translation memories (TMX) as a stream of sentence pairs.

The file is read unit by unit, so memory does not grow with it. Entities and document types of a
file's own are refused, so it cannot blow itself up or read others; the bare DOCTYPE line that names
the format's DTD, which most TMX files carry, is harmless: nothing is fetched for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lxml import etree

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.core.progress import track

_CODE = ("bpt", "ept", "it", "ph", "ut")  # inline elements that hold formatting codes
_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
MAX_SEGMENT = 200_000  # characters of one segment


def read_pairs(path: Path, languages: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The texts of each translation unit that has all of `languages` (codes such as "en").

    Blanks are closed up, formatting codes left out. Raises UserError for a file that is no TMX,
    is broken, or declares entities.
    """
    if not path.is_file():
        raise UserError(f"no file '{path}'", where="--tmx", remedy="correct the path")
    unit = None
    with path.open("rb") as file, track(path.stat().st_size, f"reading {path.name}", "B") as bar:
        bar.unit_scale = True
        try:
            for _, part in etree.iterparse(file, tag="tu", resolve_entities=False):
                if unit is None:
                    _refuse_document_type(part, path)
                unit = part
                bar.update(file.tell() - bar.n)
                texts = _texts(unit, path)
                if all(language in texts for language in languages):
                    yield tuple(texts[language] for language in languages)
                _forget(unit)
        except etree.XMLSyntaxError as error:
            raise _error(path, error.lineno, f"no XML: {error.msg}") from None
    if unit is None:
        raise UserError(
            "no translation unit (<tu>) is in it", where=paths.shown(path), remedy="name a TMX file"
        )


def _texts(unit: Any, path: Path) -> dict[str, str]:
    """The text of each language's first segment."""
    texts: dict[str, str] = {}
    for variant in unit.iterchildren("tuv"):
        code = (variant.get(_LANGUAGE) or variant.get("lang") or "").replace("_", "-")
        for segment in variant.iterchildren("seg"):
            for entity in segment.iter(etree.Entity):
                what = f"it uses an entity ('{entity.name}') that it does not define"
                raise _error(path, segment.sourceline, what)
            etree.strip_elements(segment, *_CODE, with_tail=False)
            text = "".join(segment.itertext())
            if len(text) > MAX_SEGMENT:
                what = f"a segment has more than {MAX_SEGMENT:,} characters"
                raise _error(path, segment.sourceline, what)
            if code and text.strip():
                texts.setdefault(code.partition("-")[0].lower(), " ".join(text.split()))
    return texts


def _refuse_document_type(unit: Any, path: Path) -> None:
    kind = unit.getroottree().docinfo.internalDTD
    if kind is not None and [*kind.iterentities(), *kind.iterelements()]:
        raise _error(path, 1, "it declares entities or elements of its own, which is refused")


def _forget(unit: Any) -> None:
    """Take a unit, and what stands before it, out of the tree."""
    unit.clear()
    while unit.getprevious() is not None:
        del unit.getparent()[0]


def _error(path: Path, line: int, found: str) -> UserError:
    return UserError(
        found, where=f"{paths.shown(path)}, line {line}", remedy="name a whole TMX file"
    )
