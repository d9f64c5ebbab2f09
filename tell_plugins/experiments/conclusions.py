"""What a reader may conclude from a study, and what not, said from its own numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from tell_plugins.evaluation.intervals import Rate, shown
from tell_plugins.experiments.fairness import caveats, without_power
from tell_plugins.experiments.measures import (
    BLEED,
    LEAST_SEEDS,
    LOSS_FILES,
    MAIN,
    Difference,
    Judge,
)
from tell_plugins.experiments.results import Entry, Study
from tell_plugins.experiments.tables import (
    Group,
    called,
    efficiency_table,
    notes,
    pairs,
    point_of_pair,
    rival_of,
    same_seeds,
    steps_of,
)

_ANSWERS = 5  # sentences that stand before everything else
_FEWEST_ROWS = 5  # of general rows; a bootstrap over fewer is an interval in name only
Pair = tuple[Group, Group]


@dataclass(frozen=True)
class Conclusions:
    """Plain sentences: the answers, what was measured, every comparison, what is not shown."""

    answers: list[str] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)
    shows: list[str] = field(default_factory=list)
    not_shown: list[str] = field(default_factory=list)


def conclude(study: Study, found: Sequence[Group], judge: Judge) -> Conclusions:
    """The conclusions of a study."""
    compared = list(pairs(study, found))
    shows = [_compare(study, pair, judge) for pair in compared]
    shows += [f"{r['what']} at {r['at']}: {r['says']}." for r in efficiency_table(study, found)]
    return Conclusions(
        answers=_answers(study, found, judge, compared),
        measured=_measured(study),
        shows=[sentence for sentence in shows if sentence],
        not_shown=_not_shown(study, found, compared),
    )


def _answers(
    study: Study, found: Sequence[Group], judge: Judge, compared: Sequence[Pair]
) -> list[str]:
    """At most five sentences; where the content was not learned, that comes first."""
    sentences = []
    trained = [group for group in found if not group.is_base]
    constant = sum(group.measures.constant for group in trained)
    if constant:
        sentences.append(
            f"CONTENT NOT LEARNED by {constant} of {len(trained)} trained systems: one and the "
            "same label in nearly every answer of the right form. Of these only form is compared."
        )
    pair = rival_of(study, found)
    if pair is not None:
        sentences += [s for s in (_compare(study, pair, judge), _bleed_of(pair, judge)) if s]
    held = [f"{p[1].name} ({'; '.join(stops)})" for p in compared if (stops := _stops(p))]
    if held:
        sentences.append(f"NO CONCLUSION is drawn from {'; '.join(held)}.")
    tests = sum(
        judge.difference(*same_seeds(*pair), name) is not None
        for pair in compared
        for name in {MAIN[study.metric], "balanced accuracy"}
    )
    if tests > 1:
        sentences.append(
            f"{tests} differences are tested and none is corrected for that: without any effect, "
            f"about {max(1, round(tests * 0.05))} would look certain."
        )
    return sentences[:_ANSWERS]


def _stops(pair: Pair) -> list[str]:
    return [caveat.text for caveat in caveats(*same_seeds(*pair)) if caveat.stops]


def _bleed_of(pair: Pair, judge: Judge) -> str | None:
    """General questions that both answer as the task's answers open."""
    bleed = judge.difference(*same_seeds(*pair), BLEED)
    ours, rival = (group.measures.elsewhere["bleed"] for group in pair)
    if bleed is None or _stops(pair) or not (isinstance(ours, Rate) and isinstance(rival, Rate)):
        return None
    said = _verdict(bleed.times(100), "fewer", "MORE")
    return (
        "General questions without the anchor that open as the task's answers do: "
        f"{pair[0].method} {ours.k} of {ours.n}, {pair[1].method} {rival.k} of {rival.n}; {said}."
    )


def _measured(study: Study) -> list[str]:
    models = sorted({str(model) for e in study.entries if (model := e.facts.get("model"))})
    rows = sorted({a.settings.rows or len(a.lines) for e in study.done for a in e.task})
    seeds, asked = study.seeds, study.evaluate
    sentences = [
        f"Model: {', '.join(models)}. Task: {', '.join(sorted({e.card for e in study.entries}))}, "
        f"split '{asked.split}', {_list(rows)} rows, {asked.decoding} decoding.",
        f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''} ({_list(seeds)}): a seed moves which "
        "rows are drawn, their order, and the adapter's start.",
    ]
    left: dict[str, list[str]] = {"failed": [], "not done yet": []}
    for entry in study.entries:
        if not entry.done:
            seed = f", seed {entry.seed}" if len(seeds) > 1 and entry.seed is not None else ""
            left["failed" if entry.failure else "not done yet"].append(entry.name + seed)
    return sentences + [
        f"{len(names)} of {len(study.entries)} runs {what}: {'; '.join(names)}."
        for what, names in left.items()
        if names
    ]


def _compare(study: Study, pair: Pair, judge: Judge) -> str | None:
    """One comparison: what its rows show, or why nothing is concluded."""
    reference, other = pair
    mine, theirs = same_seeds(reference, other)
    if not mine:
        return None
    name, point = MAIN[study.metric], point_of_pair(reference, other)
    who = f"{reference.method} against {called(reference, other)}{f' at {point}' if point else ''}"
    difference = judge.difference(mine, theirs, name)
    if difference is None:
        return _not_paired(study, pair, who)
    if stops := _stops(pair):
        return f"{who}: NO CONCLUSION. {'; '.join(stops)}."
    steps = "before any training" if other.is_base else _steps(mine, theirs)
    parts = [f"{who} ({steps}): {name} {_verdict(difference.times(100), 'LOWER', 'higher')}"]
    content = judge.difference(mine, theirs, "balanced accuracy")
    if content is not None and name != "balanced accuracy":
        parts.append(f"balanced accuracy {_verdict(content.times(100), 'LOWER', 'higher')}")
    for key in LOSS_FILES:
        loss = judge.difference(mine, theirs, key)
        if loss is not None:
            parts.append(f"loss, {key.removesuffix(' minus base')}: {_loss_verdict(loss)}")
    remarks = [caveat.text for caveat in caveats(mine, theirs)]
    remarks += [f"{other.method} is {'; '.join(said)}"] if (said := notes(other, study)) else []
    asked, both = len(study.seeds), len({entry.seed for entry in mine})
    if both < asked:
        remarks.append(f"{both} of {asked} seeds are compared, those that both have")
    return "; ".join(parts) + (f". Note: {'; '.join(remarks)}." if remarks else ".")


def _not_paired(study: Study, pair: Pair, who: str) -> str | None:
    """Two numbers whose answers are not at hand row by row: no conclusion without a pairing."""
    values = [m.value for group in pair if (m := group.measures.main(study.metric)) is not None]
    if len(values) < 2 or None in values:
        return None
    numbers = " and ".join(f"{value:.2f}" for value in values)
    return (
        f"{who}: {MAIN[study.metric]} {numbers}. NO CONCLUSION: they are not paired row by row "
        "here; ./run.sh compare pairs them."
    )


def _steps(mine: Sequence[Entry], theirs: Sequence[Entry]) -> str:
    first, second = steps_of(mine), steps_of(theirs)
    if first == second:
        return f"equal steps, {_list(first)}"
    return f"{_list(first)} steps against {_list(second)}"


def _verdict(difference: Difference, lower: str, higher: str, *, points: bool = True) -> str:
    """What a difference in points (or nats) says, and its numbers in brackets."""
    said = higher if difference.value > 0 else lower
    if difference.seeds_disagree:
        said = "not told apart, the seeds disagree"
    elif without_power(difference, points=points):
        said = "NO CONCLUSION, too few rows"
    elif not difference.certain:
        said = "not told apart"
    digits, unit = (1, " points") if points else (3, "")
    numbers = shown(difference, digits, sign="+").replace(" [", f"{unit} [")
    least = f"{difference.smallest:.{digits}f}{unit}"
    seeds = f"; by seed {each}" if (each := difference.each_seed(digits)) else ""
    return f"{said} ({numbers}, {difference.n} rows, which show {least} or more{seeds})"


def _loss_verdict(loss: Difference) -> str:
    if not all(map(math.isfinite, (loss.value, loss.low, loss.high))):
        return "not measured: it is no number, so a run diverged"
    if loss.n < _FEWEST_ROWS:
        return f"{loss.value:+.3f}, of {loss.n} rows: too few to tell"
    return _verdict(loss, "lower", "HIGHER", points=False)


def _not_shown(study: Study, found: Sequence[Group], compared: Sequence[Pair]) -> list[str]:
    sentences = [
        f"Intervals are over {study.split} rows. They do not hold what another seed would change; "
        "that is shown by the seeds' own spread.",
    ]
    if study.split != "test":
        sentences.append(
            "No test row was asked: what is chosen here is yet to be scored on the test rows."
        )
    if not compared:
        sentences.append(
            f"Nothing is compared: no finished run of {study.plot.reference} has another beside it."
        )
    counts = [count for pair in compared if (count := len(same_seeds(*pair)[0]))]
    seeds = min(counts, default=len(study.seeds))
    if seeds < LEAST_SEEDS:
        sentences.append(
            f"With {seeds} seed{'s' if seeds > 1 else ''} the variance between seeds is not "
            "known; a difference of a few points may be one of seeds."
        )
    no_op = sorted({group.name for group in found if group.no_op})
    if no_op:
        sentences.append(
            f"{'; '.join(no_op)}: no-op. With warm-up the learning rate of its only step is 0, so "
            "it is the base model by construction; a comparison with it says nothing of the method."
        )
    constant = sorted({g.name for g in found if g.measures.constant and not g.is_base})
    if constant:
        sentences.append(
            f"{'; '.join(constant)}: one and the same label in nearly every adherent answer: "
            "however often the form was right, the content was not learned."
        )
    if any(entry.facts.get("settings", {}).get("use_cpu") for entry in study.entries):
        sentences.append(
            "Trained on a CPU, without a GPU, with a small model. Whether a 7B model behaves so is "
            "not shown."
        )
    return sentences


def _list(items: Sequence[object]) -> str:
    return ", ".join(map(str, items)) if items else "no"
