"""ms-swift's command line without the packages above it: the same command, sooner."""

import json
import os
import subprocess
import sys

import pytest

from tell_plugins.bridge import swift_cli
from tell_plugins.core.paths import PROJECT
from tests.conftest import printed_by

CASES: list[tuple[list[str], dict[str, str]]] = [
    (["sft", "--config", "recipes/smollm2_json.yaml", "--seed", "7"], {}),
    (["deploy", "--adapters", "a", "b"], {}),
    (["sft", "--model", "m"], {"NPROC_PER_NODE": "2"}),
]
# what the command line would start in each case, instead of starting it; whether torch was loaded
_SHOW = """
import json, os, subprocess, sys
from types import SimpleNamespace
{load}
shown = []
subprocess.run = lambda command: shown.append(command) or SimpleNamespace(returncode=0)
for arguments, environment in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    os.environ.update(environment)
    main.cli_main()
print(json.dumps([shown, "torch" in sys.modules]))
"""
_OURS = "from tell_plugins.bridge.swift_cli import load_main; main = load_main()"
_THEIRS = "import swift.cli.main as main"


def _shown(load: str) -> tuple[list[list[str]], bool]:
    command = [sys.executable, "-c", _SHOW.format(load=load), json.dumps(CASES)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown, torch = json.loads(done.stdout.splitlines()[-1])
    return shown, torch


@pytest.mark.slow
def test_it_starts_what_ms_swift_starts():
    (ours, torch_of_ours), (theirs, torch_of_theirs) = _shown(_OURS), _shown(_THEIRS)
    assert ours == theirs
    assert len(ours) == len(CASES)
    assert (torch_of_ours, torch_of_theirs) == (False, True)


@pytest.mark.usefixtures("ordinary_python")
def test_a_command_line_that_asks_for_more_runs_as_it_is(tmp_path):
    package = tmp_path / "swift"
    (package / "cli").mkdir(parents=True)
    (package / "__init__.py").write_text("whole = True\n")
    (package / "utils.py").write_text("def get_logger(): ...\ndef newer(): ...\n")
    (package / "cli" / "__init__.py").write_text("")
    (package / "cli" / "main.py").write_text(
        "from swift.utils import get_logger, newer\nimport swift\n"
        "def cli_main(): print('whole:', swift.whole)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "LOG_LEVEL": "INFO"}
    assert printed_by(*swift_cli.command("sft"), env=env) == "whole: True\n"
