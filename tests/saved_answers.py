"""Answers folders as `./run.sh eval` leaves them, for tests of what reads them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tell_plugins.core.cards import load_card
from tell_plugins.core.sources import open_task
from tell_plugins.evaluation.answers import Answer
from tell_plugins.evaluation.intervals import Estimate
from tell_plugins.evaluation.judged import Case, Judged
from tell_plugins.evaluation.scorers.label import judged_form

HALU_PERFECT = '{"thought": "Nothing in the answer is made up.", "hallucination": "no"}'


def halu_schema() -> dict[str, Any]:
    """What `make_card` takes for answers as those of Halu-CoT-JSON."""
    file = load_card("halu_cot_json").folder / "answer.schema.json"
    return {"schema": file.read_text(), "label": "hallucination"}


def counts(number: Estimate) -> tuple[int, int]:
    """How many of how many a rate is of."""
    return number.k, number.n


def answer_line(answer_id: str, row: int, text: str, **more: Any) -> dict[str, Any]:
    return {
        "id": answer_id,
        "row": row,
        "text": text,
        "finish_reason": "stop",
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "attempt": 0,
        **more,
    }


def save_answers(
    folder: Path,
    card: str,
    texts: Mapping[int, str] | Sequence[str],
    *,
    split: str = "test",
    cut: Sequence[int] = (),
    **settings: Any,
) -> Path:
    """Save `texts` (all rows in order, or by row) as the answers to a split of a card."""
    task = open_task(load_card(card), split)
    by_row = dict(enumerate(texts)) if not isinstance(texts, Mapping) else dict(texts)
    lines = [
        answer_line(
            bytes(task.ids[row]).hex(),
            row,
            text,
            finish_reason="length" if row in cut else "stop",
        )
        for row, text in by_row.items()
    ]
    return save_lines(folder, card, lines, split=split, **settings)


def save_lines(
    folder: Path, card: str, lines: Sequence[Mapping[str, Any]], *, split: str = "test", **more: Any
) -> Path:
    """Save lines and settings as they are given."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "recipe": "made_by_a_test",
        "card": card,
        "split": split,
        "anchor": "card",
        "adapter": "none",
        "decoding": "greedy",
        "seed": 42,
        "rows": len({line.get("row") for line in lines}),
        "model": "a test",
        "engine": "none",
        "max_new_tokens": 64,
        **more,
    }
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "answers.jsonl").write_text(text, encoding="utf-8", errors="surrogatepass")
    return folder


def judged_labels(given: list[str | None], right: list[str], labels: list[str]) -> Judged:
    """Answers with the labels `given` (None: prose), each to a row of its own."""
    answers = [Answer(id="", row=row, text="", finish_reason="") for row in range(len(given))]
    case = Case(load_card("halu_cot_json"), answers, right, labels)
    return judged_form(case, [None if label is not None else "prose" for label in given], given)
