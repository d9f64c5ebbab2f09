"""Reports: numbers by hand, tables byte for byte, pictures, and a page that stands alone."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

from tell_plugins import cli
from tell_plugins.evaluation.differences import t_interval
from tell_plugins.evaluation.intervals import Estimate
from tell_plugins.evaluation.paper_numbers import paper
from tell_plugins.experiments import plots, tables
from tell_plugins.experiments.outcome import Judge, Outcome
from tell_plugins.experiments.results import collect, load_studies
from tests.conftest import message_of
from tests.made_results import MadeResults, made_controls, made_curve

pytestmark = pytest.mark.slow  # all read one world of runs, which takes long to make


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a control grid and a curve, as sweeps would have left it."""
    root = tmp_path_factory.mktemp("made")
    made_controls(root)
    made_curve(root)
    return root


@pytest.fixture(scope="module")
def collected(made, tmp_path_factory) -> Path:
    """What `--collect` keeps of it, with its report."""
    target = tmp_path_factory.mktemp("results") / "made"
    assert cli.main(["report", str(made), "--collect", str(target)]) == 0
    return target


@pytest.fixture(scope="module")
def page(collected) -> str:
    return (collected / "report.html").read_text(encoding="utf-8")


def _outcome(root: Path, name: str) -> Outcome:
    study = next(study for study in load_studies(root) if study.name == name)
    return Outcome(study, Judge(root))


def _table(root: Path, name: str, index: str = "method") -> pd.DataFrame:
    return pd.read_csv(root / "tables" / f"{name}.csv").set_index(index)


# --- byte for byte -------------------------------------------------------------------------------


def test_a_report_is_rebuilt_from_what_was_collected(made, collected, tmp_path, monkeypatch):
    """Elsewhere, without the first folder and without any cache: the same bytes, page included; and
    the tables are those of the folder that it came from."""

    def contents(root: Path) -> dict[str, bytes]:
        return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}

    kept = contents(Path(shutil.copytree(collected, tmp_path / "elsewhere")))
    for folder in ("tables", "pictures"):
        shutil.rmtree(tmp_path / "elsewhere" / folder)
    (tmp_path / "elsewhere" / "report.html").unlink()
    monkeypatch.setenv("TELL_CACHE", str(tmp_path / "other-cache"))
    assert cli.main(["report", str(tmp_path / "elsewhere")]) == 0
    assert contents(tmp_path / "elsewhere") == kept
    assert cli.main(["report", str(made), "--out", str(tmp_path / "report")]) == 0
    assert contents(tmp_path / "report" / "tables") == contents(collected / "tables")


def test_what_is_collected(made, collected):
    kept = [path for path in (collected / "runs").rglob("*") if path.is_file()]
    packed = ["answers", "losses", "instructions", "prose", "kl", "logging"]
    plain = ["run", "trained", "failed", "evaluated", "settings"]
    names = {f"{name}.jsonl.xz" for name in packed} | {f"{name}.json" for name in plain}
    assert {path.name for path in kept} == names
    assert sum(path.stat().st_size for path in kept if path.suffix == ".xz") < 400_000
    references = json.loads((collected / "references" / "sample_complaints-test.json").read_text())
    assert len(references["of"]) == references["rows"] == 100
    before = {path: path.stat().st_mtime_ns for path in kept}
    collect(made, collected)  # again, which changes nothing
    assert {path: path.stat().st_mtime_ns for path in kept} == before


# --- numbers -------------------------------------------------------------------------------------


def test_rates_are_counted(collected):
    frame = _table(collected, "controls_made_methods")
    tell, repeated = frame.loc["TELL"], frame.loc["SFT, repeated"]
    assert (tell["adherence k"], tell["adherence n"]) == (62 + 66, 200)
    assert (tell["lowest seed"], tell["highest seed"]) == (0.62, 0.66)
    assert tell["adherence low"] < tell["adherence"] < tell["adherence high"]
    assert (repeated["adherence k"], repeated["bleed k"]) == (194, 18)
    assert repeated["note"] == "constant: 'yes' in 194 of 194 adherent answers"
    assert frame.loc["SFT, as in the paper", "note"].startswith("no-op: nothing was trained")
    assert frame.loc["TELL, no anchor", "note"] == "NOT the steps of the run it must equal"


def test_losses_are_paired_with_the_base(collected):
    frame = _table(collected, "controls_made_methods")
    repeated, no_op = frame.loc["SFT, repeated"], frame.loc["SFT, as in the paper"]
    for name in ("style fit", "foreign instructions", "prose"):
        assert repeated[f"{name} minus base"] == pytest.approx(0.4, abs=0.02)
    assert math.isnan(frame.loc["base model", "style fit minus base"])
    assert frame.loc["TELL", "style fit minus base high"] < 0
    assert no_op["style fit minus base low"] < 0 < no_op["style fit minus base high"]
    assert repeated["KL to base"] > 0
    assert repeated["bleed minus base"] == pytest.approx(0.3)
    assert repeated["bleed minus base low"] > 0


def test_comparisons_say_what_is_equal(collected):
    frame = _table(collected, "controls_made_comparisons", "comparison")
    repeated, paper = (frame.loc[f"TELL minus SFT, {n}"] for n in ("repeated", "as in the paper"))
    assert (repeated["equal steps"], repeated["equal task tokens"]) == ("yes", "yes")
    assert repeated["adherence, points"] == pytest.approx(100 * (128 - 194) / 200)
    assert (paper["equal steps"], paper["equal task tokens"]) == ("no", "yes")
    assert set(frame["seeds"]) == {2}
    shown = (collected / "tables" / "controls_made_comparisons.md").read_text()
    assert "| -33.0 [-" in shown  # points have one decimal and a sign
    assert "| +" in shown


def test_failed_runs_stand_in_the_table_and_on_the_page(collected, page):
    frame = _table(collected, "controls_made_runs")
    assert frame.loc["general only", "state"] == "failed: train, exit code 1"
    assert math.isnan(frame.loc["general only", "adherence"])
    assert "1 of 12 runs failed: general only" in page


def test_interval_over_seeds_is_students():
    found = t_interval([0.2, 0.4, 0.6])
    assert found.value == pytest.approx(0.4)
    assert found.high == pytest.approx(0.4 + 4.303 * 0.2 / math.sqrt(3), abs=1e-3)


def test_answers_of_other_data_are_refused(made, tmp_path):
    moved = Path(shutil.copytree(made, tmp_path / "moved"))
    path = next((moved / "runs").rglob("test-greedy/answers.jsonl"))
    path.write_text(path.read_text().replace('"id": "', '"id": "00', 1))
    entries = [entry for study in load_studies(moved) for entry in study.done]
    hit = next(entry for entry in entries if path.is_relative_to(entry.folder))
    assert "1 of 100 answers have no row in split 'test'" in message_of(Judge(moved).system, hit)


# --- curves --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "told"),
    [
        ((0.3, None, None), "needs 3.16 times the data"),
        ((0.2, 0.15, 0.3), "needs 1.78 times the data [1.33, 3.16]"),
        ((0.3, 0.05, 0.9), "needs 3.16 times the data [at most 1, more than 10]"),
        ((0.95, 0.9, 1.0), "needs more than 10 times the data"),
        ((0.05, 0.0, 0.1), "needs at most 1 times the data"),
    ],
)
def test_efficiency_is_read_off_the_other_curve(score, told):
    points = ((1e3, 0.1), (10**3.5, 0.3), (1e4, 0.8))
    other: tables.Curve = [(x, Estimate(y, None, None, 3)) for x, y in points]
    assert tables.efficiency(1e3, Estimate(*score, 3), other) == told
    assert tables.efficiency(1e3, Estimate(*score, 3), other[:1]) is None


def test_curves_of_a_study(made, collected):
    assert "SFT needs" in (collected / "tables" / "made_curve_efficiency.csv").read_text()
    outcome = _outcome(made, "made_curve")
    drawn = {name: len(points) for name, points in tables.curves(outcome).items()}
    assert drawn == {"TELL": 6, "SFT": 6}  # general data alone has no place on the axis
    for group in outcome.groups:  # whose name merely begins like the reference's: one of the others
        if group.method == "SFT":
            group.method = group.series = "TELL, no anchor"
    said = {record["what"] for record in tables.efficiency_table(outcome)}
    assert said == {"token efficiency of TELL against TELL, no anchor"}


def test_the_trade_is_joined_along_the_axis(made):
    """Whatever the order in which the sweep has its points."""
    outcome, drawn = _outcome(made, "made_curve"), []
    for sign in (1, -1):
        outcome.groups.sort(key=lambda g: (g.series, sign * (g.x("task_rows") or 0)))
        with plots.style():
            lines = plots.trade_figure(outcome).axes[0].lines
        drawn.append([list(line.get_ydata()) for line in lines if line.get_label()])
    assert drawn[0] == drawn[1]


def test_what_general_data_adds(tmp_path):
    """Along general data every point is set against the one without any."""
    made = MadeResults(tmp_path)
    made.base()
    for rows, share in ((0, 0.0), (1000, 0.2), (5000, 0.7), (20000, 0.9)):
        at = {"general": f"{rows // 100}rows"}
        made.run("TELL", adherent=share, at=at, general=rows, steps=1 + rows // 1600)
    made.index("general", "General tokens", [42], x="general_tokens")
    assert cli.main(["report", str(tmp_path)]) == 0
    compared = _table(tmp_path, "general_comparisons", "comparison")
    added = compared.loc["TELL minus the same without general data", "adherence, points"]
    assert added.tolist() == [20.0, 70.0, 90.0]
    text = (tmp_path / "report.html").read_text()
    assert "TELL against the same without general data at general=" in text


# --- other tasks than JSON -----------------------------------------------------------------------


def _reported(root: Path, card: str, base: list[str], said: list[str]) -> tuple[Any, str]:
    """The report of a base model and one run with these answers to the test rows of `card`."""
    made = MadeResults(root, card=card)
    made.answered_base(base)
    made.answered("TELL", said)
    made.index("made", "Made", [42])
    assert cli.main(["report", str(root)]) == 0
    return _table(root, "made_methods"), (root / "report.html").read_text()


def test_numbers(tmp_path, make_card):
    rows = [{"q": f"{i} and {i}?", "r": f"Add. #### {2 * i}"} for i in range(10)]
    make_card("sums", train=[{"q": "1 and 2?", "r": "#### 3"}], test=rows)
    root, kept = tmp_path / "results", tmp_path / "kept"
    right = [f"It is\n#### {2 * i}" if i < 7 else "#### 1000" for i in range(10)]
    frame, page = _reported(root, "sums", ["no idea"] * 10, right)
    assert frame["exact match k"].tolist() == [0, 7]
    assert "exact match higher (+70.0 points" in page
    assert cli.main(["report", str(root), "--collect", str(kept)]) == 0
    shutil.rmtree(tmp_path / "cards")  # neither the card nor its rows are at hand any more
    assert cli.main(["report", str(kept)]) == 0
    assert _table(kept, "made_methods").equals(frame)


def test_translations(tmp_path, make_card):
    rows = [
        {"q": f"Sentence {i} about rain.\nAnd one on snow.", "r": f"Setning {i} um regn.\nOg snjó."}
        for i in range(6)
    ]
    make_card("news", train=[{"q": "a", "r": "b"}], test=rows, metric="translation")
    right = [row["r"] for row in rows]
    frame, page = _reported(tmp_path, "news", ["I cannot do that."] * 6, right)
    assert frame.loc["TELL", "chrF++"] == pytest.approx(100)
    assert frame.loc["base model", "chrF++"] < 30
    assert "TELL against base model (before any training): chrF++ higher (+" in page
    assert _table(tmp_path, "made_comparisons", "comparison")["chrF++, points low"].iloc[0] > 70
    assert (tmp_path / "pictures" / "made_methods.png").is_file()


# --- pictures and page ---------------------------------------------------------------------------


def test_pictures(collected):
    controls, curve = ("forest", "trade", "methods"), ("forest", "trade", "curve")
    names = {f"controls_made_{name}.png" for name in controls}
    names |= {f"made_curve_{name}.png" for name in curve}
    assert {path.name for path in (collected / "pictures").iterdir()} == names
    for path in (collected / "pictures").iterdir():
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert b"tEXt" not in content  # no date, no program: the same bytes every time
        assert len(content) > 10_000


@pytest.mark.parametrize(
    ("places", "names"), [([4600, 76000], "5k 10k 20k 50k"), ([0, 25, 400], "0 50 100 200")]
)
def test_a_logarithmic_axis_names_more_than_its_decades_and_zero(places, names):
    figure = Figure()
    axis = figure.subplots()
    axis.plot(places, places)
    plots._logarithmic(axis, min(x for x in places if x))
    figure.canvas.draw()
    assert set(names.split()) <= {tick.get_text() for tick in axis.get_xticklabels()}


def test_the_page_stands_alone(page):
    """It names no other host, needs no script, fits a phone, and its texts are escaped."""
    assert not re.search(r"https?://", page)
    for address in re.findall(r'\b(?:src|srcset|href)="([^"]{0,30})', page):
        assert address.startswith(("data:image/png;base64,", "#"))
    assert not re.search(r"<(?:script|iframe|link|object|embed|made)\b|<[^>]*\son\w+=", page)
    assert '<meta name="viewport"' in page
    assert len(re.findall(r'<img alt="[^"]+" src=', page)) == page.count("<img") == 6
    assert "Controls &lt;made&gt; by hand &amp; nothing else" in page


def test_the_page_says_what_may_be_concluded_and_what_not(page):
    text = " ".join(re.sub(r"<[^>]+>", " ", page).replace("&#39;", "'").split())
    for sentence in (
        "TELL against SFT, as in the paper: NO CONCLUSION. the task rows of SFT, as in the paper",
        "TELL against SFT, repeated (equal steps, 20): adherence LOWER",
        "loss, foreign instructions: lower",
        "CONTENT NOT LEARNED by 1 of 5 trained systems",
        "TELL 0 of 60, SFT, repeated 18 of 60; fewer (-30.0 points",
        "TELL against TELL, even order (equal steps, 20): adherence NO CONCLUSION, too few rows",
        "Intervals are over test rows.",
        "With 2 seeds the variance between seeds is not known",
        "SFT, as in the paper: no-op.",
        "SFT, repeated is constant: 'yes' in 194 of 194 adherent answers",
        "Trained on a CPU, without a GPU",
        "39.54 % cannot be a share of 1,000 or of 1,506 rows",
        "TELL, 15 rows (1e4 tokens)",
    ):
        assert sentence in text, sentence


def test_published_numbers_are_those_of_the_text():
    figures = paper().figures
    found = {(p.method, p.x): p.value for p in figures["task_tokens"].points}
    tell, sft = (
        {("TELL", 1e4): 0.3954, ("TELL", 7e4): 0.99},
        {("SFT", 7e4): 0.42, ("SFT", 6e5): 0.99},
    )
    assert found == {("base model", None): 0.01, **tell, **sft}
    assert [p.value for p in figures["general_sets"].points] == [0.94, 0.921]


# --- what can be wrong ---------------------------------------------------------------------------


def test_a_folder_without_sweeps(tmp_path, tell):
    assert "no sweep here" in tell("report", tmp_path, code=1)


def test_a_folder_is_not_collected_into_itself(made):
    assert "names the folder itself" in message_of(collect, made, made)


def test_a_sweep_that_has_not_begun(tmp_path):
    """Nothing done yet: a report all the same, and it says so."""
    made = MadeResults(tmp_path)
    name = made.run("TELL", adherent=0.5)
    made.index("begun", "Begun", [42])
    shutil.rmtree(tmp_path / "runs" / name / "eval")
    assert cli.main(["report", str(tmp_path)]) == 0
    assert "1 of 1 runs not done yet: TELL" in (tmp_path / "report.html").read_text()
