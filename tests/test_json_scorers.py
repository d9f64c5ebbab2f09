"""The four JSON scorers against answers whose verdicts are known, and the taxonomy of failures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.evaluation import scoring, taxonomy
from tell_plugins.evaluation.intervals import Rate
from tell_plugins.evaluation.scorers.json_readings import (
    SCORERS,
    AnswerSchema,
    card_schema,
    lenient,
    official,
    official_fixed,
    strict,
)
from tests.conftest import MakeCard
from tests.saved_answers import HALU_PERFECT as GOOD
from tests.saved_answers import answer_line, save_answers, save_lines


class Case(NamedTuple):
    """An answer to Halu-CoT-JSON and what each scorer says of it."""

    name: str
    text: str
    strict: str
    lenient: str
    official_fixed: str
    official: str = "invalid_json"  # what the published script makes of nearly everything
    finish: str = "stop"


OK = "adherent"
CASES = [
    # --- right answers ---------------------------------------------------------------------------
    Case("perfect no", GOOD, OK, OK, OK),
    Case("perfect yes", '{"thought": "Wrong year.", "hallucination": "yes"}', OK, OK, OK),
    Case("white space around", f" \r\n\t{GOOD}\n\n", OK, OK, OK),
    Case("over several lines", json.dumps(json.loads(GOOD), indent=4), OK, OK, OK),
    Case("no white space", '{"thought":"Fine.","hallucination":"no"}', OK, OK, OK),
    Case("keys the other way round", '{"hallucination": "no", "thought": "a"}', OK, OK, OK),
    Case("unicode escape", r'{"thought": "caf\u00e9", "hallucination": "no"}', OK, OK, OK),
    Case("escaped key", r'{"\u0074hought": "a", "hallucination": "no"}', OK, OK, OK),
    Case("surrogate pair", r'{"thought": "\ud83d\ude00", "hallucination": "no"}', OK, OK, OK),
    Case("lone surrogate", r'{"thought": "\ud800", "hallucination": "no"}', OK, OK, OK),
    Case("letters of many scripts", '{"thought": "Þú 你 😀", "hallucination": "no"}', OK, OK, OK),
    Case("escaped quotes", r'{"thought": "He said \"a\".", "hallucination": "no"}', OK, OK, OK),
    Case("escaped line break", r'{"thought": "a\nb", "hallucination": "no"}', OK, OK, OK),
    Case("apostrophes", '{"thought": "It isn\'t.", "hallucination": "no"}', OK, OK, OK),
    Case("fence in the thought", '{"thought": "``` a", "hallucination": "no"}', OK, OK, OK),
    Case("braces in the thought", '{"thought": "} {", "hallucination": "no"}', OK, OK, OK),
    # --- nothing, or no JSON ---------------------------------------------------------------------
    Case("empty", "", "empty", "empty", "empty", "empty"),
    Case("white space only", " \n\t ", "empty", "empty", "empty", "empty"),
    Case("no-break spaces only", "\u00a0\u00a0", "empty", "empty", "empty", "empty"),
    Case("Yes", "Yes", "prose", "prose", "prose"),
    Case("no with a full stop", "no.", "prose", "prose", "prose"),
    Case("a sentence", "There is no hallucination here.", "prose", "prose", "prose"),
    Case("prose that was cut", "The answer", "prose", "prose", "prose", finish="length"),
    Case("braces in prose", "Use {x} in the text.", "prose", "prose", "prose"),
    Case("keys without braces", "thought: a, hallucination: no", "prose", "prose", "prose"),
    # --- code fences -----------------------------------------------------------------------------
    Case("fence with language", f"```json\n{GOOD}\n```", "code_fence", OK, "code_fence"),
    Case("fence without language", f"```\n{GOOD}\n```", "code_fence", OK, "code_fence"),
    Case("fence never closed", f"```json\n{GOOD}", "code_fence", OK, "code_fence"),
    Case("fence on one line", f"```{GOOD}```", "code_fence", OK, "code_fence"),
    Case("tildes", f"~~~json\n{GOOD}\n~~~", "code_fence", OK, "code_fence"),
    Case("back-ticks", f"`{GOOD}`", "code_fence", OK, "code_fence"),
    Case("fence around a list", "```json\n[1]\n```", "code_fence", "not_object", "code_fence"),
    # --- text around -----------------------------------------------------------------------------
    Case("prose and a fence", f"Sure:\n```json\n{GOOD}\n```", "text_around", OK, "text_around"),
    Case("a fence and prose", f"```\n{GOOD}\n```\nDone.", "text_around", OK, "text_around"),
    Case("prose before", f"Answer: {GOOD}", "text_around", OK, "text_around"),
    Case("prose after", f"{GOOD}\nI hope this helps.", "text_around", OK, "text_around"),
    Case("prose on both sides", f"Well, {GOOD} Right?", "text_around", OK, "text_around"),
    Case("tags", f"<answer>{GOOD}</answer>", "text_around", OK, "text_around"),
    Case("byte order mark", f"\ufeff{GOOD}", "text_around", OK, "text_around"),
    Case("no-break space", f"\u00a0{GOOD}", "text_around", OK, "text_around"),
    Case("braces before", f"In {{this}} form: {GOOD}", "text_around", OK, "text_around"),
    Case(
        "the prompt's form repeated",
        f'As {{"thought": "xxx", "hallucination": "yes" or "no"}}: {GOOD}',
        "text_around",
        OK,
        "text_around",
    ),
    Case("a list in prose", f"Here: [{GOOD}]", "text_around", "not_object", "text_around"),
    Case("good, then cut prose", f"{GOOD} And", "text_around", OK, "text_around", finish="length"),
    Case("two objects", GOOD + GOOD, "several_values", OK, "several_values"),
    Case("two lines", f"{GOOD}\n{GOOD}\n", "several_values", OK, "several_values"),
    Case("objects and commas", f"{GOOD},{GOOD}", "several_values", OK, "several_values"),
    Case(
        "second one cut",
        f'{GOOD}\n{{"thought": "A',
        "text_around",
        OK,
        "text_around",
        finish="length",
    ),
    # --- broken JSON -----------------------------------------------------------------------------
    Case(
        "single quotes",
        "{'thought': 'a', 'hallucination': 'no'}",
        "invalid_json",
        "invalid_json",
        OK,
    ),
    Case(
        "single and double quotes",
        """{'thought': "It's a.", 'hallucination': 'no'}""",
        "invalid_json",
        "invalid_json",
        OK,
    ),
    Case(
        "escaped apostrophe",
        r"{'thought': 'It\'s a.', 'hallucination': 'no'}",
        "invalid_json",
        "invalid_json",
        OK,
    ),
    Case(
        "bare quotes in the thought",
        '{"thought": "He said "a" and left", "hallucination": "no"}',
        "invalid_json",
        "invalid_json",
        OK,
    ),
    Case(
        "single quotes, a number",
        "{'thought': 5, 'hallucination': 'no'}",
        "invalid_json",
        "invalid_json",
        OK,
    ),
    Case(
        "Python's None",
        "{'thought': None, 'hallucination': 'no'}",
        "invalid_json",
        "invalid_json",
        "invalid_json",
    ),
    *(
        Case(name, text, "invalid_json", "invalid_json", "invalid_json")
        for name, text in [
            ("typographic quotes", "{“thought”: “a”, “hallucination”: “no”}"),
            ("no comma", '{"thought": "a" "hallucination": "no"}'),
            ("comma at the end", '{"thought": "a", "hallucination": "no",}'),
            ("keys without quotes", '{thought: "a", hallucination: "no"}'),
            ("label without quotes", '{"thought": "a", "hallucination": no}'),
            ("a comment", '{"thought": "a", /* b */ "hallucination": "no"}'),
            ("raw line break", '{"thought": "a\nb", "hallucination": "no"}'),
            ("raw tab", '{"thought": "a\tb", "hallucination": "no"}'),
            ("raw zero byte", '{"thought": "a\x00b", "hallucination": "no"}'),
            ("unclosed, not cut", '{"thought": "a", "hallucination": "no"'),
            ("a brace alone", "{"),
            ("good object inside a broken one", f'{{"thought": oops, "x": {GOOD}}}'),
        ]
    ),
    *(
        Case(name, text, "truncated", "truncated", "truncated", finish="length")
        for name, text in [
            ("cut in the thought", '{"thought": "The answer sta'),
            ("cut after the thought", '{"thought": "a",'),
            ("cut before the last brace", '{"thought": "a", "hallucination": "no"'),
            ("cut in a fence", '```json\n{"thought": "a'),
            ("cut after prose", 'Sure: {"thought": "a'),
        ]
    ),
    # --- JSON, but not the right one -------------------------------------------------------------
    Case("empty list", "[]", "not_object", "not_object", "not_object", "crash"),
    Case("list of one", f"[{GOOD}]", "not_object", "not_object", "not_object"),
    Case("a string", '"yes"', "not_object", "not_object", "not_object"),
    Case("JSON in a string", json.dumps(GOOD), "not_object", "not_object", "not_object"),
    Case("null", "null", "not_object", "not_object", "not_object", "crash"),
    Case("true", "true", "not_object", "not_object", "not_object", "crash"),
    Case("a number", "42", "not_object", "not_object", "not_object", "crash"),
    Case("NaN alone", "NaN", "not_finite", "not_finite", "not_object", "crash"),
    Case(
        "nested too deeply",
        "[" * 100_000,
        "invalid_json",
        "invalid_json",
        "invalid_json",
        "crash",
    ),
    Case(
        "label twice",
        '{"thought": "a", "hallucination": "yes", "hallucination": "no"}',
        "duplicate_key",
        "duplicate_key",
        OK,
    ),
    Case(
        "NaN as label",
        '{"thought": "a", "hallucination": NaN}',
        "not_finite",
        "not_finite",
        OK,
    ),
    Case(
        "infinite by its exponent",
        '{"thought": 1e999, "hallucination": "no"}',
        "not_finite",
        "not_finite",
        OK,
    ),
    Case(
        "5,000 digits",
        f'{{"thought": "a", "hallucination": {"1" * 5000}}}',
        "not_finite",
        "not_finite",
        "not_finite",
    ),
    Case("empty object", "{}", "missing_key", "missing_key", OK, OK),
    Case("no label", '{"thought": "a"}', "missing_key", "missing_key", OK),
    Case("no thought", '{"hallucination": "no"}', "missing_key", "missing_key", OK),
    Case("nested one deeper", f'{{"answer": {GOOD}}}', "missing_key", "missing_key", OK),
    Case(
        "key with a capital",
        '{"thought": "a", "Hallucination": "no"}',
        "missing_key",
        "missing_key",
        OK,
    ),
    Case(
        "one key more",
        '{"thought": "a", "hallucination": "no", "confidence": 0.9}',
        "extra_key",
        "extra_key",
        OK,
    ),
    *(
        Case(name, f'{{"thought": "a", "hallucination": {label}}}', kind, kind, OK)
        for name, label, kind in [
            ("label maybe", '"maybe"', "wrong_enum"),
            ("label No", '"No"', "wrong_enum"),
            ("label with a space", '"no "', "wrong_enum"),
            ("label empty", '""', "wrong_enum"),
            ("label false", "false", "wrong_type"),
            ("label null", "null", "wrong_type"),
            ("label in a list", '["no"]', "wrong_type"),
            ("label in an object", '{"is": "no"}', "wrong_type"),
        ]
    ),
    *(
        Case(name, f'{{"thought": {thought}, "hallucination": "no"}}', kind, kind, OK)
        for name, thought, kind in [
            ("thought a number", "7", "wrong_type"),
            ("thought a list", '["a", "b"]', "wrong_type"),
            ("thought an object", '{"step": "a"}', "wrong_type"),
            ("thought empty", '""', "other_rule"),
        ]
    ),
    Case(
        "two rules broken",
        '{"thought": 7, "hallucination": "maybe"}',
        "wrong_type",
        "wrong_type",
        OK,
    ),
]


@pytest.fixture(scope="module")
def halu() -> AnswerSchema:
    return card_schema(load_card("halu_cot_json"))


def test_the_table_is_long_enough_and_names_each_case_once() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)
    kinds = {kind for case in CASES for kind in case[2:6]}
    of_others = {kind for kind in taxonomy.KINDS if kind.endswith(("_label", "_number", "_lines"))}
    assert kinds == {taxonomy.ADHERENT, *taxonomy.KINDS} - of_others


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_every_scorer_gives_the_expected_verdict(case: Case, halu: AnswerSchema) -> None:
    found = {
        scorer.__name__: scorer(case.text, case.finish, halu).kind
        for scorer in (strict, lenient, official_fixed, official)
    }
    assert found == {name: getattr(case, name) for name in found}


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_strict_never_accepts_what_lenient_refuses(case: Case, halu: AnswerSchema) -> None:
    if strict(case.text, case.finish, halu).adherent:
        tolerant = lenient(case.text, case.finish, halu)
        assert tolerant == strict(case.text, case.finish, halu)
        assert official_fixed(case.text, case.finish, halu).adherent


def test_a_list_is_an_answer_where_the_schema_wants_one() -> None:
    schema = AnswerSchema({"type": "array", "items": {"type": "integer"}}, None)
    verdicts = [strict(text, "stop", schema) for text in ("[1, 2]", '["a"]', '{"a": 1}')]
    assert [verdict.kind for verdict in verdicts] == ["adherent", "wrong_type", "not_object"]
    assert verdicts[0].value == [1, 2]


def test_long_and_odd_texts_do_not_stall(halu: AnswerSchema) -> None:
    for text in (
        '{"' * 20_000,
        "{'thought': '" * 5_000,
        '{"thought": "' + "a\"'," * 20_000,
        "`" * 9999,
    ):
        for scorer in SCORERS:
            assert not scorer.judge(text, "stop", halu).adherent


def test_the_official_repair_also_turns_yes_into_no(halu: AnswerSchema) -> None:
    assert official_fixed("{'thought': 'a', 'hallucination': 'yes'}", "stop", halu).value == {
        "thought": "a",
        "hallucination": "yes",
    }
    # the only strings that survive the published repair are none at all
    assert official('{"thought": "yes"}', "stop", halu).kind == "invalid_json"


# --- over whole folders ---------------------------------------------------------------------------


def halu_card(make_card: MakeCard, responses: list[str]) -> str:
    """A card with Halu-CoT-JSON's schema whose test responses are given."""
    schema = load_card("halu_cot_json").folder / "answer.schema.json"
    folder = make_card(
        "halu",
        train=[{"q": "q?", "r": GOOD}, {"q": "p?", "r": GOOD}],
        test=[{"q": f"question {i}", "r": text} for i, text in enumerate(responses)],
        metric="json",
        answer={"schema": "answer.schema.json", "label": "hallucination"},
    )
    (folder / "answer.schema.json").write_bytes(schema.read_bytes())
    return "halu"


def adherence_of(reading: scoring.Reading) -> Rate:
    found = reading.measures["adherence"]
    assert isinstance(found, Rate)
    return found


def test_a_perfect_model_scores_1_and_the_published_script_gives_it_0(
    real_home: Path, tmp_path: Path
) -> None:
    from tell_plugins.core.sources import open_task

    task = open_task(load_card("halu_cot_json"), "test")
    texts = [json.dumps({"thought": "Known.", "hallucination": r}) for r in task.responses]
    scores = scoring.write(save_answers(tmp_path / "a", "halu_cot_json", texts))
    adherence = {name: adherence_of(part) for name, part in scores.readings.items()}
    assert {name: (rate.k, rate.n) for name, rate in adherence.items()} == {
        "strict": (1506, 1506),
        "lenient": (1506, 1506),
        "official_fixed": (1506, 1506),
        "official": (0, 1000),
    }
    for name in ("strict", "lenient", "official_fixed"):
        found = scores.readings[name]
        assert found.measures["accuracy"].value == found.details["f1"].value == 1.0
    saved = json.loads((tmp_path / "a" / "scores.json").read_text())
    assert saved == json.loads(json.dumps(scores.to_dict()))


def test_failures_add_up_under_every_scorer(make_card: MakeCard, tmp_path: Path) -> None:
    card = halu_card(make_card, ["no"] * len(CASES))
    folder = save_answers(
        tmp_path / "a",
        card,
        [case.text for case in CASES],
        cut=[i for i, case in enumerate(CASES) if case.finish == "length"],
    )
    scores = scoring.score(folder)
    for name, found in scores.readings.items():
        kinds, adherence = [getattr(case, name) for case in CASES], adherence_of(found)
        assert adherence.k == kinds.count(OK)
        assert found.failures == taxonomy.count_kinds(k for k in kinds if k != OK)
        assert sum(found.failures.values()) == adherence.n - adherence.k
        assert adherence.low < adherence.k / len(CASES) < adherence.high
    assert scores.cut.k == sum(case.finish == "length" for case in CASES)


def test_several_attempts_count_but_do_not_narrow_the_interval(
    make_card: MakeCard, tmp_path: Path
) -> None:
    card = halu_card(make_card, ["no"] * 20)
    once = save_answers(tmp_path / "once", card, [GOOD] * 10 + ["Yes"] * 10)
    lines = [json.loads(line) for line in (once / "answers.jsonl").read_text().splitlines()]
    again = [{**line, "attempt": attempt} for attempt in range(3) for line in lines]
    first = scoring.score(once)
    three = scoring.score(save_lines(tmp_path / "three", card, again))
    a, b = adherence_of(first.first), adherence_of(three.first)
    assert (b.k, b.n, three.attempts, three.rows) == (30, 60, 3, 20)
    assert b.low == pytest.approx(a.low, abs=0.01)
    assert b.high == pytest.approx(a.high, abs=0.01)


def test_one_repeated_answer_shows(make_card: MakeCard, tmp_path: Path) -> None:
    card = halu_card(make_card, ["no", "yes", "no", "yes"])
    scores = scoring.score(save_answers(tmp_path / "a", card, [GOOD, GOOD, f" {GOOD}\n", "Yes"]))
    assert scores.most_frequent_answer.text == GOOD
    assert (scores.most_frequent_answer.share.k, scores.most_frequent_answer.distinct) == (3, 2)


def test_an_interrupted_run_is_scored_as_incomplete(make_card: MakeCard, tmp_path: Path) -> None:
    card = halu_card(make_card, ["no"] * 5)
    scores = scoring.score(save_answers(tmp_path / "a", card, {0: GOOD, 3: GOOD}, rows=5))
    assert (scores.rows, scores.expected, scores.complete) == (2, 5, False)


# --- answers that cannot be scored ---------------------------------------------------------------


def lines_of(make_card: MakeCard) -> tuple[str, list[dict[str, object]]]:
    from tell_plugins.core.sources import open_task

    card = halu_card(make_card, ["no"] * 4)
    ids = [bytes(i).hex() for i in open_task(load_card(card), "test").ids]
    return card, [answer_line(i, row, GOOD) for row, i in enumerate(ids)]


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        scoring.score(folder)
    assert "remedy" in str(caught.value) or "allowed" in str(caught.value)
    return str(caught.value)


def test_an_empty_file_is_refused(make_card: MakeCard, tmp_path: Path) -> None:
    card, _ = lines_of(make_card)
    assert "holds no answer" in refused(save_lines(tmp_path / "a", card, []))


def test_a_missing_file_or_settings_are_refused(make_card: MakeCard, tmp_path: Path) -> None:
    card, lines = lines_of(make_card)
    folder = save_lines(tmp_path / "a", card, lines)
    (folder / "settings.json").write_text('{"card": "halu"}')
    assert "key 'split' is missing" in refused(folder)
    (folder / "settings.json").write_text("{")
    assert "no JSON" in refused(folder)
    (folder / "settings.json").unlink()
    assert "no settings.json" in refused(folder)
    folder = save_lines(tmp_path / "b", card, lines)
    (folder / "answers.jsonl").unlink()
    assert "no answers.jsonl" in refused(folder)


def test_answers_to_other_rows_are_refused(make_card: MakeCard, tmp_path: Path) -> None:
    card, lines = lines_of(make_card)
    strange = [{**line, "id": "0" * 32} for line in lines]
    message = refused(save_lines(tmp_path / "all", card, strange))
    assert "none of the 4 answers" in message
    assert "another card or split" in message
    message = refused(save_lines(tmp_path / "one", card, [*lines[:3], strange[3]]))
    assert "1 of 4 answers have no row" in message
    assert "line 4" in message


def test_answers_to_another_split_are_refused(make_card: MakeCard, tmp_path: Path) -> None:
    card, lines = lines_of(make_card)
    message = refused(save_lines(tmp_path / "a", card, lines, split="train"))
    assert "none of the 4 answers" in message
    assert "split 'train'" in message


def test_an_answer_given_twice_is_refused(make_card: MakeCard, tmp_path: Path) -> None:
    card, lines = lines_of(make_card)
    message = refused(save_lines(tmp_path / "a", card, [*lines, lines[1]]))
    assert "2 answers share an id and attempt" in message
    assert "line 2, 5" in message


def test_a_torn_last_line_is_refused_and_a_broken_middle_one_too(
    make_card: MakeCard, tmp_path: Path
) -> None:
    card, lines = lines_of(make_card)
    path = save_lines(tmp_path / "a", card, lines) / "answers.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-30])
    message = refused(path.parent)
    assert "torn" in message
    assert "line 4" in message
    path.write_text(whole.replace('"stop"', "stop", 1))
    assert "answers.jsonl, line 1: no JSON" in refused(path.parent)
    path.write_text(whole.rstrip("\n"))  # whole, only without its line end
    assert scoring.score(path.parent).rows == 4


@pytest.mark.parametrize(
    ("change", "key"),
    [({"text": None}, "text"), ({"row": "1"}, "row"), ({"row": True}, "row"), ({"id": 5}, "id")],
)
def test_lines_that_are_no_answers_are_refused(
    make_card: MakeCard, tmp_path: Path, change: dict[str, object], key: str
) -> None:
    card, lines = lines_of(make_card)
    message = refused(save_lines(tmp_path / "a", card, [lines[0], {**lines[1], **change}]))
    assert f"key '{key}'" in message
    assert "line 2" in message


def test_a_row_that_moved_in_its_file_is_still_that_row(
    make_card: MakeCard, tmp_path: Path
) -> None:
    card, lines = lines_of(make_card)
    moved = [{**line, "row": 3 - row} for row, line in enumerate(lines)]
    assert scoring.score(save_lines(tmp_path / "a", card, moved)).rows == 4


def test_equal_test_rows_are_each_answered_once(make_card: MakeCard, tmp_path: Path) -> None:
    from tell_plugins.core.sources import open_task

    make_card(
        "twins",
        train=[{"q": "a", "r": "#### 1"}],
        test=[{"q": "1+1?", "r": "#### 2"}, {"q": "1+1?", "r": "#### 2"}],
    )
    task = open_task(load_card("twins"), "test")
    assert bytes(task.ids[0]) == bytes(task.ids[1])
    scores = scoring.score(save_answers(tmp_path / "a", "twins", ["#### 2", "#### 3"]))
    exact = scores.first.measures["exact_match"]
    assert isinstance(exact, Rate)
    assert (exact.k, exact.n, scores.rows) == (1, 2, 2)


def test_a_schema_that_is_none_is_named(make_card: MakeCard, tmp_path: Path) -> None:
    card, lines = lines_of(make_card)
    folder = save_lines(tmp_path / "a", card, lines)
    schema = load_card(card).folder / "answer.schema.json"
    schema.write_text('{"type": "objekt"}')
    message = refused(folder)
    assert "no JSON Schema" in message
    assert "answer.schema.json" in message
    schema.write_text("[]")
    assert "a schema is a JSON object" in refused(folder)
