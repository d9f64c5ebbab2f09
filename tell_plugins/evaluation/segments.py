"""Documents as lines: the opening sentence of the references, and which line answers which.

The documents of a translation task align line by line, so each line is a segment that can be
scored on its own, where whole documents exceed what learned metrics read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tell_plugins.evaluation.scored import Scored

_SENTENCE_END = re.compile(r"[:.!?]\s+")


@dataclass(frozen=True)
class Document:
    """One answer beside its reference.

    Attributes:
        row: the test row.
        answer, reference: whole texts, as in the paper.
        sources, hypotheses, references: the aligned lines, equally many, openings stripped.
        lines: how many lines the answer has (0 for none).
        opened: whether the answer began with the references' opening sentence.
        own_opening: whether it began with one of its own instead (see `own_opening`).
        cut: whether the limit of new tokens ended the answer.
    """

    row: int
    answer: str
    reference: str
    sources: list[str]
    hypotheses: list[str]
    references: list[str]
    lines: int
    opened: bool
    own_opening: bool
    cut: bool

    @property
    def aligned(self) -> bool:
        """Whether the answer has as many lines as the reference."""
        return self.lines == len(self.references)


def reference_opening(references: Sequence[str]) -> str:
    """The opening sentence that all references share at the front, "" when there is none.

    It ends at the last line break of the shared text, or at its last end of a sentence, so words
    that the references happen to share are left to them. One reference alone shows none.
    """
    if len(references) < 2:
        return ""
    shared = os.path.commonprefix([min(references), max(references)])
    lines = shared.rfind("\n") + 1
    ends = [match.end() for match in _SENTENCE_END.finditer(shared)]
    cut = lines or (ends[-1] if ends else 0)
    while cut < len(shared) and shared[cut].isspace():
        cut += 1
    return shared[:cut] if shared[:cut].strip() else ""


def strip_opening(text: str, opening: str) -> tuple[str, bool]:
    """`text` without the opening, and whether it had it; white space may differ."""
    words = opening.split()
    if not words:
        return text, False
    match = re.match(r"\s*" + r"\s+".join(map(re.escape, words)) + r"(?:\s+|$)", text)
    return (text[match.end() :], True) if match else (text, False)


def lines_of(text: str) -> list[str]:
    """The lines of a text, trimmed, without empty ones at both ends; [] for an empty text."""
    text = text.strip()
    return [line.strip() for line in re.split(r"\r\n?|\n", text)] if text else []


def align(answer: Sequence[str], count: int) -> tuple[list[str], int]:
    """The lines of an answer brought to `count` lines, and how many lines it had.

    Where the number differs, empty lines between others are first left out. If it still differs,
    missing lines are empty and surplus ones join the last: nothing of an answer is dropped.
    """
    lines = list(answer)
    if len(lines) != count:
        lines = [line for line in lines if line]
    found = len(lines)
    if found > count:
        lines = [*lines[: count - 1], " ".join(lines[count - 1 :])]
    return lines + [""] * (count - len(lines)), found


def own_opening(lines: Sequence[str], count: int) -> int:
    """How many leading lines are an opening of the answer's own, such as "Here you are:".

    Only where a line that ends in a colon is followed by exactly `count` lines: left there, it
    would set every line beside the wrong reference. At most two lines, else 0.
    """
    surplus = len(lines) - count
    return surplus if 0 < surplus <= 2 and lines[surplus - 1].endswith(":") else 0


def documents(scored: Scored) -> tuple[list[Document], str]:
    """Every answer as a document, and the opening sentence of the split's references.

    A document whose source and reference differ in their number of lines (none in the official
    data) is one segment as a whole.
    """
    task = scored.task
    opening = reference_opening(task.responses)
    found = []
    for answer in scored.answers:
        whole_reference = task.responses[answer.row]
        source = _filled(task.plain[answer.row])
        reference = _filled(strip_opening(whole_reference, opening)[0])
        stripped, opened = strip_opening(answer.text, opening)
        given = lines_of(stripped)
        filled = [line for line in given if line]
        extra = 0 if opened else own_opening(filled, len(reference))
        if extra:
            given = filled = filled[extra:]
        if len(source) != len(reference):
            source, reference = [" ".join(source)], [" ".join(reference)]
            given = [" ".join(filled)] if filled else []
        hypotheses, lines = align(given, len(reference))
        found.append(
            Document(
                row=answer.row,
                answer=answer.text,
                reference=whole_reference,
                sources=source,
                hypotheses=hypotheses,
                references=reference,
                lines=lines,
                opened=opened,
                own_opening=extra > 0,
                cut=answer.cut,
            )
        )
    return found, opening


def _filled(text: str) -> list[str]:
    """The lines of a text that are not empty; one empty line where there are none."""
    return [line for line in lines_of(text) if line] or [""]
