"""Rivals without training answer through `eval` as systems of its table."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tell_plugins.core.cards import load_card
from tell_plugins.core.sources import open_task
from tell_plugins.core.spec import parse_spec
from tell_plugins.evaluation import rivals
from tell_plugins.evaluation.prompts import task_prompts
from tell_plugins.evaluation.scoring import load_scored
from tell_plugins.recipe.recipes import load_recipe
from tests.conftest import Cli, message_of
from tests.scripted_engine import ScriptedEngine, answer_by_script
from tests.tiny import make_tiny_cards, tiny_recipe

RecipeOf = Callable[..., Path]
MAIL = [("win money now", "spam"), ("see you at noon", "ham"), ("money for you", "spam")]


@pytest.fixture
def recipe_of(make_card, tmp_path) -> RecipeOf:
    make_tiny_cards(make_card)
    rows = [{"q": f"{text} {i}", "r": label} for i in range(4) for text, label in MAIL]
    tests = [{"q": "noon it is", "r": "ham"}, {"q": "win a lot of money", "r": "spam"}]
    make_card("mail", train=rows, test=tests, metric="label")
    thought = [{"q": r["q"], "r": json.dumps({"why": "so", "label": r["r"]})} for r in rows]
    for name, properties in (("told", ["why", "label"]), ("bare", ["label"])):
        allowed = {key: {} for key in properties} | {"label": {"enum": ["spam", "ham"]}}
        schema = {"type": "object", "properties": allowed}
        asked = [{"q": t["q"], "r": json.dumps({"why": "!", "label": t["r"]})} for t in tests]
        make_card(name, train=thought, test=asked, schema=schema, label="label")

    def make(card: str, amount: str = "all") -> Path:
        dataset = f"tell/{card}:task={amount}/general=4rows"
        return tiny_recipe(tmp_path / f"{card}.yaml", tmp_path / "model", dataset)

    return make


def answered(cli: Cli, recipe: Path, out: Path, *systems: str) -> dict[str, list[str]]:
    """The answers of each system, by row; all stand in the table that is printed."""
    said = cli(0, "eval", recipe, "--general-rows", 0, "--out", out, "--adapter", *systems)
    assert all({"none": "base"}.get(name, name) in said for name in systems)
    folders = {name: out / name / "test-greedy" for name in systems}
    return {name: [a.text for a in load_scored(f).answers] for name, f in folders.items()}


def test_rivals_stand_in_the_table_of_eval(recipe_of, tmp_path, monkeypatch, cli):
    answer_by_script(monkeypatch, lambda _, prompt: "ham")
    names, out = ("none", "shots", "choices", "words"), tmp_path / "eval"
    found = answered(cli, recipe_of("mail"), out, *names)
    assert found["none"] == found["shots"] == ["ham", "ham"]
    assert found["choices"] == ["ham", "ham"]  # the shorter text is the likelier one here
    assert found["words"] == ["ham", "spam"]
    assert rivals.closed_answers(load_card("bare")) == ['{"label": "spam"}', '{"label": "ham"}']
    settings = json.loads((out / "shots" / "test-greedy" / "settings.json").read_text())
    examples = json.loads((out / "shots" / "test-greedy" / "examples.json").read_text())
    assert settings["shots"] == len(examples["examples"]) == 12
    cli(0, "compare", out, "--out", tmp_path / "c", "--resamples", 100)


def test_word_counts_need_no_model_and_answer_as_the_training_rows(recipe_of, tmp_path, cli):
    """No model lies in the recipe's folder; the JSON of a training row carries the label."""
    found = answered(cli, recipe_of("told"), tmp_path / "eval", "words")
    assert [json.loads(text)["label"] for text in found["words"]] == ["ham", "spam"]
    assert all(json.loads(text)["why"] == "so" for text in found["words"])


def test_words_of_a_script_without_blanks(make_card, recipe_of, tmp_path, cli):
    """A sentence is no word there: nothing would come again, and all would get one label."""
    asked = [("请问怎么挂失？", "挂失"), ("我想转账，急", "转账")]
    make_card(
        "intents",
        train=[{"q": f"{n}号{q}", "r": r} for n in range(5) for q, r in asked],
        test=[{"q": "帮我转账吧", "r": "转账"}, {"q": "卡要挂失了", "r": "挂失"}],
        metric="label",
        answer={"labels": ["挂失", "转账"]},
        general={"from": ["plain"], "amount": "0"},
    )
    found = answered(cli, recipe_of("intents"), tmp_path / "eval", "words")
    assert found["words"] == ["转账", "挂失"]


def test_rivals_learn_from_the_rows_that_the_recipe_trains_on(recipe_of):
    recipe_of("mail")
    task, used = rivals.task_rows(parse_spec("tell/mail:task=5rows/general=40x/repeat=3"))
    assert (len(task), len(used), len(set(used))) == (12, 5, 5)
    assert used == rivals.task_rows(parse_spec("tell/mail:task=5rows/general=0"))[1]


def test_examples_end_where_the_context_does(recipe_of):
    """The scripted engine counts characters: three examples have room beside the question."""
    engine = ScriptedEngine(load_recipe(str(recipe_of("mail"))), lambda *_: "")
    _, prompts = task_prompts(load_card("mail"), "test", "none")
    ranked = rivals.ranked_examples(load_card("mail"), "none", "train")
    used = sum(len(example.query) + len(example.response) for example in ranked[:3])
    longest = max(len(prompt.text) for prompt in prompts)
    engine.context = longest + 8 + used + 2
    found = rivals.examples_that_fit(engine, parse_spec("tell/mail"), prompts, 8, "none")
    assert found.examples == ranked[:3]


@pytest.mark.parametrize(
    ("card", "rival", "message"),
    [
        ("told", "choices", "card 'told' has no closed answers to choose from"),
        ("numbers", "words", "card 'numbers' has no label that words could tell"),
    ],
)
def test_a_rival_that_cannot_answer_is_refused_before_a_model_is_loaded(
    card, rival, message, recipe_of, make_card, cli
):
    make_card("numbers", train=[{"q": "1", "r": "#### 1"}], test=[{"q": "2", "r": "#### 2"}])
    assert message in cli(1, "eval", recipe_of(card), "--adapter", rival)


def test_fixed_examples_are_drawn_by_seed_among_the_shorter_half(real_home):
    card = load_card("en_is_news")
    first = rivals.choose_examples(card, "card", 2)
    assert rivals.choose_examples(card, "card", 2) == first
    train = open_task(card, "train")
    sizes = [len(q) + len(r) for q, r in zip(train.queries, train.responses, strict=True)]
    assert len(first.history) == 2
    for example in first.examples:
        assert bytes(train.ids[example.row]).hex() == example.id
        mine = (train.queries[example.row], train.responses[example.row])
        assert (example.query, example.response) == mine
        assert sizes[example.row] <= np.median(sizes)


def test_examples_are_no_test_rows_and_not_too_few(make_card):
    rows = [{"q": "seen in test", "r": "#### 1"}, {"q": "not seen", "r": "#### 2"}]
    make_card("leaky", train=rows, test=[{"q": "Seen in  TEST.", "r": "#### 3"}])
    card = load_card("leaky")
    (example,) = rivals.ranked_examples(card, "card", "train")
    assert example.query.endswith("not seen")
    assert "2 examples asked, 1 rows" in message_of(rivals.choose_examples, card, "card", 2)
