"""`new`: every format and form of rows becomes a card and a recipe that works, or a clear error."""

import json
import shutil
import subprocess
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tell_plugins.core import paths
from tell_plugins.core.cards import load_card
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.sources import open_task
from tell_plugins.core.spec import parse_spec
from tell_plugins.preparation.answers import infer_schema, json_of_python, kind_of
from tell_plugins.preparation.forms import Row as TaskRow
from tell_plugins.preparation.own_task import split_off_test
from tell_plugins.preparation.task_recipe import (
    _patterns,
    general_rows_for,
    method_of,
    recipe_of,
    repeat_of,
    short_names,
)
from tell_plugins.recipe.recipes import Recipe, load_recipe
from tests.conftest import PROJECT
from tests.own_task import ANCHOR, Own, Row


def texts(count: int = 12) -> list[tuple[str, str]]:
    """(query, response) pairs; every third is labelled yes."""
    return [
        (
            f"Message {n}: " + ("it rains, again" if n % 3 == 0 else 'the cat\tsleeps, "well"'),
            json.dumps({"thought": f"Number {n}.", "weather": "no" if n % 3 else "yes"}),
        )
        for n in range(count)
    ]


def rows_of(count: int = 12) -> list[Row]:
    return [{"query": q, "response": r, "history": []} for q, r in texts(count)]


def answered(answers: list[Any], start: int = 0) -> list[Row]:
    """A row for each answer."""
    return [{"query": f"Row {n}?", "response": answer} for n, answer in enumerate(answers, start)]


@pytest.fixture
def own(tmp_path, capsys) -> Own:
    return Own(tmp_path, capsys)


@pytest.fixture
def rows(own) -> str:
    """A file of twelve rows."""
    return own.table(rows_of())


# ---------------------------------------------------------------- what works


def test_a_table_ends_in_a_mixture(own):
    table = [{"id": "7", "title": "", "body": q, "verdict": r} for q, r in texts()]
    out = own.new(own.table(table, "rows.csv"), "--columns", "query=title+body,response=verdict")
    mixture = build_mixture(own.recipe().spec)
    train = [row["messages"] for row in mixture.rows() if row["channel"] == "task"]
    test = open_task(load_card("own"), "test")
    seen = {(user["content"], answer["content"]) for user, answer in train}
    seen |= set(zip(test.queries, test.responses, strict=True))
    assert seen == {(f"{ANCHOR}\n\n{query}", response) for query, response in texts()}
    assert (len(train), len(test)) == (10, 2)
    assert out.count("--- row") == 3
    assert f"[user]\n  {ANCHOR}\n  \n  Message" in out
    assert f"./run.sh check {own.recipes / 'smollm2_own.yaml'}" in out

    card = load_card("own")
    assert (card.metric, card.answer.label) == ("json", "weather")
    schema = json.loads(card.file("answer.schema.json").read_text())
    assert schema["required"] == ["thought", "weather"]
    assert schema["properties"]["weather"] == {"enum": ["no", "yes"]}


def test_the_recipe_is_the_patterns_but_for_task_and_output(own, rows):
    own.new(rows)
    pattern = load_recipe(PROJECT / "recipes" / "smollm2_sample.yaml").values
    of_the_task = {"dataset": ["tell/own"], "output_dir": "output/smollm2_own"}
    assert own.recipe().values == pattern | of_the_task
    text = own.recipe().path.read_text()
    assert "# --- training ---" in text
    assert "higher: learns from fewer steps" in text
    head = text.split("\n\n")[0].splitlines()
    assert head[0] == "# TELL on SmolLM2-135M-Instruct: the task own, 10 rows among general data."
    assert len(head) <= 12
    marks = [line.split()[1] for line in head[1:] if line[2] != " "]
    assert marks == ["Launch:", "Needs:", "First:", "Result:", "Differs:"]
    assert max(map(len, head[5:])) <= 100


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


def pattern_file(own: Own, text: str) -> tuple[str, str]:
    """A recipe of the test's own to start from, as flags."""
    (own.folder / "tiny.yaml").write_text(text)
    return "--model", str(own.folder / "tiny.yaml")


def test_a_pattern_with_lists_of_items_loses_nothing_else(own, rows):
    own.new(rows, *pattern_file(own, BLOCK_STYLE))
    assert own.recipe("tiny_own").values == {
        "model": "models/SmolLM2-135M-Instruct",
        "dataset": ["tell/own"],
        "learning_rate": 4.0e-3,
        "output_dir": "output/tiny_own",
        "seed": 42,
    }
    text = own.recipe("tiny_own").path.read_text()
    assert "# how it learns\nlearning_rate" in text


@pytest.mark.parametrize(
    "pattern",
    [
        '{"model": "m", "dataset": ["tell/sample_complaints"]}',
        "dataset: &rows [tell/sample_complaints]\nmodel: m\nother: *rows\nseed: 1\n",
    ],
)
def test_a_pattern_that_cannot_be_rewritten_is_refused(pattern, own, rows):
    message = own.refused(rows, *pattern_file(own, pattern))
    assert "another dataset cannot be written into this recipe" in message
    assert not own.card.exists()


@pytest.mark.parametrize(
    ("count", "fields", "times", "general"),
    [
        (15, False, 16, 192),
        (240, False, 1, 192),
        (1000, False, 1, 400),
        (15, True, 16, 96),
        (240, True, 2, 96),
    ],
)
def test_the_settings_follow_from_the_number_of_rows(count, fields, times, general):
    pattern = load_recipe("recipes/qwen_json.yaml")
    assert repeat_of(count, fields=fields) == times
    assert general_rows_for(count, fields=fields) == general
    held = method_of("hold", "t", count, pattern, repeat=times, general=f"{general}rows")
    repeat = f"/repeat={times}" if times > 1 else ""
    assert held.dataset == f"tell/t:general={general}rows/order=even{repeat}/kl=3"
    assert held.keys == {"loss_type": "tell", "gradient_accumulation_steps": 8}
    baseline = method_of("sft", "t", count, pattern, repeat=3)
    assert baseline.dataset == "tell/t:general=0/repeat=3"
    assert baseline.keys == {"gradient_accumulation_steps": 8}


def test_rows_of_several_fields_train_more_often(own):
    answers = [json.dumps({"table": str(n), "city": f"Paris {n}"}) for n in range(60)]
    own.new(own.table(answered(answers)), "--method", "hold")
    assert own.recipe().dataset_text == "tell/own:general=96rows/order=even/repeat=10/kl=3"
    assert own.recipe("smollm2_own_sft").dataset_text == "tell/own:general=0/repeat=12"


@pytest.mark.parametrize("method", ["hold", "mix"])
def test_a_method_comes_with_its_baseline(method, own):
    rows = own.table(rows_of(count=60))
    out = own.new(rows, "--method", method)
    recipe, baseline = own.recipe(), own.recipe("smollm2_own_sft")
    kl = "/kl=3" if method == "hold" else ""
    assert recipe.dataset_text == f"tell/own:general=192rows/order=even/repeat=5{kl}"
    assert baseline.dataset_text == "tell/own:general=0/repeat=9"
    assert len(build_mixture(recipe.spec)) == len(build_mixture(baseline.spec)) == 432
    pattern = load_recipe("recipes/smollm2_sample.yaml").values
    changed = {"dataset", "output_dir", "loss_type"}
    assert recipe.values["loss_type"] == "tell"
    assert baseline.values.get("loss_type") == pattern.get("loss_type")
    for made in (recipe, baseline):
        assert {key for key, value in made.values.items() if pattern.get(key) != value} <= changed
        head = made.path.read_text().split("\n\n")[0].splitlines()
        assert len(head) <= 12
        assert max(map(len, [head[0], *head[5:]])) <= 100
    assert "tests of one small model" in recipe.path.read_text()
    both = [str(made.path) for made in (recipe, baseline)]
    assert f"./run.sh check {' '.join(both)}" in out
    assert all(f"./run.sh train {name}\n" in out for name in both)
    assert f"./run.sh eval {both[0]} --against sft" in out
    # and a recipe of this kind is a pattern when it is named
    own.new(rows, "--model", both[0], "--method", "sft", name="other")
    own.new(rows, "--model", both[0], name="next")
    assert own.recipe("smollm2_next").dataset_text == "tell/next"


def test_an_amount_that_is_asked_counts(own):
    rows = own.table(rows_of(count=60))
    own.new(rows, "--amount", "200rows", "--method", "hold")
    assert own.recipe().dataset_text == "tell/own:order=even/repeat=5/kl=3"
    assert own.recipe("smollm2_own_sft").dataset_text == "tell/own:general=0/repeat=10"


def pattern(model: str, metric: str) -> Recipe:
    return recipe_of(model, None, None, metric)[0]


def test_a_recipe_of_ones_own_is_no_pattern_unless_it_is_named(own, rows, monkeypatch):
    """An earlier task's recipe, edited: its learning rate is not the next task's.

    Its card lies beside those that come along, as in a checkout.
    """
    shutil.copytree(PROJECT / "recipes", own.recipes)
    shutil.copytree(PROJECT / "datasets", own.card.parent)
    monkeypatch.setattr(paths, "RECIPES", own.recipes)
    for root in ("CARDS", "OWN_CARDS"):
        monkeypatch.setattr(paths, root, own.card.parent)
    own.new(rows, name="a")
    own.new(rows, name="another_json")
    mine = own.recipes / "smollm2_a.yaml"
    mine.write_text(mine.read_text().replace("learning_rate: 4.0e-3", "learning_rate: 1.0e-6"))
    assert pattern("smollm2", "json").path == own.recipes / "smollm2_sample.yaml"
    assert pattern(str(mine), "json").path == mine
    assert {recipe.name for recipe in _patterns("smollm2")} == {"smollm2_json", "smollm2_sample"}


OF_THE_PAPER = {
    ("qwen", "json"): "qwen_json",
    ("llama2", "json"): "llama2_json",
    ("llama2", "number"): "llama2_gsm8k",
    ("gemma", "label"): "gemma_en_is",
    ("smollm2", "json"): "smollm2_sample",
}


def test_the_patterns_are_the_packs_recipes():
    models = {path.stem.split("_")[0] for path in (PROJECT / "recipes").glob("*.yaml")}
    assert set(short_names()) == models
    chosen = {(model, metric): pattern(model, metric).name for model, metric in OF_THE_PAPER}
    assert chosen == OF_THE_PAPER


@pytest.mark.parametrize("metric", ["label", "json"])
def test_labels_are_split_in_their_shares_which_is_told_where_it_cannot_be(metric, own):
    """3 of 40 rows say yes: drawn without regard to that, a test set may hold none."""

    def table(answers: list[str], start: int = 0) -> str:
        made = [json.dumps({"urgent": a}) if metric == "json" else a for a in answers]
        return own.table(answered(made, start), f"{len(answers)}.csv")

    out = own.new(table(["no"] * 37 + ["yes"] * 3))
    assert "8 rows split off to test with" in out
    assert "in the labels' shares; 32 train" in out
    assert "WARNING" not in out
    assert load_card("own").metric == metric
    held_out = open_task(load_card("own"), "test").responses
    assert sum("yes" in response for response in held_out) == 1
    warning = "the label of every test row is 'no', so a model that always answers that scores"
    one_yes = table(["no"] * 40 + ["yes"])
    assert warning in own.new(one_yes, "--force")
    assert warning in own.new(one_yes, "--test", table(["no"] * 5, 100), "--force")
    of_two = table(["no"] * 5 + ["yes"], 100)
    assert "WARNING" not in own.new(one_yes, "--test", of_two, "--force")


@pytest.mark.parametrize(
    ("front", "training", "count"),
    [
        ("You read messages and answer in JSON, always.\n\nThe message:\n", "", 6),
        ("You read messages and answer in JSON, always. ", "Tell: ", 6),  # a longer front
        ("You read messages and answer in JSON, always. ", "", 1),  # one row
    ],
)
def test_the_anchor_is_what_the_rows_of_all_files_share(front, training, count, own):
    rows = [{"query": front + training + q, "response": r} for q, r in texts(count)]
    others = [{"query": f"{front}Other: {q}", "response": r} for q, r in texts(9)[6:]]
    test = own.table(others, "test.jsonl")
    own.new(own.table(rows), "--test", test, "--general", "sample_general", anchor=None)
    card = load_card("own")
    assert card.file("anchor.txt").read_text() == front.strip() + "\n"
    train, held_out = (open_task(card, split) for split in ("train", "test"))
    assert train.plain == [training + q for q, _ in texts(count)]
    assert held_out.plain == [f"Other: {q}" for q, _ in texts(9)[6:]]
    assert held_out.queries[0].startswith(f"{front.strip()}\n\nOther: ")


def test_an_anchor_is_a_text_or_a_file(own, rows):
    for text in ("\u5224\u65ad" * 43, "~ judge it", "A" * 300, "a/b? Judge it."):
        own.new(rows, "--force", anchor=text)
        assert load_card("own").file("anchor.txt").read_text(encoding="utf-8") == text + "\n"
    file = own.folder / "anchor.txt"
    file.write_text("\ufeffJudge it.\nIn JSON.\n", encoding="utf-8")
    own.new(rows, "--force", anchor=str(file))
    assert load_card("own").file("anchor.txt").read_text() == "Judge it.\nIn JSON.\n"


RATINGS = [[str(n % 2) for n in range(40)], ["1.0", "0.0"] * 8]
SENTENCE = "A long answer in a sentence or two, which happens to come again."
KINDS: dict[str, list[list[str]]] = {
    "json": [['{"a": 1}', '{"a": 2}'], ["[1, 2]", '["a"]']],
    "label": [
        *(["no"] * 10 + ["yes"] * 5, ["no"] * 20 + [" no", "yes", "yes", "maybe"]),
        *(["true", "false"] * 6, *RATINGS, list("aaabbbccddeefgg")),  # 15 rows of 7 labels
        *([f"class {n % 12}" for n in range(60)], [f"class {n % 77}" for n in range(308)]),
    ],
    "number": [
        *(["4", "-12.5"], ["2 + 2 is 4.\n#### 4", "#### 12"], ["0.5", "1.5"] * 8),
        [f"{n % 13}" for n in range(60)],  # more numbers than ratings have
        ["4"] * 12 + [str(n) for n in range(10, 16)],  # a number that comes again
    ],
    "text": [
        *(["It is warm.", "It is cold."], ["12,5", "1.234,56"], ["03.03.2024", "5.4.2"]),
        *(["192.168.0.1", "4"], ["yes"] * 20, [SENTENCE] * 9 + ["x"] * 9),
        ["yes", "no"] * 3,  # too few rows to tell
        *([f"answer {n}" for n in range(60)], [f"answer {n % 20}" for n in range(30)]),
    ],
}


@pytest.mark.parametrize("metric", KINDS)
def test_the_metric_is_told_by_the_responses(metric):
    assert [kind_of(responses) for responses in KINDS[metric]] == [metric] * len(KINDS[metric])


def test_the_metric_is_as_the_user_says(own):
    rows = own.table(answered(["Hello.", {"a": 1}] * 3))
    own.new(rows, "--languages", "Icelandic, English")
    card = load_card("own")
    assert card.metric == "translation"
    assert (card.translation.source, card.translation.target) == ("Icelandic", "English")
    own.new(rows, "--metric", "text", "--force")
    assert load_card("own").metric == "text"


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_general_data_of_ones_own_sets_an_amount_it_can_meet(own, rows, make_card):
    general = [{"q": f"general {n}", "r": f"answer {n}"} for n in range(60)]
    make_card("plain", train=general, kind="general")
    assert "10 rows of own, 50 rows of plain" in own.new(rows, "--general", "plain")
    assert str(load_card("own").general.amount) == "5x"
    make_card("other", train=[{"q": "?", "r": f"{n}"} for n in range(60)], kind="general")
    own.new(rows, "--general", "plain+other", "--force")
    assert load_card("own").general.sources == ("plain", "other")
    twice = ("--general", "plain+other", "plain")
    assert "'plain' is named twice" in own.refused(rows, *twice, "--force")
    (own.card / "mine.txt").write_text("Another anchor.")
    before = files_in(own.card)
    message = own.refused(rows, "--general", "plain", "--amount", "99rows", "--force")
    assert "99rows asked, but there are only 60 rows" in message
    assert files_in(own.card) == before, "a failure changed nothing"


def test_a_folder_with_a_blank_is_exported_so_that_a_shell_reads_it(own, rows, monkeypatch):
    monkeypatch.setenv("TELL_CARDS", "/before")
    folder = own.folder / "my $cards"
    out = own.new(rows, "--dir", str(folder))
    [line] = [line for line in out.splitlines() if "export" in line]
    shell = f'TELL_CARDS=/before; {line}; printf %s "$TELL_CARDS"'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert done.stdout == f"{folder}:/before"


def test_longest_answers_are_counted_with_the_models_own_tokenizer(own):
    model = own.folder / "model"
    shutil.copytree(PROJECT / "tests" / "golden", model)
    (model / "word_tokenizer.json").rename(model / "tokenizer.json")
    (model / "config.json").write_text("{}")
    pattern = BLOCK_STYLE.replace("models/SmolLM2-135M-Instruct", str(model))
    own.new(own.table(answered(["word " * 90] * 6)), *pattern_file(own, pattern))
    assert load_card("own").max_new_tokens == 160  # 90 words, a third and 16 more


def test_another_model_stands_beside_the_first(own, rows):
    """One card serves both; another task of the same name is refused."""
    own.new(rows)
    before = files_in(own.card)
    own.new(rows, "--model", "qwen")
    assert before == files_in(own.card)
    assert set(files_in(own.recipes)) == {"smollm2_own.yaml", "qwen_own.yaml"}
    other = own.table(rows_of(count=20), "other.jsonl")
    for train, *flags in ([other], [rows, "--amount", "90rows"], [rows, "--anchor", "Another."]):
        message = own.refused(train, *flags, "--model", "llama2")
        assert "cards/own would be overwritten" in message
    assert before == files_in(own.card)


def test_nothing_is_overwritten_without_force(own, rows):
    own.new(rows)
    before = files_in(own.card)
    out = own.new(rows, "--model", "qwen", name="fetched")
    assert "not ready to train yet" in out
    assert "  ./run.sh data " in out
    other = own.table(rows_of(count=20), "other.jsonl")
    assert "would be overwritten" in own.refused(other)
    assert files_in(own.card) == before
    own.new(other, "--force")
    assert len(build_mixture(parse_spec("tell/own:general=0"))) == 16
    assert "there is another card 'gsm8k'" in own.refused(rows, name="gsm8k")


# ---------------------------------------------------------------- bad files


def turns(*texts: str, **last: Any) -> Row:
    """A row of messages, user and assistant in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    messages[-1] |= last
    return {"messages": messages}


PAIR = {"query": "a", "response": "b"}
CHAT = [{"from": "human", "value": "a"}, {"from": "tool", "value": "b"}]
TWEETS = [{"id": 7, "tweet": q, "category": {"rain": r}} for q, r in texts()]
FRONT = "You read messages and answer in JSON, always.\n"
MIXED = [{"query": q, "response": r} for q, r in [*texts(), ("What?", 0.5), ("", "x"), ("Y", "")]]
NUMBERS = answered([f"It is {n}." if n != 4 else "12,5 or so" for n in range(12)])


@pytest.mark.parametrize(
    ("rows", "flags", "told"),
    [
        (TWEETS, [], "rows.jsonl, line 1: columns id, tweet, category are of no known form"),
        (TWEETS, [], "--columns query=tweet,response=category names them"),
        (TWEETS, ["--columns", "query=tweet,response=Category"], "did you mean 'category'?"),
        (TWEETS, ["--columns", "qury=a"], "bad value 'qury=a'"),
        (NUMBERS, ["--metric", "number"], "line 5: ends with no number"),
        (MIXED, [], "3 rows cannot be used: rows.jsonl, line 13: column 'response' is float, not"),
        (MIXED, [], "rows.jsonl, line 14: the query is empty; rows.jsonl, line 15: the response"),
        (MIXED, [], "(write dates, and numbers with a fraction, as text)"),
        (answered(["x"] * 3), [], "of 3 rows 1 cannot be split off"),
        ([*rows_of(), PAIR], ["--metric", "json"], "line 13: no JSON"),
        ([turns("x")], [], "line 1: turns user: not"),
        ([{"messages": "x"}], [], "column 'messages' is no JSON list of turns"),
        ([{"messages": [{"who": "user"}]}], [], "a turn is no object with 'role'"),
        ([{"conversations": CHAT}], [], "turns human, tool"),
        ([turns("x", "y", content=[{"type": "image_url"}])], [], "part of a turn is 'image_url'"),
        ([turns("x", "", tool_calls=[{"id": 1}])], [], "a turn calls tools: only text"),
        ([PAIR | {"history": [["x"]]}], [], "the history is no list of [question, answer]"),
        ([PAIR | {"tools": "[{}]"}], [], "column 'tools' is not empty: only text"),
        ([PAIR | {"system": {"a": 1}}], [], "the system prompt is dict, not text"),
        ([PAIR | {"system": "\ud800"}], [], "the system prompt holds half a character"),
        ([{"instruction": "a", "input": {"b": 1}, "output": "c"}], [], "column 'input' is dict"),
    ],
)
def test_rows_that_are_refused(rows, flags, told, own):
    assert told in own.fails(own.table(rows), *flags)


def test_an_anchor_that_is_missing_is_asked_for(own, rows):
    assert "--anchor 'TEXT'" in own.fails(rows, anchor=None)
    unlike = own.table([{"query": f"{n} apart", "response": "x"} for n in range(9)])
    assert "the rows share none at the front" in own.fails(unlike, anchor="inline")
    for seed in "12345":  # whether it trains or tests
        bare = [
            {"query": FRONT + q, "response": r} for q, r in [*texts(3), ("", "{}"), ("x", "{}")]
        ]
        message = own.fails(own.table(bare), "--seed", seed, "--metric", "text", anchor=None)
        assert "rows.jsonl, line 4: nothing but the text that all rows begin with" in message


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--test-rows", "0"), "argument --test-rows: 0 is too small"),
        (("--test-rows", "11"), "of 12 rows 11 cannot be split off to test with"),
        (("--general", "sample_general", "sample_general"), "'sample_general' is named twice"),
        (("--general", "sample_complaints"), "sample_complaints' is task data"),
        (("--general", "alpaca"), "unknown card 'alpaca'"),
        (("--amount", "40"), "bad amount '40'"),
        (("--metric", "translation"), "two languages"),
        (("--label", "wether"), "did you mean 'weather'"),
        (("--anchor", " "), "the anchor is empty"),
        (("--anchor", "caf\udce9"), "is not UTF-8"),
        (("--anchor", "notes/my anchor.MD"), "no file 'notes/my anchor.MD'"),
    ],
)
def test_flags_that_are_refused(flags, says, own, rows):
    assert says in own.fails(rows, *flags)


def test_columns_of_another_sheet(own):
    """Of a workbook the first sheet is read, which is said where its columns are not the ones."""
    path = own.folder / "two.xlsx"
    with pd.ExcelWriter(path) as book:
        pd.DataFrame({"hint": ["read me"], "day": [date(2026, 1, 2)]}).to_excel(book, "Info")
        pd.DataFrame(rows_of()).to_excel(book, "Rows")
    for flags in ((), ("--columns", "query=query,response=response")):
        assert "of two.xlsx the first sheet is read, 'Info'" in own.fails(str(path), *flags)
    message = own.fails(str(path), "--columns", "query=day,response=hint")
    assert "column 'day' is datetime, not text" in message


def test_duplicate_rows_are_kept_once_and_told(own):
    rows = rows_of()
    rows.append(dict(rows[0]))
    rows.append({"query": rows[1]["query"].upper() + " ", "response": rows[1]["response"]})
    rows.append({"query": rows[2]["query"], "response": rows[0]["response"]})
    out = own.new(own.table(rows))
    assert "left out: 1 row: rows.jsonl, line 13: repeats an earlier row" in out
    asked = "rows that ask what an earlier row asks and answer otherwise: rows.jsonl, line 15"
    assert f"note: {asked}\n" in out
    card = load_card("own")
    train, test = open_task(card, "train"), open_task(card, "test")
    assert len(train) + len(test) == 14
    assert not set(train.query_keys.tolist()) & set(test.query_keys.tolist())
    assert "answer otherwise" not in own.new(own.table(rows[:14]), "--force")


def test_what_a_held_out_row_asks_trains_nowhere_and_chooses_nothing(own):
    train, test = own.table(rows_of()[:8]), own.table(rows_of()[7:], "test.jsonl")
    shouted = [row | {"query": row["query"].upper()} for row in rows_of()[6:9]]
    more = own.table(shouted, "more.jsonl")
    flags = ("--test", test, "--validation", more)
    message = own.fails(train, *flags)
    assert "rows.jsonl, line 7: is a validation row" in message
    assert "rows.jsonl, line 8 and more.jsonl, lines 2, 3: is a test row" in message
    assert "left out: 4 rows: rows.jsonl" in own.new(train, *flags, "--drop-overlap")
    assert {n: s.rows for n, s in load_card("own").splits.items()} == {
        **{"train": 6, "validation": 1, "test": 5}
    }
    message = own.refused(test, "--test", test, "--drop-overlap", "--force")
    assert "is a test row" in message, "none would be left"


@pytest.mark.parametrize(
    ("response", "problem"),
    [
        ('{"a": NaN}', "NaN is no finite number"),
        ('{"a": -Infinity}', "-Infinity is no finite number"),
        ('{"a": 1e999}', "1e999 is no finite number"),
        ('{"a": 1, "a": 2}', "key 'a' stands twice"),
        ("{'a': 1}", "Expecting property name enclosed in double quotes"),
        ('{"a": True}', "Expecting value"),
    ],
)
def test_answers_that_the_strict_scorer_rejects_never_train(response, problem, own):
    for good in (0, 9):
        rows = own.table(answered(['{"a": 1}'] * good + [response] * (12 - good)))
        told = f"{'10, 11, 12' if good else '...'}: no JSON ({problem}"
        assert told in own.fails(rows)
    own.fails(rows, "--metric", "json")
    (own.folder / "schema.json").write_text("{}")
    assert told in own.fails(rows, "--schema", str(own.folder / "schema.json"))


def test_answers_in_python_are_repaired_where_it_is_asked(own):
    train = answered(["{'a': 1}"] * 10 + ['{"a": NaN}', '{"a": 1, "a": 2}', '{"a": 2}'])
    flags = [own.table(train), "--test", own.table(answered(["{'a': None}"], 99), "test.csv")]
    assert "--repair-json writes Python's dicts" in own.fails(*flags)
    message = own.fails(*flags, "--repair-json")
    assert (
        "line 11: no JSON (NaN is no finite number); rows.jsonl, line 12: no JSON (key" in message
    )
    assert "--drop-broken leaves the rows out" in message
    out = own.new(*flags, "--repair-json", "--drop-broken")
    told = "wrote Python's answers as JSON: rows.jsonl, lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and "
    assert f"{told}test.csv, line 2" in out
    assert "left out: 2 rows: rows.jsonl, line 11: no JSON (NaN is no finite number);" in out
    train = open_task(load_card("own"), "train").responses
    assert train == ['{"a": 1}'] * 10 + ['{"a": 2}']
    assert open_task(load_card("own"), "test").responses == ['{"a": null}']
    whole = own.table(answered(['{"a": "yes", "b": 1}'] * 12), "whole.csv")
    said = own.new(whole, "--repair-json", name="other")
    assert "JSON: no answer is a Python" in said


def test_python_that_json_can_say():
    for text, written in (
        ("{'a': [True, None, -1.5, {'b': \"it's\"}]}", '{"a": [true, null, -1.5, {"b": "it\'s"}]}'),
        (" ['\\n', 'é'] ", '["\\n", "é"]'),
        ('{"a": None}', '{"a": null}'),
        ("{}", "{}"),
    ):
        assert json_of_python(text) == written
    for text in (
        *("{'a': 1, 'a': 2}", "{'b': {'a': 1, 'a': 1}}", "{'a': nan}", "{'a': 1e999}", "{1: 'a'}"),
        *("{True: 'a'}", "{'a': (1, 2)}", "{'a', 'b'}", "{**{'a': 1}}", "['a' 'b']", "['\\d']"),
        *("[1j]", "['\\ud800']", "[b'a']", "[f'a']", "['a'.upper()]", "'a'", "", "{'a': true}"),
        *("[1 2]", "[- -1]", "[" * 2000, "['a"),
    ):
        assert json_of_python(text) is None, text


@pytest.mark.parametrize(
    ("other", "shown"),
    [("Yes", "'Yes'"), ("yes ", "'yes '"), ("y\u200bes", "'y\\u200bes'")],
)
@pytest.mark.parametrize("json_answers", [False, True])
def test_labels_of_two_spellings_are_one_question(other, shown, json_answers, own):
    answers = ["yes"] * 9 + [other] * 3 + ["no"] * 8
    if json_answers:
        answers = [json.dumps({"urgent": answer}, ensure_ascii=False) for answer in answers]
    rows = own.table(answered(answers))
    message = own.fails(rows)
    assert f"Unicode form: 'yes', {shown}\n" in message
    assert "--clean-labels" in message
    own.new(rows, "--clean-labels")
    card = load_card("own")
    written = [*open_task(card, "train").responses, *open_task(card, "test").responses]
    assert Counter("yes" in row for row in written) == {True: 12, False: 8}
    assert len(set(written)) == 2


def test_labels_are_told_and_stand_in_the_card(own):
    rows = own.table(answered(["0", "1", "1"] * 10), "rows.csv")
    told = "the answers are taken for 2 labels ('0' 10x, '1' 20x); if they are not: --metric text"
    assert told in own.new(rows)
    card = load_card("own")
    assert (card.metric, card.answer.labels) == ("label", ("0", "1"))
    assert sorted(Counter(open_task(card, "test").responses).values()) == [2, 4]
    other = own.table([{"query": "New?", "response": "2"}], "other.csv")
    out = own.new(rows, "--test", other, "--force")
    assert "WARNING: no training row has the label '2'" in out
    assert load_card("own").answer.labels == ("0", "1", "2")
    one = own.table(answered(["1"] * 12), "one.csv")
    message = own.refused(one, "--metric", "label", "--force")
    assert "all training answers are '1'" in message


def test_what_few_test_rows_show_is_said(own):
    """15 rows of five labels: each label trains and tests."""
    out = own.new(own.table(answered(list("aaabbbcccdddeee"))))
    assert "only 5 test rows: the 95 % interval of a score is up to 33 points to either side" in out
    assert sorted(open_task(load_card("own"), "test").responses) == list("abcde")
    assert "10 training rows, 5 test rows\n" in out
    many = own.table(answered(["yes", "no"] * 200), "many.jsonl")
    assert "95 % interval" not in own.new(many, "--force")


# ---------------------------------------------------------------- parts


def test_a_split_keeps_the_labels_shares_and_does_not_hang_on_the_files_order():
    labels = ["yes"] * 20 + ["no"] * 80
    rows = [TaskRow("train", n, f"question {n}", label) for n, label in enumerate(labels, 1)]
    test = split_off_test(rows, labels, 42)
    assert Counter(row.response for row in test) == {"no": 16, "yes": 4}
    assert split_off_test(rows[::-1], labels[::-1], 42) == test
    assert split_off_test(rows, labels, 43) != test


def test_rows_that_ask_the_same_stay_on_one_side():
    rows = [TaskRow("train", n, f"question {n // 2}", f"answer {n}") for n in range(40)]
    for seed in range(5):
        test = split_off_test(rows, None, seed)
        assert not {row.query for row in test} & {row.query for row in {*rows} - test}
        assert 0 < len(test) <= 8


Z = {"properties": {"z": {"type": "boolean"}}, "required": ["z"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ([f"city {n % 6}" for n in range(12)], {"type": "string", "minLength": 1}),
        (["x"] * 12, {"enum": ["x"]}),
        (["x", ""], {"type": "string"}),
        ([1, 2.5], {"type": "number"}),
        ([["a", 1], []], {"type": "array", "items": {"type": ["integer", "string"]}}),
        ([None, {"z": True}], {"type": ["null", "object"], **Z}),
        ([[{"z": True}], []], {"type": "array", "items": {"type": "object", **Z}}),
        (
            [{"a": 1}, {"a": 1, "b": 2}],
            {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                "required": ["a"],
            },
        ),
    ],
)
def test_a_schema_leaves_open_what_few_rows_do_not_close(values, rule):
    schema = infer_schema([{"key": value} for value in values])
    assert schema["properties"] == {"key": rule}
    assert schema["additionalProperties"] is False


def test_the_label_is_told_and_may_be_chosen(own):
    answers = [{"unit": "kg" if n % 2 else "g", "city": f"c{n % 7}"} for n in range(21)]
    rows = own.table(answered(answers))
    out = own.new(rows)
    assert "'unit' is taken for the label; --label NAME names another, or none" in out
    assert "schema learnt from the responses: unit: 'g' | 'kg'; city: string\n" in out
    assert load_card("own").answer.label == "unit"
    own.new(rows, "--label", "none", "--force")
    assert load_card("own").answer.label is None
    own.new(rows, "--label", "city", "--force")
    card = load_card("own")
    schema = json.loads(card.schema_path().read_text())
    assert (card.answer.label, len(schema["properties"]["city"]["enum"])) == ("city", 7)
