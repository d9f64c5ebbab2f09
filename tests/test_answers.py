"""Saved answers: interrupted, resumed, refused; batched, truncated, sampled; by a real engine."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tell_plugins.cli import main
from tell_plugins.core.errors import UserError
from tell_plugins.evaluation.answers import (
    ANSWERS,
    SETTINGS,
    Answer,
    Prompt,
    Settings,
    answer_all,
    answer_lines,
    read_settings,
)
from tell_plugins.evaluation.prompts import prompts_sha256
from tell_plugins.recipe.recipes import Recipe
from tests.conftest import PROJECT, message_of, wait_for
from tests.scripted_engine import ScriptedEngine
from tests.tiny import make_tiny_cards, tiny_engine, tiny_recipe

pytestmark = pytest.mark.slow

PROMPTS = [
    Prompt(f"id-{row}", row, f"Write a poem about {word}." * (1 + row // 8))
    for row, word in enumerate(["fox", "dog", "rain", "week", "time", "over", "the", "lazy"] * 6)
]
SETTINGS_OF_TEST = Settings(
    recipe="r",
    card="c",
    split="test",
    anchor="card",
    adapter="none",
    decoding="greedy",
    seed=42,
    rows=len(PROMPTS),
    model="tiny",
    engine="transformers float32",
    max_new_tokens=12,
    batch_size=8,
    prompts_sha256=prompts_sha256(PROMPTS),
)


@pytest.fixture(scope="module")
def engine(model) -> Iterator[Any]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two only wait for each other on so small a model
    yield tiny_engine(model)
    torch.set_num_threads(threads)


def answered(engine: Any, folder: Path, **changes: Any) -> bytes:
    """The file that `answer_all` leaves with the settings of this test and some changes."""
    settings = SETTINGS_OF_TEST.model_copy(update=changes)
    return answer_all(engine, PROMPTS, settings, folder, label="test").read_bytes()


def scripted(asked: list[str]) -> ScriptedEngine:
    """An engine that costs nothing, for what does not hang on the answers; it notes the prompts."""

    def script(recipe: Recipe, prompt: str) -> str:
        asked.append(prompt)
        return prompt[::-1]

    return ScriptedEngine(Recipe(Path("r.yaml"), {"model": "m"}), script)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    """The file of a run that nothing disturbed."""
    return answered(scripted([]), tmp_path_factory.mktemp("whole"))


def texts(content: bytes) -> dict[int, str]:
    return {
        line["row"]: line["text"] for line in map(json.loads, content.decode().split("\n")[:-1])
    }


def test_every_prompt_is_answered_once_longest_first(engine, tmp_path):
    whole = answered(engine, tmp_path)
    lines = [json.loads(line) for line in whole.decode().split("\n")[:-1]]
    assert sorted(line["row"] for line in lines) == list(range(len(PROMPTS)))
    assert all(line["id"] == f"id-{line['row']}" for line in lines)
    sizes = [line["prompt_tokens"] for line in lines]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == engine.prompt_tokens([PROMPTS[lines[0]["row"]].text])[0]
    assert engine.context == engine.model.config.max_position_embeddings
    assert len(set(texts(whole).values())) > 24  # the model does answer what it is asked


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 24, 47, 48])
@pytest.mark.parametrize("tail", [b"", b'{"id": "id-3", "row": 3, "te', b"\x00\xff\n", b"[1]\n"])
def test_a_file_that_breaks_off_anywhere_is_made_whole(kept, tail, whole, tmp_path):
    """Whole lines, then a line that was torn or is none: batches that are whole stay."""
    (tmp_path / SETTINGS).write_text(json.dumps(SETTINGS_OF_TEST.model_dump()))
    lines = whole.splitlines(keepends=True)[:kept]
    (tmp_path / ANSWERS).write_bytes(b"".join(lines) + tail)
    asked: list[str] = []
    assert answered(scripted(asked), tmp_path) == whole
    assert len(asked) == len(PROMPTS) - kept // 8 * 8


def test_answers_with_any_line_separator_are_read_back(tmp_path):
    line = {"id": "a", "row": 0, "text": "one\u2028two\x85three\r\n\x1d", "finish_reason": "stop"}
    (tmp_path / ANSWERS).write_text(json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8")
    assert answer_lines(tmp_path / ANSWERS) == [Answer(**line)]


@pytest.mark.usefixtures("ordinary_python")  # its lock goes with the process that is killed
def test_eval_killed_and_called_again_leaves_the_same_file(make_card, model, tmp_path):
    make_tiny_cards(make_card)
    folder = tmp_path / "cards" / "tiny_task"
    rows = [
        {"q": f"Is the {w} over {v}?", "r": '{"label": "yes"}'} for w in "abcdef" for v in "xyz"
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tiny_recipe(tmp_path / "r.yaml", model, "tell/tiny_task")
    command = [sys.executable, "-m", "tell_plugins", "eval", str(recipe), "--adapter", "none"]
    command += ["--batch-size", "2", "--max-new-tokens", "200", "--general-rows", "4"]
    command += ["--retention-rows", "4", "--out"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(out: str) -> dict[str, bytes]:
        assert main([*command[3:], out]) == 0
        return {
            str(file.relative_to(out)): file.read_bytes()
            for file in sorted(Path(out).rglob("*"))
            if file.is_file()
        }

    file = tmp_path / "killed" / "none" / "test-greedy" / ANSWERS
    with subprocess.Popen(
        [*command, str(tmp_path / "killed")], env=env, cwd=PROJECT, stderr=subprocess.DEVNULL
    ) as process:
        wait_for(lambda: file.is_file() and file.stat().st_size, process)
        process.kill()
    before = file.read_bytes().count(b"\n")
    assert 0 < before < len(rows), "it was to be killed in the middle"
    again, undisturbed = run(str(tmp_path / "killed")), run(str(tmp_path / "undisturbed"))
    assert again["none/test-greedy/answers.jsonl"].count(b"\n") == len(rows)
    assert again == undisturbed  # answers, settings, scores and losses


def test_a_folder_of_answers_is_named_where_one_above_it_is(tmp_path):
    for name in ("run/test-greedy", "run/general"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / SETTINGS).write_text(json.dumps(SETTINGS_OF_TEST.model_dump()))
    with pytest.raises(UserError, match="no settings") as caught:
        read_settings(tmp_path)
    assert caught.value.remedy == f"name {tmp_path}/run/test-greedy"
    assert "eval RECIPE writes one" in message_of(read_settings, tmp_path / "nowhere")


@pytest.fixture(scope="module")
def ending_model(model, tmp_path_factory) -> Path:
    """The tiny model, made to end its answers here and there."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("ending") / "model"
    shutil.copytree(model, folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        loaded.lm_head.weight[loaded.config.eos_token_id] *= 2.0
    loaded.save_pretrained(folder)
    return folder


def test_an_answer_that_the_limit_cut_says_so(ending_model, tmp_path):
    engine = tiny_engine(ending_model)
    content = answered(engine, tmp_path, max_new_tokens=24)
    lines = [json.loads(line) for line in content.decode().split("\n")[:-1]]
    longer = texts(answered(engine, tmp_path / "longer", max_new_tokens=25))
    assert {line["finish_reason"] for line in lines} == {"stop", "length"}  # the model does both
    for line in lines:
        text, whole = line["text"], longer[line["row"]]
        if line["finish_reason"] == "length":
            assert line["completion_tokens"] == 24
            assert whole.startswith(text.rstrip("\ufffd"))
        else:
            assert line["completion_tokens"] <= 24
            assert whole == text
    single = texts(answered(engine, tmp_path / "1", max_new_tokens=24, batch_size=1))
    assert single == texts(content)  # batched answers are those given one by one, in float32


def test_sharing_heads_on_a_cpu_changes_nothing_but_the_speed(model):
    """Logits of a padded batch, with transformers' own copies of the heads and without them."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.integrations import sdpa_attention

    from tell_plugins.bridge.patches import share_heads

    share_heads()
    shared = sdpa_attention.use_gqa_in_sdpa
    loaded = AutoModelForCausalLM.from_pretrained(model).eval()
    assert loaded.config.num_key_value_heads < loaded.config.num_attention_heads
    ids = torch.arange(60).reshape(3, 20) + 5
    mask = torch.ones_like(ids)
    mask[0, :13] = mask[1, :4] = 0
    said = []
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        for rule in (shared, lambda mask, key: False):
            patch.setattr(sdpa_attention, "use_gqa_in_sdpa", rule)
            out = loaded(input_ids=ids, attention_mask=mask, use_cache=True)
            more = loaded(
                input_ids=ids[:, :1],
                attention_mask=torch.cat([mask, mask[:, -1:]], 1),
                past_key_values=out.past_key_values,
            )
            said.append(torch.cat([out.logits[:, -1:], more.logits], 1))
    assert shared(mask, ids)  # it was in force
    torch.testing.assert_close(said[0], said[1], rtol=1e-4, atol=1e-4)


def test_a_sampled_run_that_was_stopped_goes_on_with_the_same_draws(engine, tmp_path):
    changes: dict[str, Any] = {"decoding": "paper", "seed": 3}
    content = answered(engine, tmp_path / "a", **changes)
    folder = tmp_path / "b"
    shutil.copytree(tmp_path / "a", folder)
    os.truncate(folder / ANSWERS, len(content) // 2)
    assert answered(engine, folder, **changes) == content
