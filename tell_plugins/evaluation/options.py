"""What one call of `eval` asks for, as one object that verbs pass to each other."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tell_plugins.core.errors import UserError, unknown
from tell_plugins.recipe.recipes import Recipe
from tell_plugins.recipe.swift_keys import swift_keys

LARGEST_SCALE = 10
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


def _option(default: Any, text: str, *, metavar: str | None = None, least: int = 0) -> Any:
    """An option with its help; a number is not below `least`."""
    return Field(default, description=text, json_schema_extra={"metavar": metavar, "least": least})


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
    scales: str = _option(
        "1", "test each adapter at these multiples of its weights: 0.25,0.5,0.75,1 (default: 1)"
    )
    split: str = _option("test", "split of the card (default: test)")
    rows: int | None = _option(None, "a seeded draw of this many rows (default: all)", least=1)
    decoding: str = _option("greedy", "greedy, or the paper's sampling: paper (default: greedy)")
    seeds: str = _option("42", "one set of answers a seed (default: 42)")
    anchor: str | None = _option(None, "anchor at test (default: as in the recipe)")
    engine: str = _option(
        "transformers", "transformers, vllm, or the URL of a server (default: transformers)"
    )
    model_name: str | None = _option(None, "of a server: the model to ask for")
    batch_size: int = _option(16, "prompts answered together (default: 16)", least=1)
    shots: int = _option(
        0, "fixed examples of the training split in front of each question (default: 0)"
    )
    max_new_tokens: int | None = _option(None, "limit of an answer (default: the card's)", least=1)
    general_rows: int = _option(
        40, "held-out general rows for the style fit, 0: nothing general is asked (default: 40)"
    )
    retention_rows: int | None = _option(
        None,
        "general questions, foreign instructions and passages of prose, at most N of each "
        "(default: all)",
        metavar="N",
    )
    learned: str = _option("", "also score translations by bleurt, comet, or bleurt,comet")
    bleurt: str | None = _option(None, "BLEURT checkpoint (or $TELL_BLEURT)", metavar="MODEL")
    comet: str | None = _option(None, "COMET checkpoint (or $TELL_COMET)", metavar="MODEL")
    out: str | None = _option(None, "folder of the answers (default: <output_dir>/eval)")

    def check_counts(self) -> None:
        """Raise UserError for a number below what it may be."""
        for name, field in _OF_EVAL.items():
            value, least = getattr(self, name), field.json_schema_extra["least"]
            if isinstance(value, int) and value < least:
                raise UserError(
                    f"{value} is too small",
                    where=f"--{name.replace('_', '-')}",
                    allowed=f"{least} and more",
                    remedy="raise it, or leave it out for the default",
                )
        if self.general_rows == 0 and self.retention_rows:
            raise UserError(
                f"{self.retention_rows} rows, and --general-rows 0 asks nothing general",
                where="--retention-rows",
                allowed="0 or nothing beside --general-rows 0",
                remedy="--general-rows 1 or more",
            )

    def all_scales(self) -> list[float]:
        """The multiples of an adapter's weights, each once. Raises UserError for bad ones."""
        try:
            scales = [float(part) for part in self.scales.split(",")]
        except ValueError:
            scales = []
        if not scales or not all(0 <= scale <= LARGEST_SCALE for scale in scales):
            raise UserError(
                f"bad scales '{self.scales}'",
                where="--scales",
                allowed=f"numbers from 0 to {LARGEST_SCALE}, separated by commas",
                remedy="--scales 0.25,0.5,0.75,1",
            )
        if scales != [1.0] and self.engine != "transformers":
            raise UserError(
                f"engine '{self.engine}' answers with adapters as they are",
                where="--scales",
                remedy="--engine transformers, which scales their weights in memory",
            )
        return list(dict.fromkeys(scales))

    def all_seeds(self) -> list[int]:
        """One set of answers each. Raises UserError for bad ones."""
        seeds = seeds_of(self.seeds)
        if self.decoding != "greedy":
            return seeds
        if len(seeds) > 1:
            raise UserError(
                f"{len(seeds)} seeds, but greedy answers are the same for each",
                where="--seeds",
                remedy="--decoding paper, which samples, or one seed",
            )
        return [42]

    def folder(self, seed: int) -> str:
        """The name of an answers folder: the split, the decoding, and what is not the default."""
        parts = [self.split, self.decoding]
        parts += [f"seed{seed}"] if self.decoding != "greedy" else []
        parts += [f"anchor-{self.anchor}"] if self.anchor else []
        parts += [f"{self.rows}rows"] if self.rows is not None else []
        parts += [f"{self.shots}shot"] if self.shots else []
        return "-".join(parts)


def seeds_of(text: str) -> list[int]:
    """The seeds that `--seeds` names. Raises UserError for what is none."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(
            f"bad seeds '{text}'",
            where="--seeds",
            allowed="42 or 42,43,44",
            remedy="integers, separated by commas",
        ) from None


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
            type=int if field.annotation in (int, int | None) else str,
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
