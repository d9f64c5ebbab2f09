"""The verbs of `./run.sh`: which module serves which, and how errors leave the program.

Exit codes: 0 good; 1 the user's input is wrong or a check failed; 2 a fault of ours or of the
machine. Modules are imported when their verb is called, so `--help` and `check` start at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from types import ModuleType
from typing import NoReturn

from tell_plugins import __version__
from tell_plugins.core import paths
from tell_plugins.core.errors import MachineError, UserError, nearest
from tell_plugins.core.shown import safe_output, shown_text

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("experiments.demo", "train and score the embedded model on the sample, on a CPU"),
    "check": ("recipe.check", "what would this run do? no GPU, no network, no training"),
    "mix": ("recipe.mix", "write a recipe's mixture and manifest without training"),
    "train": ("recipe.train", "swift sft with a recipe; flags win over the YAML"),
    "eval": ("evaluation.evaluate", "answer a recipe's test split, save the answers, score them"),
    "export": ("evaluation.export", "a run as a model folder that any server answers alike"),
    "verify": ("evaluation.verify", "does a server, or a folder, answer as `eval` saved it?"),
    "compare": ("evaluation.compare", "tables of saved answers under every scorer"),
    "represent": ("evaluation.represent", "what the anchor does to hidden states"),
    "anchors2x2": ("experiments.anchors2x2", "anchor in training x anchor at test"),
    "ability": ("evaluation.ability", "general ability: AGIEval and OpenBookQA by OpenCompass"),
    "plugin": ("recipe.plugin_path", "the path for ms-swift's `external_plugins`"),
    "data": ("preparation.data_verb", "download, rebuild, list or show data sets"),
    "new": ("preparation.new_task", "card, anchor and recipe for an own task"),
    "anchor": ("experiments.anchor_verb", "let the model write and rank its own anchors"),
    "tune": ("experiments.tune", "choose settings on validation rows, within a time budget"),
    "sweep": ("experiments.sweep_verb", "a grid of runs: train and score each"),
    "report": ("experiments.report", "tables, pictures and one HTML page of a sweep"),
}
_RUN_SH = (
    {  # only a checkout has these
        "setup": "make .venv and install what is pinned",
        "test": "all tests",
        "bench": "how fast mixtures are built, trainings start and prompts are answered",
    }
    if paths.IS_CHECKOUT
    else {}
)
# which group of requirements/ brings a module; all others are in `train`
_GROUPS = {
    **dict.fromkeys(("datasets", "modelscope", "pandas", "matplotlib", "sacrebleu"), "data"),
    **dict.fromkeys(("comet", "bleurt_pytorch"), "translation"),
    "ray": "ray",
}


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = bool(os.environ.get("TELL_DEBUG"))
    for end in (0, -1):  # elsewhere it is the trainer's own flag
        if argv and argv[end] == "--debug":
            argv.pop(end)
            debug = True
    with safe_output():
        try:
            return _run(argv)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return 130
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception as error:
            if debug:
                traceback.print_exc()
            print(shown_text(_told(error)), file=sys.stderr)
            return 1 if isinstance(error, UserError) else 2


def _told(error: Exception) -> str:
    """An error in one message."""
    if isinstance(error, UserError | MachineError):
        return str(error)
    if isinstance(error, OSError):
        found = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        remedy = "see that it is there, may be read or written, and that the disk has room"
        return str(MachineError(found, remedy=remedy))
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and package not in ("", "tell_plugins"):
        found = f"this needs the package '{package}', which is not installed here"
        return str(MachineError(found, remedy=paths.needs(_GROUPS.get(package, "train"))))
    found = f"fault in this program: {type(error).__name__}: {error}"
    remedy = "run the same command with --debug and report what it prints"
    return str(MachineError(found, remedy=remedy))


class _Parser(argparse.ArgumentParser):
    """Wrong usage is the user's to mend, so it exits with 1."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message, where=self.prog, remedy=f"see {self.prog} --help")


def _table() -> str:
    """The verbs and what they do, one a line."""
    texts = {verb: text for verb, (_, text) in VERBS.items()} | _RUN_SH
    width = max(map(len, texts))
    return "\n".join(f"  {verb:{width}}  {text}" for verb, text in texts.items())


def _run(argv: list[str]) -> int:
    if argv and not argv[0].startswith("-") and argv[0] not in VERBS:
        match = nearest(argv[0], [*VERBS, *_RUN_SH])
        remedy = f"did you mean '{match}'?" if match else "see ./run.sh --help"
        raise UserError(f"unknown verb '{argv[0]}'", where="command line", remedy=remedy)
    for text in argv:
        if text.encode("utf-8", "ignore").decode() != text:
            remedy = "retype it, or rename the file"
            raise UserError(f"{text!r} is not UTF-8", where="command line", remedy=remedy)
    parser = _Parser(
        prog="./run.sh",
        usage="./run.sh [-h] [--version] VERB ...",
        description="TELL recipes for ms-swift. Without a verb: set up, then the demo.\n\n"
        + _table(),
        epilog="`./run.sh VERB --help` explains a verb; --debug shows where an error comes from.\n"
        "`./run.sh VERB --swift latest ...` uses the newest ms-swift, in .venv-latest.\n"
        "Paths in flags count from the folder that you call from (files to read are found in the\n"
        "project's folder too); paths inside a recipe count from the project's folder, where\n"
        "ms-swift runs.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(
        dest="verb", prog="./run.sh", required=True, help=argparse.SUPPRESS
    )
    wanted = next((part for part in argv if not part.startswith("-")), None)
    modules: dict[str, ModuleType] = {}
    for verb, (name, help_text) in VERBS.items():
        sub = verbs.add_parser(verb, description=help_text, allow_abbrev=False)
        if verb == wanted:
            modules[verb] = importlib.import_module(f"tell_plugins.{name}")
            modules[verb].add_arguments(sub)
    args, rest = parser.parse_known_args(argv)
    if rest and not getattr(args, "takes_flags", False):
        parser.error(f"unrecognised arguments: {' '.join(rest)}")
    args.flags = rest
    return int(modules[args.verb].run(args))
