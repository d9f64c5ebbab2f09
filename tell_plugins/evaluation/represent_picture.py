"""The picture of `./run.sh represent`: one row a pooling, one panel a condition, shared axes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tell_plugins.core import paths
from tell_plugins.evaluation.representations import POOLINGS, Groups, Vectors, tsne

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
