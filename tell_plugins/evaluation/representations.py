"""How far apart two groups of hidden states lie, in numbers that do not depend on a picture.

Three measures of task against general queries, each with a 95 % interval by bootstrap over rows:
cosine distance of the centroids, silhouette (cosine), and accuracy of a cross-validated linear
probe. They are taken under three conditions:

    without   no query has the anchor (Figure 3 of the paper)
    with      the task queries have it (Figure 4)
    control   the general queries have it too

All task queries share the anchor's tokens, so `with` grows by that alone. What the anchor does
beyond marking shows in the pooling over the query's own tokens; and where `control` is as far
apart as `with`, it is not the mark that separates.

Means of a few rows lie further apart than what they estimate: their noise adds to the distance,
and that of a draw adds it once more. So the distance is given less that noise, with the basic
bootstrap's interval; the other two are means over rows and have percentile intervals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
