"""`eval_metric: tell_json`: the strict scorer over validation answers while a run trains."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from tell_plugins.core.cards import load_card
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.spec import parse_spec
from tell_plugins.evaluation.during_training import NAMES, score_texts
from tests.conftest import message_of
from tests.tiny import make_tiny_cards, run_swift, sft, tiny_recipe

NAME = NAMES["json"][0]
YES, NO = '{"label": "yes"}', '{"label": "no"}'


@pytest.fixture
def cards(make_card) -> None:
    make_tiny_cards(make_card)
    make_card("numbers", train=[{"q": "1 + 1", "r": "#### 2"}])


def _score(answers: list[str], references: list[str]) -> dict[str, float]:
    return score_texts(load_card("tiny_task"), answers, references)


@pytest.mark.parametrize(
    ("answers", "references", "rows", "adherence", "accuracy", "balanced"),
    [
        (
            [YES, YES, NO, "yes", YES + " I think", '{"label": "maybe"}'],
            [YES, NO, NO, YES, YES, YES],
            *(6, 3 / 6, 2 / 6, (1 / 4 + 1 / 2) / 2),
        ),
        ([NO] * 4, [YES, NO, NO, NO], 4, 1.0, 0.75, 0.5),  # adherent, and no better than chance
        # bare labels are references too, and general rows are left out
        ([YES, NO, "A poem", YES], ["yes", "yes", "Rain falls.", "3"], 2, 1.0, 0.5, 0.5),
    ],
)
def test_form_and_content_are_scored_apart(
    answers, references, rows, adherence, accuracy, balanced, cards
):
    assert _score(answers, references) == {
        "json_adherence": adherence,
        "task_rows": float(rows),
        "label_accuracy": accuracy,
        "balanced_accuracy": balanced,
    }
    assert _score(["A poem"], ["Rain falls."]) == {"task_rows": 0.0}


def test_a_row_without_an_allowed_label_is_left_out(make_card):
    """It obeys the schema, which does not require the label."""
    rows = [{"q": "a", "r": YES}]
    properties = {"label": {"enum": ["yes", "no"]}, "note": {"type": "string"}}
    schema = {"type": "object", "properties": properties}
    make_card("optional", train=rows, schema=schema, label="label")
    references = [YES, '{"note": "late"}', '{"label": "maybe"}']
    scores = score_texts(load_card("optional"), [YES] * 3, references)
    assert (scores["task_rows"], scores["label_accuracy"]) == (1.0, 1.0)


@pytest.fixture
def metric(cards, monkeypatch) -> Any:
    """The registered class, in a process that has served nothing yet."""
    from swift.metrics import eval_metrics_map

    import tell_plugins.register  # noqa: F401
    from tell_plugins.bridge import metric

    monkeypatch.setattr(metric, "trained_on", [])
    monkeypatch.setattr(metric, "validated_on", [])
    return SimpleNamespace(make=eval_metrics_map[NAME], module=metric)


def _arguments(**changes: Any) -> SimpleNamespace:
    values = {"predict_with_generate": True, "metric_for_best_model": "loss"}
    return SimpleNamespace(**(values | {"greater_is_better": False} | changes))


def _prediction(*parts: list[str]) -> SimpleNamespace:
    """Answers and responses as ms-swift hands them to a metric."""
    from swift.utils import Serializer
    from torch.nn.utils.rnn import pad_sequence

    answers, labels = (
        pad_sequence([Serializer.to_tensor(text) for text in part], True).numpy() for part in parts
    )
    return SimpleNamespace(predictions=answers, label_ids=labels)


def test_the_card_is_that_of_the_validation_data(metric):
    assert "found none" in message_of(metric.make, _arguments(), None)
    metric.module.trained_on.append(build_mixture(parse_spec("tell/numbers:general=0")))
    assert "no answer of it is JSON" in message_of(metric.make, _arguments(), None)
    metric.module.validated_on.append(build_mixture(parse_spec("tell/tiny_task:split=test")))
    said = message_of(metric.make, _arguments(predict_with_generate=False), None)
    assert "predict_with_generate: true" in said
    for asked, chosen in (("rouge-l", "json_adherence"), ("label_accuracy", "label_accuracy")):
        args = _arguments(metric_for_best_model=asked)
        made = metric.make(args, None)
        assert args.metric_for_best_model == chosen
    prediction = _prediction([YES, "rain"], [YES, NO])
    assert made.compute_metrics(prediction)["json_adherence"] == 0.5
    # two processes with batches of two answer 8 rows where there are 5: the last three again
    made = metric.make(_arguments(), SimpleNamespace(eval_dataset=range(5)))
    prediction = _prediction([YES, *["rain"] * 4, YES, YES, YES], [YES] * 8)
    assert made.compute_metrics(prediction)["json_adherence"] == 0.2
    metric.module.validated_on.append(build_mixture(parse_spec("tell/numbers:general=0")))
    assert "numbers, tiny_task" in message_of(metric.make, _arguments(), None)


@pytest.mark.slow
def test_a_run_logs_adherence_and_label_accuracy(cards, model, tmp_path):
    """A tiny model that learns the form: the logged scores are those of the answers it gave."""
    recipe = tiny_recipe(
        tmp_path / "tiny.yaml",
        model,
        "tell/tiny_task:task=all/general=0/repeat=12",
        val_dataset=["tell/tiny_task:split=test"],
        eval_steps=18,
        save_steps=18,
        predict_with_generate=True,
        eval_metric=NAME,
        max_new_tokens=16,
        per_device_eval_batch_size=6,
        lora_rank=16,
        gradient_accumulation_steps=2,
        num_train_epochs=1,
        enable_channel_loss=True,
    )
    run_swift(*sft(recipe))
    run = tmp_path / "run"
    logged = [json.loads(line) for line in (run / "logging.jsonl").read_text().splitlines()]
    evaluations = [line for line in logged if "eval_json_adherence" in line]
    assert len(evaluations) == 2
    for evaluation, step in zip(evaluations, (18, 36), strict=True):
        answers = (run / f"checkpoint-{step}" / "predict.jsonl").read_text().splitlines()
        lines = [json.loads(line) for line in answers]  # ms-swift moves them to the checkpoint
        expected = _score([line["response"] for line in lines], [line["labels"] for line in lines])
        assert expected["task_rows"] == len(lines) == 6
        for name, value in expected.items():
            assert evaluation[f"eval_{name}"] == pytest.approx(value, abs=1e-6)
        assert all("Answer only" in line["messages"][0]["content"] for line in lines)
    best = max(evaluation["eval_json_adherence"] for evaluation in evaluations)
    assert best > 0  # so small a model learns the form at least
    assert logged[-1]["best_metric"] == best
