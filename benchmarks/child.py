"""What runs in a process of its own: `python -m benchmarks.child load|write|model|count`.

The last line printed is the sample, as JSON.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
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


def model(tokenizer_file: str, folder: str) -> dict[str, Any]:
    """Write a random Llama (2 layers, width 64) with the given tokenizer."""
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(tokenizer_file),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    torch.manual_seed(42)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"tokens": len(tokenizer)}


def count(file: str, rounds: str) -> dict[str, Any]:
    """Count the tokens of fresh rows, and encode the same texts with the bare tokenizer, by turns.

    Texts that the bare tokenizer encodes lie in memory; the counter reads its rows from disk and
    keeps the lengths.
    """
    from tokenizers import Tokenizer

    from tell_plugins.core import paths
    from tell_plugins.core.cards import Columns
    from tell_plugins.core.rows import open_rows
    from tell_plugins.core.sources import keys_of
    from tell_plugins.core.tokens import TokenCounter, tokenizer_file

    path = tokenizer_file()
    assert path is not None
    rows = open_rows(Path(file), Columns(query=("instruction", "input"), response="output"))
    texts = [text for pair in rows.all_texts() for text in pair]
    keys = keys_of(rows.ids)
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
        lengths = TokenCounter(path).lengths(keys, rows.texts)
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


if __name__ == "__main__":
    jobs = {"load": load, "write": write, "model": model, "count": count}
    print(json.dumps(jobs[sys.argv[1]](*sys.argv[2:])))
