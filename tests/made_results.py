"""A results folder made by hand: runs that never ran, with answers of known quality."""

import json
import random
from pathlib import Path
from typing import Any

from tell_plugins.core.cards import load_card
from tell_plugins.core.sources import open_task

CARD = "sample_complaints"
EVALUATION = "test-greedy-made"


class MadeResults:
    """Writes a folder as `./run.sh sweep` leaves it; the task is the project's own sample."""

    def __init__(self, root: Path, *, rows: int = 100, general: int = 30) -> None:
        self.root = root
        task = open_task(load_card(CARD), "test", "card")
        self.rows = list(range(min(rows, len(task))))
        self.ids = [bytes(task.ids[i]).hex() for i in self.rows]
        self.labels = [json.loads(task.responses[i])["complaint"] for i in self.rows]
        self.general = general
        self.entries: list[dict[str, Any]] = []
        self.bases: list[dict[str, Any]] = []

    def base(self, adherent: float = 0.0) -> None:
        """The base model."""
        self._answers("base-made", adherent, 0.5, loss=2.5, bleed=0.0, seed=0)
        self._write("runs/base-made/run.json", {"id": "base", "base": True, "model": "made"})
        self._write("runs/base-made/trained.json", {})
        self.bases.append({"run": "base-made", "evaluation": EVALUATION, "card": CARD})

    def run(
        self,
        method: str,
        *,
        adherent: float,
        right: float = 0.7,
        seed: int = 42,
        at: dict[str, Any] | None = None,
        steps: int = 20,
        task: int = 1000,
        general: int = 10000,
        loss: float = 2.4,
        bleed: float = 0.0,
        no_op: bool = False,
        equal_steps: str | None = None,
        constant: str | None = None,
        exposure: float | None = None,
        leaked: int = 0,
    ) -> str:
        """One finished run; its folder's name."""
        point = "-".join(f"{k}_{v}" for k, v in (at or {}).items())
        name = f"{method}-{point}-{seed}".replace(" ", "_").replace(",", "")
        self._answers(name, adherent, right, loss=loss, bleed=bleed, seed=seed, constant=constant)
        mixture = {
            "hash": f"{random.Random(name).getrandbits(256):064x}",
            "rows": task // 100 + general // 100,
            "task_rows": task // 100,
            "copies": 1,
            "general_rows": general // 100,
            "tokens": task + general,
            "task_tokens": task,
            "general_tokens": general,
            "overlapping": 0,
        }
        facts = {
            "id": name,
            "base": False,
            "model": "made",
            "spec": f"tell/{CARD}:task={task // 100}rows",
            "seed": seed,
            "settings": {"use_cpu": True, "learning_rate": 0.001},
            "mixture": mixture,
            "planned": {
                "steps": steps,
                "no_op": no_op,
                "exposure": 0.0 if no_op else exposure,
                "leaked": leaked,
            },
        }
        self._write(f"runs/{name}/run.json", facts)
        self._write(f"runs/{name}/trained.json", {"steps": steps, "changes_nothing": no_op})
        steps_taken = [{"loss": 2.0 / step, "global_step": step} for step in range(1, steps + 1)]
        self._lines(f"runs/{name}/train/logging.jsonl", steps_taken)
        self.entries.append(self._entry(method, at or {}, seed, name, equal_steps))
        return name

    def failed(self, method: str, seed: int = 42) -> None:
        """One run that failed."""
        name = f"{method}-failed-{seed}"
        self._write(f"runs/{name}/run.json", {"id": name, "base": False, "model": "made"})
        failure = {"step": "train", "exit": "exit code 1", "log": "train.log", "tail": ["boom <b>"]}
        self._write(f"runs/{name}/failed.json", failure)
        self.entries.append(self._entry(method, {}, seed, name, None))

    def _entry(
        self, method: str, at: dict[str, Any], seed: int, run: str, equal: str | None
    ) -> dict[str, Any]:
        return {
            "method": method,
            "at": at,
            "seed": seed,
            "run": run,
            "evaluation": EVALUATION,
            "card": CARD,
            "equal_steps": equal,
        }

    def index(self, name: str, title: str, seeds: list[int], **plot: Any) -> None:
        """Write what says which runs belong to the sweep."""
        index = {
            "format": 1,
            "name": name,
            "title": title,
            "base_recipe": "recipes/made.yaml",
            "command": f"./run.sh sweep recipes/sweeps/{name}.yaml",
            "metric": "json",
            "grid": sorted({key for entry in self.entries for key in entry["at"]}),
            "seeds": seeds,
            "evaluate": {"split": "test", "decoding": "greedy", "rows": len(self.rows)},
            "plot": {"x": None, "reference": "TELL", "paper": None, **plot},
            "entries": self.entries,
            "bases": self.bases,
        }
        self._write(f"sweeps/{name}.json", index)

    def _answers(
        self,
        run: str,
        adherent: float,
        right: float,
        *,
        loss: float,
        bleed: float,
        seed: int,
        constant: str | None = None,
    ) -> None:
        """Exactly `adherent` of the answers obey the schema, about `right` of them are right."""
        generator = random.Random(f"{run} {seed}")
        order = generator.sample(range(len(self.rows)), len(self.rows))
        good = set(order[: round(adherent * len(self.rows))])
        lines = []
        for i, row in enumerate(self.rows):
            other = "no" if self.labels[i] == "yes" else "yes"
            label = constant or (self.labels[i] if generator.random() < right else other)
            text = json.dumps({"thought": "So it is.", "complaint": label})
            lines.append(self._line(self.ids[i], row, text if i in good else "I think so."))
        folder = f"runs/{run}/eval/{EVALUATION}"
        label = "none" if run.startswith("base") else "checkpoint-1"
        settings = {"card": CARD, "split": "test", "anchor": "card", "rows": len(self.rows)}
        self._write(f"{folder}/{label}/test-greedy/settings.json", settings)
        self._lines(f"{folder}/{label}/test-greedy/answers.jsonl", lines)
        self._general(f"{folder}/{label}/general", loss, bleed, generator)
        self._write(f"{folder}/evaluated.json", {"seconds": 10.0})

    def _general(self, folder: str, loss: float, bleed: float, generator: random.Random) -> None:
        shape = random.Random("general")
        losses, lines = [], []
        for row in range(self.general):
            tokens = shape.randrange(10, 60)
            mean = loss + shape.gauss(0, 0.3) + generator.gauss(0, 0.02)
            losses.append({"loss_sum": mean * tokens, "tokens": tokens})
            in_format = row < bleed * self.general
            text = '{"thought": "x", "complaint": "no"}' if in_format else "A plain answer."
            lines.append(self._line(f"general-{row}", row, text))
        self._write(
            f"{folder}/settings.json",
            {"card": CARD, "split": "general", "anchor": "none", "rows": len(lines)},
        )
        self._lines(f"{folder}/answers.jsonl", lines)
        self._lines(f"{folder}/losses.jsonl", losses)
        for name, shift in (("instructions", 0.1), ("prose", 0.2)):
            moved = [{**row, "loss_sum": row["loss_sum"] + shift * row["tokens"]} for row in losses]
            self._lines(f"{folder}/{name}.jsonl", moved)
        if "base" not in folder:
            self._lines(f"{folder}/kl.jsonl", [{**row, "loss_sum": 0.05} for row in losses])

    @staticmethod
    def _line(row_id: str, row: int, text: str) -> dict[str, Any]:
        return {"id": row_id, "row": row, "text": text, "finish_reason": "stop", "attempt": 0}

    def _write(self, name: str, value: Any) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

    def _lines(self, name: str, values: list[Any]) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


def made_controls(root: Path) -> MadeResults:
    """A control grid of two seeds with a no-op run, a constant one, a failed one."""
    made = MadeResults(root)
    made.base()
    for seed in (42, 43):
        tell = made.run("TELL", adherent=0.62 + 0.04 * (seed - 42), seed=seed)
        alone: dict[str, Any] = {"seed": seed, "general": 0}
        made.run("SFT, as in the paper", adherent=0.0, steps=1, no_op=True, loss=2.5, **alone)
        repeated: dict[str, Any] = {
            "equal_steps": tell,
            "constant": "yes",
            "loss": 2.9,
            "bleed": 0.3,
        }
        made.run("SFT, repeated", adherent=0.97, **repeated, **alone)
        made.run("TELL, even order", adherent=0.66, seed=seed, equal_steps=tell)
        made.run("TELL, no anchor", adherent=0.4, seed=seed, steps=19, equal_steps=tell)
    made.failed("general only")
    made.index("controls_made", "Controls <made> by hand & nothing else", [42, 43])
    return made


def made_curve(root: Path) -> MadeResults:
    """Curves over task tokens: an S for TELL, a later one for SFT."""
    made = MadeResults(root)
    made.base(0.01)
    points = (
        *((1000, 0.02, 0.0), (3000, 0.1, 0.02), (10000, 0.55, 0.05)),
        *((30000, 0.93, 0.3), (100000, 0.97, 0.8), (300000, 0.98, 0.96)),
    )
    for seed in (42, 43):
        for amount, tell, sft in points:
            same: dict[str, Any] = {
                "at": {"task": f"{amount // 100}rows"},
                "task": amount,
                "seed": seed,
            }
            made.run("TELL", adherent=tell, steps=amount // 500, **same)
            made.run("SFT", adherent=sft, general=0, steps=max(1, amount // 1600), **same)
    made.run("general only", adherent=0.03, task=0, general=10000, steps=7)
    plot = {"x": "task_tokens", "paper": "task_tokens"}
    made.index("made_curve", "Task tokens, TELL against SFT", [42, 43], **plot)
    return made
