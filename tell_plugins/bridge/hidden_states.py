"""Hidden states of prompts, and which of their tokens are the query's own."""

from __future__ import annotations

from os.path import commonprefix
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from tell_plugins.bridge.engine import LocalEngine

_CHARACTERS = 16  # of one token, more than any text has on average


class PromptIds(NamedTuple):
    """Token ids of a prompt in four parts: template, anchor, the query's own, template.

    A token that holds the end of one part and the beginning of the next is the later one's.
    """

    template: list[int]
    anchor: list[int]
    own: list[int]
    after: list[int]
    cut: bool  # whether the query's end was left away

    @property
    def ids(self) -> list[int]:
        return [*self.template, *self.anchor, *self.own, *self.after]


def layer_count(engine: LocalEngine) -> int:
    """How many layers the model has; hidden states are numbered 0 (embeddings) to this."""
    config = engine.model.config
    return int(getattr(config, "num_hidden_layers", None) or config.n_layer)


def prompt_ids(engine: LocalEngine, front: str, query: str, max_tokens: int) -> PromptIds:
    """The prompt with `front` before `query`, whose own tokens are cut after `max_tokens`.

    The parts are told apart by what the prompt shares with others: with one that has another query
    in the same place, and with one that is empty.
    """
    short = query[: _CHARACTERS * max_tokens]
    other = "b" if short.startswith("a") else "a"
    full = engine.prompt_ids(front + short)
    empty, replaced = engine.prompt_ids(""), engine.prompt_ids(front + other)
    start = _shared(full, replaced)
    template = min(_shared(full, empty), start)
    end = min(_shared(full[::-1], empty[::-1]), len(empty) - template, len(full) - start)
    own = full[start : len(full) - end]
    return PromptIds(
        template=full[:template],
        anchor=full[template:start],
        own=own[:max_tokens],
        after=full[len(full) - end :],
        cut=len(own) > max_tokens or len(short) < len(query),
    )


def _shared(first: list[int], second: list[int]) -> int:
    """How many leading ids are equal."""
    return len(commonprefix([first, second]))


@torch.inference_mode()
def pooled_states(
    engine: LocalEngine, prompt: PromptIds, layer: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Hidden states of a prompt after `layer` layers, pooled in float32, each (width,): the `mean`
    over anchor and query, the `last` token's, from which the answer begins, and the mean over the
    `query`'s own tokens.

    As transformers counts: 0 are the embeddings, n the output of the n-th layer; the last layer's
    is given after the final norm. The template is left out of the means: its first token is an
    attention sink in most models, some hundred times larger than others and the same everywhere.
    """
    engine.model.eval()
    ids = torch.tensor([prompt.ids], device=engine.model.device)
    causal = getattr(engine.model, "get_base_model", lambda: engine.model)()  # below an adapter
    # the decoder alone: nobody reads logits
    outputs = causal.base_model(input_ids=ids, output_hidden_states=True, use_cache=False)
    states = outputs.hidden_states[layer][0].float()
    start = len(prompt.template)
    own = start + len(prompt.anchor)
    end = own + len(prompt.own)
    pooled = {
        "mean": states[start:end].mean(0),
        "last": states[-1],
        "query": states[own:end].mean(0),
    }
    return {name: part.double().cpu().numpy() for name, part in pooled.items()}
