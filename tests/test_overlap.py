"""Test rows never train: neither as task rows nor as general rows that ask the same."""

from pathlib import Path

import pytest

from tell_plugins.core.manifest import manifest_of
from tell_plugins.core.mixture import Mixture, build_mixture
from tell_plugins.core.spec import parse_spec
from tests.conftest import error_of, message_of, write_rows

GOLDEN = Path(__file__).parent / "golden"

TASK = [{"q": f"task {n}", "r": "yes"} for n in range(8)]
TEST = [{"q": f"What is the capital of country {n}?", "r": "no"} for n in range(5)]
GENERAL = [{"q": f"general {n}", "r": "text"} for n in range(40)]
LEAKS = [
    {"q": "What is the capital of country 0?", "r": "A city."},
    {"q": "what is  the capital of country 1?", "r": "A city."},  # case, spacing
    {"q": "What is the cap\u00adital of\u200b country 1\uff1f", "r": "Another."},  # not to be seen
]
NEAR = [{"q": "What is the capital of country 2? Explain.", "r": "A longer question."}]


SPLITS = {name: {"file": f"{name}.jsonl"} for name in ("train", "test", "validation")}


def _build(text: str = "general=all") -> Mixture:
    return build_mixture(parse_spec(f"tell/t:{text}"))


def _queries(mixture: Mixture) -> list[str]:
    return [row["messages"][0]["content"] for row in mixture.rows()]


@pytest.fixture
def leaky(make_card) -> Path:
    """A task card `t` whose test queries 0 and 1 stand among the general rows of `plain`."""
    make_card("plain", kind="general", train=[*GENERAL[:20], *LEAKS, *NEAR, *GENERAL[20:]])
    return make_card("t", train=TASK, test=TEST)


@pytest.mark.usefixtures("leaky")
def test_general_rows_that_are_test_queries_are_dropped():
    mixture = _build()
    assert len(mixture) == 8 + 41
    assert not {row["q"] for row in LEAKS} & set(_queries(mixture))
    assert NEAR[0]["q"] in _queries(mixture)
    manifest = manifest_of(mixture)
    assert manifest["overlap"] == {
        "rule": "drop",
        "checked": True,
        "general_rows_that_are_held_out_queries": 3,
        "of_these_used": 0,
    }
    assert manifest["sources"][1]["rows"]["dropped"] == {"held_out_query": 3}
    assert manifest["sources"][1]["rows"]["held_out_queries_used"] == 0


def test_a_general_cards_own_held_out_rows_never_train(make_card):
    """Whatever `overlap` says: forgetting is measured on them."""
    held = [{"q": "general 3", "r": "another text"}, {"q": "General  5.", "r": "text"}]
    splits = {name: {"file": f"{name}.jsonl"} for name in ("train", "heldout")}
    folder = make_card("plain", kind="general", train=GENERAL, splits=splits)
    write_rows(folder / "heldout.jsonl", held)
    make_card("t", train=TASK, test=TEST)
    for rule in ("drop", "keep"):
        mixture = _build(f"general=all/overlap={rule}")
        assert not {"general 3", "general 5"} & set(_queries(mixture))
        assert manifest_of(mixture)["sources"][1]["rows"]["dropped"] == {"held_out_row": 2}
    alone = build_mixture(parse_spec("tell/plain:task=all"))
    assert len(alone) == 38


def test_tokens_of_dropped_rows_are_none_to_draw_from(leaky, monkeypatch):
    monkeypatch.setenv("TELL_TOKENIZER", str(GOLDEN / "word_tokenizer.json"))
    source = manifest_of(_build("general=20rows"))["sources"][1]
    tokens = source["tokens"]
    assert set(tokens["dropped"]) == {"held_out_query"}
    assert tokens["in_file"] == tokens["available"] + tokens["dropped"]["held_out_query"]
    assert len(_build(f"general={tokens['available']}tok").sources[1].used) == 41
    assert "there are only" in message_of(_build, f"general={tokens['available'] + 1}tok")
    shares = [part["share"] for part in manifest_of(_build("general=20rows"))["sources"]]
    assert sum(share["rows"] for share in shares) == pytest.approx(1)
    assert sum(share["tokens"] for share in shares) == pytest.approx(1)


@pytest.mark.usefixtures("leaky")
@pytest.mark.parametrize(
    "text", ["general=30rows", "general=all/overlap=keep", "general=all/repeat=3/order=even/seed=5"]
)
def test_no_task_rows_leave_exactly_the_general_rows(text):
    tell, alone = _build(f"task=5rows/{text}"), _build(f"task=0/{text}")
    general = [row for row in tell.rows() if row["channel"] == "general"]
    assert list(alone.rows()) == general
    assert alone.task is None
    assert not alone.is_task.any()
    of_tell, of_alone = manifest_of(tell), manifest_of(alone)
    assert of_alone["overlap"] == of_tell["overlap"]
    for source in (*of_alone["sources"], *of_tell["sources"]):
        del source["share"]  # of another whole
    assert of_alone["sources"] == of_tell["sources"][1:]
    assert of_alone["anchor"] is None
    assert of_alone["spec"] == str(alone.spec)
    assert "task=0/" in of_alone["spec"]


def test_no_task_rows_need_no_task_file(leaky):
    before = _build("task=0/general=all").hash
    (leaky / "train.jsonl").unlink()
    assert _build("task=0/general=all").hash == before
    (leaky / "test.jsonl").unlink()
    assert "split 'test' is not here" in message_of(_build, "task=0/general=all")
    manifest = manifest_of(_build("task=0/general=all/overlap=keep"))
    assert manifest["overlap"] == {
        "rule": "keep",
        "checked": False,
        "general_rows_that_are_held_out_queries": None,
        "of_these_used": None,
    }


@pytest.mark.usefixtures("leaky")
def test_without_task_rows_times_is_nothing_to_go_by():
    for text in ("task=0", "task=0/general=40x"):  # the card's own amount is 2x
        caught = error_of(_build, text)
        assert "the task rows is nothing, since task=0 takes none" in str(caught)
        assert "general=2000rows" in str(caught.remedy)
    for text in ("task=0/general=0", "task=0/general=0/overlap=keep"):
        assert "the mixture is empty" in message_of(_build, text)
    assert "the mixture is empty" in message_of(build_mixture, parse_spec("tell/plain:task=0"))


@pytest.mark.usefixtures("leaky")
def test_dropping_leaves_the_rest_of_the_draw_as_it_is():
    kept = _build("general=all/overlap=keep").sources[1].used.tolist()
    leaks = {20, 21, 22}
    assert _build().sources[1].used.tolist() == [row for row in kept if row not in leaks]
    drawn = _build("general=41rows").sources[1].used.tolist()
    assert drawn == [row for row in kept if row not in leaks]
    assert "42rows asked, but there are only 41 rows" in message_of(_build, "general=42rows")


def test_validation_queries_are_held_out_too(make_card):
    make_card("plain", kind="general", train=[*GENERAL, *LEAKS])
    files = {"train": {"file": "train.jsonl"}, "validation": {"file": "test.jsonl"}}
    make_card("t", train=TASK, test=TEST, splits=files)
    assert len(_build()) == 8 + 40
    validation = build_mixture(parse_spec("tell/t:split=validation"))
    assert [row["messages"][1]["content"] for row in validation.rows()] == ["no"] * 5


def test_only_the_question_of_a_query_is_compared(make_card):
    wrap = "'user_query' : {}\n'response' : {}"
    test = [{"q": wrap.format(row["q"], "An answer."), "r": "no"} for row in TEST]
    make_card("plain", kind="general", train=[*GENERAL, *LEAKS, *NEAR])
    make_card("t", train=TASK, test=test, question="'user_query' : (.*?)\n'response' : ")
    assert len(_build()) == 8 + 41
    make_card("t", train=TASK, test=test)
    assert len(_build()) == 8 + 44, "without the pattern the whole query is compared"


@pytest.mark.parametrize("overlap", ["drop", "keep"])
@pytest.mark.parametrize(
    "query", ["What is the capital of country 3?", "WHAT is the\u200b  capital of country 3?"]
)
def test_a_test_row_among_the_training_rows_is_an_error(make_card, query, overlap):
    make_card("plain", kind="general", train=GENERAL)
    make_card("t", train=[*TASK, {"q": query, "r": "another answer"}], test=TEST)
    for text in (f"overlap={overlap}", f"task=1rows/anchor=none/overlap={overlap}"):
        caught = error_of(_build, text)
        assert "1 task rows are test rows" in str(caught)
        assert "line 4 of test.jsonl" in str(caught)
        assert str(caught.where).endswith("t/train.jsonl, line 9")


def test_what_is_not_held_out_trains(make_card):
    """Of a card without held-out rows, and a task's own queries among the general rows."""
    make_card("plain", kind="general", train=[*GENERAL, *LEAKS, {"q": "task 3", "r": "x"}])
    make_card("t", train=TASK)
    mixture = _build()
    assert len(mixture) == 8 + 44
    assert manifest_of(mixture)["overlap"]["checked"] is True, "there is nothing to hold out"
    make_card("t", train=TASK, test=TEST)
    assert len(_build()) == 8 + 41


def test_rows_in_several_held_out_splits_are_told_together(make_card):
    make_card("plain", kind="general", train=GENERAL)
    folder = make_card("t", train=[*TASK, TEST[0]], test=TEST, splits=SPLITS)
    assert "1 task rows are test rows" in message_of(_build, "overlap=keep"), "what is here"
    assert "split 'validation' is not here" in message_of(_build)
    write_rows(folder / "validation.jsonl", TEST)
    said = message_of(_build)
    assert "1 task rows are validation rows" in said
    assert "1 task rows are test rows" in said


@pytest.mark.usefixtures("leaky")
def test_kept_overlaps_are_counted():
    mixture = _build("general=all/overlap=keep")
    assert len(mixture) == 8 + 44
    assert manifest_of(mixture)["sources"][1]["rows"]["dropped"] == {}
    for text, used in (("all", 3), ("10rows", None)):
        mixture = _build(f"general={text}/overlap=keep")
        held = sum(query in {row["q"] for row in LEAKS} for query in _queries(mixture))
        assert used in (held, None)
        overlap = manifest_of(mixture)["overlap"]
        assert overlap["general_rows_that_are_held_out_queries"] == 3
        assert overlap["of_these_used"] == held


def test_a_missing_test_file_is_no_licence_to_train_on_it(leaky):
    (leaky / "test.jsonl").unlink()
    caught = error_of(_build)
    assert "split 'test' is not here" in str(caught)
    for way in ("./run.sh data t", "overlap=keep"):
        assert way in str(caught.remedy)
    mixture = _build("general=all/overlap=keep")
    assert len(mixture) == 8 + 44
    assert manifest_of(mixture)["overlap"]["checked"] is False
    assert manifest_of(mixture)["sources"][1]["rows"]["held_out_queries"] is None, "not 0"
