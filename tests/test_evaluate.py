"""`eval` as its user calls it: options, folders, few-shot, servers, every metric, bad input."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tell_plugins.core.cards import load_card
from tell_plugins.core.sources import open_task
from tell_plugins.evaluation import scoring, verify
from tell_plugins.evaluation.answers import ANSWERS, SETTINGS
from tell_plugins.evaluation.judged import mean
from tell_plugins.evaluation.options import Options, answer_folders
from tell_plugins.evaluation.prompts import task_prompts
from tell_plugins.evaluation.rivals import AnswerTable
from tell_plugins.evaluation.scoring import System, load_scored
from tell_plugins.evaluation.system_tables import table
from tell_plugins.recipe.recipes import load_recipe
from tests.chat_server import Reply, serving
from tests.conftest import Cli, write_rows
from tests.saved_answers import answer_line, counts, save_answers, save_lines
from tests.scripted_engine import answer_by_script
from tests.tiny import WORDS, make_tiny_cards, tiny_recipe

OPENING = "Here it is:\n"


@pytest.fixture
def cards(make_card) -> None:
    """One task of each metric, six test rows each, and the general data they mix with."""
    make_tiny_cards(make_card)  # JSON

    def rows(response: str, question: str) -> list[dict[str, str]]:
        return [
            {"q": question.format(word), "r": response.format(place, word)}
            for place, word in enumerate(WORDS)
        ]

    for name, response, metric in (
        ("sums", "So #### {0}", "number"),
        ("free", "{1} it is", "text"),
        ("letters", OPENING + "{1}", "text"),
        ("en_xx", OPENING + "{1}\nlazy {1}", "translation"),
    ):
        train, test = (rows(response, q) for q in ("The {0}\nover the {0}.", "A {0}\nis lazy {0}."))
        make_card(name, train=train, test=test, metric=metric)


@pytest.fixture
def recipe_of(model, tmp_path, cards) -> Callable[[str], Path]:
    def make(card: str) -> Path:
        return tiny_recipe(tmp_path / f"{card}.yaml", model, f"tell/{card}:general=4rows")

    return make


@pytest.fixture
def evaluated(recipe_of, cli, tmp_path) -> Cli:
    """`evaluated(code, card, ...)`: the base model tested with the recipe of that card."""

    def call(code: int, card: str, *flags: object, out: str = "eval") -> str:
        given = ["--adapter", "none", "--out", tmp_path / out, *flags]
        return cli(code, "eval", recipe_of(card), *given)

    return call


NO_GENERAL, FEW = ("--general-rows", 0), ("--general-rows", 2, "--retention-rows", 2)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / ANSWERS).read_text(encoding="utf-8").split("\n")
    return sorted((json.loads(line) for line in lines if line), key=lambda line: line["row"])


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({}, "test-greedy"),
        ({"seeds": [1]}, "test-greedy"),  # greedy knows no seed
        ({"decoding": "paper", "seeds": [7]}, "test-paper-seed7"),
        ({"split": "validation", "rows": 9}, "validation-greedy-9rows"),
        ({"anchor": "none", "rows": 2, "shots": 2}, "test-greedy-anchor-none-2rows-2shot"),
    ],
)
def test_a_folder_says_what_is_not_the_default(asked, name):
    assert list(answer_folders(Options(**asked))) == [name]


@pytest.mark.parametrize(
    ("card", "flags", "message"),
    [
        ("tiny_task", "--learned comet", "comet score translations; card 'tiny_task'"),
        ("en_xx", "--learned bluert", "did you mean 'bleurt'?"),
        ("en_xx", "--learned bleurt --bleurt ./gone", "no checkpoint at './gone'"),
        ("tiny_task", "--decoding gredy", "did you mean 'greedy'?"),
        ("tiny_task", "--decoding paper --seeds 1,x", "bad seeds '1,x'"),
        ("tiny_task", "--seeds 1,2", "greedy answers are the same for each"),
        ("tiny_task", "--engine vlm", "did you mean 'vllm'?"),
        ("tiny_task", "--model-name m", "a server's model is named"),
        ("tiny_task", "--rows 0", "--rows: 0 is too small"),
        ("tiny_task", "--rows 7", "7 rows asked, split 'test' has 6"),
        ("tiny_task", "--general-rows 33", "only 32 of its rows were left out of training"),
        ("tiny_task", "--general-rows 0 --retention-rows 9", "--general-rows 0 asks nothing"),
        ("tiny_task", "--shots 7", "7 examples asked"),
        ("tiny_task", "--split tset", "did you mean 'test'?"),
        ("tiny_task", "--anchor crad", "key 'anchor': unknown value 'crad'"),
        ("tiny_task", "--adapter none none", "none named twice"),
        ("tiny_task", "--adapter wrds", "or none, or shots, or choices, or words"),
        ("plain", "", "is general data and has no task to score"),
        # flags of ms-swift that are none, or would do nothing here
        ("tiny_task", "--learning_rat 3", "did you mean 'learning_rate'?"),
        ("tiny_task", "--shot 3", "did you mean 'shots'?"),
        ("tiny_task", "--adapters 3", "use --adapter"),
        ("tiny_task", "--temperature 3", "use --decoding"),
    ],
)
def test_wrong_options_are_found_before_a_model_is_loaded(
    card, flags, message, recipe_of, cli, tmp_path
):
    recipe = recipe_of(card)
    recipe.write_text(recipe.read_text().replace("plain:general=4rows", "plain"))
    given = ["--adapter", "none", "--out", tmp_path / "out", "--general-rows", 4]
    assert message in cli(1, "eval", recipe, *given, *flags.split())
    assert not (tmp_path / "out").exists()
    assert "./run.sh train" in cli(1, "eval", recipe_of("tiny_task"))  # no trained adapter


def test_a_model_that_is_gone_is_asked_of_no_hub(evaluated):
    said = evaluated(1, "tiny_task", "--model", "models/gone", *NO_GENERAL)
    assert "flag --model: no model folder 'models/gone'" in said


def test_fewer_rows_are_part_of_more(cards):
    card = load_card("tiny_task")
    draws = [{p.row for p in task_prompts(card, "test", "card", n)[1]} for n in range(1, 7)]
    assert [len(draw) for draw in draws] == [1, 2, 3, 4, 5, 6]
    assert all(fewer < more for fewer, more in pairwise(draws))
    assert [p.row for p in task_prompts(card, "test", "card")[1]] == list(range(6))


@pytest.mark.slow
def test_seeds_and_rows(evaluated, tmp_path):
    flags = [*NO_GENERAL, "--max-new-tokens", 10, "--decoding", "paper", "--seeds"]
    evaluated(0, "tiny_task", *flags, "1,2", out="a")
    evaluated(0, "tiny_task", *flags, "2", out="b")
    first, second = (tmp_path / "a" / "none" / f"test-paper-seed{n}" for n in (1, 2))
    assert (first / ANSWERS).read_bytes() != (second / ANSWERS).read_bytes()
    again = tmp_path / "b" / "none" / "test-paper-seed2" / ANSWERS
    assert again.read_bytes() == (second / ANSWERS).read_bytes()


@pytest.mark.slow
def test_examples_stand_in_front_of_each_question(recipe_of, evaluated, tmp_path):
    from tell_plugins.bridge.engine import LocalEngine

    flags = [*NO_GENERAL, "--max-new-tokens", 10]
    evaluated(0, "en_xx", *flags)
    evaluated(0, "en_xx", *flags, "--shots", 2)
    plain, shot = (tmp_path / "eval" / "none" / f"test-greedy{end}" for end in ("", "-2shot"))
    settings = [json.loads((folder / SETTINGS).read_text())["shots"] for folder in (plain, shot)]
    assert settings == [0, 2]
    saved = json.loads((shot / "examples.json").read_text())["examples"]
    task, test = (open_task(load_card("en_xx"), split) for split in ("train", "test"))
    history = [(example["query"], example["response"]) for example in saved]
    assert history == task.texts([example["row"] for example in saved])  # with their anchor
    engine = LocalEngine(load_recipe(recipe_of("en_xx")).values, {}, batch_size=4)
    text = engine.template.tokenizer.decode(engine.prompt_ids(test.queries[0], history))
    turns = [*(turn for pair in history for turn in pair), test.queries[0]]
    assert [part.partition("\n")[2] for part in text.split("<|im_start|>")[1:]] == [
        *(f"{turn}<|im_end|>\n" for turn in turns),
        "",
    ]
    tokens = engine.prompt_tokens(test.queries, history)
    assert [line["prompt_tokens"] for line in lines_of(shot)] == tokens
    assert [line["text"] for line in lines_of(shot)] != [line["text"] for line in lines_of(plain)]
    before = (shot / ANSWERS).read_bytes()
    evaluated(0, "en_xx", *flags, "--shots", 2)  # all is there
    assert (shot / ANSWERS).read_bytes() == before
    file = task.files[0]
    file.write_text(file.read_text().replace("lazy ", "idle "))
    said = evaluated(1, "en_xx", *flags, "--shots", 2)
    assert "the examples in front have changed since" in said  # answers after others never join
    assert json.loads((shot / "examples.json").read_text())["examples"] == saved


@pytest.mark.parametrize("card", ["tiny_task", "sums", "free", "letters", "en_xx"])
def test_every_metric_has_its_table(card, evaluated, tmp_path, monkeypatch):
    answer_by_script(monkeypatch, lambda recipe, prompt: prompt[::-1])
    assert f"{card}, test-greedy: 6 rows" in evaluated(0, card, *FEW)
    folder = tmp_path / "eval" / "none" / "test-greedy"
    assert json.loads((folder / "scores.json").read_text())["rows"] == 6


def test_answers_of_other_settings_are_refused_before_the_first_answer(
    evaluated, tmp_path, monkeypatch
):
    """Those to general questions too, which come last."""
    answer_by_script(monkeypatch, lambda recipe, prompt: "x")
    evaluated(0, "tiny_task", *FEW)
    said = evaluated(1, "tiny_task", *FEW, "--rows", 3, "--batch-size", 2)
    assert "batch_size: 16 there, 2 now" in said
    assert "general" in said
    assert not (tmp_path / "eval" / "none" / "test-greedy-3rows").exists()
    evaluated(0, "tiny_task", *FEW, "--rows", 3)


def test_a_server_is_asked_with_examples_and_by_the_name_given(evaluated, tmp_path):
    def script(body: dict[str, Any], number: int) -> Reply:
        return Reply(body["messages"][-1]["content"].upper(), tokens=len(str(body)))

    with serving(script, models=("a", "b")) as server:
        asked = ["--engine", server.url, "--model-name", "b", "--shots", 2]
        evaluated(0, "en_xx", *asked, "--general-rows", 3, "--retention-rows", 3)
    assert {body["model"] for body in server.requests} == {"b"}
    turns = [body["messages"] for body in server.requests]
    task = [messages for messages in turns if len(messages) == 5]
    assert len(task) == 6
    assert [message["role"] for message in task[0]] == ["user", "assistant"] * 2 + ["user"]
    assert sum(len(messages) == 1 for messages in turns) == 3 + 2  # general questions, and probes
    folder = tmp_path / "eval" / "none" / "test-greedy-2shot"
    assert json.loads((folder / SETTINGS).read_text())["model_sha256"] == ""  # the server's affair
    assert all(line["text"].startswith("ANCHOR: DO THE TASK.") for line in lines_of(folder))


def test_half_a_character_and_a_system_prompt_of_a_server(evaluated, tmp_path):
    """An emoji cut in two, as a server sends it that cuts at a number of UTF-16 units, ends no run;
    the recipe's system prompt is part of what answered."""
    with serving(lambda body, number: Reply("cut \ud83d, whole \ud83d\ude00")) as server:
        asked = ["free", "--engine", server.url, *FEW, "--system"]
        for _ in range(2):  # and what was saved is read again
            evaluated(0, *asked, "Be brief.")
        assert "system, template and the like) have changed" in evaluated(1, *asked, "Be long.")
    texts = {line["text"] for line in lines_of(tmp_path / "eval" / "none" / "test-greedy")}
    assert texts == {"cut \ufffd, whole \U0001f600"}


def test_a_server_that_brings_the_anchor_is_asked_nothing_without_it(evaluated, tmp_path):
    """As `swift deploy` does with an adapter trained with an anchor."""
    front = "Answer only with one JSON object.\n\n"

    def script(body: dict[str, Any], number: int) -> Reply:
        query = body["messages"][-1]["content"]
        seen = query if query.startswith(front) else front + query
        return Reply('{"label": "yes"}', tokens=len(seen))

    with serving(script) as server:
        flags = ["--engine", server.url, "--general-rows", 3]
        assert "no general question is asked" in evaluated(0, "tiny_task", *flags)
        assert not (tmp_path / "eval" / "none" / "general").exists()
        assert "TELL_ANCHOR=none" in evaluated(1, "tiny_task", *flags, "--anchor", "none")
        assert not (tmp_path / "eval" / "none" / "test-greedy-anchor-none").exists()


METRICS = ["tiny_task", "sums", "free", "en_xx"]


@pytest.mark.parametrize("card", METRICS)
@pytest.mark.parametrize(
    "text",
    ["", " \n", "\u2028\x85", "\ud83d", "#" * 5000, "{" * 5000],
    ids=["empty", "blank", "separators", "half a character", "marks", "braces"],
)
def test_every_scorer_takes_any_text(card, text, cards, tmp_path):
    """Half a character, too: the file is read as it was written, or refused by one message."""
    lines = [
        answer_line(bytes(i).hex(), row, text)
        for row, i in enumerate(open_task(load_card(card), "test").ids)
    ]
    folder = save_lines(tmp_path / "a", card, lines)
    if text == "\ud83d":
        raw = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / ANSWERS).write_text(raw)
    scores = scoring.write(folder)
    assert scores.rows == 6
    saved = json.loads((folder / "scores.json").read_text())
    assert saved == json.loads(json.dumps(scores.to_dict()))


@pytest.mark.parametrize("first", ["plain", "learned"])
def test_a_score_that_one_system_lacks_moves_no_other(first, cards, tmp_path):
    texts = [f"{OPENING}{word}\nlazy {word}" for word in WORDS]
    scored = load_scored(save_answers(tmp_path / "a", "en_xx", texts))
    systems = [System("plain", scored), System("learned", scored)]
    first = systems[0].first
    columns = {**first.columns, "bleurt B": mean([0.6789] * len(first.rows), percent=False)}
    learned = {"stripped_segment": replace(first, columns=columns)}
    vars(systems[1])["readings"] = systems[0].readings | learned
    view = table(systems if first == "plain" else systems[::-1], "title")
    cells = dict(zip(view.columns, zip(*view.rows, strict=True), strict=True))
    rows = {name: place for place, name in enumerate(cells["system"])}
    assert cells["BLEURT"][rows["plain"]] == "-"
    assert cells["BLEURT"][rows["learned"]].startswith("0.68")
    assert all(cell.startswith("0%") for cell in cells["alignment failures"])


def test_verify_finds_answers_to_rows_that_moved_in_their_file(
    make_card, tmp_path, monkeypatch, cli
):
    rows = [{"q": f"q{n}", "r": f"r{n}"} for n in range(6)]
    make_card("moved", train=rows[:1], test=rows, metric="text")
    saved = save_answers(tmp_path / "a", "moved", {n: f"r{n}" for n in range(2, 6)})
    write_rows(tmp_path / "cards" / "moved" / "test.jsonl", rows[::-1])
    table = AnswerTable("a server", lambda query: query.replace("q", "r"))
    monkeypatch.setattr(verify, "_engine", lambda *_: table)
    said = cli(1, "verify", "http://x", saved)
    assert "4 of 4 answers are equal, word for word" in said
    assert "0 of 4 prompts have as many tokens as then" in said


def test_free_text_is_scored_by_exact_match_and_chrf(cards, tmp_path):
    from sacrebleu.metrics.chrf import CHRF

    references = [f"{word} it is" for word in WORDS]
    answers = [*references[:3], "  rain\nit   is", references[0], ""]
    references[3] = "poem it is"
    scores = scoring.score(save_answers(tmp_path / "a", "free", answers))
    exact, empty = scores.first.measures["exact_match"], scores.first.numbers["empty"]
    assert (counts(exact), counts(empty)) == ((3, 6), (1, 6))
    said = [" ".join(answer.split()) for answer in answers]
    expected = CHRF(word_order=2).corpus_score(said, [references]).score
    assert scores.headline["chrF++"].value == pytest.approx(expected)
    assert scores.constant.text.removeprefix("always ") in references
    always = scoring.score(save_answers(tmp_path / "c", "free", ["rain it is"] * 6)).headline
    shown = ("exact match", "exact match of a constant", "most frequent answer")
    assert [always[name].value for name in shown] == [pytest.approx(1 / 6)] * 2 + [1.0]
