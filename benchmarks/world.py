"""What is measured on: rows made from a seed, cards for them, a tokenizer, a small random model."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml

from tell_plugins.core import paths
from tell_plugins.core.progress import tracked
from tell_plugins.core.tokens import tokenizer_file

TASK_ROWS = 115  # the paper's middle size
_SEED = 42
_WORDS = 20_000
_SYLLABLES = (
    "ba be bi bo bu da de di do du ka ke ki ko ku la le li lo lu ra re ri ro ru st tr en er"
)
_ANCHOR = "Role and goal: you judge a message and answer with one JSON object. " * 8


@dataclass(frozen=True)
class World:
    """A folder with everything that is measured on.

    Attributes:
        tokenizer: the `tokenizer.json` that counts.
    """

    folder: Path
    tokenizer: Path

    def card(self, rows: int) -> str:
        """The name of the task card that mixes with `rows` general rows."""
        return f"bench_task_{rows}"

    def spec(self, rows: int) -> str:
        """The dataset string of `TASK_ROWS` task rows among `rows` general ones."""
        return f"tell/{self.card(rows)}:general={rows}rows/order=even"

    def plain(self, rows: int) -> Path:
        """The same rows in the same order as a JSON lines file."""
        return self.folder / f"plain_{rows}.jsonl"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def environment(self, *, tell_cache: Path, swift_cache: Path) -> dict[str, str]:
        """The environment of a measured process, with caches of its own."""
        return {
            **os.environ,
            "TELL_CARDS": str(self.folder / "cards"),
            "TELL_DATA_HOME": str(self.folder),
            "TELL_TOKENIZER": str(self.tokenizer),
            "TELL_CACHE": str(tell_cache),
            "MODELSCOPE_CACHE": str(swift_cache),
            "HF_HOME": str(swift_cache / "hf"),
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",  # threads that wait for each other would count as work
        }


def make_world(folder: Path, sizes: list[int]) -> World:
    """Rows and cards for every size; what is there already stays (all of it comes from a seed)."""
    words = _words(np.random.default_rng(_SEED))
    for rows in sizes:
        name, target = f"bench_general_{rows}", folder / f"general_{rows}.jsonl"
        write_rows(target, _general_rows(rows, words), rows)
        write_card(folder, name, "general", target.name, {})
        task = folder / f"task_{rows}.jsonl"
        write_rows(task, _task_rows(words), TASK_ROWS)
        more = {
            "anchor": "anchor.txt",
            "metric": "number",
            "general": {"from": [name], "amount": f"{rows}rows"},
        }
        write_card(folder, f"bench_task_{rows}", "task", task.name, more)
    paths.make_folder(folder)
    tokenizer = tokenizer_file() or _train_tokenizer(folder / "tokenizer.json", words)
    return World(folder, tokenizer.resolve())


def general_texts(rows: int) -> Iterator[dict[str, str]]:
    """General rows as they stand in the file: instruction, input, output."""
    return _general_rows(rows, _words(np.random.default_rng(_SEED)))


def _words(rng: np.random.Generator) -> npt.NDArray[np.object_]:
    """Made-up words, the frequent ones short, as in a language."""
    syllables = np.array(_SYLLABLES.split())
    rank = np.arange(_WORDS)
    counts = 1 + (rank >= 10).astype(int) + (rank >= 500) + (rank >= 5000)
    return np.array(["".join(rng.choice(syllables, count)) for count in counts], object)


def _sentences(
    rng: np.random.Generator, words: npt.NDArray[np.object_], lengths: npt.NDArray[np.int64]
) -> list[str]:
    """One text for each length in words; frequencies fall with the rank, as in a language."""
    weights = np.cumsum(1 / (np.arange(_WORDS) + 3))
    ranks = np.searchsorted(weights, rng.random(int(lengths.sum())) * weights[-1])
    flat = words[ranks].tolist()
    ends = np.cumsum(lengths).tolist()
    starts = [0, *ends][:-1]
    return [" ".join(flat[start:end]) + "." for start, end in zip(starts, ends, strict=True)]


def _general_rows(rows: int, words: npt.NDArray[np.object_]) -> Iterator[dict[str, str]]:
    """Rows as long as those of Alpaca answered by GPT-4: short questions, answers of any length."""
    rng = np.random.default_rng(_SEED + 1)
    for start in range(0, rows, 5000):
        count = min(5000, rows - start)
        questions = _sentences(rng, words, rng.integers(5, 20, count))
        inputs = _sentences(rng, words, rng.integers(4, 30, count))
        lengths = rng.lognormal(4.3, 0.8, count).astype(np.int64).clip(1, 800)
        answers = _sentences(rng, words, lengths)
        for place in range(count):
            with_input = rng.random() < 0.35
            yield {
                "instruction": f"{questions[place]} ({start + place})",
                "input": inputs[place] if with_input else "",
                "output": answers[place],
            }


def _task_rows(words: npt.NDArray[np.object_]) -> Iterator[dict[str, str]]:
    rng = np.random.default_rng(_SEED + 2)
    texts = _sentences(rng, words, rng.integers(20, 60, TASK_ROWS))
    for number, text in enumerate(texts):
        answer = json.dumps({"thought": text[:60], "label": ["yes", "no"][number % 2]})
        yield {"instruction": f"{text} [{number}]", "input": "", "output": answer}


def write_rows(target: Path, rows: Iterator[dict[str, str]], total: int) -> None:
    """JSON lines, unless they are there already."""
    if target.is_file():
        return
    with paths.atomic_path(target) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in tracked(rows, f"making {target.name}", "rows", total):
            file.write(json.dumps(row) + "\n")


def write_card(folder: Path, name: str, kind: str, file: str, more: Mapping[str, object]) -> None:
    """A card of the benchmark's own whose rows lie in `file`; of a task with an anchor."""
    card = {
        "name": name,
        "kind": kind,
        "summary": "Made by the benchmark.",
        "licence": "none",
        "source": "benchmarks/world.py",
        "columns": {"query": ["instruction", "input"], "response": "output"},
        "splits": {"train": {"file": file}},
        **more,
    }
    paths.write_text(folder / "cards" / name / "card.yaml", yaml.safe_dump(card))
    if kind == "task":
        paths.write_text(folder / "cards" / name / "anchor.txt", _ANCHOR)


def _train_tokenizer(target: Path, words: npt.NDArray[np.object_]) -> Path:
    """A byte-pair tokenizer for the made-up language, where the Llama-2 one is not at hand."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if not target.is_file():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=8000, initial_alphabet=alphabet, show_progress=False
        )
        rows = _general_rows(5000, words)
        tokenizer.train_from_iterator((row["output"] for row in rows), trainer)
        tokenizer.save(str(target))
    return target
