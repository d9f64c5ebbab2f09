"""A served adapter brings its anchor along: nobody has to paste it.

`swift infer`, `swift deploy` and `swift app` read `external_plugins` from the adapter's `args.json`
and so call `register`. From then on the template they build for an adapter with an `anchor.txt`
(see `callback`) puts that anchor in front of every user turn, as in training, where every task
query has it; trained on conversations, in front of the first turn alone, which the manifest beside
the anchor says. A turn that begins with the anchor already is left alone, so rows of a TELL data
set, prompts of `./run.sh eval` and pasted anchors are never given it twice. Training, `swift eval`
and adapters trained with `anchor=none` get nothing.

Where no file says what the anchor was, that is a warning. `$TELL_ANCHOR` overrides: `none` for no
anchor, or the checkpoint whose anchor to use.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from swift.arguments import InferArguments
from swift.utils import get_logger

from tell_plugins.bridge.patches import patch
from tell_plugins.core import paths
from tell_plugins.core.anchors import in_front
from tell_plugins.core.errors import UserError
from tell_plugins.core.manifest import ANCHOR, MANIFEST, Manifest
from tell_plugins.core.state_files import read_json

logger = get_logger()
VARIABLE = "TELL_ANCHOR"
_SERVING = ("InferArguments", "DeployArguments", "AppArguments")
_EVAL = ("swift", "cli", "eval.py")


class Front(NamedTuple):
    """What is put in front of queries.

    Attributes:
        text: anchor and separator, "" for none.
        first_alone: whether only the first user turn of a conversation has it.
    """

    text: str = ""
    first_alone: bool = False


def bring_anchors() -> None:
    """Let ms-swift's serving commands anchor the template of an adapter trained with an anchor."""

    def get_template(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        template = original(self, *args, **kwargs)
        return _served(template, _folders(self)) if _serves(self) else template

    patch(InferArguments, "get_template", get_template)


def _served(template: Any, folders: list[Path]) -> Any:
    """The template, anchored for the adapters in these folders; says what it does."""
    front = serving_front(folders)
    if front.text:
        which = "the first" if front.first_alone else "every"
        logger.info(
            f"TELL: an anchor of {len(front.text)} characters goes in front of {which} user "
            f"turn that lacks it ({VARIABLE}=none omits it)"
        )
        return anchor_template(template, front)
    # an empty file tells that training had none
    if not os.environ.get(VARIABLE) and not any((folder / ANCHOR).is_file() for folder in folders):
        logger.warning(
            f"TELL: no {ANCHOR} in {', '.join(map(paths.shown, folders))}: queries get no anchor. "
            f"{VARIABLE}=DIR names the checkpoint whose anchor to use, {VARIABLE}=none says that "
            "there is none"
        )
    return template


def _serves(args: Any) -> bool:
    """Whether these arguments answer users; `swift eval` deploys too, but measures the model."""
    return type(args).__name__ in _SERVING and Path(sys.argv[0]).parts[-3:] != _EVAL


def _folders(args: Any) -> list[Path]:
    """The adapters that ms-swift will load, those served under a name of their own included; of
    none, the model itself, in whose folder full tuning and `export` leave the anchor.

    `swift export --merge_lora` leaves none in `DIR-merged`, beside the adapter `DIR` that has it.
    """
    named = getattr(args, "adapter_mapping", None) or {}
    adapters = [*(args.adapters or []), *named.values()]
    found = [Path(folder) for folder in adapters or [args.model] if folder]
    merged = [folder.with_name(folder.name.removesuffix("-merged")) for folder in found]
    return [
        folder if (folder / ANCHOR).is_file() or not (other / ANCHOR).is_file() else other
        for folder, other in zip(found, merged, strict=True)
    ]


def serving_front(adapters: Iterable[Path]) -> Front:
    """What is put in front of a query for these adapter folders.

    Raises UserError when their anchors differ, since all share one template, or when
    `$TELL_ANCHOR` names nothing.
    """
    named = os.environ.get(VARIABLE)
    if named == "none":
        return Front()
    folders = [paths.user_path(named)] if named else list(adapters)
    if named and not (folders[0] / ANCHOR).is_file():
        raise UserError(
            f"no {ANCHOR} in '{named}'",
            where=f"${VARIABLE}",
            remedy="name the folder of a checkpoint, or none; unset, the adapter's own is used",
        )
    fronts = {read_front(folder) for folder in folders}
    if len(fronts) > 1:
        raise UserError(
            "the adapters were not trained with the same anchor, or some on conversations, where "
            f"the first turn alone has it ({', '.join(map(paths.shown, folders))})",
            where="--adapters",
            remedy=f"serve them one by one, or with {VARIABLE}=none and the anchors in the queries",
        )
    return fronts.pop() if fronts else Front()


def read_front(folder: Path) -> Front:
    """What stood before queries in an adapter's training; nothing for an adapter not of TELL.

    Raises UserError where the manifest beside the anchor cannot be read.
    """
    path = folder / ANCHOR
    text = path.read_bytes().decode("utf-8") if path.is_file() else ""
    if not text:
        return Front()
    remedy = f"restore the file, or remove it: then every user turn gets the anchor of {ANCHOR}"
    manifest = read_json(folder / MANIFEST, Manifest, remedy) or {}
    return Front(in_front(text), (manifest.get("anchor") or {}).get("turn") == "first")


def anchor_template(template: Any, front: Front) -> Any:
    """Let an ms-swift template put `front` before the user turns that do not begin with it.

    Works on the template in place and returns it; prompts and token ids then equal those of
    training, since the text is joined before it is tokenised.
    """
    kind: type = type(template)
    template.__class__ = _anchored(kind)
    template.tell_front = front
    return template


@cache
def _anchored(kind: type) -> type:
    """`kind` with the anchor in the one place that both of ms-swift's template backends pass."""

    def _swift_prepare_inputs(self: Any, inputs: Any) -> None:
        kind._swift_prepare_inputs(self, inputs)  # type: ignore[attr-defined]
        text, first_alone = self.tell_front
        turns = [message for message in inputs.messages if message["role"] == "user"]
        for message in turns[:1] if first_alone else turns:
            query = message["content"]
            if isinstance(query, str) and not query.lstrip().startswith(text.strip()):
                message["content"] = text + query

    body = {"_swift_prepare_inputs": _swift_prepare_inputs, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), body)
