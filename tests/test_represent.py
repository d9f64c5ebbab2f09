"""Hidden states with and without the anchor: which tokens, which layer, which numbers."""

import json
import struct
from typing import Any

import numpy as np
import pytest

from tell_plugins.evaluation.intervals import Floats
from tell_plugins.evaluation.represent import (
    CONDITIONS,
    MEASURES,
    Groups,
    separations,
    tsne,
)
from tests.conftest import Cli
from tests.tiny import make_tiny_cards, tiny_engine, tiny_recipe
from tests.tiny_adapters import make_adapter

ANCHOR = "Answer only with one JSON object.\n\n"


def _groups(shift: float, anchored: float, control: float, rows: int = 30) -> Groups:
    """Gaussian groups in 12 dimensions; the task's lies `shift` along the first."""
    random = np.random.default_rng(0)
    task, general = random.normal(size=(2, rows, 12)) + 5
    axis = np.eye(12)[0]
    task = task + shift * axis
    return _named(task, task + anchored * axis, general, general + control * axis)


def _named(*groups: Floats) -> Groups:
    kinds = ("task", "task_anchored", "general", "general_anchored")
    return dict(zip(kinds, groups, strict=True))


def test_what_separates_and_what_the_anchor_changes():
    same, apart = separations(_groups(0.0, 0.0, 0.0)), separations(_groups(20.0, 0.0, 0.0))
    assert set(same) == set(MEASURES)
    for found in same.values():  # an anchor that moves nothing
        assert set(found.by_condition) == set(CONDITIONS)
        assert len({part.value for part in found.by_condition.values()}) == 1
        for change in found.change.values():
            assert (change.value, change.low, change.high) == (0.0, 0.0, 0.0)
    probe = same["probe_accuracy"].by_condition["without"]
    assert probe.low < 0.5 < probe.high + 0.1
    assert abs(same["silhouette"].by_condition["without"].value) < 0.05
    assert apart["probe_accuracy"].by_condition["without"].value == 1.0
    assert apart["silhouette"].by_condition["without"].low > 0.4
    marked = separations(_groups(0.0, 8.0, 8.0))["silhouette"]
    assert marked.change["with"].low > 0.3
    assert abs(marked.change["control"].value) < 0.05  # the anchor before all queries


def test_the_map_is_fitted_once_for_all_groups_and_seeded():
    groups = _groups(5.0, 5.0, 5.0, rows=12)
    assert separations(groups) == separations(groups)
    first, second = tsne(groups), tsne(groups)
    assert list(first) == list(groups)
    for name, places in first.items():
        assert places.shape == (12, 2)
        assert np.array_equal(places, second[name])
    same = np.ones((30, 12))  # where scikit-learn's approximate t-SNE kills the process
    assert not tsne(_named(same, same, same, same))["task"].any()


@pytest.fixture(scope="module")
def engine(model) -> Any:
    return tiny_engine(model)


@pytest.mark.parametrize("query", ["The fox is lazy.", "a", " b", "\n\nanswer", "Ég er hér.", "{"])
@pytest.mark.parametrize("front", ["", ANCHOR, "Translate.\n\n "])
def test_a_prompt_falls_into_its_parts(engine, front, query):
    from tell_plugins.bridge.hidden_states import prompt_ids

    prompt = prompt_ids(engine, front, query, 100)
    whole = {"messages": [{"role": "user", "content": front + query}]}
    assert prompt.ids == engine.template.encode(whole)["input_ids"]
    decode = engine.template.tokenizer.decode
    assert decode(prompt.template) == "<|im_start|>user\n"
    assert decode(prompt.after) == "<|im_end|>\n<|im_start|>assistant\n"
    assert decode(prompt.anchor + prompt.own) == front + query
    assert front.startswith(decode(prompt.anchor))
    assert len(front) - len(decode(prompt.anchor)) <= 2  # what a token shares with the query
    assert not prompt.cut


def test_long_queries_lose_their_end_and_keep_anchor_and_template(engine):
    from tell_plugins.bridge.hidden_states import prompt_ids

    query = "The lazy dog jumps over the fox. " * 50
    bare, anchored = (prompt_ids(engine, front, query, 20) for front in ("", ANCHOR))
    assert bare.cut
    assert anchored.cut
    assert bare.own == anchored.own
    assert len(bare.own) == 20
    assert bare.after == anchored.after
    assert bare.anchor == []
    assert prompt_ids(engine, "", "fox", 20).cut is False


def test_layers_are_counted_from_the_embeddings(engine):
    import torch

    from tell_plugins.bridge.hidden_states import layer_count, pooled_states, prompt_ids

    prompt = prompt_ids(engine, ANCHOR, "The fox is lazy.", 100)
    ids = torch.tensor([prompt.ids])
    seen: list[Any] = []
    first = engine.model.model.layers[0]
    hook = first.register_forward_hook(lambda module, inputs, output: seen.append(output))
    pooled = [pooled_states(engine, prompt, layer) for layer in (0, 1)]
    hook.remove()
    with torch.no_grad():
        embedded = engine.model.get_input_embeddings()(ids)[0].numpy()
    after_one = (seen[0][0] if isinstance(seen[0], tuple) else seen[0]).reshape(len(ids[0]), -1)
    assert layer_count(engine) == 2
    for found, states in zip(pooled, (embedded, after_one.detach().numpy()), strict=True):
        start, own = len(prompt.template), len(prompt.template) + len(prompt.anchor)
        end = own + len(prompt.own)
        assert np.allclose(found["last"], states[-1], atol=1e-5)
        assert np.allclose(found["mean"], states[start:end].mean(0), atol=1e-5)
        assert np.allclose(found["query"], states[own:end].mean(0), atol=1e-5)


@pytest.fixture
def represent(make_card, model, tmp_path, cli) -> Cli:
    make_tiny_cards(make_card)
    questions = [{"q": f"Is dog {n} over the fox?", "r": "yes"} for n in range(12)]
    make_card(
        "many",
        train=questions,
        anchor=ANCHOR.strip(),
        metric="number",
        general={"from": ["plain"], "amount": "0"},
    )
    path = tiny_recipe(tmp_path / "r.yaml", model, "tell/many:general=0")
    call = ["represent", path, "--split", "train"]  # all of its 12 rows
    return lambda code, *more: cli(code, *call, *more)


def test_picture_numbers_and_table(represent, tmp_path):
    printed = represent(0, "--max-tokens", 6)
    folder = tmp_path / "run" / "represent" / "none"
    report = json.loads((folder / "layer1.json").read_text())
    assert (report["layer"], report["layers"]) == (1, 2)
    assert report["rows"] == {"task": 12, "general": 12}
    assert report["cut"]["task"] == report["cut"]["task_anchored"] == 12
    assert set(report["separations"]) == {"mean", "last", "query"}
    for measures in report["separations"].values():
        assert set(measures) == set(MEASURES)
    raw = (folder / "layer1.png").read_bytes()
    assert raw.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", raw[16:24])
    assert width > 1000
    assert height > 1000
    assert "Cut after 6 tokens: 12 task and 12 general" in printed
    assert printed.count("probe accuracy") == 3


@pytest.mark.slow
def test_an_adapter_is_looked_through(represent, model, tmp_path):
    """A LoRA adapter with random weights changes the states."""
    adapter = make_adapter(tmp_path / "adapter", model, seed=0)
    results = []
    for more in ([], ["--adapter", adapter]):
        out = tmp_path / f"out{len(results)}"
        represent(0, "--out", out, *more)
        results.append(json.loads((out / "layer1.json").read_text())["separations"])
    last = [result["last"]["silhouette"]["by_condition"]["with"] for result in results]
    assert last[0]["value"] != pytest.approx(last[1]["value"], rel=0.01)


@pytest.mark.parametrize(
    ("more", "found"),
    [
        (["--layer", "3"], "0 to 2"),
        (["--layer", "top"], "bad layer"),
        (["--rows", "13"], "13 rows asked"),
        (["--rows", "5"], "5 is too small; allowed: 10 and more"),
        (["--anchor", "none"], "no anchor"),
        (["--dataset", "tell/plain"], "general data"),
        (["--split", "tset"], "unknown split"),
    ],
)
def test_what_cannot_be_looked_at_is_said(more, found, represent):
    assert found in represent(1, *more)
