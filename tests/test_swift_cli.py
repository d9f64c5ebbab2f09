"""ms-swift's command line without the packages above it: the same command, sooner."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tell_plugins.bridge import swift_cli
from tell_plugins.core.paths import PROJECT

# what the command line would start, instead of starting it; then whether torch was loaded
_SHOW = """
import subprocess, sys
from types import SimpleNamespace
{load}
def show(command):
    print("COMMAND", command)
    return SimpleNamespace(returncode=0)
subprocess.run = show
main.cli_main()
print("TORCH", "torch" in sys.modules)
"""
_OURS = "from tell_plugins.bridge.swift_cli import load_main; main = load_main()"
_THEIRS = "import swift.cli.main as main"


def _shown(load: str, *arguments: str, **env: str) -> tuple[list[str], str]:
    done = subprocess.run(
        [sys.executable, "-c", _SHOW.format(load=load), *arguments],
        cwd=PROJECT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    return ast.literal_eval(lines["COMMAND"]), lines["TORCH"]


@pytest.mark.parametrize(
    ("arguments", "env"),
    [
        (("sft", "--config", "recipes/smollm2_json.yaml", "--seed", "7"), {}),
        (("deploy", "--adapters", "a", "b"), {}),
        (("sft", "--model", "m"), {"NPROC_PER_NODE": "2"}),
    ],
)
def test_it_starts_what_ms_swift_starts(arguments: tuple[str, ...], env: dict[str, str]) -> None:
    ours, torch_of_ours = _shown(_OURS, *arguments, **env)
    theirs, torch_of_theirs = _shown(_THEIRS, *arguments, **env)
    assert ours == theirs
    assert (torch_of_ours, torch_of_theirs) == ("False", "True")


@pytest.mark.usefixtures("ordinary_python")
def test_a_command_line_that_asks_for_more_runs_as_it_is(tmp_path: Path) -> None:
    package = tmp_path / "swift"
    (package / "cli").mkdir(parents=True)
    (package / "__init__.py").write_text("whole = True\n")
    (package / "utils.py").write_text("def get_logger(): ...\ndef newer(): ...\n")
    (package / "cli" / "__init__.py").write_text("")
    (package / "cli" / "main.py").write_text(
        "from swift.utils import get_logger, newer\nimport swift\n"
        "def cli_main(): print('whole:', swift.whole)\n"
    )
    done = subprocess.run(
        swift_cli.command("sft"),
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "LOG_LEVEL": "INFO"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "whole: True\n", done.stderr
