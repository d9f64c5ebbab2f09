"""`./run.sh eval`: answer a recipe's test split, save the answers, score them.

Beside the task's scores stands what the run did elsewhere: how often a general question is
answered as the task is, losses on foreign instructions and prose, divergence from the base model,
and loss on held-out rows of the general data (style fit).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tell_plugins.bridge.protocol import Engine, History, decoding, model_sha256, system_text
from tell_plugins.core import paths
from tell_plugins.core.anchors import in_front
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import UserError, raise_all
from tell_plugins.core.locks import only_one
from tell_plugins.core.mixture import GENERAL as GENERAL_ROLE
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.schemas import card_validator
from tell_plugins.core.sources import TaskRows, open_task
from tell_plugins.core.spec import Spec, parse_spec
from tell_plugins.evaluation import (
    against,
    bleed,
    engines,
    retention,
    rivals,
    scoring,
)
from tell_plugins.evaluation import prompts as prompting
from tell_plugins.evaluation.adapters import Adapter, at_scales, find_adapters, folder_sha256
from tell_plugins.evaluation.answers import GENERAL, Prompt, Settings, answer_all, refuse_others
from tell_plugins.evaluation.engines import UrlEngine
from tell_plugins.evaluation.options import Options, add_arguments, options_of, wrong_flags
from tell_plugins.evaluation.rivals import (
    EXAMPLES,
    Examples,
    choose_examples,
    fixed_examples,
    save_examples,
)
from tell_plugins.evaluation.scorers.learned import LEARNED, metric_names
from tell_plugins.evaluation.trained_with import as_trained, found_by_swift, rows_trained_on
from tell_plugins.recipe.models import model_folder
from tell_plugins.recipe.recipes import Recipe, load_recipe

__all__ = ["add_arguments", "run"]
_ANCHORED = "the server puts the anchor in front of every query"


def run(args: argparse.Namespace) -> int:
    from tell_plugins.evaluation.summary import print_summary

    options = options_of(args)
    task = answer(options)
    names = [options.folder(seed) for seed in options.all_seeds()]
    print_summary(task.out, [adapter.label for adapter in task.adapters], names, task.card)
    for adapter in task.adapters:
        if adapter.path is not None and adapter.changes_nothing:
            print(f"{adapter.label}: every LoRA B matrix is zero; this run trained nothing")
    if options.against:
        for name in names:
            against.print_verdict([task.out / adapter.label / name for adapter in task.adapters])
    return 0


def answer(options: Options) -> Task:
    """Answer and score everything that is asked for; what is there already is kept."""
    recipe = load_recipe(options.recipe, options.flags)
    raise_all(list(wrong_flags(recipe)))
    if options.against:
        named = against.with_baseline(recipe, options.against, options.adapter)
        options = options.model_copy(update={"adapter": named})
    task = plan(recipe, options)
    for note in task.notes:
        print(note, flush=True)
    with only_one(task.out, "eval"):
        for number, adapters in enumerate(_loads(task.adapters, options)):
            _answer_with_one_load(task, adapters, options, first=number == 0)
    return task


def _loads(adapters: list[Adapter], options: Options) -> list[list[Adapter]]:
    """What shares a load: the base model and its adapters; a whole model has one of its own."""
    if "://" in options.engine:
        return [adapters]
    words = [adapter for adapter in adapters if adapter.rival == rivals.WORDS]
    shared = [adapter for adapter in adapters if not adapter.whole and adapter not in words]
    return [part for part in (shared, words, *([a] for a in adapters if a.whole)) if part]


def _answer_with_one_load(
    task: Task, adapters: list[Adapter], options: Options, *, first: bool
) -> None:
    engine = _engine(options, task.recipe, adapters)
    if isinstance(engine, UrlEngine):
        engine.need_apart([adapter.engine_name for adapter in adapters])
    for adapter in task.adapters if first else []:  # before the first is answered for hours
        for name, settings in [] if adapter.rival else _planned(engine, task, adapter, options):
            refuse_others(task.out / adapter.label / name, settings)
    for adapter in adapters:
        with _active(engine, adapter, options):
            folder = task.out / adapter.label
            if adapter.rival:
                _answer_rival(engine, task, adapter, folder, options)
                continue
            anchored = _anchors_by_itself(engine, task, options)
            _answer_task(engine, task, adapter, folder, options)
            if anchored:
                print(f"{adapter.label}: {_ANCHORED}; no general question is asked", flush=True)
            else:
                _measure_general(engine, task, adapter, folder, options)


def _active(engine: Any, adapter: Adapter, options: Options) -> Any:
    """The engine answering as this adapter; a whole model of its own load is its base model."""
    if adapter.scale != 1:
        return engine.scaled(adapter.engine_name, adapter.scale)
    served = "://" in options.engine
    return engine.adapter(adapter.engine_name if served or not adapter.whole else None)


def _anchors_by_itself(engine: Engine, task: Task, options: Options) -> bool:
    """Whether the engine is a server that puts the anchor before every query.

    Raises UserError where the test is to be without it.
    """
    front = in_front(open_task(task.card, options.split, task.spec.anchor).anchor.text)
    if not front or not isinstance(engine, UrlEngine) or not engine.puts_in_front(front):
        return False
    if options.anchor not in (None, task.spec.anchor):
        raise UserError(
            f"{_ANCHORED}, so anchor '{options.anchor}' cannot be tested there",
            where="--anchor",
            remedy="start the server with TELL_ANCHOR=none in its environment",
        )
    return True


@dataclass(frozen=True)
class Task:
    """What one call of `eval` has to do."""

    recipe: Recipe
    spec: Spec
    card: Card
    anchor: str
    prompts: list[Prompt]
    adapters: list[Adapter]
    general: list[tuple[str, str]]
    foreign: retention.Foreign | None
    max_new_tokens: int
    learned: list[str]
    out: Path
    notes: list[str]  # what is to be said before the first answer


def plan(recipe: Recipe, options: Options) -> Task:
    """Everything that can be wrong, found before a model is loaded."""
    spec = recipe.spec
    card = load_card(spec.card)
    card_validator(card)  # a schema that cannot be applied is told before anything is asked
    if card.kind == "general":
        raise UserError(
            f"'{card.name}' is general data and has no task to score",
            where=recipe.where("dataset"),
            remedy="name the recipe of the task, and this run's folder with --adapter",
        )
    decoding(options.decoding)
    engines.need_kind(options.engine, options.model_name)
    options.all_seeds()
    options.check_counts()
    scales = options.all_scales()
    adapters = find_adapters(options.adapter, recipe, rivals.RIVALS)
    for adapter in adapters:
        rivals.refuse_unfit(adapter.rival, card)
    found = None if "://" in options.engine else found_by_swift
    recipe, notes = as_trained(recipe, adapters, found)
    learned = metric_names(options.learned)
    scoring.need_translation(card, learned)
    _need_checkpoints(learned, options)
    anchor = options.anchor or spec.anchor
    if options.shots:
        choose_examples(card, anchor, count=options.shots)
    task, prompts = prompting.task_prompts(card, options.split, anchor, options.rows)
    if options.anchor is None:
        _refuse_other_anchors(adapters, task)
    notes += rows_trained_on(adapters, task, prompts)
    specs = [spec, *(found for found in (_spec_of(adapter) for adapter in adapters) if found)]
    general: list[tuple[str, str]] = []
    if options.general_rows > 0:
        if not prompting.has_held_out(specs, card):
            _refuse_unknown_rows(adapters)
        general = prompting.general_rows(specs, card, options.general_rows)
    out = paths.user_target(options.out) if options.out else recipe.output_dir / "eval"
    return Task(
        recipe=recipe,
        spec=spec,
        card=card,
        anchor=anchor,
        prompts=prompts,
        adapters=at_scales(adapters, scales),
        general=general,
        foreign=retention.foreign(options.retention_rows) if general else None,
        max_new_tokens=prompting.answer_limit(card, options.max_new_tokens),
        learned=learned,
        out=out,
        notes=notes,
    )


def _refuse_other_anchors(adapters: list[Adapter], task: TaskRows) -> None:
    """Raise UserError for an adapter that trained with another anchor than the test would have.

    Where the rows carry the anchor themselves, its end is found from the rows of a split and may
    differ by a word; there the choice alone is compared.
    """
    problems = []
    for adapter in adapters:
        manifest = adapter.manifest() or {}
        trained = manifest.get("anchor")
        if trained is None or manifest.get("card") != task.card.name:
            continue  # it saw no task row, or another task's
        same = trained["choice"] == task.anchor.name and (
            task.anchor.prepend == "" or trained["sha256"] == task.anchor.sha256
        )
        if not same:
            problems.append(
                UserError(
                    f"trained with anchor '{trained['choice']}', to be tested with "
                    f"'{task.anchor.name}', whose text is another",
                    where=f"adapter {adapter.shown}",
                    remedy=f"--anchor {trained['choice']} for the same one (or its text of then), "
                    f"--anchor {task.anchor.name} to test with another on purpose",
                )
            )
    raise_all(problems)


def _models(options: Options) -> dict[str, str]:
    return {name: value for name in LEARNED if (value := getattr(options, name))}


def _need_checkpoints(learned: list[str], options: Options) -> None:
    if learned:
        from tell_plugins.evaluation.scorers.learned import need_checkpoint

        for name in learned:
            need_checkpoint(name, _models(options).get(name))


def _spec_of(adapter: Adapter) -> Spec | None:
    manifest = adapter.manifest()
    return parse_spec(manifest["spec"]) if manifest else None


def _refuse_unknown_rows(adapters: list[Adapter]) -> None:
    """Raise UserError where the general rows that an adapter saw cannot be told any more.

    Its manifest has the dataset string, from which they are drawn anew; a card or file that has
    changed since gives others.
    """
    problems = []
    for adapter in adapters:
        manifest = adapter.manifest()
        if manifest is None or "sources" not in manifest:  # of an earlier release
            continue
        now = build_mixture(parse_spec(manifest["spec"])).manifest()
        if _general_sources(now) != _general_sources(manifest):
            problems.append(
                UserError(
                    "its general data or their card have changed since it was trained, so which "
                    "rows it did not see is not known",
                    where=f"adapter {adapter.shown}",
                    remedy="--general-rows 0, or give the general card a split 'heldout'",
                )
            )
    raise_all(problems)


def _general_sources(manifest: dict[str, Any]) -> list[tuple[str, str, int]]:
    return [
        (source["card"], source["file_sha256"], source["rows"]["used"])
        for source in manifest["sources"]
        if source["role"] == GENERAL_ROLE
    ]


def _engine(options: Options, recipe: Recipe, adapters: list[Adapter]) -> Any:
    """An engine with these adapters, or with one whole model in place of the recipe's."""
    if all(adapter.rival == rivals.WORDS for adapter in adapters):
        return rivals.NO_MODEL
    loaded: dict[str, Path] = {a.engine_name: a.path for a in adapters if a.path and a.engine_name}
    if adapters[0].whole and "://" not in options.engine:
        recipe, loaded = recipe.with_values(model=str(adapters[0].path)), {}
    return engines.make_engine(
        options.engine, recipe, loaded, batch_size=options.batch_size, model_name=options.model_name
    )


def _planned(
    engine: Engine, task: Task, adapter: Adapter, options: Options
) -> Iterator[tuple[str, Settings]]:
    """Every folder of answers of one adapter, and its settings."""
    for seed in options.all_seeds():
        yield options.folder(seed), _settings(engine, task, adapter, options, seed)
    if task.general:
        yield GENERAL, _general_settings(engine, task, adapter, options)


def _settings(
    engine: Engine, task: Task, adapter: Adapter, options: Options, seed: int
) -> Settings:
    served = isinstance(engine, UrlEngine)
    return Settings(
        recipe=task.recipe.name,
        card=task.card.name,
        split=options.split,
        anchor=task.anchor,
        adapter=adapter.shown,
        decoding=options.decoding,
        seed=seed,
        rows=len(task.prompts),
        model=engine.model_name if served else str(task.recipe.get("model")),
        engine=engine.name,
        max_new_tokens=task.max_new_tokens,
        batch_size=options.batch_size,
        prompts_sha256=prompting.prompts_sha256(task.prompts),
        shots=options.shots,
        model_sha256=_keys_sha256(task.recipe, served=served),
        adapter_sha256=adapter.weights_sha256,
        model_files_sha256="" if served else _files_sha256(engine, task.recipe),
        adapter_config_sha256=adapter.config_sha256,
        scale=adapter.scale,
    )


def _keys_sha256(recipe: Recipe, *, served: bool) -> str:
    """Of the recipe's model keys; of these a server gets the system prompt alone."""
    if not served:
        return model_sha256(recipe.values)
    system = system_text(recipe.get("system"))
    return model_sha256({"system": system}) if system else ""


def _files_sha256(engine: Engine, recipe: Recipe) -> str:
    folder = model_folder(str(recipe.get("model"))) or getattr(engine, "model_dir", None)
    return folder_sha256(Path(folder)) if folder else ""


def _general_settings(engine: Engine, task: Task, adapter: Adapter, options: Options) -> Settings:
    """General questions: greedy, short, without anchor and examples."""
    questions = task.foreign.questions if task.foreign else []
    return replace(
        _settings(engine, task, adapter, options, 42),
        split=GENERAL,
        anchor="none",
        decoding="greedy",
        rows=len(questions),
        max_new_tokens=bleed.TOKENS,
        prompts_sha256=prompting.prompts_sha256(questions),
        rows_sha256=prompting.pairs_sha256(task.general),
        shots=0,
    )


def _answer_rival(
    engine: Engine, task: Task, adapter: Adapter, folder: Path, options: Options
) -> None:
    """A rival's answers to the task; it has nothing to say to general questions."""
    examples = None
    if adapter.rival == rivals.WORDS:
        engine = rivals.by_words(task.spec, task.card, task.prompts, options.split)
    elif adapter.rival == rivals.CHOICES:
        engine = rivals.by_choice(engine, task.card)
    else:
        examples = rivals.examples_that_fit(
            engine, task.spec, task.prompts, task.max_new_tokens, task.anchor
        )
    _answer_task(engine, task, adapter, folder, options, examples)


def _answer_task(
    engine: Engine,
    task: Task,
    adapter: Adapter,
    folder: Path,
    options: Options,
    examples: Examples | None = None,
) -> None:
    models = _models(options)
    for seed in options.all_seeds():
        name = options.folder(seed)
        history: History = ()
        settings = _settings(engine, task, adapter, options, seed)
        if options.shots and not adapter.rival:
            examples = fixed_examples(folder / name, task.card, task.anchor, count=options.shots)
        elif examples is not None:
            save_examples(folder / name / EXAMPLES, examples)
        if examples is not None:
            history = examples.history
        answer_all(
            engine,
            task.prompts,
            decoding(options.decoding),
            replace(settings, shots=len(history)),
            folder / name,
            label=f"{adapter.label}, {options.split}",
            history=history,
        )
        scoring.write(folder / name, learned=task.learned, models=models)


def _measure_general(
    engine: Engine, task: Task, adapter: Adapter, folder: Path, options: Options
) -> None:
    if task.foreign is None:
        return
    folder = folder / GENERAL
    settings = _general_settings(engine, task, adapter, options)
    label = adapter.label
    questions = task.foreign.questions
    answer_all(engine, questions, decoding("greedy"), settings, folder, label=f"{label}, general")
    if hasattr(engine, "response_losses"):
        retention.measure(
            task.general,
            engine.response_losses,
            folder / retention.LOSSES,
            label=f"{label}, style fit",
        )
    if adapter.path is None and hasattr(engine, "divergences_from_base"):
        retention.base_answers(engine, questions, settings)  # adapters that follow find them there
    base = adapter.path is None or adapter.whole  # then no base model is at hand to diverge from
    retention.measure_foreign(engine, task.foreign, settings, folder, label=label, base=base)
