"""Cross-validation of an own task: `new --folds`, the recipes it writes, `compare --pool`."""

import json
import random
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tell_plugins.cli import main
from tell_plugins.core.cards import fold_of, load_card
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.sources import open_task
from tell_plugins.preparation.forms import Row
from tell_plugins.preparation.own_task import split_into_folds
from tests.conftest import PROJECT, message_of, write_rows
from tests.saved_answers import save_answers

FOLDS = 3


@pytest.fixture
def rows(own) -> str:
    """Twenty rows, every fourth labelled yes."""
    pairs = [(f"Is {n} a four?", "no" if n % 4 else "yes") for n in range(20)]
    return own.table([{"query": query, "response": response} for query, response in pairs])


@pytest.fixture
def said(own, rows) -> str:
    """What `new` says of the task in three folds, which it leaves."""
    return own.new(rows, "--folds", str(FOLDS))


def _rows(count: int) -> tuple[list[Row], list[str]]:
    labels = ["yes" if n % 5 == 0 else "no" if n % 5 < 4 else "maybe" for n in range(count)]
    return [Row("train", n, f"Row {n}?", label) for n, label in enumerate(labels)], labels


@pytest.mark.parametrize("count", [2, 3, 5, 7])
def test_each_row_tests_once_and_labels_keep_their_shares(count):
    rows, labels = _rows(41)
    folds = split_into_folds(rows, labels, 42, count)
    assert sorted(row for fold in folds for row in fold) == rows
    for fold in folds:
        assert len(fold) in (41 // count, 41 // count + 1)
        assert {row.response for row in {*rows} - fold} == set(labels)
    for label, total in Counter(labels).items():
        tested = [sum(row.response == label for row in fold) for fold in folds]
        assert max(tested) - min(tested) <= 1
        assert sum(tested) == total


def test_folds_hang_on_content_and_seed_alone():
    rows, labels = _rows(30)
    moved = list(zip(rows, labels, strict=True))
    random.Random(3).shuffle(moved)
    folds = split_into_folds(rows, labels, 42, 4)
    assert (
        split_into_folds([row for row, _ in moved], [label for _, label in moved], 42, 4) == folds
    )
    assert split_into_folds(rows, labels, 43, 4) != folds


def test_rows_that_ask_the_same_are_in_one_fold():
    rows = [Row("train", n, f"{'row' if n % 2 else 'ROW'} {n // 2}?", f"{n}") for n in range(20)]
    for fold in split_into_folds(rows, None, 42, 5):
        assert not {r.query.lower() for r in fold} & {r.query.lower() for r in {*rows} - fold}
    for count in (0, 1, 11):
        assert "2 to 10" in message_of(split_into_folds, rows, None, 42, count)


def test_each_fold_has_a_card_and_recipes(said, own, rows, capsys):
    assert "--folds 3: each of the 20 rows tests once" in said
    assert "each of the 20 rows tests once" in said
    assert "card:    " in said
    whole = open_task(load_card("own"), "train")
    assert len(whole) == 20
    assert list(load_card("own").splits) == ["train"]
    tested: list[str] = []
    settings = set()
    for number in range(1, FOLDS + 1):
        card = load_card(f"own_fold{number}")
        assert fold_of(card.name) == ("own", number)
        train, test = open_task(card, "train"), open_task(card, "test")
        assert sorted(train.plain + test.plain) == sorted(whole.plain)
        tested += test.plain
        for variant in ("", "_sft"):
            recipe = own.recipe(f"smollm2_own_fold{number}{variant}")
            assert recipe.spec.card == card.name
            assert recipe.output_dir.name == recipe.path.stem
            mixture = build_mixture(recipe.spec)
            assert set(train.queries) == {
                row["messages"][0]["content"] for row in mixture.rows() if row["channel"] == "task"
            }
            assert f"own_fold{number}, {len(train)} rows" in recipe.path.read_text()
            settings.add(str(recipe.spec.with_values(card="own")))
    assert sorted(tested) == sorted(whole.plain)
    assert len(settings) == 2  # all folds train alike
    whole_recipe = str(own.recipe().path)
    assert main(["check", whole_recipe, str(own.recipe("smollm2_own_fold2").path)]) == 0
    assert main(["eval", whole_recipe, "--adapter", "none"]) == 1
    assert "no split 'test': the task is tested by its folds" in capsys.readouterr().err
    assert "own_fold1" in own.refused(rows, "--folds", "2")
    own.new(rows, "--folds", "2", "--force")


def test_the_next_commands_name_what_was_written(said, own, rows):
    lines = [line.strip() for line in said.partition("next:")[2].splitlines()]
    (loop,) = [line for line in lines if line.startswith("for fold")]
    dry = loop.replace("./run.sh", "echo")
    done = subprocess.run(["bash", "-c", dry], capture_output=True, text=True, check=True)
    named = re.findall(r"(train|eval) (\S+)( --against sft)?", done.stdout)
    assert [verb for verb, _, _ in named] == ["train", "train", "eval"] * FOLDS
    assert all((PROJECT / path).is_file() for _, path, _ in named)
    assert any(line.startswith("./run.sh compare --pool output/smollm2_own_fold") for line in lines)
    out = own.new(rows, "--folds", "2", "--method", "sft", name="alone")
    assert "&& ./run.sh eval " in out
    assert "--against" not in out


def test_one_way_to_test(own, rows):
    message = own.fails(rows, "--folds", "3", "--test", "t.jsonl")
    assert "argument --test: not allowed with argument --folds" in message


def test_few_rows_propose_folds(own, rows):
    out = own.new(rows)
    assert "or let each row test once, with --folds 5" in out
    assert "allowed: 2 to 20" in own.refused(rows, "--folds", "21", name="other")


def _answers(folder: Path, number: int, wrong: int, **settings: object) -> Path:
    """Answers to a fold, of which the first `wrong` are."""
    card = f"own_fold{number}"
    right = open_task(load_card(card), "test").responses
    texts = [("no" if r == "yes" else "yes") if n < wrong else r for n, r in enumerate(right)]
    return save_answers(folder / card / "test-greedy", card, texts, **settings)


@pytest.mark.usefixtures("said")
def test_every_row_counts_once(own, tmp_path, capsys):
    for number in range(1, FOLDS + 1):
        _answers(tmp_path / "base", number, 3)
        for name, wrong in (("", 1), ("_sft", 2)):
            run = tmp_path / f"run{number}{name}"
            run.mkdir()
            spec = str(own.recipe(f"smollm2_own_fold{number}{name}").spec)
            (run / "manifest.json").write_text(json.dumps({"spec": spec}))
            _answers(tmp_path / f"tell{name}", number, wrong, adapter=str(run))
    out = tmp_path / "out"
    folders = [str(tmp_path / name) for name in ("base", "tell", "tell_sft")]
    assert main(["compare", "--pool", *folders, "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "own, 3 folds: label" in said
    assert "The intervals are over the rows; that the trainings differ is not in them." in said
    found = json.loads((out / "comparison.json").read_text())
    assert [system["name"] for system in found["systems"]] == [
        "SFT, seed 42",
        "base",
        "TELL, held, seed 42",
    ]
    assert found["baseline"] == "SFT, seed 42"
    for system, wrong in zip(found["systems"], (2, 3, 1), strict=True):
        scores = system["scores"]
        assert (scores["rows"], scores["expected"]) == (20, 20)
        (accuracy,) = [one for one in scores["numbers"] if one["measure"] == "accuracy"]
        assert (accuracy["k"], accuracy["n"]) == (20 - wrong * FOLDS, 20)
    differences = {(d["system"], d["measure"]): d["value"] for d in found["differences"]}
    assert differences["TELL, held, seed 42", "accuracy"] == pytest.approx(3 / 20)


@pytest.mark.usefixtures("said")
def test_what_cannot_be_pooled(tmp_path, tell):
    def refused(*folders: Path) -> str:
        message = tell("compare", "--pool", *map(str, folders), code=1)
        assert "remedy:" in message
        return message

    base = [_answers(tmp_path / "base", number, 0) for number in range(1, FOLDS + 1)]
    shots = _answers(tmp_path / "shots", 1, 0, adapter="shots")
    again = _answers(tmp_path / "again", 2, 0)
    assert "one system answered fold 1, another fold 1, 2, 3" in refused(*base, shots)
    assert "one system answered fold 1, 2, 2, 3, another fold 1, 2, 3" in refused(*base, again)
    other = save_answers(tmp_path / "whole", "own", ["no"] * 20, split="train")
    assert "answers to card 'own', which is no fold" in refused(*base, other)
    assert "without --baseline" in refused(*base, Path("--baseline"), base[0])
    rows = open_task(load_card("own"), "train")
    write_rows(
        rows.files[0], [{"query": "New?", "response": "yes"}, {"query": "Old?", "response": "no"}]
    )
    assert "the folds are of other rows" in refused(*base)
