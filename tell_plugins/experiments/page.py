"""The report as one HTML page: no script, no other host, pictures inside."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape, unescape

import pandas as pd

from tell_plugins.experiments.conclusions import Conclusions
from tell_plugins.experiments.tables import readable

_STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --front: #1d1d1f; --soft: #5c5c66;
  --line: #d9d9de; --card: #f5f5f7; --link: #0059b3; }
@media (prefers-color-scheme: dark) {
  :root { --back: #16181c; --front: #e8e8ea; --soft: #a6a6b0; --line: #3a3d44; --card: #1f2228;
    --link: #7cb8ff; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; background: var(--back);
  color: var(--front); font: 16px/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; border-top: 1px solid var(--line);
  padding-top: 1.5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p, li { max-width: 46rem; }
.soft { color: var(--soft); font-size: .9rem; }
a { color: var(--link); }
code { background: var(--card); padding: .1em .3em; border-radius: 4px; font-size: .85em;
  overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
figure .scroll { background: #ffffff; }
figure img { max-width: max(100%, 42rem); height: auto; display: block; margin: 0 auto; }
figcaption { color: var(--soft); font-size: .85rem; }
.table { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px;
  margin: .5rem 0 1rem; }
table { border-collapse: collapse; font-size: .82rem; min-width: 100%; }
th, td { padding: .4rem .6rem; text-align: left; vertical-align: top; min-width: 5rem;
  border-bottom: 1px solid var(--line); }
td:first-child, th:first-child { min-width: 9rem; }
th { background: var(--card); }
tr:last-child td { border-bottom: 0; }
td { font-variant-numeric: tabular-nums; }
details { margin: .5rem 0; }
summary { cursor: pointer; color: var(--link); }
nav ul { padding-left: 1.2rem; }
"""


@dataclass(frozen=True)
class Figure:
    """A picture and what it shows."""

    caption: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """One study on the page. `tables` are shown open, `details` folded."""

    anchor: str
    title: str
    command: str
    conclusions: Conclusions
    corrections: list[str] = field(default_factory=list)  # dated; of what was published before
    figures: list[Figure] = field(default_factory=list)
    tables: list[tuple[str, pd.DataFrame]] = field(default_factory=list)
    details: list[tuple[str, pd.DataFrame]] = field(default_factory=list)


def render(title: str, intro: Sequence[str], sections: Sequence[Section]) -> str:
    """The page. Every text is escaped."""
    body = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(text)}</p>" for text in intro)]
    if len(sections) > 1:
        links = (f'<li><a href="#{escape(s.anchor)}">{escape(s.title)}</a></li>' for s in sections)
        body.append(f"<nav><ul>{''.join(links)}</ul></nav>")
    for section in sections:
        body += _section(section)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def anchors(page: str) -> list[str]:
    """The anchors of the sections of a page that `render` made."""
    return [unescape(anchor) for anchor in re.findall(r'^<section id="([^"]*)">$', page, re.M)]


def _section(section: Section) -> list[str]:
    found = section.conclusions
    parts = [
        f'<section id="{escape(section.anchor)}">',
        f"<h2>{escape(section.title)}</h2>",
        *(f"<p><strong>{escape(text)}</strong></p>" for text in section.corrections),
    ]
    parts += [_figure(figure) for figure in section.figures[:1]]
    parts += _list("", found.answers)
    for title, frame in section.tables:
        parts += [f"<h3>{escape(title)}</h3>", _table(frame)]
    parts += [_figure(figure) for figure in section.figures[1:]]
    parts += _list("What the numbers do not say", found.not_shown)
    parts += [f'<p class="soft">{escape(text)}</p>' for text in found.measured]
    parts.append(f'<p class="soft">Made by <code>{escape(section.command)}</code></p>')
    if found.shows:
        parts.append("<details><summary>Every comparison in words</summary>")
        parts += [*_list("", found.shows), "</details>"]
    for title, frame in section.details:
        parts.append(f"<details><summary>{escape(title)}</summary>{_table(frame)}</details>")
    return [*parts, "</section>"]


def _list(title: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    lines = "".join(f"<li>{escape(item)}</li>" for item in items)
    heading = [f"<h3>{escape(title)}</h3>"] if title else []
    return [*heading, f"<ul>{lines}</ul>"]


def _figure(figure: Figure) -> str:
    caption = escape(figure.caption)
    return (
        f'<figure><div class="scroll"><img alt="{caption}" src="{_data(figure.png)}"></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _table(frame: pd.DataFrame) -> str:
    shown = readable(frame)
    head = "".join(f"<th>{escape(str(column))}</th>" for column in shown.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in row) + "</tr>"
        for row in shown.to_numpy()
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="table">{table}</div>'
