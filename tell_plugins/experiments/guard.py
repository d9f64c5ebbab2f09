"""Ends what works for runs when whoever started it has gone, however it went.

    python -m tell_plugins.experiments.guard FOLDER < pipe

Everything that works for a run carries the run's folder in its environment, and so does what it
starts in turn, whatever process group that puts itself into. The guard of a folder waits until its
standard input closes, because the sweep has ended or was killed, and kills what works for the runs
in it. It does so before it says that it is ready, too, for a guard that was killed itself; and a
lock keeps two guards, and so two sweeps, apart. It starts fast: it imports little.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from tell_plugins.core import paths
from tell_plugins.core.errors import MachineError

if TYPE_CHECKING:
    import psutil

MARK = "TELL_SWEEP_RUN"  # in the environment of everything that works for a run


@contextlib.contextmanager
def guarded(
    folder: Path, environment: Mapping[str, str], front: Sequence[str] = ()
) -> Iterator[None]:
    """No work for the runs in `folder` outlives this block, nor this process. `front` starts the
    guard, which then need not be a child of this process."""
    with subprocess.Popen(
        [*front, sys.executable, "-m", __name__, str(folder)],
        cwd=paths.PROJECT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C does not reach it
    ) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            found = "the process that ends what a killed sweep leaves behind did not start"
            raise MachineError(found, remedy="free some memory, and start the sweep again")
        yield


def end_work_in(folder: Path) -> int:
    """Kill every process that works for the run or the runs in `folder`; how many."""
    import psutil

    killed = 0
    while found := processes_in(folder):
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        killed += len(found)
        time.sleep(0.1)
    return killed


def processes_in(folder: Path) -> list[psutil.Process]:
    """What works for the run or the runs in `folder`."""
    import psutil

    found = []
    for process in psutil.process_iter():
        # one that ended, is a zombie, or belongs to another user does not say it
        with contextlib.suppress(psutil.Error, OSError):
            mark = process.environ().get(MARK, "")
            if f"{mark}{os.sep}".startswith(f"{folder}{os.sep}") and process.is_running():
                found.append(process)
    return found


def main(folder: Path) -> None:
    with FileLock(folder / ".lock"):
        end_work_in(folder)
        print("ready", flush=True)
        sys.stdin.read()
        end_work_in(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
