"""Saved answers: one JSON line an answer, written as they come, resumed where they stopped.

The batches are fixed by the prompts (longest first), so a run that was killed and resumed answers
the same batches as one that was not, and leaves the same file. What is right for them is joined to
saved answers in `scoring.py`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from tell_plugins.bridge.protocol import Ask, Engine, History, Reply, decoding
from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.core.progress import track
from tell_plugins.core.state_files import (
    Name,
    Shape,
    find,
    find_below,
    json_lines,
    parse_json,
    read_bytes,
    read_json,
    read_json_lines,
    write_json,
)

ANSWERS, SETTINGS = "answers.jsonl", "settings.json"
GENERAL = "general"  # the folder, and the split, of answers to general questions
CUT = "length"  # the finish reason of an answer that met the limit of new tokens
AGAIN = "remove the line and call ./run.sh eval again"
_SHOWN = 5  # lines or folders named in one message
_HASHED = {
    "model_sha256": "the recipe's model keys (system, template and the like)",
    "model_files_sha256": "the model's weights, tokenizer or settings",
    "adapter_sha256": "the adapter's weights",
    "adapter_config_sha256": "the adapter's settings",
    "prompts_sha256": "the questions asked",
    "rows_sha256": "the rows asked, the answers given to them, or the examples in front",
}


class Answer(Shape):
    """A line of `answers.jsonl`; `row` is the position of its test row in the references."""

    id: str
    row: int
    text: str
    finish_reason: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    attempt: int = Field(default=0, ge=0)

    @property
    def cut(self) -> bool:
        return self.finish_reason == CUT


@dataclass(frozen=True)
class Prompt:
    """A query as the model gets it. `id` is the row's content hash, `row` its place in the file."""

    id: str
    row: int
    text: str


class Settings(Shape):
    """What produced the answers of a folder; answers of other settings never join it.

    `prompts_sha256` is of what was asked (a task row's id holds its response); `_HASHED` says what
    the others are of. One that is "" in one of two settings (a server knows no model files, the
    base model has no adapter, an earlier release saved fewer) is unknown and not compared.
    """

    recipe: str = ""
    card: Name
    split: Name
    anchor: str
    adapter: str = ""
    decoding: str = ""
    seed: int = 42
    rows: int | None = None
    model: str = ""
    engine: str = ""
    max_new_tokens: int = 0
    batch_size: int = 0
    prompts_sha256: str = ""
    shots: int = 0
    model_sha256: str = ""
    adapter_sha256: str = ""
    model_files_sha256: str = ""
    adapter_config_sha256: str = ""
    rows_sha256: str = ""
    scale: float = 1.0


# --- writing --------------------------------------------------------------------------------------

_Asked = tuple[Prompt, int]  # and the tokens of the prompt


def answer_all(
    engine: Engine,
    prompts: Sequence[Prompt],
    settings: Settings,
    folder: Path,
    *,
    label: str,
    history: History = (),
) -> Path:
    """Answer all prompts into `folder/answers.jsonl` and return it; go on where it stopped.

    `history` stands before every prompt, and counts as part of it.
    Raises UserError when the folder holds answers of other settings, or when a prompt and its
    answer do not fit the model's context.
    """
    refuse_others(folder, settings)
    if not (folder / SETTINGS).is_file():
        write_json(folder / SETTINGS, settings.model_dump())
    lengths = engine.prompt_tokens([prompt.text for prompt in prompts], history)
    asked = sorted(zip(prompts, lengths, strict=True), key=lambda one: (-one[1], one[0].row))
    _check_context(engine, asked, settings)
    size = settings.batch_size
    batches = [asked[start : start + size] for start in range(0, len(asked), size)]
    path, how = folder / ANSWERS, decoding(settings.decoding or "greedy")
    done = _complete_batches(path, batches)
    with track(len(prompts), label, "answers") as bar, path.open("ab") as file:
        bar.update(sum(map(len, batches[:done])))
        for number, batch in enumerate(batches[done:], done):
            ask = Ask(how, settings.max_new_tokens, settings.seed * 1_000_003 + number, history)
            replies = engine.answer([prompt.text for prompt, _ in batch], ask)
            lines = [_line(*one, reply) for one, reply in zip(batch, replies, strict=True)]
            file.write("".join(json_lines(lines)).encode())
            file.flush()
            os.fsync(file.fileno())
            bar.update(len(batch))
    return path


def _line(prompt: Prompt, prompt_tokens: int, reply: Reply) -> dict[str, Any]:
    answer = Answer(
        id=prompt.id,
        row=prompt.row,
        text=unicode_text(reply.text),
        finish_reason=unicode_text(reply.finish_reason),
        prompt_tokens=reply.prompt_tokens or prompt_tokens,
        completion_tokens=reply.completion_tokens,
    )
    return answer.model_dump()


def unicode_text(text: str) -> str:
    """`text` with U+FFFD for half a character, which a server may send and no file can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def refuse_others(folder: Path, settings: Settings) -> None:
    """Raise UserError when the folder holds answers of other settings."""
    theirs = saved_settings(folder)
    other = differing(settings, theirs, Settings.model_fields) if theirs is not None else []
    if other:
        shown = ", ".join(
            f"{_HASHED[key]} have changed since"
            if key in _HASHED
            else f"{key}: {getattr(theirs, key)} there, {getattr(settings, key)} now"
            for key in other
        )
        raise UserError(
            f"the folder holds answers of other settings ({shown})",
            where=paths.shown(folder),
            remedy="name another folder with --out, ask as before, or remove this one",
        )


def differing(mine: Settings, theirs: Settings, keys: Iterable[str]) -> list[str]:
    """The keys in which two settings differ; a hash that one of them does not know is left out."""
    pairs = {key: (getattr(mine, key), getattr(theirs, key)) for key in keys}
    return [key for key, (a, b) in pairs.items() if a != b and (key not in _HASHED or (a and b))]


def _check_context(engine: Engine, asked: Sequence[_Asked], settings: Settings) -> None:
    """Raise UserError where the longest prompt, the first, leaves no room for its answer."""
    if engine.context is None or not asked:
        return
    prompt, tokens = asked[0]
    room, remedy = engine.context - tokens, "a model with a longer context"
    if room >= settings.max_new_tokens:
        return
    if room > 0 and settings.split != GENERAL:
        remedy = f"--max-new-tokens {room}, or {remedy}"
    raise UserError(
        f"row {prompt.row} has {tokens:,} prompt tokens, which leaves {max(room, 0):,} of the "
        f"model's {engine.context:,} for an answer of up to {settings.max_new_tokens:,}",
        where=f"split '{settings.split}' of card '{settings.card}'",
        remedy=remedy,
    )


def _complete_batches(path: Path, batches: Sequence[Sequence[_Asked]]) -> int:
    """How many leading batches the file holds whole; cuts off what follows them."""
    if not path.is_file():
        return 0
    lines = path.read_bytes().splitlines(keepends=True)
    done = rows = 0
    for batch in batches:
        wanted = [prompt.id for prompt, _ in batch]
        if [_id_of(line) for line in lines[rows : rows + len(batch)]] != wanted:
            break
        done, rows = done + 1, rows + len(batch)
    os.truncate(path, sum(map(len, lines[:rows])))
    return done


def _id_of(line: bytes) -> Any:
    """The id of a whole line, None of one that is torn or none."""
    try:
        return parse_json(line)["id"] if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None


# --- reading --------------------------------------------------------------------------------------


def saved_settings(
    folder: Path, remedy: str = "name another folder with --out, or remove this one"
) -> Settings | None:
    """The settings of a folder, None where there are none. Raises UserError, with `remedy`, for a
    file that is none."""
    saved = read_json(folder / SETTINGS, Settings, remedy)
    return None if saved is None else Settings(**saved)


def read_settings(folder: Path) -> Settings:
    """The settings of answers to a task. Raises UserError when they are missing or none."""
    saved = saved_settings(folder, "restore the file")
    if saved is not None:
        return saved
    below = [path for path in find_below(folder, SETTINGS) if path.name != GENERAL]
    named = f"name {' or '.join(map(paths.shown, below[:_SHOWN]))}"
    raise UserError(
        f"no {SETTINGS}, so nothing says which card and split was answered",
        where=paths.shown(folder),
        allowed=f"a folder that ./run.sh eval wrote, with {ANSWERS} and {SETTINGS}",
        remedy=named if below else "./run.sh eval RECIPE writes one",
    )


def answer_lines(file: Path, remedy: str = AGAIN) -> list[Answer]:
    """The lines of a file of answers, none where it is missing. Raises UserError, with `remedy`,
    for lines that are no answers."""
    return [Answer(**line) for line in read_json_lines(file, Answer, remedy)]


class Saved(NamedTuple):
    """One folder of answers; `sha256` is of `answers.jsonl`, uncompressed: scores of other answers
    never pass as these."""

    folder: Path
    settings: Settings
    answers: list[Answer]
    sha256: str

    @property
    def origin(self) -> dict[str, Any]:
        """All but the answers themselves."""
        return {"folder": self.folder, "settings": self.settings, "sha256": self.sha256}

    @property
    def where(self) -> str:
        """The file of answers, for messages."""
        return paths.shown(find(self.folder / ANSWERS) or self.folder)


def read_saved(folder: Path, remedy: str = AGAIN) -> Saved:
    """What a folder holds; no answers where their file is missing. Raises UserError for settings
    that are missing or none and, with `remedy`, for lines that are no answers."""
    settings, answers = read_settings(folder), answer_lines(folder / ANSWERS, remedy)
    sha256 = hashlib.sha256(read_bytes(folder / ANSWERS) or b"").hexdigest()
    return Saved(folder, settings, answers, sha256)


def shown_lines(lines: Sequence[int]) -> str:
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return "line " + ", ".join(map(str, lines[:_SHOWN])) + more
