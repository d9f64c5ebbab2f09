"""Settings of ms-swift that do not go with a TELL mixture: one list for whoever looks at them.

`check` holds a recipe against it, and ms-swift's commands their arguments before a model is loaded.
A mixture's rows come in one order, each with one right answer, and manifest and anchor belong to
them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError, raise_all
from tell_plugins.core.spec import HELD_OUT, LOSS_TYPE, Spec, is_tell, parse_spec

Read = Callable[[str], Any]  # gives the value of a setting, None where there is none


class Misuse(NamedTuple):
    """A setting that does not go with the mixture; `rule` is its id in docs/check.md."""

    rule: str
    key: str
    found: str
    remedy: str


_WRITE = "write the rows with `./run.sh mix RECIPE --out DIR`, and add what the method needs"
PREFERENCES = "`swift rlhf` needs rows with a rejected answer or a reward, and TELL rows have none"
SPREAD = (
    "kl asks for a second forward pass in some processes only, and the weights are spread over all "
    "of them"
)
SPREAD_REMEDY = "write 'deepspeed: zero2', or kl=0 in the dataset string"
ONE_ALONE = (
    "keep one; other general data gets a card like datasets/sample_general/card.yaml, and is named "
    "with from=a+b"
)


# what reorders or thins out a mixture: key, the value that does not (None: no value), how others do
_ORDER = (
    ("dataset_shuffle", False, "shuffles the mixture again"),
    ("train_dataloader_shuffle", False, "shuffles the mixture again"),
    ("packing", False, "puts rows together by length, so the order is lost"),
    ("group_by_length", False, "sorts rows by length, so the order is lost"),
    ("streaming", False, "a mixture does not know; its rows stay on disk anyway"),
    ("ignore_data_skip", False, "lets a resumed run begin the mixture anew"),
    ("split_dataset_ratio", 0, "takes scarce task rows out of training"),
    ("sequence_parallel_size", 1, "brings a sampler of its own"),
    ("interleave_prob", None, "draws from several data sets in an order of its own"),
    ("cached_dataset", None, "brings rows of other data sets"),
    ("to_cached_dataset", False, "keeps neither the mixture's manifest nor its anchor"),
    ("train_sampling_strategy", "sequential", "orders the rows anew"),  # of transformers 5
)
# what hides the logits from the loss, or weighs tokens by another rule, and the value that does not
_LOSS = (
    ("use_liger_kernel", False),
    ("sequence_parallel_size", 1),
    ("packing", False),
    ("enable_dft_loss", False),
    ("label_smoothing_factor", 0),
    ("loss_scale", "default"),
)


def _harms(value: Any, right: Any) -> bool:
    return bool(value) and value not in (right, "random")  # of a sampler whose shuffling is off


def misuses(read: Read, spec: Spec) -> Iterator[Misuse]:
    """Everything among the settings that does not go with a mixture of this string."""
    for key, right, how in _ORDER:
        value = read(key)
        if _harms(value, right) and not (key == "split_dataset_ratio" and read("val_dataset")):
            found = f"'{key}' is {json.dumps(value, default=str)}, which {how}"
            remedy = f"leave out '{key}'" if right is None else f"write '{key}: {_written(right)}'"
            yield Misuse("tell-order", key, found, remedy)
    if read("rlhf_type"):
        remedy = f"train with `swift sft`; or {_WRITE}"
        yield Misuse("tell-order", "dataset", PREFERENCES, remedy)
    for key, right in _LOSS if read("loss_type") == LOSS_TYPE else ():
        if _harms(read(key), right):
            found = f"'loss_type: {LOSS_TYPE}' does not go with '{key}'"
            remedy = f"write '{key}: {_written(right)}', or leave out loss_type"
            yield Misuse("tell-loss", key, found, remedy)
    if spec.kl:
        yield from _held(read, spec.kl)


def _written(value: Any) -> str:
    """A value as YAML has it."""
    return str(value).lower()


def _held(read: Read, kl: float) -> Iterator[Misuse]:
    """What keeps rows from being held to the base model."""
    if read("loss_type") != LOSS_TYPE:
        found = f"kl={kl:g} has no effect without the loss that knows it"
        remedy = f"write 'loss_type: {LOSS_TYPE}', or take kl out of the dataset string"
        yield Misuse("tell-kl", "dataset", found, remedy)
        return
    if read("tuner_type") == "full":
        found = "kl holds general rows to the model without its adapter, and full tuning has none"
        remedy = "write 'tuner_type: lora', or kl=0 in the dataset string"
        yield Misuse("tell-kl", "tuner_type", found, remedy)
    spread = {"fsdp": read("fsdp"), "deepspeed": "zero3" in str(read("deepspeed"))}
    for key in (key for key, given in spread.items() if given):
        yield Misuse("tell-kl", key, SPREAD, SPREAD_REMEDY)


def refuse_arguments(args: Any) -> None:
    """Raise UserError for arguments of ms-swift that do not go with their TELL data sets."""
    data = {}
    for key in ("dataset", "val_dataset"):
        if isinstance(getattr(args, key, None), str):  # from Python, one may stand alone
            setattr(args, key, [getattr(args, key)])
        data[key] = [str(entry) for entry in getattr(args, key, None) or []]
    entries = [*data["dataset"], *data["val_dataset"]]
    specs = {text: parse_spec(text) for text in entries if is_tell(text)}
    for spec in specs.values():
        load_card(spec.card)
    cached = list(map(str, getattr(args, "cached_dataset", None) or []))
    _refuse_others("dataset", [*data["dataset"], *cached])
    _refuse_others("val_dataset", data["val_dataset"])
    for text in filter(is_tell, data["dataset"]):
        refuse_held_out(specs[text], "dataset")
        found = misuses(lambda key: getattr(args, key, None), specs[text])
        raise_all([UserError(one.found, where=one.key, remedy=one.remedy) for one in found])


def refuse_held_out(spec: Spec, where: str) -> None:
    """Raise UserError for a data set of rows that never train."""
    if spec.split in HELD_OUT:
        raise UserError(
            f"split '{spec.split}' is held out: its rows never train",
            where=where,
            remedy="use it under val_dataset, or train on split=train",
        )


def _refuse_others(key: str, entries: Sequence[str]) -> None:
    ours = [entry for entry in entries if is_tell(entry)]
    if ours and len(entries) > 1:
        found = f"{len(ours)} TELL data sets among {len(entries)} under '{key}'"
        raise UserError(found, where=key, remedy=ONE_ALONE)
