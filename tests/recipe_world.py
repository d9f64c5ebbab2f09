"""What the recipes name, made small: random models of each architecture, and files of each card.

The models lie in folders named like the hubs' (`Llama-2-7b-chat-ms`), so that ms-swift chooses
the very template and loader that it chooses for the real ones.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tell_plugins.core.cards import Card, card_names, load_card
from tell_plugins.core.mixture import GENERAL
from tell_plugins.core.spec import NONE, Amount, Spec
from tell_plugins.recipe.models import shape_of
from tell_plugins.recipe.recipes import Recipe
from tests.conftest import PROJECT, in_preloaded_process, write_rows
from tests.swift_keys_once import keys
from tests.tiny import byte_tokenizer

RECIPES = sorted((PROJECT / "recipes").glob("*.yaml"))
PAPER = [path for path in RECIPES if path.stem.partition("_")[0] in ("qwen", "llama2", "gemma")]
EMBEDDED = [path for path in RECIPES if path.stem.startswith("smollm2_")]
TODAYS = sorted({*RECIPES} - {*PAPER, *EMBEDDED})


_PADDING, _END = "<pad>", "</s>"


def architecture(path: Path) -> str:
    """The part of a recipe's name that says its model."""
    return path.stem.partition("_")[0]


def make_model(recipe: Recipe, root: Path) -> Path:
    """Write a random model of a recipe's architecture, two layers deep, with its own tokenizer.

    ms-swift's table says which architecture and chat template the model has.
    """
    import torch

    folder = root / str(recipe.values["model"]).rpartition("/")[2]
    kind, template = keys().models.known(str(recipe.values["model"])) or ("", "")
    kind = str(recipe.values.get("model_type", kind))
    tokenizer = _make_tokenizer(str(recipe.values.get("template", template)), folder)
    shape = shape_of(str(recipe.values["model"]))
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": min(8192, shape.positions if shape else 8192),
    }
    torch.manual_seed(0)
    name = keys().models.types[kind]["architectures"][0]
    if name == "QWenLMHeadModel":  # its code lies beside its weights
        _make_qwen(folder, sizes)
    else:
        _make_known(name, tokenizer, folder, sizes)
    return folder


def _make_known(name: str, tokenizer: Any, folder: Path, sizes: dict[str, Any]) -> None:
    """A model whose code is in transformers; one that also sees pictures with its processor."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    names = {
        **auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        **auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    }
    config_class = transformers.CONFIG_MAPPING[
        next(kind for kind, known in names.items() if known == name)
    ]
    sizes = {**sizes, "head_dim": 16, "pad_token_id": tokenizer.pad_token_id}
    if "vision_config" in getattr(config_class, "sub_configs", {}):
        config = config_class(text_config=sizes, vision_config=_VISION, mm_tokens_per_image=4)
        config.image_token_index = tokenizer.convert_tokens_to_ids(_PICTURE["image_token"])
        _save_processor(tokenizer, folder)
    else:
        config = config_class(**sizes)
    getattr(transformers, name)(config).bfloat16().save_pretrained(folder)


_PICTURE = {"image_token": "<image>", "boi_token": "<begin_image>", "eoi_token": "<end_image>"}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def _save_processor(tokenizer: Any, folder: Path) -> None:
    """As of Gemma 3, whose processor ms-swift loads though no row here has a picture."""
    from transformers import Gemma3ImageProcessor, Gemma3Processor

    pictures = Gemma3ImageProcessor(size={"height": 28, "width": 28})
    Gemma3Processor(pictures, tokenizer, image_seq_length=4).save_pretrained(folder)


def _make_tokenizer(template: str, folder: Path) -> Any:
    """A byte-level tokenizer that has the control tokens of an ms-swift template."""
    from swift.template import TEMPLATE_MAPPING

    meta = TEMPLATE_MAPPING[template]
    written = json.dumps([meta.prefix, meta.prompt, meta.chat_sep, meta.suffix, meta.stop_words])
    control = sorted(set(re.findall(r"</?[a-z]+>|<\|?\w+\|?>", written)))
    begin = next((token for token in control if "begin_of" in token or token in "<bos><s>"), None)
    ends = [token for token in control if token in json.dumps(meta.suffix)]
    special = sorted({*control, _PADDING, _END, *_PICTURE.values()})
    fast = byte_tokenizer(
        "the question and the answer of the row " * 3,
        500,
        special,
        eos_token=ends[0] if ends else _END,
        bos_token=begin,
        pad_token=_PADDING,
        additional_special_tokens=special,
        extra_special_tokens=_PICTURE,
    )
    fast.save_pretrained(folder)
    return fast


_QWEN_CONFIG = """\
from transformers import PretrainedConfig


class QWenConfig(PretrainedConfig):
    model_type = "qwen"
    keys_to_ignore_at_inference = ["past_key_values"]
"""
_QWEN_MODEL = '''\
"""A stand-in for Qwen-7B-Chat's remote code: the names of its class and its adapted layer."""

from torch import nn
from transformers import PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_qwen import QWenConfig


class QWenBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.c_attn = nn.Linear(width, 3 * width)

    def forward(self, x):
        return x + self.c_attn(x)[..., : x.shape[-1]]


class QWenModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        blocks = (QWenBlock(config.hidden_size) for _ in range(config.num_hidden_layers))
        self.h = nn.ModuleList(blocks)
        self.gradient_checkpointing = False

    def forward(self, input_ids):
        x = self.wte(input_ids)
        for block in self.h:
            if self.gradient_checkpointing and self.training:
                x = self._gradient_checkpointing_func(block.__call__, x)
            else:
                x = block(x)
        return x


class QWenLMHeadModel(PreTrainedModel, GenerationMixin):
    config_class = QWenConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True

    def __init__(self, config, **kwargs):
        super().__init__(config)
        self.transformer = QWenModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.transformer.wte

    def forward(self, input_ids=None, attention_mask=None, labels=None, past_key_values=None, **_):
        assert past_key_values is None or isinstance(past_key_values, tuple), past_key_values
        return CausalLMOutputWithPast(logits=self.lm_head(self.transformer(input_ids)))
'''


def _make_qwen(folder: Path, sizes: dict[str, Any]) -> None:
    """Weights are saved by the stand-in itself, so that loading it is a real loading."""
    (folder / "configuration_qwen.py").write_text(_QWEN_CONFIG)
    (folder / "modeling_qwen.py").write_text(_QWEN_MODEL)
    config = {
        "architectures": ["QWenLMHeadModel"],
        "auto_map": {
            "AutoConfig": "configuration_qwen.QWenConfig",
            "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
        },
        "model_type": "qwen",
        "tie_word_embeddings": False,
        **sizes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    in_preloaded_process(_save_qwen, folder)


def _save_qwen(folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    torch.save(model.bfloat16().state_dict(), folder / "pytorch_model.bin")


_ANCHOR = "Read the text below with care. Then answer as asked.\n\n"


def small(card: Card, split: str) -> tuple[int, int]:
    """How many rows a split has here, and how many letters more than a few words."""
    return (60 if card.kind == GENERAL else 12), 0


def make_data(home: Path, size: Callable[[Card, str], tuple[int, int]] = small) -> None:
    """A file for every split of every card that keeps no rows in its own folder."""
    for name in card_names():
        card = load_card(name)
        for split, place in card.splits.items():
            if (card.folder / place.file).is_file():
                continue
            count, letters = size(card, split)
            columns = card.columns_of(split)
            label = "no" if card.metric == "json" else "#### 7"
            front = _ANCHOR if card.inline_anchor else ""
            rows = [
                {
                    **dict.fromkeys(columns.query, ""),
                    columns.query[0]: f"{front}{split} {number} of {name} " + "a" * letters,
                    columns.response: f"answer {number}" if split == "train" else label,
                }
                for number in range(count)
            ]
            file = write_rows(home / name / place.file, rows)
            if file.suffix == ".json":
                file.write_text(json.dumps(rows))


def scaled(spec: Spec) -> Spec:
    """The same mixture with amounts that the small files hold."""
    if spec.task == NONE:
        return spec.with_values(general=Amount("rows", 24))
    task = spec.task if spec.task.unit == "all" else Amount("rows", 8)
    general = spec.general
    if general is None or general.number > 0:
        general = Amount("x", 2)
    return spec.with_values(task=task, general=general)


def small_copy(recipe: Recipe, model: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a recipe as YAML with its model, its amounts and its output folder made small."""
    values = {
        **recipe.values,
        "model": str(model),
        "check_model": False,
        "use_cpu": True,
        "dataset": [str(scaled(recipe.spec))],
        "output_dir": str(folder / "out" / recipe.name),
        "dataloader_num_workers": 0,
        "logging_steps": 1,
        **changes,
    }
    path = folder / f"{recipe.name}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def environment(root: Path, model: Path | None = None) -> dict[str, str]:
    """The environment of a run that sees only what lies under `root`."""
    values = {
        "TELL_CACHE": str(root / "cache"),
        "TELL_DATA_HOME": str(root / "data"),
        "TELL_CARDS": str(root / "cards"),
        "OMP_NUM_THREADS": "1",
        "LOG_LEVEL": "INFO",  # the engine, imported by another test, asks for less
        "PYTHONPATH": str(PROJECT),
    }
    if model is not None:
        values["TELL_TOKENIZER"] = str(model)
    return {**os.environ, **values}


def only_run(output: Path) -> Path:
    """The one version folder of a run's output."""
    runs = sorted(output.glob("v*-*"))
    assert len(runs) == 1, runs
    return runs[0]


def logged(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log that stand for optimizer steps."""
    lines = [json.loads(line) for line in (run / "logging.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]
