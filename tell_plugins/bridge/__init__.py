"""The one place that knows ms-swift (4.0.4 and 4.6): loader, callback, engine, Qwen fix, keys.

Nothing here trains: ms-swift does. `tell_plugins/register.py` calls `register` when a recipe's
`external_plugins` is imported. The sub-modules import ms-swift; this one does so on `register`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import TracebackType

from tell_plugins.core.cards import card_names, load_card
from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.core.spec import PREFIX, is_tell, parse_spec


def register() -> None:
    """Register every card with ms-swift, the callback with the trainer, and the Qwen fix."""
    _install_excepthook()
    _check_arguments(sys.argv)
    from swift.dataset import DatasetMeta, register_dataset
    from transformers import trainer

    from tell_plugins.bridge.callback import TellCallback
    from tell_plugins.bridge.loader import TellLoader
    from tell_plugins.bridge.mixed_use import refuse_mixed_use
    from tell_plugins.bridge.qwen import let_qwen_generate
    from tell_plugins.bridge.templates import bring_anchors, let_channel_rows_be_answered

    for name in card_names():
        dataset_id = f"{PREFIX}{name}"
        meta = DatasetMeta(ms_dataset_id=dataset_id, hf_dataset_id=dataset_id, loader=TellLoader)
        register_dataset(meta, exist_ok=True)
    _leave_foreign_ids()
    if TellCallback not in trainer.DEFAULT_CALLBACKS:
        trainer.DEFAULT_CALLBACKS.append(TellCallback)  # type: ignore[arg-type]
    refuse_mixed_use()
    let_qwen_generate()
    let_channel_rows_be_answered()
    bring_anchors()


def _leave_foreign_ids() -> None:
    """Put our ids first in ms-swift's table.

    An id that it does not know (`openai/gsm8k`, `/data/gsm8k`) it takes for the last one in the
    table that ends alike, with its subsets: that must go on being its own, not ours.
    """
    from swift.dataset import DATASET_MAPPING

    from tell_plugins.bridge.loader import TellLoader

    foreign = [key for key, meta in DATASET_MAPPING.items() if meta.loader is not TellLoader]
    for key in foreign:
        DATASET_MAPPING[key] = DATASET_MAPPING.pop(key)


def _check_arguments(argv: list[str]) -> None:
    """Refuse a wrong dataset string before a model is loaded, not after."""
    for text in _datasets(argv):
        if is_tell(text):
            load_card(parse_spec(text).card)


def _datasets(argv: list[str]) -> Iterator[str]:
    """The values of `--dataset` and `--val_dataset`; others may begin with `tell/` too."""
    option = ""
    for part in argv:
        value = part
        if part.startswith("--"):
            option, _, value = part.partition("=")
        if option in ("--dataset", "--val_dataset"):
            yield value


def _install_excepthook() -> None:
    """Show a user's mistake, or the machine's, as one message; else the traceback stays.

    The process ends with 2 after a fault of the machine; with 1 after all others, ms-swift's own
    among them, as Python does.
    """
    previous = sys.excepthook
    if getattr(previous, "_tell", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, (UserError, MachineError)) and not os.environ.get("TELL_DEBUG"):
            print(f"\n{error}", file=sys.stderr)
        else:
            previous(kind, error, trace)
        if isinstance(error, MachineError):
            raise SystemExit(2)  # from a hook this sets the exit code

    hook._tell = True  # type: ignore[attr-defined]
    sys.excepthook = hook
