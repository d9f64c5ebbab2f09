"""`./run.sh bench`: measure, print tables, and say which targets are met."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import __doc__ as about
from benchmarks import gpu, parts
from benchmarks.measure import machine
from benchmarks.parts import Part
from benchmarks.world import World, make_world
from tell_plugins.core import paths
from tell_plugins.core.errors import MachineError, UserError

PARTS = ("mixtures", "checking", "counting", "starting", "holding", "answers")
GPU_PARTS = ("gpu", "vllm")  # by name alone: they need a GPU, and vLLM
FULL = {
    "sizes": [52_000, 520_000],
    "checked": 200_000,
    "counted": 52_000,
    "started": 4_000,
    "answered": 16,
}
QUICK = {"sizes": [500, 5_000], "checked": 5_000, "counted": 5_000, "started": 500, "answered": 4}
_LIMIT = 256  # new tokens; the published script's


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 when a target is missed. `--quick` judges none: its sizes are small."""
    args = _arguments(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="tell-bench-") as temporary:
            folder = paths.user_path(args.work).resolve() if args.work else Path(temporary)
            return _run(args, folder)
    except (UserError, MachineError) as error:
        print(error, file=sys.stderr)
        return 1 if isinstance(error, UserError) else 2
    except KeyboardInterrupt:
        return 130


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./run.sh bench", description=about)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it work at all?")
    parser.add_argument(
        "--part", choices=(*PARTS, *GPU_PARTS), action="append", help="this part alone (repeatable)"
    )
    parser.add_argument(
        "--rounds", type=int, help="measurements of each case (default: 3; quick and answers: 1)"
    )
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of general rows")
    parser.add_argument(
        "--prompts", type=int, help=f"prompts to answer (default: {FULL['answered']})"
    )
    parser.add_argument("--no-cold", action="store_true", help="leave out first-time builds")
    parser.add_argument("--work", metavar="DIR", help="keep the made rows here for the next time")
    parser.add_argument("--out", metavar="FILE", help="also write the results as JSON")
    return parser.parse_args(argv)


def _run(args: argparse.Namespace, folder: Path) -> int:
    sizes: dict[str, Any] = dict(QUICK if args.quick else FULL)
    if args.sizes:
        one = min(args.sizes)
        sizes |= {"sizes": args.sizes, "checked": one, "counted": one, "started": one}
    sizes["answered"] = args.prompts or sizes["answered"]
    rounds = args.rounds or (1 if args.quick else 3)
    wanted = list(args.part or PARTS)
    asked = None
    if "answers" in wanted and not args.quick:
        try:
            asked = parts.official_prompts(sizes["answered"], _LIMIT)
        except UserError as error:
            if args.part:
                raise
            print(f"answers are left out:\n{error}", file=sys.stderr)
            wanted.remove("answers")
    needed = {
        "mixtures": sizes["sizes"],
        "checking": [sizes["checked"]],
        "counting": [sizes["counted"]],
        "starting": [sizes["started"]],
    }
    world = make_world(folder, sorted({rows for part in wanted for rows in needed.get(part, ())}))
    measure: dict[str, Callable[[World], Part]] = {
        "mixtures": lambda w: parts.mixtures(w, sizes["sizes"], rounds, cold=not args.no_cold),
        "checking": lambda w: parts.checking(w, sizes["checked"], rounds),
        "counting": lambda w: parts.counting(w, sizes["counted"], max(2, 2 * rounds)),
        "starting": lambda w: parts.starting(w, sizes["started"], rounds),
        "holding": lambda w: parts.holding(w, rounds, embedded=not args.quick),
        "answers": lambda w: parts.answering(
            w, asked or parts.made_prompts(w, sizes["answered"], 8), args.rounds or 1
        ),
        "gpu": lambda w: gpu.recipes_at_size(w, small=args.quick),
        "vllm": lambda w: gpu.answers_by_vllm(w, parts.embedded_prompts(100, 32)),
    }
    done = [measure[part](world) for part in measure if part in wanted]
    for part in done:
        print(f"\n{part.title}\n{_table([part.columns, *part.rows])}")
    targets = [target for part in done for target in part.targets]
    judged = not args.quick
    print("\n" + _verdicts(targets, judged=judged))
    if args.out:
        paths.write_text(paths.user_path(args.out), json.dumps(_results(done), indent=1) + "\n")
    return int(judged and not all(target.is_met for target in targets))


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if row is rows[0] or not _is_number(cell) else cell.rjust(width)
            for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _is_number(cell: str) -> bool:
    return cell.replace(",", "").replace(".", "").isdigit()


def _verdicts(targets: Sequence[parts.Target], *, judged: bool) -> str:
    lines = ["Targets" + ("" if judged else " (not judged: the sizes are too small to say)")]
    for target in targets:
        limit = f"{'at least' if target.at_least else 'at most'} {target.limit:g}"
        verdict = ("met" if target.is_met else "MISSED") if judged else ""
        lines.append(f"  {target.name}: {target.value:.2f} ({limit}) {verdict}".rstrip())
    return "\n".join(lines)


def _results(done: Sequence[Part]) -> dict[str, Any]:
    return {
        "machine": machine(),
        "parts": [
            {
                "title": part.title,
                "columns": part.columns,
                "rows": part.rows,
                "targets": [
                    {
                        "name": target.name,
                        "value": round(target.value, 3),
                        "limit": target.limit,
                        "at_least": target.at_least,
                        "met": target.is_met,
                    }
                    for target in part.targets
                ],
            }
            for part in done
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
