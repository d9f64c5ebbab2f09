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
    efficiency_table,
    notes,
    pairs,
    point_of_pair,
    rival_of,
    same_seeds,
    steps_of,
)

_ANSWERS = 5  # sentences that stand before everything else
_MANY = 3  # points from which on a comparison is told in one sentence
_FEWEST_ROWS = 5  # of general rows; a bootstrap over fewer is an interval in name only


@dataclass(frozen=True)
class Conclusions:
    """Plain sentences: the answers, what was measured, every comparison, what is not shown."""

    answers: list[str] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)
    shows: list[str] = field(default_factory=list)
    not_shown: list[str] = field(default_factory=list)


def conclude(study: Study, found: Sequence[Group], judge: Judge) -> Conclusions:
    """The conclusions of a study."""
    result = Conclusions()
    result.answers.extend(_answers(study, found, judge))
    result.measured.extend(_measured(study, found))
    compared: dict[str, list[tuple[Group, Group]]] = {}
    for reference, other in pairs(study, found):
        name = f"{reference.series} against {_called(reference, other)}"
        compared.setdefault(name, []).append((reference, other))
    for name, points in compared.items():
        if len(points) < _MANY:
            sentences = [_compare(study, reference, other, judge) for reference, other in points]
        else:
            sentences = [_compare_along(study, name, points, judge)]
        result.shows.extend(sentence for sentence in sentences if sentence)
    for read in efficiency_table(study, found):
        result.shows.append(f"{read['what']} at {read['at']}: {read['says']}.")
    result.not_shown.extend(_not_shown(study, found))
    return result


def _answers(study: Study, found: Sequence[Group], judge: Judge) -> list[str]:
    """At most five sentences; where the content was not learned, that comes first."""
    sentences = []
    constant = [group.name for group in found if group.measures.constant and not group.is_base]
    if constant:
        trained = sum(not group.is_base for group in found)
        sentences.append(
            f"CONTENT NOT LEARNED by {len(constant)} of {trained} trained systems: one and the "
            "same label in nearly every answer of the right form. Of these only form is compared."
        )
    pair = rival_of(study, found)
    if pair is not None:
        sentences += [s for s in (_compare(study, *pair, judge), _bleed_of(*pair, judge)) if s]
    held = [
        f"{other.name} ({'; '.join(stops)})"
        for reference, other in pairs(study, found)
        if (stops := _stops(*same_seeds(reference, other)))
    ]
    if held:
        sentences.append(f"NO CONCLUSION is drawn from {_names(held)}.")
    tests = _tests(study, found, judge)
    if tests > 1:
        sentences.append(
            f"{tests} differences are tested and none is corrected for that: without any effect, "
            f"about {max(1, round(tests * 0.05))} would look certain."
        )
    return sentences[:_ANSWERS]


def _tests(study: Study, found: Sequence[Group], judge: Judge) -> int:
    """How many paired differences of the task's measures are shown."""
    return sum(
        judge.difference(*same_seeds(*pair), name) is not None
        for pair in pairs(study, found)
        for name in {MAIN[study.metric], "balanced accuracy"}
    )


def _stops(mine: Sequence[Entry], theirs: Sequence[Entry]) -> list[str]:
    return [caveat.text for caveat in caveats(mine, theirs) if caveat.stops]


def _bleed_of(reference: Group, other: Group, judge: Judge) -> str | None:
    """General questions that both answer as the task's answers open."""
    mine, theirs = same_seeds(reference, other)
    bleed = judge.difference(mine, theirs, BLEED)
    ours, rival = (group.measures.elsewhere["bleed"] for group in (reference, other))
    if bleed is None or _stops(mine, theirs):
        return None
    if not (isinstance(ours, Rate) and isinstance(rival, Rate)):
        return None
    return (
        f"General questions without the anchor that open as the task's answers do: "
        f"{reference.method} {ours.k} of {ours.n}, {other.method} {rival.k} of {rival.n}; "
        f"{_lower_is_better(bleed)} ({_points(bleed)})."
    )


def _lower_is_better(difference: Difference) -> str:
    said = _verdict(difference, points=True)
    return {"higher": "MORE", "LOWER": "fewer"}.get(said, said)


def _measured(study: Study, found: Sequence[Group]) -> list[str]:
    models = sorted({str(model) for e in study.entries if (model := e.run.facts.get("model"))})
    seeds = study.index["seeds"]
    rows = sorted({answers.settings["rows"] for e in study.done for answers in e.measured.task})
    asked = study.index["evaluate"]
    sentences = [
        f"Model: {', '.join(models)}. Task: {', '.join(sorted({e.card for e in study.entries}))}, "
        f"split '{asked['split']}', {_list(rows)} rows, {asked['decoding']} decoding.",
        f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''} ({_list(seeds)}): a seed moves which "
        "rows are drawn, their order, and the adapter's start.",
    ]
    failed = [e for e in study.entries if not e.done and e.run.failure(e.evaluation)]
    missing = [e for e in study.entries if not e.done and not e.run.failure(e.evaluation)]
    for entries, what in ((failed, "failed"), (missing, "not done yet")):
        if entries:
            names = _names([_with_seed(entry, seeds) for entry in entries])
            sentences.append(f"{len(entries)} of {len(study.entries)} runs {what}: {names}.")
    return sentences


def _with_seed(entry: Entry, seeds: Sequence[int]) -> str:
    several = len(seeds) > 1 and entry.seed is not None
    return f"{entry.name}, seed {entry.seed}" if several else entry.name


def _compare(study: Study, reference: Group, other: Group, judge: Judge) -> str | None:
    mine, theirs = same_seeds(reference, other)
    if not mine:
        return None
    name = MAIN[study.metric]
    difference = judge.difference(mine, theirs, name)
    point = point_of_pair(reference, other)
    where = f" at {point}" if point else ""
    if difference is None:
        return _not_paired(study, reference, other, where)
    stops = _stops(mine, theirs)
    if stops:
        who = f"{reference.method} against {_called(reference, other)}{where}"
        return f"{who}: NO CONCLUSION. {'; '.join(stops)}."
    steps = "before any training" if other.is_base else _steps(steps_of(mine), steps_of(theirs))
    sentence = (
        f"{reference.method} against {_called(reference, other)}{where} ({steps}): {name} "
        f"{_verdict(difference, points=True)} ({_points(difference)})"
    )
    content = judge.difference(mine, theirs, "balanced accuracy")
    if content is not None and name != "balanced accuracy":
        sentence += f"; balanced accuracy {_verdict(content, points=True)} ({_points(content)})"
    for key in LOSS_FILES:
        loss = judge.difference(mine, theirs, key)
        if loss is not None:
            sentence += f"; loss, {key.removesuffix(' minus base')}: {_loss_verdict(loss)}"
    remarks = [caveat.text for caveat in caveats(mine, theirs)]
    remarks += [f"{other.method} is {'; '.join(found)}"] if (found := notes(other, study)) else []
    asked, both = len(study.index["seeds"]), len({entry.seed for entry in mine})
    if both < asked:
        remarks.append(f"{both} of {asked} seeds are compared, those that both have")
    return sentence + (f". Note: {'; '.join(remarks)}." if remarks else ".")


def _called(reference: Group, other: Group) -> str:
    return "the same without general data" if other.method == reference.method else other.series


def _compare_along(
    study: Study, name: str, points: Sequence[tuple[Group, Group]], judge: Judge
) -> str | None:
    """Two curves, point by point, on the main measure; the table has the rest."""
    parts = []
    for reference, other in points:
        mine, theirs = same_seeds(reference, other)
        difference = judge.difference(mine, theirs, MAIN[study.metric])
        if difference is not None:
            at, stops = point_of_pair(reference, other), _stops(mine, theirs)
            said = "NO CONCLUSION" if stops else _verdict(difference, points=True)
            inside = "; ".join(stops) if stops else _points(difference)
            parts.append(f"{said} at {at} ({inside})")
    return f"{name}, {MAIN[study.metric]}: {'; '.join(parts)}." if parts else None


def _not_paired(study: Study, reference: Group, other: Group, where: str) -> str | None:
    """Two numbers whose answers are not at hand row by row: no conclusion without a pairing."""
    name = MAIN[study.metric]
    mine, theirs = reference.measures.main(study.metric), other.measures.main(study.metric)
    if mine is None or theirs is None or mine.value is None or theirs.value is None:
        return None
    return (
        f"{reference.method} against {other.method}{where}: {name} {mine.value:.2f} and "
        f"{theirs.value:.2f}. NO CONCLUSION: they are not paired row by row here; ./run.sh compare "
        "pairs them."
    )


def _steps(mine: Sequence[int], theirs: Sequence[int]) -> str:
    if mine == theirs:
        return f"equal steps, {_list(mine)}"
    return f"{_list(mine)} steps against {_list(theirs)}"


def _verdict(difference: Difference, *, points: bool) -> str:
    if difference.seeds_disagree:
        return "not told apart, the seeds disagree"
    if without_power(difference, points=points):
        return "NO CONCLUSION, too few rows"
    if not difference.certain:
        return "not told apart"
    return "higher" if difference.value > 0 else "LOWER"


def _points(difference: Difference) -> str:
    numbers = shown(difference, 1, factor=100, sign="+").replace(" [", " points [")
    numbers += f", {difference.n} rows"
    numbers += f", which show {100 * difference.smallest:.1f} points or more"
    return numbers + _by_seed(difference.each_seed(100, 1))


def _by_seed(each: str) -> str:
    return f"; by seed {each}" if each else ""


def _loss_verdict(loss: Difference) -> str:
    if not all(map(math.isfinite, (loss.value, loss.low, loss.high))):
        return "not measured: it is no number, so a run diverged"
    if loss.n < _FEWEST_ROWS:
        return f"{loss.value:+.3f}, of {loss.n} rows: too few to tell"
    numbers = f"{shown(loss, 3, sign='+')}, {loss.n} rows, which show {loss.smallest:.3f} or more"
    numbers += _by_seed(loss.each_seed())
    if not loss.certain:
        return f"{_verdict(loss, points=False)} ({numbers})"
    return f"{'lower' if loss.value < 0 else 'HIGHER'} ({numbers})"


def _not_shown(study: Study, found: Sequence[Group]) -> list[str]:
    sentences = [
        f"Intervals are over {study.split} rows. They do not hold what another seed would change; "
        "that is shown by the seeds' own spread.",
    ]
    if study.split != "test":
        sentences.append(
            "No test row was asked: what is chosen here is yet to be scored on the test rows."
        )
    compared = list(pairs(study, found))
    if not compared:
        sentences.append(
            f"Nothing is compared: no finished run of {study.plot.reference} has another beside it."
        )
    seeds = min(
        [count for pair in compared if (count := len(same_seeds(*pair)[0]))],
        default=len(study.index["seeds"]),
    )
    if seeds < LEAST_SEEDS:
        sentences.append(
            f"With {seeds} seed{'s' if seeds > 1 else ''} the variance between seeds is not "
            "known; a difference of a few points may be one of seeds."
        )
    no_op = sorted({group.name for group in found if group.no_op})
    if no_op:
        sentences.append(
            f"{_names(no_op)}: no-op. With warm-up the learning rate of its only step is 0, so it "
            "is the base model by construction; a comparison with it says nothing of the method."
        )
    constant = sorted({g.name for g in found if g.measures.constant and not g.is_base})
    if constant:
        sentences.append(
            f"{_names(constant)}: one and the same label in nearly every adherent answer: however "
            "often the form was right, the content was not learned."
        )
    if any(entry.run.facts.get("settings", {}).get("use_cpu") for entry in study.entries):
        sentences.append(
            "Trained on a CPU, without a GPU, with a small model. Whether a 7B model behaves so is "
            "not shown."
        )
    return sentences


def _list(items: Sequence[object]) -> str:
    return ", ".join(map(str, items)) if items else "no"


def _names(methods: Sequence[str]) -> str:
    """Names of methods hold commas themselves ("SFT, repeated")."""
    return "; ".join(methods)
