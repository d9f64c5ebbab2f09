"""`new` in the folders of a test: the files that it is given, and what it says."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tell_plugins.cli import main
from tell_plugins.recipe.recipes import Recipe, load_recipe

ANCHOR = "Is the message about weather? Answer with a JSON object."
Row = dict[str, Any]


@dataclass(frozen=True)
class Own:
    """The task `own`; what it is made of and what is made lie in one folder."""

    folder: Path
    capsys: pytest.CaptureFixture[str]
    method: str = "paper"

    @property
    def recipes(self) -> Path:
        return self.folder / "recipes"

    @property
    def card(self) -> Path:
        return self.folder / "cards" / "own"

    def table(self, rows: list[Row], name: str = "rows.jsonl") -> str:
        """A file of rows; in a CSV lists are JSON text."""
        path = self.folder / name
        if path.suffix == ".jsonl":
            text = "".join(json.dumps(row) + "\n" for row in rows)
            path.write_text(text, encoding="utf-8")
            return str(path)
        cells = [
            {k: v if isinstance(v, str) else json.dumps(v) for k, v in r.items()} for r in rows
        ]
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(cells)
        return str(path)

    def run(
        self, train: str, *flags: str, name: str = "own", anchor: str | None = ANCHOR
    ) -> tuple[int, str, str]:
        """Exit code, output and errors of `new NAME --train TRAIN FLAGS`."""
        usual = ["--model", "smollm2", "--recipes", str(self.recipes), "--method", self.method]
        given = [] if anchor is None else ["--anchor", anchor]
        self.capsys.readouterr()
        code = main(["new", name, "--train", train, *usual, *given, *flags])
        return code, *self.capsys.readouterr()

    def new(self, train: str, *flags: str, **keys: Any) -> str:
        """What a `new` that goes well says."""
        code, out, errors = self.run(train, *flags, **keys)
        assert code == 0, errors
        return out

    def refused(self, train: str, *flags: str, **keys: Any) -> str:
        """The message of a `new` that must fail."""
        code, out, errors = self.run(train, *flags, **keys)
        assert code == 1
        assert "next:" not in out
        assert "Traceback" not in errors
        assert "remedy:" in errors
        return errors

    def fails(self, train: str, *flags: str, **keys: Any) -> str:
        """The message of a `new` that must fail, and write nothing."""
        message = self.refused(train, *flags, **keys)
        assert not self.recipes.exists()
        assert not list(self.folder.glob("cards/*"))
        return message

    def recipe(self, name: str = "smollm2_own") -> Recipe:
        return load_recipe(self.recipes / f"{name}.yaml")
