"""How a process of ms-swift ends when something of ours goes wrong inside it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import PROJECT

_RAISE = """
from tell_plugins.bridge import _install_excepthook
from tell_plugins.core.errors import MachineError, UserError
_install_excepthook()
raise {error}
"""


@pytest.mark.parametrize(
    ("error", "code", "trace"),
    [
        ("UserError('typo')", 1, False),
        ("MachineError('no space')", 2, False),
        ("ValueError('oops')", 1, True),
    ],
)
def test_faults_leave_with_their_code(error: str, code: int, trace: bool) -> None:
    command = [sys.executable, "-c", _RAISE.format(error=error)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert ("Traceback" in done.stderr) == trace
    assert error.split("'")[1] in done.stderr
