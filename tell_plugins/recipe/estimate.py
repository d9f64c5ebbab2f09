"""Memory of a run by formula, and the operations that a trainer reports; estimates, not measured.

The coefficients follow from what autograd keeps for LoRA training of a frozen decoder; where they
were checked against real tensors, `tests/test_schedule.py` says how closely they hold.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tell_plugins.core.spec import LOSS_TYPE
from tell_plugins.recipe.recipes import Recipe
from tell_plugins.recipe.shapes import ModelShape

GIB = 2**30
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
    anew = recipe.flag("gradient_checkpointing")
    tokens, labels = batch * lengths.astype(np.float64).T
    activations = tokens * _activation_bytes(shape, block, width, anew=anew)
    with_logits = labels if skips and shape.skips_logits else tokens
    logits = with_logits * _logit_bytes(shape, width, by_row=by_row, held=held)
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
    if by_row:
        return shape.vocab * width * (3 if held else 2)
    return shape.vocab * (width + 12)


def _activation_bytes(shape: ModelShape, block: float, width: int, *, anew: bool) -> float:
    """Per token: what the backward pass needs; `anew`: activations are computed again there."""
    # the gradients that flow through the block whose backward pass is running
    flowing = (3 * shape.intermediate + 4 * shape.hidden) * width
    if anew:
        return shape.layers * shape.hidden * width + block + flowing
    return shape.layers * block + flowing


def block_bytes(shape: ModelShape, targets: Sequence[str], width: int, cast: int) -> float:
    """Per token of one block: feed-forward, norms (fp32), attention, and the adapter's inputs,
    which are cast to another width where the adapter has another (0: it has not)."""
    adapted = sum(inputs for inputs, _ in shape.targets(targets))
    return (
        3 * shape.intermediate * width
        + 2 * shape.hidden * 4
        + shape.attention * width
        + adapted * (width + cast)
    )
