"""Self-written anchors: what is written, what is taken, how it is ranked, and that it trains."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tell_plugins import cli
from tell_plugins.bridge.protocol import Ask, Reply
from tell_plugins.core.anchors import SEPARATOR
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.sources import open_task
from tell_plugins.core.spec import parse_spec
from tell_plugins.experiments.anchor_verb import cleaned, prompt, training_rows, write_anchors
from tests.sweep_world import World


class ScriptedEngine:
    """Writes what it is told to, and finds a response likelier the more words its query has."""

    name, model_name = "scripted", "scripted"

    def __init__(self, replies: Sequence[str]) -> None:
        self.replies = list(replies)
        self.prompts: list[str] = []
        self.seeds: list[int] = []

    def answer(self, prompts: Sequence[str], ask: Ask) -> list[Reply]:
        self.prompts += prompts
        self.seeds.append(ask.seed)
        return [Reply(self.replies[len(self.seeds) - 1], "stop", 5) for _ in prompts]

    def response_losses(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
        return [(100.0 / len(query.split()), len(response)) for query, response in pairs]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path, task=20)
    monkeypatch.setenv("TELL_CARDS", str(made.cards))
    return made


@pytest.mark.parametrize(
    ("text", "finish", "expected"),
    [
        ("  Judge the number.\n", "stop", "Judge the number."),
        ("```text\nJudge it.\n```", "stop", "Judge it."),
        ('"Judge it."', "stop", "Judge it."),
        ("**Instruction:** Judge it.", "stop", "Judge it."),
        ("The instruction: Judge it.", "stop", "Judge it."),
        ("Judge\x00 it\x1b.", "stop", "Judge it."),
        ("Judge it. Say yes or", "length", "Judge it."),
        ("Judge it and say", "length", "Judge it and say"),
        ("Judge it. Say yes or", "stop", "Judge it. Say yes or"),
        ("half \ud83d", "stop", "half"),
        (" \n", "stop", ""),
    ],
)
def test_answers_as_anchors(text, finish, expected):
    assert cleaned(Reply(text, finish, 3)) == expected


def test_candidates_are_ranked_by_loss(world):
    """Each is written from rows of its own, scored on others, and none of these is a test row."""
    card = load_card("tiny_task")
    rows = training_rows(card, 11, seed=1)
    engine = ScriptedEngine(["One two.", "One two three four five six seven eight.", "One."])
    candidates, manual, none = write_anchors(engine, rows, count=3, shown=2, seed=9)
    assert [one.attempt for one in candidates] == [1, 0, 2]
    assert sorted(number for one in candidates for number in one.examples) == list(range(6))
    assert all(c.loss.low <= c.loss.value <= c.loss.high for c in candidates)  # type: ignore[operator]
    # the card's own anchor has six words: one candidate beats it, two do not
    assert [one.change.value < 0 for one in candidates] == [True, False, False]  # type: ignore[operator]
    assert none.change.value > 0  # type: ignore[operator]
    assert (manual.change.low, manual.change.high) == (0.0, 0.0)
    assert engine.seeds == [9 * 1_000_003 + attempt for attempt in range(3)]
    for query, response, _ in rows[:6]:
        assert sum(query in asked and response in asked for asked in engine.prompts) == 1
    for query, _, anchored in rows[6:]:
        assert not any(query in asked for asked in engine.prompts)
        assert anchored == f"Say whether the number is odd.{SEPARATOR}{query}"
    assert card.file("anchor.txt").read_text().strip() not in "".join(engine.prompts)
    test = set(open_task(card, "test", "none").queries)
    assert not test & {query for query, _, _ in rows}


def test_repeated_and_empty_answers_are_not_taken(world):
    rows = training_rows(load_card("tiny_task"), 4, seed=1)
    engine = ScriptedEngine(["Judge it.", "judge IT", " ", "Say more."])
    candidates, *_ = write_anchors(engine, rows, count=2, shown=1, seed=1)
    assert {candidate.text for candidate in candidates} == {"Judge it.", "Say more."}
    with pytest.raises(UserError, match="wrote no usable text in 8 attempts"):
        write_anchors(ScriptedEngine([""] * 8), rows, count=2, shown=1, seed=1)


def test_long_examples_are_cut_and_say_so():
    text = prompt([("x" * 5000, "short", "")])
    assert "[...]" in text
    assert len(text) < 2500


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """The command with a scripted engine: its files, not its model."""
    engine = ScriptedEngine(["Judge it.", "Judge whether the number is odd, as JSON.", "Hm."] * 4)
    monkeypatch.setattr("tell_plugins.evaluation.engines.make_engine", lambda *a, **k: engine)
    return engine


def _anchor(world: World, *arguments: str) -> int:
    (world.root / "model").mkdir(exist_ok=True)
    recipe = str(world.recipe())
    return cli.main(["anchor", recipe, "--rows", "2", "--held-out", "4", *arguments])


def test_the_best_becomes_an_anchor_of_the_card(world, scripted, capsys):
    assert _anchor(world, "--write", "3") == 0
    folder = world.cards / "tiny_task"
    best = "Judge whether the number is odd, as JSON."
    assert (folder / "self_written.txt").read_text() == f"{best}\n"
    saved = json.loads((folder / "self_written.json").read_text())
    assert saved["candidates"][0]["text"] == best
    assert len(saved["candidates"]) == 3
    assert saved["manual"]["loss"] != saved["none"]["loss"]
    assert saved["rows_scored"] == 4
    shown = capsys.readouterr().out
    assert "the card's anchor" in shown
    assert "no anchor" in shown
    dataset = shown.split("--dataset ")[1].strip()
    mixture = build_mixture(parse_spec(dataset))
    assert mixture.task is not None
    assert mixture.task.anchor.text == best


@pytest.mark.parametrize(
    ("there", "arguments", "told"),
    [
        ("self_written.txt", ["--write", "3"], "is there, and may be in use"),
        ("schema.json", ["--write", "3", "--name", "schema"], "schema.json is there"),
        (
            "schema.json",
            ["--write", "3", "--name", "schema", "--overwrite"],
            "schema.json is there",
        ),
        ("anchor.txt", ["--write", "0"], "0 is too small"),
        ("anchor.txt", ["--write", "3", "--name", "card"], "'card' cannot be the name"),
        ("anchor.txt", ["--write", "3", "--name", "anchor"], "'anchor' cannot be the name"),
        ("anchor.txt", ["--write", "3", "--name", "a/b"], "'a/b' cannot be the name"),
        ("anchor.txt", ["--write", "9"], "training rows are needed"),
    ],
)
def test_what_is_refused_leaves_the_card_as_it_is(world, scripted, capsys, there, arguments, told):
    """It is known before anything is written."""
    folder = world.cards / "tiny_task"
    if not (folder / there).exists():
        (folder / there).write_text("Another one.\n")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert _anchor(world, *arguments) == 1
    assert told in capsys.readouterr().err
    assert scripted.prompts == []
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_an_anchor_is_replaced_when_asked(world, scripted):
    file = world.cards / "tiny_task" / "self_written.txt"
    file.write_text("Another one.\n")
    assert _anchor(world, "--write", "3", "--overwrite") == 0
    assert file.read_text() != "Another one.\n"


@pytest.mark.slow
def test_a_real_model_writes_and_its_best_trains(tmp_path):
    """Five candidates with scores, and a run with the best."""
    world = World(tmp_path, task=24)
    recipe = str(world.recipe())
    shown = world.call("anchor", recipe, "--write", "5", "--rows", "2", "--held-out", "6")
    folder = world.cards / "tiny_task"
    saved = json.loads((folder / "self_written.json").read_bytes())
    assert len(saved["candidates"]) == 5
    losses = [candidate["loss"]["value"] for candidate in saved["candidates"]]
    assert losses == sorted(losses)
    best = (folder / "self_written.txt").read_text().strip()
    assert best == saved["candidates"][0]["text"]
    assert "candidate 5" in shown

    out = tmp_path / "out"
    dataset = "tell/tiny_task:task=8rows/general=24rows/anchor=self_written"
    flags = {"dataset": dataset, "output_dir": out, "add_version": "false", "max_length": 2048}
    given = [text for key, value in flags.items() for text in (f"--{key}", str(value))]
    world.call("train", recipe, *given)
    assert (out / "anchor.txt").read_text() == best
    assert json.loads((out / "manifest.json").read_text())["anchor"]["choice"] == "self_written"
    assert list(out.glob("checkpoint-*/adapter_model.safetensors"))
