"""A recipe's model: where it is, its sizes by its config.json, how many tokens rows are to it, and
the memory that it needs.

Memory is an estimate by formula, not measured. Its coefficients follow from what autograd keeps for
LoRA training of a frozen decoder; `tests/test_schedule.py` holds them against real tensors.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tell_plugins.bridge.protocol import system_text
from tell_plugins.core import paths
from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.core.mixture import Mixture
from tell_plugins.core.sources import lengths_of
from tell_plugins.core.spec import LOSS_TYPE
from tell_plugins.core.state_files import cached_json
from tell_plugins.core.tokens import TokenCounter
from tell_plugins.recipe.recipes import TRUE, Recipe

GIB = 2**30
_PATIENCE = 6.0  # seconds to wait for a hub's first answer


# --- where it is


def model_folder(model: str) -> Path | None:
    """The folder that `model` names (`swift sft` runs in the project's root), if there is one."""
    try:
        places = (paths.PROJECT / paths.expanded(model), paths.user_path(model))
    except UserError:  # the home of nobody
        return None
    return next((path for path in places if path.is_dir()), None)


def may_be_hub_id(model: str) -> bool:
    """Whether `model` can be a hub's `owner/name`."""
    return not model.startswith((".", "/", "~", "models/")) and model.count("/") == 1


def is_cached(model: str, hugging_face: bool) -> bool:
    """Whether the hub's client holds a copy of `model` (its config.json at least)."""
    owner, _, name = model.partition("/")
    environ = os.environ.get
    if hugging_face:
        home = environ("HF_HUB_CACHE") or f"{environ('HF_HOME') or '~/.cache/huggingface'}/hub"
        places = [f"models--{owner}--{name}/snapshots/*"]
    else:
        home = environ("MODELSCOPE_CACHE") or "~/.cache/modelscope"
        masked = name.replace(".", "___")  # as ModelScope's client writes it
        kept = (f"{owner}/{masked}", f"{owner}/{name}", f"{owner}--{name}/snapshots/*")
        folders = ("", "models/", "hub/", "hub/models/")
        places = [folder + place for folder in folders for place in kept]
    return any(any(paths.expanded(home).glob(f"{place}/config.json")) for place in places)


def need_model(model: str, flag: bool) -> None:
    """See to it that a hub's model can be had, before anything slow begins.

    ms-swift asks ModelScope, and Hugging Face where `flag`, its `use_hf`, or `$USE_HF` says so.
    Raises MachineError when the model is not on this machine and the hub cannot be reached.
    """
    import requests

    hugging_face = flag or os.environ.get("USE_HF", "").lower() in TRUE
    if is_cached(model, hugging_face):
        return
    name, other = "ModelScope", ", or try Hugging Face with `--use_hf true`"
    address = "https://" + (os.environ.get("MODELSCOPE_DOMAIN") or "www.modelscope.cn")
    if hugging_face:
        name, other = "Hugging Face", ""
        address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:  # proxies are used as set
        requests.head(address, timeout=_PATIENCE, allow_redirects=False)
    except requests.RequestException as error:
        raise MachineError(
            f"model '{model}' is not on this machine, and {name} cannot give it: no answer from "
            f"{address} ({type(error).__name__})",
            remedy="fetch it where there is a network and name its folder: --model FOLDER" + other,
        ) from None


# --- its sizes


@dataclass(frozen=True)
class ModelShape:
    """A decoder with gated feed-forward layers (Llama, Gemma, Mistral, Qwen)."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    attention: int  # numbers a token in query, key, value and output of one block
    vocab: int
    positions: int  # the context the model was trained for
    modules: dict[str, tuple[int, int]]  # the linear layers of one block: inputs, outputs
    biases: int  # bias parameters of one block
    tied: bool  # whether input and output embeddings are one matrix
    skips_logits: bool  # whether its forward pass can leave out logits that carry no label
    quantised: bool  # whether its weights are stored in fewer bits (GPTQ, AWQ and the like)
    beside: int  # parameters that are loaded and not trained (a vision tower)

    @property
    def embedding(self) -> int:
        """Parameters of one embedding matrix."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        linear = sum(inputs * outputs for inputs, outputs in self.modules.values())
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


@cache
def hub_configs() -> dict[str, dict[str, Any]]:
    """Of models on a hub, by the last part of their id in lower case: what their config.json says.

    A model that is missing there trains as well; `check` has no estimate until its folder is here.
    """
    text = Path(__file__).with_name("models.json").read_text(encoding="utf-8")
    configs: dict[str, dict[str, Any]] = json.loads(text)
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
    try:
        return None if config is None else _shape(config.get("name", name), config)
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError):  # another layout
        return None


_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z])", re.IGNORECASE)


def parameters_of(model: str) -> float | None:
    """How many parameters a model has, by its config.json or by the size in its name."""
    shape = shape_of(model)
    if shape is not None:
        return float(shape.parameters)
    found = _SIZE.search(re.sub("[-_]", " ", model.rstrip("/").rpartition("/")[2]))
    return float(found[1]) * (1e9 if found[2] in "bB" else 1e6) if found else None


_GATED_TYPES = ("llama", "gemma", "gemma3_text", "mistral", "qwen", "qwen2", "qwen3", "smollm3")


def _shape(name: str, whole: dict[str, Any]) -> ModelShape | None:
    """The sizes by a config.json; of a model that also sees pictures, those of its decoder."""
    config = whole.get("text_config") or whole
    kind = config.get("model_type")
    if kind not in _GATED_TYPES:
        return None
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    query, key = heads * head_dim, (config.get("num_key_value_heads") or heads) * head_dim
    # Qwen's config counts the two gates together
    inner = config["intermediate_size"] // (2 if kind == "qwen" else 1)
    biased = config.get("attention_bias", kind in ("qwen", "qwen2"))
    vision = whole.get("vision_config")
    return ModelShape(
        name=name,
        layers=config["num_hidden_layers"],
        hidden=hidden,
        intermediate=inner,
        attention=2 * (query + key),
        vocab=config["vocab_size"],
        positions=config.get("max_position_embeddings") or config.get("seq_length", 0),
        modules=_linear(kind, hidden, query, key, inner),
        biases=query + 2 * key if biased else 0,
        # a config.json leaves out what equals its class's default; Gemma's is tied
        tied=config.get("tie_word_embeddings", kind.startswith("gemma")),
        skips_logits=kind != "qwen",
        quantised="quantization_config" in whole,
        beside=_vision_parameters(vision) if vision else 0,
    )


def _linear(kind: str, hidden: int, query: int, key: int, inner: int) -> dict[str, tuple[int, int]]:
    if kind == "qwen":
        attention = {"c_attn": (hidden, 3 * hidden), "c_proj": (hidden, hidden)}
        return attention | {
            "mlp.c_proj": (inner, hidden),
            **dict.fromkeys(("w1", "w2"), (hidden, inner)),
        }
    return {
        "q_proj": (hidden, query),
        **dict.fromkeys(("k_proj", "v_proj"), (hidden, key)),
        "o_proj": (query, hidden),
        **dict.fromkeys(("gate_proj", "up_proj"), (hidden, inner)),
        "down_proj": (inner, hidden),
    }


def _vision_parameters(config: dict[str, Any]) -> int:
    """Those of a plain vision transformer: attention and one feed-forward layer each block."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    return int(config["num_hidden_layers"] * (4 * hidden**2 + 2 * hidden * inner))


# --- how many tokens rows are to it
#
# ms-swift encodes a row with the chat template around it, which is not counted here: a row that is
# next to the limit is a near miss.

_RESPONSE_END = 1  # the end-of-turn token carries a label too


@dataclass(frozen=True)
class Counted:
    """The rows of a mixture, counted by one tokenizer, with the recipe's system prompt."""

    tokenizer: str  # how it is called
    own: bool  # whether it is the model's own
    rows: npt.NDArray[np.int64]  # (n, 2) in training order: tokens, and those that carry a label

    @property
    def longest(self) -> int:
        return int(self.rows[:, 0].max())


def own_tokenizer(model: str) -> TokenCounter | None:
    """The tokenizer.json of a model that is a folder."""
    folder = model_folder(model)
    path = folder / "tokenizer.json" if folder else None
    return TokenCounter(path) if path is not None and path.is_file() else None


def max_length(recipe: Recipe) -> int | None:
    """The limit, which is the model's context when the recipe names none; None when unknown."""
    shape = shape_of(recipe.text("model"))
    return recipe.integer("max_length", shape.positions if shape else 0) or None


def count(mixture: Mixture, counter: TokenCounter, recipe: Recipe) -> Counted:
    """Count the used rows of `mixture`."""
    own = own_tokenizer(recipe.text("model"))
    system = int(counter.count([system_text(recipe.value("system")) or ""])[0])
    known = []
    for source in mixture.sources:
        lengths = np.zeros((len(source.rows), 2), np.int64)
        lengths[source.used] = lengths_of(source.rows, counter, source.used)
        known.append(lengths)
    query, response = mixture.of_entries(known).T
    rows = np.column_stack([system + query + response, response + _RESPONSE_END])
    return Counted(counter.name, own is not None and own.sha256 == counter.sha256, rows)


def rows_from(mixture: Mixture, counted: Counted, least: float) -> list[dict[int, int]]:
    """For each source its rows of more than `least` tokens, by position, and their tokens."""
    long = np.flatnonzero(counted.rows[:, 0] > least)
    found: list[dict[int, int]] = [{} for _ in mixture.sources]
    for entry, tokens in zip(long, counted.rows[long, 0].tolist(), strict=True):
        found[mixture.origin[entry]][int(mixture.row[entry])] = tokens
    return [dict(sorted(rows.items())) for rows in found]


# --- what it needs

_CUDA_CONTEXT = 0.8 * GIB  # context, cuBLAS workspace and fragmentation of one process
_LOSS_CHUNKS = 0.25 * GIB  # four pieces of 2^24 fp32 numbers, see bridge/loss.py
_WIDTH = {"bfloat16": 2, "float16": 2, "float32": 4}


def reported_flops(shape: ModelShape, tokens: float) -> float:
    """6 x parameters x tokens, input embedding left out: what the Trainer writes to TensorBoard,
    and so what Appendix A.1 quotes."""
    return 6.0 * (shape.parameters - shape.embedding) * tokens


def memory(
    shape: ModelShape, recipe: Recipe, lengths: npt.NDArray[np.int64], *, held: bool = False
) -> dict[str, float]:
    """Bytes of one process of a LoRA run at the row that needs most, by part.

    Args:
        lengths: (n, 2) tokens of each row, chat template included: all of them, and those that
            carry a label.
        held: whether general rows are held to the base model, whose logits are needed then.

    Raises UserError for settings that cannot be read.
    """
    dtype = recipe.text("torch_dtype", "bfloat16")
    lora_dtype = recipe.text("lora_dtype", "float32")  # peft keeps a bf16 model's in fp32
    width, lora_width = _WIDTH.get(dtype, 2), _WIDTH.get(lora_dtype, 4)
    targets, rank = recipe.names("target_modules"), recipe.integer("lora_rank", 8)
    batch = recipe.integer("per_device_train_batch_size", 1)
    by_row = recipe.text("loss_type") == LOSS_TYPE
    skips = recipe.value("use_logits_to_keep") is None or recipe.flag("use_logits_to_keep")

    block = block_bytes(shape, targets, width, lora_width if lora_dtype != dtype else 0)
    # the gradients that flow through the block whose backward pass is running
    flowing = (3 * shape.intermediate + 4 * shape.hidden) * width
    kept = shape.layers * block
    if recipe.flag("gradient_checkpointing"):  # a block's activations are computed again
        kept = shape.layers * shape.hidden * width + block
    tokens, labels = batch * lengths.astype(np.float64).T
    activations = tokens * (kept + flowing)
    logits = labels if skips and shape.skips_logits else tokens
    logits = logits * _logit_bytes(shape, width, by_row=by_row, held=held)
    worst = int(np.argmax(activations + logits))
    return {
        "weights": float(width * shape.parameters),
        # the parameters, their gradients, and the two moments of Adam
        "adapter with Adam": float(4 * lora_width * shape.lora_parameters(targets, rank)),
        "activations": float(activations[worst]),
        "logits": float(logits[worst]) + (_LOSS_CHUNKS if by_row else 0.0),
        "CUDA": 0.0 if recipe.flag("use_cpu") else _CUDA_CONTEXT,
    }


def _logit_bytes(shape: ModelShape, width: int, *, by_row: bool, held: bool) -> float:
    """Per position: the logits, and in fp32 their log-softmax and its gradient before and after.

    ms-swift computes the loss in fp32, so a bf16 model pays for a copy. The loss `tell` takes the
    logits in chunks: it needs them and their gradient as the model gives them, and the base
    model's where rows are held.
    """
    return shape.vocab * (width * (3 if held else 2) if by_row else width + 12)


def block_bytes(shape: ModelShape, targets: Sequence[str], width: int, cast: int) -> float:
    """Per token of one block: feed-forward, norms (fp32), attention, and the adapter's inputs,
    which are cast to another width where the adapter has another (0: it has not)."""
    adapted = sum(inputs for inputs, _ in shape.targets(targets))
    plain = 3 * shape.intermediate + shape.attention
    return plain * width + 2 * shape.hidden * 4 + adapted * (width + cast)
