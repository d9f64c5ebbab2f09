"""Uses of ms-swift that do not go with a TELL mixture, refused before a model is loaded.

Its rows come in one order, each with one right answer, and manifest and anchor belong to them. What
mixes in other rows, reorders them, or takes them elsewhere would lose that without a word, or stop
with an error of pyarrow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tell_plugins.core.errors import UserError, raise_all
from tell_plugins.core.spec import is_tell

# key -> what it does to a mixture
REORDERS = {
    "packing": "and puts rows together by length, so the mixture's order is lost",
    "group_by_length": "and sorts rows by length, so the mixture's order is lost",
    "streaming": "and does not go with a TELL mixture; its rows stay on disk anyway",
}
# samplers of transformers 5 that bring an order of their own
SAMPLERS = ("group_by_length", "batch_rebalance")
INTERLEAVED = "is for several data sets, from which it draws in an order of its own"
CACHED = "'cached_dataset' brings rows of other data sets"
PREFERENCES = "`swift rlhf` needs rows with a rejected answer or a reward, and TELL rows have none"


def refuse_mixed_use() -> None:
    """Let ms-swift's commands refuse, as soon as they have read their arguments."""
    from swift.arguments.base_args.data_args import DataArguments

    original = DataArguments.__post_init__
    if getattr(original, "_tell", False):
        return

    def post_init(self: Any) -> None:
        original(self)
        raise_all(list(problems(self)))

    post_init._tell = True  # type: ignore[attr-defined]
    DataArguments.__post_init__ = post_init


def problems(args: Any) -> Iterator[UserError]:
    """What of ms-swift's arguments does not go with the TELL data set among them."""
    trained = [str(entry) for entry in args.dataset]
    validated = [str(entry) for entry in args.val_dataset]
    yield from _mixed("dataset", [*trained, *args.cached_dataset])
    yield from _mixed("val_dataset", validated)
    if not any(map(is_tell, trained)):
        return
    for key, reason in REORDERS.items():
        if getattr(args, key, False):
            yield UserError(f"'{key}' is true {reason}", where=key, remedy=f"{key}: false")
    sampler = getattr(args, "train_sampling_strategy", None)
    if sampler in SAMPLERS:
        where = "train_sampling_strategy"
        yield UserError(
            f"'{sampler}' orders the rows anew", where=where, remedy=f"leave out {where}"
        )
    if args.interleave_prob is not None:
        yield UserError(
            f"'interleave_prob' {INTERLEAVED}",
            where="interleave_prob",
            remedy="leave it out; a mixture's shares are set by task=... and general=...",
        )
    if getattr(args, "rlhf_type", None):
        yield UserError(
            PREFERENCES,
            where="dataset",
            remedy="train with `swift sft`; or `./run.sh mix RECIPE --out DIR` writes the rows, to "
            "which you add what the method needs",
        )
    if getattr(args, "to_cached_dataset", False):
        yield UserError(
            "a cached data set keeps neither the mixture's manifest nor its anchor, and a training "
            "on it would not know which rows are task rows",
            where="to_cached_dataset",
            remedy="train on the recipe itself: a mixture is built once and then read from the "
            "cache; `./run.sh mix RECIPE --out DIR` writes it with its manifest",
        )


def _mixed(key: str, entries: list[str]) -> Iterator[UserError]:
    ours = [entry for entry in entries if is_tell(entry)]
    if ours and len(entries) > 1:
        yield UserError(
            f"{len(ours)} TELL data sets among {len(entries)} under '{key}'",
            where=key,
            allowed="one TELL data set alone",
            remedy="keep one; write a card for other general data, and name it with from=a+b",
        )
