"""LoRA adapters of the tiny model without a training."""

import json
import struct
from pathlib import Path


def make_adapter(folder: Path, model: Path, *, seed: int | None, spec: str | None = None) -> Path:
    """Save a LoRA adapter: random B matrices from `seed`, zero ones (as before the first step) for
    None. `spec` is what its manifest says it was trained on.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(0)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    if seed is not None:
        torch.manual_seed(seed)
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
    adapted.save_pretrained(str(folder))
    if spec is not None:
        (folder / "manifest.json").write_text(json.dumps({"spec": spec}), encoding="utf-8")
    return folder


def saved_adapter(folder: Path, raw: bytes, dtype: str = "F32") -> Path:
    """Write a LoRA adapter of two modules as safetensors lays it out: an A matrix of ones, and B
    matrices of the given bytes and of zeros. Without torch, and in types that numpy does not know.
    """
    data = {"q.lora_A": b"\x01" * len(raw), "q.lora_B": raw, "v.lora_B": bytes(len(raw))}
    size = len(raw) // {"F32": 4, "BF16": 2}[dtype]
    header = {
        f"{name}.weight": {
            "dtype": dtype,
            "shape": [1, size],
            "data_offsets": [place * len(raw), (place + 1) * len(raw)],
        }
        for place, name in enumerate(data)
    }
    text = json.dumps(header).encode()
    folder.mkdir(parents=True, exist_ok=True)
    content = struct.pack("<Q", len(text)) + text + b"".join(data.values())
    (folder / "adapter_model.safetensors").write_bytes(content)
    (folder / "adapter_config.json").write_text("{}")
    return folder
