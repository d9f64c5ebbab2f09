"""What runs in a process of its own: `python -m benchmarks.child JOB ...`.

The last line printed is the sample, as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_COUNTED = 2000  # texts in one raw batch, as many as TokenCounter counts at a time


def _peak_mb() -> float:
    """The largest memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1024


def load(dataset: str, from_cache: str) -> dict[str, Any]:
    """Load a data set as `swift sft` does; ms-swift is imported before the clock starts."""
    from swift.dataset import load_dataset

    from tell_plugins.bridge import register

    register()
    base, cpu, start = _peak_mb(), time.process_time(), time.perf_counter()
    loaded, _ = load_dataset(
        [dataset], split_dataset_ratio=0.0, shuffle=False, load_from_cache_file=from_cache == "yes"
    )
    return {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "peak_mb": _peak_mb(),
        "base_mb": base,
        "rows": len(loaded),
    }


def write(spec: str, target: str) -> dict[str, Any]:
    """Write a mixture as JSON lines."""
    from tell_plugins.core.mixture import build_mixture
    from tell_plugins.core.spec import parse_spec

    start = time.perf_counter()
    mixture = build_mixture(parse_spec(spec))
    mixture.write_json_lines(Path(target))
    return {"seconds": time.perf_counter() - start, "rows": len(mixture)}


def verb(*words: str) -> dict[str, Any]:
    """Run a verb of `./run.sh`, as far as it comes."""
    from tell_plugins.cli import main

    start = time.perf_counter()
    code = main(list(words))
    return {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time(),
        "peak_mb": _peak_mb(),
        "code": code,
    }


def model(config: str, tokenizer_file: str, folder: str, dtype: str) -> dict[str, Any]:
    """Write a model of a config.json with random weights, made on the GPU if there is one.

    Its vocabulary is the config's, and at least the tokenizer's, which becomes ChatML's.
    """
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(tokenizer_file),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    values: dict[str, Any] = _read(config)
    values |= {
        "vocab_size": max(len(tokenizer), values.get("vocab_size", 0)),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(42)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        made = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**values), dtype=getattr(torch, dtype)
        )
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"parameters": made.num_parameters()}


def train(arguments: str) -> dict[str, Any]:
    """Train by ms-swift; the clocks run from the first step to the last."""
    import torch
    from swift.pipelines import sft_main
    from transformers import TrainerCallback, trainer

    times: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            times.append((time.perf_counter(), time.process_time()))

        on_train_end = on_train_begin

    trainer.DEFAULT_CALLBACKS.append(Clock)  # type: ignore[arg-type]
    sft_main(_read(arguments))
    (start, cpu), (end, cpu_at_end) = times
    gpu = torch.cuda.max_memory_reserved() / 2**30 if torch.cuda.is_available() else 0.0
    return {
        "seconds": end - start,
        "cpu": cpu_at_end - cpu,
        "peak_mb": _peak_mb(),
        "gpu_gib": gpu,
    }


def count(file: str, rounds: str) -> dict[str, Any]:
    """Count the tokens of fresh rows, and encode the same texts with the bare tokenizer, by turns.

    Texts that the bare tokenizer encodes lie in memory; the counter reads its rows from disk and
    keeps the lengths.
    """
    from tokenizers import Tokenizer

    from tell_plugins.core import paths
    from tell_plugins.core.cards import Columns
    from tell_plugins.core.rows import open_rows
    from tell_plugins.core.tokens import TokenCounter, tokenizer_file

    path = tokenizer_file()
    assert path is not None
    rows = open_rows(Path(file), Columns(query=("instruction", "input"), response="output"))
    texts = [text for pair in rows.all_texts() for text in pair]
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    raw = Tokenizer.from_file(str(path))

    def raw_seconds() -> float:
        start = time.perf_counter()
        for first in range(0, len(texts), _COUNTED):
            raw.encode_batch_fast(texts[first : first + _COUNTED], add_special_tokens=False)
        return time.perf_counter() - start

    def counter_seconds() -> tuple[float, int]:
        for old in (paths.cache_dir() / "lengths").glob("*"):
            old.unlink()
        start = time.perf_counter()
        lengths = TokenCounter(path).lengths(rows.ids, rows.texts)
        return time.perf_counter() - start, int(lengths.sum())

    raw_seconds()  # both tokenizers remember words: neither side shall meet them for the first time
    counter_seconds()
    pairs = []
    tokens = 0
    for number in range(int(rounds)):
        if number % 2:
            (ours, tokens), bare = counter_seconds(), raw_seconds()
        else:
            bare, (ours, tokens) = raw_seconds(), counter_seconds()
        pairs.append((bare, ours))
    bare, ours = np.median(np.array(pairs), axis=0).tolist()
    return {
        "texts": len(texts),
        "tokens": tokens,
        "raw_tokens_per_second": tokens / bare,
        "counter_tokens_per_second": tokens / ours,
        "ratio": statistics.median(raw_time / our_time for raw_time, our_time in pairs),
    }


def answer_batched(
    model: str, prompts: str, limit: str, batch: str, out: str, by: str = "transformers"
) -> dict[str, Any]:
    """Answer prompts greedily as `eval` does: ms-swift's engine in batches, each answer saved."""

    from tell_plugins.bridge.engine import LocalEngine, VllmEngine
    from tell_plugins.bridge.protocol import DECODINGS, Ask
    from tell_plugins.evaluation.answers import Prompt, Settings, answer_all, read_saved

    texts: list[str] = _read(prompts)
    rows = [Prompt(str(row), row, text) for row, text in enumerate(texts)]
    maker: type[LocalEngine | VllmEngine] = VllmEngine if by == "vllm" else LocalEngine
    engine = maker(_engine_values(model), {}, batch_size=int(batch))
    settings = Settings(
        recipe="bench",
        card="bench",
        split="test",
        anchor="card",
        adapter="none",
        decoding="greedy",
        seed=42,
        rows=len(rows),
        model=model,
        engine=engine.name,
        max_new_tokens=int(limit),
        batch_size=int(batch),
        prompts_sha256="",
    )
    greedy = DECODINGS["greedy"]
    engine.answer(texts[:1], Ask(greedy, 2, seed=0))  # neither side pays for a first call
    start = time.perf_counter()
    answer_all(engine, rows, settings, Path(out), label="batched")
    seconds = time.perf_counter() - start
    lines = sorted(read_saved(Path(out)).answers, key=lambda line: line.row)
    return _answered(
        seconds, [line.text for line in lines], sum(line.completion_tokens or 0 for line in lines)
    )


def encode(model: str, prompts: str, ids: str) -> dict[str, Any]:
    """Write the token ids of prompts, so that both sides answer the very same ones."""
    from tell_plugins.bridge.engine import LocalEngine
    from tell_plugins.bridge.protocol import conversation

    template = LocalEngine(_engine_values(model), {}, batch_size=1).template
    template.set_mode("transformers")
    encoded = [
        list(template.encode({"messages": conversation(text)})["input_ids"])
        for text in _read(prompts)
    ]
    Path(ids).write_text(json.dumps(encoded))
    return {"tokens": sum(map(len, encoded)), "longest": max(map(len, encoded))}


def _engine_values(model: str) -> dict[str, Any]:
    return {"model": model, "model_type": "llama", "template": "chatml", "check_model": False}


def answer_singly(model: str, ids: str, limit: str) -> dict[str, Any]:
    """Answer the same prompts by transformers alone, one row after the other."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    encoded: list[list[int]] = _read(ids)
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    def answer(prompt: list[int], limit: int) -> tuple[str, int]:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            found = loaded.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=limit,
                do_sample=False,
            )
        said = found[0, len(prompt) :]
        return tokenizer.decode(said, skip_special_tokens=True), len(said)

    answer(encoded[0], 2)
    start = time.perf_counter()
    answers = [answer(prompt, int(limit)) for prompt in encoded]
    seconds = time.perf_counter() - start
    return _answered(seconds, [text for text, _ in answers], sum(count for _, count in answers))


def _read(file: str) -> Any:
    return json.loads(Path(file).read_text(encoding="utf-8"))


def _answered(seconds: float, texts: list[str], tokens: int) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "cpu": time.process_time(),
        "answers_per_second": len(texts) / seconds,
        "tokens": tokens,
        "hashes": [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts],
    }


if __name__ == "__main__":
    jobs: dict[str, Callable[..., dict[str, Any]]] = {
        "load": load,
        "write": write,
        "verb": verb,
        "model": model,
        "train": train,
        "count": count,
        "encode": encode,
        "answer_batched": answer_batched,
        "answer_singly": answer_singly,
    }
    print(json.dumps(jobs[sys.argv[1]](*sys.argv[2:])))
