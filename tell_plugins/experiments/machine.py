"""What this machine has to run on: GPUs, one run each, or the cores of its CPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from tell_plugins.core.errors import UserError


def visible_gpus() -> list[str]:
    """The GPUs that may be used, as `CUDA_VISIBLE_DEVICES` names them; empty without any."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [part.strip() for part in named.split(",") if part.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    result = subprocess.run(
        ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True
    )
    return result.stdout.split() if result.returncode == 0 else []


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Slot:
    """A place for one run at a time."""

    gpu: str | None
    threads: int

    def environment(self) -> dict[str, str]:
        """What a run in this slot sees of the machine."""
        found = {} if self.gpu is None else {"CUDA_VISIBLE_DEVICES": self.gpu}
        if self.gpu is None and "OMP_NUM_THREADS" not in os.environ:
            # as many threads as there are cores in each of several runs would slow all of them
            found["OMP_NUM_THREADS"] = str(self.threads)
        return found


def slots(jobs: int | None, *, needs_gpu: bool) -> list[Slot]:
    """The slots for `jobs` runs at once (default: one a GPU, else one).

    Raises UserError for more jobs than GPUs: two runs on one GPU would share its memory.
    """
    gpus = visible_gpus() if needs_gpu else []
    if gpus:
        wanted = jobs or len(gpus)
        if wanted > len(gpus):
            raise UserError(
                f"{wanted} runs at once and {len(gpus)} GPUs",
                where="--jobs",
                allowed=f"1 to {len(gpus)}: a run has a GPU to itself",
                remedy=f"--jobs {len(gpus)}",
            )
        return [Slot(gpu, 1) for gpu in gpus[:wanted]]
    count = jobs or 1
    return [Slot(None, max(1, cores() // count)) for _ in range(count)]
