"""`docs/check.md`, made of the rules: `python -m tell_plugins.recipe.check_page` writes it."""

from __future__ import annotations

from tell_plugins.core import paths
from tell_plugins.recipe.findings import SECTIONS, Rule

PAGE = paths.PROJECT / "docs" / "check.md"
_HEAD = """\
# What `check` finds

`./run.sh check RECIPE...` looks at a recipe from all sides and reports every problem at once, each
with its place, what is allowed, the remedy and an id that stays the same over releases. It needs no
GPU and no network, and trains nothing. An error stops `./run.sh train`, a warning does not.

`./run.sh check --json RECIPE...` prints the same for programs: one object a recipe (several are a
list) with the findings, the sources and steps in numbers, what was looked at, and what was not and
why. Its form is [check.schema.json](../tell_plugins/recipe/check.schema.json). Exit codes: 0 no
errors, 1 errors, 2 a recipe could not be judged, as where ms-swift cannot be asked for its keys.
"""


def page() -> str:
    """The page as Markdown: a table of rules for each section."""
    tables = [f"## {title}\n\n{_table(rules)}" for title, rules in SECTIONS.items()]
    return "\n".join([_HEAD, *tables])


def _table(rules: dict[str, Rule]) -> str:
    rows = [f"| `{name}` | {rule.holds} | {rule.remedy} |" for name, rule in rules.items()]
    return "\n".join(["| id | what should hold | remedy |", "|---|---|---|", *rows, ""])


if __name__ == "__main__":
    paths.write_text(PAGE, page())
