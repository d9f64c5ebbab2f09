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


def _true(value: Any) -> bool:
    return value is True


def _above(limit: int) -> Callable[[Any], bool]:
    return lambda value: (value or 0) > limit


# what reorders or thins out a mixture: key, when it does, how, the value that does not (None: none)
_ORDER: tuple[tuple[str, Callable[[Any], bool], str, str | None], ...] = (
    ("dataset_shuffle", _true, "shuffles the mixture again", "false"),
    ("train_dataloader_shuffle", _true, "shuffles the mixture again", "false"),
    ("packing", _true, "puts rows together by length, so the order is lost", "false"),
    ("group_by_length", _true, "sorts rows by length, so the order is lost", "false"),
    ("streaming", _true, "a mixture does not know; its rows stay on disk anyway", "false"),
    ("ignore_data_skip", _true, "lets a resumed run begin the mixture anew", "false"),
    ("split_dataset_ratio", _above(0), "takes scarce task rows out of training", "0"),
    ("sequence_parallel_size", _above(1), "brings a sampler of its own", "1"),
    ("interleave_prob", bool, "draws from several data sets in an order of its own", None),
    ("cached_dataset", bool, "brings rows of other data sets", None),
    ("to_cached_dataset", _true, "keeps neither the mixture's manifest nor its anchor", "false"),
    # of transformers 5: orders of their own
    (
        "train_sampling_strategy",
        lambda value: value in ("group_by_length", "batch_rebalance"),
        "orders the rows anew",
        None,
    ),
)
# what hides the logits from the loss, or weighs tokens by another rule
_LOSS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("use_liger_kernel", _true, "false"),
    ("sequence_parallel_size", _above(1), "1"),
    ("packing", _true, "false"),
    ("enable_dft_loss", _true, "false"),
    ("label_smoothing_factor", _above(0), "0"),
    ("loss_scale", lambda value: (value or "default") != "default", "default"),
)


def misuses(read: Read, spec: Spec) -> Iterator[Misuse]:
    """Everything among the settings that does not go with a mixture of this string."""
    for key, wrong, how, right in _ORDER:
        value = read(key)
        if wrong(value) and not (key == "split_dataset_ratio" and read("val_dataset")):
            found = f"'{key}' is {json.dumps(value, default=str)}, which {how}"
            remedy = f"write '{key}: {right}'" if right else f"leave out '{key}'"
            yield Misuse("tell-order", key, found, remedy)
    if read("rlhf_type"):
        remedy = f"train with `swift sft`; or {_WRITE}"
        yield Misuse("tell-order", "dataset", PREFERENCES, remedy)
    for key, wrong, good in _LOSS if read("loss_type") == LOSS_TYPE else ():
        if wrong(read(key)):
            found = f"'loss_type: {LOSS_TYPE}' does not go with '{key}'"
            remedy = f"write '{key}: {good}', or leave out loss_type"
            yield Misuse("tell-loss", key, found, remedy)
    if spec.kl:
        yield from _held(read, spec.kl)


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
    for key, given in spread.items():
        if given:
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
        raise UserError(
            f"{len(ours)} TELL data sets among {len(entries)} under '{key}'",
            where=key,
            allowed="one TELL data set alone",
            remedy=ONE_ALONE,
        )
