"""LoRA adapters of the tiny model without a training, and the gap between two next tokens."""

import json
import struct
from pathlib import Path
from typing import Any


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


def gap_where_they_part(engine: Any, prompt: str, one: str, other: str, limit: int) -> float:
    """How far apart, in logits, the two likeliest tokens are where two greedy answers part.

    `one` must be what the bare model says to the prompt, step by step; else this is an
    AssertionError. So it is when `other` does not go on with the runner-up: then it parted for
    another reason than a tie.
    """
    import torch

    template = engine.template
    template.set_mode("transformers")
    ids = template.encode({"messages": [{"role": "user", "content": prompt}]})["input_ids"]
    said: list[int] = []

    def text(*more: int) -> str:
        decoded: str = template.tokenizer.decode([*said, *more], skip_special_tokens=True)
        return decoded.rstrip("\ufffd")  # half a character

    with torch.inference_mode():
        cache, step = None, torch.tensor([ids])
        while len(said) < limit:
            out = engine.model(input_ids=step, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            (first, second), (best, runner_up) = out.logits[0, -1].float().topk(2)
            assert one.startswith(text(int(best))), "the first text is not the model's own"
            if (
                not other.startswith(text(int(best)))
                or int(best) in template.tokenizer.all_special_ids
            ):
                assert other.startswith(text(int(runner_up))), "no tie: the runner-up was not said"
                return float(first - second)
            said.append(int(best))
            step = best[None, None]
    raise AssertionError("the two texts do not part")
