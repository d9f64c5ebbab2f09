"""`./run.sh plugin`: where the file lies that makes `tell/<card>` known to ms-swift."""

from __future__ import annotations

import argparse

from tell_plugins.core import paths


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "In a recipe: external_plugins: [PATH]. From Python: "
        "SftArguments(external_plugins=[PATH], ...)."
    )


def run(args: argparse.Namespace) -> int:
    print(paths.PLUGIN)
    return 0
