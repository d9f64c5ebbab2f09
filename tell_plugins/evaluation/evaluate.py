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
from tell_plugins.core.errors import UserError, raise_all, unknown
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
    fingerprints,
    retention,
    rivals,
    scoring,
)
from tell_plugins.evaluation import prompts as prompting
from tell_plugins.evaluation.adapters import Adapter, at_scales, find_adapters
from tell_plugins.evaluation.answers import GENERAL, Prompt, Settings, answer_all, refuse_others
from tell_plugins.evaluation.fewshot import (
    EXAMPLES,
    Examples,
    choose_examples,
    fixed_examples,
    save_examples,
)
from tell_plugins.evaluation.learned_scores import LEARNED, metric_names
from tell_plugins.evaluation.trained_with import as_trained, found_by_swift, rows_trained_on
from tell_plugins.evaluation.url_engine import UrlEngine
from tell_plugins.recipe.models import model_folder
from tell_plugins.recipe.recipes import Recipe, load_recipe
from tell_plugins.recipe.swift_keys import swift_keys

_LARGEST_SCALE = 10
_ANCHORED = "the server puts the anchor in front of every query"
# keys of ms-swift that would not reach the answers, and the option that does
_OPTIONS = {
    "adapters": "--adapter",
    "max_new_tokens": "--max-new-tokens",
    "infer_backend": "--engine",
    "temperature": "--decoding",
    "top_k": "--decoding",
    "top_p": "--decoding",
    "repetition_penalty": "--decoding",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_flags=True)
    parser.add_argument("recipe", help="the recipe whose card and model are tested")
    parser.add_argument(
        "--adapter",
        nargs="+",
        default=[],
        metavar="DIR",
        help="checkpoint or run folders; 'none' is the base model, and 'shots', 'choices', 'words' "
        "are its rivals without training (default: the recipe's last run)",
    )
    parser.add_argument(
        "--against",
        metavar="VARIANT",
        help="also test the last run of <recipe>_<VARIANT>.yaml and take differences to it: sft",
    )
    parser.add_argument(
        "--scales",
        default="1",
        help="test each adapter at these multiples of its weights: 0.25,0.5,0.75,1 (default: 1)",
    )
    parser.add_argument("--split", default="test", help="split of the card (default: test)")
    parser.add_argument("--rows", type=int, help="a seeded draw of this many rows (default: all)")
    parser.add_argument(
        "--decoding", default="greedy", help="greedy, or the paper's sampling: paper"
    )
    parser.add_argument("--seeds", default="42", help="one set of answers a seed (default: 42)")
    parser.add_argument("--anchor", help="anchor at test (default: as in the recipe)")
    parser.add_argument(
        "--engine", default="transformers", help="transformers, vllm, or the URL of a server"
    )
    parser.add_argument("--model-name", help="of a server: the model to ask for")
    parser.add_argument("--batch-size", type=int, default=16, help="prompts answered together")
    parser.add_argument(
        "--shots",
        type=int,
        default=0,
        help="fixed examples of the training split in front of each question (default: 0)",
    )
    parser.add_argument(
        "--max-new-tokens", type=int, help="limit of an answer (default: the card's)"
    )
    parser.add_argument(
        "--general-rows",
        type=int,
        default=40,
        help="held-out general rows for the style fit, 0: nothing general is asked (default: 40)",
    )
    parser.add_argument(
        "--retention-rows",
        type=int,
        metavar="N",
        help="general questions, foreign instructions and passages of prose, at most N of each "
        "(default: all)",
    )
    parser.add_argument(
        "--learned", default="", help="also score translations by bleurt, comet, or bleurt,comet"
    )
    parser.add_argument("--bleurt", metavar="MODEL", help="BLEURT checkpoint (or $TELL_BLEURT)")
    parser.add_argument("--comet", metavar="MODEL", help="COMET checkpoint (or $TELL_COMET)")
    parser.add_argument("--out", help="folder of the answers (default: <output_dir>/eval)")
    parser.epilog = (
        "Further --key value pairs are ms-swift's and win over the recipe, for example "
        "--model DIR. The same command goes on where it was stopped."
    )


def run(args: argparse.Namespace) -> int:
    task = answer(args)
    from tell_plugins.evaluation.summary import print_summary

    names = [folder_name(args, seed) for seed in _seeds(args)]
    print_summary(task.out, [adapter.label for adapter in task.adapters], names, task.card)
    for adapter in task.adapters:
        if adapter.path is not None and adapter.changes_nothing:
            print(f"{adapter.label}: every LoRA B matrix is zero; this run trained nothing")
    if args.against:
        for name in names:
            against.print_verdict([task.out / adapter.label / name for adapter in task.adapters])
    return 0


def answer(args: argparse.Namespace) -> Task:
    """Answer and score everything that `args` ask for; what is there already is kept."""
    recipe = load_recipe(args.recipe, args.flags)
    raise_all(list(_wrong_flags(recipe)))
    if args.against:
        args.adapter = against.with_baseline(recipe, args.against, args.adapter)
    task = plan(recipe, args)
    for note in task.notes:
        print(note, flush=True)
    with only_one(task.out, "eval"):
        for number, adapters in enumerate(_loads(task.adapters, args)):
            _answer_with_one_load(task, adapters, args, first=number == 0)
    return task


def _loads(adapters: list[Adapter], args: argparse.Namespace) -> list[list[Adapter]]:
    """What shares a load: the base model and its adapters; a whole model has one of its own."""
    if "://" in args.engine:
        return [adapters]
    words = [adapter for adapter in adapters if adapter.rival == rivals.WORDS]
    shared = [adapter for adapter in adapters if not adapter.whole and adapter not in words]
    return [part for part in (shared, words, *([a] for a in adapters if a.whole)) if part]


def _answer_with_one_load(
    task: Task, adapters: list[Adapter], args: argparse.Namespace, *, first: bool
) -> None:
    engine = _engine(args, task.recipe, adapters)
    if isinstance(engine, UrlEngine):
        engine.need_apart([adapter.engine_name for adapter in adapters])
    for adapter in task.adapters if first else []:  # before the first is answered for hours
        for name, settings in [] if adapter.rival else _planned(engine, task, adapter, args):
            refuse_others(task.out / adapter.label / name, settings)
    for adapter in adapters:
        with _active(engine, adapter, args):
            folder = task.out / adapter.label
            if adapter.rival:
                _answer_rival(engine, task, adapter, folder, args)
                continue
            anchored = _anchors_by_itself(engine, task, args)
            _answer_task(engine, task, adapter, folder, args)
            if anchored:
                print(f"{adapter.label}: {_ANCHORED}; no general question is asked", flush=True)
            else:
                _measure_general(engine, task, adapter, folder, args)


def _active(engine: Any, adapter: Adapter, args: argparse.Namespace) -> Any:
    """The engine answering as this adapter; a whole model of its own load is its base model."""
    if adapter.scale != 1:
        return engine.scaled(adapter.engine_name, adapter.scale)
    served = "://" in args.engine
    return engine.adapter(adapter.engine_name if served or not adapter.whole else None)


def _anchors_by_itself(engine: Engine, task: Task, args: argparse.Namespace) -> bool:
    """Whether the engine is a server that puts the anchor before every query.

    Raises UserError where the test is to be without it.
    """
    front = in_front(open_task(task.card, args.split, task.spec.anchor).anchor.text)
    if not front or not isinstance(engine, UrlEngine) or not engine.puts_in_front(front):
        return False
    if args.anchor not in (None, task.spec.anchor):
        raise UserError(
            f"{_ANCHORED}, so anchor '{args.anchor}' cannot be tested there",
            where="--anchor",
            remedy="start the server with TELL_ANCHOR=none in its environment",
        )
    return True


def _wrong_flags(recipe: Recipe) -> Iterator[UserError]:
    """Flags that are neither `eval`'s nor the installed ms-swift's, or do nothing here."""
    if not recipe.flags:
        return
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = {action.dest for action in parser._actions}
    swift = set(swift_keys().keys)
    for key in sorted(recipe.flags):
        if key in _OPTIONS:
            yield UserError(
                f"'--{key}' is ms-swift's and does not reach the answers",
                where="command line",
                remedy=f"use {_OPTIONS[key]}",
            )
        elif key not in swift:
            yield unknown("flag", key, swift | options, "command line")


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


def plan(recipe: Recipe, args: argparse.Namespace) -> Task:
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
    decoding(args.decoding)
    engines.need_kind(args.engine, args.model_name)
    _seeds(args)
    _check_counts(args)
    scales = _scales(args)
    adapters = find_adapters(args.adapter, recipe, rivals.RIVALS)
    for adapter in adapters:
        rivals.refuse_unfit(adapter.rival, card)
    recipe, notes = as_trained(recipe, adapters, None if "://" in args.engine else found_by_swift)
    learned = metric_names(args.learned)
    scoring.need_translation(card, learned)
    _need_checkpoints(learned, args)
    anchor = args.anchor or spec.anchor
    if args.shots:
        choose_examples(card, anchor, count=args.shots)
    task, prompts = prompting.task_prompts(card, args.split, anchor, args.rows)
    if args.anchor is None:
        _refuse_other_anchors(adapters, task)
    notes += rows_trained_on(adapters, task, prompts)
    specs = [spec, *(found for found in (_spec_of(adapter) for adapter in adapters) if found)]
    general: list[tuple[str, str]] = []
    if args.general_rows > 0:
        if not prompting.has_held_out(specs, card):
            _refuse_unknown_rows(adapters)
        general = prompting.general_rows(specs, card, args.general_rows)
    out = paths.user_target(args.out) if args.out else recipe.output_dir / "eval"
    return Task(
        recipe=recipe,
        spec=spec,
        card=card,
        anchor=anchor,
        prompts=prompts,
        adapters=at_scales(adapters, scales),
        general=general,
        foreign=retention.foreign(args.retention_rows) if general else None,
        max_new_tokens=prompting.answer_limit(card, args.max_new_tokens),
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


def _models(args: argparse.Namespace) -> dict[str, str]:
    return {name: value for name in LEARNED if (value := getattr(args, name))}


def _need_checkpoints(learned: list[str], args: argparse.Namespace) -> None:
    if learned:
        from tell_plugins.evaluation.learned_metrics import need_checkpoint

        for name in learned:
            need_checkpoint(name, _models(args).get(name))


def _check_counts(args: argparse.Namespace) -> None:
    least = {"batch_size": 1, "rows": 1, "max_new_tokens": 1, "shots": 0, "general_rows": 0}
    least["retention_rows"] = 0
    for key, smallest in least.items():
        value = getattr(args, key)
        if value is not None and value < smallest:
            raise UserError(
                f"{value} is too small",
                where=f"--{key.replace('_', '-')}",
                allowed=f"{smallest} and more",
                remedy="raise it, or leave it out for the default",
            )


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


def _engine(args: argparse.Namespace, recipe: Recipe, adapters: list[Adapter]) -> Any:
    """An engine with these adapters, or with one whole model in place of the recipe's."""
    if all(adapter.rival == rivals.WORDS for adapter in adapters):
        return rivals.NO_MODEL
    loaded: dict[str, Path] = {a.engine_name: a.path for a in adapters if a.path and a.engine_name}
    if adapters[0].whole and "://" not in args.engine:
        recipe, loaded = recipe.with_values(model=str(adapters[0].path)), {}
    return engines.make_engine(
        args.engine, recipe, loaded, batch_size=args.batch_size, model_name=args.model_name
    )


def _scales(args: argparse.Namespace) -> list[float]:
    try:
        scales = [float(part) for part in args.scales.split(",")]
    except ValueError:
        scales = []
    if not scales or not all(0 <= scale <= _LARGEST_SCALE for scale in scales):
        raise UserError(
            f"bad scales '{args.scales}'",
            where="--scales",
            allowed=f"numbers from 0 to {_LARGEST_SCALE}, separated by commas",
            remedy="--scales 0.25,0.5,0.75,1",
        )
    if scales != [1.0] and args.engine != "transformers":
        raise UserError(
            f"engine '{args.engine}' answers with adapters as they are",
            where="--scales",
            remedy="--engine transformers, which scales their weights in memory",
        )
    return list(dict.fromkeys(scales))


def _seeds(args: argparse.Namespace) -> list[int]:
    try:
        seeds = [int(part) for part in args.seeds.split(",")]
    except ValueError:
        raise UserError(
            f"bad seeds '{args.seeds}'",
            where="--seeds",
            allowed="42 or 42,43,44",
            remedy="integers, separated by commas",
        ) from None
    if args.decoding != "greedy":
        return seeds
    if len(seeds) > 1:
        raise UserError(
            f"{len(seeds)} seeds, but greedy answers are the same for each",
            where="--seeds",
            remedy="--decoding paper, which samples, or one seed",
        )
    return [42]


def folder_name(args: argparse.Namespace, seed: int) -> str:
    """The name of an answers folder: the split, the decoding, and what is not the default."""
    parts = [args.split, args.decoding]
    parts += [f"seed{seed}"] if args.decoding != "greedy" else []
    parts += [f"anchor-{args.anchor}"] if args.anchor else []
    parts += [f"{args.rows}rows"] if args.rows is not None else []
    parts += [f"{args.shots}shot"] if args.shots else []
    return "-".join(parts)


def _planned(
    engine: Engine, task: Task, adapter: Adapter, args: argparse.Namespace
) -> Iterator[tuple[str, Settings]]:
    """Every folder of answers of one adapter, and its settings."""
    for seed in _seeds(args):
        yield folder_name(args, seed), _settings(engine, task, adapter, args, seed)
    if task.general:
        yield GENERAL, _general_settings(engine, task, adapter, args)


def _settings(
    engine: Engine, task: Task, adapter: Adapter, args: argparse.Namespace, seed: int
) -> Settings:
    served = isinstance(engine, UrlEngine)
    return Settings(
        recipe=task.recipe.name,
        card=task.card.name,
        split=args.split,
        anchor=task.anchor,
        adapter=adapter.shown,
        decoding=args.decoding,
        seed=seed,
        rows=len(task.prompts),
        model=engine.model_name if served else str(task.recipe.get("model")),
        engine=engine.name,
        max_new_tokens=task.max_new_tokens,
        batch_size=args.batch_size,
        prompts_sha256=prompting.prompts_sha256(task.prompts),
        shots=args.shots,
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
    return fingerprints.model_sha256(Path(folder)) if folder else ""


def _general_settings(
    engine: Engine, task: Task, adapter: Adapter, args: argparse.Namespace
) -> Settings:
    """General questions: greedy, short, without anchor and examples."""
    questions = task.foreign.questions if task.foreign else []
    return replace(
        _settings(engine, task, adapter, args, 42),
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
    engine: Engine, task: Task, adapter: Adapter, folder: Path, args: argparse.Namespace
) -> None:
    """A rival's answers to the task; it has nothing to say to general questions."""
    examples = None
    if adapter.rival == rivals.WORDS:
        engine = rivals.by_words(task.spec, task.card, task.prompts, args.split)
    elif adapter.rival == rivals.CHOICES:
        engine = rivals.by_choice(engine, task.card)
    else:
        examples = rivals.examples_that_fit(
            engine, task.spec, task.prompts, task.max_new_tokens, task.anchor
        )
    _answer_task(engine, task, adapter, folder, args, examples)


def _answer_task(
    engine: Engine,
    task: Task,
    adapter: Adapter,
    folder: Path,
    args: argparse.Namespace,
    examples: Examples | None = None,
) -> None:
    models = _models(args)
    for seed in _seeds(args):
        name = folder_name(args, seed)
        history: History = ()
        settings = _settings(engine, task, adapter, args, seed)
        if args.shots and not adapter.rival:
            examples = fixed_examples(folder / name, task.card, task.anchor, count=args.shots)
        elif examples is not None:
            save_examples(folder / name / EXAMPLES, examples)
        if examples is not None:
            history = examples.history
        answer_all(
            engine,
            task.prompts,
            decoding(args.decoding),
            replace(settings, shots=len(history)),
            folder / name,
            label=f"{adapter.label}, {args.split}",
            history=history,
        )
        scoring.write(folder / name, learned=task.learned, models=models)


def _measure_general(
    engine: Engine, task: Task, adapter: Adapter, folder: Path, args: argparse.Namespace
) -> None:
    if task.foreign is None:
        return
    folder = folder / GENERAL
    settings = _general_settings(engine, task, adapter, args)
    label = adapter.label
    questions = task.foreign.questions
    answer_all(engine, questions, decoding("greedy"), settings, folder, label=f"{label}, general")
    if hasattr(engine, "response_losses"):
        retention.measure(
            task.general,
            lambda row: engine.response_losses([row])[0],
            folder / retention.LOSSES,
            label=f"{label}, style fit",
        )
    base = adapter.path is None or adapter.whole  # then no base model is at hand to diverge from
    retention.measure_foreign(engine, task.foreign, settings, folder, label=label, base=base)
