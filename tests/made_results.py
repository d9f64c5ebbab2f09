"""A results folder made by hand: runs that never ran, with answers of known quality."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tell_plugins.core.cards import load_card
from tell_plugins.core.sources import open_task
from tests.saved_answers import answer_line, save_answers, save_lines

CARD = "sample_complaints"
EVALUATION = "test-greedy-made"
GENERAL = {"split": "general", "anchor": "none"}


class MadeResults:
    """Writes a folder as `./run.sh sweep` leaves it; the task is the project's own sample, unless
    another card is named."""

    def __init__(self, root: Path, *, card: str = CARD, rows: int = 100, general: int = 30) -> None:
        self.root, self.card, self.general = root, card, general
        self.responses = open_task(load_card(card), "test", "card").responses[:rows]
        self.entries: list[dict[str, Any]] = []
        self.bases: list[dict[str, Any]] = []

    def base(self, adherent: float = 0.0) -> None:
        noise = random.Random("base-made 0")
        self.answered_base(self._texts(noise, adherent, 0.5))
        self._general("base-made", "none", 2.5, 0.0, noise)

    def answered_base(self, texts: Sequence[str]) -> None:
        """The base model, with answers as they are given."""
        self._save("base-made", "none", texts, {"base": True}, {})
        self.bases.append(self._asked("base-made"))

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
        rows = {"task_rows": task // 100, "general_rows": general // 100}
        mixture = {"hash": "0" * 64, "rows": sum(rows.values()), "copies": 1, **rows}
        mixture |= {"task_tokens": task, "general_tokens": general}
        exposure = 0.0 if no_op else exposure
        facts = {
            "spec": f"tell/{CARD}:task={task // 100}rows",
            "seed": seed,
            "settings": {"use_cpu": True},
            "mixture": mixture,
            "planned": {"steps": steps, "exposure": exposure, "leaked": leaked},
        }
        noise = random.Random(f"{name} {seed}")
        texts = self._texts(noise, adherent, right, constant)
        trained = {"steps": steps, "changes_nothing": no_op}
        self._save(name, "checkpoint-1", texts, facts, trained)
        self._general(name, "checkpoint-1", loss, bleed, noise)
        steps_taken = [{"loss": 2.0 / step, "global_step": step} for step in range(1, steps + 1)]
        self._lines(f"runs/{name}/train/logging.jsonl", steps_taken)
        self._index(method, name, at or {}, seed, equal_steps)
        return name

    def answered(self, method: str, texts: Sequence[str]) -> Path:
        """One finished run with answers as they are given, and nothing else; their folder."""
        self._index(method, method)
        return self._save(method, "checkpoint-1", texts, {"mixture": {}}, {"steps": 3})

    def failed(self, method: str, seed: int = 42) -> None:
        """One run that failed."""
        name = f"{method}-failed-{seed}"
        self._write(f"runs/{name}/run.json", {"id": name, "base": False, "model": "made"})
        failure = {"step": "train", "exit": "exit code 1", "log": "train.log", "tail": ["boom <b>"]}
        self._write(f"runs/{name}/failed.json", failure)
        self._index(method, name, seed=seed)

    def index(self, name: str, title: str, seeds: list[int], **plot: Any) -> None:
        """Write what says which runs belong to the sweep."""
        index = {
            "name": name,
            "title": title,
            "command": f"./run.sh sweep recipes/sweeps/{name}.yaml",
            "metric": load_card(self.card).metric,
            "seeds": seeds,
            "evaluate": {"split": "test", "decoding": "greedy", "rows": len(self.responses)},
            "plot": {"x": None, "reference": "TELL", "paper": None, **plot},
            "entries": self.entries,
            "bases": self.bases,
        }
        self._write(f"sweeps/{name}.json", index)

    def _asked(self, run: str) -> dict[str, Any]:
        return {"run": run, "evaluation": EVALUATION, "card": self.card}

    def _index(
        self,
        method: str,
        run: str,
        at: Mapping[str, Any] = {},
        seed: int = 42,
        equal: str | None = None,
    ) -> None:
        more = {"method": method, "at": at, "seed": seed, "equal_steps": equal}
        self.entries.append(self._asked(run) | more)

    def _texts(
        self, noise: random.Random, adherent: float, right: float, constant: str | None = None
    ) -> list[str]:
        """Exactly `adherent` of the answers obey the schema, about `right` of them are right."""
        count = len(self.responses)
        good = set(noise.sample(range(count), count)[: round(adherent * count)])
        texts = []
        for place, response in enumerate(self.responses):
            label = json.loads(response)["complaint"]
            other = "no" if label == "yes" else "yes"
            said = constant or (label if noise.random() < right else other)
            text = json.dumps({"thought": "So it is.", "complaint": said})
            texts.append(text if place in good else "I think so.")
        return texts

    def _save(self, run: str, label: str, texts: Sequence[str], facts: Any, trained: Any) -> Path:
        self._write(f"runs/{run}/run.json", {"id": run, "base": False, "model": "made"} | facts)
        self._write(f"runs/{run}/trained.json", trained)
        folder = self.root / "runs" / run / "eval" / EVALUATION
        save_answers(folder / label / "test-greedy", self.card, texts)
        self._write(f"runs/{run}/eval/{EVALUATION}/evaluated.json", {"seconds": 10.0})
        return folder / label / "test-greedy"

    def _general(
        self, run: str, label: str, loss: float, bleed: float, noise: random.Random
    ) -> None:
        shape = random.Random("general")
        losses, lines = [], []
        for row in range(self.general):
            tokens = shape.randrange(10, 60)
            mean = loss + shape.gauss(0, 0.3) + noise.gauss(0, 0.02)
            losses.append({"loss_sum": mean * tokens, "tokens": tokens, "rows": self.general})
            in_format = row < bleed * self.general
            text = '{"thought": "x", "complaint": "no"}' if in_format else "A plain answer."
            lines.append(answer_line(f"general-{row}", row, text))
        folder = f"runs/{run}/eval/{EVALUATION}/{label}/general"
        save_lines(self.root / folder, self.card, lines, **GENERAL)
        shifts = {"losses": 0.0, "instructions": 0.1, "prose": 0.2}
        for name, shift in shifts.items():
            moved = [{**row, "loss_sum": row["loss_sum"] + shift * row["tokens"]} for row in losses]
            self._lines(f"{folder}/{name}.jsonl", moved)
        if label != "none":
            self._lines(f"{folder}/kl.jsonl", [{**row, "loss_sum": 0.05} for row in losses])

    def _write(self, name: str, value: Any) -> None:
        self._lines(name, [value])

    def _lines(self, name: str, values: Sequence[Any]) -> None:
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
        repeated: dict[str, Any] = {"equal_steps": tell, "constant": "yes", **alone}
        made.run("SFT, repeated", adherent=0.97, loss=2.9, bleed=0.3, **repeated)
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
            at = {"task": f"{amount // 100}rows"}
            same: dict[str, Any] = {"at": at, "task": amount, "seed": seed}
            made.run("TELL", adherent=tell, steps=amount // 500, **same)
            made.run("SFT", adherent=sft, general=0, steps=max(1, amount // 1600), **same)
    made.run("general only", adherent=0.03, task=0, general=10000, steps=7)
    plot = {"x": "task_tokens", "paper": "task_tokens"}
    made.index("made_curve", "Task tokens, TELL against SFT", [42, 43], **plot)
    return made
