"""`python -m tell_plugins.bridge.swift_cli VERB ...`: ms-swift's command line, started sooner.

ms-swift's own `swift.cli.main` (4.0.4 and 4.6) only turns its arguments into one more process, but
to import it loads torch and transformers, which then stay in memory as long as that process runs.
Here the same code runs with stand-ins for the two packages of which it needs next to nothing.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from tell_plugins.core.shown import hide_secrets

_MAIN = "swift.cli.main"


def command(*arguments: str) -> list[str]:
    """`swift ARGUMENTS` with this Python, to be run in the project's folder."""
    return [sys.executable, "-m", __name__, *arguments]


def load_main() -> ModuleType:
    """`swift.cli.main` without the packages above it; as it is where it asks more of them."""
    try:
        sys.modules.update(_stand_ins())
        return importlib.import_module(_MAIN)
    except (ImportError, AttributeError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "swift"]:
            del sys.modules[name]
        return importlib.import_module(_MAIN)


def _stand_ins() -> dict[str, ModuleType]:
    found = find_spec("swift")
    if found is None:
        raise ImportError("ms-swift is not installed")
    package = ModuleType("swift")
    package.__path__ = list(found.submodule_search_locations or [])
    package.__spec__ = found
    utils = ModuleType("swift.utils")
    utils.__dict__["get_logger"] = logging.getLogger
    return {"swift": package, "swift.utils": utils}


def _say_without_secrets(*values: object, **options: Any) -> None:
    """What ms-swift says of itself, its whole command line among it, where its log is asked for."""
    if os.environ.get("LOG_LEVEL", "INFO").upper() in {"INFO", "DEBUG"}:
        print(*(hide_secrets(str(value), sys.argv) for value in values), **options)


if __name__ == "__main__":
    main = load_main()
    main.__dict__["print"] = _say_without_secrets
    main.cli_main()
