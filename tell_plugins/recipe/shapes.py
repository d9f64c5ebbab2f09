"""Sizes of a model, from its config.json; of the recipes' models on a hub from a copy of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
        beside: parameters beside the decoder, which are loaded and not trained (a vision tower).
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
    beside: int = 0

    @property
    def embedding(self) -> int:
        """Parameters of one embedding matrix."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        linear = sum(i * o for layers in self.modules.values() for i, o in layers)
        block = linear + self.biases + 2 * self.hidden
        outside = self.embedding * (1 if self.tied else 2) + self.hidden
        return self.layers * block + outside + self.beside

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
# of models on a hub, by the last part of their id: what their config.json says. A model that is
# missing here trains as well; `check` then has no estimate until its folder is at hand
_CONFIGS: dict[str, dict[str, Any]] = {
    "llama-2-7b-chat-ms": {
        "name": "Llama-2-7b-chat",
        **{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008},
        **{"num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000},
        "max_position_embeddings": 4096,
    },
    "llama-3.2-3b-instruct": {
        **{"model_type": "llama", "hidden_size": 3072, "intermediate_size": 8192},
        **{"num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8},
        **{"vocab_size": 128256, "max_position_embeddings": 131072, "tie_word_embeddings": True},
    },
    "smollm2-360m-instruct": {
        **{"model_type": "llama", "hidden_size": 960, "intermediate_size": 2560},
        **{"num_hidden_layers": 32, "num_attention_heads": 15, "num_key_value_heads": 5},
        **{"vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True},
    },
    "gemma-7b-it": {
        **{"model_type": "gemma", "hidden_size": 3072, "intermediate_size": 24576},
        **{"num_hidden_layers": 28, "num_attention_heads": 16, "head_dim": 256},
        **{"vocab_size": 256000, "max_position_embeddings": 8192},
    },
    "gemma-3-4b-it": {
        "model_type": "gemma3",
        "text_config": {
            **{"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240},
            **{"num_hidden_layers": 34, "num_attention_heads": 8, "num_key_value_heads": 4},
            **{"head_dim": 256, "vocab_size": 262208, "max_position_embeddings": 131072},
        },
        "vision_config": {
            **{"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27},
        },
    },
    "qwen2.5-7b-instruct": {
        **{"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944},
        **{"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4},
        **{"vocab_size": 152064, "max_position_embeddings": 32768},
    },
    "qwen3-4b-instruct-2507": {
        **{"model_type": "qwen3", "hidden_size": 2560, "intermediate_size": 9728},
        **{"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8},
        **{"head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 262144},
        "tie_word_embeddings": True,
    },
}
_CONFIGS["llama-2-7b-chat-hf"] = _CONFIGS["llama-2-7b-chat-ms"]
_GATED_TYPES = ("llama", "gemma", "gemma3_text", "mistral", "qwen2", "qwen3", "smollm3")


def shape_of(model: str) -> Shape | None:
    """The sizes of `model`, a folder or a hub id; None for one that is not known here.

    Raises UserError for a folder whose config.json cannot be read.
    """
    folder = model_folder(model)
    if folder is not None and (folder / "config.json").is_file():
        return _from_config(folder / "config.json")
    name = model.rstrip("/").rpartition("/")[2]
    if name.lower() == _QWEN_7B.name.lower():
        return _QWEN_7B
    config = _CONFIGS.get(name.lower())
    return None if config is None else _shape(config.get("name", name), config)


def readable_shape(model: str) -> Shape | None:
    """The sizes of `model`, None also where they cannot be read: a rule of `check` says why."""
    try:
        return shape_of(model)
    except UserError:
        return None


def _from_config(path: Path) -> Shape | None:
    config = read_json(path, dict[str, Any], "get the model anew", foreign=True)
    return None if config is None else _shape(path.parent.name, config)


def _shape(name: str, config: dict[str, Any]) -> Shape | None:
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
        tied=config.get("tie_word_embeddings", config["model_type"].startswith("gemma")),
    )
