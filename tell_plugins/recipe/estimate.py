"""Memory of a run by formula, and the operations that a trainer reports; estimates, not measured.

The coefficients follow from what autograd keeps for LoRA training of a frozen decoder; where they
were checked against real tensors, `tests/test_schedule.py` says how closely they hold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tell_plugins.recipe.shapes import ModelShape

GIB = 2**30
_CUDA_CONTEXT = 0.8 * GIB  # context, cuBLAS workspace and fragmentation of one process
_LOSS_CHUNKS = 0.25 * GIB  # four pieces of 2^24 fp32 numbers, see bridge/loss.py
_WIDTH = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Tuning:
    """The settings of a LoRA run that cost depends on.

    Attributes:
        batch: rows of one forward pass.
        checkpointing: whether activations are computed anew in the backward pass.
        keep_label_logits: whether ms-swift computes logits only where there are labels.
        row_loss: whether the loss is `tell`, which takes the logits in chunks.
        held: whether general rows are held to the base model, whose logits are needed then.
        on_cpu: whether there is no CUDA context.
    """

    rank: int
    targets: tuple[str, ...]
    dtype: str = "bfloat16"
    lora_dtype: str = "float32"
    batch: int = 1
    checkpointing: bool = True
    keep_label_logits: bool = True
    row_loss: bool = False
    held: bool = False
    on_cpu: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at the longest row, by part."""

    weights: float
    adapter: float
    activations: float
    logits: float
    overhead: float

    @property
    def total(self) -> float:
        return self.weights + self.adapter + self.activations + self.logits + self.overhead


def reported_flops(shape: ModelShape, tokens: int) -> float:
    """6 x parameters x tokens, input embedding left out: what the Trainer writes to TensorBoard,
    and so what Appendix A.1 quotes."""
    return 6.0 * (shape.parameters - shape.embedding) * tokens


def memory(shape: ModelShape, tuning: Tuning, lengths: npt.NDArray[np.int64]) -> Memory:
    """Memory at the row that needs most.

    Args:
        lengths: (n, 2) tokens of each row, chat template included: all of them, and those that
            carry a label.
    """
    width = _WIDTH.get(tuning.dtype, 2)
    tokens, labels = lengths[:, 0].astype(np.float64), lengths[:, 1].astype(np.float64)
    if not (tuning.keep_label_logits and shape.skips_logits):
        labels = tokens
    activations = tokens * _activation_bytes(shape, tuning, width)
    logits = labels * _logit_bytes(shape, tuning, width)
    worst = int(np.argmax(activations + logits))
    lora_width = _WIDTH.get(tuning.lora_dtype, 4)
    adapter = shape.lora_parameters(list(tuning.targets), tuning.rank)
    return Memory(
        weights=float(width * shape.parameters),
        # the parameters, their gradients, and the two moments of Adam
        adapter=float(4 * lora_width * adapter),
        activations=float(tuning.batch * activations[worst]),
        logits=float(tuning.batch * logits[worst]) + (_LOSS_CHUNKS if tuning.row_loss else 0.0),
        overhead=0.0 if tuning.on_cpu else _CUDA_CONTEXT,
    )


def _logit_bytes(shape: ModelShape, tuning: Tuning, width: int) -> float:
    """Per position: the logits, and in fp32 their log-softmax and its gradient before and after.

    ms-swift computes the loss in fp32, so a bf16 model pays for a copy. The loss `tell` needs
    logits and gradient as the model gives them, and the base model's logits where rows are held.
    """
    if tuning.row_loss:
        return shape.vocab * width * (3 if tuning.held else 2)
    return shape.vocab * (width + 12)


def _activation_bytes(shape: ModelShape, tuning: Tuning, width: int) -> float:
    """Per token: what the backward pass needs."""
    block = _block_bytes(shape, tuning, width)
    # the gradients that flow through the block whose backward pass is running
    flowing = (3 * shape.intermediate + 4 * shape.hidden) * width
    if tuning.checkpointing:
        return shape.layers * shape.hidden * width + block + flowing
    return shape.layers * block + flowing


def _block_bytes(shape: ModelShape, tuning: Tuning, width: int) -> float:
    """Per token of one block: feed-forward, norms (fp32), attention, and the adapter's inputs."""
    heads = 2 * (shape.heads + shape.kv_heads) * shape.head_dim  # query, key, value, output
    adapted = sum(inputs for inputs, _ in shape.targets(list(tuning.targets)))
    cast = _WIDTH.get(tuning.lora_dtype, 4) if tuning.lora_dtype != tuning.dtype else 0
    return (
        3 * shape.intermediate * width
        + 2 * shape.hidden * 4
        + heads * width
        + adapted * (width + cast)
    )
