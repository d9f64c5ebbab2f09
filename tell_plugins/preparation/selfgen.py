"""`data selfgen`: general data that a model writes itself, for users who have none.

The model writes instructions from an empty user turn (as in Magpie,
https://arxiv.org/abs/2406.08464: it writes what it expects to be asked) and answers them; what
passes the filters becomes a card of general data. Work is done in fixed batches, each with a seed
of its own, and kept beside the card by its settings: a run that was killed goes on and ends with
the same file.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from tell_plugins.bridge import embedded_model
from tell_plugins.core import paths
from tell_plugins.core.errors import UserError, at_least
from tell_plugins.core.progress import track
from tell_plugins.core.state_files import cached_json, json_lines, only_one, write_json
from tell_plugins.core.text import normalise, words
from tell_plugins.preparation.card_files import card_text, check_name, make_known
from tell_plugins.preparation.download import content_name, write_record
from tell_plugins.preparation.task_recipe import recipe_of

TRAIN, BATCHES = "train.jsonl", "batches"
BATCH = 16
LEAST_YIELD = 40  # attempts a row; below that the model does not write instructions
_FIRST_LOOK = 160  # attempts before the yield is judged
INSTRUCTION_CHARS, ANSWER_CHARS = (12, 1500), (2, 6000)
INSTRUCTION_WORDS = 3
INSTRUCTION_TOKENS = 160
_TOP_P = 0.9
_PROBES = ("A", "7", "(", "é")  # user turns that share no token at either end
_N = 4  # words of an n-gram
_LEAST_DISTINCT = 0.7  # of all n-grams; prose has 0.95 and more, a loop far less
_LATIN = 0.9  # of the letters of an English text
# the commonest English words, which no other language has so many of
_COMMON = (
    "the of and to a in is that it for on as with be are this was by or from at an your you what "
    "how why which can i have has do does will would should not if my me we our their there these "
    "into between about than more write give explain describe"
)
_LEAST_COMMON = 0.15
_REFUSAL = re.compile(
    r"\b(i(?:'|’)?m (?:very |really )?sorry\b|i apologi[sz]e\b|as an ai\b|i can(?:no|')t (?:help|"
    r"assist|provide|fulfil)|i(?:'m| am) (?:unable|not able) to\b|i do(?:n't| not) have (?:access|"
    r"the ability|personal))",
    re.IGNORECASE,
)
Written = tuple[str, bool]  # a text, and whether the model ended it itself (else it was cut)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "a model's folder or hub id, a recipe (its model and template), or 'smollm2'"
    add("--model", metavar="M", required=True, help=text)
    add("--model-type", metavar="T", help="ms-swift's model_type, where it cannot be told")
    add("--template", metavar="T", help="ms-swift's template, where it cannot be told")
    add("--rows", metavar="N", type=at_least(1), default=1000, help="rows to write (default: 1000)")
    add("--seed", metavar="S", type=int, default=42, help="same seed, same rows (default: 42)")
    text = "longest answer; longer ones are dropped, not cut (default: 512)"
    add("--max-new-tokens", metavar="N", type=at_least(1), default=512, help=text)
    add("--language", choices=("en", "any"), default="en", help="language to keep (default: en)")
    add("--drop-refusals", action="store_true", help="keep no answer that refuses or apologises")
    add("--name", metavar="CARD", help="name of the card (default: selfgen_<model>)")
    add("--out", metavar="DIR", help="folder of cards to put it into (default: <data home>/cards)")


def run(args: argparse.Namespace) -> int:
    """Write the rows and their card; 0 when all are there."""
    values = recipe_of(args.model, args.model_type, args.template)[0].values
    model = str(values["model"])
    folder = _card_folder(args, Path(model).name)
    embedded_model.prepare_if_embedded(model)
    settings = {
        "model": Path(model).name,
        "model_files": fingerprint(model),
        "template": values.get("template"),
        "system": values.get("system"),
        "seed": args.seed,
        "batch": BATCH,
        "instruction": f"temperature 1, top_p {_TOP_P}, {INSTRUCTION_TOKENS} tokens",
        "answer": f"temperature 0.7, top_p {_TOP_P}, {args.max_new_tokens} tokens",
        "language": args.language,
        "drop_refusals": args.drop_refusals,
    }
    with only_one(folder, "process", "--out"):
        attempts = _attempts(folder / BATCHES / content_name(settings), args, values)
        rows = [entry for entry in attempts if entry["problem"] is None][: args.rows]
        _write_card(folder, rows, settings)
    print(f"{len(rows):,} rows of {len(attempts):,} attempts: {paths.shown(folder / TRAIN)}")
    print(f"  dropped:        {_reasons(attempts) or 'none'}")
    if export := make_known(folder.parent):
        print(f"  make it known:  {export}")
    print(f"  use it:         tell/<task>:from={folder.name}/general={len(rows)}rows")
    return 0


def fingerprint(model: str) -> str | None:
    """A hash over the names and sizes of a model folder's files; None for a hub id."""
    folder = Path(model)
    if not folder.is_dir():
        return None
    files = [f"{path.name}|{path.stat().st_size}" for path in sorted(folder.iterdir())]
    return hashlib.sha256("|".join(files).encode()).hexdigest()


def _card_folder(args: argparse.Namespace, model: str) -> Path:
    """The folder of the card. Raises UserError where one that was not written here is there."""
    name = args.name or "selfgen_" + re.sub(r"[^a-z0-9]+", "_", model.lower()).strip("_")
    root = paths.user_target(args.out) if args.out else paths.data_homes()[0] / "cards"
    check_name(name, root, "--name")
    folder = root / name
    there = [path for path in (folder / "card.yaml", folder / TRAIN) if path.exists()]
    if there and not (folder / BATCHES).is_dir():
        raise UserError(
            f"{' and '.join(map(paths.shown, there))} would be overwritten",
            where="--name, --out",
            remedy="choose another name",
        )
    return folder


def _attempts(kept: Path, args: argparse.Namespace, values: dict[str, Any]) -> list[dict[str, Any]]:
    """All attempts in order until enough are good; those of earlier runs are not made again.

    The model is loaded only if there is work left. A batch depends on its seed and on the good rows
    before it. Raises UserError for a model that hardly writes anything usable.
    """
    attempts: list[dict[str, Any]] = []
    seen: set[str] = set()
    writer: SelfWriter | None = None
    with track(args.rows, "writing", "rows") as bar:
        for batch in count():
            file = kept / f"{batch}.json"
            entries = cached_json(file, list[dict[str, Any]])
            if entries is None:
                writer = writer or SelfWriter(values, BATCH)
                entries = _batch(writer, batch, args, set(seen))
                write_json(file, entries)
            attempts += entries
            seen |= {normalise(entry["query"]) for entry in entries if not entry["problem"]}
            bar.update(min(args.rows, len(seen)) - bar.n)
            if len(seen) >= args.rows:
                break
            if len(attempts) >= _FIRST_LOOK and len(seen) * LEAST_YIELD < len(attempts):
                raise UserError(
                    f"only {len(seen)} of {len(attempts)} attempts are usable "
                    f"({_reasons(attempts)})",
                    where=str(args.model),
                    remedy="use a model tuned for chat and its own template (--template), "
                    "raise --max-new-tokens, or try --language any",
                )
    return attempts


def _batch(
    writer: SelfWriter, batch: int, args: argparse.Namespace, seen: set[str]
) -> list[dict[str, Any]]:
    """One batch of attempts: instructions, filters, answers to what is left, filters."""
    entries: list[dict[str, Any]] = []
    for number, (text, ended) in enumerate(writer.instructions(BATCH, args.seed, batch)):
        problem = instruction_problem(text, args.language) if ended else "instruction cut off"
        if problem is None and normalise(text) in seen:
            problem = "duplicate"
        if problem is None:
            seen.add(normalise(text))
        entries.append({"attempt": batch * BATCH + number, "query": text, "problem": problem})
    left = [entry for entry in entries if entry["problem"] is None]
    queries = [entry["query"] for entry in left]
    answers = writer.answers(queries, args.max_new_tokens, args.seed, batch)
    for entry, (text, ended) in zip(left, answers, strict=True):
        problem = answer_problem(text, entry["query"], args.language, args.drop_refusals)
        entry |= {"response": text, "problem": problem if ended else "answer cut off"}
    return entries


def _reasons(attempts: list[dict[str, Any]]) -> str:
    dropped = Counter(entry["problem"] for entry in attempts if entry["problem"] is not None)
    return ", ".join(f"{number} {reason}" for reason, number in dropped.most_common())


def _write_card(folder: Path, rows: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    path, model, seed = folder / TRAIN, settings["model"], settings["seed"]
    lines = [{key: row[key] for key in ("query", "response", "attempt")} for row in rows]
    with paths.atomic_path(path) as temporary:
        temporary.write_text("".join(json_lines(lines)), encoding="utf-8")
        write_record(
            path, {"model itself": settings}, temporary, origin=f"by {model}", rows=len(rows)
        )
    card = {
        "name": folder.name,
        "kind": "general",
        "summary": f"{len(rows):,} instructions and answers by {model} itself, from an empty user "
        "turn.",
        "licence": f"output of {model}; the terms of that model apply",
        "source": f"./run.sh data selfgen --model {model} --seed {seed}",
        "columns": {"query": "query", "response": "response"},
        "splits": {"train": {"file": path.name, "rows": len(rows)}},
    }
    paths.write_text(folder / "card.yaml", card_text(card))


# ------------------------------------------------------------------------- what is kept


def instruction_problem(text: str, language: str) -> str | None:
    if len(words(text)) < INSTRUCTION_WORDS:
        return "instruction too short"
    return _problem(
        "instruction", text, INSTRUCTION_CHARS, is_english if language == "en" else None
    )


def answer_problem(text: str, instruction: str, language: str, drop_refusals: bool) -> str | None:
    if text.strip().casefold() == instruction.strip().casefold():
        return "answer repeats the instruction"
    if drop_refusals and _REFUSAL.search(text[:200]):
        return "refusal"
    return _problem("answer", text, ANSWER_CHARS, _is_latin if language == "en" else None)


def _problem(
    what: str, text: str, chars: tuple[int, int], is_wanted: Callable[[str], bool] | None
) -> str | None:
    least, most = chars
    if len(text.encode("utf-8", "replace")) < least:  # a Chinese character says more than a letter
        return f"{what} too short"
    if len(text) > most:
        return f"{what} too long"
    if repeats_itself(text):
        return f"{what} repeats itself"
    return None if is_wanted is None or is_wanted(text) else f"{what} not English"


def repeats_itself(text: str) -> bool:
    """Whether the text loops: few distinct word n-grams, or one line over and over."""
    said = words(text.lower())
    grams = [tuple(said[start : start + _N]) for start in range(len(said) - _N + 1)]
    # n-grams of a few words say nothing
    if len(said) >= 3 * _N and len(set(grams)) < _LEAST_DISTINCT * len(grams):
        return True
    lines = Counter(line.strip().lower() for line in text.splitlines() if len(line.strip()) > 3)
    return max(lines.values(), default=0) >= 4


def is_english(text: str) -> bool:
    """Latin letters and, in all but very short texts, a fair share of common English words."""
    found = re.findall(r"[a-z']+", text.lower())[:200]
    common = sum(word in _COMMON.split() for word in found)
    return _is_latin(text) and (0 < len(found) < 5 or 0 < common >= _LEAST_COMMON * len(found))


def _is_latin(text: str) -> bool:
    letters = [character for character in text if character.isalpha()]
    latin = sum(character < "\u0250" for character in letters)
    return latin >= _LATIN * len(letters)


# ------------------------------------------------------------------------- the model


class SelfWriter:
    """Loads a model through ms-swift and draws from it; one call is one batch, with its seed.

    Attributes:
        opening: the token ids that instructions are written from: the model's own chat template,
            its default system prompt included, up to where the user's words begin.
        turn_end: what ends a user's turn: one token (<|im_end|>), or a piece of text ([/INST]).
    """

    def __init__(self, values: Mapping[str, Any], batch_size: int) -> None:
        from tell_plugins.bridge.engine import LocalEngine
        from tell_plugins.bridge.patches import let_qwen_generate

        let_qwen_generate()
        self._engine = LocalEngine(values, {}, batch_size=batch_size)
        self.tokenizer = self._engine.template.tokenizer
        own = bool(self.tokenizer.chat_template) and not values.get("system")
        turns = [self._own_turn(text) if own else self._engine.prompt_ids(text) for text in _PROBES]
        self.opening = os.path.commonprefix(turns)
        closing = os.path.commonprefix([turn[::-1] for turn in turns])[::-1]
        if not self.opening or not closing:
            raise UserError(
                "the chat template has no fixed text around the user's turn",
                where=str(values.get("model")),
                remedy="name the model's template with --template",
            )
        self.turn_end = self.tokenizer.decode(closing).split()[0]

    def _own_turn(self, user: str) -> list[int]:
        messages = [{"role": "user", "content": user}]
        # transformers 5 gives a dict by default
        options = {"add_generation_prompt": True, "return_dict": False}
        return list(self.tokenizer.apply_chat_template(messages, **options))

    def answers(
        self, instructions: Sequence[str], max_new_tokens: int, seed: int, batch: int
    ) -> list[Written]:
        from tell_plugins.bridge.protocol import Ask, Decoding

        if not instructions:
            return []
        decoding = Decoding("answer", 0.7, top_p=_TOP_P)
        ask = Ask(decoding, max_new_tokens, batch_seed(seed, batch, "answer"))
        replies = self._engine.answer(instructions, ask)
        return [(reply.text.strip(), reply.finish_reason == "stop") for reply in replies]

    def instructions(
        self, count: int, seed: int, batch: int, tokens: int = INSTRUCTION_TOKENS
    ) -> list[Written]:
        import torch
        from transformers import GenerationConfig

        model, ends = self._engine.model.eval(), self._end_tokens()
        opening = torch.tensor([self.opening] * count, device=model.device)
        config = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_p=_TOP_P,
            top_k=0,
            max_new_tokens=tokens,
            eos_token_id=ends,
            pad_token_id=ends[0],
        )
        torch.manual_seed(batch_seed(seed, batch, "instruction"))
        with torch.inference_mode():
            output = model.generate(
                input_ids=opening, attention_mask=torch.ones_like(opening), generation_config=config
            )
        return [self._read(row, ends) for row in output[:, len(self.opening) :].tolist()]

    def _end_tokens(self) -> list[int]:
        """Tokens that end a user's turn, or all."""
        known = self._engine.model.generation_config.eos_token_id
        turn_end = self.tokenizer.encode(self.turn_end, add_special_tokens=False)
        found = {self.tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])}
        found |= set(turn_end) if len(turn_end) == 1 else set()
        return sorted(token for token in found if token is not None)

    def _read(self, tokens: Sequence[int], ends: Sequence[int]) -> Written:
        place = next((place for place, token in enumerate(tokens) if token in ends), None)
        head, stop, _ = str(self.tokenizer.decode(tokens[:place])).partition(self.turn_end)
        return head.strip(), place is not None or bool(stop)


def batch_seed(seed: int, batch: int, purpose: str) -> int:
    """The seed of one batch, independent of all others."""
    digest = hashlib.blake2b(f"{purpose}|{seed}|{batch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
