"""`./run.sh verify`: does a server, or an exported folder, answer as `eval` saved it?

It is asked the bare queries, as users will; the anchor has to come from the server's side.
"""

from __future__ import annotations

import argparse
import tempfile

from tell_plugins.bridge.protocol import Engine
from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.evaluation.answers import Prompt, answer_all
from tell_plugins.evaluation.engines import UrlEngine, is_url
from tell_plugins.evaluation.grids import print_grid, table_console
from tell_plugins.evaluation.prompts import prompts_sha256
from tell_plugins.evaluation.scoring import System, load_scored
from tell_plugins.evaluation.system_tables import table
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
    settings = saved.settings
    if settings.decoding != "greedy" or settings.shots:
        raise UserError(
            f"{settings.decoding} answers after {settings.shots} examples",
            where=paths.shown(saved.folder),
            allowed="greedy ones without examples, which a second asking gives again",
            remedy="./run.sh eval RECIPE",
        )
    engine = _engine(args.target, args.model_name)
    prompts = [
        Prompt(saved.id(row), row, saved.asked.plain[row]) for row in dict.fromkeys(saved.rows)
    ]
    asked = {
        "engine": engine.name,
        "model": engine.model_name,
        "prompts_sha256": prompts_sha256(prompts),
        "rows": len(prompts),
        "batch_size": settings.batch_size or 1,  # which an earlier release did not save
    }
    with tempfile.TemporaryDirectory(prefix="tell-verify-") as temporary:
        out = paths.user_target(args.out or temporary)
        now = settings.model_copy(update=asked)
        answer_all(engine, prompts, now, out, label=engine.model_name)
        return _compare(System("eval", saved), System(args.target, load_scored(out)))


def _engine(target: str, model_name: str | None) -> Engine:
    if is_url(target):
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


def _compare(before: System, now: System) -> int:
    """Print what is equal, and both scores; 1 where prompts differ or answers lost their form."""
    scored = before.scored
    theirs = {answer.row: answer for answer in scored.answers}
    pairs = [(answer, theirs[answer.row]) for answer in now.scored.answers]
    print_grid(table([before, now], f"{scored.card.name}, {scored.asked.split}"), table_console())
    texts = sum(mine.text == other.text for mine, other in pairs)
    prompts = sum(mine.prompt_tokens == other.prompt_tokens for mine, other in pairs)
    print(f"{texts} of {len(pairs)} answers are equal, word for word")
    print(f"{prompts} of {len(pairs)} prompts have as many tokens as then")
    then, since = (system.first.columns.get("adherence") for system in (before, now))
    lost = then is not None and since is not None and since.total < then.total
    if lost:
        print("fewer answers have the right form than then")
    return int(prompts < len(pairs) or lost)
