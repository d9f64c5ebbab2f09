"""Settings of ms-swift that do not go with a TELL mixture: one list for whoever looks at them.

`check` holds a recipe against it, ms-swift's commands their arguments before a model is loaded, and
the callback the trainer's arguments, for trainings that are put together in Python. A mixture's
rows come in one order, each with one right answer, and manifest and anchor belong to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError, raise_all
from tell_plugins.core.spec import LOSS_TYPE, Spec, is_tell, parse_spec

Read = Callable[[str], Any]  # gives the value of a setting, None where there is none


class Misuse(NamedTuple):
    """A setting that does not go with the mixture; `rule` is its id in docs/check.md."""

    rule: str
    key: str
    found: str
    remedy: str


# flags that reorder or thin out a mixture where they are true
_REORDERS = {
    "dataset_shuffle": "as by default, and shuffles the mixture again",
    "train_dataloader_shuffle": "as by default, and shuffles the mixture again",
    "packing": "and puts rows together by length, so the mixture's order is lost",
    "group_by_length": "and sorts rows by length, so the mixture's order is lost",
    "streaming": "and does not go with a TELL mixture; its rows stay on disk anyway",
    "ignore_data_skip": "so a resumed run begins the mixture anew",
}
_SAMPLERS = ("group_by_length", "batch_rebalance")  # of transformers 5: orders of their own
PREFERENCES = "`swift rlhf` needs rows with a rejected answer or a reward, and TELL rows have none"
_WRITE = "write the rows with `./run.sh mix RECIPE --out DIR`"
NO_ADAPTER = "write 'tuner_type: lora', or kl=0 in the dataset string"
SPREAD = (
    "kl asks for a second forward pass in some processes only, and the weights are spread over all "
    "of them"
)
ONE_ALONE = (
    "keep one; other general data gets a card like datasets/sample_general/card.yaml, and is named "
    "with from=a+b"
)
SPREAD_REMEDY = "write 'deepspeed: zero2', or kl=0 in the dataset string"


def misuses(read: Read, spec: Spec) -> Iterator[Misuse]:
    """Everything among the settings that does not go with a mixture of this string."""
    for key, reason in _REORDERS.items():
        if read(key) is True:
            yield Misuse("tell-order", key, f"'{key}' is true {reason}", f"write '{key}: false'")
    yield from _orders(read)
    yield from _elsewhere(read)
    if read("loss_type") == LOSS_TYPE:
        yield from _weights(read)
    if spec.kl:
        yield from _held(read, spec.kl)


def _orders(read: Read) -> Iterator[Misuse]:
    ratio, parallel = read("split_dataset_ratio") or 0, read("sequence_parallel_size") or 1
    if ratio > 0 and not read("val_dataset"):
        key = "split_dataset_ratio"
        found = f"'{key}' is {ratio:g} and takes scarce task rows out of training"
        remedy = f"write '{key}: 0'; a card's own split goes under val_dataset"
        yield Misuse("tell-order", key, found, remedy)
    if parallel > 1:
        key = "sequence_parallel_size"
        found = f"'{key}' is {parallel:g} and brings a sampler of its own, which shuffles again"
        yield Misuse("tell-order", key, found, f"write '{key}: 1'")
    sampler = read("train_sampling_strategy")
    wrong = {
        "interleave_prob": "is for several data sets, from which it draws in an order of its own",
        "cached_dataset": "brings rows of other data sets",
        "train_sampling_strategy": f"is '{sampler}', which orders the rows anew",
    }
    for key, reason in wrong.items():
        if read(key) and (sampler in _SAMPLERS or key != "train_sampling_strategy"):
            yield Misuse("tell-order", key, f"'{key}' {reason}", f"leave out '{key}'")


def _elsewhere(read: Read) -> Iterator[Misuse]:
    """Uses of rows other than supervised training."""
    if read("rlhf_type"):
        remedy = f"train with `swift sft`; or {_WRITE}, and add what the method needs"
        yield Misuse("tell-order", "dataset", PREFERENCES, remedy)
    if read("to_cached_dataset"):
        found = "a cached data set keeps neither the mixture's manifest nor its anchor"
        remedy = f"train on the recipe itself, whose mixture is cached anyway; or {_WRITE}"
        yield Misuse("tell-order", "to_cached_dataset", found, remedy)


def _weights(read: Read) -> Iterator[Misuse]:
    """What hides the logits from the loss, or weighs tokens by another rule."""
    wrong = {
        "use_liger_kernel: false": read("use_liger_kernel") is True,
        "sequence_parallel_size: 1": (read("sequence_parallel_size") or 1) > 1,
        "packing: false": read("packing") is True,
        "enable_dft_loss: false": read("enable_dft_loss") is True,
        "label_smoothing_factor: 0": (read("label_smoothing_factor") or 0) > 0,
        "loss_scale: default": (read("loss_scale") or "default") != "default",
    }
    for remedy, given in wrong.items():
        key = remedy.partition(":")[0]
        if given:
            found = f"'loss_type: {LOSS_TYPE}' does not go with '{key}'"
            yield Misuse("tell-loss", key, found, f"write '{remedy}', or leave out loss_type")


def _held(read: Read, kl: float) -> Iterator[Misuse]:
    """What keeps rows from being held to the base model."""
    if read("loss_type") != LOSS_TYPE:
        found = f"kl={kl:g} has no effect without the loss that knows it"
        remedy = f"write 'loss_type: {LOSS_TYPE}', or take kl out of the dataset string"
        yield Misuse("tell-kl", "dataset", found, remedy)
        return
    if (read("train_type") or read("tuner_type")) == "full":  # the old name wins
        found = "kl holds general rows to the model without its adapter, and full tuning has none"
        yield Misuse("tell-kl", "tuner_type", found, NO_ADAPTER)
    for key, given in {
        "fsdp": read("fsdp"),
        "deepspeed": "zero3" in str(read("deepspeed")),
    }.items():
        if given:
            yield Misuse("tell-kl", key, SPREAD, SPREAD_REMEDY)


def refuse(settings: Any, spec: Spec) -> None:
    """Raise UserError for each attribute of `settings` that does not go with the mixture."""
    found = misuses(lambda key: getattr(settings, key, None), spec)
    raise_all([UserError(one.found, where=one.key, remedy=one.remedy) for one in found])


def refuse_arguments(args: Any) -> None:
    """Raise UserError for arguments of ms-swift that do not go with their TELL data sets."""
    data = {}
    for key in ("dataset", "val_dataset"):
        if isinstance(getattr(args, key, None), str):  # from Python, one may stand alone
            setattr(args, key, [getattr(args, key)])
        data[key] = [str(entry) for entry in getattr(args, key, None) or []]
    specs = {
        text: parse_spec(text) for text in [*data["dataset"], *data["val_dataset"]] if is_tell(text)
    }
    for spec in specs.values():
        load_card(spec.card)
    cached = list(map(str, getattr(args, "cached_dataset", None) or []))
    _refuse_others("dataset", [*data["dataset"], *cached])
    _refuse_others("val_dataset", data["val_dataset"])
    for text in filter(is_tell, data["dataset"]):
        refuse(args, specs[text])


def _refuse_others(key: str, entries: Sequence[str]) -> None:
    ours = [entry for entry in entries if is_tell(entry)]
    if ours and len(entries) > 1:
        raise UserError(
            f"{len(ours)} TELL data sets among {len(entries)} under '{key}'",
            where=key,
            allowed="one TELL data set alone",
            remedy=ONE_ALONE,
        )
