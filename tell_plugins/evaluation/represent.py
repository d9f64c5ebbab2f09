"""`./run.sh represent`: what the anchor does to hidden states (Section 4.2.1, Figures 3 and 4).

Task and general queries go through the model with and without the anchor; their hidden states at
one layer are pooled in three ways (`bridge.hidden_states`), measured and drawn. Two measures tell
task from general queries: silhouette (cosine), and accuracy of a cross-validated linear probe. They
are taken under three conditions:

    without   no query has the anchor (Figure 3 of the paper)
    with      the task queries have it (Figure 4)
    control   the general queries have it too

All task queries share the anchor's tokens, so `with` grows by that alone. What the anchor does
beyond marking shows in the pooling over the query's own tokens; and where `control` is as far
apart as `with`, it is not the mark that separates.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tell_plugins.core import paths
from tell_plugins.core.anchors import in_front
from tell_plugins.core.cards import Card
from tell_plugins.core.errors import UserError, at_least
from tell_plugins.core.progress import tracked
from tell_plugins.core.sources import open_task
from tell_plugins.core.spec import ALL, NONE
from tell_plugins.core.state_files import write_json
from tell_plugins.evaluation import engines
from tell_plugins.evaluation import prompts as prompting
from tell_plugins.evaluation.adapters import BASE, Adapter, find_adapters
from tell_plugins.evaluation.grids import Grid, pivot, print_grid, table_console
from tell_plugins.evaluation.intervals import Estimate, Floats, shown
from tell_plugins.evaluation.judged import mean
from tell_plugins.evaluation.trained_with import as_trained, found_by_swift
from tell_plugins.recipe.recipes import Recipe, load_recipe

POOLINGS = {
    "mean": "mean over anchor and query",
    "last": "last token of the prompt",
    "query": "mean over the query's own tokens",
}
CONDITIONS = {  # which groups are told apart, and the title of their pictures
    "without": ("task", "general", "no anchor"),
    "with": ("task_anchored", "general", "anchor before task queries"),
    "control": ("task_anchored", "general_anchored", "anchor before all queries (control)"),
}
_MIDDLE = "middle"
_ROWS, _LEAST_ROWS = 50, 10  # the second: five folds of two rows a group
_MAX_TOKENS = 512
_SEED, _FOLDS, _REPEATS = 42, 5, 5
_TASK, _GENERAL = "#c1440e", "#2f6f9f"
_DPI = 150

Groups = Mapping[str, Floats]  # pooled states (rows, width): task, general, each plain or anchored


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_flags=True)
    add = parser.add_argument
    add("recipe", help="the recipe whose card, anchor and model are looked at")
    text = "layer whose output is read: 0 are the embeddings, n the n-th layer, 'middle' half way "
    text += "(default: middle; the paper's 16 of LLaMA2-7B's 32)"
    add("--layer", default=_MIDDLE, help=text)
    text = f"queries of each kind (default: {_ROWS}, or as many as the split has)"
    add("--rows", type=at_least(_LEAST_ROWS), help=text)
    add("--split", default="test", help="split of the task card (default: test)")
    text = "a checkpoint or run folder (default: none, the base model)"
    add("--adapter", default=BASE, metavar="DIR", help=text)
    add("--anchor", default="card", help="the card's anchor to look at")
    text = f"tokens of a query that are read, anchor not counted (default: {_MAX_TOKENS})"
    add("--max-tokens", type=at_least(1), default=_MAX_TOKENS, help=text)
    add("--out", help="folder of picture and numbers (default: <output_dir>/...)")


def run(args: argparse.Namespace) -> int:
    job = plan(load_recipe(args.recipe, args.flags), args)
    found, facts = hidden_states(job, args.layer, args.max_tokens)
    result = {name: separations(groups) for name, groups in found.items()}
    model = Path(str(job.recipe.get("model"))).name
    who = model if job.adapter.path is None else f"{model} with {job.adapter.label}"
    layer = facts["layer"]
    title = f"{job.card.name} and general queries, {who}, layer {layer} of {facts['layers']}"
    picture = job.out / f"layer{layer}.png"
    numbers = picture.with_suffix(".json")
    draw(found, title, picture)
    report = {
        "format": 3,
        "recipe": job.recipe.name,
        "model": job.recipe.get("model"),
        "adapter": job.adapter.shown,
        "card": job.card.name,
        **{key: getattr(args, key) for key in ("split", "anchor", "max_tokens")},
        "rows": {"task": len(job.task), "general": len(job.general)},
        **facts,
        "separations": {
            pooling: {name: asdict(one) for name, one in measures.items()}
            for pooling, measures in result.items()
        },
    }
    write_json(numbers, report)
    print_grid(_grid(title, report, result), table_console())
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
    if args.layer != _MIDDLE and not args.layer.isdecimal():
        raise _no_layer(args.layer, "middle, or a number from 0")
    card = prompting.task_card(recipe, "anchor")
    rows = args.rows or min(_ROWS, len(open_task(card, args.split, args.anchor)))
    (adapter,) = find_adapters([args.adapter], recipe)
    recipe, notes = as_trained(recipe, [adapter], found_by_swift)
    for note in notes:
        print(note)
    task, chosen = prompting.task_prompts(card, args.split, args.anchor, rows)
    if not task.anchor.text:
        raise UserError("there is no anchor to look at", where="--anchor", remedy="--anchor card")
    seen = adapter.spec or recipe.spec.with_values(task=ALL, general=NONE)
    general = prompting.general_rows([seen], card, rows)
    if not _LEAST_ROWS <= rows <= len(general):
        raise UserError(
            f"{rows} rows of each kind; the general data holds {len(general)} out",
            where="--rows",
            allowed=f"{_LEAST_ROWS} to {len(general)}",
            remedy="another --rows, or a --split with more of them",
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


def _no_layer(layer: object, allowed: str) -> UserError:
    return UserError(
        f"bad layer '{layer}'", where="--layer", allowed=allowed, remedy="--layer middle"
    )


def hidden_states(
    job: Job, asked_layer: str, max_tokens: int
) -> tuple[dict[str, Groups], dict[str, Any]]:
    """The groups of pooled states by pooling; and at which of how many layers they are, and how
    many queries of each kind were cut. Raises UserError for a layer that the model has not."""
    from tell_plugins.bridge.hidden_states import layer_count, pooled_states, prompt_ids

    engine: Any = engines.make_engine("transformers", job.recipe, [job.adapter], batch_size=1)
    layers = layer_count(engine)
    layer = layers // 2 if asked_layer == _MIDDLE else int(asked_layer)
    if layer > layers:
        raise _no_layer(layer, f"0 to {layers}, what the model has")
    cut, states = {}, {}
    with engines.acting(engine, job.adapter):
        for kind, queries in (("task", job.task), ("general", job.general)):
            for name, front in ((kind, ""), (f"{kind}_anchored", job.front)):
                asked = [prompt_ids(engine, front, query, max_tokens) for query in queries]
                bar = tracked(asked, f"hidden states, {name}", "prompts")
                states[name] = [pooled_states(engine, prompt, layer) for prompt in bar]
                cut[name] = sum(prompt.cut for prompt in asked)
    groups: dict[str, Groups] = {
        pooling: {name: np.stack([one[pooling] for one in found]) for name, found in states.items()}
        for pooling in POOLINGS
    }
    return groups, {"layer": layer, "layers": layers, "cut": cut}


# --- measures -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Separation:
    """One measure under every condition, and how it changes against `without`, rows paired."""

    by_condition: dict[str, Estimate]
    change: dict[str, Estimate]


Result = Mapping[str, Mapping[str, Separation]]  # by pooling and measure


def separations(groups: Groups) -> dict[str, Separation]:
    """Every measure of the groups, a mean over rows, with its 95 % interval by bootstrap."""
    found = {}
    for name, measure in MEASURES.items():
        rows = {key: measure(groups[a], groups[b]) for key, (a, b, _) in CONDITIONS.items()}
        changes = {key: values - rows["without"] for key, values in rows.items()}
        del changes["without"]
        found[name] = Separation(*({k: _mean(v) for k, v in s.items()} for s in (rows, changes)))
    return found


def _mean(values: Floats) -> Estimate:
    return mean(values).estimate(range(len(values)))


def _silhouettes(task: Floats, general: Floats) -> Floats:
    """The silhouette of every row by cosine distance, -1 to 1."""
    from sklearn.metrics import silhouette_samples

    labels = np.repeat([1, 0], [len(task), len(general)])
    return np.asarray(silhouette_samples(np.concatenate([task, general]), labels, metric="cosine"))


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
    return np.asarray(np.mean(hits, axis=0))


MEASURES = {"silhouette": _silhouettes, "probe_accuracy": _probe}


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
    axes = figure.subplots(len(groups), len(CONDITIONS), squeeze=False, sharex="row", sharey="row")
    for row, (pooling, group) in zip(axes, groups.items(), strict=True):
        places = tsne(group)
        row[0].set_ylabel(POOLINGS[pooling], fontsize=9)
        for axis, (task, general, _) in zip(row, CONDITIONS.values(), strict=True):
            axis.scatter(*places[general].T, s=16, c=_GENERAL, label="general queries", lw=0)
            axis.scatter(*places[task].T, s=22, c=_TASK, marker="^", label="task queries", lw=0)
            axis.set(xticks=[], yticks=[])
    for axis, (_, _, panel) in zip(axes[0], CONDITIONS.values(), strict=True):
        axis.set_title(panel, fontsize=10)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(f"{title}: t-SNE of hidden states", fontsize=12)
    with paths.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI)


def _grid(title: str, report: Mapping[str, Any], result: Result) -> Grid:
    """Every measure under every condition, and the change that the anchor makes."""
    cells = []
    for pooling, measures in result.items():
        for measure, found in measures.items():
            row = {"": f"{measure.replace('_', ' ')}, {POOLINGS[pooling]}"}
            for name, part in found.by_condition.items():
                cells.append((row, name, shown(part, 3, between="\n")))
            for name, part in found.change.items():
                cells.append((row, f"{name} - without", shown(part, 3, sign="+", between="\n")))
    asked, cut = report["rows"], report["cut"]
    notes = [
        f"{asked['task']} task and {asked['general']} general queries; 95 % intervals over rows",
        "without: no anchor; with: the anchor before task queries; control: before all queries",
    ]
    if any(cut.values()):
        notes.append(
            f"Cut after {report['max_tokens']} tokens: {cut['task']} task and {cut['general']} "
            "general queries (--max-tokens)"
        )
    return pivot(title, cells, notes)
