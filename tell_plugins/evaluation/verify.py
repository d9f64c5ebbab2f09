"""`./run.sh verify`: does a server, or an exported folder, answer as `eval` saved it?

It is asked the bare queries, as users will; the anchor has to come from the server's side.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tell_plugins.bridge.protocol import DECODINGS, Engine
from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.evaluation.answers import (
    Prompt,
    Scored,
    answer_all,
    load_scored,
    read_answers,
)
from tell_plugins.evaluation.engines import UrlEngine
from tell_plugins.evaluation.grids import print_grid, table_console
from tell_plugins.evaluation.intervals import Rate
from tell_plugins.evaluation.prompts import prompts_sha256
from tell_plugins.evaluation.scoring import System
from tell_plugins.evaluation.summary import table
from tell_plugins.recipe.recipes import is_trained

_WORKERS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", help="the URL of a server, or a folder that `export` wrote")
    parser.add_argument(
        "answers", help="a folder of answers of `eval`: <output_dir>/eval/<run>/test-greedy"
    )
    parser.add_argument("--model-name", help="of a server: the model to ask for")
    parser.add_argument("--out", metavar="DIR", help="keep the answers here (default: they go)")


def run(args: argparse.Namespace) -> int:
    saved = load_scored(paths.user_path(args.answers))
    _need_plain(saved)
    engine = _engine(args.target, args.model_name)
    with tempfile.TemporaryDirectory(prefix="tell-verify-") as temporary:
        out = paths.user_target(args.out) if args.out else Path(temporary)
        _answer(engine, saved, out)
        return _compare(saved, out, args.target)


def _need_plain(saved: Scored) -> None:
    """Raise UserError for answers that no second asking gives again."""
    settings = saved.settings
    if settings.decoding != "greedy" or settings.shots:
        raise UserError(
            f"{settings.decoding} answers after {settings.shots} examples",
            where=paths.shown(saved.folder),
            allowed="greedy ones without examples",
            remedy="./run.sh eval RECIPE",
        )


def _engine(target: str, model_name: str | None) -> Engine:
    if "://" in target:
        return UrlEngine(target, model_name=model_name, workers=_WORKERS)
    folder = paths.user_path(target)
    if not is_trained(folder):
        raise UserError(
            f"no model in '{target}'",
            where="TARGET",
            allowed="a URL such as http://127.0.0.1:8000/v1, or a folder that `export` wrote",
            remedy="look for config.json or adapter_config.json",
        )
    from tell_plugins.bridge.folder_engine import FolderEngine

    return FolderEngine(folder)


def _answer(engine: Engine, saved: Scored, out: Path) -> None:
    rows = list(dict.fromkeys(saved.rows))
    prompts = [Prompt(saved.id(row), row, saved.task.plain[row]) for row in rows]
    settings = saved.settings.model_copy(
        update={
            "engine": engine.name,
            "model": engine.model_name,
            "prompts_sha256": prompts_sha256(prompts),
            "rows": len(rows),
            "batch_size": saved.settings.batch_size or 1,  # which an earlier release did not save
        }
    )
    answer_all(engine, prompts, DECODINGS["greedy"], settings, out, label=engine.model_name)


def _compare(saved: Scored, out: Path, target: str) -> int:
    """Print what is equal, and both scores; 1 where prompts differ or answers lost their form."""
    theirs = {answer.row: answer for answer in saved.answers}
    pairs = [(line, theirs[line.row]) for line in read_answers(out)]
    systems = [System("eval", saved), System(target, load_scored(out))]
    print_grid(table(systems, f"{saved.card.name}, {saved.task.split}"), table_console())
    texts = sum(mine.text == other.text for mine, other in pairs)
    prompts = sum(mine.prompt_tokens == other.prompt_tokens for mine, other in pairs)
    print(f"{texts} of {len(pairs)} answers are equal, word for word")
    print(f"{prompts} of {len(pairs)} prompts have as many tokens as then")
    before, now = (system.scores.headline.get("adherence") for system in systems)
    lost = isinstance(before, Rate) and isinstance(now, Rate) and now.k < before.k
    if lost:
        print("fewer answers have the right form than then")
    return int(prompts < len(pairs) or lost)
