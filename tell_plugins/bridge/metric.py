"""A metric over generated answers for ms-swift's `eval_metric` (4.0.4 and 4.6).

What is measured is handed in by `register.py`: scorers stand above the bridge.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any

from swift.metrics import eval_metrics_map
from swift.metrics.base import EvalMetrics
from swift.utils import Serializer, get_logger

from tell_plugins.bridge.loader import trained_on, validated_on
from tell_plugins.core.cards import Card
from tell_plugins.core.errors import UserError

logger = get_logger()
_SWIFTS_DEFAULT = "rouge-l"  # what ms-swift chooses the best checkpoint by where text is generated

Score = Callable[[Card, list[str], list[str]], dict[str, float]]


def register_metric(name: str, check: Callable[[Card], None], score: Score, *, best: str) -> None:
    """Make `eval_metric: <name>` known to ms-swift.

    Args:
        check: raises UserError for a card that cannot be scored; called before training.
        score: (card, answers, responses of the rows) -> named scores; ms-swift puts `eval_` before
            each name.
        best: the score that the best checkpoint is chosen by where the recipe does not say.
    """

    class TellMetric(EvalMetrics):
        def __init__(self, args: Any, trainer: Any) -> None:
            super().__init__(args, trainer)
            if not getattr(args, "predict_with_generate", False):
                raise UserError(
                    f"'eval_metric: {name}' scores generated answers, and none are generated",
                    where="recipe",
                    remedy="add 'predict_with_generate: true'",
                )
            self._card = validation_card(name)
            check(self._card)
            if args.metric_for_best_model == _SWIFTS_DEFAULT:
                logger.info(f"TELL: the best checkpoint is chosen by {best}")
                args.metric_for_best_model, args.greater_is_better = best, True

        def compute_metrics(self, eval_prediction: Any) -> dict[str, float]:
            answers = [Serializer.from_tensor(row) for row in eval_prediction.predictions]
            responses = [Serializer.from_tensor(row) for row in eval_prediction.label_ids]
            # several processes fill their batches up with rows from the front, answered last
            data = getattr(self.trainer, "eval_dataset", None)
            rows = len(data) if isinstance(data, Sized) else len(answers)
            return score(self._card, answers[:rows], responses[:rows])

    eval_metrics_map[name] = TellMetric


def validation_card(name: str) -> Card:
    """The card that the run validates on; without a TELL `val_dataset`, the one it trains on.

    Raises UserError when there is none, or more than one.
    """
    cards = {mixture.card.name: mixture.card for mixture in validated_on or trained_on}
    if len(cards) != 1:
        found = ", ".join(sorted(cards)) or "none"
        raise UserError(
            f"'eval_metric: {name}' needs one card to score by, found {found}",
            where="val_dataset",
            allowed="one TELL data set, for example tell/<card>:split=validation",
            remedy="name one under val_dataset",
        )
    return next(iter(cards.values()))
