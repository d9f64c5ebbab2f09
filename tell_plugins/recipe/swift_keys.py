"""The keys and models that the installed ms-swift knows, without importing it each time.

The answer of the pinned version comes along, and stands for it where ms-swift is not installed.
Any other version is asked by one subprocess, since ms-swift takes seconds to import, and its answer
is kept in the cache, by the versions that make it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.errors import MachineError
from tell_plugins.core.state_files import Shape, cached_json, read_text

# of the pinned version:
#   python -m tell_plugins.bridge.keys | xz -9 > tell_plugins/bridge/keys.json.xz
_TABLE = Path(__file__).parents[1] / "bridge" / "keys.json"


class ModelTable(Shape):
    """ms-swift's tables of models."""

    # model type -> its `template` (None: several), `templates`, `architectures`, `layers`
    types: dict[str, dict[str, Any]]
    names: dict[str, list[Any]]  # last part of a hub's id, in lower case -> type and template
    templates: list[str]
    hybrid: list[str]  # templates of models that answer with a think block or without

    def known(self, model: str) -> list[str] | None:
        """Type and template of a model that ms-swift knows by its name, folder or hub id."""
        cached = re.search(r"/models--.+?--(.+?)/snapshots/", model)
        name = cached[1] if cached else model.rstrip("/").rsplit("/", 1)[-1].replace("___", ".")
        return self.names.get(name.lower())

    def types_of(self, architecture: str | None) -> list[str]:
        """The types that ms-swift takes into account for an architecture of a config.json."""
        known = {kind: entry["architectures"] for kind, entry in self.types.items()}
        return [k for k, v in known.items() if (architecture in v if architecture else not v)]


class SwiftKeys(Shape):
    """What `swift sft` accepts."""

    version: str
    made_by: dict[str, str]  # the versions of the packages that decide it
    keys: dict[str, dict[str, Any]]  # key -> its `default`, `choices` and `type` (a plain name)
    models: ModelTable
    installed: bool = True  # whether the ms-swift of this environment said so

    def default(self, key: str) -> Any:
        return self.keys.get(key, {}).get("default")

    def kind(self, key: str) -> str:
        """The name of the type that a key has."""
        return str(self.keys.get(key, {}).get("type"))

    @property
    def takes_yaml_first(self) -> bool:
        """4.1 and later: `swift sft recipe.yaml`; before: `swift sft --config recipe.yaml`."""
        return [int(part) for part in re.findall(r"\d+", self.version)[:2]] >= [4, 1]


def installed_version() -> str:
    """The installed ms-swift's version. MachineError when there is none."""
    version = _version("ms-swift")
    if version is None:
        raise MachineError("ms-swift is not installed here", remedy=paths.needs("train"))
    return version


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def swift_keys() -> SwiftKeys:
    """The installed ms-swift's keys, or those that come along where none is installed.

    MachineError when ms-swift cannot be asked.
    """
    shipped = _shipped()
    versions = {name: _version(name) for name in shipped.made_by}
    if versions["ms-swift"] is None:
        return shipped_keys()
    if versions == shipped.made_by:
        return shipped
    name = "-".join(map(str, versions.values()))
    path = paths.cache_dir() / "swift_keys" / f"{name}.json"
    stored = cached_json(path, SwiftKeys)
    if stored is None:
        stored = _ask()
        paths.write_text(path, json.dumps(stored))
    return SwiftKeys(**stored)


def shipped_keys() -> SwiftKeys:
    """What the pinned ms-swift accepts, by the table that comes along."""
    return _shipped().model_copy(update={"installed": False})


@lru_cache(maxsize=1)  # a plan of many runs asks again and again
def _shipped() -> SwiftKeys:
    return SwiftKeys(**json.loads(read_text(_TABLE) or ""))


def _ask() -> dict[str, Any]:
    print("asking ms-swift which settings it knows (once, about 10 s) ...", file=sys.stderr)
    command = [sys.executable, "-m", "tell_plugins.bridge.keys"]
    folder, env = paths.PROJECT, project_environment()
    result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    with contextlib.suppress(json.JSONDecodeError):
        if result.returncode == 0:
            answer: dict[str, Any] = json.loads(result.stdout.strip().rpartition("\n")[2])
            return answer
    said = "\n".join((result.stderr or result.stdout).strip().splitlines()[-12:])
    again = f"remove {Path(sys.prefix).name}, then ./run.sh setup"  # a package of it is broken
    raise MachineError(
        f"ms-swift could not tell which settings it knows (exit code {result.returncode}):\n{said}",
        remedy=again if paths.IS_CHECKOUT else paths.needs("train"),
    )


def project_environment() -> dict[str, str]:
    """The environment of a subprocess that must find this project's package."""
    if not paths.IS_CHECKOUT:
        return dict(os.environ)  # it is installed
    before = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    root = [] if str(paths.PROJECT) in before else [str(paths.PROJECT)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(before + root)}
