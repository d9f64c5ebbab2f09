"""What may import what, which names are free, and what a repository must not hold."""

import ast
import importlib.machinery
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import PROJECT

PACKAGE = PROJECT / "tell_plugins"
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {"torch", "swift", "transformers", "datasets", "peft", "trl", "accelerate", "modelscope"}
BELOW = {  # each part of the package, and what it may import of the others
    "core": {"core"},
    "bridge": {"core", "bridge"},
    "recipe": {"core", "bridge", "recipe"},
    "preparation": {"core", "bridge", "recipe", "preparation"},
    "evaluation": {"core", "bridge", "recipe", "preparation", "evaluation"},
    "experiments": {"core", "bridge", "recipe", "preparation", "evaluation", "experiments"},
}


class _WithoutTypes(ast.NodeTransformer):
    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else node


def _imports(path: Path, *, of_types: bool = True) -> Iterator[str]:
    """Every module that a file imports, also inside functions, as dotted names.

    `of_types`: those too that are for type checkers alone.
    """
    tree: ast.AST = ast.parse(path.read_text(encoding="utf-8"))
    if not of_types:
        tree = _WithoutTypes().visit(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _part(path: Path) -> str:
    """The sub-package of a module, "" at the top."""
    return path.relative_to(PACKAGE).parts[0] if path.parent != PACKAGE else ""


def test_the_parts_are_those_known_here():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(BELOW)


def _imported(parts: set[str], is_wrong: Callable[[str], bool]) -> list[str]:
    """What modules of these parts import wrongly."""
    return [
        f"{path.relative_to(PROJECT)} imports {name}"
        for path in MODULES
        if _part(path) in parts
        for name in _imports(path)
        if is_wrong(name)
    ]


@pytest.mark.parametrize("part", BELOW)
def test_imports_go_downwards(part):
    above = tuple(f"tell_plugins.{other}" for other in set(BELOW) - BELOW[part])
    assert _imported({part}, lambda name: name.startswith(above)) == []


def test_the_method_is_read_in_fifteen_minutes():
    """AGENTS.md names its files."""
    section = (PROJECT / "AGENTS.md").read_text(encoding="utf-8").partition("fifteen minutes")[2]
    names = re.findall(r"`((?:core|bridge)/\w+\.py)`", section.partition("\n## ")[0])
    files = [(PACKAGE / name).read_text(encoding="utf-8") for name in names]
    assert len(files) == 12
    assert sum(text.count("\n") for text in files) <= 2400


def test_no_module_imports_itself_by_way_of_others():
    """Imports inside functions count, too."""
    names = {".".join(path.relative_to(PROJECT).with_suffix("").parts): path for path in MODULES}
    graph = TopologicalSorter()
    for name, path in names.items():
        found = {
            part
            for full in _imports(path, of_types=False)
            for part in (full, full.rpartition(".")[0])
        }
        graph.add(name, *(found & names.keys()))
    graph.prepare()  # raises CycleError, which names the circle


def test_no_verb_is_called_by_a_made_up_command_line():
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        assert "argparse.Namespace(" not in text, path
        assert "ArgumentParser(" not in text or path.name == "cli.py", path


def test_only_the_bridge_knows_ms_swift():
    assert _imported({*BELOW, ""} - {"bridge"}, lambda name: name.split(".")[0] == "swift") == []


def test_what_starts_fast_imports_nothing_heavy_not_even_late():
    assert _imported({"core", "recipe", ""}, lambda name: name.split(".")[0] in HEAVY) == []


LOADED = """
import importlib, json, sys
for name in sys.argv[2:]:
    importlib.import_module(name)
exec(sys.argv[1])
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


def _loaded(code: str, *modules: str) -> set[str]:
    """The top-level names in `sys.modules` of a process that imports `modules` and runs `code`."""
    command = [sys.executable, "-c", LOADED, code, *modules]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_building_a_mixture_loads_nothing_heavy(make_card, monkeypatch):
    tokenizer = Path(__file__).parent / "golden" / "word_tokenizer.json"
    monkeypatch.setenv("TELL_TOKENIZER", str(tokenizer))
    make_card("t", train=[{"q": f"t {n}", "r": "r"} for n in range(5)])
    make_card("plain", kind="general", train=[{"q": f"g {n}", "r": "r"} for n in range(20)])
    core = [f"tell_plugins.core.{path.stem}" for path in (PACKAGE / "core").glob("*.py")]
    code = (
        "from tell_plugins.core.manifest import manifest_of\n"
        "from tell_plugins.core.mixture import build_mixture\n"
        "from tell_plugins.core.spec import parse_spec\n"
        "assert manifest_of(build_mixture(parse_spec('tell/t')))['tokens']"
    )
    loaded = _loaded(code, *core)
    assert {"tokenizers", "pyarrow", "tell_plugins"} <= loaded
    assert loaded & (HEAVY | {"pandas", "matplotlib", "sklearn", "requests"}) == set()


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*")), ids=lambda path: path.stem)
def test_names_at_the_top_of_the_package_are_free(path):
    """ms-swift puts the plugin's folder first on `sys.path`: a name in it hides any other."""
    if path.name == "__pycache__":
        pytest.skip("no module")
    elsewhere = [
        entry
        for entry in sys.path
        if entry and not {PROJECT, PACKAGE, PROJECT / "tests"} & {Path(entry).resolve()}
    ]
    assert importlib.machinery.PathFinder.find_spec(path.stem, elsewhere) is None
    assert path.stem not in sys.stdlib_module_names


def test_datasets_is_hugging_faces():
    assert not list((PROJECT / "datasets").rglob("__init__.py"))
    spec = importlib.machinery.PathFinder.find_spec("datasets", sys.path)
    assert "site-packages" in str(spec.origin)


def _tracked() -> list[Path]:
    try:
        done = subprocess.run(
            ["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a git checkout")
    paths = [PROJECT / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_no_large_file_is_tracked():
    assert [path for path in _tracked() if path.stat().st_size > 2_000_000] == []


def test_no_path_of_a_machine_is_tracked():
    home = re.compile(
        rb"(?<![\w.~}$-])/(?:(?:home|Users)/(?!me/|user/)|root/|work/|mnt/|tmp/)[\w.]"
    )
    found = [
        f"{path.relative_to(PROJECT)}: {line.decode(errors='replace').strip()[:80]}"
        for path in _tracked()
        if path != Path(__file__)
        for line in path.read_bytes().splitlines()
        if home.search(line)
    ]
    assert found == []


def test_top_of_the_repository():
    known = {
        *("recipes", "datasets", "tell_plugins", "tests", "benchmarks", "results", "docs"),
        *("run.sh", "requirements", "requirements.txt", "requirements-eval.txt", "pyproject.toml"),
        *("README.md", "README_CN.md", "AGENTS.md", "LICENSE", ".ci", ".gitignore"),
    }
    found = {path.relative_to(PROJECT).parts[0] for path in _tracked()}
    assert found <= known, "beside the surface only what a repository needs"
    assert known - {"results", "README.md", "benchmarks"} <= found
