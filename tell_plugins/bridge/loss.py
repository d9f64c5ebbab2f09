"""The loss of a recipe with `loss_type: tell`: rows that teach, and rows that hold.

Each row of a step weighs the same: the mean over its answer tokens, then the mean over all rows of
the step, over its forward passes and processes. With one row a forward pass this is the loss of
ms-swift 1.7 and transformers 4.38, March 2024, which averaged a forward pass and then the passes.
(They divided a last step of fewer passes by the full number; here it is its rows' mean.)
ms-swift 4 weighs each answer token of a step the same.

A row teaches by cross-entropy. With `kl` above 0 in the dataset string general rows hold instead:
`kl` times the mean over their answer tokens of KL(base || trained), over the whole vocabulary. The
base is the same model with its adapter disabled, in evaluation mode and without gradient. The
direction punishes the trained model wherever the base has probability and it has lost it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from swift.loss import BaseLoss, loss_map
from torch import Tensor
from transformers.integrations import is_deepspeed_zero3_enabled

from tell_plugins.bridge import mixed_use, packing
from tell_plugins.bridge.loader import trained_on
from tell_plugins.core.errors import UserError
from tell_plugins.core.mixture import GENERAL
from tell_plugins.core.spec import LOSS_TYPE

_CHUNK = 2**24  # probabilities that are held in float32 at a time
_NO_LABEL = -100
# what a padded batch of text is made of, and what ms-swift adds for itself
_PADDED = ("input_ids", "attention_mask", "position_ids", "text_position_ids", "logits_to_keep")
_KNOWN = ("labels", "channel", "compute_loss_func")


def register_loss() -> None:
    """Make `loss_type: tell` known to ms-swift."""
    loss_map[LOSS_TYPE] = TellLoss


class TellLoss(BaseLoss):
    """Cross-entropy of taught rows and KL(base || trained) of held rows, by rows.

    What a forward pass is given, ms-swift does not tell a loss, so the trainer's `compute_loss`
    leaves it here for as long as it runs: the trainer's own dict, which holds what the model gets;
    the channel of each row; and the line that a padded batch was put into, if it was.
    """

    def __init__(self, args: Any, trainer: Any) -> None:
        super().__init__(args, trainer)
        # ms-swift would compute the cross-entropy of all rows a second time for its curves
        self._curves = args.enable_channel_loss
        args.enable_channel_loss = False
        self._inputs: dict[str, Any] = {}
        self._channels: list[str | None] | None = None
        self._positions: Tensor | None = None
        self._line: packing.Line | None = None
        trainer.get_batch_samples = self._counting_rows(trainer.get_batch_samples)
        trainer.compute_loss = self._remembering(trainer.compute_loss)

    def __call__(
        self,
        outputs: Any,
        labels: Tensor,
        *,
        num_items_in_batch: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The loss of one forward pass: the sum over its rows, divided by the rows of the step.

        Args:
            outputs: of the model, with `logits` (batch, positions, vocabulary).
            labels: (batch, positions), not shifted; -100 where nothing is asked.
            num_items_in_batch: the rows of the step; None (validation) for those of this pass.
        """
        targets = labels.roll(-1, dims=-1).to(outputs.logits.device)
        rows = self._row_of_each_position(targets)
        channels = self._channels or [None] * (int(rows.max()) + 1)
        held = torch.tensor([self.kl > 0 and _is_general(name) for name in channels])
        held = held.to(targets.device)

        base = self._as_base() if held.any() else None
        values: Tensor = _TokenLosses.apply(outputs.logits, targets, held[rows], base)
        asked = targets != _NO_LABEL
        if self._curves:
            self._update_curves(values.detach()[asked], rows[asked], channels)

        counts = torch.bincount(rows[asked], minlength=len(held))
        sums = torch.zeros(len(held), device=values.device)
        means = sums.index_add(0, rows.flatten(), values.flatten()) / counts.clamp(min=1)
        weighted = torch.where(held, self.kl * means, means).sum()
        return weighted / ((counts > 0).sum() if num_items_in_batch is None else num_items_in_batch)

    @property
    def kl(self) -> float:
        """The weight of held rows, 0 where general rows teach."""
        return trained_on[0].spec.kl if trained_on else 0.0

    # --- what the trainer knows and does not tell ---

    def _counting_rows(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`get_batch_samples`, with the rows of the step as its number of items."""

        def get_batch_samples(*args: Any, **kwargs: Any) -> Any:
            batches, items = original(*args, **kwargs)
            if items is None:
                return batches, items
            rows = torch.tensor(sum(map(_rows_with_an_answer, batches)), device=self.args.device)
            if self.args.average_tokens_across_devices:
                rows = self.trainer.accelerator.gather(rows).sum()
            return batches, rows

        return get_batch_samples

    def _remembering(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`compute_loss`, which keeps what the model is given for as long as it runs."""

        def compute_loss(
            model: Any,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            if self.kl:
                _refuse_spread(self.trainer)
            self._inputs, self._channels = inputs, inputs.get("channel")
            self._positions = _positions(inputs)
            self._line = self._pack(inputs) if self._packs(inputs) else None
            rows = num_items_in_batch if model.training else None
            try:
                return original(model, inputs, return_outputs, rows)
            finally:
                self._inputs, self._line = {}, None

        return compute_loss

    def _packs(self, inputs: dict[str, Any]) -> bool:
        """Whether a padded batch is put into one line.

        On a CPU alone: a GPU's kernels know other masks, and its batches are better padded.
        """
        if not {"input_ids", "attention_mask", "labels"} <= set(inputs) <= {*_PADDED, *_KNOWN}:
            return False
        model, ids = self.trainer.model, inputs["input_ids"]
        dropped = any(m.p for m in model.modules() if isinstance(m, torch.nn.Dropout))
        plain = ids.device.type == "cpu" and len(ids) > 1 and not self.trainer.template.padding_free
        return plain and not dropped and packing.fits(model)

    def _pack(self, inputs: dict[str, Any]) -> packing.Line:
        """Put the rows of a padded batch into one line, in place."""
        ids, mask, labels = (inputs[key] for key in ("input_ids", "attention_mask", "labels"))
        short = ids.shape[1] - labels.shape[1]
        labels = torch.nn.functional.pad(labels, (short, 0), value=_NO_LABEL)
        rows = [
            packing.Row(row[seen].tolist(), (asked[seen] != _NO_LABEL).tolist())
            for row, seen, asked in zip(ids, mask.bool(), labels, strict=True)
        ]
        line = packing.line_of(rows)
        for key in _PADDED:
            inputs.pop(key, None)
        inputs.update(line.inputs, labels=line.targets.roll(1)[None])
        return line

    def _row_of_each_position(self, targets: Tensor) -> Tensor:
        """(batch, positions): the row that each position belongs to, counted from 0."""
        if self._line is not None:
            return self._line.row_of[None]
        if not self.trainer.template.padding_free:
            return torch.arange(len(targets), device=targets.device)[:, None].expand_as(targets)
        kept = self._inputs.get("logits_to_keep")
        borders = self.trainer.get_cu_seqlens(self._positions, kept).to(targets.device)
        rows = torch.arange(len(borders) - 1, device=targets.device)
        return rows.repeat_interleave(borders.diff()).view_as(targets)

    def _as_base(self) -> Tensor:
        """The logits of the model without its adapter."""
        model = self.trainer.model  # not as wrapped for several processes: those need not agree
        training = model.training
        model.eval()
        try:
            with torch.no_grad(), model.disable_adapter():
                logits: Tensor = model(**self._inputs).logits
                return logits
        finally:
            model.train(training)

    def _update_curves(self, values: Tensor, rows: Tensor, channels: Sequence[str | None]) -> None:
        """One curve a channel, the mean over tokens: `loss_task`, and `kl_general` where held."""
        metrics = self.trainer.custom_metrics["train" if self.trainer.model.training else "eval"]
        for row, channel in enumerate(channels):
            measure = "kl" if self.kl and _is_general(channel) else "loss"
            metrics[f"{measure}_{channel}"].update(values[rows == row])


def _is_general(channel: str | None) -> bool:
    return channel is not None and channel.partition("_")[0] == GENERAL


def _positions(inputs: dict[str, Any]) -> Tensor | None:
    found: Tensor | None = inputs.get("text_position_ids")
    return inputs.get("position_ids") if found is None else found


def _rows_with_an_answer(batch: dict[str, Any]) -> int:
    """How many rows of a collated batch have an answer; rows put end to end count each."""
    asked = batch["labels"][:, 1:] != _NO_LABEL
    positions = _positions(batch)
    if len(asked) > 1 or positions is None:
        return int(asked.any(dim=1).sum())
    starts = (positions.reshape(-1, positions.shape[-1])[-1] == 0).cumsum(0)
    return starts[1:][asked[0]].unique().numel()


class _TokenLosses(torch.autograd.Function):
    """The loss of each position, with its gradient written out.

    Chunk by chunk in both directions: nothing of the vocabulary's size is held but the logits of
    the two passes as the model gave them, and the gradient of one.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, held: Tensor, base: Tensor | None
    ) -> Tensor:
        """(batch, positions): cross-entropy, KL(base || trained) where held, 0 without a target.

        Args:
            logits: (batch, positions, vocabulary).
            targets, held: (batch, positions).
            base: the logits of the base model, like `logits`; None where nothing holds.
        """
        ctx.save_for_backward(logits, targets, held, base)
        losses = torch.zeros(targets.shape, device=logits.device)
        for line, part, before in _chunks(logits, targets, held, base):
            given = (logits[line, part], targets[line, part], held[line, part], before)
            losses[line, part] = _chunk_losses(*given)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        logits, targets, held, base = ctx.saved_tensors
        result = torch.zeros_like(logits)
        for line, part, before in _chunks(logits, targets, held, base):
            given = (logits[line, part], targets[line, part], held[line, part], before)
            scaled = _chunk_gradients(*given) * gradients[0][line, part, None]
            result[line, part] = scaled.to(result.dtype)
        return result, None, None, None


def _chunks(
    logits: Tensor, targets: Tensor, held: Tensor, base: Tensor | None
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """(line, its positions with a target, the base model's logits there where the line holds)."""
    size = max(1, _CHUNK // logits.shape[-1])
    for line in range(len(targets)):
        before = base[line] if base is not None and held[line].any() else None
        for part in (targets[line] != _NO_LABEL).nonzero().flatten().split(size):
            if len(part):
                yield line, part, None if before is None else before[part]


def _chunk_losses(logits: Tensor, target: Tensor, held: Tensor, before: Tensor | None) -> Tensor:
    trained = logits.float().log_softmax(-1)
    entropy = -trained.gather(1, target[:, None])[:, 0]
    if before is None:
        return entropy
    base = before.float().log_softmax(-1)
    return torch.where(held, (base.exp() * (base - trained)).sum(-1), entropy)


def _chunk_gradients(logits: Tensor, target: Tensor, held: Tensor, before: Tensor | None) -> Tensor:
    """By logit: the probability that the model gives, minus the one that is wanted."""
    result = logits.float().softmax(-1)
    taught = (~held).nonzero().flatten()
    result[taught, target[taught]] -= 1
    if before is not None:
        result[held] -= before[held].float().softmax(-1)
    return result


def _refuse_spread(trainer: Any) -> None:
    """Raise UserError where the base model is in parts; a file may have told DeepSpeed so."""
    if trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled():
        raise UserError(mixed_use.SPREAD, where="recipe", remedy=mixed_use.SPREAD_REMEDY)
