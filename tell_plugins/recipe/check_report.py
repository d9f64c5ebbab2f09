"""What `check` prints: how many problems, one section a question, the problems; or JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.core.manifest import held_out_queries, manifest_of, source_facts
from tell_plugins.core.mixture import GENERAL, Mixture
from tell_plugins.core.shown import count_of, table
from tell_plugins.recipe.checked import ERROR, PARTS, WARNING, Checked, Finding
from tell_plugins.recipe.models import GIB, memory, shape_of
from tell_plugins.recipe.paper import TASKS, departures
from tell_plugins.recipe.schedule import Exposure, Plan, processes_of, why_no_op


def report(checked: Checked, verbose: bool = False) -> str:
    """The whole report of one recipe.

    `verbose`: what differs from the paper is listed for a task that is not the paper's, too.
    """
    reason = why_no_op(checked.plan) if checked.plan else None
    no_op = [f"NO-OP: this run trains nothing. {reason[0].upper()}{reason[1:]}."] if reason else []
    reasons = checked.not_checked
    if checked.mixture is None:  # why no row was counted is told with the sources
        reasons.pop("lengths", None)
    unread = [reasons[part] for part in ("settings", "lengths") if part in reasons]
    sections = [
        _head(checked),
        *no_op,
        _section("Sources", _sources(checked)),
        _section("Training", _training(checked)),
        _section("Row lengths", _lengths(checked)),
        _cost(checked),
        _paper(checked, verbose),
        *([_section("Not checked", unread)] if unread else []),
        problems(checked.findings),
    ]
    return "\n\n".join(sections)


def _section(title: str, lines: Sequence[str] | Mapping[str, str]) -> str:
    """A title and its lines; names of a mapping stand in a column before its texts."""
    if isinstance(lines, Mapping):
        width = max(map(len, lines))
        lines = [f"{name:<{width}}  {text}" for name, text in lines.items()]
    return "\n".join([title, *(f"  {line}" for line in lines)])


def _head(checked: Checked) -> str:
    recipe = checked.recipe
    first, *_ = recipe.path.read_text(encoding="utf-8-sig").lstrip().split("\n", 1)
    try:
        processes = processes_of(recipe)
    except UserError:
        processes = 1
    newer, shown = recipe.swift.takes_yaml_first, paths.shown(recipe.path)
    launch = f"swift sft {'' if newer else '--config '}{shown}"
    version = f"ms-swift {recipe.swift.version}, {count_of(processes, 'process', 'es')}"
    lines = {
        "model": recipe.text("model") or "none",
        "dataset": ", ".join(recipe.names("dataset")) or "none",
        "runs by": f"{launch}   ({version})",
        "output": paths.shown(recipe.output_dir),
        "found": _counted(checked.findings),
    }
    if recipe.flags:
        only = "" if newer else "; only `./run.sh train` lets them win"
        lines["flags"] = ", ".join(sorted(recipe.flags)) + only
    purpose = f"\n  {first.lstrip('# ').strip()}" if first.startswith("#") else ""
    return _section(shown + purpose, lines)


def _sources(checked: Checked) -> list[str]:
    if checked.mixture is not None:
        return source_lines(checked.mixture)
    if checked.entries is None:
        return ["not known until the data is here and the dataset string is good"]
    task, general = checked.entries
    return [
        f"by the dataset string alone: {task:,} task and {general:,} general rows an epoch; the "
        "files were not read"
    ]


def source_lines(mixture: Mixture) -> list[str]:
    """What each source holds and gives, and what was dropped; `mix` prints it too."""
    header = ["role", "card", "split", "in file", "dropped", "tokens there", "used", "copies"]
    header += ["tokens used", "trainable", "share of rows"]
    rows, notes = [], []
    for source in mixture.sources:
        facts, name = source_facts(source), source.card.name
        held, tokens, dropped = facts["rows"], facts["tokens"], facts["rows"]["dropped"]
        share = f"{held['used'] * held['copies'] / len(mixture):.1%}"
        rows.append(
            [
                *(source.role, name, source.split, held["in_file"], sum(dropped.values())),
                *(tokens["available"], held["used"], held["copies"]),
                *(tokens["used"], tokens["trainable"], share),
            ]
        )
        if dropped:
            lost = (f"{number:,} {why.replace('_', ' ')}" for why, number in dropped.items())
            notes.append(f"{name}: dropped {', '.join(lost)}")
        if source.duplicates:
            notes.append(f"{name}: {count_of(source.duplicates, 'duplicate')}, kept")
    by = "tokens not counted: the paper's tokenizer is not here (./run.sh data llama2_tokenizer)"
    if mixture.counter is not None:
        by = f"tokens by {mixture.counter.name}, anchors included, chat template not"
    lines = table(header, rows, indent="").split("\n")
    return [*lines, *notes, _overlap_note(mixture), by, f"hash {mixture.hash}"]


def _overlap_note(mixture: Mixture) -> str:
    held, rule = held_out_queries(mixture), mixture.spec.overlap
    if mixture.card.kind == GENERAL:
        return "overlap: not checked, since a general card has no held-out rows"
    if held is None:
        return f"overlap={rule}: not checked, since no held-out row is here"
    against = "all held-out rows" if mixture.overlap_checked else "the held-out rows that are here"
    task = "" if mixture.task is None else "; task rows: 0"
    return (
        f"overlap={rule}: checked against {against}; "
        f"general rows that hold one of their queries: {held:,}{task}"
    )


def _training(checked: Checked) -> Sequence[str] | dict[str, str]:
    plan, exposure, entries = checked.plan, checked.exposure, checked.entries
    if plan is None or entries is None:
        return ["steps are not known (see the problems)"]
    training, task = plan.training, entries[0]
    world = f" x {training.world} processes" if training.world > 1 else ""
    length = f"max_steps {training.max_steps}"
    if training.max_steps < 0:
        length = f"{training.epochs:g} epoch{'s' if training.epochs != 1 else ''}"
    share = f" ({task:,} of them task rows, {task / plan.entries:.1%})"
    batch = f"{training.per_device} x {training.accumulation} accumulated{world}"
    rates = [(step + 1, rate * training.learning_rate) for step, rate in plan.landmarks.items()]
    shown = ", ".join(f"{rate:.3g} at step {step}" for step, rate in rates)
    lines = {
        "rows an epoch": f"{plan.entries:,}{share}",
        "rows a step": f"{training.rows_per_step} = {batch}",
        "optimizer steps": f"{plan.steps:,} ({length})",
        "warm-up steps": f"{plan.warmup_steps:,}",
        "learning rate": f"{shown} ({training.scheduler})",
    }
    if exposure is not None and checked.is_task is not None:
        mixture = checked.mixture
        over = task if mixture is None else plan.over_the_run(checked.is_task)
        above = f"{exposure.working_steps:,} of them above learning rate 0"
        even = f"{exposure.relative:.3f} of what even spacing gives"
        lines["steps with a task row"] = f"{exposure.steps:,}, {above}"
        lines["task exposure"] = f"{exposure.weight:.2f} rows at full learning rate, of {over:,}"
        lines["task exposure"] += f"; {even}"
    elif task:
        lines["steps with a task row"] = "not known until the data is here"
    return lines


def _lengths(checked: Checked) -> list[str]:
    limit, counted = checked.limit, checked.counted
    shown = "the model's context, which is not known here" if limit is None else f"{limit:,}"
    if limit is not None and not checked.recipe.given("max_length"):
        shown += " (the model's context)"
    said = "not counted"
    if counted is not None:
        whose = "the model's own" if counted.own else "the model's own may differ"
        said = f"by {counted.tokenizer} ({whose}): longest {counted.longest:,} tokens"
        said += " (chat template not included)"
    return [f"max_length {shown}", said]


def _cost(checked: Checked) -> str:
    """Memory, or why it is not told."""
    try:
        parts = _memory(checked)
    except UserError:
        why = "no estimate: settings are unreadable or missing (see the problems)"
        return _section("Cost", [why])
    if parts is None:
        plain = "LoRA on an unquantised model whose sizes and context are known, without Liger"
        return _section("Cost", [f"no estimate: it is for {plain}"])
    basis = "at the longest row" if checked.counted else "for a row that fills max_length"
    each = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size)
    said = f"memory   {sum(parts.values()) / GIB:.1f} GiB a process {basis}: {each}"
    return _section("Cost (an estimate by formula, no measurement)", [said])


def _memory(checked: Checked) -> dict[str, float] | None:
    """Bytes by part; None where the formula is not for such a run."""
    recipe, counted, limit = checked.recipe, checked.counted, checked.limit or 0
    shape = shape_of(recipe.text("model"))
    if shape is None or not (counted or limit > 0) or shape.quantised:
        return None
    if recipe.given("quant_method") or recipe.given("quant_bits"):
        return None
    if recipe.flag("use_liger_kernel") or recipe.text("tuner_type", "lora") != "lora":
        return None
    rows = counted.rows if counted else np.array([[limit, limit]])
    return memory(shape, recipe, rows, held=checked.spec is not None and checked.spec.kl > 0)


def _paper(checked: Checked, verbose: bool) -> str:
    title = "Other than the paper"
    try:
        found = departures(checked.recipe, checked.spec)
    except UserError:
        return _section(title, ["not compared: settings are unreadable (see the problems)"])
    if not found:
        return _section(title, ["nothing: its values, and its framework's defaults then"])
    if not verbose and not (checked.spec and checked.spec.card.startswith(TASKS)):
        return f"{title}: {count_of(len(found), 'setting')}, which --verbose lists"
    rows = [
        (d.key, d.paper, d.of_its_time, d.recipe + ("" if d.given else " (ms-swift's default)"))
        for d in found
    ]
    header = ["setting", "the paper's", "default of its time", "this recipe's"]
    return f"{title}\n{table(header, rows)}"


def problems(findings: Sequence[Finding]) -> str:
    """Errors, then warnings, each with its place and remedy; and how many there are."""
    if not findings:
        return "No problems found."
    lines = []
    for finding in sorted(findings, key=lambda finding: finding.severity != ERROR):
        first, *rest = str(finding).split("\n")
        lines += [f"{finding.severity}: {first} [{finding.rule}]", *rest]
    return f"{_section('Problems', lines)}\n\n{_counted(findings)}"


def _counted(findings: Sequence[Finding]) -> str:
    """`2 errors, 1 warning`"""
    counts = Counter(finding.severity for finding in findings)
    said = [count_of(counts[kind], kind) for kind in (ERROR, WARNING) if counts[kind]]
    return ", ".join(said) or "no problems"


# --- the same for programs: `check --json`, whose form is check.schema.json


def object_of(checked: Checked) -> dict[str, Any]:
    """Everything that is known of a recipe."""
    sources = None
    if checked.mixture is not None:
        sources = manifest_of(checked.mixture)["sources"]
        for source in sources:
            del source["malformed_rows"]
    plan, reasons = checked.plan, checked.not_checked
    return {
        "recipe": paths.shown(checked.recipe.path),
        "findings": [_finding(finding) for finding in checked.findings],
        "sources": sources,
        "steps": None if plan is None else _steps(plan, checked.exposure),
        "ran": [part for part in PARTS if part not in reasons],
        "not_checked": [{"part": part, "why": reasons[part]} for part in PARTS if part in reasons],
    }


def unjudged(path: str, findings: Sequence[Finding], why: str) -> dict[str, Any]:
    """The same of a recipe of which nothing could be looked at."""
    return {
        "recipe": path,
        "findings": [_finding(finding) for finding in findings],
        **dict.fromkeys(("sources", "steps")),
        "ran": [],
        "not_checked": [{"part": part, "why": why} for part in PARTS],
    }


def _finding(finding: Finding) -> dict[str, str | None]:
    words = {name: getattr(finding, name) for name in ("found", "where", "allowed", "remedy")}
    return {"id": finding.rule, "level": finding.severity, **words}


def _steps(plan: Plan, exposure: Exposure | None) -> dict[str, Any]:
    full = plan.training.learning_rate
    rates = [rate * full for rate in plan.landmarks.values()]
    highest = plan.peak * full
    task = None
    if exposure is not None:
        names = ("steps", "steps_above_rate_0", "rows_at_full_rate", "of_even_spacing")
        task = dict(zip((*names, "rows_unseen"), exposure, strict=True))
    return {
        "rows_an_epoch": plan.entries,
        "rows_a_step": plan.training.rows_per_step,
        "optimizer_steps": plan.steps,
        "warmup_steps": plan.warmup_steps,
        "scheduler": plan.training.scheduler,
        "learning_rate": {"first": rates[0], "highest": highest, "last": rates[-1]},
        "trains_nothing": plan.is_no_op,
        "task": task,
    }
