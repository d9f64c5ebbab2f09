"""What `check` prints: how many problems, one section a question, the problems; or JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.core.manifest import held_out_queries, manifest_of, source_facts
from tell_plugins.core.mixture import GENERAL, Mixture
from tell_plugins.recipe.checked import ERROR, PARTS, WARNING, Checked, Finding, Unjudged
from tell_plugins.recipe.estimate import GIB, memory
from tell_plugins.recipe.paper import TASKS, departures
from tell_plugins.recipe.recipes import Recipe
from tell_plugins.recipe.schedule import Exposure, Plan, processes_of, why_no_op
from tell_plugins.recipe.shapes import ModelShape, shape_of
from tell_plugins.recipe.tables import count_of, table


def report(checked: Checked | Unjudged, verbose: bool = False) -> str:
    """The whole report of one recipe.

    `verbose`: what differs from the paper is listed for a task that is not the paper's, too.
    """
    if isinstance(checked, Unjudged):
        said = problems(checked.findings) if checked.findings else checked.why
        return f"{checked.path}\n\n{said}"
    reason = why_no_op(checked.plan) if checked.plan else None
    parts = [
        _head(checked),
        f"NO-OP: this run trains nothing. {reason[0].upper()}{reason[1:]}." if reason else "",
        _sources(checked),
        _training(checked),
        _lengths(checked),
        _cost(checked),
        _paper(checked, verbose),
        _not_checked(checked),
        problems(checked.findings),
    ]
    return "\n\n".join(part for part in parts if part)


def _head(checked: Checked) -> str:
    recipe, file = checked.recipe, checked.path
    first, *_ = recipe.path.read_text(encoding="utf-8-sig").lstrip().split("\n", 1)
    try:
        processes = processes_of(recipe)
    except UserError:
        processes = 1
    newer = recipe.swift.takes_yaml_first
    launch = "swift sft" if newer else "swift sft --config"
    only = "" if newer else "; only `./run.sh train` lets them win"
    lines = [
        f"  model    {recipe.text('model') or 'none'}",
        f"  dataset  {', '.join(recipe.names('dataset')) or 'none'}",
        f"  runs by  {launch} {file}   (ms-swift {recipe.swift.version}, "
        f"{processes} process{'es' if processes > 1 else ''})",
        f"  output   {paths.shown(recipe.output_dir)}",
        f"  found    {_counted(checked.findings)}",
    ]
    purpose = [f"  {first.lstrip('# ').strip()}"] if first.startswith("#") else []
    flags = [f"  flags    {', '.join(sorted(recipe.flags))}{only}"] if recipe.flags else []
    return "\n".join([file, *purpose, *lines, *flags])


def _sources(checked: Checked) -> str:
    if checked.mixture is not None:
        return "\n".join(["Sources", *source_lines(checked.mixture)])
    if checked.entries is None:
        return "Sources\n  not known until the data is here and the dataset string is good"
    task, general = checked.entries
    return (
        f"Sources\n  by the dataset string alone: {task:,} task and {general:,} general rows "
        "an epoch; the files were not read"
    )


def source_lines(mixture: Mixture) -> list[str]:
    """What each source holds and gives, and what was dropped; `mix` prints it too."""
    header = ["role", "card", "split", "in file", "dropped", "tokens there", "used", "copies"]
    header += ["tokens used", "trainable", "share of rows"]
    rows = [_source_row(source_facts(source), len(mixture)) for source in mixture.sources]
    return [table(header, rows), *_source_notes(mixture)]


def _source_row(facts: dict[str, Any], total: int) -> list[object]:
    rows, tokens = facts["rows"], facts["tokens"]
    kept = [rows["in_file"], sum(rows["dropped"].values()), tokens["available"], rows["used"]]
    used = [rows["copies"], tokens["used"], tokens["trainable"]]
    share = f"{rows['used'] * rows['copies'] / total:.1%}"
    return [facts["role"], facts["card"], facts["split"], *kept, *used, share]


def _source_notes(mixture: Mixture) -> list[str]:
    notes = []
    for source in mixture.sources:
        lost = [f"{n:,} {reason.replace('_', ' ')}" for reason, n in source.dropped.items()]
        if lost:
            notes.append(f"{source.card.name}: dropped {', '.join(lost)}")
        if source.duplicates:
            notes.append(f"{source.card.name}: {count_of(source.duplicates, 'duplicate')}, kept")
    by = "tokens not counted: the paper's tokenizer is not here (./run.sh data llama2_tokenizer)"
    if mixture.counter is not None:
        by = f"tokens by {mixture.counter.name}, anchors included, chat template not"
    notes += [_overlap_note(mixture), by, f"hash {mixture.hash}"]
    return [f"  {note}" for note in notes]


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


def _training(checked: Checked) -> str:
    plan = checked.plan
    if plan is None:
        return "Training\n  steps are not known (see the problems)"
    training, exposure = plan.training, checked.exposure
    world = f" x {training.world} processes" if training.world > 1 else ""
    length = f"max_steps {training.max_steps}"
    if training.max_steps < 0:
        length = f"{training.epochs:g} epoch{'s' if training.epochs != 1 else ''}"
    batch = f"{training.per_device} x {training.accumulation} accumulated{world}"
    task, share = _task_entries(checked, plan)
    lines = {
        "rows an epoch": f"{plan.entries:,}{share}",
        "rows a step": f"{training.rows_per_step} = {batch}",
        "optimizer steps": f"{plan.steps:,} ({length})",
        "warm-up steps": f"{plan.warmup_steps:,}",
        "learning rate": _rates(plan),
    }
    if exposure is not None:
        above = f"{exposure.working_steps:,} of them above learning rate 0"
        even = f"{exposure.relative:.3f} of what even spacing gives"
        lines["steps with a task row"] = f"{exposure.steps:,}, {above}"
        lines["task exposure"] = (
            f"{exposure.weight:.2f} rows at full learning rate, of {task:,}; {even}"
        )
    elif task:
        lines["steps with a task row"] = "not known until the data is here"
    width = max(map(len, lines))
    return "\n".join(["Training", *(f"  {name:<{width}}  {text}" for name, text in lines.items())])


def _task_entries(checked: Checked, plan: Plan) -> tuple[int, str]:
    """Task entries over the run, and their share of an epoch in words."""
    assert checked.entries is not None  # of these the plan was made
    task = checked.entries[0]
    over = task if checked.mixture is None else plan.over_the_run(checked.mixture.is_task)
    return over, f" ({task:,} of them task rows, {task / plan.entries:.1%})"


def _rates(plan: Plan) -> str:
    full, landmarks = plan.training.learning_rate, plan.landmarks.items()
    each = ", ".join(f"{rate * full:.3g} at step {step + 1}" for step, rate in landmarks)
    return f"{each} ({plan.training.scheduler})"


def _lengths(checked: Checked) -> str:
    limit, counted = checked.limit, checked.counted
    shown = "the model's context, which is not known here" if limit is None else f"{limit:,}"
    if limit is not None and not checked.recipe.given("max_length"):
        shown += " (the model's context)"
    said = "not counted"
    if counted is not None:
        whose = "the model's own" if counted.own else "the model's own may differ"
        said = f"by {counted.tokenizer} ({whose}): longest {counted.longest:,} tokens"
        said += " (chat template not included)"
    return f"Row lengths\n  max_length {shown}\n  {said}"


def _cost(checked: Checked) -> str:
    """Memory, or why it is not told."""
    counted, shape = checked.counted, shape_of(checked.recipe.text("model"))
    try:
        known = counted is not None or (checked.limit or 0) > 0
        if shape is None or not known or not _is_plain_lora(checked.recipe, shape):
            plain = "LoRA on an unquantised model whose sizes and context are known, without Liger"
            return f"Cost\n  no estimate: it is for {plain}"
        rows = counted.rows if counted else np.array([[checked.limit, checked.limit]])
        held = checked.spec is not None and checked.spec.kl > 0
        parts = memory(shape, checked.recipe, rows, held=held)
    except UserError:
        return "Cost\n  no estimate: settings are unreadable or missing (see the problems)"
    basis = "at the longest row" if counted is not None else "for a row that fills max_length"
    each = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size)
    return (
        "Cost (an estimate by formula, no measurement)\n"
        f"  memory   {sum(parts.values()) / GIB:.1f} GiB a process {basis}: {each}"
    )


def _is_plain_lora(recipe: Recipe, shape: ModelShape) -> bool:
    quantised = recipe.given("quant_method") or recipe.given("quant_bits") or shape.quantised
    others = quantised or recipe.flag("use_liger_kernel")
    return recipe.text("tuner_type", "lora") == "lora" and not others


def _paper(checked: Checked, verbose: bool) -> str:
    title = "Other than the paper"
    try:
        found = departures(checked.recipe, checked.spec)
    except UserError:
        return f"{title}\n  not compared: settings are unreadable (see the problems)"
    if not found:
        return f"{title}\n  nothing: its values, and its framework's defaults then"
    if not verbose and not (checked.spec and checked.spec.card.startswith(TASKS)):
        return f"{title}: {count_of(len(found), 'setting')}, which --verbose lists"
    rows = [
        (d.key, d.paper, d.of_its_time, d.recipe + ("" if d.given else " (ms-swift's default)"))
        for d in found
    ]
    header = ["setting", "the paper's", "default of its time", "this recipe's"]
    return f"{title}\n{table(header, rows)}"


def _not_checked(checked: Checked) -> str:
    """The parts whose reason stands nowhere else in the report."""
    parts = ["settings"] if checked.mixture is None else ["settings", "lengths"]
    reasons = [checked.not_checked[part] for part in parts if part in checked.not_checked]
    return "\n  ".join(["Not checked", *reasons]) if reasons else ""


def problems(findings: Sequence[Finding]) -> str:
    """Errors, then warnings, each with its place and remedy; and how many there are."""
    if not findings:
        return "No problems found."
    ordered = sorted(findings, key=lambda finding: finding.severity != ERROR)
    return "\n".join(["Problems", *map(_problem, ordered), "", _counted(findings)])


def _counted(findings: Sequence[Finding]) -> str:
    """`2 errors, 1 warning`"""
    counts = Counter(finding.severity for finding in findings)
    said = [count_of(counts[kind], kind) for kind in (ERROR, WARNING) if counts[kind]]
    return ", ".join(said) or "no problems"


def _problem(finding: Finding) -> str:
    first, *rest = str(finding).split("\n")
    lines = [f"{finding.severity}: {first} [{finding.rule}]", *rest]
    return "\n".join(f"  {line}" for line in lines)


# --- the same for programs: `check --json`, whose form is check.schema.json


def as_object(judged: Checked | Unjudged) -> dict[str, Any]:
    """Everything that is known of a recipe."""
    sources = steps = None
    if isinstance(judged, Checked):
        if judged.mixture is not None:
            sources = manifest_of(judged.mixture)["sources"]
            for source in sources:
                del source["malformed_rows"]
        steps = None if judged.plan is None else _steps(judged.plan, judged.exposure)
    reasons = judged.not_checked
    return {
        "recipe": judged.path,
        "findings": [_finding(finding) for finding in judged.findings],
        "sources": sources,
        "steps": steps,
        "ran": [part for part in PARTS if part not in reasons],
        "not_checked": [{"part": part, "why": reasons[part]} for part in PARTS if part in reasons],
    }


def _finding(finding: Finding) -> dict[str, str | None]:
    words = {name: getattr(finding, name) for name in ("found", "where", "allowed", "remedy")}
    return {"id": finding.rule, "level": finding.severity, **words}


def _steps(plan: Plan, exposure: Exposure | None) -> dict[str, Any]:
    rates = [rate * plan.training.learning_rate for rate in plan.landmarks.values()]
    highest = plan.peak * plan.training.learning_rate
    return {
        "rows_an_epoch": plan.entries,
        "rows_a_step": plan.training.rows_per_step,
        "optimizer_steps": plan.steps,
        "warmup_steps": plan.warmup_steps,
        "scheduler": plan.training.scheduler,
        "learning_rate": {"first": rates[0], "highest": highest, "last": rates[-1]},
        "trains_nothing": plan.is_no_op,
        "task": None
        if exposure is None
        else {
            "steps": exposure.steps,
            "steps_above_rate_0": exposure.working_steps,
            "rows_at_full_rate": exposure.weight,
            "of_even_spacing": exposure.relative,
            "rows_unseen": exposure.unseen,
        },
    }
