"""What a reader may conclude from a study, and what not, said from its own numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tell_plugins.evaluation.differences import LEAST_SEEDS, Difference
from tell_plugins.evaluation.elsewhere import BLEED, LOSS_FILES
from tell_plugins.evaluation.intervals import shown
from tell_plugins.experiments.outcome import Outcome, Pair, without_power
from tell_plugins.experiments.results import Study
from tell_plugins.experiments.tables import efficiency_table

_ANSWERS = 5  # sentences that stand before everything else
_FEWEST_ROWS = 5  # of general rows; a bootstrap over fewer is an interval in name only


@dataclass(frozen=True)
class Conclusions:
    """Plain sentences: the answers, what was measured, every comparison, what is not shown."""

    answers: list[str]
    measured: list[str]
    shows: list[str]
    not_shown: list[str]


def conclude(outcome: Outcome) -> Conclusions:
    """The conclusions of a study."""
    shows = [_compare(outcome, pair) for pair in outcome.pairs]
    shows += [f"{r['what']} at {r['at']}: {r['says']}." for r in efficiency_table(outcome)]
    return Conclusions(
        answers=_answers(outcome),
        measured=_measured(outcome.study),
        shows=[sentence for sentence in shows if sentence],
        not_shown=_not_shown(outcome),
    )


def _answers(outcome: Outcome) -> list[str]:
    """At most five sentences; where the content was not learned, that comes first."""
    sentences = []
    trained = [group for group in outcome.groups if not group.is_base]
    constant = sum(group.constant for group in trained)
    if constant:
        sentences.append(
            f"CONTENT NOT LEARNED by {constant} of {len(trained)} trained systems: one and the "
            "same label in nearly every answer of the right form. Of these only form is compared."
        )
    if outcome.rival is not None:
        both = _compare(outcome, outcome.rival), _bleed_of(outcome.rival)
        sentences += [sentence for sentence in both if sentence]
    held = [f"{p.other.name} ({'; '.join(p.stops)})" for p in outcome.pairs if p.stops]
    if held:
        sentences.append(f"NO CONCLUSION is drawn from {'; '.join(held)}.")
    tests = sum(
        pair.difference(name) is not None
        for pair in outcome.pairs
        for name in {outcome.main, "balanced accuracy"}
    )
    if tests > 1:
        sentences.append(
            f"{tests} differences are tested and none is corrected for that: without any effect, "
            f"about {max(1, round(tests * 0.05))} would look certain."
        )
    return sentences[:_ANSWERS]


def _bleed_of(pair: Pair) -> str | None:
    """General questions that both answer as the task's answers open."""
    bleed = pair.difference(BLEED)
    ours, rival = (group.elsewhere["bleed"] for group in (pair.reference, pair.other))
    if bleed is None or pair.stops or ours is None or rival is None:
        return None
    return (
        "General questions without the anchor that open as the task's answers do: "
        f"{pair.reference.method} {ours.k} of {ours.n}, {pair.other.method} {rival.k} of "
        f"{rival.n}; {_verdict(bleed, 'fewer', 'MORE')}."
    )


def _measured(study: Study) -> list[str]:
    models = sorted({str(model) for e in study.entries if (model := e.facts.get("model"))})
    rows = sorted({a.settings.rows or len(a.answers) for e in study.done for a in e.task})
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


def _compare(outcome: Outcome, pair: Pair) -> str | None:
    """One comparison: what its rows show, or why nothing is concluded."""
    name, where = outcome.main, f" at {pair.point}" if pair.point else ""
    who = f"{pair.reference.method} against {pair.called}{where}"
    difference = pair.difference(name)
    if difference is None:
        return None
    if pair.stops:
        return f"{who}: NO CONCLUSION. {'; '.join(pair.stops)}."
    first, second = map(_list, pair.steps)
    steps = f"equal steps, {first}" if first == second else f"{first} steps against {second}"
    if pair.other.is_base:
        steps = "before any training"
    parts = [f"{who} ({steps}): {name} {_verdict(difference, 'LOWER', 'higher')}"]
    content = pair.difference("balanced accuracy")
    if content is not None and name != "balanced accuracy":
        parts.append(f"balanced accuracy {_verdict(content, 'LOWER', 'higher')}")
    for key in LOSS_FILES:
        loss = pair.difference(key)
        if loss is not None:
            parts.append(f"loss, {key.removesuffix(' minus base')}: {_loss_verdict(loss)}")
    remarks = [caveat.text for caveat in pair.caveats]
    if said := outcome.notes(pair.other):
        remarks.append(f"{pair.other.method} is {'; '.join(said)}")
    asked, both = len(outcome.study.seeds), len({entry.seed for entry in pair.mine})
    if both < asked:
        remarks.append(f"{both} of {asked} seeds are compared, those that both have")
    return "; ".join(parts) + (f". Note: {'; '.join(remarks)}." if remarks else ".")


def _verdict(difference: Difference, lower: str, higher: str) -> str:
    """What a difference says, and its numbers in brackets."""
    said = higher if difference.value > 0 else lower
    if difference.seeds_disagree:
        said = "not told apart, the seeds disagree"
    elif without_power(difference):
        said = "NO CONCLUSION, too few rows"
    elif not difference.told_apart:
        said = "not told apart"
    digits, unit = difference.digits, "" if difference.is_loss else " points"
    numbers = shown(difference, digits, sign="+").replace(" [", f"{unit} [")
    least = f"{difference.smallest:.{digits}f}{unit}"
    seeds = f"; by seed {difference.each_seed}" if difference.by_seed else ""
    return f"{said} ({numbers}, {difference.n} rows, which show {least} or more{seeds})"


def _loss_verdict(loss: Difference) -> str:
    if not all(map(math.isfinite, (loss.value, loss.low, loss.high))):
        return "not measured: it is no number, so a run diverged"
    if loss.n < _FEWEST_ROWS:
        return f"{loss.value:+.3f}, of {loss.n} rows: too few to tell"
    return _verdict(loss, "lower", "HIGHER")


def _not_shown(outcome: Outcome) -> list[str]:
    study = outcome.study
    sentences = [
        f"Intervals are over {study.split} rows. They do not hold what another seed would change; "
        "that is shown by the seeds' own spread.",
    ]
    if study.split != "test":
        sentences.append(
            "No test row was asked: what is chosen here is yet to be scored on the test rows."
        )
    if not outcome.pairs:
        sentences.append(
            f"Nothing is compared: no finished run of {study.plot.reference} has another beside it."
        )
    seeds = min((len(pair.mine) for pair in outcome.pairs), default=len(study.seeds))
    if seeds < LEAST_SEEDS:
        sentences.append(
            f"With {seeds} seed{'s' if seeds > 1 else ''} the variance between seeds is not "
            "known; a difference of a few points may be one of seeds."
        )
    no_op = sorted({group.name for group in outcome.groups if group.no_op})
    if no_op:
        sentences.append(
            f"{'; '.join(no_op)}: no-op. With warm-up the learning rate of its only step is 0, so "
            "it is the base model by construction; a comparison with it says nothing of the method."
        )
    if any(entry.facts.get("settings", {}).get("use_cpu") for entry in study.entries):
        sentences.append(
            "Trained on a CPU, without a GPU, with a small model. Whether a 7B model behaves so is "
            "not shown."
        )
    if study.published is not None and study.published.note:
        sentences.append(f"On the paper's numbers: {study.published.note}")
    return sentences


def _list(items: Sequence[object]) -> str:
    return ", ".join(map(str, items)) if items else "no"
