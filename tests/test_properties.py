"""Whatever stands in a card, recipe, dataset string, data file, answer or record: one message.

A verb ends with 0 or 1 within ten seconds, never with a traceback, and loses no row in silence.
`TELL_EXAMPLES=1000` tries more than the few inputs of every day, and others each time.
"""

import contextlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tell_plugins.cli import main
from tell_plugins.core.errors import UserError
from tell_plugins.experiments.results import load_studies, refuse_damaged
from tests.conftest import write_card, write_rows
from tests.made_results import EVALUATION, MadeResults
from tests.saved_answers import save_answers

EXAMPLES = int(os.environ.get("TELL_EXAMPLES", 0))
SECONDS = 10.0


def some(examples: int) -> Any:
    """The settings of one property: the same few inputs every day, or as many as are asked."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def call(*argv: str) -> int:
    """Run a verb in this process and judge how it ends."""
    said, told = io.StringIO(), io.StringIO()
    start = time.monotonic()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
        try:
            code = main(list(argv))
        except SystemExit as stopped:  # argparse's
            code = int(stopped.code or 0)
    seconds, text = time.monotonic() - start, said.getvalue() + told.getvalue()
    assert "Traceback" not in text, text
    assert "fault in this program" not in text, text
    assert code in (0, 1), text
    assert code == 0 or text.strip()
    assert seconds < SECONDS, f"{seconds:.0f} s"
    return code


TASK = [{"q": f"sum {n}", "r": f"#### {n}"} for n in range(6)]
TEST = [{"q": f"other {n}", "r": f"#### {n}"} for n in range(4)]
GENERAL = [{"q": f"g {n}", "r": "x"} for n in range(30)]
TOY: dict[str, Any] = {"train": TASK, "test": TEST, "question": "(.*)", "max_new_tokens": 32}
with TemporaryDirectory() as place:
    TASK_CARD = yaml.safe_load((write_card(Path(place), "toy", **TOY) / "card.yaml").read_text())
RECIPE = {
    "model": "smollm2",
    "model_type": "llama",
    "template": "chatml",
    "dataset": ["tell/toy:general=9rows"],
    "dataset_shuffle": False,
    "train_dataloader_shuffle": False,
    "max_length": 512,
    "learning_rate": 1.0e-4,
    "num_train_epochs": 1,
    "lr_scheduler_kwargs": {"min_lr": 1.0e-5},
    "target_modules": ["all-linear"],
    "output_dir": "output/toy",
}


class World:
    """Cards, a recipe and a place for results, all laid anew before an example."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recipe, self.out = root / "toy.yaml", root / "out"

    def lay(self) -> None:
        for name in ("cards", "out", "recipes"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        write_card(self.root / "cards", "toy", **TOY)
        write_card(self.root / "cards", "plain", train=GENERAL, kind="general")
        self.recipe.write_text(yaml.safe_dump(RECIPE))

    def mix(self, *flags: str) -> int:
        return call("mix", str(self.recipe), "--out", str(self.out), *flags)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("world")


@pytest.fixture
def world(folder, monkeypatch) -> Iterator[World]:
    for name, place in (("CACHE", "cache"), ("DATA_HOME", "data"), ("CARDS", "cards")):
        monkeypatch.setenv(f"TELL_{name}", str(folder / place))
    monkeypatch.setattr("tell_plugins.core.paths.RECIPES", folder / "recipes_of_the_pack")
    shutil.copytree("recipes", folder / "recipes_of_the_pack", dirs_exist_ok=True)
    return World(folder)


ODD_TEXTS = [
    *("", " ", "~", "null", "nan", "1e400", "=1+1", "../../etc", "/etc/passwd", "a:b", "a/b=c"),
    *("\x00", "\x1b[2J", "\u2028", "\ud83d".encode("utf-16", "surrogatepass").hex(), "ß" * 300),
    *("(a+)+$", "(", "{", "[", "&a", "*a", "!!python/object:os.system", "task=all", "-1", "1_000"),
]
texts = st.sampled_from(ODD_TEXTS) | st.text(max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | texts
    | st.sampled_from([10**400, -1, 0, 1e308])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def changed(good: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping in which some keys, at the top or below it, have other values, or are gone."""

    @st.composite
    def change(draw: Callable[..., Any]) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(json.dumps(good))
        for _ in range(draw(st.integers(1, 2))):
            at = found
            key = draw(st.sampled_from(sorted(at)) | texts)
            if isinstance(at.get(key), dict) and at[key] and draw(st.booleans()):
                at = at[key]
                key = draw(st.sampled_from(sorted(at)) | texts)
            if draw(st.integers(0, 4)) == 0:
                at.pop(key, None)
            else:
                at[key] = draw(values)
            if not found:
                break
        return found

    return change()


def as_yaml(good: dict[str, Any]) -> st.SearchStrategy[bytes]:
    written = changed(good).map(lambda value: yaml.safe_dump(value, allow_unicode=True))
    text = written.map(lambda text: text.encode("utf-8", "replace"))
    whole = yaml.safe_dump(good).encode()
    return text | damaged(whole) | st.binary(max_size=40) | st.sampled_from(HARD_YAML)


HARD_YAML = [
    b"&a [*a]",
    b"[" * 5000,
    b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n" * 3,
    b"a: b\na: c\n",
    b"max_steps: 1" + b"0" * 400,
    b"num_train_epochs: 1.0e+400\n",
    b"? [a, b]\n: c\n",
    b"name: 'a\x00b'\n",
]


@st.composite
def damaged(draw: Callable[..., Any], content: bytes) -> bytes:
    """A file that was cut, overwritten, or whose lines were lost, doubled or exchanged."""
    lines = content.splitlines(keepends=True)
    how = draw(st.sampled_from(["cut", "bytes", "lose", "twice", "line", "word"]))
    place = draw(st.integers(0, max(len(content) - 1, 0)))
    line = draw(st.integers(0, max(len(lines) - 1, 0)))
    if how == "cut":
        return content[:place]
    if how == "bytes":
        return content[:place] + draw(st.binary(min_size=1, max_size=4)) + content[place + 1 :]
    if how == "word":
        old, new = draw(st.sampled_from(WORDS))
        return content.replace(old, new)
    new = {"lose": [], "twice": lines[line : line + 1] * 2}.get(how)
    if new is None:
        new = [draw(st.sampled_from(HARD_LINES))]
    return b"".join([*lines[:line], *new, *lines[line + 1 :]])


HARD_LINES = [
    *(b"null\n", b"[]\n", b"{}\n", b"NaN\n", b'"text"\n', b"1e999\n", b"{\n", b"\xff\xfe\n"),
    *(b"[" * 100_000 + b"\n", b'{"a":' * 2000 + b"\n", b"1" * 5000 + b"\n", b'{"q": "\\ud83d"}\n'),
]
WORDS = [(b": 1", b": null"), (b": 1", b": NaN"), (b'"', b""), (b": ", b":\t"), (b"0", b"-1")]
WORDS += [(b"true", b"1"), (b"test", b"../../etc"), (b'"text"', b'"txt"'), (b"\n", b"\r\n")]


@some(12)
@given(text=as_yaml(TASK_CARD))
def test_cards(world, text):
    world.lay()
    (world.root / "cards" / "toy" / "card.yaml").write_bytes(text)
    call("data", "list")
    world.mix()
    call("data", "list", "toy")


@some(12)
@given(text=as_yaml(RECIPE))
def test_recipes(world, text):
    world.lay()
    world.recipe.write_bytes(text)
    world.mix()
    call("check", str(world.recipe))


AMOUNTS = [
    "all",
    "0",
    "3rows",
    "1e4tok",
    "2x",
    "-1rows",
    "1e400tok",
    "nanx",
    "rows",
    "9" * 40 + "x",
]
KEYS = ["task", "general", "from", "anchor", "order", "repeat", "overlap", "seed", "kl"]
pairs = st.tuples(
    st.sampled_from(KEYS) | texts,
    st.sampled_from([*AMOUNTS, "plain", "plain+plain", "even", "keep", "none", "../x"])
    | texts
    | st.integers(-5, 5).map(str),
)
dataset_strings = st.builds(
    lambda head, name, parts: head + name + ":" + "/".join(f"{k}={v}" for k, v in parts),
    st.sampled_from(["tell/", "tell", "", "TELL/"]),
    st.sampled_from(["toy", "plain", "nothing", "../toy"]) | texts,
    st.lists(pairs, max_size=3),
)


@some(15)
@given(text=dataset_strings | texts)
def test_dataset_strings(world, text):
    world.lay()
    world.mix(f"--dataset={text}")


plain_texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
rows = st.lists(
    st.fixed_dictionaries({"q": plain_texts, "r": plain_texts})
    | st.dictionaries(st.sampled_from(["q", "r", "x"]), values, max_size=3)
    | values,
    max_size=6,
)


@some(15)
@given(found=rows, cut=st.none() | st.integers(0, 200))
def test_data_files_keep_every_row(world, found, cut):
    """Task rows are all there or none is; general rows are kept or counted as dropped."""
    world.lay()
    content = "".join(json.dumps(row) + "\n" for row in found).encode()[:cut]
    lines = [line for line in content.split(b"\n") if line.strip()]
    for card in ("toy", "plain"):
        world.lay()
        (world.root / "cards" / card / "train.jsonl").write_bytes(content)
        code = world.mix("--dataset=tell/toy:general=all/anchor=none")
        if code == 0:
            manifest = json.loads((world.out / "manifest.json").read_text())
            source = next(each for each in manifest["sources"] if each["card"] == card)
            counts = source["rows"]
            assert counts["in_file"] == len(lines)
            assert counts["used"] + sum(counts["dropped"].values()) == len(lines)
            written = (world.out / "train.jsonl").read_text().split("\n")
            assert len(written) - 1 == manifest["rows"]


LINES = [json.dumps({"q": f'Row {n}, "so"', "r": "yes"}) for n in range(9)]
TABLE = "q,r\n" + 'one,1\n"two, ""so""\nand on",2\n' * 9
WHOLE = [(".jsonl", "\n".join(LINES)), (".json", f"[{','.join(LINES)}]"), (".csv", TABLE)]
WHOLE += [(".tsv", TABLE.replace(",", "\t"))]
table_files = (
    st.tuples(st.just(".csv"), st.lists(plain_texts, max_size=9).map(",".join).map(str.encode))
    | st.tuples(st.sampled_from([".csv", ".tsv", ".json", ".jsonl", ".parquet"]), st.binary())
    | st.tuples(st.just(".jsonl"), rows.map(lambda r: "\n".join(map(json.dumps, r)).encode()))
    | st.tuples(st.just(".json"), rows.map(lambda r: json.dumps(r).encode()))
    | st.sampled_from(WHOLE).flatmap(lambda f: st.tuples(st.just(f[0]), damaged(f[1].encode())))
)


@some(12)
@given(file=table_files)
def test_files_of_users(world, file):
    world.lay()
    path = world.root / f"mine{file[0]}"
    path.write_bytes(file[1])
    argv = ["new", "own", "--train", str(path), "--model", "smollm2", "--anchor", "Say what it is."]
    argv += ["--general", "plain", "--columns", "query=q,response=r"]
    call(*argv, "--recipes", str(world.root / "recipes"), "--dir", str(world.root / "cards"))


@some(6)
@given(number=st.integers(20, 40), drawn=st.data())
def test_new_keeps_every_row(world, number, drawn):
    world.lay()
    asked = drawn.draw(
        st.lists(plain_texts.filter(str.strip), min_size=number, max_size=number, unique=True)
    )
    given_rows = [
        {"q": f"{n}: {text}", "r": "odd" if n % 2 else "even"} for n, text in enumerate(asked)
    ]
    path = write_rows(world.root / "mine.jsonl", given_rows)
    argv = ["new", "own", "--train", str(path), "--model", "smollm2", "--anchor", "Odd or even?"]
    argv += ["--general", "plain", "--columns", "query=q,response=r"]
    argv += ["--recipes", str(world.root / "recipes"), "--dir", str(world.root / "cards")]
    if call(*argv) == 0:
        files = sorted((world.root / "cards" / "own").glob("*.jsonl"))
        lines = [line for file in files for line in file.read_text().split("\n") if line]
        kept = sorted(json.loads(line)["query"] for line in lines)
        assert kept == sorted(row["q"] for row in given_rows)


@some(12)
@given(drawn=st.data(), name=st.sampled_from(["answers.jsonl", "settings.json"]))
def test_saved_answers(world, drawn, name):
    world.lay()
    folder = save_answers(world.root / "out" / "none", "toy", [f"#### {n}" for n in range(4)])
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(drawn.draw(damaged(content)))
    call("compare", str(folder))


@some(12)
@given(drawn=st.data())
def test_damaged_records_of_a_sweep(world, drawn):
    """What `report` and `--collect` read before they count a single answer."""
    world.lay()
    root = world.root / "out"
    made = MadeResults(root, rows=10, general=3)
    made.base()
    made.run("TELL", adherent=0.6)
    made.index("made", "Made", [42])
    run = f"runs/TELL--42/eval/{EVALUATION}/checkpoint-1"
    names = ["sweeps/made.json", "runs/TELL--42/run.json", "runs/TELL--42/trained.json"]
    names += [f"{run}/test-greedy/{name}" for name in ("answers.jsonl", "settings.json")]
    file = root / drawn.draw(st.sampled_from([*names, f"{run}/general/losses.jsonl"]))
    file.write_bytes(drawn.draw(damaged(file.read_bytes())))
    with contextlib.suppress(UserError):
        refuse_damaged(load_studies(root))


@some(8)
@given(drawn=st.data())
def test_damaged_records_of_a_file(world, drawn):
    world.lay()
    record = {"file": "train.jsonl", "sha256": "0" * 64, "from": {"place": "http://x"}, "rows": 6}
    content = json.dumps(record, indent=1).encode()
    path = world.root / "cards" / "toy" / "train.jsonl.provenance.json"
    path.write_bytes(drawn.draw(damaged(content) | changed(record).map(json.dumps).map(str.encode)))
    call("data", "list", "toy")
    call("data", "show", "toy")
