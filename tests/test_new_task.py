"""`new`: every format and form of rows becomes a card and a recipe that works, or a clear error."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tell_plugins.cli import main
from tell_plugins.core import paths
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.sources import open_task
from tell_plugins.core.spec import parse_spec
from tell_plugins.preparation.answers import are_labels, infer_schema, json_of_python
from tell_plugins.preparation.forms import Pair, TaskFile, parse_columns
from tell_plugins.preparation.method import among, entries, general_rows_for, plain_sft
from tell_plugins.preparation.task_recipe import pattern_for, short_names
from tell_plugins.preparation.task_split import labels_of, split_off_test
from tell_plugins.recipe.recipes import load_recipe
from tests.conftest import PROJECT, write_rows

ANCHOR = "Is the message about weather? Answer with a JSON object."
Row = dict[str, Any]


def texts(count: int = 12) -> list[tuple[str, str]]:
    """(query, response) pairs; every third is labelled yes."""
    return [
        (
            f"Message {n}: " + ("it rains, again" if n % 3 == 0 else 'the cat\tsleeps, "well"'),
            json.dumps({"thought": f"Number {n}.", "weather": "no" if n % 3 else "yes"}),
        )
        for n in range(count)
    ]


def write_table(path: Path, rows: list[Row]) -> Path:
    """Write rows as JSON lines or, in a CSV, with lists as JSON text."""
    if path.suffix == ".jsonl":
        return write_rows(path, rows)
    cells = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in r.items()} for r in rows]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(cells)
    return path


def rows_of(count: int = 12) -> list[Row]:
    return [{"query": q, "response": r, "history": []} for q, r in texts(count)]


def new(tmp_path: Path, *flags: str, name: str = "own", anchor: bool = True) -> int:
    """`./run.sh new NAME --model smollm2 --method paper FLAGS`, all in the test's own folders."""
    recipes = ("--recipes", str(tmp_path / "recipes"), "--method", "paper")
    given = ("--anchor", ANCHOR) if anchor else ()
    return main(["new", name, "--model", "smollm2", *recipes, *given, *flags])


def fails(tmp_path: Path, capsys: pytest.CaptureFixture[str], *flags: str, **keys: Any) -> str:
    """The message of a `new` that must fail, and write nothing."""
    assert new(tmp_path, *flags, **keys) == 1
    assert not (tmp_path / "recipes").exists()
    assert not list(tmp_path.glob("cards/*"))
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert "remedy:" in message
    return message


# ---------------------------------------------------------------- what works


def own_columns(query: str, response: str) -> Row:
    return {"id": "7", "title": "", "body": query, "verdict": response}


def share_gpt(query: str, response: str) -> Row:
    turns = [{"from": "human", "value": query}, {"from": "gpt", "value": response}]
    return {"conversations": turns}


@pytest.mark.parametrize(
    ("form", "flags"),
    [(own_columns, ("--columns", "query=title+body,response=verdict")), (share_gpt, ())],
)
def test_a_table_ends_in_a_mixture(
    form: Callable[[str, str], Row],
    flags: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_table(tmp_path / "rows.csv", [form(*pair) for pair in texts()])
    assert new(tmp_path, "--train", str(path), *flags) == 0
    out = capsys.readouterr().out

    recipe = load_recipe(tmp_path / "recipes" / "smollm2_own.yaml")
    mixture = build_mixture(recipe.spec)
    train = [row["messages"] for row in mixture.rows() if row["channel"] == "task"]
    test = open_task(load_card("own"), "test")
    seen = {(user["content"], answer["content"]) for user, answer in train}
    seen |= set(zip(test.queries, test.responses, strict=True))
    assert seen == {(f"{ANCHOR}\n\n{query}", response) for query, response in texts()}
    assert len(train) == 10
    assert len(test) == 2
    assert out.count("--- row") == 3
    assert f"[user]\n  {ANCHOR}\n  \n  Message" in out
    assert f"./run.sh check {tmp_path / 'recipes' / 'smollm2_own.yaml'}" in out

    card = load_card("own")
    assert (card.metric, card.answer.label) == ("json", "weather")
    schema = json.loads(card.file("answer.schema.json").read_text())
    assert schema["required"] == ["thought", "weather"]
    assert schema["properties"]["weather"] == {"enum": ["no", "yes"]}


def test_the_recipe_is_the_patterns_but_for_task_and_output(tmp_path: Path) -> None:
    path = write_table(tmp_path / "rows.jsonl", rows_of())
    assert new(tmp_path, "--train", str(path)) == 0
    made = tmp_path / "recipes" / "smollm2_own.yaml"
    pattern = PROJECT / "recipes" / "smollm2_sample.yaml"
    mine, theirs = load_recipe(made).values, load_recipe(pattern).values
    assert mine.pop("dataset") == ["tell/own"]
    assert mine.pop("output_dir") == "output/smollm2_own"
    theirs.pop("dataset")
    theirs.pop("output_dir")
    assert mine == theirs
    text = made.read_text()
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert (
        comments[0] == "# TELL on SmolLM2-135M-Instruct: the task own, 10 rows among general data."
    )
    assert "# --- training ---" in text
    assert "higher: learns from fewer steps" in text
    head = text.split("\n\n")[0].splitlines()
    assert len(head) <= 12
    assert [line.split()[1] for line in head[1:] if line[2] != " "] == [
        "Launch:", "Needs:", "First:", "Result:", "Differs:",
    ]  # fmt: skip
    assert max(map(len, head[5:])) <= 100
    assert "without task=48rows, general=96rows, repeat=2, chosen for its own task" in " ".join(
        line.removeprefix("# ").strip() for line in head
    )


BLOCK_STYLE = """\
# a pattern
model: models/SmolLM2-135M-Instruct
dataset:
  - tell/sample_complaints:seed=7     # the task

# how it is checked
val_dataset:
  - tell/sample_complaints:split=validation
  # and no other
# how it learns
learning_rate: 4.0e-3
split_dataset_ratio: 0
output_dir: >-
  output/x
seed: 42
"""


def from_pattern(tmp_path: Path, pattern: str) -> int:
    """`new own` from a recipe of the test's own."""
    (tmp_path / "tiny.yaml").write_text(pattern)
    path = write_table(tmp_path / "rows.jsonl", rows_of())
    flags = ["--train", str(path), "--anchor", ANCHOR, "--recipes", str(tmp_path / "recipes")]
    flags += ["--method", "paper"]
    return main(["new", "own", "--model", str(tmp_path / "tiny.yaml"), *flags])


def test_a_pattern_with_lists_of_items_loses_nothing_else(tmp_path: Path) -> None:
    assert from_pattern(tmp_path, BLOCK_STYLE) == 0
    made = tmp_path / "recipes" / "tiny_own.yaml"
    assert load_recipe(made).values == {
        "model": "models/SmolLM2-135M-Instruct",
        "dataset": ["tell/own"],
        "learning_rate": 4.0e-3,
        "output_dir": "output/tiny_own",
        "seed": 42,
    }
    text = made.read_text()
    assert "# how it learns\nlearning_rate" in text
    assert "without seed=7, val_dataset, split_dataset_ratio, chosen" in text.replace(
        "\n#         ", ""
    )


@pytest.mark.parametrize(
    "pattern",
    [
        '{"model": "m", "dataset": ["tell/sample_complaints"]}',
        "dataset: &rows [tell/sample_complaints]\nmodel: m\nother: *rows\nseed: 1\n",
    ],
)
def test_a_pattern_that_cannot_be_rewritten_is_refused(
    pattern: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert from_pattern(tmp_path, pattern) == 1
    assert "another dataset cannot be written into this recipe" in capsys.readouterr().err
    assert not list(tmp_path.glob("cards/*"))


@pytest.mark.parametrize(
    ("rows", "times", "general", "sft"),
    [(15, 16, 96, 23), (48, 5, 96, 7), (60, 4, 96, 6), (240, 1, 96, 2), (1000, 1, 400, 2)],
)
def test_the_settings_follow_from_the_number_of_rows(
    rows: int, times: int, general: int, sft: int
) -> None:
    pattern = load_recipe("recipes/qwen_json.yaml")
    held = among(rows, f"{general_rows_for(rows)}rows", pattern, hold=True).of("t", rows)
    repeat = f"/repeat={times}" if times > 1 else ""
    assert held.dataset == f"tell/t:general={general}rows/order=even{repeat}/kl=1"
    assert held.keys == {"loss_type": "tell", "gradient_accumulation_steps": 8}
    assert entries(rows) == rows * times + general
    baseline = plain_sft(rows, entries(rows), pattern).of("t", rows)
    assert baseline.dataset == f"tell/t:general=0/repeat={sft}"
    assert baseline.keys == {"gradient_accumulation_steps": 8}


@pytest.mark.parametrize("method", ["hold", "mix"])
def test_a_method_comes_with_its_baseline(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_table(tmp_path / "rows.jsonl", rows_of(count=60))
    assert new(tmp_path, "--train", str(path), "--method", method) == 0
    out = capsys.readouterr().out
    recipe, baseline = (
        load_recipe(tmp_path / "recipes" / f"smollm2_own{end}.yaml") for end in ("", "_sft")
    )
    kl = "/kl=1" if method == "hold" else ""
    assert recipe.dataset_text == f"tell/own:general=96rows/order=even/repeat=5{kl}"
    assert baseline.dataset_text == "tell/own:general=0/repeat=7"
    assert len(build_mixture(recipe.spec)) == len(build_mixture(baseline.spec)) == 336
    pattern = load_recipe("recipes/smollm2_sample.yaml").values
    changed = {"dataset", "output_dir", "loss_type"}
    assert recipe.values["loss_type"] == "tell"
    assert baseline.values.get("loss_type") == pattern.get("loss_type")
    for made in (recipe, baseline):
        assert {key for key, value in made.values.items() if pattern.get(key) != value} <= changed
        head = made.path.read_text().split("\n\n")[0].splitlines()
        assert len(head) <= 12
        assert max(map(len, [head[0], *head[5:]])) <= 100
    why = "tests of one small model"
    assert why in recipe.path.read_text()
    both = [str(made.path) for made in (recipe, baseline)]
    assert f"./run.sh check {' '.join(both)}" in out
    assert all(f"./run.sh train {name}\n" in out for name in both)
    assert f"./run.sh eval {both[0]} --against sft   # is it better than plain SFT?" in out
    # and a recipe of this kind is a pattern when it is named
    flags = ("--train", str(path), "--model", str(recipe.path))
    assert new(tmp_path, *flags, name="next") == 0
    made = load_recipe(tmp_path / "recipes" / "smollm2_next.yaml")
    assert made.dataset_text == "tell/next"


def test_an_amount_that_is_asked_counts(tmp_path: Path) -> None:
    path = write_table(tmp_path / "rows.jsonl", rows_of(count=60))
    flags = ("--train", str(path), "--amount", "200rows", "--method", "hold")
    assert new(tmp_path, *flags) == 0
    recipe = load_recipe(tmp_path / "recipes" / "smollm2_own.yaml")
    assert recipe.dataset_text == "tell/own:order=even/repeat=5/kl=1"
    baseline = load_recipe(tmp_path / "recipes" / "smollm2_own_sft.yaml")
    assert baseline.dataset_text == "tell/own:general=0/repeat=10"
    assert new(tmp_path, "--train", str(path), "--method", "sft", "--force") == 0


def test_a_recipe_of_ones_own_is_no_pattern_unless_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier task's recipe, edited: its learning rate is not the next task's."""
    shutil.copytree(PROJECT / "recipes", tmp_path / "recipes")
    monkeypatch.setattr(paths, "RECIPES", tmp_path / "recipes")
    path = write_table(tmp_path / "rows.jsonl", rows_of())
    assert new(tmp_path, "--train", str(path), name="a") == 0
    mine = tmp_path / "recipes" / "smollm2_a.yaml"
    mine.write_text(mine.read_text().replace("learning_rate: 4.0e-3", "learning_rate: 1.0e-6"))
    assert pattern_for("smollm2", "json").path == tmp_path / "recipes" / "smollm2_sample.yaml"
    assert pattern_for(str(mine), "json").path == mine


OF_THE_PAPER = {
    ("qwen", "json"): "qwen_json",
    ("llama2", "json"): "llama2_json",
    ("llama2", "number"): "llama2_gsm8k",
    ("gemma", "label"): "gemma_en_is",
    ("smollm2", "json"): "smollm2_sample",
}


def test_the_patterns_are_the_packs_recipes() -> None:
    models = {path.stem.split("_")[0] for path in (PROJECT / "recipes").glob("*.yaml")}
    assert set(short_names()) == models
    chosen = {(model, metric): pattern_for(model, metric).name for model, metric in OF_THE_PAPER}
    assert chosen == OF_THE_PAPER


@pytest.mark.parametrize("model", ["qwen", "smollm2"])
def test_every_model_has_a_recipe_to_start_from(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_table(tmp_path / "rows.jsonl", rows_of())
    recipes = str(tmp_path / "recipes")
    flags = ["--train", str(path), "--anchor", ANCHOR, "--recipes", recipes, "--method", "paper"]
    code = main(["new", "own", "--model", model, *flags])
    recipe = load_recipe(tmp_path / "recipes" / f"{model}_own.yaml")
    assert recipe.dataset_text == "tell/own"
    out = capsys.readouterr().out
    assert code == 0
    if model != "smollm2":
        assert "not ready to train yet" in out
        assert "  ./run.sh data " in out


def verdicts(no: int, yes: int, start: int = 0) -> list[Row]:
    """Rows that answer in plain text, the yes among the last."""
    answers = ["no"] * no + ["yes"] * yes
    return [{"query": f"Ticket {n}", "response": answer} for n, answer in enumerate(answers, start)]


@pytest.mark.parametrize("metric", ["label", "json"])
def test_plain_labels_are_split_in_their_shares_as_those_in_json_are(
    metric: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """3 of 40 rows say yes: drawn without regard to that, a test set may hold none."""
    rows = verdicts(no=37, yes=3)
    if metric == "json":
        rows = [{**row, "response": json.dumps({"urgent": row["response"]})} for row in rows]
    path = write_table(tmp_path / "rows.csv", rows)
    assert new(tmp_path, "--train", str(path)) == 0
    out = capsys.readouterr().out
    assert "8 rows are split off to test with" in out
    assert "in the labels' shares (7 'no', 1 'yes'); 32 train" in out
    assert "WARNING" not in out
    assert load_card("own").metric == metric
    held_out = open_task(load_card("own"), "test").responses
    assert sum("yes" in response for response in held_out) == 1


def test_a_test_set_of_one_label_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warning = "the label of every test row is 'no', so a model that always answers that scores"
    rows = write_table(tmp_path / "rows.csv", verdicts(no=39, yes=1))
    assert new(tmp_path, "--train", str(rows)) == 0
    out = capsys.readouterr().out
    assert warning in out
    assert "--test-rows N" in out
    given = write_table(tmp_path / "test.csv", verdicts(no=5, yes=0, start=100))
    flags = ("--train", str(rows), "--test", str(given), "--force")
    assert new(tmp_path, *flags) == 0
    out = capsys.readouterr().out
    assert warning in out
    assert "--test-rows N" not in out
    write_table(given, verdicts(no=5, yes=1, start=100))
    assert new(tmp_path, *flags) == 0
    assert "WARNING" not in capsys.readouterr().out


def test_rows_that_begin_with_the_same_text_bring_their_anchor(tmp_path: Path) -> None:
    front = "You read messages and answer in JSON, always.\n\nThe message:\n"
    rows = [{"query": front + q, "response": r} for q, r in texts()]
    path = write_table(tmp_path / "rows.jsonl", rows)
    assert new(tmp_path, "--train", str(path), anchor=False) == 0
    card = load_card("own")
    assert card.inline_anchor
    assert not (card.folder / "anchor.txt").exists()
    assert open_task(card, "test").anchor.text == front
    assert sorted(open_task(card, "train").queries + open_task(card, "test").queries) == sorted(
        str(row["query"]) for row in rows
    )


@pytest.mark.parametrize("training", ["Tell: ", ""], ids=["longer front", "one row"])
def test_an_anchor_that_the_training_rows_do_not_show_is_put_into_a_file(
    training: str, tmp_path: Path
) -> None:
    """The core learns an inline anchor from the training rows alone."""
    front = "You read messages and answer in JSON, always. "
    pairs = texts(6) if training else texts(1)
    rows = [{"query": front + training + q, "response": r} for q, r in pairs]
    train = write_table(tmp_path / "train.jsonl", rows)
    rows = [{"query": f"{front}Other: {q}", "response": r} for q, r in texts(9)[6:]]
    test = write_table(tmp_path / "test.jsonl", rows)
    flags = ("--train", str(train), "--test", str(test), "--general", "sample_general")
    assert new(tmp_path, *flags, anchor=False) == 0
    card = load_card("own")
    assert card.file("anchor.txt").read_text() == front.strip() + "\n"
    held_out = open_task(card, "test")
    assert held_out.plain == [f"Other: {q}" for q, _ in texts(9)[6:]]
    assert held_out.queries[0].startswith(f"{front.strip()}\n\nOther: ")


def test_a_row_that_is_the_anchor_alone_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    front = "You read messages and answer in JSON, always.\n"
    rows = [{"query": front + q, "response": r} for q, r in texts()]
    rows.append({"query": front, "response": rows[0]["response"]})
    path = write_table(tmp_path / "rows.jsonl", rows)
    message = fails(tmp_path, capsys, "--train", str(path), anchor=False)
    assert "1 rows hold nothing but the text that all begin with, first at line 13" in message


@pytest.mark.parametrize("text", ["\u5224\u65ad" * 43, "~ judge it", "A" * 300, "a/b? Judge it."])
def test_an_anchor_that_could_be_no_file_is_a_text(text: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / "rows.jsonl", rows_of())
    assert new(tmp_path, "--train", str(path), "--anchor", text, anchor=False) == 0
    assert load_card("own").file("anchor.txt").read_text(encoding="utf-8") == text + "\n"


def test_an_anchor_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "anchor.txt").write_text("\ufeffJudge it.\nIn JSON.\n", encoding="utf-8")
    path = write_table(tmp_path / "rows.jsonl", rows_of())
    flags = ("--train", str(path), "--anchor", str(tmp_path / "anchor.txt"))
    assert new(tmp_path, *flags, anchor=False) == 0
    assert load_card("own").file("anchor.txt").read_text() == "Judge it.\nIn JSON.\n"


@pytest.mark.parametrize(
    ("responses", "flags", "metric"),
    [
        (["It is warm.", "It is cold."], (), "text"),
        (["4", "-12.5"], (), "number"),
        (["2 + 2 is 4.\n#### 4", "#### 12"], (), "number"),
        (["Hello.", "Good day."], ("--languages", "Icelandic, English"), "translation"),
        (['{"a": 1}', '{"a": 2}'], (), "json"),
        ([{"a": 1}, {"a": 2}], (), "json"),
        (["[1, 2]", '["a"]'], (), "json"),
        (["1", "2"], ("--metric", "text"), "text"),
        (["yes", "no"], ("--metric", "label"), "label"),
        (["12,5", "1.234,56"], (), "text"),
        (["03.03.2024", "5.4.2"], (), "text"),
        (["192.168.0.1", "4"], (), "text"),
    ],
)
def test_the_metric_is_told_by_the_responses(
    responses: list[Any], flags: tuple[str, ...], metric: str, tmp_path: Path
) -> None:
    rows = [{"query": f"Question {n}", "response": responses[n % 2]} for n in range(6)]
    path = write_table(tmp_path / "rows.jsonl", rows)
    assert new(tmp_path, "--train", str(path), *flags) == 0
    card = load_card("own")
    assert card.metric == metric
    if metric == "translation":
        assert (card.translation.source, card.translation.target) == ("Icelandic", "English")


def test_general_data_of_ones_own_sets_an_amount_it_can_meet(
    tmp_path: Path, make_card: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"q": f"general {n}", "r": f"answer {n}"} for n in range(60)]
    make_card("plain", train=rows, kind="general")
    path = write_table(tmp_path / "rows.jsonl", rows_of())
    assert new(tmp_path, "--train", str(path), "--general", "plain") == 0
    assert str(load_card("own").general.amount) == "5x"
    assert "10 rows of own, 50 rows of plain" in capsys.readouterr().out
    make_card("other", train=[{"q": "?", "r": f"{n}"} for n in range(60)], kind="general")
    assert new(tmp_path, "--train", str(path), "--general", "plain+other", "--force") == 0
    assert load_card("own").general.sources == ("plain", "other")
    twice = ("--general", "plain+other", "plain")
    assert new(tmp_path, "--train", str(path), *twice, "--force") == 1
    assert "'plain' is named twice" in capsys.readouterr().err
    flags = ("--train", str(path), "--general", "plain", "--amount", "99rows", "--force")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "cards" / "own").iterdir()}
    (tmp_path / "cards" / "own" / "mine.txt").write_text("Another anchor.")
    capsys.readouterr()
    assert new(tmp_path, *flags) == 1
    captured = capsys.readouterr()
    assert "99rows asked, but there are only 60 rows" in captured.err
    assert "next:" not in captured.out
    (tmp_path / "cards" / "own" / "mine.txt").unlink()  # a failure changed nothing
    assert kept == {path.name: path.read_bytes() for path in (tmp_path / "cards" / "own").iterdir()}


def test_a_folder_with_a_blank_is_exported_so_that_a_shell_reads_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TELL_CARDS", "/before")
    path = write_table(tmp_path / "rows.jsonl", rows_of())
    folder = tmp_path / "my $cards"
    assert new(tmp_path, "--train", str(path), "--dir", str(folder)) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "export" in line]
    shell = f'TELL_CARDS=/before; {line}; printf %s "$TELL_CARDS"'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert done.stdout == f"{folder}:/before"


def test_longest_answers_are_counted_with_the_models_own_tokenizer(tmp_path: Path) -> None:
    shutil.copytree(PROJECT / "tests" / "golden", tmp_path / "model")
    (tmp_path / "model" / "word_tokenizer.json").rename(tmp_path / "model" / "tokenizer.json")
    (tmp_path / "model" / "config.json").write_text("{}")
    pattern = BLOCK_STYLE.replace("models/SmolLM2-135M-Instruct", str(tmp_path / "model"))
    (tmp_path / "tiny.yaml").write_text(pattern)
    rows = [{"query": f"Question {n}?", "response": "word " * 90} for n in range(6)]
    path = write_table(tmp_path / "rows.jsonl", rows)
    assert new(tmp_path, "--train", str(path), "--model", str(tmp_path / "tiny.yaml")) == 0
    assert load_card("own").max_new_tokens == 160  # 90 words, a third and 16 more


def test_another_model_stands_beside_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One card serves both; another task of the same name is refused."""
    path = write_table(tmp_path / "rows.jsonl", rows_of())
    assert new(tmp_path, "--train", str(path)) == 0
    folder = tmp_path / "cards" / "own"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert new(tmp_path, "--train", str(path), "--model", "qwen") == 0
    assert before == {file.name: file.read_bytes() for file in folder.iterdir()}
    made = {"smollm2_own.yaml", "qwen_own.yaml"}
    assert made == {file.name for file in (tmp_path / "recipes").iterdir()}
    card = folder / "card.yaml"
    tokens = load_card("own").max_new_tokens
    card.write_text(card.read_text().replace(f"max_new_tokens: {tokens}", "max_new_tokens: 64"))
    (tmp_path / "recipes" / "qwen_own.yaml").unlink()
    assert new(tmp_path, "--train", str(path), "--model", "qwen") == 0
    assert load_card("own").max_new_tokens == tokens  # room for both models' answers
    other = write_table(tmp_path / "other.jsonl", rows_of(count=20))
    for flags in (("--train", str(other)), ("--train", str(path), "--amount", "90rows"),
                  ("--train", str(path), "--anchor", "Another.")):  # fmt: skip
        assert new(tmp_path, *flags, "--model", "llama2") == 1
        assert "cards/own would be overwritten" in capsys.readouterr().err
    assert before == {file.name: file.read_bytes() for file in folder.iterdir()}


def test_nothing_is_overwritten_without_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_table(tmp_path / "rows.jsonl", rows_of())
    assert new(tmp_path, "--train", str(path)) == 0
    card = (tmp_path / "cards" / "own" / "card.yaml").read_text()
    other = write_table(tmp_path / "other.jsonl", rows_of(count=20))
    assert new(tmp_path, "--train", str(other)) == 1
    assert "would be overwritten" in capsys.readouterr().err
    assert (tmp_path / "cards" / "own" / "card.yaml").read_text() == card
    assert new(tmp_path, "--train", str(other), "--force") == 0
    assert len(build_mixture(parse_spec("tell/own:general=0"))) == 16
    assert new(tmp_path, "--train", str(path), name="gsm8k") == 1
    assert "there is another card 'gsm8k'" in capsys.readouterr().err


# ---------------------------------------------------------------- bad files


def test_an_empty_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    assert "the file is empty" in fails(tmp_path, capsys, "--train", str(tmp_path / "rows.jsonl"))
    (tmp_path / "rows.csv").write_text("query,response\n")
    assert "has no rows" in fails(tmp_path, capsys, "--train", str(tmp_path / "rows.csv"))
    message = fails(tmp_path, capsys, "--train", str(tmp_path / "nowhere.csv"))
    assert "no file" in message


def test_a_column_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": 7, "tweet": q, "category": r} for q, r in texts()]
    path = write_table(tmp_path / "rows.csv", rows)
    message = fails(tmp_path, capsys, "--train", str(path))
    assert "rows.csv, line 2: columns id, tweet, category are of no known form" in message
    assert "--columns query=tweet,response=category names them; --columns 1,2" in message
    flags = ("--train", str(path), "--columns", "query=tweet,response=answer")
    message = fails(tmp_path, capsys, *flags)
    assert (
        "12 rows cannot be used: lines 2-13: no column 'answer' of the form --columns "
        "(columns: id, tweet, category)\n"
    ) in message
    assert "the first row of a table must name them" in message


def test_lines_are_told_from_rows_of_a_spreadsheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"query": "one\ntwo", "response": "yes"}, {"query": "three", "response": ""}]
    message = fails(tmp_path, capsys, "--train", str(write_table(tmp_path / "rows.csv", rows)))
    assert (
        "rows.csv (lines of the text file, not rows of a spreadsheet): 1 row cannot be" in message
    )
    assert "line 4: the response is empty" in message
    message = fails(tmp_path, capsys, "--train", str(write_table(tmp_path / "b.csv", rows[1:])))
    assert "spreadsheet" not in message


def test_rows_are_grouped_by_what_is_wrong_with_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(count=30)
    for n in (1, 2, 3, 7):
        rows[n]["response"] = ""
    for n in range(10, 30, 2):
        rows[n]["query"] = " "
    rows[5] = {"query": "What?", "response": 0.5}
    path = write_table(tmp_path / "rows.jsonl", rows)
    message = fails(tmp_path, capsys, "--train", str(path))
    assert "15 rows cannot be used: lines 2-4, 8: the response is empty; line 6: column" in message
    assert "lines 11, 13, 15, 17, 19, 21, 23, 25, 27, 29: the query is empty" in message
    assert "mend or remove these rows; write numbers with a fraction as text" in message


def turns(*texts: str, **last: Any) -> Row:
    """A row of messages, user and assistant in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    messages[-1] |= last
    return {"messages": messages}


PAIR = {"query": "a", "response": "b"}
CHAT = [{"from": "human", "value": "a"}, {"from": "tool", "value": "b"}]


@pytest.mark.parametrize(
    ("row", "problem", "remedy"),
    [
        (turns("x"), "turns user: not", "after an answer"),
        ({"messages": "x"}, "column 'messages' is no JSON list of turns", "mend or remove"),
        ({"messages": [{"who": "user"}]}, "a turn is no object with 'role'", "mend or remove"),
        ({"conversations": CHAT}, "turns human, tool", "turns of tools are not trained"),
        (turns("x", "y", content=[{"type": "image_url"}]), "a part of a turn is 'image_url', not",
         "only text"),
        (turns("x", "", tool_calls=[{"id": 1}]), "a turn calls tools", "only text"),
        (PAIR | {"history": [["x"]]}, "column 'history' is no list of [question, answer]", "mend"),
        (PAIR | {"tools": "[{}]"}, "column 'tools' is not empty", "only text"),
        (PAIR | {"response": 5.5}, "column 'response' is float, not text", "as text"),
        (PAIR | {"response": " "}, "the response is empty", "mend or remove"),
    ],
)  # fmt: skip
def test_what_is_no_text_or_no_conversation(
    row: Row, problem: str, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = fails(tmp_path, capsys, "--train", str(write_rows(tmp_path / "rows.jsonl", [row])))
    assert f"line 1: {problem}" in message
    assert remedy in message.split("remedy:")[1]


def test_duplicate_rows_are_kept_once_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of()
    rows.append(dict(rows[0]))
    rows.append({"query": rows[1]["query"].upper() + " ", "response": rows[1]["response"]})
    rows.append({"query": rows[2]["query"], "response": rows[0]["response"]})
    path = write_table(tmp_path / "rows.jsonl", rows)
    assert new(tmp_path, "--train", str(path)) == 0
    out = capsys.readouterr().out
    assert "repeated rows of rows.jsonl left out (1): line 13 (as 1)" in out
    card = load_card("own")
    train, test = open_task(card, "train"), open_task(card, "test")
    assert len(train) + len(test) == 14
    assert not set(train.query_keys.tolist()) & set(test.query_keys.tolist())


def test_test_rows_in_the_training_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = write_table(tmp_path / "train.jsonl", rows_of())
    stolen = [{"query": rows_of()[4]["query"].upper(), "response": rows_of()[4]["response"]}]
    test = write_table(tmp_path / "test.jsonl", stolen)
    flags = ("--train", str(train), "--test", str(test))
    message = fails(tmp_path, capsys, *flags)
    assert "1 training rows are test rows: line 5 (= line 1)" in message
    assert "--drop-overlap" in message
    assert new(tmp_path, *flags, "--drop-overlap") == 0
    assert "left out: 1 training rows" in capsys.readouterr().out
    assert load_card("own").split("train").rows == 11
    assert (
        new(tmp_path, "--train", str(test), "--test", str(test), "--drop-overlap", "--force") == 1
    )
    assert "all training rows are test rows" in capsys.readouterr().err


def test_validation_rows_are_no_test_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write_table(tmp_path / "train.jsonl", rows_of()[:8])
    test = write_table(tmp_path / "test.jsonl", rows_of()[8:])
    more = write_table(tmp_path / "more.jsonl", rows_of()[7:10])
    flags = ("--train", str(train), "--test", str(test), "--validation")
    message = fails(tmp_path, capsys, *flags, str(test))
    assert f"{len(rows_of()) - 8} validation rows are test rows: line 1 (= line 1)" in message
    assert new(tmp_path, *flags, str(more), "--drop-overlap") == 0
    out = capsys.readouterr().out
    assert "left out: 1 training rows that are validation rows" in out
    assert "left out: 2 validation rows that are test rows" in out


@pytest.mark.parametrize(
    ("response", "problem"),
    [
        ('{"a": NaN}', "NaN or Infinity"),
        ('{"a": -Infinity}', "NaN or Infinity"),
        ('{"a": 1e999}', "NaN or Infinity"),
        ('{"a": 1, "a": 2}', "key 'a' stands twice"),
        ("{'a': 1}", "Expecting property name"),
        ('{"a": True}', "Expecting value"),
    ],
)
@pytest.mark.parametrize("all_rows", [True, False])
def test_answers_that_the_strict_scorer_rejects_never_train(
    response: str, problem: str, all_rows: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"query": f"Row {n}?", "response": response if all_rows or n > 8 else '{"a": 1}'}
            for n in range(12)]  # fmt: skip
    path = write_table(tmp_path / "rows.jsonl", rows)
    message = fails(tmp_path, capsys, "--train", str(path))
    first, count = (1, 12) if all_rows else (10, 3)
    assert f"{count} of 12 responses are no JSON object: line {first}: {problem}" in message
    assert ("--repair-json" in message) == ("'" in response or "True" in response)
    fails(tmp_path, capsys, "--train", str(path), "--metric", "json")
    (tmp_path / "schema.json").write_text("{}")
    flags = ("--train", str(path), "--schema", str(tmp_path / "schema.json"))
    assert f"line {first}: no JSON ({problem}" in fails(tmp_path, capsys, *flags)


def test_answers_in_python_are_repaired_where_it_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = ["{'a': 'yes', 'b': None}", '{"a": "no", "b": null}'] * 6
    train = write_table(tmp_path / "rows.csv", label_rows(answers))
    test = write_table(
        tmp_path / "test.csv", [{"query": "Test?", "response": "{'a': 'no', 'b': None}"}]
    )
    flags = ("--train", str(train), "--test", str(test))
    assert "--repair-json writes them as JSON" in fails(tmp_path, capsys, *flags)
    assert new(tmp_path, *flags, "--repair-json") == 0
    out = capsys.readouterr().out
    assert (
        "repaired: 6 answers of rows.csv are Python's and are written as JSON, lines 2, 4," in out
    )
    assert """the first: {'a': 'yes', 'b': None}  ->  {"a": "yes", "b": null}""" in out
    assert "repaired: 1 answers of test.csv" in out
    task = open_task(load_card("own"), "train")
    assert {str(json.loads(text)) for text in task.responses} == {
        "{'a': 'yes', 'b': None}",
        "{'a': 'no', 'b': None}",
    }
    whole = write_table(
        tmp_path / "whole.csv", label_rows(answers[1::2] + ['{"a": "yes", "b": 1}'] * 6)
    )
    assert new(tmp_path, "--train", str(whole), "--repair-json", name="other") == 0
    assert "--repair-json: no answer of whole.csv is a Python" in capsys.readouterr().out


def test_what_cannot_be_repaired_stays_refused_or_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = ["{'a': 1}"] * 10 + ['{"a": NaN}', '{"a": 1, "a": 2}', "{'a': 1, 'a': 2}"]
    train = ("--train", str(write_table(tmp_path / "rows.jsonl", label_rows(answers))))
    message = fails(tmp_path, capsys, *train, "--repair-json")
    assert "3 of 13 responses are no JSON object: line 11: NaN or Infinity; line 12: key" in message
    assert "--repair-json" not in message
    assert "--drop-broken leaves them out" in message
    assert new(tmp_path, *train, "--repair-json", "--drop-broken") == 0
    out = capsys.readouterr().out
    assert "repaired: 10 answers of rows.jsonl" in out
    assert "left out: 3 rows of rows.jsonl: line 11: no JSON (NaN or Infinity); line 12:" in out
    assert "8 training rows, 2 test rows" in out


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("{'a': [True, None, -1.5, {'b': \"it's\"}]}", '{"a": [true, null, -1.5, {"b": "it\'s"}]}'),
        (" ['\\n', 'é'] ", '["\\n", "é"]'),
        ('{"a": None}', '{"a": null}'),
        ("{}", "{}"),
        ("{'a': 1, 'a': 2}", None),
        ("{'b': {'a': 1, 'a': 1}}", None),
        ("{'a': nan}", None),
        ("{'a': 1e999}", None),
        ("{1: 'a'}", None),
        ("{True: 'a'}", None),
        ("{'a': (1, 2)}", None),
        ("{'a', 'b'}", None),
        ("{**{'a': 1}}", None),
        ("['a' 'b']", None),
        ("['\\d']", None),
        ("['\\ud800']", None),
        ("[b'a']", None),
        ("[1j]", None),
        ("[f'a']", None),
        ("['a'.upper()]", None),
        ("[" * 300 + "]" * 300, None),
        ("{'a': true}", None),
        ("'a'", None),
        ("", None),
    ],
)
def test_python_that_json_can_say(text: str, written: str | None) -> None:
    assert json_of_python(text) == written


def label_rows(answers: list[str]) -> list[Row]:
    return [{"query": f"Row {n}?", "response": answer} for n, answer in enumerate(answers)]


@pytest.mark.parametrize(
    ("other", "shown"),
    [("Yes", "'Yes'"), ("yes ", "'yes '"), ("y\u200bes", "'y\\u200bes'")],
)
@pytest.mark.parametrize("json_answers", [False, True])
def test_labels_of_two_spellings_are_one_question(
    other: str,
    shown: str,
    json_answers: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers = ["yes"] * 9 + [other] * 3 + ["no"] * 8
    if json_answers:
        answers = [json.dumps({"urgent": answer}, ensure_ascii=False) for answer in answers]
    path = write_table(tmp_path / "rows.jsonl", label_rows(answers))
    message = fails(tmp_path, capsys, "--train", str(path))
    assert (
        f"Unicode form: 'yes' (9 rows, first at line 1), {shown} (3 rows, first at line 10)"
        in message
    )
    assert "--clean-labels" in message
    assert new(tmp_path, "--train", str(path), "--clean-labels") == 0
    card = load_card("own")
    rows = [*open_task(card, "train").responses, *open_task(card, "test").responses]
    assert Counter("yes" in row for row in rows) == {True: 12, False: 8}
    assert len(set(rows)) == 2


def test_labels_are_told_and_stand_in_the_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_table(tmp_path / "rows.csv", label_rows(["0", "1", "1"] * 10))
    assert new(tmp_path, "--train", str(path)) == 0
    out = capsys.readouterr().out
    assert "the answers are 2 labels ('1' 20x, '0' 10x); where they are none: --metric text" in out
    card = load_card("own")
    assert (card.metric, card.answer.labels) == ("label", ("0", "1"))
    assert sorted(Counter(open_task(card, "test").responses).values()) == [2, 4]
    assert new(tmp_path, "--train", str(path), "--metric", "number", "--force") == 0
    assert load_card("own").metric == "number"
    other = write_table(tmp_path / "other.csv", [{"query": "New?", "response": "2"}])
    assert new(tmp_path, "--train", str(path), "--test", str(other), "--force") == 0
    assert "WARNING: no training row has the label '2'" in capsys.readouterr().out
    assert load_card("own").answer.labels == ("0", "1", "2")
    path = write_table(tmp_path / "one.csv", label_rows(["1"] * 12))
    assert new(tmp_path, "--train", str(path), "--metric", "label", "--force") == 1
    assert "all training answers are '1'" in capsys.readouterr().err


def test_numbers_are_looked_for_before_a_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [f"It is {n}." if n != 4 else "12,5 or so" for n in range(12)]
    path = write_table(tmp_path / "rows.jsonl", label_rows(answers))
    message = fails(tmp_path, capsys, "--train", str(path), "--metric", "number")
    assert "1 of 12 responses end with none; the first is at line 5" in message


def test_what_few_test_rows_show_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """15 rows of five labels: each label trains and tests."""
    path = write_table(tmp_path / "rows.jsonl", label_rows(list("aaabbbcccdddeee")))
    assert new(tmp_path, "--train", str(path)) == 0
    out = capsys.readouterr().out
    assert "5 rows are split off to test with" in out
    assert "(1 'a', 1 'b', 1 'c', 1 'd', 1 'e'); 10 train" in out
    assert "5 test rows show little: one row is 20 points of a score, and its 95 % interval" in out
    assert "up to 33 points to either side" in out
    assert "--test FILE" in out
    many = write_table(tmp_path / "many.jsonl", label_rows(["yes", "no"] * 200))
    assert new(tmp_path, "--train", str(many), "--force") == 0
    assert "show little" not in capsys.readouterr().out


def test_what_is_missing_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_table(tmp_path / "rows.jsonl", rows_of())
    given = ("--train", str(path))
    message = fails(tmp_path, capsys, *given, anchor=False)
    assert "no anchor, and the rows share none" in message
    assert "--anchor 'TEXT'" in message
    assert "the anchor is empty" in fails(tmp_path, capsys, *given, "--anchor", " ", anchor=False)
    for name in ("a.txt", "my anchor.txt", "notes/my anchor.MD"):
        message = fails(tmp_path, capsys, *given, "--anchor", name, anchor=False)
        assert f"no file '{name}'" in message
    for number in ("0", "-5"):
        message = fails(tmp_path, capsys, *given, "--test-rows", number)
        assert f"--test-rows: {number} test rows" in message
    both = fails(tmp_path, capsys, *given, "--test", str(tmp_path / "t.csv"), "--test-rows", "5")
    assert "--test, --test-rows: test rows in more than one way" in both
    assert "not UTF-8" in fails(tmp_path, capsys, "--train", "caf\udce9.jsonl")
    twice = ("--general", "sample_general", "sample_general")
    assert "'sample_general' is named twice" in fails(tmp_path, capsys, *given, *twice)
    assert "two languages" in fails(tmp_path, capsys, *given, "--metric", "translation")
    assert "did you mean 'weather'" in fails(tmp_path, capsys, *given, "--label", "wether")
    assert "bad name 'a-b'" in fails(tmp_path, capsys, *given, name="a-b")
    assert "sample_complaints' is task data" in fails(
        tmp_path, capsys, *given, "--general", "sample_complaints"
    )
    assert "unknown card 'alpaca'" in fails(tmp_path, capsys, *given, "--general", "alpaca")
    assert "bad amount '40'" in fails(tmp_path, capsys, *given, "--amount", "40")
    assert "unknown key 'qury'" in fails(tmp_path, capsys, *given, "--columns", "qury=a")
    unlike = [{"query": f"{n} apart", "response": "x"} for n in range(9)]
    path = write_table(tmp_path / "unlike.jsonl", unlike)
    inline = ("--train", str(path), "--anchor", "inline")
    assert "the rows share none at the front" in fails(tmp_path, capsys, *inline, anchor=False)
    few = write_table(tmp_path / "few.jsonl", rows_of(count=3))
    assert "3 rows are too few to split" in fails(tmp_path, capsys, "--train", str(few))
    mixed = [*rows_of(), {"query": "And?", "response": "No JSON."}]
    path = write_table(tmp_path / "mixed.jsonl", mixed)
    message = fails(tmp_path, capsys, "--train", str(path), "--metric", "json")
    assert "1 of 13 responses are no JSON object: line 13" in message


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("query=a", "names only one"),
        ("query=a,query=b,response=c", "bad value"),
        ("query=,response=c", "bad value"),
        ("query=a+,response=c", "bad value"),
        ("query=a+a,response=c", "bad value"),
        ("query=a,response", "bad value"),
        ("a,b", "unknown key 'a'"),
    ],
)
def test_bad_columns(text: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        parse_columns(text)


def pairs_with(labels: list[str]) -> TaskFile:
    pairs = [
        Pair(n, f"question {n}", json.dumps({"label": label})) for n, label in enumerate(labels, 1)
    ]
    return TaskFile(Path("rows.jsonl"), "x", pairs)


def labels_in(pairs: list[Pair]) -> dict[str, int]:
    return dict(sorted(Counter(labels_of(pairs, "json", "label") or []).items()))


def test_a_split_keeps_the_labels_shares_and_does_not_hang_on_the_files_order() -> None:
    labels = ["yes"] * 20 + ["no"] * 80
    file = pairs_with(labels)
    split = split_off_test(file, labels, 42)
    assert labels_in(split.test) == {"no": 16, "yes": 4}
    assert len(split.train) == 80
    turned = TaskFile(file.path, file.form, file.pairs[::-1])
    again = split_off_test(turned, labels[::-1], 42)
    assert sorted(pair.line for pair in again.test) == [pair.line for pair in split.test]
    other = split_off_test(file, labels, 43)
    assert {pair.line for pair in other.test} != {pair.line for pair in split.test}


@pytest.mark.parametrize(
    ("responses", "labelled"),
    [
        (["no"] * 10 + ["yes"] * 5, True),
        (["no"] * 20 + [" no", "yes", "yes", "maybe"], True),
        (["true", "false"] * 6, True),
        ([str(n % 2) for n in range(40)], True),
        (["1.0", "0.0"] * 8, True),
        ([f"class {n % 12}" for n in range(60)], True),
        ([f"class {n % 77}" for n in range(308)], True),
        (list("aaabbbccddeefgg"), True),  # 15 rows of 7 labels
        (["yes", "no"] * 3, False),  # too few rows to tell
        ([f"answer {n}" for n in range(60)], False),
        ([f"answer {n % 20}" for n in range(30)], False),
        ([f"{n % 13}" for n in range(60)], False),  # more numbers than ratings have
        (["0.5", "1.5"] * 8, False),
        (["4"] * 12 + [str(n) for n in range(10, 16)], False),  # a number that comes again
        (
            ["A long answer in a sentence or two, which happens to come again."] * 9 + ["x"] * 9,
            False,
        ),
        (["yes"] * 20, False),
    ],
)
def test_answers_that_come_again_are_labels(responses: list[str], labelled: bool) -> None:
    assert are_labels(responses) == labelled


def test_rows_that_ask_the_same_stay_on_one_side() -> None:
    pairs = [Pair(n, f"question {n // 2}", f"answer {n}") for n in range(40)]
    for seed in range(5):
        split = split_off_test(TaskFile(Path("x"), "x", pairs), None, seed)
        assert not {p.query for p in split.train} & {p.query for p in split.test}
        assert 0 < len(split.test) <= 8


def test_a_schema_leaves_open_what_few_rows_do_not_close() -> None:
    cities = [f"city {n}" for n in (0, 1, 2, 3, 4, 5) * 2]  # 6 seen, 11 in the next rows
    rows: list[Row] = [
        {
            "city": city,
            "tags": ["a", n],
            "who": {"name": f"n{n}", "age": n} | ({"nick": "x"} if n else {}),
            "where": {"x": n, "y": [n / 2]},
            "maybe": None if n else {"z": True},
        }
        for n, city in enumerate(cities)
    ]
    schema = infer_schema(rows)
    assert schema["properties"] == {
        "city": {"type": "string", "minLength": 1},
        "tags": {"type": "array", "items": {"type": ["integer", "string"]}},
        "who": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "minLength": 1},
                "age": {"type": "integer"},
                "nick": {"enum": ["x"]},
            },
            "required": ["name", "age"],
        },
        "where": {
            "type": "object",
            "properties": {
                "x": {"type": "integer"},
                "y": {"type": "array", "items": {"type": "number"}},
            },
            "required": ["x", "y"],
            "additionalProperties": False,
        },
        "maybe": {
            "type": ["null", "object"],
            "properties": {"z": {"type": "boolean"}},
            "required": ["z"],
            "additionalProperties": False,
        },
    }
    assert schema["additionalProperties"] is False
    assert "additionalProperties" not in infer_schema([{"a": 1}, {"a": 1, "b": 2}])
    assert infer_schema([[{"a": 1}], []])["items"]["required"] == ["a"]


def test_the_label_is_told_and_may_be_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"query": f"Row {n}", "response": {"unit": "kg" if n % 2 else "g", "city": f"c{n % 7}"}}
            for n in range(21)]  # fmt: skip
    path = write_table(tmp_path / "rows.jsonl", rows)
    assert new(tmp_path, "--train", str(path)) == 0
    assert "'unit' is taken for the label; --label NAME names another, or none" in (
        capsys.readouterr().out
    )
    assert load_card("own").answer.label == "unit"
    assert new(tmp_path, "--train", str(path), "--label", "none", "--force") == 0
    assert load_card("own").answer.label is None
    assert new(tmp_path, "--train", str(path), "--label", "city", "--force") == 0
    schema = json.loads(load_card("own").file("answer.schema.json").read_text())
    assert schema["properties"]["city"] == {"enum": [f"c{n}" for n in range(7)]}


# ---------------------------------------------------------------- ms-swift trains with it
