"""What one call of `eval` asks for, as one object that verbs pass to each other."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

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


class Options(BaseModel):
    """The options of `eval`, with its defaults; `--help` says what each means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: str
    flags: list[str] = []
    adapter: list[str] = []
    against: str | None = None
    scales: str = "1"
    split: str = "test"
    rows: int | None = None
    decoding: str = "greedy"
    seeds: str = "42"
    anchor: str | None = None
    engine: str = "transformers"
    model_name: str | None = None
    batch_size: int = 16
    shots: int = 0
    max_new_tokens: int | None = None
    general_rows: int = 40
    retention_rows: int | None = None
    learned: str = ""
    bleurt: str | None = None
    comet: str | None = None
    out: str | None = None

    def check_counts(self) -> None:
        """Raise UserError for a number below what it may be."""
        least = {"batch_size": 1, "rows": 1, "max_new_tokens": 1, "shots": 0, "general_rows": 0}
        least["retention_rows"] = 0
        for key, smallest in least.items():
            value = getattr(self, key)
            if value is not None and value < smallest:
                raise UserError(
                    f"{value} is too small",
                    where=f"--{key.replace('_', '-')}",
                    allowed=f"{smallest} and more",
                    remedy="raise it, or leave it out for the default",
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
        try:
            seeds = [int(part) for part in self.seeds.split(",")]
        except ValueError:
            raise UserError(
                f"bad seeds '{self.seeds}'",
                where="--seeds",
                allowed="42 or 42,43,44",
                remedy="integers, separated by commas",
            ) from None
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_flags=True, **Options(recipe="").model_dump())
    parser.add_argument("recipe", help="the recipe whose card and model are tested")
    parser.add_argument(
        "--adapter",
        nargs="+",
        metavar="DIR",
        help="checkpoint or run folders; 'none' is the base model, and 'shots', 'choices', 'words' "
        "are its rivals without training (default: the recipe's last run)",
    )
    parser.add_argument(
        "--against",
        metavar="VARIANT",
        help="also test the last run of <recipe>_<VARIANT>.yaml and take differences to it: sft",
    )
    parser.add_argument(
        "--scales",
        help="test each adapter at these multiples of its weights: 0.25,0.5,0.75,1 (default: 1)",
    )
    parser.add_argument("--split", help="split of the card (default: test)")
    parser.add_argument("--rows", type=int, help="a seeded draw of this many rows (default: all)")
    parser.add_argument("--decoding", help="greedy, or the paper's sampling: paper")
    parser.add_argument("--seeds", help="one set of answers a seed (default: 42)")
    parser.add_argument("--anchor", help="anchor at test (default: as in the recipe)")
    parser.add_argument("--engine", help="transformers, vllm, or the URL of a server")
    parser.add_argument("--model-name", help="of a server: the model to ask for")
    parser.add_argument("--batch-size", type=int, help="prompts answered together")
    parser.add_argument(
        "--shots",
        type=int,
        help="fixed examples of the training split in front of each question (default: 0)",
    )
    parser.add_argument(
        "--max-new-tokens", type=int, help="limit of an answer (default: the card's)"
    )
    parser.add_argument(
        "--general-rows",
        type=int,
        help="held-out general rows for the style fit, 0: nothing general is asked (default: 40)",
    )
    parser.add_argument(
        "--retention-rows",
        type=int,
        metavar="N",
        help="general questions, foreign instructions and passages of prose, at most N of each "
        "(default: all)",
    )
    parser.add_argument(
        "--learned", help="also score translations by bleurt, comet, or bleurt,comet"
    )
    parser.add_argument("--bleurt", metavar="MODEL", help="BLEURT checkpoint (or $TELL_BLEURT)")
    parser.add_argument("--comet", metavar="MODEL", help="COMET checkpoint (or $TELL_COMET)")
    parser.add_argument("--out", help="folder of the answers (default: <output_dir>/eval)")
    parser.epilog = (
        "Further --key value pairs are ms-swift's and win over the recipe, for example "
        "--model DIR. The same command goes on where it was stopped."
    )


def options_of(args: argparse.Namespace) -> Options:
    """The options of a command line."""
    return Options(**{name: getattr(args, name) for name in Options.model_fields})


def wrong_flags(recipe: Recipe) -> Iterator[UserError]:
    """Flags that are neither `eval`'s nor the installed ms-swift's, or do nothing here."""
    if not recipe.flags:
        return
    options = set(Options.model_fields)
    swift = set(swift_keys().keys)
    for key in sorted(recipe.flags):
        if key in _OPTIONS:
            yield UserError(
                f"'--{key}' is ms-swift's and does not reach the answers",
                where="command line",
                remedy=f"use {_OPTIONS[key]}",
            )
        elif key not in swift:
            yield unknown("flag", key, swift | options, "command line")
