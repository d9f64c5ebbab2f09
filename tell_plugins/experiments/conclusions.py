"""What a reader may conclude from a study, and what not, said from its own numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from tell_plugins.evaluation.intervals import Estimate, Rate
from tell_plugins.experiments.measures import (
    LEAST_SEEDS,
    MAIN,
    Difference,
    Judge,
    loss_difference,
)
from tell_plugins.experiments.results import Entry, Study
from tell_plugins.experiments.tables import (
    Group,
    fits_table,
    notes,
    pairs,
    point_of_pair,
    same_seeds,
    steps_of,
)

_MANY = 3  # points from which on a comparison is told in one sentence
_FEWEST_ROWS = 5  # of general rows; a bootstrap over fewer is an interval in name only


@dataclass(frozen=True)
class Conclusions:
    """Plain sentences: what was measured, what it shows, what it does not."""

    measured: list[str] = field(default_factory=list)
    shows: list[str] = field(default_factory=list)
    not_shown: list[str] = field(default_factory=list)


def conclude(study: Study, found: Sequence[Group], judge: Judge) -> Conclusions:
    """The conclusions of a study."""
    result = Conclusions()
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
    for _, fit in fits_table(study, found).iterrows():
        at = f" at {fit['at']}" if fit["at"] else ""
        result.shows.append(f"{fit['what']}{at}: {fit['says']}.")
    result.not_shown.extend(_not_shown(study, found))
    return result


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
    difference = judge.difference_over_seeds(mine, theirs, name)
    point = point_of_pair(reference, other)
    where = f" at {point}" if point else ""
    if difference is None:
        return _compare_estimates(study, reference, other, where)
    steps = "before any training" if other.is_base else _steps(steps_of(mine), steps_of(theirs))
    sentence = (
        f"{reference.method} against {_called(reference, other)}{where} ({steps}): {name} "
        f"{_verdict(difference)} ({_points(difference)})"
    )
    content = judge.difference_over_seeds(mine, theirs, "balanced accuracy")
    if content is not None:
        sentence += f"; balanced accuracy {_verdict(content)} ({_points(content)})"
    loss = loss_difference(mine, theirs)
    if loss is not None:
        sentence += f"; loss on held-out general rows {_loss_verdict(loss)}"
    remarks = [f"{other.method} is {'; '.join(found)}"] if (found := notes(other, study)) else []
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
        difference = judge.difference_over_seeds(mine, theirs, MAIN[study.metric])
        if difference is not None:
            at = point_of_pair(reference, other)
            parts.append(f"{_verdict(difference)} at {at} ({_points(difference)})")
    return f"{name}, {MAIN[study.metric]}: {'; '.join(parts)}." if parts else None


def _compare_estimates(study: Study, reference: Group, other: Group, where: str) -> str | None:
    """Without paired answers: the two intervals beside one another."""
    name = MAIN[study.metric]
    mine, theirs = reference.measures.main(study.metric), other.measures.main(study.metric)
    if mine is None or theirs is None or mine.value is None or theirs.value is None:
        return None
    apart = _apart(mine, theirs)
    word = "their intervals do not touch" if apart else "their intervals overlap"
    return (
        f"{reference.method} against {other.method}{where}: {name} {mine.value:.2f} and "
        f"{theirs.value:.2f}; {word}."
    )


def _apart(first: Rate | Estimate, second: Rate | Estimate) -> bool:
    if first.low is None or second.low is None or first.high is None or second.high is None:
        return False
    return first.low > second.high or second.low > first.high


def _steps(mine: Sequence[int], theirs: Sequence[int]) -> str:
    if mine == theirs:
        return f"equal steps, {_list(mine)}"
    return f"{_list(mine)} steps against {_list(theirs)}"


def _verdict(difference: Difference) -> str:
    if not difference.certain:
        return "not told apart" + (", the seeds disagree" if difference.seeds_disagree else "")
    return "higher" if difference.value > 0 else "LOWER"


def _points(difference: Difference) -> str:
    value, low, high = (100 * part for part in (difference.value, difference.low, difference.high))
    numbers = f"{value:+.1f} points [{low:+.1f}, {high:+.1f}], {difference.n} rows"
    return numbers + _by_seed(difference.each_seed(100, 1))


def _by_seed(each: str) -> str:
    return f"; by seed {each}" if each else ""


def _loss_verdict(loss: Difference) -> str:
    if not all(map(math.isfinite, (loss.value, loss.low, loss.high))):
        return "not measured: it is no number, so a run diverged"
    if loss.n < _FEWEST_ROWS:
        return f"{loss.value:+.3f}, of {loss.n} rows: too few to tell"
    numbers = f"{loss.value:+.3f} [{loss.low:+.3f}, {loss.high:+.3f}], {loss.n} rows"
    numbers += _by_seed(loss.each_seed())
    if not loss.certain:
        return f"{_verdict(loss)} ({numbers})"
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
    sentences.append(
        "Many comparisons are listed and none is corrected for that: of twenty without any "
        "difference, one is expected to look certain."
        if compared
        else f"Nothing is compared: no finished run of {study.plot.reference} has another beside "
        "it."
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
