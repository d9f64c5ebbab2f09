"""ms-swift's own inference engines, with one load of the base model for several adapters."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("LOG_LEVEL", "WARNING")  # ms-swift logs every argument else

import torch
from swift.arguments import BaseArguments
from swift.infer_engine import InferRequest, RequestConfig, TransformersEngine
from swift.tuners import Swift

from tell_plugins.bridge import patches
from tell_plugins.bridge.embedded_model import prepare_if_embedded
from tell_plugins.bridge.packing import Line, Row, fits, line_of
from tell_plugins.bridge.protocol import MODEL_KEYS, Ask, History, Reply, conversation
from tell_plugins.core import paths
from tell_plugins.core.errors import UserError

_LINE = 1024  # tokens of rows that are read in one forward pass
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM reserves room for
_DECODED = ("temperature", "top_k", "top_p", "repetition_penalty")
_MEMORY = 0.9  # share of the GPU's memory, vLLM's own default


def model_arguments(values: Mapping[str, Any]) -> BaseArguments:
    """What of a recipe says which model answers; on a CPU in bfloat16 only where it computes so.

    Other CPUs take it for float32 and back at every step, which is slower than float32.
    The embedded model is fetched where it is not there yet.
    """
    prepare_if_embedded(str(values.get("model") or ""))
    known = {field.name for field in dataclasses.fields(BaseArguments)}
    chosen = {key: values[key] for key in MODEL_KEYS if key in values and key in known}
    if not torch.cuda.is_available():
        if chosen.get("torch_dtype") != "bfloat16" or not _computes_in_bfloat16():
            chosen["torch_dtype"] = "float32"
        chosen["device_map"] = "cpu"
    return BaseArguments(**chosen, load_args=False)


def _computes_in_bfloat16() -> bool:
    """Whether this CPU has instructions for it (AVX512_BF16, AMX)."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def _peft_name(name: str) -> str:
    """A name that torch takes for a module: an adapter's folder may be called `half` or `train`."""
    return f"adapter_{name}"


def _with_adapter(model: Any, name: str, folder: Path) -> Any:
    with _fitting(paths.shown(folder), "--model DIR with the model that it was trained on"):
        return Swift.from_pretrained(model, str(folder), name)


def merge(adapter: Path, folder: Path) -> None:
    """Write the model that an adapter was trained on, with its weights merged in, to `folder`.

    ms-swift's own merge, by the adapter's `args.json`, which names the model and the type of its
    numbers. Raises UserError where the adapter does not fit that model.
    """
    from swift.arguments import ExportArguments
    from swift.pipelines.export.merge_lora import merge_lora

    given = {"adapters": [str(adapter)], "output_dir": str(folder)}
    with _fitting("args.json, key 'model'", "restore the model that it was trained on"):
        args = ExportArguments(merge_lora=True, exist_ok=True, **given)  # type: ignore[arg-type]
        merge_lora(args, replace_if_exists=True)


@contextlib.contextmanager
def _fitting(where: str, remedy: str) -> Iterator[None]:
    """Raise UserError where an adapter has other shapes than the model, or other modules."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        found = f"the adapter does not fit the model: {' '.join(str(error).split())[:300]}"
        raise UserError(found, where=where, remedy=remedy) from None


class SwiftEngine:
    """What ms-swift's engines on this machine have in common.

    Attributes:
        template: ms-swift's, which encodes prompts for `mode`.
        context: tokens of prompt and answer together, None when not known.
    """

    mode: str

    def _describe(self, values: Mapping[str, Any], args: BaseArguments, engine: Any) -> None:
        """Take over what ms-swift's `engine` is."""
        self._engine = engine
        kind = type(engine).__name__.removesuffix("Engine").lower()
        self.name = f"{kind} {args.torch_dtype}".replace("torch.", "")
        self.model_name = str(values.get("model"))
        self.model_dir = args.model_dir
        self.context = int(engine.max_model_len or 0) or None
        self.template = engine.template
        self.template.max_length = None  # ms-swift raises beyond it; `context` says it in time

    def prompt_tokens(self, prompts: Sequence[str], history: History = ()) -> list[int]:
        """The number of tokens of each prompt, with its history, as the template encodes it."""
        return [len(self.prompt_ids(prompt, history)) for prompt in prompts]

    def prompt_ids(self, prompt: str, history: History = ()) -> list[int]:
        """The token ids of a prompt, from which an answer begins."""
        self.template.set_mode(self.mode)
        encoded = self.template.encode({"messages": conversation(prompt, history)})
        return list(encoded["input_ids"])

    def _answers(
        self, prompts: Sequence[str], ask: Ask, seed: int | None, **more: Any
    ) -> list[Reply]:
        """One reply a prompt, in order, by ms-swift's engine; `more` is for its `infer`."""
        decoding = {key: getattr(ask.decoding, key) for key in _DECODED}
        config = RequestConfig(max_tokens=ask.max_new_tokens, seed=seed, **decoding)
        asked = [InferRequest(messages=conversation(prompt, ask.history)) for prompt in prompts]
        replies = []
        for response in self._engine.infer(asked, config, use_tqdm=False, **more):
            choice, tokens = response.choices[0], response.usage.completion_tokens
            replies.append(Reply(choice.message.content, choice.finish_reason or "", tokens))
        return replies


class LocalEngine(SwiftEngine):
    """Answers prompts with a model on this machine.

    Args:
        values: a recipe's keys.
        adapters: name -> folder of a LoRA adapter; all share the base model.
        batch_size: prompts that are answered together.
    """

    mode = "transformers"

    def __init__(
        self, values: Mapping[str, Any], adapters: Mapping[str, Path], *, batch_size: int
    ) -> None:
        args = model_arguments(values)
        patches.share_heads()
        self.model, processor = args.get_model_processor()
        patches.pack_before_head(self.model)
        template = args.get_template(processor)
        for name, folder in adapters.items():
            self.model = _with_adapter(self.model, _peft_name(name), folder)
        self._peft = bool(adapters)
        engine = TransformersEngine(self.model, template=template, max_batch_size=batch_size)
        self._describe(values, args, engine)

    @contextlib.contextmanager
    def adapter(self, name: str | None) -> Iterator[None]:
        """Use one adapter inside the block, or the base model for None."""
        if not self._peft:
            if name is not None:
                raise ValueError(f"adapter {name!r} is not loaded")
            yield
        elif name is None:
            with self.model.disable_adapter():
                yield
        else:
            self.model.set_adapter(_peft_name(name))
            yield

    @contextlib.contextmanager
    def scaled(self, name: str, scale: float) -> Iterator[None]:
        """Use one adapter inside the block, its LoRA matrices' product times `scale`."""
        key = _peft_name(name)
        scalings = [getattr(module, "scaling", None) for module in self.model.modules()]
        found = [scaling for scaling in scalings if isinstance(scaling, dict) and key in scaling]
        before = [scaling[key] for scaling in found]
        try:
            for scaling in found:
                scaling[key] *= scale
            with self.adapter(name):
                yield
        finally:
            for scaling, value in zip(found, before, strict=True):
                scaling[key] = value

    def answer(self, prompts: Sequence[str], ask: Ask) -> list[Reply]:
        """One reply a prompt, in order; the prompts are answered as one batch."""
        torch.manual_seed(ask.seed)
        return self._answers(prompts, ask, None)

    def response_losses(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
        """For each (query, response): summed negative log-likelihood of the response, tokens.

        Raises UserError for a pair that the model's context does not hold.
        """
        return self._summed([self._encoded(*pair) for pair in pairs], self._losses)

    def text_losses(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        """Summed negative log-likelihood of each text without any template, tokens.

        The tokenizer's own begin stands in front where it has one; without it, the first token is
        not counted. Raises UserError for a text that the model's context does not hold.
        """
        return self._summed([self._plain(text) for text in texts], self._losses)

    def divergences_from_base(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
        """For each (query, response): KL(base || model) summed over the response's tokens, in nats,
        and how many they are.

        The base is the same model with its adapters off, in a second forward pass.
        """
        rows = [self._encoded(*pair) for pair in pairs]
        return [(max(0.0, total), count) for total, count in self._summed(rows, self._divergences)]

    @torch.inference_mode()
    def _summed(
        self, rows: Sequence[Row], values_of: Callable[[Line], torch.Tensor]
    ) -> list[tuple[float, int]]:
        """For each row the sum of what its asked tokens are given, and how many they are."""
        found: list[tuple[float, int]] = []
        for line in self._lines(rows):
            values = values_of(line)
            sums = torch.zeros(len(line.rows), device=values.device)
            sums = sums.index_add(0, line.row_of, values)
            counts = torch.bincount(line.row_of, minlength=len(line.rows))
            found += zip(sums.tolist(), counts.tolist(), strict=True)
        return found

    def _losses(self, line: Line) -> torch.Tensor:
        return -self._log_probabilities(line).gather(1, line.targets[:, None])[:, 0]

    def _divergences(self, line: Line) -> torch.Tensor:
        model = self._log_probabilities(line)
        with self.adapter(None):
            base = self._log_probabilities(line)
        return (base.exp() * (base - model)).sum(-1)

    def _lines(self, rows: Sequence[Row]) -> Iterator[Line]:
        """The rows in order, several in one line as far as the model can read that."""
        self.model.eval()
        room = _LINE if fits(self.model) else 0
        waiting: list[Row] = []
        for row in rows:
            if waiting and sum(len(r.ids) for r in [*waiting, row]) > room:
                yield line_of(waiting, self.model.device)
                waiting = []
            waiting.append(row)
        if waiting:
            yield line_of(waiting, self.model.device)

    def _log_probabilities(self, line: Line) -> torch.Tensor:
        """(asked, vocabulary) before each asked token, in float32."""
        if len(line.rows) > 1 or fits(self.model):
            logits = self.model(**line.inputs).logits[0]
        else:  # it may know no `logits_to_keep`
            logits = self.model(input_ids=line.inputs["input_ids"]).logits[0]
            logits = logits[line.inputs["logits_to_keep"]]
        return torch.log_softmax(logits.float(), dim=-1)

    def _encoded(self, query: str, response: str) -> Row:
        self.template.set_mode("train")
        messages = [*conversation(query), {"role": "assistant", "content": response}]
        encoded = self.template.encode({"messages": messages})
        asked = [label != -100 for label in encoded["labels"]]
        return self._held(Row(list(encoded["input_ids"]), asked), query)

    def _plain(self, text: str) -> Row:
        tokenizer = self.template.tokenizer
        ids = list(tokenizer(text)["input_ids"])
        if ids and ids[-1] == tokenizer.eos_token_id:
            ids.pop()
        return self._held(Row(ids, [place > 0 for place in range(len(ids))]), text)

    def _held(self, row: Row, text: str) -> Row:
        """The row. Raises UserError for one that the model's context does not hold."""
        if self.context is not None and len(row.ids) > self.context:
            raise UserError(
                f"a row of {len(row.ids):,} tokens, the model's context is {self.context:,}: "
                f"{text[:80]}",
                where="loss on given texts",
                remedy="leave the row out (of general rows: a smaller --general-rows, of the "
                "project's own: --retention-rows), or take a model with a longer context",
            )
        return row


class VllmEngine(SwiftEngine):
    """Answers prompts with vLLM on this machine; its arguments are those of `LocalEngine`.

    Written against ms-swift 4.0.4 and 4.6; a test holds its calls against their signatures, but it
    was never run: vLLM needs a GPU.
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

    def answer(self, prompts: Sequence[str], ask: Ask) -> list[Reply]:
        """One reply a prompt, in order."""
        adapter = None if self._active is None else self._requests[self._active]
        return self._answers(prompts, ask, ask.seed % 2**31, adapter_request=adapter)


def lora_rank(adapter: Path) -> int:
    """The smallest rank that vLLM can reserve for this adapter."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    return next((known for known in _RANKS if known >= rank), rank)
