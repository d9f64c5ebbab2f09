"""Sizes of a model, from its config.json or from a small table of the paper's models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tell_plugins.core.errors import UserError
from tell_plugins.core.files import read_json
from tell_plugins.recipe.models import model_folder


@dataclass(frozen=True)
class Shape:
    """A decoder with gated feed-forward layers (Llama, Gemma, Mistral, Qwen).

    Attributes:
        modules: the linear layers of one block, name -> (inputs, outputs); a name may stand for
            several layers (`c_proj` of Qwen-7B-Chat).
        positions: the context the model was trained for.
        tied: whether input and output embeddings are one matrix.
        skips_logits: whether its forward pass can leave out logits that carry no label.
        quantised: whether its weights are stored in fewer bits (GPTQ, AWQ and the like).
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    positions: int
    modules: dict[str, tuple[tuple[int, int], ...]]
    biases: int = 0  # bias parameters of one block
    tied: bool = False
    skips_logits: bool = True
    quantised: bool = False

    @property
    def embedding(self) -> int:
        """Parameters of one embedding matrix."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        linear = sum(i * o for layers in self.modules.values() for i, o in layers)
        block = linear + self.biases + 2 * self.hidden
        outside = self.embedding * (1 if self.tied else 2) + self.hidden
        return self.layers * block + outside

    def targets(self, names: list[str]) -> list[tuple[int, int]]:
        """(inputs, outputs) of each linear layer of a block that `target_modules` names."""
        wanted = self.modules if "all-linear" in names else names
        return [size for name in wanted for size in self.modules.get(name, ())]

    def lora_parameters(self, names: list[str], rank: int) -> int:
        return self.layers * sum(rank * (i + o) for i, o in self.targets(names))


def _gated(hidden: int, query: int, key: int, inner: int) -> dict[str, tuple[tuple[int, int], ...]]:
    return {
        "q_proj": ((hidden, query),),
        "k_proj": ((hidden, key),),
        "v_proj": ((hidden, key),),
        "o_proj": ((query, hidden),),
        "gate_proj": ((hidden, inner),),
        "up_proj": ((hidden, inner),),
        "down_proj": ((inner, hidden),),
    }


_QWEN_7B = Shape(
    name="Qwen-7B-Chat",
    layers=32,
    hidden=4096,
    intermediate=11008,  # its config says 22016, the two gates together
    heads=32,
    kv_heads=32,
    head_dim=128,
    vocab=151936,
    positions=8192,
    modules={
        "c_attn": ((4096, 3 * 4096),),
        "c_proj": ((4096, 4096), (11008, 4096)),
        "w1": ((4096, 11008),),
        "w2": ((4096, 11008),),
    },
    biases=3 * 4096,
    skips_logits=False,
)
_GATED_TYPES = ("llama", "gemma", "mistral", "qwen2", "qwen3")


def shape_of(model: str) -> Shape | None:
    """The sizes of `model`, a folder or a hub id; None for one that is not known here.

    Raises UserError for a folder whose config.json cannot be read.
    """
    folder = model_folder(model)
    if folder is not None and (folder / "config.json").is_file():
        return _from_config(folder / "config.json")
    return _KNOWN.get(model.rstrip("/").rpartition("/")[2].lower())


def readable_shape(model: str) -> Shape | None:
    """The sizes of `model`, None also where they cannot be read: a rule of `check` says why."""
    try:
        return shape_of(model)
    except UserError:
        return None


def _from_config(path: Path) -> Shape | None:
    config = read_json(path, dict[str, Any], "get the model anew", foreign=True)
    if config is None or config.get("model_type") not in _GATED_TYPES:
        return None
    try:
        return _gated_shape(path.parent.name, config)
    except (KeyError, TypeError, ValueError, ArithmeticError):  # another layout
        return None


def _gated_shape(name: str, config: dict[str, Any]) -> Shape:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    inner = config["intermediate_size"]
    query, key = heads * head_dim, kv_heads * head_dim
    biased = config.get("attention_bias", config["model_type"] == "qwen2")
    return Shape(
        name=name,
        layers=config["num_hidden_layers"],
        hidden=hidden,
        intermediate=inner,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=config["vocab_size"],
        positions=config.get("max_position_embeddings", 0),
        modules=_gated(hidden, query, key, inner),
        biases=query + 2 * key if biased else 0,
        # a config.json leaves out what equals its class's default; Gemma's is tied
        tied=config.get("tie_word_embeddings", config["model_type"] == "gemma"),
        quantised="quantization_config" in config,
    )


_LLAMA_2_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
_GEMMA_7B = {
    "model_type": "gemma",
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "head_dim": 256,
    "vocab_size": 256000,
    "max_position_embeddings": 8192,
}
_KNOWN = {
    "qwen-7b-chat": _QWEN_7B,
    "llama-2-7b-chat-ms": _gated_shape("Llama-2-7b-chat", _LLAMA_2_7B),
    "llama-2-7b-chat-hf": _gated_shape("Llama-2-7b-chat", _LLAMA_2_7B),
    "gemma-7b-it": _gated_shape("gemma-7b-it", _GEMMA_7B),
}
