"""What one call of `eval` asks for, as one object that verbs pass to each other."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
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
    "temperature": "--decoding",
    "top_k": "--decoding",
    "top_p": "--decoding",
    "repetition_penalty": "--decoding",
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


def _option(
    default: Any, text: str, kind: Callable[[str], Any] = str, metavar: str | None = None
) -> Any:
    """An option with its help, and what makes its value of a command line's text."""
    more: Any = {"metavar": metavar, "kind": kind}
    return Field(default, description=text, json_schema_extra=more)


class Options(BaseModel):
    """The options of `eval`, with its defaults and what `--help` says of each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: str
    flags: list[str] = []
    adapter: list[str] = _option(
        [],
        "checkpoint or run folders; 'none' is the base model, and 'shots', 'choices', 'words' "
        "are its rivals without training (default: the recipe's last run)",
        metavar="DIR",
    )
    against: str | None = _option(
        None,
        "also test the last run of <recipe>_<VARIANT>.yaml and take differences to it: sft",
        metavar="VARIANT",
    )
    scales: list[float] = _option(
        [1.0],
        "test each adapter at these multiples of its weights: 0.25,0.5,0.75,1 (default: 1)",
        _scales,
    )
    split: str = _option("test", "split of the card (default: test)")
    rows: int | None = _option(None, "a seeded draw of this many rows (default: all)", at_least(1))
    decoding: str = _option("greedy", "greedy, or the paper's sampling: paper (default: greedy)")
    seeds: list[int] = _option([42], "one set of answers a seed (default: 42)", seeds_of)
    anchor: str | None = _option(None, "anchor at test (default: as in the recipe)")
    engine: str = _option(
        "transformers", "transformers, vllm, or the URL of a server (default: transformers)"
    )
    model_name: str | None = _option(None, "of a server: the model to ask for")
    batch_size: int = _option(16, "prompts answered together (default: 16)", at_least(1))
    shots: int = _option(
        0,
        "fixed training rows in front of each question as examples (default: 0)",
        at_least(0),
    )
    max_new_tokens: int | None = _option(
        None, "limit of an answer (default: the card's)", at_least(1)
    )
    general_rows: int = _option(
        40,
        "held-out general rows for the style fit, 0: nothing general is asked (default: 40)",
        at_least(0),
    )
    retention_rows: int | None = _option(
        None,
        "general questions, foreign instructions and passages of prose, at most N of each "
        "(default: all)",
        at_least(0),
        metavar="N",
    )
    learned: str = _option("", "also score translations by bleurt, comet, or bleurt,comet")
    bleurt: str | None = _option(None, "BLEURT checkpoint (or $TELL_BLEURT)", metavar="MODEL")
    comet: str | None = _option(None, "COMET checkpoint (or $TELL_COMET)", metavar="MODEL")
    out: str | None = _option(None, "folder of the answers (default: <output_dir>/eval)")

    def contradictions(self) -> Iterator[UserError]:
        """Options that do not go together."""
        greedy, general = self.decoding == "greedy", self.general_rows > 0
        nothing = f"{self.retention_rows} rows, and --general-rows 0 asks nothing general"
        as_are = f"engine '{self.engine}' answers with adapters as they are"
        same = f"{len(self.seeds)} seeds, but greedy answers are the same for each"
        scaled = self.scales != [1.0] and self.engine != "transformers"
        for wrong, found, where, remedy in (
            (self.retention_rows and not general, nothing, "--retention-rows", "leave it out"),
            (scaled, as_are, "--scales", "--engine transformers, which scales them in memory"),
            (greedy and len(self.seeds) > 1, same, "--seeds", "--decoding paper, or one seed"),
        ):
            if wrong:
                yield UserError(found, where=where, remedy=remedy)

    @property
    def folders(self) -> dict[str, int]:
        """The folders of answers to the task, named by split, decoding and what is not the
        default, and the seed of each."""
        if self.decoding == "greedy":  # which knows no seed
            return {self._folder("greedy"): 42}
        return {self._folder(f"{self.decoding}-seed{seed}"): seed for seed in self.seeds}

    def _folder(self, decoding: str) -> str:
        parts = [self.split, decoding]
        parts += [f"anchor-{self.anchor}"] if self.anchor else []
        parts += [f"{self.rows}rows"] if self.rows is not None else []
        parts += [f"{self.shots}shot"] if self.shots else []
        return "-".join(parts)


# the options that are one on the command line, with what `_option` says of each
_OF_EVAL: dict[str, Any] = {
    n: field for n, field in Options.model_fields.items() if field.description
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_flags=True, **Options(recipe="").model_dump())
    parser.add_argument("recipe", help="the recipe whose card and model are tested")
    add_some(parser, list(_OF_EVAL))
    parser.epilog = (
        "Further --key value pairs are ms-swift's and win over the recipe, for example "
        "--model DIR. The same command goes on where it was stopped."
    )


def add_some(parser: Any, names: Sequence[str]) -> None:
    """Let a command take these options; one that is not given is None where it has no default."""
    for name in names:
        field = _OF_EVAL[name]
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            help=field.description,
            metavar=field.json_schema_extra["metavar"],
            type=field.json_schema_extra["kind"],
            nargs="+" if field.annotation == list[str] else None,
        )


def given(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Those of the options that were given."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def options_of(args: argparse.Namespace) -> Options:
    """The options of a command line."""
    return Options(**{name: getattr(args, name) for name in Options.model_fields})


def wrong_flags(recipe: Recipe) -> Iterator[UserError]:
    """Flags that are neither `eval`'s nor the installed ms-swift's, or do nothing here."""
    if not recipe.flags:
        return
    swift = set(swift_keys().keys)
    for key in sorted(recipe.flags):
        if key in _OPTIONS:
            yield UserError(
                f"'--{key}' is ms-swift's and does not reach the answers",
                where="command line",
                remedy=f"use {_OPTIONS[key]}",
            )
        elif key not in swift:
            yield unknown("flag", key, swift | set(Options.model_fields), "command line")
