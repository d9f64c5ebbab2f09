"""A two-layer random Llama with a tokenizer of its own: the real code paths in seconds."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import yaml

from tell_plugins.bridge import swift_cli
from tell_plugins.core.paths import PROJECT
from tests.conftest import printed_by
from tests.swift_keys_once import keys

_TEXT = (
    "The quick brown fox jumps over the lazy dog. Answer only with one JSON object with the keys "
    '"thought" and "label", which is "yes" or "no". {"thought": "late", "label": "yes"} '
    "system user assistant Translate the text. How many days has a week? Write a poem about rain.\n"
)
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TINY: dict[str, Any] = {  # a recipe but for its model, its data and its output
    "external_plugins": ["tell_plugins/register.py"],
    "model_type": "llama",
    "template": "chatml",
    "use_cpu": True,
    "torch_dtype": "float32",
    "check_model": False,
    "dataset_shuffle": False,
    "train_dataloader_shuffle": False,
    "strict": True,
    "max_length": 1024,
    "tuner_type": "lora",
    "lora_rank": 4,
    "target_modules": ["all-linear"],
    "learning_rate": 0.01,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 4,
    "gradient_checkpointing": False,
    "dataloader_num_workers": 0,
    "logging_steps": 1,
    "report_to": ["none"],
}
_START_SECONDS = 240
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # two threads only wait for each other on so small a model


def byte_tokenizer(text: str, size: int, special: Sequence[str], **roles: Any) -> Any:
    """A byte-level tokenizer of `size` tokens; `roles` say what the special ones are for."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def make_tiny_model(folder: Path, *, seed: int = 0, special: Sequence[str] = ()) -> Path:
    """Write a random Llama (2 layers, width 64) and a byte-level tokenizer to `folder`.

    `special` are further tokens that steer, of other families' templates.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    fast = byte_tokenizer(
        _TEXT,
        400 + len(special),
        [*_SPECIAL, *special],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", *special],
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16384,
        initializer_range=0.3,  # so that the next token depends on what stands before
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def tiny_engine(model: Path, adapters: Mapping[str, Path] | None = None, **values: Any) -> Any:
    """ms-swift's engine with the tiny model and LoRA adapters by their names."""
    from tell_plugins.bridge.engine import LocalEngine

    known = {"model": str(model), "model_type": "llama", "template": "chatml", "check_model": False}
    return LocalEngine(known | values, adapters or {}, batch_size=8)


WORDS = ["fox", "dog", "rain", "poem", "week", "lazy"]


def make_tiny_cards(make_card: Callable[..., Path]) -> None:
    """A JSON task `tiny_task` with an anchor file, and the general data `plain` it mixes with."""
    general = [{"q": f"Write about {a} and {b}.", "r": f"{a} {b}"} for a in WORDS for b in WORDS]
    make_card("plain", train=general, kind="general")

    def rows(question: str) -> list[dict[str, str]]:
        return [
            {"q": question.format(word), "r": json.dumps({"label": ["yes", "no"][place % 2]})}
            for place, word in enumerate(WORDS)
        ]

    schema = {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": ["yes", "no"]}},
        "required": ["label"],
        "additionalProperties": False,
    }
    make_card(
        "tiny_task",
        train=rows("The {} jumps over the dog."),
        test=rows("Is the {} over the dog?"),
        anchor="Answer only with one JSON object.",
        schema=schema,
        label="label",
    )


def tiny_recipe(path: Path, model: Path, dataset: str, **values: Any) -> Path:
    """Write a recipe that trains the tiny model on a CPU within seconds."""
    own = {"model": str(model), "dataset": [dataset], "add_version": False}
    own["output_dir"] = str(path.parent / "run")
    path.write_text(yaml.safe_dump(TINY | own | values, sort_keys=False), encoding="utf-8")
    return path


def sft(recipe: Path) -> list[str]:
    """The arguments of `swift` that train a recipe: 4.0 takes it as --config, later ones first."""
    return ["sft", *([] if keys().takes_yaml_first else ["--config"]), str(recipe)]


def run_swift(*arguments: str, env: Mapping[str, str] | None = None) -> str:
    """Run `swift` to its end in the project's folder and return what it printed."""
    env = {**os.environ, **_ONE_THREAD, **(env or {})}
    return printed_by(*swift_cli.command(*arguments), env=env)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def deployed(log: Path, *arguments: str, **env: str) -> Iterator[str]:
    """`swift deploy` with these arguments on a free port; gives the base URL of its API.

    It is called in the log's folder, as users call it, not in the project's.
    """
    port = free_port()
    address = ("--host", "127.0.0.1", "--port", str(port))
    command = swift_cli.command("deploy", *address, "--verbose", "false")
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, *arguments],
            env={**os.environ, **_ONE_THREAD, "PYTHONPATH": str(PROJECT), **env},
            cwd=log.parent,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # `swift` starts a child of its own
        )
        try:
            url = f"http://127.0.0.1:{port}/v1"
            _wait(url, process, log)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=30)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            if requests.get(f"{url}/models", timeout=5).ok:
                return
        except requests.RequestException:
            time.sleep(0.5)
    raise AssertionError(f"no server after {_START_SECONDS} s:\n{log.read_text()[-4000:]}")
