"""`./run.sh represent`: what the anchor does to hidden states (Section 4.2.1, Figures 3 and 4).

Task and general queries go through the model with and without the anchor; their hidden states at
one layer are pooled in three ways (`bridge.hidden_states`), measured and drawn. Three measures tell
task from general queries: cosine distance of the centroids, silhouette (cosine), and accuracy of a
cross-validated linear probe. They are taken under three conditions:

    without   no query has the anchor (Figure 3 of the paper)
    with      the task queries have it (Figure 4)
    control   the general queries have it too

All task queries share the anchor's tokens, so `with` grows by that alone. What the anchor does
beyond marking shows in the pooling over the query's own tokens; and where `control` is as far
apart as `with`, it is not the mark that separates.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tell_plugins.core import paths
from tell_plugins.core.anchors import in_front
from tell_plugins.core.cards import Card
from tell_plugins.core.errors import UserError
from tell_plugins.core.progress import tracked
from tell_plugins.core.sources import open_task
from tell_plugins.core.spec import ALL, NONE, parse_spec
from tell_plugins.core.state_files import write_json
from tell_plugins.evaluation import prompts as prompting
from tell_plugins.evaluation.adapters import BASE, Adapter, find_adapters
from tell_plugins.evaluation.grids import Grid, print_grid, table_console
from tell_plugins.evaluation.intervals import Interval, shown
from tell_plugins.evaluation.significance import Floats
from tell_plugins.evaluation.trained_with import as_trained, found_by_swift
from tell_plugins.recipe.recipes import Recipe, load_recipe

POOLINGS = {
    "mean": "mean over anchor and query",
    "last": "last token of the prompt",
    "query": "mean over the query's own tokens",
}
CONDITIONS = {
    "without": ("task", "general"),
    "with": ("task_anchored", "general"),
    "control": ("task_anchored", "general_anchored"),
}
_MIDDLE = "middle"
_ROWS = 50
_LEAST_ROWS = 10  # five folds of two rows a group
_MAX_TOKENS = 512
_RESAMPLES, _SEED = 2000, 42
_FOLDS, _REPEATS = 5, 5
_PANELS = ("no anchor", "anchor before task queries", "anchor before all queries (control)")
_TASK, _GENERAL = "#c1440e", "#2f6f9f"
_DPI = 150

Groups = Mapping[str, Floats]  # pooled states (rows, width): task, general, each plain or anchored


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_flags=True)
    parser.add_argument("recipe", help="the recipe whose card, anchor and model are looked at")
    parser.add_argument(
        "--layer",
        default=_MIDDLE,
        help="layer whose output is read: 0 are the embeddings, n the n-th layer, 'middle' half "
        "way (default: middle; the paper's 16 of LLaMA2-7B's 32)",
    )
    text = f"queries of each kind (default: {_ROWS}, or as many as the split has)"
    parser.add_argument("--rows", type=int, help=text)
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


def run(args: argparse.Namespace) -> int:
    job = plan(load_recipe(args.recipe, args.flags), args)
    found = hidden_states(job, args.layer, args.max_tokens)
    result = {name: separations(groups) for name, groups in found.groups.items()}
    model = Path(str(job.recipe.get("model"))).name
    who = model if job.adapter.path is None else f"{model} with {job.adapter.label}"
    layer = f"layer {found.layer} of {found.layers}"
    title = f"{job.card.name} and general queries, {who}, {layer}"
    picture = job.out / f"layer{found.layer}.png"
    numbers = picture.with_suffix(".json")
    draw(found.groups, title, picture)
    write_json(numbers, _report(job, args, found, result))
    print_grid(_grid(title, job, args.max_tokens, found.cut, result), table_console())
    print(f"picture {paths.shown(picture)}, numbers {paths.shown(numbers)}")
    return 0


@dataclass(frozen=True)
class Job:
    """What one call looks at: bare queries of the task and general ones, and the anchor."""

    recipe: Recipe
    card: Card
    adapter: Adapter
    front: str
    task: list[str]
    general: list[str]
    out: Path


def plan(recipe: Recipe, args: argparse.Namespace) -> Job:
    """Everything that can be wrong, found before a model is loaded."""
    spec = recipe.spec
    card = prompting.task_card(recipe, "anchor")
    if args.rows is None:
        args.rows = min(_ROWS, len(open_task(card, args.split, args.anchor)))
    _check(args)
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
    out = recipe.output_dir / "represent" / adapter.label
    return Job(
        recipe=recipe,
        card=card,
        adapter=adapter,
        front=in_front(task.anchor.text),
        task=[task.plain[prompt.row] for prompt in chosen],
        general=[query for query, _ in general],
        out=paths.user_target(args.out) if args.out else out,
    )


def _check(args: argparse.Namespace) -> None:
    if args.rows < _LEAST_ROWS or args.max_tokens < 1:
        raise UserError(
            f"--rows {args.rows} and --max-tokens {args.max_tokens}",
            where="command line",
            allowed=f"{_LEAST_ROWS} rows and more, 1 token and more",
            remedy="ask for more",
        )
    if args.layer != _MIDDLE and not args.layer.isdecimal():
        raise UserError(
            f"bad layer '{args.layer}'",
            where="--layer",
            allowed="middle, or a number from 0",
            remedy="--layer 16",
        )


class States(NamedTuple):
    """The groups by pooling, at one of so many layers, and how many queries of a kind were cut."""

    layer: int
    layers: int
    cut: dict[str, int]
    groups: dict[str, Groups]


def hidden_states(job: Job, asked_layer: str, max_tokens: int) -> States:
    """The pooled states of all queries. Raises UserError for a layer that the model has not."""
    from tell_plugins.bridge.engine import LocalEngine
    from tell_plugins.bridge.hidden_states import layer_count, pooled_states, prompt_ids

    name, folder, values = job.adapter.engine_name, job.adapter.path, job.recipe.values
    if job.adapter.whole:
        name, values = None, {**values, "model": str(folder)}
    engine = LocalEngine(values, {name: folder} if name and folder else {}, batch_size=1)
    layers = layer_count(engine)
    layer = layers // 2 if asked_layer == _MIDDLE else int(asked_layer)
    if layer > layers:
        raise UserError(
            f"layer {layer}",
            where="--layer",
            allowed=f"0 to {layers}, what the model has",
            remedy="--layer middle",
        )
    prompts = {
        kind + end: [prompt_ids(engine, front, query, max_tokens) for query in queries]
        for kind, queries in (("task", job.task), ("general", job.general))
        for end, front in (("", ""), ("_anchored", job.front))
    }
    groups: dict[str, dict[str, Floats]] = {pooling: {} for pooling in POOLINGS}
    with engine.adapter(name):
        for kind, asked in prompts.items():
            bar = tracked(asked, f"hidden states, {kind}", "prompts")
            states = [pooled_states(engine, prompt, layer) for prompt in bar]
            for pooling in POOLINGS:
                rows = [getattr(state, pooling) for state in states]
                groups[pooling][kind] = np.stack(rows).astype(np.float64)
    cut = {kind: sum(prompt.cut for prompt in asked) for kind, asked in prompts.items()}
    return States(layer, layers, cut, dict(groups))


# --- measures -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Separation:
    """One measure under every condition, and how it changes against `without`, rows paired."""

    by_condition: dict[str, Interval]
    change: dict[str, Interval]


def separations(groups: Groups) -> dict[str, Separation]:
    """Every measure of the groups, with 95 % intervals by bootstrap over rows."""
    pairs = {name: (groups[task], groups[other]) for name, (task, other) in CONDITIONS.items()}
    return {
        "centroid_distance": _separation(pairs, _distances, basic=True),
        "silhouette": _separation(pairs, _means_of(_silhouettes)),
        "probe_accuracy": _separation(pairs, _means_of(_probe)),
    }


Draws = tuple[float, Floats]  # a value, and those of the draws


def _separation(
    pairs: Mapping[str, tuple[Floats, Floats]],
    measure: Callable[[Floats, Floats], Draws],
    *,
    basic: bool = False,
) -> Separation:
    """Means of a few rows lie further apart than what they estimate, and those of a draw once more.
    So the distance is `basic`: given less that noise, never negative, with the basic bootstrap's
    interval. The others, means over rows, have percentile intervals."""
    values = {name: measure(*pair) for name, pair in pairs.items()}
    found = {name: _interval(*drawn, basic=basic) for name, drawn in values.items()}
    if basic:
        found = {name: Interval(*(max(0.0, n) for n in part)) for name, part in found.items()}
    base, base_draws = values["without"]
    change = {
        name: _interval(value - base, draws - base_draws, basic=basic)
        for name, (value, draws) in values.items()
        if name != "without"
    }
    return Separation(found, change)


def _interval(value: float, draws: Floats, *, basic: bool) -> Interval:
    low, high = map(float, np.quantile(draws, [0.025, 0.975]))
    if not basic:
        return Interval(value, low, high)
    return Interval(float(2 * value - draws.mean()), 2 * value - high, 2 * value - low)


def _draws(rows: int) -> Any:
    """(resamples, rows) draws with replacement, the same for every condition."""
    return np.random.default_rng(_SEED).integers(0, rows, size=(_RESAMPLES, rows))


def centroid_distance(task: Floats, general: Floats) -> float:
    """1 - cosine of the two means."""
    first, second = task.mean(0), general.mean(0)
    return float(1 - first @ second / (np.linalg.norm(first) * np.linalg.norm(second)))


def _distances(task: Floats, general: Floats) -> Draws:
    first, second = _drawn_means(task, 1), _drawn_means(general, -1)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return centroid_distance(task, general), 1 - np.einsum("ij,ij->i", first, second) / norms


def _drawn_means(vectors: Floats, step: int) -> Floats:
    """(resamples, width) means of the drawn rows, by how often each row was drawn."""
    draws = _draws(len(vectors))[::step]
    counts = np.stack([np.bincount(draw, minlength=len(vectors)) for draw in draws])
    return np.asarray(counts @ vectors / len(vectors))


def _means_of(measure: Callable[[Floats, Floats], Floats]) -> Callable[[Floats, Floats], Draws]:
    """A measure that is a mean over rows: drawn within task and general rows."""

    def draws(task: Floats, general: Floats) -> Draws:
        rows = measure(task, general)
        of_task, of_general = rows[: len(task)], rows[len(task) :]
        total = of_task[_draws(len(task))].sum(1) + of_general[_draws(len(general))[::-1]].sum(1)
        return float(rows.mean()), total / len(rows)

    return draws


def _silhouettes(task: Floats, general: Floats) -> Floats:
    """The silhouette of every row by cosine distance, -1 to 1."""
    from sklearn.metrics import silhouette_samples

    vectors, labels = np.concatenate([task, general]), [1] * len(task) + [0] * len(general)
    return np.asarray(silhouette_samples(vectors, labels, metric="cosine"), float)


def _probe(task: Floats, general: Floats) -> Floats:
    """For every row, the share of repeats in which a probe that never saw it tells its group.

    Logistic regression on standardised features, five stratified folds, five seeded repeats.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    vectors = np.concatenate([task, general])
    labels = np.repeat([1, 0], [len(task), len(general)])
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = [StratifiedKFold(_FOLDS, shuffle=True, random_state=seed) for seed in range(_REPEATS)]
    hits = [cross_val_predict(probe, vectors, labels, cv=part) == labels for part in folds]
    return np.asarray(np.mean(hits, axis=0), float)


# --- picture and table ----------------------------------------------------------------------------


def tsne(groups: Groups) -> dict[str, Floats]:
    """Places in the plane, (rows, 2) for each group, from one joint fit: panels show the same map.

    Seeded; scikit-learn's t-SNE, exact, since its approximation does not survive equal points.
    Vectors that are all equal (the last token's embedding) stay in one place.
    """
    from sklearn.manifold import TSNE

    vectors = np.concatenate(list(groups.values()))
    places = np.zeros((len(vectors), 2))
    if np.ptp(vectors, axis=0).max() > 0:
        perplexity = min(30.0, (len(vectors) - 1) / 3)
        fit = TSNE(random_state=_SEED, perplexity=perplexity, init="pca", method="exact")
        places = fit.fit_transform(vectors)
    ends = np.cumsum([len(part) for part in groups.values()])
    return dict(zip(groups, np.split(places, ends[:-1]), strict=True))


def draw(groups: Mapping[str, Groups], title: str, path: Path) -> None:
    """Draw the t-SNE map of every pooling to `path` (PNG): one row a pooling, a panel a condition.

    The panels of a row can be compared, those of different rows cannot. t-SNE keeps neighbours,
    not distances.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2 * len(groups)), layout="constrained")
    axes = figure.subplots(len(groups), len(CONDITIONS), squeeze=False)
    for row, (pooling, group) in zip(axes, groups.items(), strict=True):
        places = tsne(group)
        everything = np.concatenate(list(places.values()))
        low, high = everything.min(0), everything.max(0)
        margin = 0.06 * (high - low) + 1e-6  # all in one place, perhaps
        for axis, (task, general) in zip(row, CONDITIONS.values(), strict=True):
            axis.scatter(*places[general].T, s=16, c=_GENERAL, label="general queries", lw=0)
            axis.scatter(*places[task].T, s=22, c=_TASK, marker="^", label="task queries", lw=0)
            xlim, ylim = np.stack([low - margin, high + margin], axis=1)
            axis.set(xlim=xlim, ylim=ylim, xticks=[], yticks=[])
        row[0].set_ylabel(POOLINGS[pooling], fontsize=9)
    for axis, panel in zip(axes[0], _PANELS, strict=True):
        axis.set_title(panel, fontsize=10)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(f"{title}: t-SNE of hidden states", fontsize=12)
    with paths.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI)


Result = Mapping[str, Mapping[str, Separation]]  # by pooling and measure


def _report(job: Job, args: argparse.Namespace, found: States, result: Result) -> dict[str, Any]:
    """What is saved beside the picture."""

    def plain(parts: Mapping[str, Interval]) -> dict[str, Any]:
        return {name: part._asdict() for name, part in parts.items()}

    return {
        "format": 2,
        "recipe": job.recipe.name,
        "model": job.recipe.get("model"),
        "adapter": job.adapter.shown,
        "card": job.card.name,
        "split": args.split,
        "anchor": args.anchor,
        "layer": found.layer,
        "layers": found.layers,
        "rows": {"task": len(job.task), "general": len(job.general)},
        "max_tokens": args.max_tokens,
        "cut": found.cut,
        "separations": {
            pooling: {
                measure: {"by_condition": plain(one.by_condition), "change": plain(one.change)}
                for measure, one in measures.items()
            }
            for pooling, measures in result.items()
        },
    }


def _grid(title: str, job: Job, max_tokens: int, cut: dict[str, int], result: Result) -> Grid:
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
            f"Cut after {max_tokens} tokens: {cut['task']} task and {cut['general']} general "
            "queries (--max-tokens)"
        )
    heads = ["", "without", "with", "control", "with - without", "control - without"]
    return Grid(title, heads, rows, notes)
