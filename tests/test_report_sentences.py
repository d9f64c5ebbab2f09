"""What a report says of made studies: nothing too loudly, of seeds, rows, exposure and leaks."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tell_plugins import cli
from tell_plugins.evaluation.grids import to_csv
from tell_plugins.experiments import plots, tables
from tell_plugins.experiments.conclusions import conclude
from tell_plugins.experiments.outcome import Judge, Outcome, over_seeds
from tell_plugins.experiments.report import corrections
from tell_plugins.experiments.results import load_studies
from tests.conftest import PROJECT, message_of
from tests.made_results import MadeResults

RESULTS = PROJECT / "results"


class Report:
    """What a report says of the first study whose name holds `name`."""

    def __init__(self, root: Path, name: str = "made") -> None:
        self.study = next(study for study in load_studies(root) if name in study.name)
        self.outcome = Outcome(self.study, Judge(root))
        self.conclusions = conclude(self.outcome)
        self.shows = " ".join(self.conclusions.shows)

    @property
    def everything(self) -> str:
        """Every sentence and note, and the table of comparisons."""
        said = self.conclusions
        notes = [f"{g.method}: {'; '.join(self.outcome.notes(g))}" for g in self.outcome.groups]
        compared = to_csv(tables.comparisons_table(self.outcome))
        return "\n".join(
            [*said.answers, *said.measured, *said.shows, *said.not_shown, *notes, compared]
        )

    @property
    def captions(self) -> str:
        return " ".join(picture.caption for picture in plots.pictures(self.outcome))


Run = tuple[str, float, dict[str, Any]]  # method, adherence, and more


def _run(method: str, adherent: float, **more: Any) -> Run:
    return method, adherent, more


@pytest.fixture
def report(tmp_path) -> Callable[..., Report]:
    """Makes a study of runs and reads its report."""

    def made(
        runs: Sequence[Run], seeds: Sequence[int] = (42,), rows: int = 100, **plot: Any
    ) -> Any:
        results = MadeResults(tmp_path, rows=rows)
        results.base()
        for method, adherent, more in runs:
            if adherent < 0:
                results.failed(method, **more)
            else:
                results.run(method, adherent=adherent, **more)
        results.index("made", "Made", list(seeds), **plot)
        return Report(tmp_path)

    return made


TELL, SFT = _run("TELL", 0.6), _run("SFT", 0.1)
SEEDS = (42, 43)


OF_SEEDS: dict[str, tuple[list[Run], Sequence[int], list[str], list[str]]] = {
    "seeds of both signs are no difference": (
        [
            *(_run("TELL", 0.50), _run("SFT", 0.20)),
            *(_run("TELL", 0.20, seed=43), _run("SFT", 0.34, seed=43)),
        ],
        SEEDS,
        [  # pooled over rows it would be +8 points, certain
            "adherence not told apart, the seeds disagree (+8.0 points [",
            "by seed +30.0, -14.0",
            '"+30.0, -14.0"',
        ],
        [],
    ),
    "seeds of one sign are told one by one": (
        [
            *(_run("TELL", 0.6, seed=seed, loss=2.3) for seed in SEEDS),
            *(_run("SFT", 0.1, seed=seed, loss=2.6) for seed in SEEDS),
        ],
        SEEDS,
        ["adherence higher (+50.0 points [", "by seed +50.0, +50.0", "style fit: lower (-0.29"],
        [],
    ),
    "only the seeds of both are compared": (
        [TELL, _run("SFT", 0.1), _run("SFT", 0.9, seed=43, steps=26)],
        SEEDS,
        [
            "TELL against SFT (equal steps, 20): adherence higher (+50.0",
            "1 of 2 seeds are compared, those that both have",
            "TELL minus SFT,,1,yes",
            "With 1 seed the variance between seeds is not known",
        ],
        [],
    ),
    "failed runs are named with their seed": (
        [TELL, _run("TELL", -1, seed=43)],
        SEEDS,
        ["1 of 3 runs failed: TELL, seed 43."],
        [],
    ),
    "each seed may give its own constant": (
        [
            *(_run("TELL", 1.0, constant="yes"), _run("TELL", 1.0, seed=43, constant="no")),
            *(_run("SFT", 1.0, constant="no"), _run("SFT", 1.0, seed=43)),
        ],
        SEEDS,
        [  # pooled, half the labels are "yes" and half "no"
            "TELL: constant: 'yes' in 100 of 100, 'no' in 100 of 100 adherent answers",
            "SFT: constant in 1 of 2 seeds: 'no' in 100 of 100 adherent answers",
            "CONTENT NOT LEARNED by 1 of 2 trained systems",
        ],
        [],
    ),
    "a no-op of one seed is not that of all": (
        [TELL, _run("SFT", 0.0, steps=1, no_op=True), _run("SFT", 0.3, seed=43, steps=3)],
        SEEDS,
        ["SFT: no-op in 1 of 2 seeds: nothing was trained"],
        ["base model by construction"],
    ),
    "a comparison is named by the keys of both": (
        [TELL, *(_run("SFT", 0.1 * n, at={"repeat": n}) for n in (1, 2, 3))],
        (42,),
        ["SFT at repeat=1 (equal steps, 20): adherence higher (+50.0", "TELL minus SFT,repeat=3"],
        [],
    ),
    "nothing compared is said": (
        [SFT],
        (42,),
        ["Nothing is compared: no finished run of TELL"],
        ["differences are tested"],
    ),
    "runs without a seed in common are no comparison": (
        [TELL, _run("SFT", 0.1, seed=43)],
        SEEDS,
        ["TELL against base model"],
        ["TELL against SFT"],
    ),
}


@pytest.mark.parametrize("case", OF_SEEDS)
def test_what_is_said_of_seeds(report, case):
    runs, seeds, told, untold = OF_SEEDS[case]
    said = report(runs, seeds).everything
    assert [text for text in told if text not in said] == []
    assert [text for text in untold if text in said] == []


def test_other_cards_and_other_base_models_are_no_comparison(report):
    outcome = report([TELL, SFT]).outcome
    base, tell, sft = outcome.groups
    assert [(pair.reference, pair.other) for pair in outcome.pairs] == [(tell, base), (tell, sft)]
    for group in (base, sft):
        group.entries = [entry.model_copy(update={"card": "another"}) for entry in group.entries]
        assert not outcome._compared(tell, group)


def test_validation_rows_are_called_so(report, tmp_path):
    runs = [_run("TELL", 0.5, at={"task": f"{n}rows"}, task=100 * n) for n in (10, 30)]
    on_test = report(runs, x="task_tokens", paper="task_tokens")
    assert "Stars are the paper's numbers" in on_test.captions
    assert len(tables.published_table(on_test.outcome)) > 0
    path = tmp_path / "sweeps" / "made.json"
    index = json.loads(path.read_text())
    index["evaluate"]["split"] = "validation"
    path.write_text(json.dumps(index))
    found = Report(tmp_path)
    assert "Intervals are over validation rows." in found.everything
    assert "No test row was asked" in found.everything
    assert "over validation rows" in found.captions
    assert "test rows" not in found.captions
    assert "Stars" not in found.captions
    assert len(tables.published_table(found.outcome)) == 0


def test_a_single_point_of_a_curve_is_a_mark(report):
    runs = [
        _run("TELL", 0.5, at={"task": "10rows"}, task=1000),
        _run("general only", 0.0, task=0),
    ]
    axis = plots.curve_figure(report(runs, x="task_tokens").outcome).axes[0]
    assert [c.get_label() for c in axis.containers] == ["TELL"]
    levels = {line.get_label() for line in axis.lines if line.get_linestyle() == "--"}
    assert levels == {"base model", "general only"}


def test_open_runs_name_no_model(report, tmp_path):
    report([TELL])
    path = tmp_path / "sweeps" / "made.json"
    index = json.loads(path.read_text())
    index["entries"].append({**index["entries"][0], "method": "SFT", "run": "not-there"})
    path.write_text(json.dumps(index))
    said = " ".join(Report(tmp_path).conclusions.measured)
    assert said.startswith("Model: made. Task:")
    assert "1 of 3 runs not done yet: SFT." in said


def test_an_interval_over_seeds_needs_three_that_differ():
    assert over_seeds([0.1, 0.9], share=True) is None
    assert over_seeds([0.0, 0.0, 0.0], share=True) is None
    found = over_seeds([0.0, 0.1, 0.9], share=True)
    assert (found.low, found.high) == (0.0, 1.0)
    assert over_seeds([10.0, 20.0, 60.0], share=False).low < 0


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([(float("nan"), 10)] * 40, "it is no number, so a run diverged"),
        ([(21.0, 10)] * 2, "of 2 rows: too few to tell"),
        ([(21.0, 10)] * 40, "lower (-0.400 [-0.400, -0.400], 40 rows, which show 0.000 or more)"),
    ],
)
def test_a_loss_that_tells_nothing_is_no_verdict(report, tmp_path, losses, said):
    report([TELL, SFT])
    for run, of in (("TELL--42", losses), ("SFT--42", [(25.0, 10)] * len(losses))):
        [path] = (tmp_path / "runs" / run).rglob("losses.jsonl")
        lines = [json.dumps({"loss_sum": s, "tokens": n, "rows": len(of)}) for s, n in of]
        path.write_text("".join(f"{line}\n" for line in lines))
    assert said in Report(tmp_path).shows


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"exposure": 5.0}, "adherence higher (+50.0"),
        ({"exposure": 0.0}, "NO CONCLUSION. the task rows of other met no learning rate"),
        ({"no_op": True}, "NO CONCLUSION. the task rows of other met no learning rate"),
        ({"exposure": 0.5}, "NO CONCLUSION. the same rows and steps, but exposure 5.6 against 0.5"),
        ({"exposure": 0.5, "steps": 9}, "Note: unequal exposure of the task rows: exposure 5.6"),
        ({"exposure": 5.0, "leaked": 2}, "NO CONCLUSION. 2 of the rows asked are among"),
        ({"exposure": 5.0, "leaked": 60}, "Note: 60 of the rows asked are among the general rows"),
    ],
)
def test_what_runs_forbid_to_conclude(report, other, said):
    found = report([_run("TELL", 0.6, exposure=5.56), _run("other", 0.1, **other)])
    (sentence,) = [s for s in found.conclusions.shows if s.startswith("TELL against other")]
    assert said in sentence
    answers = found.conclusions.answers
    held = [text for text in answers if text.startswith("NO CONCLUSION is drawn from other")]
    assert bool(held) == ("NO CONCLUSION" in said)
    compared = tables.comparisons_table(found.outcome)
    (record,) = [row for row in compared if row["comparison"] == "TELL minus other"]
    assert record["exposure"].startswith("5.6 against ")


def test_forty_rows_say_what_they_cannot_show(report):
    said = report([TELL, _run("other", 0.55)], rows=40).shows.partition("against other")[2]
    assert "adherence NO CONCLUSION, too few rows (+5.0 points [" in said
    shown = float(said.partition("40 rows, which show ")[2].partition(" ")[0])
    assert shown > 10


def test_a_small_gap_needs_the_paired_test_too():
    """The anchor at 115 rows: +3.5 points, an interval that leaves out 0, McNemar p 0.065."""
    pairs = Report(RESULTS, "115rows").outcome.pairs
    pair = next(pair for pair in pairs if pair.other.method == "TELL, no anchor")
    difference = pair.difference("adherence")
    assert difference is not None
    assert difference.low > 0
    assert difference.p == pytest.approx(0.065, abs=0.02)
    assert not difference.told_apart


def test_corrections_stand_on_the_page(report, tmp_path):
    report([TELL])
    said = [
        {"date": "2026-11-29", "text": "All <was> wrong."},
        {"date": "2026-11-30", "study": "made", "text": "So was this."},
    ]
    (tmp_path / "corrections.json").write_text(json.dumps(said))
    assert cli.main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "Correction of 2026-11-29: All &lt;was&gt; wrong." in page.partition("<section")[0]
    assert "Correction of 2026-11-30: So was this." in page.partition("<section")[2]


@pytest.mark.parametrize("content", ['{"date": "x"}', '[{"text": "x"}]', "[1]"])
def test_corrections_that_are_none(content, tmp_path):
    (tmp_path / "corrections.json").write_text(content)
    assert "not what was written here" in message_of(corrections, tmp_path)
