"""The rows that forgetting is measured on: the project's own, varied, and never trained on."""

from collections import Counter

import pytest

from tell_plugins.core.cards import card_names, load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.rows import Rows
from tell_plugins.core.sources import find_file, open_split
from tell_plugins.core.spec import parse_spec
from tell_plugins.preparation.overlap import matches_of

CARD = "retention"


def _rows(split: str) -> list[tuple[str, str]]:
    return open_split(load_card(CARD), split).all_texts()


def _general_rows() -> list[tuple[str, Rows]]:
    """Every split of every general card whose file is on this machine."""
    cards = [load_card(name) for name in card_names() if name != CARD]
    general = [card for card in cards if card.kind == "general"]
    return [
        (f"{card.name}, {split}", open_split(card, split))
        for card in general
        for split in card.splits
        if find_file(card, split)
    ]


def test_there_are_enough_rows_of_many_kinds():
    questions, instructions, prose = map(_rows, ("questions", "instructions", "prose"))
    assert len(questions) >= 120
    kinds = Counter(kind for _, kind in questions)
    assert len(kinds) >= 12
    assert max(kinds.values()) <= len(questions) / 6
    assert len(instructions) >= 60
    assert len({response for _, response in instructions}) == len(instructions)
    assert len(prose) >= 25
    for title, text in prose:
        assert 60 <= len(text.split()) <= 120, title


def test_the_first_sixty_questions_are_of_all_kinds():
    """A part of the questions is their front, and no kind is missing from it."""
    kinds = [kind for _, kind in _rows("questions")]
    assert set(kinds[:60]) == set(kinds)


def test_no_answer_has_the_form_of_a_task():
    for split in ("instructions", "prose"):
        assert not [text for _, text in _rows(split) if text.lstrip()[0] in "{["]
    assert not [query for query, _ in _rows("questions") if "json" in query.lower()]


def _no_row_is_near(general: list[tuple[str, Rows]]) -> None:
    asked = [query for split in ("questions", "instructions") for query, _ in _rows(split)]
    for name, rows in general:
        found = [asked[match.query] for match in matches_of(rows, asked)]
        assert not found, name


def test_no_row_is_nearly_one_of_a_general_card():
    general = _general_rows()
    assert {"sample_general, train", "sample_general, heldout"} <= {name for name, _ in general}
    _no_row_is_near(general)


def test_no_row_is_nearly_one_of_a_downloaded_general_card(real_home):
    general = [(name, rows) for name, rows in _general_rows() if not name.startswith("sample")]
    assert "alpaca_en_demo, train" in {name for name, _ in general}
    _no_row_is_near(general)


def test_no_row_is_nearly_another():
    from rapidfuzz import fuzz, process

    from tell_plugins.preparation.overlap import SIMILARITY

    for texts in (
        [query for split in ("questions", "instructions") for query, _ in _rows(split)],
        [response for split in ("instructions", "prose") for _, response in _rows(split)],
    ):
        scores = process.cdist(texts, texts, scorer=fuzz.ratio, score_cutoff=SIMILARITY)
        assert (scores > 0).sum() == len(texts)  # each is like itself alone


@pytest.mark.parametrize(
    "spec",
    [
        "tell/sample_complaints:task=15rows/general=20rows/from=retention",
        "tell/sample_complaints:task=15rows/general=20rows/from=sample_general+retention",
        "tell/retention:split=questions",
        "tell/retention",
    ],
)
def test_its_rows_never_train(spec, tmp_path, tell):
    said = "the rows of card 'retention' never train"
    with pytest.raises(UserError, match=said):
        build_mixture(parse_spec(spec))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "model: models/SmolLM2-135M-Instruct\nmodel_type: llama\ntemplate: chatml\n"
        f"external_plugins: [tell_plugins/register.py]\ndataset: [{spec}]\nuse_cpu: true\n"
    )
    assert said in tell("mix", recipe, "--out", tmp_path / "mix", code=1)
