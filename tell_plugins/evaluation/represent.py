"""`./run.sh represent`: what the anchor does to hidden states (Section 4.2.1, Figures 3 and 4).

Task and general queries go through the model with and without the anchor; their hidden states at
one layer are pooled in three ways (`bridge.hidden_states`), measured (`representations`) and drawn.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

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
from tell_plugins.evaluation.trained_with import as_trained, found_by_swift
from tell_plugins.recipe.recipes import Recipe, load_recipe

if TYPE_CHECKING:
    from tell_plugins.bridge.engine import LocalEngine


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


Vectors = npt.NDArray[np.float64]  # (rows, width)
Draws = dict[str, tuple[float, Vectors]]  # by condition: a value, and those of the draws

POOLINGS = {
    "mean": "mean over anchor and query",
    "last": "last token of the prompt",
    "query": "mean over the query's own tokens",
}
CONDITIONS = ("without", "with", "control")
MEASURES = ("centroid_distance", "silhouette", "probe_accuracy")
_RESAMPLES = 2000
_SEED = 42
_FOLDS, _REPEATS = 5, 5


@dataclass(frozen=True)
class Groups:
    """Pooled hidden states of the same task and general queries, with and without the anchor."""

    task: Vectors
    task_anchored: Vectors
    general: Vectors
    general_anchored: Vectors

    def pair(self, condition: str) -> tuple[Vectors, Vectors]:
        """(task, general) under a condition."""
        return {
            "without": (self.task, self.general),
            "with": (self.task_anchored, self.general),
            "control": (self.task_anchored, self.general_anchored),
        }[condition]


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Separation:
    """One measure under every condition, and how it changes against `without`."""

    by_condition: dict[str, Interval]
    change: dict[str, Interval]  # condition minus `without`, rows paired


def separations(groups: Groups) -> dict[str, Separation]:
    """Every measure of `groups`."""
    return {
        "centroid_distance": _separation(_distances(groups), distance=True),
        "silhouette": _separation(_means_over_rows(groups, _silhouettes)),
        "probe_accuracy": _separation(_means_over_rows(groups, _probe)),
    }


def centroid_distance(task: Vectors, general: Vectors) -> float:
    """1 - cosine of the two means."""
    first, second = task.mean(0), general.mean(0)
    return float(1 - first @ second / (np.linalg.norm(first) * np.linalg.norm(second)))


def _draws(rows: int) -> npt.NDArray[np.int64]:
    """(resamples, rows) draws with replacement, the same for every condition."""
    return np.random.default_rng(_SEED).integers(0, rows, size=(_RESAMPLES, rows))


def _distances(groups: Groups) -> Draws:
    """For each condition the distance, and those of the draws; rows are drawn within groups."""
    task_draws, general_draws = _draws(len(groups.task)), _draws(len(groups.general))[::-1]
    result = {}
    for condition in CONDITIONS:
        task, general = groups.pair(condition)
        first, second = _means(task, task_draws), _means(general, general_draws)
        norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        drawn = 1 - np.einsum("ij,ij->i", first, second) / norms
        result[condition] = centroid_distance(task, general), drawn
    return result


def _means(vectors: Vectors, draws: npt.NDArray[np.int64]) -> Vectors:
    """(resamples, width) means of the drawn rows, by how often each row was drawn."""
    counts = np.stack([np.bincount(draw, minlength=len(vectors)) for draw in draws])
    return np.asarray(counts @ vectors / len(vectors))


def _means_over_rows(groups: Groups, measure: Callable[[Vectors, Vectors], Vectors]) -> Draws:
    """A measure that is a mean over rows: drawn within task and general rows."""
    task_draws, general_draws = _draws(len(groups.task)), _draws(len(groups.general))[::-1]
    values = {}
    for condition in CONDITIONS:
        task, general = groups.pair(condition)
        rows = measure(task, general)
        of_task, of_general = rows[: len(task)], rows[len(task) :]
        total = of_task[task_draws].sum(1) + of_general[general_draws].sum(1)
        values[condition] = float(rows.mean()), total / len(rows)
    return values


def _separation(values: Draws, *, distance: bool = False) -> Separation:
    """The intervals of a measure. A distance is never negative, though a change of one may be."""
    base_value, base_draws = values["without"]
    least = 0.0 if distance else -np.inf
    by_condition = {
        name: _interval(value, drawn, basic=distance) for name, (value, drawn) in values.items()
    }
    return Separation(
        {
            name: Interval(*(max(least, number) for number in (part.value, part.low, part.high)))
            for name, part in by_condition.items()
        },
        {
            name: _interval(value - base_value, drawn - base_draws, basic=distance)
            for name, (value, drawn) in values.items()
            if name != "without"
        },
    )


def _interval(value: float, draws: Vectors, *, basic: bool) -> Interval:
    """The percentile interval; or the basic bootstrap's, and the value less what the draws exceed
    it by on average."""
    low, high = map(float, np.quantile(draws, [0.025, 0.975]))
    if not basic:
        return Interval(value, low, high)
    return Interval(float(2 * value - draws.mean()), 2 * value - high, 2 * value - low)


def _silhouettes(task: Vectors, general: Vectors) -> Vectors:
    """The silhouette of every row by cosine distance, -1 to 1."""
    from sklearn.metrics import silhouette_samples

    labels = np.repeat([1, 0], [len(task), len(general)])
    return np.asarray(
        silhouette_samples(np.concatenate([task, general]), labels, metric="cosine"), float
    )


def _probe(task: Vectors, general: Vectors) -> Vectors:
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
    hits = [
        cross_val_predict(
            probe, vectors, labels, cv=StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
        )
        == labels
        for seed in range(_REPEATS)
    ]
    return np.asarray(np.mean(hits, axis=0), float)


def tsne(groups: Groups) -> dict[str, Vectors]:
    """Places in the plane, (rows, 2) for each of the four groups, from one joint fit.

    So that panels with different groups show the same map. Seeded; scikit-learn's t-SNE, exact,
    since its approximation does not survive equal points. Vectors that are all equal (the last
    token's embedding) stay in one place.
    """
    from sklearn.manifold import TSNE

    names = ("task", "task_anchored", "general", "general_anchored")
    parts = [getattr(groups, name) for name in names]
    vectors = np.concatenate(parts)
    places = np.zeros((len(vectors), 2))
    if np.ptp(vectors, axis=0).max() > 0:
        perplexity = min(30.0, (len(vectors) - 1) / 3)
        fit = TSNE(random_state=_SEED, perplexity=perplexity, init="pca", method="exact")
        places = fit.fit_transform(vectors)
    ends = np.cumsum([len(part) for part in parts])
    return dict(zip(names, np.split(places, ends[:-1]), strict=True))


_PANELS = (
    ("no anchor", "task", "general"),
    ("anchor before task queries", "task_anchored", "general"),
    ("anchor before all queries (control)", "task_anchored", "general_anchored"),
)
_TASK, _GENERAL = "#c1440e", "#2f6f9f"
_DPI = 150


def draw(groups: Mapping[str, Groups], title: str, path: Path) -> None:
    """Draw the t-SNE map of every pooling to `path` (PNG).

    The panels of a row show the same map, fitted once on all four groups, so that their distances
    can be compared; those of different rows cannot. t-SNE keeps neighbours, not distances.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2 * len(groups)), layout="constrained")
    axes = figure.subplots(len(groups), len(_PANELS), squeeze=False)
    for row, (pooling, group) in zip(axes, groups.items(), strict=True):
        _draw_row(row, pooling, tsne(group))
    for axis, (panel, _, _) in zip(axes[0], _PANELS, strict=True):
        axis.set_title(panel, fontsize=10)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(f"{title}: t-SNE of hidden states", fontsize=12)
    with paths.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI)


def _draw_row(row: Any, pooling: str, places: Mapping[str, Vectors]) -> None:
    everything = np.concatenate(list(places.values()))
    low, high = everything.min(0), everything.max(0)
    margin = 0.06 * (high - low) + 1e-6  # all in one place, perhaps
    for axis, (_, task, general) in zip(row, _PANELS, strict=True):
        axis.scatter(*places[general].T, s=16, c=_GENERAL, label="general queries", linewidths=0)
        axis.scatter(*places[task].T, s=22, c=_TASK, marker="^", label="task queries", linewidths=0)
        axis.set_xlim(low[0] - margin[0], high[0] + margin[0])
        axis.set_ylim(low[1] - margin[1], high[1] + margin[1])
        axis.set_xticks([])
        axis.set_yticks([])
    row[0].set_ylabel(POOLINGS[pooling], fontsize=9)
