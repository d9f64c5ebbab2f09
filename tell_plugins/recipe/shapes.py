"""Sizes of a model, from its config.json; of the recipes' models on a hub from a copy of it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from tell_plugins.core.state_files import cached_json
from tell_plugins.recipe.models import model_folder

_MODELS = Path(__file__).with_name("models.json")
_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class ModelShape:
    """A decoder with gated feed-forward layers (Llama, Gemma, Mistral, Qwen).

    Attributes:
        attention: numbers a token in query, key, value and output of one block.
        modules: the linear layers of one block, name -> (inputs, outputs).
        positions: the context the model was trained for.
        tied: whether input and output embeddings are one matrix.
        skips_logits: whether its forward pass can leave out logits that carry no label.
        quantised: whether its weights are stored in fewer bits (GPTQ, AWQ and the like).
        beside: parameters beside the decoder, which are loaded and not trained (a vision tower).
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    attention: int
    vocab: int
    positions: int
    modules: dict[str, tuple[int, int]]
    biases: int = 0  # bias parameters of one block
    tied: bool = False
    skips_logits: bool = True
    quantised: bool = False
    beside: int = 0

    @property
    def embedding(self) -> int:
        """Parameters of one embedding matrix."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        linear = sum(i * o for i, o in self.modules.values())
        block = linear + self.biases + 2 * self.hidden
        outside = self.embedding * (1 if self.tied else 2) + self.hidden
        return self.layers * block + outside + self.beside

    def targets(self, names: Sequence[str]) -> list[tuple[int, int]]:
        """(inputs, outputs) of each linear layer of a block that `target_modules` names."""
        every = "all-linear" in names
        layers = self.modules.items()
        return [size for name, size in layers if every or name.rpartition(".")[2] in names]

    def lora_parameters(self, names: Sequence[str], rank: int) -> int:
        return self.layers * sum(rank * (i + o) for i, o in self.targets(names))


def _layers(kind: str, hidden: int, query: int, key: int, inner: int) -> dict[str, tuple[int, int]]:
    if kind == "qwen":
        return {
            "c_attn": (hidden, 3 * hidden),
            "c_proj": (hidden, hidden),
            "mlp.c_proj": (inner, hidden),
            "w1": (hidden, inner),
            "w2": (hidden, inner),
        }
    return {
        "q_proj": (hidden, query),
        "k_proj": (hidden, key),
        "v_proj": (hidden, key),
        "o_proj": (query, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }


_GATED_TYPES = ("llama", "gemma", "gemma3_text", "mistral", "qwen", "qwen2", "qwen3", "smollm3")


@cache
def hub_configs() -> dict[str, dict[str, Any]]:
    """Of models on a hub, by the last part of their id in lower case: what their config.json says.

    A model that is missing there trains as well; `check` has no estimate until its folder is here.
    """
    configs: dict[str, dict[str, Any]] = json.loads(_MODELS.read_text(encoding="utf-8"))
    return configs


def shape_of(model: str) -> ModelShape | None:
    """The sizes of `model`, a folder or a hub id; None for one that is not known here.

    So is a folder whose config.json cannot be read: a rule of `check` says why.
    """
    folder = model_folder(model)
    if folder is not None and (folder / "config.json").is_file():
        name, config = folder.name, cached_json(folder / "config.json", dict, foreign=True)
    else:
        name = model.rstrip("/").rpartition("/")[2]
        config = hub_configs().get(name.lower())
    return None if config is None else _shape(config.get("name", name), config)


def parameters_of(model: str) -> float | None:
    """How many parameters a model has, by its config.json or by the size in its name."""
    shape = shape_of(model)
    if shape is not None:
        return float(shape.parameters)
    found = _SIZE.search(model.rstrip("/").rpartition("/")[2].replace("-", " ").replace("_", " "))
    return float(found[1]) * (1e9 if found[2] in "bB" else 1e6) if found else None


def _shape(name: str, config: dict[str, Any]) -> ModelShape | None:
    """The sizes by a config.json; of a model that also sees pictures, those of its decoder."""
    text = config.get("text_config") or config
    try:
        if text.get("model_type") not in _GATED_TYPES:
            return None
        shape = _gated_shape(name, text)
        beside = _vision_parameters(config.get("vision_config"))
        return replace(shape, beside=beside, quantised="quantization_config" in config)
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError):  # another layout
        return None


def _vision_parameters(config: dict[str, Any] | None) -> int:
    """Those of a plain vision transformer: attention and one feed-forward layer each block."""
    if config is None:
        return 0
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    return int(config["num_hidden_layers"] * (4 * hidden**2 + 2 * hidden * inner))


def _gated_shape(name: str, config: dict[str, Any]) -> ModelShape:
    hidden, heads, kind = (
        config[key] for key in ("hidden_size", "num_attention_heads", "model_type")
    )
    head_dim = config.get("head_dim") or hidden // heads
    query, key = heads * head_dim, (config.get("num_key_value_heads") or heads) * head_dim
    # Qwen's config counts the two gates together
    inner = config["intermediate_size"] // (2 if kind == "qwen" else 1)
    biased = config.get("attention_bias", kind in ("qwen", "qwen2"))
    return ModelShape(
        name=name,
        layers=config["num_hidden_layers"],
        hidden=hidden,
        intermediate=inner,
        attention=2 * (query + key),
        vocab=config["vocab_size"],
        positions=config.get("max_position_embeddings") or config.get("seq_length", 0),
        modules=_layers(kind, hidden, query, key, inner),
        biases=query + 2 * key if biased else 0,
        # a config.json leaves out what equals its class's default; Gemma's is tied
        tied=config.get("tie_word_embeddings", kind.startswith("gemma")),
        skips_logits=kind != "qwen",
    )
