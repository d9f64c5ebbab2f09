"""The one place that knows ms-swift (4.0.4 and 4.6): loader, callback, engine, Qwen fix, keys.

Nothing here trains: ms-swift does. `tell_plugins/register.py` calls `register` when a recipe's
`external_plugins` is imported. The sub-modules import ms-swift; this one does so on `register`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from tell_plugins.core.cards import card_names, load_card
from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.core.spec import PREFIX, is_tell, parse_spec

_PLUGIN = Path(__file__).resolve().parents[1] / "register.py"


def register() -> None:
    """Register every card with ms-swift, the callback with the trainer, and the Qwen fix."""
    _install_excepthook()
    _check_arguments()
    from transformers import trainer

    from tell_plugins.bridge.callback import TellCallback
    from tell_plugins.bridge.mixed_use import refuse_mixed_use
    from tell_plugins.bridge.qwen import let_qwen_generate
    from tell_plugins.bridge.templates import bring_anchors, let_channel_rows_be_answered

    _register_cards()
    _let_others_be_called_register()
    if TellCallback not in trainer.DEFAULT_CALLBACKS:
        trainer.DEFAULT_CALLBACKS.append(TellCallback)  # type: ignore[arg-type]
    refuse_mixed_use()
    let_qwen_generate()
    let_channel_rows_be_answered()
    bring_anchors()


def _register_cards() -> None:
    """Make every card's `tell/<name>` known to ms-swift."""
    from swift.dataset import DATASET_MAPPING, DatasetMeta, dataset_syntax, register_dataset

    from tell_plugins.bridge.loader import TellLoader

    names = [f"{PREFIX}{name}" for name in card_names()]
    if all((name, name, None) in DATASET_MAPPING for name in names):
        return
    for name in names:
        meta = DatasetMeta(ms_dataset_id=name, hf_dataset_id=name, loader=TellLoader)
        register_dataset(meta, exist_ok=True)
    dataset_syntax._dataset_meta_mapping = None  # what ms-swift made of the table before
    _leave_foreign_ids()


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


def _check_arguments() -> None:
    """Let ms-swift's arguments refuse a wrong dataset string, before a model is loaded.

    They come from the command line, from `--config` or from a notebook. ms-swift calls this method
    after it has imported the plugins, those of the first arguments as well.
    """
    from swift.arguments import BaseArguments

    original = BaseArguments._init_model_kwargs
    if getattr(original, "_tell", False):
        return

    def checked(self: Any) -> None:
        for key in ("dataset", "val_dataset"):
            if isinstance(getattr(self, key, None), str):  # from Python, one may stand alone
                setattr(self, key, [getattr(self, key)])
            for text in getattr(self, key, None) or []:
                if is_tell(text):
                    load_card(parse_spec(text).card)
        _register_cards()  # a card may be younger than the process
        original(self)

    checked._tell = True  # type: ignore[attr-defined]
    BaseArguments._init_model_kwargs = checked


def _let_others_be_called_register() -> None:
    """Let ms-swift 4.0 import another plugin called `register.py` after ours.

    It imports plugins by their stem, and Python takes a second one of that name for the first.
    """
    from swift.arguments.base_args import base_args

    original = base_args.import_external_file
    if getattr(original, "_tell", False):
        return

    def import_external_file(path: str) -> Any:
        known = sys.modules.get(_PLUGIN.stem)
        is_ours = getattr(known, "__file__", None) == str(_PLUGIN)
        if is_ours and Path(path).expanduser().resolve() != _PLUGIN:
            del sys.modules[_PLUGIN.stem]
        return original(path)

    import_external_file._tell = True  # type: ignore[attr-defined]
    base_args.import_external_file = import_external_file


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
