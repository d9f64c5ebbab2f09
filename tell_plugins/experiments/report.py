"""`./run.sh report DIR`: tables, pictures and one HTML page of all sweeps in a folder.

The page has no script, names no other host, and holds its pictures; its template is
`page.html.jinja` beside this file.
"""

from __future__ import annotations

import argparse
import base64
from collections.abc import Sequence
from pathlib import Path

from tell_plugins.core import paths
from tell_plugins.core.cards import card_names
from tell_plugins.core.progress import tracked
from tell_plugins.core.state_files import Shape, read_json
from tell_plugins.evaluation.grids import Grid, Record, grid_of, to_csv, to_markdown
from tell_plugins.experiments import derived_cards, plots, tables
from tell_plugins.experiments.conclusions import conclude
from tell_plugins.experiments.outcome import (
    LEAST_AFFECTED,
    LIMIT_NATS,
    LIMIT_POINTS,
    Judge,
    Outcome,
)
from tell_plugins.experiments.results import collect, load_studies, refuse_damaged
from tell_plugins.experiments.sweep import meaning

TABLES, PICTURES, PAGE = "tables", "pictures", "report.html"
CORRECTIONS = "corrections.json"
# what a study's files are called after its name; others in the same folders are not the report's
_NAMES = {*tables.TABLES, *plots.FIGURES}
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="folder of ./run.sh sweep, or one that --collect made")
    parser.add_argument("--out", help="where the report goes (default: into the folder itself)")
    parser.add_argument(
        "--collect",
        metavar="DIR",
        help="first copy what the report needs, compressed, into DIR, and report on that",
    )


def run(args: argparse.Namespace) -> int:
    root = paths.user_path(args.folder)
    for flag, given in (("--out", args.out), ("--collect", args.collect)):
        if given:
            paths.make_folder(paths.user_target(given), flag)
    _know_cards(root)
    if args.collect:
        target = paths.user_target(args.collect)
        files = collect(root, target)
        size = sum(path.stat().st_size for path in set(files)) / 1e6
        print(f"collected {len(files)} files, {size:.1f} MB: {paths.shown(target)}")
        root = target
        _know_cards(root)
    for path in write_report(root, paths.user_target(args.out) if args.out else root):
        print(paths.shown(path))
    return 0


def _know_cards(root: Path) -> None:
    """Let the task cards that were collected be found where the user does not have them."""
    cards = root / "cards"
    needed = {entry.card for study in load_studies(root) for entry in study.entries}
    if cards.is_dir() and not needed <= set(card_names()):
        derived_cards.use(cards)


def write_report(root: Path, out: Path) -> list[Path]:
    """Write tables, pictures and page of the sweeps in `root`; the files, the page last.

    Tables and pictures of a study that it had in an earlier report and has no longer are removed.
    Raises UserError for a folder without sweeps, for damaged answers, and when the right labels
    are nowhere to be had.
    """
    studies, corrected = load_studies(root), corrections(root)
    refuse_damaged(studies)
    judge = Judge(root)
    files: dict[Path, bytes] = {}
    sections = []
    for study in tracked(studies, "reading", "sweeps"):
        outcome = Outcome(study, judge)
        made = {name: of(outcome) for name, of in tables.TABLES.items()}
        made = {name: records for name, records in made.items() if records}
        figures: list[tuple[str, str]] = []  # caption, address that holds it
        for name, records in made.items():
            stem = f"{study.name}_{name}"
            files[out / TABLES / f"{stem}.csv"] = to_csv(records).encode()
            text = to_markdown(grid_of(records, without=tables.HIDDEN))
            files[out / TABLES / f"{stem}.md"] = text.encode()
        for picture in plots.pictures(outcome):
            png = files[out / PICTURES / f"{study.name}_{picture.name}.png"] = picture.png()
            data = f"data:image/png;base64,{base64.b64encode(png).decode()}"
            figures.append((picture.caption, data))
        section = {"figures": figures, "corrections": corrected.get(study.name, [])}
        sections.append(section | _section(outcome, made))
    intro = [*corrected.get("", []), *_INTRO]
    title = studies[0].title if len(studies) == 1 else f"{len(studies)} experiments"
    files[out / PAGE] = render(title, intro, sections).encode()
    for path, content in files.items():
        with paths.atomic_path(path) as temporary:
            temporary.write_bytes(content)
    names = {f"{study.name}_{name}" for study in studies for name in _NAMES}
    for path in (*(out / TABLES).glob("*"), *(out / PICTURES).glob("*")):
        if path not in files and path.stem in names:
            path.unlink()
    return list(files)


def _section(outcome: Outcome, made: dict[str, list[Record]]) -> dict[str, object]:
    """What the page says of one study: `shown` tables stand open, `details` folded."""
    study = outcome.study
    told = {name: meaning(name) for name in dict.fromkeys(e.method for e in study.entries)}
    made = made | {"meanings": [{"method": n, "tells": text} for n, text in told.items() if text]}
    shown = {
        "methods": "Methods, all seeds together",
        "comparisons": f"{study.plot.reference} minus each other method",
        "efficiency": "Token efficiency",
        "published": "The paper's numbers",
        "meanings": "What each control tells",
    }
    details = {
        "methods": "Every measure of every method",
        "failures": "Why answers failed",
        "runs": "Every run",
    }

    def grids(titles: dict[str, str], without: Sequence[str]) -> list[Grid]:
        return [grid_of(made[n], title, without) for n, title in titles.items() if made.get(n)]

    return {
        "study": study,
        "conclusions": conclude(outcome),
        "shown": grids(shown, (*tables.HIDDEN, *tables.ASIDE)),
        "details": grids(details, tables.HIDDEN),
    }


class _Correction(Shape):
    date: str
    text: str
    study: str = ""


def corrections(root: Path) -> dict[str, list[str]]:
    """Dated sentences on what was said before, by the study's name; "" for all of them.

    The file is a list of `{"date", "study", "text"}`, `study` left out for all. Raises UserError
    for another content.
    """
    found: dict[str, list[str]] = {}
    remedy = "mend the file, or remove it"
    for entry in read_json(root / CORRECTIONS, list[_Correction], remedy) or []:
        text = f"Correction of {entry['date']}: {entry['text']}"
        found.setdefault(str(entry.get("study", "")), []).append(text)
    return found


def render(title: str, intro: list[str], sections: Sequence[object]) -> str:
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
    template = environment.get_template("page.html.jinja")
    return template.render(title=title, intro=intro, sections=sections)
