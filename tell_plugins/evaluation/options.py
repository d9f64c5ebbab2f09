"""What one call of `eval` asks for, as one object; other verbs take some of its options."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tell_plugins.core.errors import UserError, at_least, unknown
from tell_plugins.recipe.recipes import Recipe
from tell_plugins.recipe.swift_keys import swift_keys

LARGEST_SCALE = 10
LEARNED_OPTIONS = ("learned", "bleurt", "comet")
# keys of ms-swift that would not reach the answers, and the option that does
_OPTIONS = {
    "adapters": "--adapter",
    "max_new_tokens": "--max-new-tokens",
    "infer_backend": "--engine",
    **dict.fromkeys(("temperature", "top_k", "top_p", "repetition_penalty"), "--decoding"),
}


def seeds_of(text: str) -> list[int]:
    """The seeds of a command line."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"bad seeds '{text}'; allowed: 42 or 42,43") from None


def scale(text: str) -> float:
    """What an adapter's weights may be multiplied by."""
    try:
        found = float(text)
    except ValueError:
        found = -1
    if not 0 <= found <= LARGEST_SCALE:
        allowed = f"a number from 0 to {LARGEST_SCALE}"
        raise argparse.ArgumentTypeError(f"'{text}' is no scale; allowed: {allowed}")
    return found


def _scales(text: str) -> list[float]:
    return list(dict.fromkeys(map(scale, text.split(","))))


def _option(text: str, default: Any = None, kind: Any = str, **more: Any) -> Any:
    """An option, with what argparse is told of it."""
    return Field(default, json_schema_extra={"help": text, "type": kind, **more})


class Options(BaseModel):
    """The options of `eval`, with their defaults and what `--help` says of each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    adapter: list[str] = _option(
        "checkpoint or run folders; 'none' is the base model, and 'shots', 'choices', 'words' "
        "are its rivals without training (default: the recipe's last run)",
        [],
        nargs="+",
        metavar="DIR",
    )
    against: str | None = _option(
        "also test the last run of <recipe>_<VARIANT>.yaml and take differences to it: sft",
        metavar="VARIANT",
    )
    scales: list[float] = _option(
        "test each adapter at these multiples of its weights: 0.25,0.5,0.75,1 (default: 1)",
        [1.0],
        _scales,
    )
    split: str = _option("split of the card (default: test)", "test")
    rows: int | None = _option("a seeded draw of this many rows (default: all)", None, at_least(1))
    decoding: str = _option("greedy, or the paper's sampling: paper (default: greedy)", "greedy")
    seeds: list[int] = _option("one set of answers a seed (default: 42)", [42], seeds_of)
    anchor: str | None = _option("anchor at test (default: as in the recipe)")
    engine: str = _option(
        "transformers, vllm, or the URL of a server (default: transformers)", "transformers"
    )
    model_name: str | None = _option("of a server: the model to ask for")
    batch_size: int = _option("prompts answered together (default: 16)", 16, at_least(1))
    shots: int = _option(
        "fixed training rows in front of each question as examples (default: 0)", 0, at_least(0)
    )
    max_new_tokens: int | None = _option(
        "limit of an answer (default: the card's)", None, at_least(1)
    )
    general_rows: int = _option(
        "held-out general rows for the style fit, 0: nothing general is asked (default: 40)",
        40,
        at_least(0),
    )
    retention_rows: int | None = _option(
        "general questions, foreign instructions and passages of prose, at most N of each "
        "(default: all)",
        None,
        at_least(0),
        metavar="N",
    )
    learned: str = _option("also score translations by bleurt, comet, or bleurt,comet", "")
    bleurt: str | None = _option("BLEURT checkpoint (or $TELL_BLEURT)", metavar="MODEL")
    comet: str | None = _option("COMET checkpoint (or $TELL_COMET)", metavar="MODEL")
    out: str | None = _option("folder of the answers (default: <output_dir>/eval)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_flags=True)
    parser.add_argument("recipe", help="the recipe whose card and model are tested")
    add_some(parser, list(Options.model_fields), defaults=True)
    parser.epilog = (
        "Further --key value pairs are ms-swift's and win over the recipe, for example "
        "--model DIR. The same command goes on where it was stopped."
    )


def add_some(parser: Any, names: Sequence[str], *, defaults: bool = False) -> None:
    """Let a command take these options of `eval`; without `defaults` one not given is None."""
    for name in names:
        field = Options.model_fields[name]
        told: Any = field.json_schema_extra
        default = field.default if defaults else None
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, **told)


def given(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Those of the options that were given."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def options_of(args: argparse.Namespace) -> Options:
    """The options of a command line."""
    return Options(**{name: getattr(args, name) for name in Options.model_fields})


def contradictions(asked: Options) -> Iterator[UserError]:
    """Options that do not go together."""
    nothing = f"{asked.retention_rows} rows, and --general-rows 0 asks nothing general"
    as_are = f"engine '{asked.engine}' answers with adapters as they are"
    same = f"{len(asked.seeds)} seeds, but greedy answers are the same for each"
    unscaled = asked.engine != "transformers"
    one = asked.decoding == "greedy"
    for wrong, found, where, remedy in (
        (asked.retention_rows and not asked.general_rows, nothing, "--retention-rows", "leave out"),
        (asked.scales != [1.0] and unscaled, as_are, "--scales", "--engine transformers"),
        (one and len(asked.seeds) > 1, same, "--seeds", "--decoding paper, or one seed"),
    ):
        if wrong:
            yield UserError(found, where=where, remedy=remedy)


def answer_folders(asked: Options) -> dict[str, int]:
    """The folders of answers to the task, named by split, decoding and what is not the default,
    and the seed of each. Greedy decoding knows no seed."""
    more = [f"anchor-{asked.anchor}"] if asked.anchor else []
    more += [f"{asked.rows}rows"] if asked.rows is not None else []
    more += [f"{asked.shots}shot"] if asked.shots else []
    kinds = {"greedy": 42}
    if asked.decoding != "greedy":
        kinds = {f"{asked.decoding}-seed{seed}": seed for seed in asked.seeds}
    return {"-".join([asked.split, kind, *more]): seed for kind, seed in kinds.items()}


def wrong_flags(recipe: Recipe) -> Iterator[UserError]:
    """Flags that are neither `eval`'s nor the installed ms-swift's, or do nothing here."""
    swift = set(swift_keys().keys) if recipe.flags else set()
    for key in sorted(recipe.flags):
        if key in _OPTIONS:
            yield UserError(
                f"'--{key}' is ms-swift's and does not reach the answers",
                where="command line",
                remedy=f"use {_OPTIONS[key]}",
            )
        elif key not in swift:
            yield unknown("flag", key, swift | set(Options.model_fields), "command line")
