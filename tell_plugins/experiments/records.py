"""What a sweep writes of its runs: the keys of each file that others count on."""

from __future__ import annotations

from typing import Any

from tell_plugins.core.files import Name, Shape

AGAIN = "restore the file, or remove the run's folder and start the sweep again"


class RunFacts(Shape):
    """`run.json`."""

    base: bool
    mixture: dict[str, Any] | None = None
    trained_tokens: int | None = None


class Trained(Shape):
    """`trained.json`: what came out of a training."""

    steps: int
    checkpoint: Name | None = None
    seconds: float | None = None


class TrainedHere(Trained):
    """The same where its adapter is still here."""

    checkpoint: Name


class TrainerState(Shape):
    """What the Trainer leaves of a checkpoint, `trainer_state.json`."""

    global_step: int
    max_steps: int
    epoch: float | None = None


class Evaluated(Shape):
    """`evaluated.json`."""

    seconds: float


class Failed(Shape):
    """`failed.json`: the step that failed, and the end of its log."""

    step: str
    exit: str
    log: Name
    tail: list[str]


class _Asked(Shape):
    run: Name
    evaluation: Name
    card: Name
    at: dict[str, Any] | None = None


class _Entry(_Asked):
    method: str
    seed: int | None = None
    equal_steps: str | None = None
    base: str | None = None


class _Evaluate(Shape):
    split: Name
    general_rows: int | None = None


class Index(Shape):
    """`sweeps/<name>.json`: which run each entry of a sweep is."""

    name: Name
    title: str
    metric: str | None
    seeds: list[int | None]
    evaluate: _Evaluate
    plot: dict[str, Any]
    entries: list[_Entry]
    bases: list[_Asked]


class SavedReferences(Shape):
    """`references/<card>-<split>.json`."""

    card: str
    split: str
    metric: str
    of: dict[str, str]
    labels: list[str]
    rows: int
    form: dict[str, Any] | None = None
