"""`./run.sh represent`: what the anchor does to hidden states (Section 4.2.1, Figures 3 and 4).

Task and general queries go through the model with and without the anchor; their hidden states at
one layer are pooled in three ways (`bridge.hidden_states`), measured (`representations`) and drawn.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tell_plugins.core import paths
from tell_plugins.core.anchors import in_front
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.files import write_json
from tell_plugins.core.progress import track
from tell_plugins.core.spec import ALL, NONE, parse_spec
from tell_plugins.evaluation import prompts as prompting
from tell_plugins.evaluation.adapters import BASE, Adapter, find_adapters
from tell_plugins.evaluation.grids import Grid, print_grid, table_console
from tell_plugins.evaluation.intervals import shown
from tell_plugins.evaluation.representations import POOLINGS
from tell_plugins.evaluation.trained_with import as_trained, found_by_swift
from tell_plugins.recipe.recipes import Recipe, load_recipe

if TYPE_CHECKING:
    from tell_plugins.bridge.engine import LocalEngine
    from tell_plugins.evaluation.representations import Groups, Separation

MIDDLE = "middle"
_LEAST_ROWS = 10  # five folds of two rows a group
_MAX_TOKENS = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_flags=True)
    parser.add_argument("recipe", help="the recipe whose card, anchor and model are looked at")
    parser.add_argument(
        "--layer",
        default=MIDDLE,
        help="layer whose output is read: 0 are the embeddings, n the n-th layer, 'middle' half "
        "way (default: middle; the paper's 16 of LLaMA2-7B's 32)",
    )
    parser.add_argument("--rows", type=int, default=50, help="queries of each kind (default: 50)")
    parser.add_argument("--split", default="test", help="split of the task card (default: test)")
    parser.add_argument(
        "--adapter",
        default=BASE,
        metavar="DIR",
        help="a checkpoint or run folder (default: none, the base model)",
    )
    parser.add_argument("--anchor", default="card", help="the card's anchor to look at")
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=_MAX_TOKENS,
        help=f"tokens of a query that are read, anchor not counted (default: {_MAX_TOKENS})",
    )
    parser.add_argument("--out", help="folder of picture and numbers (default: <output_dir>/...)")


@dataclass(frozen=True)
class Job:
    """What one call has to do."""

    recipe: Recipe
    card: Card
    adapter: Adapter
    front: str
    task: list[str]
    general: list[str]
    layer: str
    max_tokens: int
    out: Path


def run(args: argparse.Namespace) -> int:
    job = plan(load_recipe(args.recipe, args.flags), args)
    from tell_plugins.evaluation.represent_picture import draw
    from tell_plugins.evaluation.representations import separations

    layer, layers, cut, groups = hidden_states(job)
    result = {name: separations(group) for name, group in groups.items()}
    title = _title(job, layer, layers)
    stem = job.out / f"layer{layer}"
    picture = stem.with_suffix(".png")
    draw(groups, title, picture)
    write_json(stem.with_suffix(".json"), _report(job, args, layer, layers, cut, result))
    print_grid(_grid(title, job, cut, result), table_console())
    print(f"picture {paths.shown(picture)}, numbers {paths.shown(stem.with_suffix('.json'))}")
    return 0


def plan(recipe: Recipe, args: argparse.Namespace) -> Job:
    """Everything that can be wrong, found before a model is loaded."""
    spec = recipe.spec
    card = load_card(spec.card)
    if card.kind == "general":
        raise UserError(
            f"'{card.name}' is general data and has no anchor",
            where=recipe.where("dataset"),
            remedy="name the recipe of a task",
        )
    if args.rows < _LEAST_ROWS or args.max_tokens < 1:
        raise UserError(
            f"--rows {args.rows} and --max-tokens {args.max_tokens}",
            where="command line",
            allowed=f"{_LEAST_ROWS} rows and more, 1 token and more",
            remedy="ask for more",
        )
    if args.layer != MIDDLE and not args.layer.isdigit():
        raise UserError(
            f"bad layer '{args.layer}'",
            where="--layer",
            allowed="middle, or a number from 0",
            remedy="--layer 16",
        )
    (adapter,) = find_adapters([args.adapter], recipe)
    recipe, notes = as_trained(recipe, [adapter], found_by_swift)
    for note in notes:
        print(note)
    task, chosen = prompting.task_prompts(card, args.split, args.anchor, args.rows)
    if not task.anchor.text:
        raise UserError("there is no anchor to look at", where="--anchor", remedy="--anchor card")
    manifest = adapter.manifest()
    seen = parse_spec(manifest["spec"]) if manifest else spec.with_values(task=ALL, general=NONE)
    general = prompting.general_rows([seen], card, args.rows)
    if len(general) < args.rows:
        raise UserError(
            f"{args.rows} rows asked, the general data holds {len(general)} out",
            where="--rows",
            remedy=f"--rows {len(general)}",
        )
    out = (
        paths.user_target(args.out) if args.out else recipe.output_dir / "represent" / adapter.label
    )
    return Job(
        recipe=recipe,
        card=card,
        adapter=adapter,
        front=in_front(task.anchor.text),
        task=[task.plain[prompt.row] for prompt in chosen],
        general=[query for query, _ in general],
        layer=args.layer,
        max_tokens=args.max_tokens,
        out=out,
    )


def hidden_states(job: Job) -> tuple[int, int, dict[str, int], dict[str, Groups]]:
    """(layer, layers of the model, queries that were cut by kind, groups by pooling)."""
    import numpy as np

    from tell_plugins.bridge.engine import LocalEngine
    from tell_plugins.bridge.hidden_states import layer_count
    from tell_plugins.evaluation.representations import Groups

    name, folder = job.adapter.engine_name, job.adapter.path
    loaded = {name: folder} if name is not None and folder is not None else {}
    values = job.recipe.values
    if job.adapter.whole:
        name, loaded, values = None, {}, {**values, "model": str(folder)}
    engine = LocalEngine(values, loaded, batch_size=1)
    layers = layer_count(engine)
    layer = layers // 2 if job.layer == MIDDLE else int(job.layer)
    if layer > layers:
        raise UserError(
            f"layer {layer}",
            where="--layer",
            allowed=f"0 to {layers}, what the model has",
            remedy="--layer middle",
        )
    kinds = {
        "task": ("", job.task),
        "task_anchored": (job.front, job.task),
        "general": ("", job.general),
        "general_anchored": (job.front, job.general),
    }
    pooled: dict[str, list[Any]] = {}
    cut: dict[str, int] = {}
    total = sum(len(queries) for _, queries in kinds.values())
    with engine.adapter(name), track(total, "hidden states", "prompts") as bar:
        for kind, (front, queries) in kinds.items():
            pooled[kind], cut[kind] = _states(engine, front, queries, layer, job.max_tokens, bar)
    groups = {
        pooling: Groups(
            **{
                kind: np.stack([getattr(state, pooling) for state in states]).astype(np.float64)
                for kind, states in pooled.items()
            }
        )
        for pooling in POOLINGS
    }
    return layer, layers, cut, groups


def _states(
    engine: LocalEngine, front: str, queries: Sequence[str], layer: int, max_tokens: int, bar: Any
) -> tuple[list[Any], int]:
    """Pooled states of queries with `front` before each, and how many of them were cut."""
    from tell_plugins.bridge.hidden_states import pooled_states, prompt_ids

    states, cut = [], 0
    for query in queries:
        prompt = prompt_ids(engine, front, query, max_tokens)
        states.append(pooled_states(engine, prompt, layer))
        cut += prompt.cut
        bar.update()
    return states, cut


def _title(job: Job, layer: int, layers: int) -> str:
    model = Path(str(job.recipe.get("model"))).name
    who = model if job.adapter.path is None else f"{model} with {job.adapter.label}"
    return f"{job.card.name} and general queries, {who}, layer {layer} of {layers}"


def _report(
    job: Job,
    args: argparse.Namespace,
    layer: int,
    layers: int,
    cut: dict[str, int],
    result: dict[str, dict[str, Separation]],
) -> dict[str, Any]:
    """What is saved beside the picture."""
    return {
        "format": 2,
        "recipe": job.recipe.name,
        "model": job.recipe.get("model"),
        "adapter": job.adapter.shown,
        "card": job.card.name,
        "split": args.split,
        "anchor": args.anchor,
        "layer": layer,
        "layers": layers,
        "rows": {"task": len(job.task), "general": len(job.general)},
        "max_tokens": job.max_tokens,
        "cut": cut,
        "separations": {
            pooling: {measure: asdict(found) for measure, found in measures.items()}
            for pooling, measures in result.items()
        },
    }


def _grid(
    title: str, job: Job, cut: dict[str, int], result: dict[str, dict[str, Separation]]
) -> Grid:
    """Every measure under every condition, and the change that the anchor makes."""
    rows = []
    for pooling, measures in result.items():
        rows.append([POOLINGS[pooling], *[""] * 5])
        for measure, found in measures.items():
            cells = [shown(part, 3, between="\n") for part in found.by_condition.values()]
            cells += [shown(part, 3, sign="+", between="\n") for part in found.change.values()]
            rows.append([f"  {measure.replace('_', ' ')}", *cells])
    notes = [
        f"{len(job.task)} task and {len(job.general)} general queries; 95 % intervals over rows",
        "without: no anchor; with: the anchor before task queries; control: before all queries",
    ]
    if any(cut.values()):
        notes.append(
            f"Cut after {job.max_tokens} tokens: {cut['task']} task and {cut['general']} general "
            "queries (--max-tokens)"
        )
    heads = ["", "without", "with", "control", "with - without", "control - without"]
    return Grid(title, heads, rows, notes)
