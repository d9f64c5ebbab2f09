"""Recipes of a 24 GB card at their real size: memory against the formula, tokens a second.

Weights are random, since neither depends on their values; each row fills `max_length`. With small
models and rows the same plan runs on a CPU.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from tokenizers import Tokenizer

from benchmarks.measure import Sample, run_child
from benchmarks.parts import Asked, Part, Target
from benchmarks.world import World, general_texts, write_card, write_rows
from tell_plugins.core.errors import MachineError
from tell_plugins.core.paths import write_text
from tell_plugins.recipe.models import GIB, hub_configs, memory, shape_of
from tell_plugins.recipe.recipes import Recipe, load_recipe
from tell_plugins.recipe.swift_keys import swift_keys

_CARD = "bench_full"
_STEPS, _ROWS = 3, 8
_TEMPLATE = 120  # tokens left to a chat template and the query
_LIGER = {"loss_type": None, "use_liger_kernel": True, "enable_channel_loss": None}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {  # name -> recipe, dataset keys, changes
    "Llama-2-7b": ("llama2_json", "", {}),
    "Gemma-7b": ("gemma_is_en", "", {}),
    "Gemma-7b, cross-entropy by Liger": ("gemma_is_en", "", _LIGER),
    "Qwen2.5-7B": ("qwen2.5_json", "", {}),
    "Qwen3-4B": ("qwen3_json", "", {}),
    "Qwen3-4B, general rows held by KL": ("qwen3_json", "/kl=1", {}),
}
_SMALL = {
    **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16},
    **{"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 9000},
}
_SMALL_RUN = {
    **{"use_cpu": True, "torch_dtype": "float32", "max_length": 256},
    **{"max_steps": 1, "gradient_accumulation_steps": 2},
}


def recipes_at_size(world: World, *, small: bool) -> Part:
    """Train each case for a few steps, beside the memory that `check` estimates for it."""
    rows: list[tuple[str, ...]] = []
    targets: list[Target] = []
    for name, (stem, keys, changes) in CASES.items():
        print(f"training {name}", file=sys.stderr)
        try:
            recipe, estimated, sample = _measure(world, stem, keys, changes, small=small)
        except MachineError as error:  # one that does not fit does not stop the others
            rows.append((name, *["-"] * 4, str(error).strip().splitlines()[-1][:60]))
            continue
        peak = sample["gpu_gib"]
        if peak:
            targets.append(Target(f"peak memory, {name}, GPU / formula", peak / estimated, 1.0))
        rows.append(
            (
                name,
                f"{recipe.values['max_length']:,}",
                f"{estimated:.1f}",
                f"{peak:.1f}" if peak else "no GPU",
                f"{peak / estimated:.2f}" if peak else "-",
                f"{_tokens(recipe) / sample['seconds']:,.0f}",
            )
        )
    columns = ("recipe", "max_length", "GiB by formula", "GiB of the GPU", "ratio", "tokens/s")
    return Part("Recipes at real size, random weights, full rows", columns, rows, targets)


def _tokens(recipe: Recipe) -> int:
    keys = ("max_length", "max_steps", "gradient_accumulation_steps", "per_device_train_batch_size")
    return math.prod(int(recipe.get(key, 1)) for key in keys)


def _measure(
    world: World, stem: str, keys: str, changes: Mapping[str, Any], *, small: bool
) -> tuple[Recipe, float, Sample]:
    """(the recipe, GiB by the formula, what a training took). MachineError when it fails."""
    env = world.environment(tell_cache=world.folder / "gpu", swift_cache=world.folder / "gpu")
    del env["OMP_NUM_THREADS"]
    model, output = world.folder / "gpu_model", world.folder / "gpu_output"
    published = load_recipe(f"recipes/{stem}.yaml")
    config = _config(str(published.get("model"))) | (_SMALL if small else {})
    arguments = world.folder / "arguments.json"
    write_text(arguments, json.dumps(config))
    run_child(["model", str(arguments), str(world.tokenizer), str(model), "bfloat16"], env)
    recipe = _recipe(published, keys, {**changes, **(_SMALL_RUN if small else {})}, model, output)
    length = int(recipe.values["max_length"])
    _write_full_rows(world, length - _TEMPLATE)
    write_text(arguments, json.dumps(recipe.argv()))
    with mock.patch.dict(os.environ, env):
        estimated = _estimate(recipe, length)
    try:
        return recipe, estimated, run_child(["train", str(arguments)], env)
    finally:
        for folder in (model, output):
            shutil.rmtree(folder, ignore_errors=True)


def _config(model: str) -> dict[str, Any]:
    """The config.json of a hub's model, as far as the pack knows it."""
    config = dict(hub_configs()[model.rpartition("/")[2].lower()])
    config.pop("name", None)
    return config


def _estimate(recipe: Recipe, length: int) -> float:
    """GiB by the formula of `check`, for rows of `length` tokens, each with a label."""
    shape = shape_of(str(recipe.get("model")))
    assert shape is not None
    rows = np.array([[length, length]])
    return sum(memory(shape, recipe, rows, held=recipe.spec.kl > 0).values()) / GIB


def _recipe(
    published: Recipe, keys: str, changes: Mapping[str, Any], model: Path, output: Path
) -> Recipe:
    """A published recipe with the benchmark's rows and model, for a few steps."""
    known = swift_keys().models.known(str(published.get("model"))) or ("", "")
    names = dict(zip(("model_type", "template"), known, strict=True))
    return published.with_values(
        **{
            **{key: published.get(key) or name for key, name in names.items()},
            "model": str(model),
            "dataset": [f"tell/{_CARD}:order=even{keys}"],
            "check_model": False,
            "gradient_accumulation_steps": _ROWS,
            "max_steps": _STEPS,
            "save_strategy": "no",
            "report_to": "none",
            "output_dir": str(output),
            "add_version": False,
            **changes,
        }
    )


def _write_full_rows(world: World, tokens: int) -> None:
    """A task and a general card whose answers have that many tokens."""
    tokenizer = Tokenizer.from_file(str(world.tokenizer))
    words = " ".join(row["output"] for row in general_texts(tokens)).split()
    for name, kind in ((_CARD, "task"), (f"{_CARD}_general", "general")):
        rng = np.random.default_rng(len(name))
        rows = []
        for number in range(_STEPS * _ROWS // 2):
            text = " ".join(rng.choice(words, tokens))
            end = tokenizer.encode(text, add_special_tokens=False).offsets[tokens][0]
            row = {"instruction": f"Row {number} of {kind}?", "input": "", "output": text[:end]}
            rows.append(row)
        file = world.folder / f"{name}.jsonl"
        file.unlink(missing_ok=True)
        write_rows(file, iter(rows), len(rows))
        general = {"from": [f"{_CARD}_general"], "amount": "1x"}
        task = {"anchor": "anchor.txt", "metric": "number", "general": general}
        write_card(world.folder, name, kind, file.name, task if kind == "task" else {})
    write_text(world.folder / "cards" / _CARD / "anchor.txt", "Answer the row.\n")


def answers_by_vllm(world: World, asked: Asked) -> Part:
    """How many answers vLLM gives word for word as transformers does, one model, greedy."""
    print(f"answering {len(asked.prompts)} prompts by vLLM", file=sys.stderr)
    env = world.environment(tell_cache=world.folder / "gpu", swift_cache=world.folder / "gpu")
    prompts = world.folder / "prompts.json"
    write_text(prompts, json.dumps(asked.prompts))
    rows, samples = [], []
    for by in ("transformers", "vllm"):
        out = world.folder / "answers" / by
        words = ["answer_batched", str(asked.model), str(prompts), str(asked.limit), "16", str(out)]
        samples.append(run_child([*words, by], env))
        rows.append((by, f"{samples[-1]['answers_per_second']:.2f}"))
    same = sum(map(str.__eq__, *(sample["hashes"] for sample in samples)))
    title = f"{same} of {len(asked.prompts)} answers are the same, {asked.model.name}"
    share = Target("share of answers that are the same", same / len(asked.prompts), 0.95, True)
    return Part(title, ("engine", "answers/s"), rows, [share])
