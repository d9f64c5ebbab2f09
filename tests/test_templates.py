"""Use after training: the anchor comes with the adapter, once, and as it was in training."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.manifest import manifest_of
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.sources import open_task
from tell_plugins.core.spec import parse_spec
from tell_plugins.evaluation.answers import read_saved
from tests.conftest import change, message_of, write_rows
from tests.tiny import (
    WORDS,
    deployed,
    make_tiny_cards,
    run_swift,
    sft,
    tiny_recipe,
)

INLINE = "Translate the text.\n\n "


@pytest.fixture
def cards(make_card) -> None:
    """A task card with an anchor file, one with an inline anchor, and general data."""
    make_tiny_cards(make_card)
    rows = [{"q": f"{INLINE}The {word} is lazy.", "r": word} for word in WORDS]
    change(make_card("inlined", train=rows), anchor="inline")


def _checkpoint(folder: Path, anchor: str | None) -> Path:
    folder.mkdir()
    if anchor is not None:
        (folder / "anchor.txt").write_bytes(anchor.encode())
    return folder


TemplateOf = Callable[..., Any]


@pytest.fixture
def template_of(model) -> TemplateOf:
    """The template that ms-swift's serving arguments build for adapters, by kind and back end."""
    from swift.arguments import BaseArguments, InferArguments

    from tell_plugins.bridge import templates

    templates.bring_anchors()

    def make(
        *adapters: Path, kind: str = "chatml", backend: str = "swift", training: bool = False
    ) -> Any:
        cls = BaseArguments if training else InferArguments
        args = cls.__new__(cls)
        base = BaseArguments(
            model=str(model), model_type="llama", template=kind, template_backend=backend
        )
        args.__dict__.update(base.__dict__, adapters=[str(adapter) for adapter in adapters])
        return args.get_template()

    return make


def _ids(template: Any, *turns: str) -> list[int]:
    messages = [
        {"role": ("user", "assistant")[number % 2], "content": turn}
        for number, turn in enumerate(turns)
    ]
    return list(template.encode({"messages": messages})["input_ids"])


def _trained_ids(template: Any, *messages: dict[str, Any]) -> list[int]:
    """Token ids of what stands before the answer, as training encodes the row."""
    template.set_mode("train")
    encoded = template.encode({"messages": [dict(message) for message in messages]})
    start = next(place for place, label in enumerate(encoded["labels"]) if label != -100)
    return list(encoded["input_ids"][:start])


@pytest.mark.parametrize("card", ["tiny_task", "inlined"])
@pytest.mark.parametrize("kind", ["chatml", "llama", "qwen", "gemma", "llama3"])
def test_a_plain_query_is_encoded_as_in_training(card, kind, cards, template_of, tmp_path):
    task = open_task(load_card(card), "train")
    adapter = _checkpoint(tmp_path / "adapter", task.anchor.text)
    serving = template_of(adapter, kind=kind)
    training = template_of(kind=kind, training=True)
    for plain, query, response in zip(task.plain, task.queries, task.responses, strict=True):
        trained = _trained_ids(
            training, {"role": "user", "content": query}, {"role": "assistant", "content": response}
        )
        assert query != plain
        assert _ids(serving, plain) == trained
        assert _ids(serving, query) == trained  # a row that has its anchor gets no second one
        assert _ids(training, plain) != trained


def test_models_own_chat_template(model, template_of, tmp_path):
    adapter = _checkpoint(tmp_path / "adapter", "Answer.")
    serving = template_of(adapter, backend="jinja")
    serving.tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}<|im_start|>assistant:"
    )
    text = serving.tokenizer.decode(_ids(serving, "The fox."))
    assert text.endswith("<|im_start|>user\nAnswer.\n\nThe fox.<|im_end|>\n<|im_start|>assistant:")


def test_every_user_turn_and_nothing_else_has_the_anchor(template_of, tmp_path):
    serving = template_of(_checkpoint(tmp_path / "adapter", "Answer."))
    text = serving.tokenizer.decode(_ids(serving, "The fox.", "Lazy.", "The dog."))
    turns = [turn.partition("\n")[2] for turn in text.split("<|im_start|>")[1:]]
    assert [turn.split("<|im_end|>")[0] for turn in turns] == [
        "Answer.\n\nThe fox.",
        "Lazy.",
        "Answer.\n\nThe dog.",
        "",
    ]


@pytest.mark.parametrize("kind", ["chatml", "llama", "gemma"])
def test_a_conversation_is_encoded_as_in_training(kind, make_card, template_of, tmp_path):
    """The manifest beside the adapter says that the first turn alone has the anchor."""
    folder = make_card("chats", train=[], anchor="Answer.")
    turns = ["The fox.", "Lazy.", "The dog."]
    write_rows(folder / "train.jsonl", [{"q": turns[2], "r": "Quick.", "h": [turns[:2]]}])
    change(folder, columns={"query": "q", "response": "r", "history": "h"})
    mixture = build_mixture(parse_spec("tell/chats:general=0"))
    adapter = _checkpoint(tmp_path / "adapter", "Answer.")
    (adapter / "manifest.json").write_text(json.dumps(manifest_of(mixture)))

    (row,) = mixture.rows()
    trained = _trained_ids(template_of(kind=kind, training=True), *row["messages"])
    serving = template_of(adapter, kind=kind)
    assert _ids(serving, *turns) == trained
    assert _ids(serving, f"Answer.\n\n{turns[0]}", *turns[1:]) == trained
    with pytest.raises(UserError, match="on conversations, where the first turn alone has it"):
        template_of(adapter, _checkpoint(tmp_path / "other", "Answer."))
    (adapter / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"(?s)no JSON.*restore the file, or remove it"):
        template_of(adapter)


@pytest.mark.parametrize("anchor", ["", None])
def test_an_adapter_without_anchor_gets_none(anchor, template_of, tmp_path):
    adapter = _checkpoint(tmp_path / "adapter", anchor)
    bare = _ids(template_of(), "The fox.")
    assert _ids(template_of(adapter), "The fox.") == bare
    other = _checkpoint(tmp_path / "other", "Answer.")  # nor does a training that goes on from one
    assert _ids(template_of(other, training=True), "The fox.") == bare


def test_a_model_of_full_tuning_brings_its_anchor(template_of, model, tmp_path):
    bare = _ids(template_of(), "Fox")
    (model / "anchor.txt").write_text("Answer.")
    try:
        assert _ids(template_of(), "Answer.\n\nFox") == _ids(template_of(), "Fox") != bare
        other = _checkpoint(tmp_path / "adapter", None)
        assert _ids(template_of(other), "Fox") == bare  # an adapter on it is another training
    finally:
        (model / "anchor.txt").unlink()


def test_a_merged_folder_has_the_anchor_of_the_adapter_beside_it(tmp_path):
    from argparse import Namespace

    from tell_plugins.bridge.templates import _folders

    adapter = _checkpoint(tmp_path / "checkpoint-4", "Answer.")
    merged = _checkpoint(tmp_path / "checkpoint-4-merged", None)
    asked = Namespace(adapters=[], model=str(merged))
    assert _folders(asked) == [adapter]
    (merged / "anchor.txt").write_text("Other.")
    assert _folders(asked) == [merged]


@pytest.mark.parametrize(("anchor", "warns"), [(None, True), ("", False), ("Answer.", False)])
def test_where_no_anchor_is_found_the_plugin_warns(
    anchor, warns, template_of, tmp_path, monkeypatch
):
    from tell_plugins.bridge import templates

    said: list[str] = []
    monkeypatch.setattr(templates.logger, "warning", said.append)
    adapter = _checkpoint(tmp_path / "adapter", anchor)
    template_of(adapter)
    assert bool(said) == warns
    monkeypatch.setenv("TELL_ANCHOR", "none")
    said.clear()
    template_of(adapter)
    assert not said


def test_swift_eval_measures_the_model_without_the_anchor(template_of, tmp_path, monkeypatch):
    adapter = _checkpoint(tmp_path / "adapter", "Answer.")
    monkeypatch.setattr(sys, "argv", ["/some/where/swift/cli/eval.py"])
    assert _ids(template_of(adapter), "Fox") == _ids(template_of(), "Fox")
    monkeypatch.setattr(sys, "argv", ["/home/me/eval.py"])
    assert _ids(template_of(adapter), "Fox") != _ids(template_of(), "Fox")


def test_adapters_with_one_anchor_share_it_and_with_two_are_refused(template_of, tmp_path):
    one = _checkpoint(tmp_path / "one", "Answer.")
    same = _checkpoint(tmp_path / "same", "Answer.")
    other = _checkpoint(tmp_path / "other", "Translate.")
    assert _ids(template_of(one, same), "Fox") == _ids(template_of(one), "Fox")
    assert "not trained with the same anchor" in message_of(template_of, one, other)
    with pytest.raises(UserError, match="not trained with the same anchor"):
        template_of(one, _checkpoint(tmp_path / "none", ""))


def test_the_variable_overrides(template_of, tmp_path, monkeypatch):
    one = _checkpoint(tmp_path / "one", "Answer.")
    other = _checkpoint(tmp_path / "other", "Translate.\n")
    bare = _ids(template_of(), "Fox")
    monkeypatch.setenv("TELL_ANCHOR", "none")
    assert _ids(template_of(one, other), "Fox") == bare
    monkeypatch.setenv("TELL_ANCHOR", str(other))
    assert _ids(template_of(one), "Fox") == _ids(template_of(), "Translate.\nFox")
    monkeypatch.setenv("TELL_ANCHOR", str(tmp_path))
    assert "no anchor.txt" in message_of(template_of, one)


def test_rows_of_a_tell_data_set_lose_their_channel_only_where_text_is_generated(template_of):
    from tell_plugins.bridge.patches import let_channel_rows_be_answered

    let_channel_rows_be_answered()
    template = template_of()
    row = {"messages": [{"role": "user", "content": "Fox"}], "channel": "task"}
    assert "channel" not in template.encode(dict(row))
    template.set_mode("train")
    row["messages"] = [*row["messages"], {"role": "assistant", "content": "Dog"}]
    assert template.encode(row)["channel"] == "task"


def _said(answers: dict[int, dict[str, Any]]) -> dict[int, list[Any]]:
    keys = ("text", "finish_reason", "completion_tokens")
    return {row: [answer[key] for key in keys] for row, answer in answers.items()}


@pytest.mark.newest
@pytest.mark.slow
def test_the_deployed_adapter_answers_as_eval_did(cards, model, tmp_path, monkeypatch):
    """Trained, evaluated and served for real; asked with plain queries, and by `eval` again."""
    from openai import OpenAI

    from tell_plugins.cli import main
    from tell_plugins.evaluation.engines import UrlEngine

    recipe = tiny_recipe(
        tmp_path / "tiny.yaml", model, "tell/tiny_task:task=all/general=10rows", num_train_epochs=2
    )
    run_swift(*sft(recipe))
    flags = ["--max-new-tokens", "16", "--batch-size", "1", "--general-rows", "0"]

    def answers(name: str, *more: str) -> dict[int, dict[str, Any]]:
        out = tmp_path / name
        assert main(["eval", str(recipe), *flags, "--out", str(out), *more]) == 0
        (file,) = out.glob("*/test-greedy/answers.jsonl")
        lines = map(json.loads, file.read_text().splitlines())
        return {line["row"]: line for line in lines}

    saved = answers("here")
    task = open_task(load_card("tiny_task"), "test")
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")

    def ask(url: str, query: str) -> tuple[str, int]:
        client = OpenAI(base_url=url, api_key="none")
        reply = client.chat.completions.create(
            model=checkpoint.name,
            messages=[{"role": "user", "content": query}],
            temperature=0,
            max_tokens=16,
        )
        return reply.choices[0].message.content or "", reply.usage.prompt_tokens

    served = f"{checkpoint.name}={checkpoint}"
    serve = ["--adapters", served, "--served_model_name", "base"]
    with deployed(tmp_path / "deploy.log", *serve) as url:
        there = answers("there", "--engine", url)
        engine = UrlEngine(url, model_name=checkpoint.name)
        assert engine.puts_in_front((checkpoint / "anchor.txt").read_text() + "\n\n")
        for row, plain in enumerate(task.plain):
            expected = (saved[row]["text"], saved[row]["prompt_tokens"])
            assert ask(url, plain) == expected
            assert ask(url, task.queries[row]) == expected
    assert _said(there) == _said(saved)
    assert len(there) == len(task)
    out = tmp_path / "exported"
    assert main(["export", str(tmp_path / "run"), "--out", str(out)]) == 0
    (folder,) = (tmp_path / "here").glob("*/test-greedy")
    again = tmp_path / "again"
    with deployed(tmp_path / "exported.log", "--model", str(out)) as url:  # without the plugin
        assert main(["verify", url, str(folder), "--out", str(again)]) == 0
    assert _said({line.row: line.model_dump() for line in read_saved(again).answers}) == _said(
        saved
    )
    result = tmp_path / "infer.jsonl"
    run_swift(
        *["infer", "--adapters", str(checkpoint), "--val_dataset", "tell/tiny_task:split=test"],
        *["--temperature", "0", "--max_new_tokens", "16", "--result_path", str(result)],
    )
    inferred = [json.loads(line) for line in result.read_text().splitlines()]
    order = {query: row for row, query in enumerate(task.queries)}
    for line in inferred:
        assert line["response"] == saved[order[line["messages"][0]["content"]]]["text"]
    assert len(inferred) == len(task)
