"""How a process of ms-swift ends when something of ours goes wrong inside it."""

import sys

import pytest

from tests.conftest import printed_by

_RAISE = """
import sys
from tell_plugins.bridge import _show
from tell_plugins.bridge.patches import patch
from tell_plugins.core.errors import MachineError, UserError
patch(sys, "excepthook", _show)
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
def test_faults_leave_with_their_code(error, code, trace):
    command = [sys.executable, "-c", _RAISE.format(error=error)]
    said = printed_by(*command, code=code)
    assert ("Traceback" in said) == trace
    assert error.split("'")[1] in said
