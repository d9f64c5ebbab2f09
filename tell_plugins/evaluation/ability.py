"""`./run.sh ability`: general ability of an adapter by OpenCompass (Appendix A.5).

The adapter is served by `swift deploy` from this environment, without its anchor, and asked by
`swift eval` from a second one, `.venv-eval`: evalscope and this project's pinned set exclude each
other. Averages are formed as in the paper: the mean over AGIEval's 21 sub-scores, and over
OpenBookQA's two.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tell_plugins.bridge import swift_cli
from tell_plugins.core import paths
from tell_plugins.core.errors import MachineError, UserError, at_least
from tell_plugins.core.progress import tracked
from tell_plugins.core.state_files import write_json
from tell_plugins.evaluation.adapters import Adapter, trained_folder
from tell_plugins.recipe.recipes import as_list, is_whole_model

_OF_AGIEVAL = """
gaokao-chinese gaokao-english gaokao-geography gaokao-history gaokao-biology gaokao-chemistry
gaokao-mathqa logiqa-zh lsat-ar lsat-lr lsat-rc logiqa-en sat-math sat-en sat-en-without-passage
aqua-rat gaokao-physics jec-qa-kd jec-qa-ca gaokao-mathcloze math
"""
AGIEVAL = tuple(f"agieval-{name}" for name in _OF_AGIEVAL.split())
OPENBOOKQA = ("openbookqa", "openbookqa_fact")
# the paper's averages, by its general data (4e6 tokens each)
PAPER = {
    "AGIEval": {"alpaca-en": 43.65, "Open-Platypus": 46.50},
    "OpenBookQA": {"alpaca-en": 75.2, "Open-Platypus": 79.5},
}
RECIPES = ("agieval", "openbookqa")
REQUIREMENTS = paths.SHIPPED / "requirements-eval.txt"
ENVIRONMENT = paths.PROJECT / ".venv-eval"
_STAMP = "requirements.installed"
_LOG_TAIL = 15  # lines of a log that a failure shows
_START_SECONDS = 1800  # a 7B model from a slow disk


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_flags=True)
    add = parser.add_argument
    add("adapter", metavar="ADAPTER_DIR", help="a checkpoint or run folder")
    add("--setup", action="store_true", help="make or update .venv-eval first (about 3 GB)")
    add("--base", action="store_true", help="measure the adapter's base model without it")
    add("--rows", type=at_least(1), help="questions of each kind (default: all)")
    add("--url", help="ask this server instead of starting `swift deploy`")
    add("--model-name", help="the model's name on that server")
    add("--out", help="folder of the results (default: ADAPTER_DIR/ability)")
    parser.epilog = (
        "Further --key value pairs go to `swift deploy`, for example --infer_backend vllm. "
        "A server of your own must not add an anchor: start it with TELL_ANCHOR=none."
    )


def run(args: argparse.Namespace) -> int:
    adapter = trained_folder(args.adapter, "ADAPTER_DIR")
    if args.url and (args.base or args.flags or not args.model_name):
        raise UserError(
            "a server of your own decides itself what it serves",
            where="--url",
            allowed="--url URL --model-name NAME, without --base and flags of `swift deploy`",
            remedy="name the model as the server lists it",
        )
    python = environment(set_up=args.setup)
    name = args.model_name or ("base" if args.base else adapter.name)
    out = paths.user_target(args.out) if args.out else adapter / "ability" / name
    out.mkdir(parents=True, exist_ok=True)
    if args.url:
        scores = _ask(python, args.url, name, args.rows, out)
    else:
        with served(deploy_arguments(adapter, name, base=args.base), args.flags, out) as url:
            scores = _ask(python, url, name, args.rows, out)
    averages = form_averages(scores)
    report = {"model": name, "rows": args.rows, "averages": averages, "scores": scores}
    write_json(out / "ability.json", report)
    print(table(scores, averages))
    print(f"saved {paths.shown(out / 'ability.json')}")
    return 0


def form_averages(scores: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """The averages as the paper forms them, from accuracies in percent by OpenCompass's names: each
    sub-score counts once, whatever its questions; None while some of them are missing."""
    averages = {}
    for data, names in (("AGIEval", AGIEVAL), ("OpenBookQA", OPENBOOKQA)):
        found = [scores[name] for name in names if name in scores]
        value = sum(found) / len(found) if len(found) == len(names) else None
        averages[data] = {"value": value, "found": len(found), "of": len(names)}
    return averages


def table(scores: Mapping[str, float], averages: Mapping[str, Mapping[str, Any]]) -> str:
    """Sub-scores and averages, with the paper's averages beside them."""
    lines = [f"{name:<32} {score:7.2f}" for name, score in scores.items()]
    for name, found in averages.items():
        paper = ", ".join(f"{value:.2f} {data}" for data, value in PAPER[name].items())
        if found["value"] is None:
            lines.append(f"{name}: {found['found']} of {found['of']} sub-scores, no average")
        else:
            lines.append(f"{name + ' average':<32} {found['value']:7.2f}   (paper: {paper})")
    return "\n".join(lines)


def environment(*, set_up: bool) -> Path:
    """The Python of `.venv-eval`, which is first made from `requirements-eval.txt` if asked.

    Raises UserError where it is missing or outdated and not to be made.
    """
    python, stamp = ENVIRONMENT / "bin" / "python", ENVIRONMENT / _STAMP
    if stamp.is_file() and stamp.read_bytes() == REQUIREMENTS.read_bytes():
        return python
    shown, is_there = paths.shown(ENVIRONMENT), python.is_file()
    if not set_up:
        found = f"{shown} {'is outdated' if is_there else 'is missing'}"
        raise UserError(found, where="second environment", remedy="call it once with --setup")
    print("Setting up .venv-eval from requirements-eval.txt (once, minutes) ...", flush=True)
    make = [sys.executable, "-m", "venv", str(ENVIRONMENT)]
    fill = [str(python), "-m", "pip", "install", "-r", str(REQUIREMENTS)]
    for step in [fill] if is_there else [make, fill]:
        if subprocess.run(step, check=False).returncode:
            raise MachineError(
                f"the packages could not be installed into {shown} (see above)",
                remedy="check the network and the disk, then call it again with --setup",
            )
    shutil.copyfile(REQUIREMENTS, stamp)
    return python


def deploy_arguments(adapter: Path, name: str, *, base: bool) -> list[str]:
    """The flags of `swift deploy` for an adapter or a whole model, or for the base model alone.

    Raises UserError when the adapter does not say what its base model is.
    """
    named = ["--served_model_name", name]
    if not base:
        return ["--model" if is_whole_model(adapter) else "--adapters", str(adapter), *named]
    trained = Adapter("", adapter).args
    if not trained:
        raise UserError(
            "no args.json, so nothing says what the base model is",
            where=paths.shown(adapter),
            remedy="serve the base model yourself and name it with --url and --model-name",
        )
    keys = ("model", "model_type", "template", "torch_dtype", "external_plugins", "system")
    values = {key: as_list(trained[key]) for key in keys if trained.get(key)}
    return named + [part for key, value in values.items() for part in (f"--{key}", *value)]


@contextlib.contextmanager
def served(arguments: Sequence[str], flags: Sequence[str], out: Path) -> Iterator[str]:
    """`swift deploy` on this machine without an anchor; gives its address.

    Raises MachineError with the end of its log when it does not come up.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    log, url = out / "deploy.log", f"http://127.0.0.1:{port}/v1"
    command = swift_cli.command("deploy", *arguments)
    command += ["--host", "127.0.0.1", "--port", str(port), "--verbose", "false", *flags]
    environment = {**os.environ, "TELL_ANCHOR": "none"}
    started: Any = {"cwd": paths.PROJECT, "env": environment, "stderr": subprocess.STDOUT}
    with log.open("wb") as sink:  # ms-swift starts a child of its own, so a session
        process = subprocess.Popen(command, stdout=sink, start_new_session=True, **started)
        try:
            _wait_for(url, process, log)
            yield url
        finally:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    import requests

    for _ in tracked(range(_START_SECONDS), "starting swift deploy", "s"):
        if process.poll() is not None:
            break
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"{url}/models", timeout=5).ok:
                return
        time.sleep(1)
    raise _failed("`swift deploy` did not come up", log)


def _ask(python: Path, url: str, name: str, rows: int | None, out: Path) -> dict[str, float]:
    """Run every recipe of `recipes/eval` against the server; accuracies in percent by name.

    In `out`, where OpenCompass leaves its files; the second environment's programs come first.
    """
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["PATH"] = f"{ENVIRONMENT / 'bin'}{os.pathsep}{environment['PATH']}"
    scores: dict[str, float] = {}
    for recipe in RECIPES:
        log = out / f"{recipe}.log"
        print(f"asking {recipe} (log: {paths.shown(log)}) ...", flush=True)
        file = paths.RECIPES / "eval" / f"{recipe}.yaml"
        command = [str(python), "-m", "swift.cli.main", "eval", str(file), "--model", name]
        command += ["--eval_url", url] + (["--eval_limit", str(rows)] if rows else [])
        with log.open("wb") as sink:
            code = subprocess.run(
                command, cwd=out, env=environment, stdout=sink, stderr=subprocess.STDOUT
            ).returncode
        if code:
            raise _failed(f"`swift eval` ended with exit code {code}", log)
        scores |= read_scores(out / "result" / name / "eval_result.jsonl", log)
    return scores


def read_scores(file: Path, log: Path) -> dict[str, float]:
    """The accuracies that the last `swift eval` left, in percent by OpenCompass's names.

    Raises MachineError when it left none.
    """
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else ["{}"]
    found = json.loads(lines[-1]).get("OpenCompass", {})
    scores = {
        name: float(value)
        for name in (*AGIEVAL, *OPENBOOKQA)
        for metric, value in found.get(name, {}).items()
        if metric in ("accuracy", "score") and re.fullmatch(r"\d+(\.\d+)?", str(value))
    }
    if not scores:
        raise _failed("`swift eval` left no accuracy", log)
    return scores


def _failed(found: str, log: Path) -> MachineError:
    end = "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_TAIL:])
    return MachineError(
        f"{found}; the end of {paths.shown(log)}:\n{end}",
        remedy="see the log; the same command goes on with what is not done",
    )
