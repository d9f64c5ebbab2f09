"""`./run.sh eval`: answer a recipe's test split, save the answers, score them.

Beside the task's scores stands what the run did elsewhere: how often a general question is
answered as the task is, losses on foreign instructions and prose, divergence from the base model,
and loss on held-out rows of the general data (style fit).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tell_plugins.bridge.protocol import Engine, History, decoding, model_sha256, system_text
from tell_plugins.core import paths
from tell_plugins.core.anchors import in_front
from tell_plugins.core.cards import Card
from tell_plugins.core.errors import UserError, raise_all
from tell_plugins.core.schemas import card_validator
from tell_plugins.core.sources import open_task
from tell_plugins.core.state_files import only_one
from tell_plugins.evaluation import bleed, elsewhere, engines, rivals, scoring, trained_with
from tell_plugins.evaluation import prompts as prompting
from tell_plugins.evaluation.adapters import (
    Adapter,
    at_scales,
    find_adapters,
    folder_sha256,
    with_baseline,
)
from tell_plugins.evaluation.answers import GENERAL, Prompt, Settings, answer_all, refuse_others
from tell_plugins.evaluation.engines import UrlEngine
from tell_plugins.evaluation.options import (
    Options,
    add_arguments,
    answer_folders,
    contradictions,
    options_of,
    wrong_flags,
)
from tell_plugins.evaluation.rivals import Examples
from tell_plugins.evaluation.scorers.learned import Wanted, need_translation, wanted
from tell_plugins.recipe.models import model_folder
from tell_plugins.recipe.recipes import Recipe, load_recipe

__all__ = ["add_arguments", "run"]
_ANCHORED = "the server puts the anchor in front of every query"


def run(args: argparse.Namespace) -> int:
    from tell_plugins.evaluation.compare import compare
    from tell_plugins.evaluation.system_tables import print_summary, print_verdict

    recipe, asked = load_recipe(args.recipe, args.flags), options_of(args)
    raise_all([*wrong_flags(recipe), *contradictions(asked)])
    if asked.against:
        named = with_baseline(recipe, asked.against, asked.adapter)
        asked = asked.model_copy(update={"adapter": named})
    task = plan(recipe, asked)
    for note in task.notes:
        print(note, flush=True)
    with only_one(task.out, "eval"):
        for number, adapters in enumerate(_loads(task)):
            _answer_with_one_load(task, adapters, first=number == 0)
    labels, names = [adapter.label for adapter in task.adapters], list(answer_folders(asked))
    print_summary(task.out, labels, names, task.card)
    for adapter in task.adapters:
        if adapter.path is not None and adapter.changes_nothing:
            print(f"{adapter.label}: every LoRA B matrix is zero; this run trained nothing")
    for name in names if asked.against else []:
        *others, baseline = [task.out / label / name for label in labels]
        print_verdict(compare([baseline, *others]))
    return 0


@dataclass(frozen=True)
class Task:
    """What one call of `eval` has to do; `asked` are its options."""

    asked: Options
    recipe: Recipe
    card: Card
    anchor: str
    prompts: list[Prompt]
    adapters: list[Adapter]
    general: list[tuple[str, str]]
    foreign: elsewhere.Foreign | None
    learned: Wanted
    out: Path
    notes: list[str]  # what is to be said before the first answer

    @property
    def served(self) -> bool:
        """Whether a server answers."""
        return engines.is_url(self.asked.engine)

    @property
    def max_new_tokens(self) -> int:
        return prompting.answer_limit(self.card, self.asked.max_new_tokens)


def plan(recipe: Recipe, asked: Options) -> Task:
    """Everything that can be wrong, found before a model is loaded."""
    remedy = "name the recipe of the task, and this run's folder with --adapter"
    card = prompting.task_card(recipe, "task to score", remedy)
    card_validator(card)  # a schema that cannot be applied is told before anything is asked
    decoding(asked.decoding)
    engines.need_kind(asked.engine, asked.model_name)
    learned = wanted(asked)
    need_translation(card, learned)
    adapters = find_adapters(asked.adapter, recipe, rivals.RIVALS)
    for adapter in adapters:
        rivals.refuse_unfit(adapter.rival, card)
    found = None if engines.is_url(asked.engine) else trained_with.found_by_swift
    recipe, notes = trained_with.as_trained(recipe, adapters, found)
    anchor = asked.anchor or recipe.spec.anchor
    if asked.shots:
        rivals.choose_examples(card, anchor, asked.shots)
    task, prompts = prompting.task_prompts(card, asked.split, anchor, asked.rows)
    scaled = len(adapters) - bool(asked.against)  # a baseline stays as it is
    if asked.anchor is None:
        raise_all(list(trained_with.other_anchors(adapters, task)))
    notes += trained_with.rows_trained_on(adapters, task, prompts)
    specs = [recipe.spec, *(spec for adapter in adapters if (spec := adapter.spec))]
    rows = asked.general_rows
    if rows and not prompting.has_held_out(specs, card):
        raise_all(list(trained_with.unknown_rows(adapters)))
    return Task(
        asked=asked,
        recipe=recipe,
        card=card,
        anchor=anchor,
        prompts=prompts,
        adapters=at_scales(adapters[:scaled], asked.scales) + adapters[scaled:],
        general=prompting.general_rows(specs, card, rows) if rows else [],
        foreign=elsewhere.foreign(asked.retention_rows) if rows else None,
        learned=learned,
        out=paths.user_target(asked.out) if asked.out else recipe.output_dir / "eval",
        notes=notes,
    )


# --- engines --------------------------------------------------------------------------------------


def _loads(task: Task) -> list[list[Adapter]]:
    """What shares a load: the base model and its adapters; a whole model has one of its own."""
    if task.served:
        return [task.adapters]
    shared = [adapter for adapter in task.adapters if not adapter.whole]
    return [part for part in (shared, *([a] for a in task.adapters if a.whole)) if part]


def _engine(task: Task, adapters: list[Adapter]) -> Any:
    if all(adapter.rival == rivals.WORDS for adapter in adapters):
        return rivals.NO_MODEL
    asked = task.asked
    return engines.make_engine(
        asked.engine,
        task.recipe,
        adapters,
        batch_size=asked.batch_size,
        model_name=asked.model_name,
    )


def _anchors_by_itself(engine: Engine, task: Task) -> bool:
    """Whether the engine is a server that puts the anchor before every query.

    Raises UserError where the test is to be without it.
    """
    own = task.recipe.spec.anchor
    front = in_front(open_task(task.card, task.asked.split, own).anchor.text)
    if not front or not isinstance(engine, UrlEngine) or not engine.puts_in_front(front):
        return False
    if task.anchor != own:
        raise UserError(
            f"{_ANCHORED}, so anchor '{task.anchor}' cannot be tested there",
            where="--anchor",
            remedy="start the server with TELL_ANCHOR=none in its environment",
        )
    return True


# --- answers --------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """What is asked for one folder of answers, after which turns, and by which settings."""

    folder: Path
    prompts: Sequence[Prompt]
    settings: Settings
    history: History = ()


def _answer_with_one_load(task: Task, adapters: list[Adapter], *, first: bool) -> None:
    engine = _engine(task, adapters)
    if isinstance(engine, UrlEngine):
        engine.need_apart([adapter.engine_name for adapter in adapters])
    if first and engine is not rivals.NO_MODEL:  # before the first is answered for hours
        for adapter in task.adapters:
            for asked in [] if adapter.rival else _asked(engine, task, adapter, None):
                refuse_others(asked.folder, asked.settings)
    for adapter in adapters:
        with engines.acting(engine, adapter):
            _answer(engine, task, adapter)


def _answer(engine: Any, task: Task, adapter: Adapter) -> None:
    anchored = not adapter.rival and _anchors_by_itself(engine, task)
    answers, examples = _with_examples(engine, task, adapter)
    for folder, prompts, settings, history in _asked(answers, task, adapter, examples):
        general = settings.split == GENERAL
        if general and anchored:
            print(f"{adapter.label}: {_ANCHORED}; no general question is asked", flush=True)
            continue
        label = f"{adapter.label}, {settings.split}"
        answer_all(answers, prompts, settings, folder, label=label, history=history)
        if general and task.foreign is not None:
            # of the base model, or of a whole one, no base is at hand to diverge from
            base = adapter.path is None or adapter.whole
            elsewhere.measure_all(
                engine, task.general, task.foreign, settings, folder, label=adapter.label, base=base
            )
        else:
            if examples is not None:
                examples.keep(folder)
            scoring.write(folder, task.learned)


def _with_examples(engine: Engine, task: Task, adapter: Adapter) -> tuple[Engine, Examples | None]:
    """What answers the task, and the examples in front of each question."""
    spec, shots = task.recipe.spec, task.asked.shots
    if adapter.rival == rivals.WORDS:
        return rivals.by_words(spec, task.card, task.prompts, task.asked.split), None
    if adapter.rival == rivals.CHOICES:
        return rivals.by_choice(engine, task.card), None
    if adapter.rival:
        limit = task.max_new_tokens
        return engine, rivals.examples_that_fit(engine, spec, task.prompts, limit, task.anchor)
    return engine, rivals.choose_examples(task.card, task.anchor, shots) if shots else None


def _asked(
    engine: Engine, task: Task, adapter: Adapter, examples: Examples | None
) -> Iterator[Asked]:
    """Every folder of answers of one adapter: to the task once a seed, then to general questions,
    which are asked greedily, for a short answer, without anchor and examples."""
    history = examples.history if examples else []
    out, same = task.out / adapter.label, _settings(engine, task, adapter)
    of_task = {
        "prompts_sha256": prompting.prompts_sha256(task.prompts),
        "rows_sha256": prompting.pairs_sha256(history) if history else "",
        "shots": len(history) or task.asked.shots,
    }
    for name, seed in answer_folders(task.asked).items():
        settings = same.model_copy(update=of_task | {"seed": seed})
        yield Asked(out / name, task.prompts, settings, history)
    if task.foreign is not None and not adapter.rival:  # which has nothing to say to them
        questions = task.foreign.questions
        of_general = {
            **{"split": GENERAL, "anchor": "none", "decoding": "greedy"},
            "rows": len(questions),
            "max_new_tokens": bleed.TOKENS,
            "prompts_sha256": prompting.prompts_sha256(questions),
            "rows_sha256": prompting.pairs_sha256(task.general),
        }
        yield Asked(out / GENERAL, questions, same.model_copy(update=of_general))


def _settings(engine: Engine, task: Task, adapter: Adapter) -> Settings:
    """What the answers to the task and to general questions have in common, the task's first."""
    options, model = task.asked, str(task.recipe.get("model"))
    keys, files = task.recipe.values, ""
    if task.served:  # which gets the system prompt alone
        model, system = engine.model_name, system_text(task.recipe.get("system"))
        keys = {"system": system} if system else {}
    else:
        folder = model_folder(model) or getattr(engine, "model_dir", None)
        files = folder_sha256(Path(folder)) if folder else ""
    return Settings(
        recipe=task.recipe.name,
        card=task.card.name,
        split=options.split,
        anchor=task.anchor,
        adapter=adapter.shown,
        decoding=options.decoding,
        rows=len(task.prompts),
        model=model,
        engine=engine.name,
        max_new_tokens=task.max_new_tokens,
        batch_size=options.batch_size,
        model_sha256=model_sha256(keys) if keys else "",
        adapter_sha256=adapter.weights_sha256,
        model_files_sha256=files,
        adapter_config_sha256=adapter.config_sha256,
        scale=adapter.scale,
    )
