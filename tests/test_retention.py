"""What a run did elsewhere: losses, their intervals, held-out rows, bleed, and idle adapters."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tell_plugins.bridge.protocol import DECODINGS, Ask
from tell_plugins.core import paths
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.manifest import manifest_of
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.spec import parse_spec
from tell_plugins.evaluation import bleed, elsewhere, evaluate
from tell_plugins.evaluation import prompts as prompting
from tell_plugins.evaluation.adapters import Adapter
from tell_plugins.evaluation.answers import ANSWERS, SETTINGS, read_saved
from tell_plugins.evaluation.bleed import circles, form_of
from tell_plugins.evaluation.differences import difference, measure_of
from tell_plugins.evaluation.elsewhere import BLEED as BLEED_CHANGE
from tell_plugins.evaluation.elsewhere import KL as KL_TO_BASE
from tell_plugins.evaluation.elsewhere import (
    LOSS_FILES,
    STYLE_CHANGE,
    STYLE_FIT,
    Elsewhere,
    read_general,
)
from tell_plugins.evaluation.options import Options
from tell_plugins.evaluation.prompts import general_rows
from tell_plugins.recipe.recipes import load_recipe
from tests.conftest import change, message_of, write_rows
from tests.saved_answers import answer_line, save_lines
from tests.tiny import WORDS, make_tiny_cards, make_tiny_model, tiny_engine, tiny_recipe
from tests.tiny_adapters import make_adapter, saved_adapter

LOSSES, INSTRUCTIONS, PROSE, KL = (f"{n}.jsonl" for n in ("losses", "instructions", "prose", "kl"))
OWN = "tell/tiny_task:general=9rows/seed=3"
PAIRS = [
    ("How many days has a week?", "seven"),
    ("Write a poem about rain.", "The rain jumps over the lazy dog. Rain!\nTranslate the text."),
    ("x", "y"),
    ("Is {brown} \u00fe late?\n\n", ' {"thought": "late"} '),
]


def value_of(found: Elsewhere, name: str) -> float:
    number = found[name]
    assert number.value is not None
    return number.value


@pytest.fixture(scope="module")
def adapters(model, tmp_path_factory) -> dict[str, Path]:
    """Two adapters that change the model, and one that was not trained at all."""
    root = tmp_path_factory.mktemp("adapters")
    seeds = {"one": 1, "two": 2, "idle": None}
    return {name: make_adapter(root / name, model, seed=seed) for name, seed in seeds.items()}


# --- losses --------------------------------------------------------------------------------------


def by_hand(tokenizer: Any, query: str, response: str) -> tuple[list[int], list[int]]:
    """The tokens of prompt and answer, of text put together by hand."""
    front = f"<|im_start|>user\n{query}<|im_end|>\n<|im_start|>assistant\n"
    texts = (front, response + "<|im_end|>\n")
    prompt, answer = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts)
    return prompt, answer


@pytest.mark.slow
def test_losses_and_divergence_are_those_of_plain_forwards(model, adapters):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tell_plugins.bridge.packing import Row, line_of

    engine = tiny_engine(model, adapters)
    loaded = AutoModelForCausalLM.from_pretrained(model)
    tuned = PeftModel.from_pretrained(loaded, str(adapters["one"]))
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [by_hand(tokenizer, *pair) for pair in PAIRS]
    prompt, answer = rows[1]
    whole = torch.tensor([prompt + answer])

    def plain() -> tuple[list[tuple[float, int]], Any]:
        """The same losses by transformers alone, and the logs of one row's probabilities."""
        losses = []
        for front, said in rows:
            labels = torch.tensor([[-100] * len(front) + said])
            loss = tuned(input_ids=torch.tensor([front + said]), labels=labels).loss
            losses.append((float(loss) * len(said), len(said)))
        logits = tuned(input_ids=whole).logits
        return losses, logits[0, len(prompt) - 1 : -1].log_softmax(-1)

    text = "The rain jumps over the lazy dog."
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.inference_mode():
        adapted, said = plain()
        with tuned.disable_adapter():
            bare, base = plain()
        prose = float(tuned(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
    for name, expected in ((None, bare), ("one", adapted), (None, bare)):
        with engine.adapter(name):
            assert np.allclose(engine.response_losses(PAIRS), expected, rtol=1e-5)
    assert not np.allclose(bare, adapted, rtol=1e-2)
    divergence = float(torch.nn.functional.kl_div(said, base, log_target=True, reduction="sum"))
    with engine.adapter("one"):
        texts = engine.text_losses([text, PAIRS[0][0]])  # read in one line, each as if alone
        assert texts[0] == (pytest.approx(prose, rel=1e-4), ids.shape[1] - 1)
        found = engine.divergences_from_base([PAIRS[1], PAIRS[0]])
        assert found[0] == (pytest.approx(divergence, rel=1e-3), len(answer))
        again = engine.divergences_from_base([PAIRS[1], PAIRS[0]])
        assert again == found  # the adapter is on again
    with engine.adapter("idle"):
        assert engine.divergences_from_base([PAIRS[1]])[0][0] == pytest.approx(0, abs=1e-4)
        # the same tokens in one line, asked and read otherwise
        one, three = Row([5, 6, 7], [False, True, True]), Row([5, 6, 7], [False, False, True])
        two = [Row([5, 6], [False, True]), Row([5, 7], [False, True])]
        for asked_rows, asked in (([one], 2), ([three], 1), (two, 2)):
            line = line_of(asked_rows)
            assert line.inputs["input_ids"].tolist() == [[5, 6, 7]]
            assert len(engine._log_probabilities(line)) == asked
    engine.context = 40
    with pytest.raises(UserError, match="the model's context is 40"):
        engine.response_losses([("Write a poem. " * 9, "rain")])


@pytest.mark.slow
def test_an_adapter_of_another_model_is_one_message(adapters, tmp_path):
    other = Path(shutil.copytree(adapters["one"], tmp_path / "other"))
    config = other / "adapter_config.json"
    changed = json.loads(config.read_text()) | {"r": 8}
    config.write_text(json.dumps(changed))
    with pytest.raises(UserError, match="the adapter does not fit the model"):
        tiny_engine(Path(changed["base_model_name_or_path"]), {"other": other})


@pytest.mark.slow
def test_adapters_share_one_base_and_leave_it_as_it_was(model, adapters, monkeypatch):
    from swift.arguments import BaseArguments

    loads = []
    load = BaseArguments.get_model_processor
    monkeypatch.setattr(
        BaseArguments,
        "get_model_processor",
        lambda self, *a, **k: loads.append(1) or load(self, *a, **k),  # type: ignore[func-returns-value]
    )
    shared = tiny_engine(model, adapters)
    assert loads == [1]

    def answers(engine: Any, name: str | None) -> list[str]:
        with engine.adapter(name):
            asked = [query for query, _ in PAIRS]
            replies = engine.answer(asked, Ask(DECODINGS["greedy"], 12, seed=1))
        return [reply.text for reply in replies]

    base = answers(shared, None)
    one, two, idle = (answers(shared, name) for name in ("one", "two", "idle"))
    assert answers(shared, None) == base == idle
    assert base != one
    assert base != two
    assert one != two
    assert answers(shared, "one") == one
    for name, expected in (("one", one), ("two", two)):
        assert answers(tiny_engine(model, {name: adapters[name]}), name) == expected
    assert answers(tiny_engine(model), None) == base
    with pytest.raises(ValueError, match="is not loaded"), tiny_engine(model).adapter("one"):
        pass


@pytest.mark.slow
def test_a_scaled_adapter_is_one_whose_weights_are_scaled(model, adapters, tmp_path):
    """At 0 the base model, at 1 the adapter, between them the LoRA product times the scale."""
    from safetensors.torch import load_file, save_file

    half = tmp_path / "half"
    shutil.copytree(adapters["one"], half)
    weights = load_file(half / "adapter_model.safetensors")
    for name in weights:
        if "lora_B" in name:
            weights[name] = weights[name] * 0.5
    save_file(weights, half / "adapter_model.safetensors")
    engine = tiny_engine(model, {"one": adapters["one"], "half": half})

    def losses(name: str | None, scale: float = 1.0) -> list[float]:
        with engine.adapter(name) if scale == 1 else engine.scaled(name, scale):
            return [loss for loss, _ in engine.response_losses(PAIRS)]

    whole = losses("one")
    assert losses("one", 0.5) == pytest.approx(losses("half"), rel=1e-5)
    assert losses("one", 0.0) == losses(None)
    assert losses("one") == whole  # the scale is taken back
    assert losses("one", 0.5) != pytest.approx(whole, rel=1e-5)


@pytest.fixture
def recipe(make_card, model, tmp_path) -> Path:
    make_tiny_cards(make_card)
    return tiny_recipe(tmp_path / "r.yaml", model, OWN)


@pytest.mark.slow
def test_an_adapter_that_trained_nothing_is_reported(recipe, model, adapters, tmp_path, cli):
    whole = make_tiny_model(tmp_path / "whole", seed=1)  # as `tuner_type: full` leaves it
    call = ["eval", recipe, "--adapter", "none", *adapters.values(), whole]
    call += ["--max-new-tokens", 8, "--general-rows", 6, "--retention-rows", 4]
    said = cli(0, *call, "--out", tmp_path / "eval")
    assert said.count("trained nothing") == 1
    assert "--idle: every LoRA B matrix is zero; this run trained nothing" in said
    made = [path.parent for path in (tmp_path / "eval").glob("*/general")]
    folders = {path.name.rpartition("--")[2]: path for path in made}
    assert set(folders) == {"none", "one", "two", "idle", "whole"}

    files = [f"general/{name}" for name in (ANSWERS, LOSSES, INSTRUCTIONS, PROSE)]
    for file in ("test-greedy/answers.jsonl", *files):
        idle, base, one = ((folders[n] / file).read_bytes() for n in ("idle", "none", "one"))
        assert idle == base != one
    card, none = load_card("tiny_task"), folders["none"] / "general"
    made = {name: read_general(path / "general", none, card) for name, path in folders.items()}
    found = {name: general.numbers for name, general in made.items()}
    for key in LOSS_FILES:
        idle, one = found["idle"][key], found["one"][key]
        assert (idle.value, idle.low, idle.high) == (0.0, 0.0, 0.0)
        assert one.low <= one.value <= one.high  # type: ignore[operator]
        assert one.value != 0
        assert key not in found["none"]
    assert value_of(found["idle"], KL_TO_BASE) == pytest.approx(0, abs=1e-5)
    assert value_of(found["one"], KL_TO_BASE) > 1e-4
    assert found["one"][KL_TO_BASE].n <= 4  # type: ignore[union-attr]  # as many as were answered
    loss, base = (value_of(found[name], STYLE_FIT) for name in ("one", "none"))
    assert value_of(found["one"], STYLE_CHANGE) == pytest.approx(loss - base)
    assert STYLE_CHANGE in found["whole"]
    assert KL_TO_BASE not in found["none"] | found["whole"]  # a whole model has no base at hand
    of_whole = json.loads((folders["whole"] / "test-greedy" / SETTINGS).read_text())
    assert of_whole["model"] == str(model)  # what was trained; the weights stand beside it
    assert len(of_whole["adapter_sha256"]) == 64
    asked = prompting.task_prompts(card, "test", "card")[1]
    texts = {line.row: line.text for line in read_saved(folders["whole"] / "test-greedy").answers}
    ask = Ask(DECODINGS["greedy"], 8, seed=1)
    replies = tiny_engine(whole).answer([prompt.text for prompt in asked], ask)
    assert [texts[prompt.row] for prompt in asked] == [reply.text for reply in replies]
    assert not (none / KL).exists()
    questions = [question.text for question in elsewhere.foreign(4).questions]
    tokens = tiny_engine(model).prompt_tokens(questions)  # asked without the anchor
    assert {line.row: line.prompt_tokens for line in read_saved(none).answers} == dict(
        enumerate(tokens)
    )
    lengths = [len(elsewhere.read_sums(none, name)) for name in (LOSSES, INSTRUCTIONS, PROSE)]
    assert lengths == [6, 4, 4]
    (kept,) = (paths.cache_dir() / "base_answers").iterdir()  # one model, answered once
    assert len(json.loads(kept.read_text())) == 4


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_whether_b_is_zero_is_read_from_the_file_in_any_type(dtype, tmp_path):
    trained = saved_adapter(tmp_path / "trained", b"\0\0\x80\x3f" * 2, dtype)
    assert not Adapter("trained", trained).changes_nothing
    idle = saved_adapter(tmp_path / "idle", bytes(8), dtype)
    assert Adapter("idle", idle).changes_nothing
    (idle / "adapter_model.safetensors").rename(idle / "adapter_model.bin")
    older = Adapter("older", idle)  # which is not looked into
    assert not older.changes_nothing
    assert len(older.weights_sha256) == 64
    assert Adapter("none", None).changes_nothing
    assert Adapter("none", None).weights_sha256 == ""


# --- intervals -----------------------------------------------------------------------------------


Losses = list[tuple[float, int]]


@pytest.fixture
def losses() -> Losses:
    random = np.random.default_rng(5)
    tokens = random.integers(5, 200, 300)
    means = random.normal(2.0, 0.6, 300)
    return [(float(mean * count), int(count)) for mean, count in zip(means, tokens, strict=True)]


def _estimated(losses: Losses) -> Any:
    return elsewhere.column(losses).estimate(range(len(losses)))


def _moved(*sides: Losses) -> Any:
    return difference(*(measure_of(range(len(part)), elsewhere.column(part)) for part in sides))


def test_the_mean_is_per_token_and_its_interval_as_wide_as_theory_says(losses):
    sums, tokens = np.array(losses).T
    found = _estimated(losses)
    assert found.value == pytest.approx(sums.sum() / tokens.sum())
    assert found.n == 300
    residuals = sums - found.value * tokens  # the delta method for a ratio of sums
    error = np.sqrt((residuals**2).sum()) / tokens.sum()
    assert found.high - found.value == pytest.approx(1.96 * error, rel=0.15)
    assert found.value - found.low == pytest.approx(1.96 * error, rel=0.15)


def test_a_paired_difference_sees_what_rows_hide(losses):
    noise = np.random.default_rng(6)
    better = [(value - 0.05 * n + noise.normal(0, 0.02) * n, n) for value, n in losses]
    found, alone = _moved(better, losses), _estimated(losses)
    assert found.low < found.value < found.high < 0
    assert found.value == pytest.approx(-0.05, abs=0.01)
    assert found.high - found.low < (alone.high - alone.low) / 5
    assert _moved(losses, better).value == pytest.approx(-found.value)
    for shift in (0.0, 0.25):
        exact = _moved([(value + shift * n, n) for value, n in losses], losses)
        assert [exact.value, exact.low, exact.high] == pytest.approx([shift] * 3)
    assert _moved(losses, losses[::-1]) is None  # other rows


def test_several_seeds_have_a_divergence_though_the_base_model_answered_otherwise():
    """On another machine its own answers are made again, and some differ by a token."""

    def run(*sums: tuple[float, int]) -> elsewhere.Run:
        return elsewhere.Run([], {name: list(sums) for name in elsewhere.SUM_FILES})

    runs = [run((1.0, 10), (2.0, 10)), run((3.0, 10), (2.0, 12))]
    assert elsewhere.General(runs).numbers[KL_TO_BASE].value == pytest.approx(4 / 21)
    assert elsewhere.General(runs).measure(elsewhere.PROSE) is None  # texts of the set are the same
    assert elsewhere.General([runs[0], run((1.0, 10))]).measure(KL_TO_BASE) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("model", "another"), ("model_sha256", "1"), ("engine", "another"), ("prompts_sha256", "1")],
)
def test_a_change_is_of_one_model_over_one_set_of_rows(key, value, make_card, tmp_path):
    make_tiny_cards(make_card)
    card = load_card("tiny_task")
    same = {"model_sha256": "0", "prompts_sha256": "0", "split": "general"}

    def measured(name: str, losses: list[tuple[float, int]], **changes: str) -> Path:
        line = answer_line("g", 0, "Hi")
        folder = save_lines(tmp_path / name, "tiny_task", [line], **(same | changes))
        rows = [json.dumps({"loss_sum": loss, "tokens": tokens}) for loss, tokens in losses]
        (folder / elsewhere.LOSSES).write_text("\n".join(rows) + "\n")
        return folder

    mine = measured("mine", [(11.0, 5), (4.0, 3)])
    base = measured("base", [(10.0, 5), (4.0, 3)])
    assert value_of(read_general(mine, base, card).numbers, STYLE_CHANGE) == pytest.approx(1 / 8)
    for other in (measured("b", [(10.0, 5), (4.0, 3)], **{key: value}), tmp_path / "none"):
        found = read_general(mine, other, card).numbers
        assert STYLE_CHANGE not in found
        assert found[STYLE_FIT] is not None
    others = measured("c", [(10.0, 6), (4.0, 3)])
    assert STYLE_CHANGE not in read_general(mine, others, card).numbers
    (base / SETTINGS).unlink()
    assert STYLE_CHANGE not in read_general(mine, base, card).numbers


# --- held-out rows -------------------------------------------------------------------------------


def trained_texts(spec: str, file: Path) -> set[str]:
    """Every text of a mixture, as its file says."""
    build_mixture(parse_spec(spec)).write_json_lines(file)
    rows = map(json.loads, file.read_text().splitlines())
    return {message["content"] for row in rows for message in row["messages"]}


def test_what_asks_the_same_as_a_trained_row_is_not_held_out(make_card):
    rows = [{"q": f"Say {n}.", "r": "a"} for n in range(6) for _ in range(2)]
    make_card("plain", kind="general", train=rows)
    make_card("toy", train=[{"q": f"task {n}", "r": "a"} for n in range(6)])
    spec = parse_spec("tell/toy:general=4rows")
    trained = {r["messages"][0]["content"] for r in build_mixture(spec).rows()}
    left = 12 - 2 * len([q for q in trained if q.startswith("Say")])
    held = general_rows([spec], load_card("toy"), left)
    assert len(held) == left
    assert not {query for query, _ in held} & trained
    with pytest.raises(UserError, match=f"only {left} of its rows were left out"):
        general_rows([spec], load_card("toy"), left + 1)


def planned(recipe: Path, *adapters: Path, **more: Any) -> evaluate.Task:
    options = {"adapter": [str(path) for path in adapters], "general_rows": 0} | more
    return evaluate.plan(load_recipe(recipe), Options(**options))


def test_rows_that_changed_since_a_training_are_not_known(recipe, model, tmp_path):
    spec = "tell/tiny_task:general=12rows"
    folder = make_adapter(tmp_path / "a", model, seed=1, spec=spec)
    manifest = manifest_of(build_mixture(parse_spec(spec)))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert len(planned(recipe, folder, general_rows=3).general) == 3
    manifest["sources"][1]["rows"]["used"] = 11
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="have changed since it was trained"):
        planned(recipe, folder, general_rows=3)
    assert planned(recipe, folder).general == []


@pytest.mark.parametrize("trained", ["anchor=none", ""])
def test_an_adapter_is_tested_with_the_anchor_it_trained_with(trained, recipe, model, tmp_path):
    manifest = manifest_of(build_mixture(parse_spec(f"{OWN}/{trained}".rstrip("/"))))
    if not trained:  # its text was another one then
        manifest["anchor"]["sha256"] = "0" * 64
    folder = make_adapter(tmp_path / "a", model, seed=1, spec=OWN)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "to be tested with 'card', whose text is another" in message_of(planned, recipe, folder)
    for asked in ("card", "none"):
        assert planned(recipe, folder, anchor=asked).anchor == asked
    general = manifest_of(build_mixture(parse_spec("tell/tiny_task:task=0/general=4rows")))
    (folder / "manifest.json").write_text(json.dumps(general))
    assert planned(recipe, folder).anchor == "card"  # it saw none


def test_no_adapter_trained_on_the_held_out_rows(recipe, model, tmp_path):
    trained = [f"tell/tiny_task:general=12rows/seed={seed}" for seed in (1, 2)]
    folders = [
        make_adapter(tmp_path / f"a{place}", model, seed=place, spec=spec)
        for place, spec in enumerate(trained)
    ]
    used = [trained_texts(spec, tmp_path / "mix.jsonl") for spec in (*trained, OWN)]

    def held_out(rows: int, *named: Path) -> list[tuple[str, str]]:
        return planned(recipe, *named, general_rows=rows).general

    general = {f"Write about {a} and {b}." for a in WORDS for b in WORDS}
    left = general.difference(*used)
    rows = held_out(len(left), *folders)
    assert {query for query, _ in rows} == left  # all that are left, and no other
    assert {query for query, _ in held_out(5, *folders)} < left
    with pytest.raises(UserError, match=f"only {len(left)} of its rows were left") as caught:
        held_out(len(left) + 1, *folders)
    assert f"--general-rows {len(left)}" in str(caught.value)
    assert len(held_out(len(left) + 1, folders[0])) > len(left)


def test_a_split_that_is_held_out_is_taken_as_it_is(make_card, tmp_path):
    make_tiny_cards(make_card)
    splits = {name: {"file": f"{name}.jsonl"} for name in ("train", "heldout")}
    change(tmp_path / "cards" / "plain", splits=splits)
    write_rows(
        tmp_path / "cards" / "plain" / "heldout.jsonl",
        [{"q": f"held {n}", "r": "r"} for n in range(4)],
    )
    found = general_rows([parse_spec("tell/tiny_task")], load_card("tiny_task"), 3)
    assert found == [("held 0", "r"), ("held 1", "r"), ("held 2", "r")]


# --- bleed ---------------------------------------------------------------------------------------

OPENING = "Here is the translation:\n"


@pytest.fixture
def tasks(make_card) -> None:
    """Tasks whose answers have a form of their own, and some whose answers have none."""
    make_tiny_cards(make_card)
    plain = [{"q": f"q{n}", "r": f"{word} #### {n}"} for n, word in enumerate(WORDS)]
    opened = [{"q": f"q{n}", "r": f"{OPENING}{word}"} for n, word in enumerate(WORDS)]
    names = ["card_arrival", "no", "age_limit"]
    said = "Nothing is wrong here."
    for name, metric, rows in (
        ("sums", "number", plain),
        ("en_xx", "translation", opened),
        ("bare", "translation", plain),
        ("letters", "text", opened),
        ("free", "text", plain),
        ("intents", "text", [{"q": f"q{n}", "r": names[n % 3]} for n in range(30)]),
        ("counts", "number", [{"q": f"q{n}", "r": str(n * 7)} for n in range(30)]),
        (
            "verdicts",
            "text",
            [{"q": f"q{n}", "r": f"{said} " * (n % 2) + f"It was {n}."} for n in range(30)],
        ),
    ):
        make_card(name, train=rows, metric=metric)


OPENS = {  # answers that open as the task's do, and answers that do not
    "tiny_task": (
        [
            '{"label": "yes"}',
            ' \n{"lab',
            '{"other": 1}',
        ],  # it has left the question, whatever follows
        ['Sure: {"label": "yes"}', '["label"]', ""],
    ),
    "en_xx": ([f"\n{OPENING}La la."], ["The translation: La la."]),
    "letters": ([f"{OPENING}A letter"], ["A letter"]),
    "intents": (
        ["card_arrival", " Card_Arrival.\nMore", "No"],
        ["No, that is another thing.", "card"],
    ),
    "counts": (["42", "-1,250.5."], ["42 is the answer"]),
}
SPEAKS = {  # answers in the task's words, and others
    "tiny_task": (['I think "label" is the word'], ["a label without quotes"]),
    "intents": (["Is it about card_arrival?"], ["no"]),  # any answer may hold a short word
    "verdicts": (["Well. Nothing is wrong here. Or is it?"], ["Nothing is wrong."]),
}


def test_an_answer_that_opens_as_the_task_or_speaks_in_its_words(tasks):
    for cases, read in ((OPENS, bleed.Form.opens), (SPEAKS, bleed.Form.speaks)):
        for card, (right, wrong) in cases.items():
            form = form_of(load_card(card))
            assert form.known or card == "verdicts"
            assert [answer for answer in right if not read(form, answer)] == []
            assert [answer for answer in wrong if read(form, answer)] == []


def test_an_answer_that_goes_round_in_circles():
    assert all(map(circles, ["edit" + "ited" * 20, "directed" + "ited" * 20, "no " * 8]))
    straight = ["word word word", "One third of a tank is 3/10 of a tank.", "1000000", ""]
    assert not any(map(circles, [*straight, "A list:\n- one\n- two\n- three\n- four"]))


def test_arrays_open_with_a_bracket(make_card):
    make_tiny_cards(make_card)
    card = load_card("tiny_task")
    (card.folder / "schema.json").write_text('{"type": "array"}')
    write_rows(card.folder / "train.jsonl", [{"q": "a", "r": '["x"]'}, {"q": "b", "r": "[]"}])
    form = form_of(card)
    assert form.opens('["x", ')
    assert not form.opens('{"x": ')


def test_the_opening_that_most_share():
    few = [f"Here it is: {n}" for n in range(6)] + [f"{n} apples" for n in range(5)]
    assert bleed.shared_opening(few) == "Here it is:"
    assert bleed.shared_opening(few[:5] + few[6:]) == ""  # half is not most
    assert bleed.shared_opening(["yes", "yes", "no"]) == ""  # too short to be known by
    assert bleed.shared_opening([]) == ""


@pytest.mark.parametrize("card", ["bare", "free", "sums"])
def test_a_task_without_a_form_has_no_bleed(card, tasks, tmp_path):
    assert not form_of(load_card(card)).known
    folder = save_lines(tmp_path / "general", card, [answer_line("g", 0, "Hi")], split="general")
    assert read_general(folder, None, load_card(card)).numbers[bleed.BLEED] is None


def test_bleed_is_set_against_the_base_model(tasks, tmp_path):
    """Paired over the questions; the base model opens two of them so by itself."""
    mine = ['{"label": "yes"}'] * 8 + ["Rain."] * 4
    theirs = ["{a: 1}"] * 2 + ["Rain."] * 10
    folders = []
    for name, texts in (("mine", mine), ("base", theirs)):
        lines = [answer_line(f"general-{row}", row, text) for row, text in enumerate(texts)]
        folders.append(save_lines(tmp_path / name, "tiny_task", lines, split="general"))
    found = read_general(*folders, load_card("tiny_task")).numbers
    for name in (bleed.BLEED, bleed.WORDS):
        rate = found[name]
        assert (rate.k, rate.n) == (8, 12)
    change = found[BLEED_CHANGE]
    assert change.value == pytest.approx(6 / 12)
    assert change.low > 0
    assert found[STYLE_FIT] is None
    assert not LOSS_FILES.keys() & found
    other = save_lines(tmp_path / "other", "tiny_task", [answer_line("general-99", 99, "{")])
    assert BLEED_CHANGE not in read_general(folders[0], other, load_card("tiny_task")).numbers


@pytest.mark.parametrize(
    ("asked", "native", "got"),
    [
        ("bfloat16", True, "bfloat16"),
        ("bfloat16", False, "float32"),
        ("float16", True, "float32"),
        (None, True, "float32"),
    ],
)
def test_a_cpu_answers_in_bfloat16_where_it_computes_so(model, asked, native, got, monkeypatch):
    from tell_plugins.bridge import engine

    monkeypatch.setattr(engine, "_computes_in_bfloat16", lambda: native)
    values = {"model": str(model), "model_type": "llama", "template": "chatml"}
    values |= {} if asked is None else {"torch_dtype": asked}
    assert str(engine.model_arguments(values).torch_dtype) == f"torch.{got}"
