"""The report as one HTML page: no script, no other host, pictures inside."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path

from tell_plugins.evaluation.grids import Grid
from tell_plugins.experiments.conclusions import Conclusions

_TEMPLATE = "page.html.jinja"  # beside this file, with its style in page.css


@dataclass(frozen=True)
class Figure:
    """A picture and what it shows."""

    caption: str
    png: bytes

    @property
    def data(self) -> str:
        """The picture as an address that holds it."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Section:
    """One study on the page. `tables` are shown open, `details` folded."""

    anchor: str
    title: str
    command: str
    conclusions: Conclusions
    corrections: list[str] = field(default_factory=list)  # dated; of what was published before
    figures: list[Figure] = field(default_factory=list)
    tables: list[Grid] = field(default_factory=list)
    details: list[Grid] = field(default_factory=list)


def render(title: str, intro: Sequence[str], sections: Sequence[Section]) -> str:
    """The page. Every text is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = environment.get_template(_TEMPLATE)
    return template.render(title=title, intro=intro, sections=sections)


def anchors(page: str) -> list[str]:
    """The anchors of the sections of a page that `render` made."""
    return [unescape(anchor) for anchor in re.findall(r'^<section id="([^"]*)">$', page, re.M)]
