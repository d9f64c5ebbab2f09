"""A good recipe on a toy task, to be changed in one thing each, and what `check` finds of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tell_plugins.recipe.check import inspect
from tell_plugins.recipe.checked import ERROR, Checked
from tell_plugins.recipe.recipes import load_recipe

BASE: dict[str, Any] = {
    "external_plugins": ["tell_plugins/register.py"],
    "model": "modelscope/Llama-2-7b-chat-ms",
    "torch_dtype": "bfloat16",
    "dataset": ["tell/toy:task=8rows/general=24rows"],
    "dataset_shuffle": False,
    "train_dataloader_shuffle": False,
    "strict": True,
    "max_length": 2048,
    "tuner_type": "lora",
    "lora_rank": 8,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "lora_dtype": "float32",
    "target_modules": ["q_proj", "k_proj", "v_proj"],
    "optim": "adamw_torch",
    "learning_rate": 1.0e-4,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.03,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 16,
    "weight_decay": 0.01,
    "adam_beta2": 0.999,
    "max_grad_norm": 0.5,
    "seed": 42,
    "output_dir": "output/toy",
}
HELD = "tell/toy:general=24rows/kl=1"
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path, make_card) -> Write:
    """Write a recipe like `BASE` on a toy task; `key=None` leaves a key out."""
    make_card(
        "toy",
        train=[{"q": f"task question {n}", "r": f"answer {n}"} for n in range(10)],
        test=[{"q": f"test question {n}", "r": "answer"} for n in range(4)],
    )
    make_card(
        "plain",
        train=[{"q": f"general {n}", "r": f"reply {n}"} for n in range(40)],
        kind="general",
    )

    def make(name: str = "toy", text: str = "", **changes: Any) -> Path:
        values = {k: v for k, v in (BASE | changes).items() if v is not None}
        path = tmp_path / f"{name}.yaml"
        path.write_text("# A toy.\n" + yaml.safe_dump(values, sort_keys=False) + text)
        return path

    return make


def look(path: Path, *flags: str) -> Checked:
    return inspect(load_recipe(path, flags))


def texts(checked: Checked, severity: str) -> list[str]:
    return [str(f) for f in checked.findings if f.severity == severity]


def errors(checked: Checked) -> list[str]:
    return texts(checked, ERROR)


@pytest.fixture
def words() -> Callable[[Path], Path]:
    """Write a tokenizer.json whose tokens are words, so that lengths are plain to see."""

    def make(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        golden = Path(__file__).parent / "golden" / "word_tokenizer.json"
        (folder / "tokenizer.json").write_bytes(golden.read_bytes())
        return folder

    return make


_YES_NO = [{"q": f"question {n}", "r": "right" if n % 2 else "wrong"} for n in range(12)]


@pytest.fixture
def situations(make_card, tmp_path) -> Path:
    """Cards and model folders that differ from a good recipe's in one thing each."""
    make_card("labels", train=_YES_NO, metric="label", anchor="Is it so? Answer with yes or no.")
    make_card("quoted", train=_YES_NO, metric="label", anchor='Say "right", "wrong" or "unsure".')
    make_card("part", train=_YES_NO, metric="label", anchor='Say "wrong" or "rig".')
    rows = [{"q": f"q {n}", "r": json.dumps({"label": "yes"})} for n in range(8)]
    make_card(
        "objects", train=rows, schema={"type": "object"}, anchor='"label" is "yes" or "maybe".'
    )
    configs: dict[str, dict[str, Any]] = {
        "llama": {"architectures": ["LlamaForCausalLM"]},  # four types of ms-swift have it
        "unknown": {"architectures": ["NobodysForCausalLM"]},
        "nameless": {},
        "qwen2": {"architectures": ["Qwen2ForCausalLM"]},
        "gemma": {"architectures": ["GemmaForCausalLM"]},  # one type alone
    }
    for name, config in configs.items():
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "config.json").write_text(json.dumps(config))
    return tmp_path / "models"
