"""One reading of YAML: OmegaConf's numbers, lines in every message, and limits that hold."""

import math
import time

import pytest

from tell_plugins.core.yamlfile import parse_yaml, read_yaml
from tell_plugins.experiments.sweep import load_sweep
from tests.conftest import PROJECT, error_of, message_of

OmegaConf = pytest.importorskip("omegaconf").OmegaConf  # newer ms-swift reads YAML without it

_SCALARS = ["1e-4", "1.0e-4", "1E5", "-.5", "5.", "1_0.5", "1e+3", ".inf", "12", "-3", "0", "yes"]
_SCALARS += ["off", "~", "null", "2024-01-31", "a", "1e", "e5", "'1'", "1:30:00", "[1e-3, x]"]


@pytest.mark.parametrize("text", _SCALARS)
@pytest.mark.parametrize("around", ["a: %s", "a: {b: %s}"])
def test_values_are_those_of_ms_swift(text, around, tmp_path):
    """`swift sft --config` of 4.0 reads its YAML by OmegaConf."""
    file = tmp_path / "x.yaml"
    file.write_text(around % text)
    ours = read_yaml(file).values
    swift = OmegaConf.to_container(OmegaConf.load(file))
    if text == "1:30:00":  # minutes to YAML 1.1; as a name it must not change
        swift = {"a": text} if around == "a: %s" else {"a": {"b": text}}
    assert (ours, repr(ours)) == (swift, repr(swift))


@pytest.mark.parametrize(
    "path",
    sorted([*PROJECT.glob("recipes/**/*.yaml"), *PROJECT.glob("datasets/*/card.yaml")]),
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_the_packs_own_files_are_read_alike(path):
    assert read_yaml(path).values == OmegaConf.to_container(OmegaConf.load(path))


def _laughs(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "line", "says", "remedy"),
    [
        ("a: 1\nb: &b {c: *b}\n", 2, "more than 32 levels", "correct"),
        ("a: &a\n  <<: *a\n", 2, "more than 32 levels", "correct"),
        ("a: 1\nb: " + "[" * 10_000, 2, "nesting depth", "correct"),
        ("a: 1\nb: " + "[" * 50 + "]" * 50, 2, "more than 32 levels", "correct"),
        ("a: " + "{a: " * 10_000, 1, "nesting depth", "correct"),
        (_laughs(30), 1, "more than 10,000 values", "correct"),
        ("a: [" + "1, " * 20_000 + "1]", 1, "more than 10,000 values", "correct"),
        ('a: 1\nb: "x\\0y"\n', 2, "NUL", "correct"),
        ("a: 1\nb: x\0y\n", 2, "control characters", "correct"),
        ("a: 1\na: 2\n", 2, "given twice, first at line 1", "remove one"),
        ("a: {b: 1,\n c: 2, b: 3}\n", 2, "'b' is given twice", "remove one"),
        ("a:\n\t- b\n", 2, "cannot start any token", "indent with spaces"),
        ("a: b: c\n", 1, "mapping values are not allowed", "put a text that holds ': '"),
        ("a: [1, 2\nb: 3\n", 2, "flow sequence that begins at line 1", "close the bracket"),
        ('a: "b\nc: 3\n', 3, "quoted scalar that begins at line 1", "close the quote"),
        ("a: @b\n", 1, "cannot start any token", "quotes"),
        ("a: 1\nb\nc: 3\n", 3, "could not find expected ':'", "write 'key: value'"),
        ("a:\n  - 1\n - 2\n", 3, "did not find expected key", "indent"),
        ("a: *x\n", 1, "undefined alias", "quotes"),
        ("a: 1\n---\nb: 2\n", 2, "another document", "keep one document"),
        ("a: !!python/object:os.system x\n", 1, "constructor for the tag", "remove the tag"),
        ("a: !!float x\n", None, "no YAML", "quotes"),
        ("? [a]\n: 1\n", 1, "unhashable key", "correct"),
    ],
    ids=lambda value: value[:30].replace("\0", "NUL") if isinstance(value, str) else str(value),
)
def test_a_broken_file_is_one_short_message_with_its_line(text, line, says, remedy):
    began = time.monotonic()
    caught = error_of(parse_yaml, text, "f.yaml")
    assert time.monotonic() - began < 2
    error = caught
    assert says in error.found
    assert error.where == ("f.yaml" if line is None else f"f.yaml, line {line}")
    assert remedy in str(error.remedy)
    assert len(str(error)) < 400


def test_numbers_of_any_length_stay_text():
    values = parse_yaml(f"a: {'9' * 5000}\nb: {10**18}\nc: {10**17}\n", "f").values
    assert values == {"a": "9" * 5000, "b": str(10**18), "c": 10**17}
    assert math.isinf(float(values["a"]))


def test_a_file_that_is_no_recipe_is_not_read(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text("{}\n" * 400_000)
    assert "1,200,000 bytes are too many" in message_of(read_yaml, file)
    file.write_bytes(b"a: \xff")
    assert "not UTF-8" in message_of(read_yaml, file)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("title: t\nbase: b\ngrid: {task: [1]}\nsettings:\n  seed: 1\n", "line 5, settings"),
        (
            "title: t\nbase: b\ngrid: {task: [1]}\nmethods:\n  A: {}\n  B:\n    output_dir: x\n",
            "line 7, methods, B",
        ),
        ("title: t\nbase: b\ngrid: {task: [1]}\nplot:\n  x: nothing\n", "line 5"),
        ("title: t\nbase: b\ngrid: {task: [1]}\nplots: {}\n", "line 4"),
        (
            "title: t\nbase: b\ngrid: {task: [1]}\nmethods:\n  A: {equal_steps: B}\n",
            "line 5, methods, A, key 'equal_steps'",
        ),
    ],
)
def test_errors_of_a_sweeps_settings_name_its_line(text, where, tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    caught = error_of(load_sweep, file)
    assert caught.where == f"{file}, {where}"
