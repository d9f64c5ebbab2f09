"""What is wrong, or nearly wrong, with a recipe: one shape and one id for every rule's result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tell_plugins.core.errors import UserError, UserErrors

ERROR, WARNING = "error", "warning"

# every rule by its id, which stays the same over releases, and what it looks at
RULES = {
    # the file
    "tell-recipe": "the file is a readable recipe",
    "tell-key-unknown": "ms-swift knows the key by this very name",
    "tell-key-renamed": "the key has the name of today's ms-swift",
    "tell-secret": "no password stands in the recipe",
    "tell-value-empty": "a key that is named has a value",
    "tell-value-type": "the value is of the kind that the key takes",
    "tell-value-unknown": "the value is one that the key takes",
    "tell-value-range": "the number is one that can be meant",
    "tell-value-text": "a value is the same to `swift sft --config` and to `./run.sh train`",
    "tell-path-variable": "no path holds a variable, which ms-swift would take literally",
    "tell-value-list": "`swift sft --config` can read the list",
    # the data
    "tell-dataset": "the dataset string is good, and the card has what it asks for",
    "tell-validation": "validation rows are rows of a card, and neither train nor test",
    "tell-data": "the mixture can be built from the files",
    "tell-answer-schema": "the card's answer schema can be applied",
    "tell-pattern-slow": "a pattern of the card is done with a row within a second",
    "tell-data-missing": "the files of the mixture are on this machine",
    "tell-data-duplicates": "no row of a source stands there twice",
    "tell-data-malformed": "every row of a source can be read",
    "tell-test-rows-train": "no general row holds a held-out query",
    "tell-test-rows-missing": "held-out rows are here to compare with",
    "tell-control-task": "no task row holds a token that steers the model",
    "tell-control-general": "no general row holds a token that steers chat models",
    "tell-row-long": "every task row fits into max_length",
    "tell-row-near": "every task row fits with the chat template around it",
    "tell-general-long": "every general row fits into max_length",
    "tell-general-few": "general rows outnumber task rows",
    "tell-anchor-answers": "the answers that the anchor names are answers of the rows",
    # the order and the steps
    "tell-order": "nothing reorders or thins out the mixture",
    "tell-strict": "no row is dropped in silence",
    "tell-truncation": "no row is cut",
    "tell-schedule": "the run takes optimizer steps",
    "tell-schedule-unknown": "the learning rates can be computed here",
    "tell-no-op": "some step has a learning rate above 0",
    "tell-exposure-zero": "task rows meet a learning rate above 0",
    "tell-rate-low": "the learning rate is reached",
    "tell-rate-high": "the learning rate is one that LoRA runs use",
    "tell-rows-unseen": "every row is trained on",
    # the run
    "tell-plugin": "ms-swift loads the plugin that serves the mixture",
    "tell-model-missing": "a model is named, and a folder holds one",
    "tell-model-type": "ms-swift can tell how the model is built, and the recipe says the same",
    "tell-template": "ms-swift knows the chat template, and it is the model's",
    "tell-model-cpu": "the model is small enough for a training on a CPU",
    "tell-positions": "no row is longer than the model was trained for",
    "tell-targets": "the model has the layers that the adapter goes to",
    "tell-loss": "no other setting weighs tokens, or hides the logits from the loss",
    "tell-kl": "kl has the loss that knows it, and an adapter to take away",
    "tell-kl-rows": "there are rows to teach and rows to hold",
    "tell-package": "the packages that a setting needs are installed",
    "tell-liger-channel": "the loss kernel saves the memory that it is there to save",
    "tell-checkpoint": "a run that is to be resumed is there",
    "tell-no-save": "an adapter is kept",
    "tell-output-dir": "`eval` will find the run",
    "tell-output-mixed": "one folder holds one run",
}


@dataclass(frozen=True)
class Finding:
    """A problem and how much it matters: an `error` stops a run, a `warning` does not.

    `rule` is a key of `RULES`.
    """

    rule: str
    severity: str
    problem: UserError

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"no rule '{self.rule}'")


def error(
    rule: str, found: str, where: str, remedy: str | None, allowed: str | None = None
) -> Finding:
    return Finding(rule, ERROR, UserError(found, where=where, allowed=allowed, remedy=remedy))


def warning(
    rule: str, found: str, where: str, remedy: str | None, allowed: str | None = None
) -> Finding:
    return Finding(rule, WARNING, UserError(found, where=where, allowed=allowed, remedy=remedy))


def split(problem: UserError) -> list[UserError]:
    """The single problems in an error that may carry several."""
    if isinstance(problem, UserErrors):
        return [part for each in problem.problems for part in split(each)]
    return [problem]


def as_errors(rule: str, problem: UserError) -> list[Finding]:
    return [Finding(rule, ERROR, part) for part in split(problem)]


def errors_of(findings: Iterable[Finding]) -> list[UserError]:
    return [finding.problem for finding in findings if finding.severity == ERROR]
