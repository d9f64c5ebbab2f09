"""`eval` as its user calls it: options, folders, few-shot, servers, every metric, bad input."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tell_plugins.bridge.protocol import conversation
from tell_plugins.cli import main
from tell_plugins.core.cards import load_card
from tell_plugins.core.sources import open_task
from tell_plugins.evaluation import evaluate, scoring
from tell_plugins.evaluation.answers import ANSWERS, SETTINGS
from tell_plugins.evaluation.intervals import Estimate, Rate
from tell_plugins.evaluation.options import Options, options_of
from tell_plugins.evaluation.prompts import task_prompts
from tell_plugins.evaluation.summary import System, table
from tell_plugins.recipe.recipes import load_recipe
from tests.conftest import MakeCard
from tests.saved_answers import answer_line, save_answers, save_lines
from tests.scripted_engine import answer_by_script
from tests.swift_keys_once import lay_keys
from tests.test_engines import completion, serving
from tests.tiny import WORDS, make_tiny_cards, make_tiny_model, tiny_recipe

LANGUAGES = {"source": "English", "target": "Icelandic"}
OPENING = "Here it is:\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def cards(make_card: MakeCard) -> None:
    """One task of each metric, six test rows each, and the general data they mix with."""
    make_tiny_cards(make_card)  # JSON

    def rows(response: str, question: str) -> list[dict[str, str]]:
        return [
            {"q": question.format(word), "r": response.format(place, word)}
            for place, word in enumerate(WORDS)
        ]

    for name, response, more in (
        ("sums", "So #### {0}", {"metric": "number"}),
        ("free", "{1} it is", {"metric": "text"}),
        ("letters", OPENING + "{1}", {"metric": "text"}),
        ("en_xx", OPENING + "{1}\nlazy {1}", {"metric": "translation", "translation": LANGUAGES}),
    ):
        make_card(
            name,
            train=rows(response, "The {0}\nover the {0}."),
            test=rows(response, "A {0}\nis lazy {0}."),
            **more,
        )


@pytest.fixture
def recipe_of(model: Path, tmp_path: Path, cards: None) -> Callable[[str], Path]:
    def make(card: str) -> Path:
        return tiny_recipe(tmp_path / f"{card}.yaml", model, f"tell/{card}:general=4rows")

    return make


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def lines_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / ANSWERS).read_text(encoding="utf-8").split("\n")
    return sorted((json.loads(line) for line in lines if line), key=lambda line: line["row"])


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({}, "test-greedy"),
        ({"seeds": "1"}, "test-greedy"),  # greedy knows no seed
        ({"decoding": "paper"}, "test-paper-seed7"),
        ({"split": "validation", "rows": 9}, "validation-greedy-9rows"),
        ({"anchor": "none", "rows": 2, "shots": 2}, "test-greedy-anchor-none-2rows-2shot"),
    ],
)
def test_a_folder_says_what_is_not_the_default(asked: dict[str, Any], name: str) -> None:
    assert Options(recipe="r", **asked).folder(7) == name


def test_the_command_line_gives_the_options_and_their_defaults() -> None:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    given = parser.parse_args(["r.yaml", "--rows", "3", "--adapter", "a", "b"])
    given.flags = ["--model", "m"]
    expected = Options(recipe="r.yaml", rows=3, adapter=["a", "b"], flags=["--model", "m"])
    assert options_of(given) == expected


@pytest.mark.parametrize(
    ("card", "flags", "message"),
    [
        ("tiny_task", ["--learned", "comet"], "comet score translations; card 'tiny_task'"),
        ("en_xx", ["--learned", "bluert"], "did you mean 'bleurt'?"),
        ("en_xx", ["--learned", "bleurt", "--bleurt", "./gone"], "no checkpoint at './gone'"),
        ("tiny_task", ["--decoding", "gredy"], "did you mean 'greedy'?"),
        ("tiny_task", ["--decoding", "paper", "--seeds", "1,x"], "bad seeds '1,x'"),
        ("tiny_task", ["--seeds", "x"], "bad seeds 'x'"),
        ("tiny_task", ["--seeds", "1,2"], "greedy answers are the same for each"),
        ("tiny_task", ["--engine", "vlm"], "did you mean 'vllm'?"),
        ("tiny_task", ["--model-name", "m"], "a server's model is named"),
        ("tiny_task", ["--rows", "0"], "--rows: 0 is too small"),
        ("tiny_task", ["--rows", "7"], "7 rows asked, split 'test' has 6"),
        ("tiny_task", ["--batch-size", "0"], "--batch-size: 0 is too small"),
        ("tiny_task", ["--max-new-tokens", "-1"], "--max-new-tokens: -1 is too small"),
        ("tiny_task", ["--general-rows", "-1"], "--general-rows: -1 is too small"),
        ("tiny_task", ["--general-rows", "33"], "only 32 of its rows were left out of training"),
        (
            "tiny_task",
            ["--general-rows", "0", "--retention-rows", "9"],
            "--retention-rows: 9 rows, and --general-rows 0 asks nothing general",
        ),
        ("tiny_task", ["--shots", "-1"], "--shots: -1 is too small"),
        ("tiny_task", ["--shots", "7"], "7 examples asked"),
        ("tiny_task", ["--split", "tset"], "did you mean 'test'?"),
        ("tiny_task", ["--anchor", "crad"], "key 'anchor': unknown value 'crad'"),
        ("tiny_task", ["--adapter", "none", "none"], "none named twice"),
        ("tiny_task", ["--adapter", "models"], "no adapter in 'models'"),
        ("plain", [], "is general data and has no task to score"),
    ],
)
def test_wrong_options_are_found_before_a_model_is_loaded(
    card: str,
    flags: list[str],
    message: str,
    recipe_of: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = recipe_of(card)
    recipe.write_text(recipe.read_text().replace("plain:general=4rows", "plain"))
    given = ["eval", str(recipe), "--adapter", "none", "--out", str(tmp_path / "out")]
    given += ["--general-rows", "4"]
    assert main([*given, *flags]) == 1
    assert message in said(capsys)
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_was_not_trained(
    recipe_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(recipe_of("tiny_task"))]) == 1
    text = said(capsys)
    assert "no trained adapter" in text
    assert "./run.sh train" in text


@pytest.mark.parametrize(
    ("flag", "remedy"),
    [
        ("--learning_rat", "did you mean 'learning_rate'?"),
        ("--shot", "did you mean 'shots'?"),
        ("--adapters", "use --adapter"),
        ("--max_new_tokens", "use --max-new-tokens"),
        ("--temperature", "use --decoding"),
        ("--infer_backend", "use --engine"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(
    flag: str,
    remedy: str,
    recipe_of: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lay_keys(tmp_path / "cache")
    assert main(["eval", str(recipe_of("tiny_task")), "--adapter", "none", flag, "3"]) == 1
    text = said(capsys)
    assert remedy in text
    assert flag.lstrip("-") in text


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_fewer_rows_are_part_of_more(rows: int, cards: None) -> None:
    card = load_card("tiny_task")
    draws = [{p.row for p in task_prompts(card, "test", "card", n)[1]} for n in (rows, rows + 1)]
    assert draws[0] < draws[1]
    assert [len(draw) for draw in draws] == [rows, rows + 1]
    assert [p.row for p in task_prompts(card, "test", "card")[1]] == list(range(6))


# --- with a model --------------------------------------------------------------------------------


@pytest.mark.slow
def test_seeds_and_rows(recipe_of: Callable[[str], Path], tmp_path: Path) -> None:
    call = ["eval", str(recipe_of("tiny_task")), "--adapter", "none", "--general-rows", "0"]
    call += ["--max-new-tokens", "10", "--decoding", "paper"]
    assert main([*call, "--seeds", "1,2", "--out", str(tmp_path / "a")]) == 0
    assert main([*call, "--seeds", "2", "--out", str(tmp_path / "b")]) == 0
    first, second = (tmp_path / "a" / "none" / f"test-paper-seed{n}" for n in (1, 2))
    assert (first / ANSWERS).read_bytes() != (second / ANSWERS).read_bytes()
    again = tmp_path / "b" / "none" / "test-paper-seed2" / ANSWERS
    assert again.read_bytes() == (second / ANSWERS).read_bytes()
    assert main([*call, "--seeds", "1", "--rows", "4", "--out", str(tmp_path / "a")]) == 0
    drawn = lines_of(tmp_path / "a" / "none" / "test-paper-seed1-4rows")
    assert {line["row"] for line in drawn} < {line["row"] for line in lines_of(first)}


@pytest.mark.slow
def test_examples_stand_in_front_of_each_question(
    recipe_of: Callable[[str], Path], model: Path, tmp_path: Path
) -> None:
    from tell_plugins.bridge.engine import LocalEngine

    recipe = recipe_of("en_xx")
    call = ["eval", str(recipe), "--adapter", "none", "--general-rows", "0"]
    call += ["--max-new-tokens", "10", "--out", str(tmp_path / "eval")]
    assert main(call) == 0
    assert main([*call, "--shots", "2"]) == 0
    plain, shot = (tmp_path / "eval" / "none" / f"test-greedy{end}" for end in ("", "-2shot"))
    settings = [json.loads((folder / SETTINGS).read_text())["shots"] for folder in (plain, shot)]
    assert settings == [0, 2]
    saved = json.loads((shot / "examples.json").read_text())["examples"]
    task = open_task(load_card("en_xx"), "train")
    assert len(saved) == 2
    for example in saved:
        assert example["query"] == task.queries[example["row"]]  # with its anchor
        assert example["response"] == task.responses[example["row"]]
    engine = LocalEngine(load_recipe(recipe).values, {}, batch_size=4)
    history = [(example["query"], example["response"]) for example in saved]
    test = open_task(load_card("en_xx"), "test").queries
    text = engine.template.tokenizer.decode(
        engine.template.encode({"messages": conversation(test[0], history)})["input_ids"]
    )
    assert [part.partition("\n")[2] for part in text.split("<|im_start|>")[1:]] == [
        f"{turn}<|im_end|>\n" for pair in history for turn in pair
    ] + [f"{test[0]}<|im_end|>\n", ""]
    tokens = engine.prompt_tokens([test[row] for row in range(6)], history)
    assert [line["prompt_tokens"] for line in lines_of(shot)] == tokens
    bare = [line["prompt_tokens"] for line in lines_of(plain)]
    assert all(more > few + 40 for more, few in zip(tokens, bare, strict=True))
    assert [line["text"] for line in lines_of(shot)] != [line["text"] for line in lines_of(plain)]
    before = (shot / ANSWERS).read_bytes()
    assert main([*call, "--shots", "2"]) == 0  # all is there
    assert (shot / ANSWERS).read_bytes() == before
    content = json.loads((shot / "examples.json").read_text())
    content["examples"].reverse()
    (shot / "examples.json").write_text(json.dumps(content))
    assert main([*call, "--shots", "2"]) == 1  # answers after other examples are never joined


@pytest.mark.parametrize("card", ["tiny_task", "sums", "free", "letters", "en_xx"])
def test_every_metric_has_its_table(
    card: str,
    recipe_of: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer_by_script(monkeypatch, lambda recipe, prompt: prompt[::-1])
    call = ["eval", str(recipe_of(card)), "--adapter", "none", "--retention-rows", "2"]
    assert main([*call, "--general-rows", "2", "--out", str(tmp_path / "eval")]) == 0
    assert f"{card}, test-greedy: 6 rows" in capsys.readouterr().out
    folder = tmp_path / "eval" / "none" / "test-greedy"
    assert json.loads((folder / "scores.json").read_text())["rows"] == 6


def test_answers_of_other_settings_are_refused_before_the_first_answer(
    recipe_of: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Those to general questions too, which come last."""
    answer_by_script(monkeypatch, lambda recipe, prompt: "x")
    call = ["eval", str(recipe_of("tiny_task")), "--adapter", "none", "--retention-rows", "2"]
    call += ["--general-rows", "2", "--out", str(tmp_path / "eval")]
    assert main(call) == 0
    assert main([*call, "--rows", "3", "--batch-size", "2"]) == 1
    text = said(capsys)
    assert "batch_size: 16 there, 2 now" in text
    assert "general" in text
    assert not (tmp_path / "eval" / "none" / "test-greedy-3rows").exists()
    assert main([*call, "--rows", "3"]) == 0


# --- servers -------------------------------------------------------------------------------------


def test_a_server_is_asked_with_examples_and_by_the_name_given(
    recipe_of: Callable[[str], Path], tmp_path: Path
) -> None:
    def script(body: dict[str, Any], number: int) -> tuple[int, Any]:
        return completion(body["messages"][-1]["content"].upper(), tokens=len(str(body)))

    with serving(script, models=("a", "b")) as server:
        call = ["eval", str(recipe_of("en_xx")), "--adapter", "none", "--engine", server.url]
        call += ["--model-name", "b", "--shots", "2"]
        call += ["--general-rows", "3", "--retention-rows", "3"]
        assert main([*call, "--out", str(tmp_path / "eval")]) == 0
    assert {body["model"] for body in server.asked} == {"b"}
    turns = [body["messages"] for body in server.asked]
    task = [messages for messages in turns if len(messages) == 5]
    assert len(task) == 6
    assert [message["role"] for message in task[0]] == ["user", "assistant"] * 2 + ["user"]
    assert sum(len(messages) == 1 for messages in turns) == 3 + 2  # general questions, and probes
    folder = tmp_path / "eval" / "none" / "test-greedy-2shot"
    assert json.loads((folder / SETTINGS).read_text())["model_sha256"] == ""  # the server's affair
    lines = lines_of(folder)
    assert all(line["text"].startswith("ANCHOR: DO THE TASK.") for line in lines)


def test_half_a_character_in_an_answer_ends_no_run(
    recipe_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """An emoji cut in two, as a server sends it that cuts at a number of UTF-16 units."""
    halves = json.dumps("cut \ud83d, whole \ud83d\ude00")

    def script(body: dict[str, Any], number: int) -> tuple[int, Any]:
        return 200, json.dumps(completion("TEXT")[1]).replace('"TEXT"', halves)

    with serving(script) as server:
        call = ["eval", str(recipe_of("free")), "--adapter", "none", "--engine", server.url]
        call += ["--general-rows", "2", "--retention-rows", "2", "--out", str(tmp_path / "eval")]
        assert main(call) == 0
        assert main(call) == 0  # and what was saved is read again
    texts = {line["text"] for line in lines_of(tmp_path / "eval" / "none" / "test-greedy")}
    assert texts == {"cut \ufffd, whole \U0001f600"}


def test_a_system_prompt_for_a_server_is_part_of_what_answered(
    recipe_of: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of("free")
    with serving(lambda body, number: completion("x")) as server:
        call = ["eval", str(recipe), "--adapter", "none", "--engine", server.url]
        call += ["--general-rows", "0", "--out", str(tmp_path / "eval")]
        recipe.write_text(recipe.read_text() + "system: Be brief.\n")
        assert main(call) == 0
        recipe.write_text(recipe.read_text().replace("brief", "long"))
        assert main(call) == 1
    assert "system, template and the like) have changed" in said(capsys)


def test_a_server_that_brings_the_anchor_is_asked_nothing_without_it(
    recipe_of: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `swift deploy` does with an adapter trained with an anchor."""
    front = "Answer only with one JSON object.\n\n"

    def script(body: dict[str, Any], number: int) -> tuple[int, Any]:
        query = body["messages"][-1]["content"]
        seen = query if query.startswith(front) else front + query
        return completion('{"label": "yes"}', tokens=len(seen))

    with serving(script) as server:
        call = ["eval", str(recipe_of("tiny_task")), "--adapter", "none", "--engine", server.url]
        call += ["--general-rows", "3", "--out", str(tmp_path / "eval")]
        assert main(call) == 0
        assert "no general question is asked" in capsys.readouterr().out
        assert not (tmp_path / "eval" / "none" / "general").exists()
        assert main([*call, "--anchor", "none"]) == 1
        assert "TELL_ANCHOR=none" in said(capsys)
        assert not (tmp_path / "eval" / "none" / "test-greedy-anchor-none").exists()


# --- scores of any input -------------------------------------------------------------------------

METRICS = ["tiny_task", "sums", "free", "en_xx"]


@pytest.mark.parametrize("card", METRICS)
@pytest.mark.parametrize(
    "text",
    ["", " \n", "\u2028\x85", "\ud83d", "#" * 5000, "{" * 5000],
    ids=["empty", "blank", "separators", "half a character", "marks", "braces"],
)
def test_every_scorer_takes_any_text(card: str, text: str, cards: None, tmp_path: Path) -> None:
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
def test_a_score_that_one_system_lacks_moves_no_other(
    first: str, cards: None, tmp_path: Path
) -> None:
    texts = [f"{OPENING}{word}\nlazy {word}" for word in WORDS]
    scores = scoring.score(save_answers(tmp_path / "a", "en_xx", texts))
    measures = {**scores.first.measures, "bleurt B": Estimate(0.6789, 0.6, 0.7, 12)}
    learned = {"stripped_segment": replace(scores.first, measures=measures)}
    systems = [
        System("plain", scores, {}),
        System("learned", replace(scores, readings=scores.readings | learned), {}),
    ]
    view = table(systems if first == "plain" else systems[::-1], "title")
    cells = dict(zip(view.columns, zip(*view.rows, strict=True), strict=True))
    rows = {name: place for place, name in enumerate(cells["system"])}
    assert cells["BLEURT"][rows["plain"]] == "-"
    assert cells["BLEURT"][rows["learned"]].startswith("0.68")
    assert all(cell.startswith("0%") for cell in cells["alignment failures"])


# --- free text -----------------------------------------------------------------------------------


def test_free_text_is_scored_by_exact_match_and_chrf(cards: None, tmp_path: Path) -> None:
    from sacrebleu.metrics.chrf import CHRF

    references = [f"{word} it is" for word in WORDS]
    answers = [*references[:3], "  rain\nit   is", references[0], ""]
    references[3] = "poem it is"
    scores = scoring.score(save_answers(tmp_path / "a", "free", answers))
    exact, empty = scores.first.measures["exact_match"], scores.first.details["empty"]
    assert isinstance(exact, Rate)
    assert isinstance(empty, Rate)
    assert (exact.k, exact.n, empty.k) == (3, 6, 1)
    said = [" ".join(answer.split()) for answer in answers]
    expected = CHRF(word_order=2).corpus_score(said, [references]).score
    assert scores.headline["chrF++"].value == pytest.approx(expected)
    perfect = scoring.score(save_answers(tmp_path / "b", "free", references))
    assert perfect.headline["exact match"].value == 1.0
    assert perfect.headline["chrF++"].value == pytest.approx(100)
    assert perfect.constant.removeprefix("always ") in references
    assert perfect.constant_measures == scores.constant_measures
    always = scoring.score(save_answers(tmp_path / "c", "free", ["rain it is"] * 6)).headline
    shown = ("exact match", "exact match of a constant", "most frequent answer")
    assert [always[name].value for name in shown] == [pytest.approx(1 / 6)] * 2 + [1.0]


def test_free_text_is_compared(
    cards: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = [f"{word} it is" for word in WORDS]
    folders = [
        save_answers(tmp_path / "good", "free", right),
        save_answers(tmp_path / "bad", "free", [*right[:3], "x", "y", "z"]),
    ]
    out = ["--out", str(tmp_path / "out")]
    assert main(["compare", *map(str, folders), *out]) == 0
    printed = capsys.readouterr().out
    for text in ("free, test: text", "(baseline) always", "exact match", "-50.00"):
        assert text in printed
    assert (tmp_path / "out" / "scores.csv").read_text().count("text,chrf++,") == 2
