"""What is wrong, or nearly wrong, with a recipe: one shape and one id for every rule's result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from tell_plugins.core.errors import UserError, UserErrors

ERROR, WARNING = "error", "warning"


class Rule(NamedTuple):
    """What a rule looks at, said as it should be, and how to mend it where it is not."""

    holds: str
    remedy: str


# every rule by its id, which stays the same over releases; docs/check.md is made of this
SECTIONS = {
    "The file": {
        "tell-recipe": Rule(
            "the file is a readable recipe",
            "name a recipe; mend the YAML at the line that is named",
        ),
        "tell-key-unknown": Rule(
            "ms-swift knows the key by this very name",
            "take the nearest name, or remove the key",
        ),
        "tell-key-renamed": Rule(
            "the key has the name of today's ms-swift", "write the name of today"
        ),
        "tell-secret": Rule(
            "no password stands in the recipe",
            "give it as a flag, or in the environment variable that its service reads",
        ),
        "tell-value-empty": Rule(
            "a key that is named has a value", "give it a value, or remove the key"
        ),
        "tell-value-type": Rule(
            "the value is of the kind that the key takes",
            "correct it; put texts such as no, yes and on into quotes",
        ),
        "tell-value-unknown": Rule(
            "the value is one that the key takes", "use one of the allowed values"
        ),
        "tell-value-range": Rule(
            "the number is one that can be meant",
            "correct it: a share, not percent; no lost or added minus sign",
        ),
        "tell-value-text": Rule(
            "a value is the same to `swift sft` alone and to `./run.sh train`",
            "put a text into quotes, write a number in plain digits",
        ),
        "tell-path-variable": Rule(
            "no path holds a variable, which ms-swift would take literally",
            "write it out, or give it as a flag: the shell replaces it there",
        ),
        "tell-value-list": Rule("`swift sft` alone can read the list", "put each part into quotes"),
    },
    "The data": {
        "tell-dataset": Rule(
            "the dataset string is good, and the card has what it asks for",
            "correct the string; `./run.sh data list` tells the cards",
        ),
        "tell-validation": Rule(
            "validation rows are rows of a card, and neither train nor test",
            "validate on split=validation, or on rows of another source",
        ),
        "tell-data": Rule(
            "the mixture can be built from the files",
            "ask for less, mend the rows that are named, take test rows out of training",
        ),
        "tell-answer-schema": Rule(
            "the card's answer schema can be applied", "mend the schema's file"
        ),
        "tell-pattern-slow": Rule(
            "a pattern of the card is done with a row within a second",
            "write the pattern without repeats inside of repeats",
        ),
        "tell-data-missing": Rule(
            "the files of the mixture are on this machine",
            "`./run.sh data NAME`, or set $TELL_DATA_HOME",
        ),
        "tell-data-duplicates": Rule(
            "no row of a source stands there twice", "remove the copies, unless they are meant"
        ),
        "tell-data-malformed": Rule(
            "every row of a source can be read", "mend the rows, or leave it at that"
        ),
        "tell-test-rows-train": Rule(
            "no general row holds a held-out query", "overlap=drop leaves them out"
        ),
        "tell-test-rows-missing": Rule(
            "held-out rows are here to compare with", "`./run.sh data NAME`"
        ),
        "tell-control-task": Rule(
            "no task row holds a token that steers the model",
            "write it otherwise, such as with a blank inside; struck-through HTML as `<del>`",
        ),
        "tell-control-general": Rule(
            "no general row holds a token that steers chat models",
            "the same, or leave it at that: such rows are left out",
        ),
        "tell-row-long": Rule(
            "every task row fits into max_length",
            "raise max_length, take a model with more positions, or shorten the rows",
        ),
        "tell-row-near": Rule(
            "every task row fits with the chat template around it", "raise max_length to be safe"
        ),
        "tell-general-long": Rule(
            "every general row fits into max_length",
            "raise max_length, or give the card a smaller max_tokens",
        ),
        "tell-general-few": Rule(
            "general rows outnumber task rows", "more general rows, or general=0 for plain SFT"
        ),
        "tell-anchor-answers": Rule(
            "the answers that the anchor names are answers of the rows",
            "let anchor and rows say the same, letter by letter",
        ),
    },
    "The order and the steps": {
        "tell-order": Rule(
            "nothing reorders or thins out the mixture", "write the value that is named"
        ),
        "tell-strict": Rule("no row is dropped in silence", "write `strict: true`"),
        "tell-truncation": Rule("no row is cut", "remove truncation_strategy and raise max_length"),
        "tell-schedule": Rule(
            "the run takes optimizer steps",
            "correct max_steps, num_train_epochs, the batch or the scheduler's arguments",
        ),
        "tell-schedule-unknown": Rule(
            "the learning rates can be computed here",
            "use a scheduler that is modelled, or do without the numbers",
        ),
        "tell-no-op": Rule(
            "some step has a learning rate above 0",
            "more rows, more epochs, a smaller batch, warmup_ratio: 0, or a learning_rate above 0",
        ),
        "tell-exposure-zero": Rule(
            "task rows meet a learning rate above 0",
            "order=shuffle or order=even, fewer warm-up steps, or more epochs",
        ),
        "tell-rate-low": Rule("the learning rate is reached", "fewer warm-up steps"),
        "tell-rate-high": Rule(
            "the learning rate is one that LoRA runs use", "check the exponent's sign"
        ),
        "tell-rows-unseen": Rule(
            "every row is trained on", "more steps, or amounts that fit the processes"
        ),
    },
    "The run": {
        "tell-plugin": Rule(
            "ms-swift loads the plugin that serves the mixture",
            "write `external_plugins: [tell_plugins/register.py]`",
        ),
        "tell-model-missing": Rule(
            "a model is named, and a folder holds one",
            "name a hub's id, or a folder with config.json",
        ),
        "tell-model-type": Rule(
            "ms-swift can tell how the model is built, and the recipe says the same",
            "name model_type and template, or remove what contradicts the model",
        ),
        "tell-template": Rule(
            "ms-swift knows the chat template, and it is the model's",
            "take the template that is named",
        ),
        "tell-model-cpu": Rule(
            "the model is small enough for a training on a CPU", "a GPU, or a smaller model"
        ),
        "tell-positions": Rule(
            "no row is longer than the model was trained for",
            "a smaller max_length, rope_scaling, or a model with a longer context",
        ),
        "tell-targets": Rule(
            "the model has the layers that the adapter goes to",
            "write `target_modules: [all-linear]`, or use names of the model's layers",
        ),
        "tell-loss": Rule(
            "no other setting weighs tokens, or hides the logits from the loss",
            "write the value that is named, or leave out loss_type",
        ),
        "tell-kl": Rule(
            "kl has the loss that knows it, and an adapter to take away",
            "write `loss_type: tell` and `tuner_type: lora`, or take kl out of the string",
        ),
        "tell-kl-rows": Rule(
            "there are rows to teach and rows to hold",
            "ask for task rows and for general rows, or take kl out of the string",
        ),
        "tell-package": Rule(
            "the packages that a setting needs are installed", "install what is named"
        ),
        "tell-liger-channel": Rule(
            "the loss kernel saves the memory that it is there to save",
            "leave out use_liger_kernel or enable_channel_loss",
        ),
        "tell-checkpoint": Rule(
            "a run that is to be resumed is there", "name one of the run's checkpoint-N folders"
        ),
        "tell-no-save": Rule("an adapter is kept", 'write `save_strategy: "epoch"`'),
        "tell-output-dir": Rule("`eval` will find the run", "write `output_dir: output/NAME`"),
        "tell-output-mixed": Rule(
            "one folder holds one run", "write `add_version: true`, or name another output_dir"
        ),
    },
}
RULES = {name: rule for section in SECTIONS.values() for name, rule in section.items()}


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
