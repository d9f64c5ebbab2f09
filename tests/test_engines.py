"""Engines: any OpenAI-compatible URL against real servers, vLLM against ms-swift's signatures."""

import ast
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tell_plugins.bridge.protocol import DECODINGS, Ask
from tell_plugins.core.errors import UserError
from tell_plugins.evaluation.engines import UrlEngine, make_engine
from tell_plugins.recipe.recipes import Recipe
from tests.chat_server import Reply, echo, serving
from tests.conftest import PROJECT, message_of

GREEDY, PAPER = DECODINGS["greedy"], DECODINGS["paper"]


def ask(engine: UrlEngine, *prompts: str, **changes: Any) -> list[Any]:
    decoding = changes.get("decoding", GREEDY)
    return engine.answer(prompts, Ask(decoding, 16, seed=5))


@pytest.fixture(autouse=True)
def no_key(monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.mark.parametrize("path", ["", "/v1/", "/v1/chat/completions"])
def test_prompts_are_answered_in_order(path):
    with serving() as server:
        engine = UrlEngine(server.url.removesuffix("/v1") + path)
        assert engine.model_name == "m"
        assert engine.context is None
        assert engine.prompt_tokens(["abc", "a"]) == [3, 1]
        replies = ask(engine, *"abcdefgh")
    assert [reply.text for reply in replies] == list("ABCDEFGH")
    assert {(reply.finish_reason, reply.completion_tokens) for reply in replies} == {("stop", 3)}


def test_decodings_reach_the_server_in_full():
    with serving() as server:
        engine = UrlEngine(server.url)
        ask(engine, "a", "b")
        ask(engine, "c", decoding=PAPER)
    greedy, other, paper = sorted(server.requests, key=lambda body: body["messages"][0]["content"])
    assert (greedy["temperature"], greedy["max_tokens"]) == (0.0, 16)
    assert greedy["repetition_penalty"] == 1.0  # else a server's own default would apply
    assert "top_k" not in greedy
    assert greedy["seed"] != other["seed"]
    assert (paper["temperature"], paper["top_k"], paper["top_p"]) == (0.3, 20, 0.7)
    assert paper["repetition_penalty"] == 1.05


def test_a_server_of_plain_openai_answers_greedily_and_refuses_the_papers_decoding():
    said = {"message": "Unrecognized request argument: repetition_penalty"}

    def strict(body: dict[str, Any], number: int) -> Reply:
        unknown = "repetition_penalty" in body
        return Reply(status=400, error=said) if unknown else echo(body, number)

    with serving(strict) as server:
        engine = UrlEngine(server.url)
        assert [reply.text for reply in ask(engine, "a")] == ["A"]
        assert [reply.text for reply in ask(engine, "b")] == ["B"]
        assert len(server.requests) == 3  # it learnt
    with serving(strict) as server, pytest.raises(UserError, match="Unrecognized") as caught:
        ask(UrlEngine(server.url), "a", decoding=PAPER)
    assert "greedy only" in str(caught.value)


def test_what_the_server_refuses_is_said_once():
    said = {"message": "maximum context length is 99"}
    with serving(lambda body, number: Reply(status=400, error=said)) as server:
        with pytest.raises(UserError, match="maximum context length is 99"):
            ask(UrlEngine(server.url), "a", "b", "c")
    assert all(count <= 2 for count in server.seen.values())  # with and without the extras
    with serving(lambda body, number: Reply(finish="content_filter")) as server:
        (reply,) = ask(UrlEngine(server.url), "a")
    assert (reply.text, reply.finish_reason) == ("", "content_filter")


def test_the_key_is_sent_and_kept_nowhere(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with serving() as server:
        engine = UrlEngine(server.url)
        ask(engine, "a")
        guarded = UrlEngine(server.url.replace("http://", "http://user:word@"))
    assert server.keys == ["Bearer sk-secret"]
    assert "secret" not in engine.name + engine.model_name
    assert guarded.name == engine.name


def test_an_adapter_is_asked_for_by_the_name_under_which_it_is_served():
    with serving(models=("base", "checkpoint-7")) as server:
        engine = UrlEngine(server.url, ["checkpoint-7", "checkpoint-9"])
        ask(engine, "a")
        with engine.adapter("checkpoint-7"):
            ask(engine, "b")
        with engine.adapter(None):
            ask(engine, "c")
        with pytest.raises(UserError, match="lists no model 'checkpoint-9'") as caught:
            with engine.adapter("checkpoint-9"):
                pass
        with pytest.raises(ValueError):
            with engine.adapter("stranger"):
                pass
    asked = {body["messages"][0]["content"]: body["model"] for body in server.requests}
    assert asked == {"a": "base", "b": "checkpoint-7", "c": "base"}
    assert "--model-name checkpoint-7" in str(caught.value)


@pytest.mark.parametrize(
    ("listed", "named", "names", "alike"),
    [
        (("only",), None, [None, "ckpt"], "'none' and 'ckpt' would both be answered by .* 'only'"),
        (("base", "adp"), "adp", [None, "ckpt"], "'none' and 'ckpt' .* 'adp'"),
        (("base",), None, ["ckpt", "other"], "'ckpt' and 'other' .* 'base'"),
        (("base", "ckpt"), None, [None, "ckpt"], None),
        (("only",), None, ["ckpt"], None),
    ],
)
def test_one_served_model_never_answers_for_two_systems(listed, named, names, alike):
    with serving(models=listed) as server:
        engine = UrlEngine(server.url, [name for name in names if name], model_name=named)
        if alike is None:
            engine.need_apart(names)
        else:
            with pytest.raises(UserError, match=alike):
                engine.need_apart(names)
    assert server.requests == []


def test_a_named_model_needs_no_list():
    with serving(models=()) as server:
        assert "404" in message_of(UrlEngine, server.url)
        engine = UrlEngine(server.url, model_name="mine")
        ask(engine, "a")
    assert (engine.model_name, server.requests[0]["model"]) == ("mine", "mine")


@pytest.mark.parametrize("anchors", [True, False, None])
def test_a_server_that_brings_the_anchor_itself_is_noticed(anchors):
    """None: it gives one number of tokens for all prompts."""

    def script(body: dict[str, Any], number: int) -> Reply:
        prompt = body["messages"][0]["content"]
        full = prompt if prompt.startswith("Go! ") or not anchors else "Go! " + prompt
        return Reply("x", tokens=7 if anchors is None else len(full))

    with serving(script) as server:
        assert UrlEngine(server.url).puts_in_front("Go! ") is bool(anchors)


def test_the_recipes_system_prompt_reaches_a_server(tmp_path):
    (tmp_path / "system.txt").write_text("From a file.\n")
    for given, wanted in (
        ("Be\\nbrief.", "Be\nbrief."),  # as ms-swift reads it
        (str(tmp_path / "system.txt"), "From a file.\n"),
        (None, None),
    ):
        with serving() as server:
            engine = make_engine(server.url, _recipe(system=given), batch_size=1)
            engine.answer(["a"], Ask(GREEDY, 4, 1, [("q", "r")]))
            (asked,) = server.requests
        first = asked["messages"][0]
        assert (first["content"] if first["role"] == "system" else None) == wanted
        assert [m["content"] for m in asked["messages"]][-3:] == ["q", "r", "a"]


def _recipe(**values: Any) -> Recipe:
    return Recipe(Path("r.yaml"), {"model": "nowhere/model", **values})


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_missing_is_said():
    assert "vLLM is not installed" in message_of(make_engine, "vllm", _recipe(), batch_size=1)


def _calls(tree: ast.AST, name: str) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", None)) == name
    ]


def test_calls_of_ms_swifts_vllm_engine_fit_its_signatures():
    """Its module imports vLLM at the top, so the two sources are read, not run."""
    spec = importlib.util.find_spec("swift")
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "infer_engine" / "vllm_engine.py").read_text()
    (theirs,) = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef) and node.name == "VllmEngine"
    ]
    known = {
        method.name: {arg.arg for arg in [*method.args.args, *method.args.kwonlyargs]}
        for method in theirs.body
        if isinstance(method, ast.FunctionDef)
    }
    module = ast.parse((PROJECT / "tell_plugins" / "bridge" / "engine.py").read_text())
    ours = next(node for node in module.body if getattr(node, "name", "") == "VllmEngine")
    (built,) = _calls(ours, "SwiftVllmEngine")
    (inferred,), (handed,) = _calls(module, "infer"), _calls(ours, "_answers")
    given = {keyword.arg for call in (inferred, handed) for keyword in call.keywords}
    assert {keyword.arg for keyword in built.keywords} <= known["__init__"]
    assert given - {None} == {"use_tqdm", "adapter_request"} <= known["infer"]


def test_vllm_reserves_room_for_the_adapters_rank(tmp_path):
    from tell_plugins.bridge.engine import lora_rank

    for config, reserved in (
        ({"r": 4, "rank_pattern": {}}, 8),
        ({"r": 12}, 16),
        ({"r": 64, "rank_pattern": {"q_proj": 128}}, 128),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        assert lora_rank(tmp_path) == reserved
