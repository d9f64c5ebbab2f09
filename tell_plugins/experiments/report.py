"""Tables, pictures and one HTML page of all sweeps in a folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tell_plugins.core import paths
from tell_plugins.core.progress import tracked
from tell_plugins.evaluation.grids import Record, grid_of, to_csv, to_markdown
from tell_plugins.evaluation.paper_numbers import published
from tell_plugins.experiments import plots, tables
from tell_plugins.experiments.conclusions import conclude
from tell_plugins.experiments.corrections import corrections
from tell_plugins.experiments.fairness import LEAST_AFFECTED, LIMIT_NATS, LIMIT_POINTS
from tell_plugins.experiments.measures import Judge
from tell_plugins.experiments.page import Figure, Section, anchors, render
from tell_plugins.experiments.results import ReferenceShelf, Study, load_studies
from tell_plugins.experiments.whole import refuse_damaged

TABLES, PICTURES, PAGE = "tables", "pictures", "report.html"
# what a study's files are called after its name, `fits` and `steps` by earlier releases; others in
# the same folders are not the report's
_TABLE_NAMES = ("methods", "comparisons", "efficiency", "fits", "published", "failures", "runs")
_PICTURE_NAMES = ("forest", "curve", "methods", "steps", "training")
_INTRO = (
    "Every number is counted from the saved answers that lie beside this page, and stands with "
    "its 95 % interval: k/n = share [low, high] (Wilson; several seeds' answers to one row count "
    "for less than as many rows). Differences are over the same rows, with Newcombe's interval for "
    "pairs.",
    "Adherence is whether the answer alone obeys the task's JSON schema; balanced accuracy counts "
    "an answer of the wrong form as wrong. Bleed is the share of general questions, asked without "
    "the anchor, whose answer opens as the task's answers do. Losses are per token, against the "
    "base model: on foreign instructions and prose, which no run trains on, and as style fit on "
    "held-out rows of the general data that trains, which is no sign of what was kept.",
    "Exposure is how much learning rate the task rows met, in rows at the full rate. A comparison "
    "names the smallest difference that its rows show in four of five tests. No conclusion is "
    "drawn where exposure is 0 or alone may explain the difference, where fewer than "
    f"{LEAST_AFFECTED} rows are affected by a leak, and where only more than {LIMIT_POINTS:.0f} "
    f"points or {LIMIT_NATS} nats would have been seen and nothing was.",
)


@dataclass
class StudyReport:
    """What the report says of one study, before it is written."""

    study: Study
    section: Section
    tables: dict[str, list[Record]] = field(default_factory=dict)
    pictures: list[plots.Picture] = field(default_factory=list)


def write_report(root: Path, out: Path) -> list[Path]:
    """Write tables, pictures and page of the sweeps in `root`; the files, the page last.

    Tables and pictures that only the earlier report in `out` has are removed. Raises UserError for
    a folder without sweeps, damaged answers, or when the right labels are nowhere to be had.
    """
    studies = load_studies(root)
    refuse_damaged(studies)
    judge = Judge(ReferenceShelf(root))
    reports = [report_on(study, judge) for study in tracked(studies, "reading", "sweeps")]
    corrected = corrections(root)
    for report in reports:
        report.section.corrections.extend(corrected.get(report.study.name, []))
    earlier = _earlier_studies(out / PAGE)
    written: list[Path] = []
    for report in reports:
        for name, records in report.tables.items():
            grid = grid_of(records, without=tables.HIDDEN)
            for ending, text in (("csv", to_csv(records)), ("md", to_markdown(grid))):
                written.append(out / TABLES / f"{report.study.name}_{name}.{ending}")
                paths.write_text(written[-1], text)
        for picture in report.pictures:
            png = picture.png()
            written.append(out / PICTURES / f"{picture.name}.png")
            with paths.atomic_path(written[-1]) as temporary:
                temporary.write_bytes(png)
            report.section.figures.append(Figure(picture.caption, png))
    title = studies[0].title if len(studies) == 1 else f"{len(studies)} experiments"
    intro = [*corrected.get("", []), *_INTRO]
    page = render(title, intro, [report.section for report in reports])
    paths.write_text(out / PAGE, page)
    for path in _files(out, {*earlier, *(study.name for study in studies)}):
        if path not in written:
            path.unlink(missing_ok=True)
    return [*written, out / PAGE]


def _earlier_studies(page: Path) -> list[str]:
    """The names of the studies that an earlier report is about; its page has a section of each."""
    try:
        return anchors(page.read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError):
        return []


def _files(out: Path, names: Iterable[str]) -> Iterator[Path]:
    """Every table and picture that a report may have of these studies."""
    for name in names:
        for table in _TABLE_NAMES:
            for ending in ("csv", "md"):
                yield out / TABLES / f"{name}_{table}.{ending}"
        for picture in _PICTURE_NAMES:
            yield out / PICTURES / f"{name}_{picture}.png"


def report_on(study: Study, judge: Judge) -> StudyReport:
    """Tables, pictures and sentences of one study."""
    found = tables.groups(study, judge)
    made = {
        "methods": tables.methods_table(study, found),
        "comparisons": tables.comparisons_table(study, found, judge),
        "efficiency": tables.efficiency_table(study, found),
        "published": tables.published_table(study),
        "failures": tables.failures_table(found),
        "runs": tables.runs_table(study, judge),
    }
    made = {name: records for name, records in made.items() if records}
    section = Section(
        anchor=study.name,
        title=study.title,
        command=study.index["command"],
        conclusions=conclude(study, found, judge),
    )
    shown = {
        "Methods, all seeds together": made.get("methods"),
        f"{study.plot.reference} minus each other method": made.get("comparisons"),
        "Token efficiency": made.get("efficiency"),
        "The paper's numbers": made.get("published"),
        "What each control tells": tables.meanings_table(study),
    }
    details = {
        "Every measure of every method": made.get("methods"),
        "Why answers failed": made.get("failures"),
        "Every run": made.get("runs"),
    }
    aside = (*tables.HIDDEN, *tables.ASIDE)
    section.tables.extend(grid_of(r, title, aside) for title, r in shown.items() if r)
    section.details.extend(grid_of(r, title, tables.HIDDEN) for title, r in details.items() if r)
    note = published(study.plot.paper, study.name)
    if note is not None and note.note:
        section.conclusions.not_shown.append(f"On the paper's numbers: {note.note}")
    return StudyReport(study, section, made, plots.pictures(study, found, judge))
