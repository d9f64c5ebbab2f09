"""run.sh: sets up what a verb needs, hands verbs on, says what is wrong; stand-ins are on PATH.

Also what `./run.sh test` calls, with stand-in steps.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tell_plugins import __version__
from tests import run_all
from tests.conftest import PROJECT, wait_for

TOOLS = ("bash", "sh", "dirname", "cmp", "cp", "flock", "mkdir", "cat", "rm", "sleep", "env")
TOOLS += ("sed", "head", "cut")
LIGHT = ("check", "mix", "new", "plugin", "data")
ALL = ["light", "data", "train", "translation", "ray", "tests"]
LATEST = [("setup", ["latest"]), ("train", ["latest"]), ("test", ["latest", "tests"])]

# stands for the system's Python: `-c` is the version check, `-m venv` makes the one below
BASE = """#!/bin/sh
echo "base $*" >> "$LOG"
case "$1 $2" in
  "-c import pip"*) exit 1 ;;
  "-c "*) exit {wrong} ;;
  "--version ") echo "Python 3.13.1" ;;
  "-m venv") [ -z "$VENV_CODE" ] || exit "$VENV_CODE"
    for folder; do :; done
    [ "$3" != --clear ] || rm -rf "$folder"
    mkdir -p "$folder/bin"; cp "$INNER" "$folder/bin/python" ;;
esac
"""
# stands for .venv/bin/python: pip, tell_plugins, tests.run_all, benchmarks
INNER = """#!/bin/sh
echo "inner $*" >> "$LOG"
echo "bytecode ${PYTHONDONTWRITEBYTECODE-on} ${PYTHONPYCACHEPREFIX-beside sources}" >> "$LOG"
case "$1 $2 $3" in
  "-c "*) exit 0 ;;
  "-m pip config") printf '%s\\n' "$PIP_SETTINGS"; exit ;;
  "-m pip install") case "$*" in
      *uv==*) [ -z "$NO_UV" ] || exit 1; cp "$FAKE_UV" "${0%/*}/uv"; exit ;;
      *) echo "Collecting things"; exit "${PIP_CODE:-0}" ;;
    esac ;;
esac
shift
for part in "$@"; do echo "<$part>"; done
echo "caller $TELL_CALLER_DIR"
sleep "${VERB_SECONDS:-0}"
exit "${VERB_CODE:-0}"
"""
# stands for uv, that of the machine or the one that pip brings
UV = """#!/bin/sh
echo "uv $*" >> "$LOG"
echo "settings $UV_DEFAULT_INDEX $UV_INDEX $UV_FIND_LINKS $UV_INSECURE_HOST" >> "$LOG"
sleep "${UV_SECONDS:-0}"
echo "Installed 1 package in 1ms"
echo " + things==1"
exit "${UV_CODE:-0}"
"""


class World:
    """A copy of run.sh in a folder of its own, with a PATH that holds nothing but stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin, self.log = folder / "pro ject", folder / "bin", folder / "log"
        self.root.mkdir()
        self.bin.mkdir()
        self.log.touch()
        shutil.copy(PROJECT / "run.sh", self.root)
        (self.root / "requirements").mkdir()
        for group in [*ALL, "latest"]:
            self.requirements(group).write_text(f"# {group}: some things\nthings==1\n")
        for tool in TOOLS:
            found = shutil.which(tool)
            if found is not None:
                (self.bin / tool).symlink_to(found)
        self.env = {"PATH": str(self.bin), "LOG": str(self.log)}
        for name, text in (("INNER", INNER), ("FAKE_UV", UV)):
            file = folder / name.lower()
            file.write_text(text)
            file.chmod(0o755)
            self.env[name] = str(file)

    def requirements(self, group: str) -> Path:
        return self.root / "requirements" / f"{group}.txt"

    def python(self, name: str = "python3", *, wrong: bool = False) -> None:
        path = self.bin / name
        path.write_text(BASE.format(wrong=int(wrong)))
        path.chmod(0o755)

    def start(self, *args: str, cwd: Path | None = None, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.root / "run.sh"), *args],
            cwd=cwd or self.root,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *args: str, cwd: Path | None = None, **env: str) -> tuple[int, str, str]:
        process = self.start(*args, cwd=cwd, **env)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def calls(self, start: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith(start)]

    def installed(self) -> list[list[str]]:
        """The groups of each call of uv."""
        return [
            [Path(part).stem for part in call.split() if part.endswith(".txt")]
            for call in self.calls("uv pip install")
        ]


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


@pytest.fixture
def ready(world) -> World:
    """A world that is set up, with everything."""
    world.python()
    assert world.run("setup", "all")[0] == 0
    world.log.write_text("")
    return world


def test_the_first_call_sets_up_and_the_second_does_not(world):
    """The right one of several Pythons is taken."""
    world.python("python3", wrong=True)
    world.python("python3.12")
    code, out, err = world.run("check", "a b", "--x=1", "")
    assert code == 0
    assert re.sub(r"in \d+ s", "in N s", err).splitlines() == [
        "Setting up light: some things",
        "Installed 1 package in 1ms",
        "Set up in N s",
    ], "what uv says does not belong to the verb's output, and its list of packages to no log"
    assert out.splitlines()[:5] == ["<tell_plugins>", "<check>", "<a b>", "<--x=1>", "<>"]
    code, again, err = world.run("check", "a b", "--x=1", "")
    assert (code, again, err) == (0, out, "")
    assert world.installed() == [["light"]]
    assert len(world.calls("base -m venv")) == 1


NEEDS = {
    "light": ("mix r.yaml", "new", "--help", "--debug check", " ", "setup light"),
    "light data": ("data list", "setup data"),
    "light data train": ("", "train r.yaml", "bench", "setup"),
    "light data train ray": ("setup ray",),
    "light data train translation tests": ("setup translation tests",),
    " ".join(ALL): ("test", "setup all"),
}


@pytest.mark.parametrize(
    ("args", "groups"), [(args, groups) for groups, several in NEEDS.items() for args in several]
)
def test_a_verb_installs_what_it_needs(world, args, groups):
    world.python()
    code, _, err = world.run(*(args.split() or ([""] if args else [])))
    assert code == 0
    assert world.installed() == [groups.split()]
    says_first = err.startswith("The demo: ") and err.index("The demo: ") < err.index("Setting up")
    assert says_first == (args == ""), "the demo says first what will happen"


def test_what_is_there_stays_when_more_is_installed(world):
    world.python()
    for args in (["setup", "ray"], ["check"]):
        assert world.run(*args)[0] == 0
    code, _, shown = world.run("test")
    assert code == 0
    assert "Setting up tests" in shown
    assert "Setting up light" not in shown, "what is there is not announced"
    assert world.run("demo")[0] == 0
    assert world.installed() == [["light", "data", "train", "ray"], ALL]
    world.requirements("light").write_text("things==2\n")
    assert world.run("check")[0] == 0
    assert world.installed()[2:] == [ALL], "pins are of one set"


@pytest.mark.parametrize(("verb", "groups"), LATEST)
def test_the_newest_ms_swift_has_an_environment_of_its_own(world, verb, groups):
    world.python()
    code, out, _ = world.run(verb, "--swift", "latest", "r.yaml" if verb == "train" else "latest")
    assert code == 0
    assert "--swift" not in out
    assert world.installed() == [groups]
    assert not (world.root / ".venv").exists()
    assert (world.root / ".venv-latest" / "installed" / "latest.txt").is_file()
    assert world.run(verb, TELL_SWIFT="latest")[0] == 0
    assert world.installed() == [groups]


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["--help"], 2, "found: no Python at all\n  remedy:  install one"),
        (["setup", "--help"], 0, "groups: all light data train translation ray tests"),
        (["setup", "--swift", "newest"], 1, "no ms-swift 'newest'"),
        (["setup", "light", "rays"], 1, "no group 'rays' of packages\n  allowed: all light data"),
    ],
)
def test_what_is_told_before_anything_is_made(world, args, code, told):
    if "rays" in args:
        world.python()
    found, *said = world.run(*args)
    if code:
        said.reverse()
    assert (found, said[1]) == (code, "")
    assert told in said[0]
    assert not (world.root / ".venv").exists()


def test_uv_installs_from_where_pip_would(world):
    """From a mirror, say, or a CPU's build of torch that lies on the disk."""
    world.python()
    settings = """:env:.find-links='/wheels'
global.extra-index-url='file:///more\\nfile:///still/more'
global.index-url='https://mirror/simple'
install.trusted-host='mirror'"""
    assert world.run("check", PIP_SETTINGS=settings)[0] == 0
    assert world.calls("settings") == [
        "settings https://mirror/simple file:///more file:///still/more /wheels mirror"
    ]
    world.requirements("light").write_text("things==2\n")
    assert world.run("check", PIP_SETTINGS=settings, UV_DEFAULT_INDEX="https://own")[0] == 0
    assert world.calls("settings")[1].startswith("settings https://own file:///more")


@pytest.mark.parametrize("trouble", ["NO_UV", "UV_CODE"])
def test_where_uv_cannot_pip_does(world, trouble):
    world.python()
    code, _, err = world.run("check", **{trouble: "1"})
    assert code == 0
    assert "Collecting things" in err
    assert len(world.calls("inner -m pip install --disable-pip-version-check --progress")) == 1
    assert "Set up" not in world.run("check", **{trouble: "1"})[2]


def test_an_environment_that_broke_is_made_again(ready):
    (ready.root / ".venv" / "bin" / "python").unlink()
    (ready.root / ".venv" / "bin" / "python").symlink_to("/nowhere/python3.9")
    assert ready.run("setup")[0] == 0
    assert len(ready.calls("base -m venv")) == 1


def test_a_set_up_that_was_cut_short_starts_afresh(ready):
    """Half a package looks like a whole one to uv, and everything else seems to be there."""
    process = ready.start("setup", "--swift", "latest", UV_SECONDS="60")
    wait_for(lambda: ready.calls("uv pip install"), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert ready.run("train", "--swift", "latest")[0] == 0
    assert len(ready.calls("base -m venv")) == 2
    assert ready.run("train", "--swift", "latest")[0] == 0
    assert len(ready.calls("base -m venv")) == 2, "once it is whole it stays"


def test_packages_that_cannot_be_installed(world):
    world.python()
    code, out, err = world.run("check", UV_CODE="1", PIP_CODE="1")
    assert (code, out) == (2, "")
    assert "the packages could not be installed" in err
    assert "remedy:" in err
    code, _, err = world.run("check")
    assert code == 0
    assert "Setting up" in err, "it tries again"


@pytest.mark.parametrize(
    ("args", "passed"),
    [
        ([], ["tell_plugins", "demo"]),
        (["--help"], ["tell_plugins", "--help"]),
        (["nonsense"], ["tell_plugins", "nonsense"]),
        ([""], ["tell_plugins", ""]),
        (["", "x"], ["tell_plugins", "", "x"]),
        (["train", "r.yaml", "--lr", "1 2"], ["tell_plugins", "train", "r.yaml", "--lr", "1 2"]),
        (["test", "-k", "a or b"], ["tests.run_all", "-k", "a or b"]),
        (["bench", "--quick"], ["benchmarks", "--quick"]),
    ],
)
def test_verbs_are_handed_on(ready, args, passed):
    code, out, err = ready.run(*args)
    assert (code, err) == (0, "")
    assert out.splitlines()[:-1] == [f"<{part}>" for part in passed]


def test_exit_code_folder_and_bytecode_are_handed_on(ready, tmp_path):
    """Without compiled modules each start would compile torch, transformers and ms-swift again."""
    for verb, code in (("check", "130"), ("test", "1"), ("bench", "2")):
        assert ready.run(verb, VERB_CODE=code)[0] == int(code)
    (tmp_path / "elsewhere").mkdir()
    ready.log.write_text("")
    code, out, _ = ready.run("check", cwd=tmp_path / "elsewhere", CDPATH=str(tmp_path))
    assert code == 0
    assert out.splitlines()[-1] == f"caller {tmp_path / 'elsewhere'}"
    ready.run("check", PYTHONDONTWRITEBYTECODE="1")
    assert ready.calls("bytecode") == [
        "bytecode on beside sources",
        f"bytecode on {ready.root}/.venv/bytecode",
    ]


def test_two_first_calls_at_once_install_once(world):
    world.python()
    calls = [world.start("check", UV_SECONDS="1") for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in calls]
    assert [process.returncode for process in calls] == [0, 0, 0]
    assert all(out.startswith("<tell_plugins>\n<check>") for out, _ in outputs)
    if (world.bin / "flock").exists():
        assert len(world.installed()) == 1


@pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock")
def test_a_running_verb_does_not_hold_the_lock_of_the_set_up(world):
    world.python()
    first = world.start("demo", VERB_SECONDS="30")
    try:
        wait_for(lambda: world.calls("inner -m tell_plugins demo"), first)
        world.requirements("light").write_text("things==2\n")  # the next call must lock
        assert world.run("check")[0] == 0
        assert first.poll() is None, "the first one is still running"
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()


def test_the_real_one(tmp_path):
    stamp = PROJECT / ".venv" / "installed" / "light.txt"
    pinned = (PROJECT / "requirements" / "light.txt").read_text()
    if not (stamp.is_file() and stamp.read_text() == pinned):
        pytest.skip("the project's .venv is not set up by run.sh")
    done = subprocess.run(
        [str(PROJECT / "run.sh"), "--version"],
        cwd=tmp_path,
        env={**os.environ, "TELL_CALLER_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")


# --- ./run.sh test --------------------------------------------------------------------------------


def test_any_failed_step_fails_the_whole(monkeypatch, capsys):
    for codes in ((0, 0), (1, 0, 0), (0, 0, 5)):
        commands = {
            f"step {place}": [sys.executable, "-c", f"raise SystemExit({code})"]
            for place, code in enumerate(codes)
        }
        monkeypatch.setattr(run_all, "steps", lambda _, commands=commands: commands)
        assert run_all.main([]) == int(any(codes))
        text = capsys.readouterr().out
        assert (f"FAILED ({max(codes)})" in text) == any(codes)
        assert text.count(" ok ") == 2, "the other steps run all the same"


def test_steps_of_the_tests():
    names = ["ruff check", "ruff format", "mypy", "pytest"]
    assert list(run_all.steps([])) == names
    assert list(run_all.steps(["tests/test_x.py"])) == names
    everything = run_all.steps(["-k", "name"])["pytest"]
    assert everything[-2:] == ["-k", "name"]
    assert "not slow" not in everything
    fast = run_all.steps(["--fast", "-x"])["pytest"]
    assert fast[-3:] == ["-m", "not slow", "-x"]
