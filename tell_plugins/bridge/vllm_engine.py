"""ms-swift's vLLM engine, with one load of the base model for several adapters.

Written against ms-swift 4.0.4 and 4.6; a test holds its calls against their signatures, but it was
never run: vLLM needs a GPU.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tell_plugins.bridge.engine import SwiftEngine, as_reply, model_arguments, requests_for
from tell_plugins.bridge.protocol import Decoding, History, Reply

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM reserves room for
_MEMORY = 0.9  # share of the GPU's memory, vLLM's own default


class VllmEngine(SwiftEngine):
    """Answers prompts with vLLM on this machine.

    Args:
        values: a recipe's keys.
        adapters: name -> folder of a LoRA adapter; all share the base model.
        batch_size: prompts that are answered together.
    """

    mode = "vllm"

    def __init__(
        self, values: Mapping[str, Any], adapters: Mapping[str, Path], *, batch_size: int
    ) -> None:
        from swift.infer_engine import AdapterRequest
        from swift.infer_engine import VllmEngine as SwiftVllmEngine

        args = model_arguments(values)
        engine = SwiftVllmEngine(
            args.model,
            template=args.get_template(),
            torch_dtype=args.torch_dtype,
            model_type=args.model_type,
            use_hf=args.use_hf,
            revision=args.model_revision,
            gpu_memory_utilization=_MEMORY,
            max_model_len=args.max_model_len,
            max_num_seqs=batch_size,
            enable_lora=bool(adapters),
            max_loras=max(1, len(adapters)),
            max_lora_rank=max(map(lora_rank, adapters.values()), default=_RANKS[0]),
        )
        self._requests = {
            name: AdapterRequest(name, str(folder)) for name, folder in adapters.items()
        }
        self._active: str | None = None
        self._describe(values, args, engine)

    @contextlib.contextmanager
    def adapter(self, name: str | None) -> Iterator[None]:
        """Use one adapter inside the block, or the base model for None."""
        if name is not None and name not in self._requests:
            raise ValueError(f"adapter {name!r} is not loaded")
        before, self._active = self._active, name
        try:
            yield
        finally:
            self._active = before

    def answer(
        self,
        prompts: Sequence[str],
        decoding: Decoding,
        *,
        max_new_tokens: int,
        seed: int,
        history: History = (),
    ) -> list[Reply]:
        """One reply a prompt, in order."""
        asked = requests_for(prompts, history, decoding, max_new_tokens, seed=seed % 2**31)
        adapter = None if self._active is None else self._requests[self._active]
        responses = self._engine.infer(*asked, use_tqdm=False, adapter_request=adapter)
        return [as_reply(response) for response in responses]


def lora_rank(adapter: Path) -> int:
    """The smallest rank that vLLM can reserve for this adapter."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    return next((known for known in _RANKS if known >= rank), rank)
