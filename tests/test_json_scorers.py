"""The four JSON readings against answers whose verdicts are known, and answers to a whole split."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from tell_plugins.core.cards import load_card
from tell_plugins.core.sources import open_task
from tell_plugins.evaluation import scoring
from tell_plugins.evaluation.intervals import Estimate
from tell_plugins.evaluation.judged import KINDS, Judged
from tell_plugins.evaluation.scorers.json_readings import (
    READINGS,
    AnswerSchema,
    card_schema,
    official,
    official_fixed,
    strict,
)
from tests.conftest import message_of
from tests.saved_answers import HALU_PERFECT as GOOD
from tests.saved_answers import answer_line, counts, halu_schema, save_answers, save_lines

OK = "adherent"
BROKEN = "invalid_json"


class Case(NamedTuple):
    """An answer to Halu-CoT-JSON and what each reading says of it."""

    text: str
    strict: str
    lenient: str
    official_fixed: str
    official: str = BROKEN  # what the published script makes of nearly everything
    finish: str = "stop"


def halu(thought: str = '"a"', label: str = '"no"', more: str = "") -> str:
    return f'{{"thought": {thought}, "hallucination": {label}{more}}}'


def all_alike(kind: str, *texts: str, official: str = BROKEN, finish: str = "stop") -> list[Case]:
    return [Case(text, kind, kind, kind, official, finish) for text in texts]


def wrong_object(kind: str, *texts: str) -> list[Case]:
    """An object that the schema refuses, which `official_fixed` does not look at."""
    return [Case(text, kind, kind, OK) for text in texts]


def usable(kind: str, *texts: str, finish: str = "stop") -> list[Case]:
    """What a tolerant reader can use."""
    return [Case(text, kind, OK, kind, finish=finish) for text in texts]


CASES = [
    *all_alike(
        OK,
        GOOD,
        halu('"Wrong year."', '"yes"'),
        f" \r\n\t{GOOD}\n\n",
        json.dumps(json.loads(GOOD), indent=4),
        '{"hallucination": "no", "thought": "a"}',
        r'{"\u0074hought": "a", "hallucination": "no"}',
        *map(halu, (r'"\ud83d\ude00"', r'"\ud800"', '"Þú 你 😀"', r'"He said \"a\".\n"')),
        *map(halu, ('"It isn\'t."', '"``` a"', '"} {"')),
    ),
    *all_alike("empty", "", " \n\t \u00a0", official="empty"),
    *all_alike("prose", "Yes", "Use {x} in the text.", "thought: a, hallucination: no"),
    *all_alike("prose", "The answer", finish="length"),
    *usable("code_fence", f"```json\n{GOOD}\n```", f"```json\n{GOOD}", f"```{GOOD}```"),
    *usable("code_fence", f"~~~json\n{GOOD}\n~~~", f"`{GOOD}`"),
    Case("```json\n[1]\n```", "code_fence", "not_object", "code_fence"),
    *usable(
        "text_around",
        f"Sure:\n```json\n{GOOD}\n```",
        f"{GOOD}\nI hope this helps.",
        f"Well, {GOOD} Right?",
        f"\ufeff{GOOD}",
        f"\u00a0{GOOD}",
        f"In {{this}} form: {GOOD}",
        f'As {{"thought": "xxx", "hallucination": "yes" or "no"}}: {GOOD}',
    ),
    *usable("text_around", f"{GOOD} And", f'{GOOD}\n{{"thought": "A', finish="length"),
    Case(f"Here: [{GOOD}]", "text_around", "not_object", "text_around"),
    *usable("several_values", GOOD + GOOD, f"{GOOD}\n{GOOD}\n", f"{GOOD},{GOOD}"),
    *wrong_object(  # quotes that the script means to repair
        BROKEN,
        "{'thought': 'a', 'hallucination': 'no'}",
        """{'thought': "It's a.", 'hallucination': 'no'}""",
        r"{'thought': 'It\'s a.', 'hallucination': 'no'}",
        '{"thought": "He said "a" and left", "hallucination": "no"}',
        "{'thought': 5, 'hallucination': 'no'}",
    ),
    *all_alike(
        BROKEN,
        "{'thought': None, 'hallucination': 'no'}",
        "{“thought”: “a”, “hallucination”: “no”}",
        halu(more=","),
        '{thought: "a", hallucination: "no"}',
        halu(label="no"),
        halu('"a\nb"'),
        halu('"a\x00b"'),
        "{",
        f'{{"thought": oops, "x": {GOOD}}}',
    ),
    *all_alike(BROKEN, "[" * 100_000, official="crash"),
    *all_alike(
        "truncated",
        '{"thought": "a", "hallucination": "no"',
        '```json\n{"thought": "a',
        'Sure: {"thought": "a',
        finish="length",
    ),
    *all_alike("not_object", "[]", "null", "42", official="crash"),
    *all_alike("not_object", f"[{GOOD}]", json.dumps(GOOD)),
    Case("NaN", "not_finite", "not_finite", "not_object", "crash"),
    *all_alike(BROKEN, halu(label="1" * 5000)),
    *wrong_object("duplicate_key", halu('"a"', '"yes"', ', "hallucination": "no"')),
    *wrong_object("not_finite", halu(label="NaN"), halu("1e999")),
    Case("{}", "missing_key", "missing_key", OK, OK),
    *wrong_object("missing_key", '{"thought": "a"}', f'{{"answer": {GOOD}}}'),
    *wrong_object("missing_key", '{"thought": "a", "Hallucination": "no"}'),
    *wrong_object("extra_key", halu(more=', "confidence": 0.9')),
    *wrong_object("wrong_enum", *(halu(label=f'"{said}"') for said in ("maybe", "No", "no ", ""))),
    *wrong_object("wrong_type", *(halu(label=x) for x in ("false", "null", '["no"]'))),
    *wrong_object("wrong_type", halu("7"), halu('{"a": 1}'), halu("7", '"maybe"')),
    *wrong_object("other_rule", halu('""')),
]


@pytest.fixture(scope="module")
def schema() -> AnswerSchema:
    return card_schema(load_card("halu_cot_json"))


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_every_reading_gives_the_expected_verdict(case, schema):
    found = {r.name: r.judge(case.text, case.finish, schema) for r in READINGS}
    assert {name: verdict.kind for name, verdict in found.items()} == {
        name: getattr(case, name) for name in found
    }
    if found["strict"].adherent:
        assert found["lenient"] == found["strict"]


def test_every_kind_of_failure_is_among_the_cases():
    of_others = {kind for kind in KINDS if kind.endswith(("_label", "_number", "_lines"))}
    assert {kind for case in CASES for kind in case[1:5]} == {OK, *KINDS} - of_others


def test_a_list_is_an_answer_where_the_schema_wants_one():
    schema = AnswerSchema({"type": "array", "items": {"type": "integer"}}, None)
    verdicts = [strict(text, "stop", schema) for text in ("[1, 2]", '["a"]', '{"a": 1}')]
    assert [verdict.kind for verdict in verdicts] == ["adherent", "wrong_type", "not_object"]
    assert verdicts[0].value == [1, 2]
    halves = AnswerSchema({"type": "array", "items": {"multipleOf": 0.5}}, None)
    assert strict(f"[{'1' * 400}]", "stop", halves).kind == "other_rule"  # no float holds it


@pytest.mark.parametrize(
    "text",
    ['{"' * 20_000, "{'thought': '" * 5_000, '{"thought": "' + "a\"'," * 20_000, "`" * 9999],
    ids=["braces", "keys", "quotes", "marks"],
)
def test_long_and_odd_texts_do_not_stall(text, schema):
    assert not any(reading.judge(text, "stop", schema).adherent for reading in READINGS)


def test_the_official_repair_also_turns_yes_into_no(schema):
    found = official_fixed("{'thought': 'a', 'hallucination': 'yes'}", "stop", schema)
    assert found.value == {"thought": "a", "hallucination": "yes"}
    # the only strings that survive the published repair are none at all
    assert official('{"thought": "yes"}', "stop", schema).kind == "invalid_json"


@pytest.fixture
def card(make_card) -> str:
    """A card with Halu-CoT-JSON's schema, and a test row for each case."""
    train = [{"q": "q?", "r": GOOD}, {"q": "p?", "r": GOOD}]
    test = [{"q": f"question {i}", "r": "no"} for i in range(len(CASES))]
    make_card("halu", train=train, test=test, **halu_schema())
    return "halu"


def adherence_of(reading: Judged) -> Estimate:
    found = reading.measures["adherence"]
    return found


def test_a_perfect_model_scores_1_and_the_published_script_gives_it_0(real_home, tmp_path):
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
        assert found.measures["accuracy"].value == found.numbers["f1"].value == 1.0
    saved = json.loads((tmp_path / "a" / "scores.json").read_text())
    assert saved == json.loads(json.dumps(scores.to_dict()))


def test_failures_add_up_under_every_reading(card, tmp_path):
    cut = [i for i, case in enumerate(CASES) if case.finish == "length"]
    scores = scoring.score(save_answers(tmp_path / "a", card, [c.text for c in CASES], cut=cut))
    for name, found in scores.readings.items():
        kinds, adherence = [getattr(case, name) for case in CASES], adherence_of(found)
        assert adherence.k == kinds.count(OK)
        assert found.failures == {k: kinds.count(k) for k in KINDS if k in kinds}
        assert sum(found.failures.values()) == adherence.n - adherence.k
        assert adherence.low < adherence.k / len(CASES) < adherence.high
    assert scores.cut.k == len(cut)


def test_several_attempts_count_but_do_not_narrow_the_interval(card, tmp_path):
    once = save_answers(tmp_path / "once", card, [GOOD] * 10 + ["Yes"] * 10)
    lines = [json.loads(line) for line in (once / "answers.jsonl").read_text().splitlines()]
    again = [{**line, "attempt": attempt} for attempt in range(3) for line in lines]
    three = scoring.score(save_lines(tmp_path / "three", card, again))
    a, b = adherence_of(scoring.score(once).first), adherence_of(three.first)
    assert (b.k, b.n, three.attempts, three.rows) == (30, 60, 3, 20)
    assert (b.low, b.high) == pytest.approx((a.low, a.high), abs=0.01)


def test_one_repeated_answer_and_an_interrupted_run_show(card, tmp_path):
    texts = dict(enumerate([GOOD, GOOD, f" {GOOD}\n", "Yes"]))
    scores = scoring.score(save_answers(tmp_path / "a", card, texts, rows=5))
    most = scores.most_frequent_answer
    assert (most.text, most.share.k, most.distinct) == (GOOD, 3, 2)
    assert (scores.rows, scores.scored.expected, scores.complete) == (4, 5, False)


@pytest.fixture
def lines(card) -> list[dict[str, object]]:
    ids = [bytes(i).hex() for i in open_task(load_card(card), "test").ids[:4]]
    return [answer_line(i, row, GOOD) for row, i in enumerate(ids)]


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (lambda lines: [], ["no answer in answers.jsonl"]),
        (lambda lines: [{**one, "id": "0" * 32} for one in lines], ["4 of 4", "another card"]),
        (lambda lines: [*lines[:3], {**lines[3], "id": "0"}], ["1 of 4 answers have no", "line 4"]),
        (lambda lines: [*lines, lines[1]], ["1 answers are given to a row that has one: line 5"]),
        (lambda lines: [lines[0], {**lines[1], "text": None}], ["key 'text'", "line 2"]),
        (lambda lines: [lines[0], {**lines[1], "row": True}], ["key 'row'", "line 2"]),
    ],
)
def test_lines_that_are_no_answers_to_the_rows_are_refused(change, messages, card, lines, tmp_path):
    folder = save_lines(tmp_path / "a", card, change(lines))  # type: ignore[operator]
    message = message_of(scoring.score, folder)
    assert all(text in message for text in [*messages, "remedy"])


def test_files_that_are_missing_torn_or_of_another_split(card, lines, tmp_path):
    def refused(folder: Path) -> str:
        return message_of(scoring.score, folder)

    assert "split 'train'" in refused(save_lines(tmp_path / "train", card, lines, split="train"))
    folder = save_lines(tmp_path / "a", card, lines)
    answers, settings = folder / "answers.jsonl", folder / "settings.json"
    whole = answers.read_text()
    answers.write_text(whole.rstrip("\n"))  # whole, only without its line end
    assert scoring.score(folder).rows == 4
    answers.write_text(whole[:-30])  # the run was stopped while it wrote
    scores = scoring.score(folder)
    assert (scores.rows, scores.complete) == (3, False)
    answers.write_text(whole.replace('"stop"', "stop", 1))
    assert "answers.jsonl, line 1: no JSON" in refused(folder)
    answers.unlink()
    assert "no answer in answers.jsonl" in refused(folder)
    for content, message in (('{"card": "halu"}', "key 'split' is missing"), ("{", "no JSON")):
        settings.write_text(content)
        assert message in refused(folder)
    settings.unlink()
    assert "no settings.json" in refused(folder)


def test_rows_are_told_by_content_and_equal_ones_are_each_answered_once(
    card, lines, make_card, tmp_path
):
    moved = [{**line, "row": 3 - row} for row, line in enumerate(lines)]
    assert scoring.score(save_lines(tmp_path / "a", card, moved)).rows == 4
    twin = {"q": "1+1?", "r": "#### 2"}
    make_card("twins", train=[{"q": "a", "r": "#### 1"}], test=[twin, twin])
    scores = scoring.score(save_answers(tmp_path / "b", "twins", ["#### 2", "#### 3"]))
    assert (*counts(scores.first.measures["exact_match"]), scores.rows) == (1, 2, 2)


def test_a_schema_that_is_none_is_named(card, lines, tmp_path):
    folder = save_lines(tmp_path / "a", card, lines)
    (load_card(card).folder / "schema.json").write_text('{"type": "objekt"}')
    message = message_of(scoring.score, folder)
    assert "no JSON Schema" in message
    assert "schema.json" in message
