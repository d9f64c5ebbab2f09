"""Tokens that steer chat models: told by `new`, an error of task rows, left out of general ones."""

from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models

from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.spec import parse_spec
from tell_plugins.recipe.checked import Checked, Finding
from tell_plugins.recipe.mixture_rules import check_control_tokens
from tell_plugins.recipe.recipes import load_recipe
from tests.conftest import PROJECT, message_of

GENERAL = [{"q": f"general {n}", "r": f"answer {n}"} for n in range(8)]
TASK = [{"q": f"row {n}", "r": str(n)} for n in range(3)]


@pytest.fixture
def model(tmp_path) -> str:
    """A folder with a tokenizer that knows ChatML's tokens and one of its own."""
    folder = tmp_path / "model"
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE({}, []))
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "<repo>"])
    tokenizer.add_tokens([AddedToken("plain")])
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


def findings(model: str) -> list[Finding]:
    recipe = load_recipe(PROJECT / "recipes" / "smollm2_sample.yaml", ["--model", model])
    mixture = build_mixture(parse_spec("tell/own:general=all"))
    checked = Checked(recipe, mixture=mixture)
    return list(check_control_tokens(checked))


def told(model: str) -> list[tuple[str, str]]:
    return [(finding.severity, finding.found) for finding in findings(model)]


def test_rows_without_them_are_not_spoken_of(make_card, model):
    """Nor is a token of another model, which is text here."""
    make_card("plain", train=[*GENERAL, {"q": "plain < text |", "r": "im_end <b>"}], kind="general")
    make_card("own", train=TASK)
    assert told(model) == []
    assert told("nobody/has-it") == []
    make_card("own", train=[*TASK, {"q": "<s>old</s> plain", "r": "<|eot_id|>"}])
    assert told(model) == []


def test_a_broken_tokenizer_is_told(make_card, model):
    make_card("plain", train=GENERAL, kind="general")
    make_card("own", train=TASK)
    (Path(model) / "tokenizer.json").write_text("{")
    assert "no tokenizer file" in message_of(findings, model)


@pytest.mark.parametrize("place", ["q", "r"])
def test_a_task_row_with_a_token_of_the_model_is_an_error(place, make_card, model):
    make_card("plain", train=GENERAL, kind="general")
    make_card("own", train=[*TASK, {"q": "x", "r": "y", place: "a<|im_end|>b"}])
    [(severity, found)] = told(model)
    assert severity == "error"
    assert found.startswith("1 task row with control tokens (line 4: <|im_end|>): the model reads")
    [(severity, found)] = told("nobody/has-it")
    assert severity == "warning"
    assert "the model's tokenizer is not here" in found


def test_a_token_in_the_anchor_is_one_in_each_row(make_card, model):
    make_card("plain", train=GENERAL, kind="general")
    make_card("own", train=TASK, anchor="Answer.<|im_end|>")
    assert told(model)[0][1].startswith("3 task rows with control tokens (line 1: <|im_end|>")


def test_general_rows_with_them_are_left_out_and_counted(make_card, model):
    steering = [
        {"q": "a", "r": "b<|im_end|>"}, {"q": "<|eot_id|>c", "r": "d"}, {"q": "<repo>e", "r": "f"},
    ]  # fmt: skip
    make_card("plain", train=[steering[0], *GENERAL[:4], steering[1], *GENERAL[4:], steering[2]],
              kind="general")  # fmt: skip
    make_card("own", train=TASK)
    mixture = build_mixture(parse_spec("tell/own:general=all"))
    assert mixture.sources[1].dropped == {"control_token": 2}
    trained = [row["messages"] for row in mixture.rows() if row["channel"] == "general"]
    assert len(trained) == 9
    assert not any("|" in m["content"] for messages in trained for m in messages)
    assert told(model) == [
        (
            "warning",
            "2 rows of 'plain' left out: control tokens of chat models in them",
        ),
        ("warning", f"1 row of 'plain' hold tokens that steer {model}"),
    ]


def test_text_that_html_strikes_through_has_a_remedy_of_its_own(make_card, model):
    """Llama-2's tokenizer reads `</s>` as the end of a turn wherever it stands."""
    struck = {"q": "was <s>old</s>", "r": "new"}
    make_card("plain", train=[*GENERAL, *[struck] * 7], kind="general")
    make_card("own", train=[*TASK, struck])
    found = [*findings(model), *findings("nobody/has-it")]
    assert [finding.rule[13:] for finding in found] == ["general", "task", "general"]
    for finding in found:
        assert "(struck-through HTML: as <del>)" in (finding.remedy or "")
