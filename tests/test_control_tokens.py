"""Tokens that steer chat models: an error in task rows, left out of general ones."""

from pathlib import Path
from typing import Any

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
STRUCK = {"q": "was <s>old</s>", "r": "new"}  # Llama-2 reads `</s>` as the end of a turn
NOBODY = "nobody/has-it"


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
    return list(check_control_tokens(Checked(recipe, mixture=mixture)))


END = {"q": "a<|im_end|>b", "r": "y"}
KNOWN = "1 task row with control tokens (line 4: <|im_end|>): the model reads"


@pytest.mark.parametrize(
    ("row", "keys", "own", "others"),
    [
        ({"q": "plain < text |", "r": "im_end <b>"}, {}, "", ""),
        ({"q": "x", "r": "<|eot_id|>"}, {}, "", "the model's tokenizer is not here"),
        (END, {}, KNOWN, "the model's tokenizer is not here"),
        ({"q": "x", "r": END["q"]}, {}, KNOWN, "the model's tokenizer is not here"),
        (STRUCK, {}, "", "(struck-through HTML: as <del>)"),
        (TASK[0], {"anchor": "<|im_end|>"}, "4 task rows with control tokens (line 1: ", "is not"),
    ],
)
def test_task_rows(row, keys: dict[str, Any], own, others, make_card, model):
    """An error where the model has the token; else a warning of what other models have."""
    make_card("plain", train=GENERAL, kind="general")
    make_card("own", train=[*TASK, row], **keys)
    for name, says, severity in ((model, own, "error"), (NOBODY, others, "warning")):
        found = findings(name)
        assert len(found) == bool(says)
        for finding in found:
            assert finding.severity == severity
            assert says in str(finding)


def test_a_broken_tokenizer_is_told(make_card, model):
    make_card("plain", train=GENERAL, kind="general")
    make_card("own", train=TASK)
    (Path(model) / "tokenizer.json").write_text("{")
    assert "no tokenizer file" in message_of(findings, model)


def test_general_rows_with_them_are_left_out_and_counted(make_card, model):
    steering = [{"q": "a", "r": "b<|im_end|>"}, {"q": "<|eot_id|>c", "r": "d"}]
    own = {"q": "<repo>e", "r": "f"}  # which only this model knows
    make_card("plain", train=[steering[0], *GENERAL, steering[1], own], kind="general")
    make_card("own", train=TASK)
    mixture = build_mixture(parse_spec("tell/own:general=all"))
    assert mixture.sources[1].dropped == {"control_token": 2}
    trained = [row["messages"] for row in mixture.rows() if row["channel"] == "general"]
    assert len(trained) == 9
    assert not any("|" in m["content"] for messages in trained for m in messages)
    left_out, steers = findings(model)
    assert left_out.severity == steers.severity == "warning"
    assert left_out.found.startswith("2 rows of 'plain' left out: control tokens")
    assert "(struck-through HTML: as <del>)" in (left_out.remedy or "")
    assert steers.found == f"1 row of 'plain' hold tokens that steer {model}"
