"""The one place that knows ms-swift (4.0.4 and 4.6): loader, callback, templates, loss, engines.

Nothing here trains: ms-swift does. The sub-modules import it; this one does so on `register`.
What happens in a run, in this order:

1. ms-swift imports a recipe's `external_plugins`, `tell_plugins/register.py`, which calls
   `register` here and `register_loss` (loss).
2. ms-swift asks for `tell/<card>`; `TellLoader` (loader) builds the mixture and hands its rows on.
   What was loaded is remembered in `trained_on`.
3. The trainer begins: `TellCallback` (callback) compares its rows with the mixture.
4. In each step the loss (loss) knows by the `channel` of a row whether it teaches or holds the base
   model, and by `trained_on` how firmly.
5. With each checkpoint the callback writes manifest and anchor (`core/manifest.py`).
6. Whoever loads such a folder gets the anchor in front of each query (templates).
"""

from __future__ import annotations

import os
import sys
from typing import Any

from tell_plugins.core.cards import card_names
from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.core.spec import PREFIX


def register() -> None:
    """Register every card with ms-swift, the callback with the trainer, and the patches."""
    from swift.arguments import BaseArguments
    from transformers import trainer

    from tell_plugins.bridge import patches
    from tell_plugins.bridge.callback import TellCallback
    from tell_plugins.bridge.templates import bring_anchors

    patches.patch(sys, "excepthook", _show)
    # ms-swift calls it after it has imported the plugins, those of the first arguments as well
    patches.patch(BaseArguments, "_init_model_kwargs", _check_arguments)
    _register_cards()
    if TellCallback not in trainer.DEFAULT_CALLBACKS:
        trainer.DEFAULT_CALLBACKS.append(TellCallback)  # type: ignore[arg-type]
    patches.let_qwen_generate()
    patches.let_channel_rows_be_answered()
    bring_anchors()


def _register_cards() -> None:
    """Make every card's `tell/<name>` known to ms-swift, first in its table.

    An id that it does not know (`openai/gsm8k`, `/data/gsm8k`) it takes for the last one in the
    table that ends alike, with its subsets: that must go on being its own, not ours.
    """
    from swift.dataset import DATASET_MAPPING, DatasetMeta, dataset_syntax, register_dataset

    from tell_plugins.bridge.loader import TellLoader

    names = [f"{PREFIX}{name}" for name in card_names()]
    if all((name, name, None) in DATASET_MAPPING for name in names):
        return
    for name in names:
        meta = DatasetMeta(ms_dataset_id=name, hf_dataset_id=name, loader=TellLoader)
        register_dataset(meta, exist_ok=True)
    dataset_syntax._dataset_meta_mapping = None  # what ms-swift made of the table before
    foreign = [key for key, meta in DATASET_MAPPING.items() if meta.loader is not TellLoader]
    for key in foreign:
        DATASET_MAPPING[key] = DATASET_MAPPING.pop(key)


def _check_arguments(original: Any, args: Any) -> None:
    """Let ms-swift's commands refuse wrong dataset strings and settings, before a model is loaded.

    They come from the command line, from `--config` or from a notebook.
    """
    from swift.arguments import SftArguments

    from tell_plugins.bridge.loader import forget_mixtures
    from tell_plugins.bridge.mixed_use import refuse_arguments

    refuse_arguments(args)
    _register_cards()  # a card may be younger than the process
    if isinstance(args, SftArguments):
        forget_mixtures()  # of a training that was stopped: a notebook begins another
    original(args)


def _show(original: Any, kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Show a user's mistake, or the machine's, as one message; else the traceback stays.

    The process ends with 2 after a fault of the machine; with 1 after all others, ms-swift's own
    among them, as Python does.
    """
    if isinstance(error, (UserError, MachineError)) and not os.environ.get("TELL_DEBUG"):
        print(f"\n{error}", file=sys.stderr)
    else:
        original(kind, error, trace)
    if isinstance(error, MachineError):
        raise SystemExit(2)  # from a hook this sets the exit code
