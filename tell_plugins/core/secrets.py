"""Which keys hold a secret, told by the kind of their name: for recipes, flags and logs alike."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

HIDDEN = "***"
_SECRET = re.compile(r"(^|[_-])(token|secret|key|password|webhook)([_-]url)?$", re.IGNORECASE)
_OPEN = ("vera_projection_prng_key", "reft_layer_key")  # settings of ms-swift that lock nothing


def is_secret(name: str) -> bool:
    """Whether what stands under this name is a secret."""
    return name not in _OPEN and _SECRET.search(name) is not None


def secret_keys(values: Mapping[str, Any]) -> Iterator[str]:
    """The names that hold a secret, those inside of mappings (`ENV`) as `outer.inner`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from (f"{name}.{inner}" for inner in secret_keys(value))
        elif value and is_secret(str(name)):
            yield str(name)


def hide_secrets(text: str, argv: Sequence[str]) -> str:
    """`text`, which tells of the command line `argv`, without the values of its secrets."""
    for place, part in enumerate(argv):
        name, equals, value = part.partition("=")
        if name.startswith("--") and is_secret(name.lstrip("-")):
            value = value if equals else "".join(argv[place + 1 : place + 2])
            text = text.replace(value, HIDDEN) if value else text
    return text
