"""`./run.sh report DIR`: tables, pictures and one HTML page of all sweeps in a folder."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from tell_plugins.core import paths
from tell_plugins.core.cards import card_names
from tell_plugins.core.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="folder of ./run.sh sweep, or one that --collect made")
    parser.add_argument("--out", help="where the report goes (default: into the folder itself)")
    parser.add_argument(
        "--collect",
        metavar="DIR",
        help="first copy what the report needs, compressed, into DIR, and report on that",
    )


def run(args: argparse.Namespace) -> int:
    from tell_plugins.experiments.collect import collect, sizes
    from tell_plugins.experiments.report import write_report

    root = paths.user_path(args.folder)
    for flag, given in (("--out", args.out), ("--collect", args.collect)):
        if given and paths.user_target(given).exists() and not paths.user_target(given).is_dir():
            raise UserError(
                "a file, where a folder is to be written",
                where=f"{flag} {given}",
                remedy="name a folder",
            )
    _know_cards(root)
    if args.collect:
        target = paths.user_target(args.collect)
        kept = sizes(collect(root, target))
        print(
            f"collected {kept['files']} files, {kept['bytes'] / 1e6:.1f} MB: {paths.shown(target)}"
        )
        root = target
        _know_cards(root)
    out = paths.user_target(args.out) if args.out else root
    for path in write_report(root, out):
        print(paths.shown(path))
    return 0


def _know_cards(root: Path) -> None:
    """Let the task cards that were collected be found where the user does not have them."""
    from tell_plugins.experiments.planning import cards_environment
    from tell_plugins.experiments.results import load_studies

    cards = root / "cards"
    needed = {entry.card for study in load_studies(root) for entry in study.entries}
    if cards.is_dir() and not needed <= set(card_names()):
        os.environ["TELL_CARDS"] = cards_environment(cards)
