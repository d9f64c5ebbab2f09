"""The command line: verbs, exit codes, and how every kind of error leaves the program."""

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from tell_plugins import __version__, cli
from tell_plugins.cli import VERBS, main
from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.evaluation.options import Options
from tests.conftest import PROJECT

HEAVY = ("torch", "swift", "transformers", "datasets", "pandas", "matplotlib", "sklearn", "openai")
HEAVY += ("modelscope",)


@pytest.fixture
def verb(monkeypatch) -> Callable[..., list[argparse.Namespace]]:
    """Put a verb `fake` into the table, which raises an error or gives a code; what it is called
    with."""

    def put(
        error: BaseException | None = None, code: int = 0, **attributes: object
    ) -> list[argparse.Namespace]:
        module, seen = ModuleType("tell_plugins.fake"), []

        def add_arguments(parser: argparse.ArgumentParser) -> None:
            parser.add_argument("name", nargs="?")
            parser.set_defaults(**attributes)

        def run(args: argparse.Namespace) -> int:
            seen.append(args)
            if error is not None:
                raise error
            return code

        module.add_arguments, module.run = add_arguments, run
        monkeypatch.setitem(sys.modules, "tell_plugins.fake", module)
        monkeypatch.setitem(cli.VERBS, "fake", ("fake", "does what a test wants"))
        monkeypatch.delenv("TELL_DEBUG", raising=False)
        return seen

    return put


def test_help_names_every_verb(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for name, (_, help_text) in VERBS.items():
        assert f"  {name} " in text
        assert help_text in text
    for name in ("setup", "test", "bench"):
        assert f"  {name} " in text
    assert max(map(len, text.splitlines())) <= 100
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert (caught.value.code, capsys.readouterr().out) == (0, f"{__version__}\n")


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_is_there_and_explains_itself(name, capsys):
    module = importlib.import_module(f"tell_plugins.{VERBS[name][0]}")
    assert callable(module.run)
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: ./run.sh {name}")
    assert len(text.splitlines()) > 3


QUICK = """
import contextlib, io, json, sys
from tell_plugins.cli import VERBS, main

heavy = set(sys.argv[1].split())
for verb in [["--help"], *([name, "--help"] for name in VERBS), *json.loads(sys.argv[2])]:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main(verb)
    if loaded := heavy & set(sys.modules):
        sys.exit(f"{verb} loaded {loaded}")
"""


def test_what_starts_at_once_loads_nothing_heavy(tmp_path):
    """Every help, the list of data sets, and a check that finds mistakes."""
    recipe = tmp_path / "r.yaml"
    text = (PROJECT / "recipes" / "qwen_json_sft.yaml").read_text()
    recipe.write_text(text.replace("learning_rate:", "learning_rat:"))
    verbs = json.dumps([["data"], ["data", "list"], ["check", str(recipe)]])
    command = [sys.executable, "-c", QUICK, " ".join(HEAVY), verbs]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_each_option_of_eval_names_its_default():
    for name, field in Options.model_fields.items():
        if field.default:
            told: Any = field.json_schema_extra
            said = told["help"].rpartition("(default: ")[2].removesuffix(")")
            assert told["type"](said) == field.default, name


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["chekc"], "unknown verb 'chekc'\n  remedy:  did you mean 'check'?"),
        (["tests"], "unknown verb 'tests'\n  remedy:  did you mean 'test'?"),
        (["zzzzz"], "unknown verb 'zzzzz'\n  remedy:  see ./run.sh --help"),
        ([], "the following arguments are required: verb\n  remedy:  see ./run.sh --help"),
        (["--nonsense"], "required: verb"),
        (["check"], "required: RECIPE\n  remedy:  see ./run.sh check --help"),
        (["data", "list", "--nonsense"], "--nonsense"),
        (["data", "nothing_of_this_name"], "nothing_of_this_name"),
    ],
)
def test_wrong_usage_exits_with_1(args, message, capsys):
    assert main(args) == 1
    said = capsys.readouterr()
    assert message in said.out + said.err
    assert "Traceback" not in said.err


def test_a_verb_takes_its_arguments_and_gives_its_code(verb, tell):
    seen = verb(code=1)
    assert main(["fake", "a"]) == 1
    assert seen[0].name == "a"
    assert "unrecognised arguments: --learning_rate" in tell("fake", "--learning_rate", "1", code=1)


@pytest.mark.parametrize(
    ("given", "name", "flags"),
    [
        (["a", "--lr", "1e-3", "--x=2", "--debug"], "a", ["--lr", "1e-3", "--x=2"]),
        (["a.yaml", "--strict", "--lr", "-1"], "a.yaml", ["--strict", "--lr", "-1"]),
        (["a.yaml", "--config", "b.yaml"], "a.yaml", ["--config", "b.yaml"]),
        (["a.yaml", "loose", "--lr", "1"], "a.yaml", ["loose", "--lr", "1"]),
    ],
)
def test_flags_follow_the_recipe(verb, given, name, flags):
    seen = verb(takes_flags=True)
    assert main(["fake", *given]) == 0
    assert [(args.name, args.flags) for args in seen] == [(name, flags)]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            UserError("found", where="file, line 3", allowed="a, b", remedy="mend it"),
            1,
            "file, line 3: found\n  allowed: a, b\n  remedy:  mend it\n",
        ),
        (MachineError("the network is down\n  remedy:  wait"), 2, "the network is down"),
        (OSError(28, "No space left on device", "a b"), 2, "a b: No space left on device\n  rem"),
        (OSError(30, "Read-only file system", "/x"), 2, "/x: Read-only file system\n  remedy:"),
        (OSError("no file's"), 2, "no file's"),
        (KeyboardInterrupt(), 130, "stopped"),
        (ValueError("oops"), 2, "fault in this program: ValueError: oops"),
        (MemoryError(), 2, "fault in this program: MemoryError"),
    ],
)
def test_errors_leave_as_one_message(verb, capsys, error, code, message):
    verb(error)
    assert main(["fake"]) == code
    text = capsys.readouterr().err
    assert message in text
    assert "Traceback" not in text


@pytest.mark.parametrize("how", ["--debug", "TELL_DEBUG"])
def test_debug_shows_where_an_error_comes_from(verb, capsys, monkeypatch, how):
    verb(UserError("found"))
    if how == "TELL_DEBUG":
        monkeypatch.setenv(how, "1")
    assert main(["fake", "--debug"] if how == "--debug" else ["fake"]) == 1
    assert "Traceback" in capsys.readouterr().err
    verb(ValueError("oops"))
    assert main(["fake", "--debug"]) == 2
    assert "in run\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "flags", "ours"),
    [
        (["fake", "a", "--debug"], [], True),
        (["--debug", "fake", "a"], [], True),
        (["fake", "a", "--debug", "underflow_overflow"], ["--debug", "underflow_overflow"], False),
        (["fake", "a", "--debug", "tpu", "--debug"], ["--debug", "tpu"], True),
    ],
)
def test_debug_in_the_middle_is_the_trainers(verb, capsys, args, flags, ours):
    seen = verb(UserError("found"), takes_flags=True)
    assert main(args) == 1
    assert [parsed.flags for parsed in seen] == [flags]
    assert ("Traceback" in capsys.readouterr().err) == ours


@pytest.mark.parametrize("args", [["--help"], ["data", "list"]])
def test_a_reader_that_goes_away_is_no_error(args):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "tell_plugins", *args]
    done = subprocess.run(command, cwd=PROJECT, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert done.returncode == 0
    assert done.stderr == b""
