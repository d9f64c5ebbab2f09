"""`loss_type: tell`: its gradients, in ms-swift's own trainer, against formulas written out here.

The runs of `test_mix_train.py` train with it, on both ms-swift and in two processes.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import message_of

pytestmark = pytest.mark.newest
# answers of very unlike lengths: weighing by token is then far from weighing by row
ROWS = [
    ("task", "Is it late?", "yes"),
    ("general", "Write a poem.", "The quick brown fox jumps over the lazy dog. " * 3),
    ("task", "Is the fox quick and brown? Say it.", "no"),
    ("general_plain", "How many days has a week?", "seven days and no more"),
]
Gradients = dict[str, Tensor]


class Bench:
    """A trainer of ms-swift on the tiny model with an adapter, and steps by hand."""

    def __init__(self, folder: Path, out: Path, *, kl: float = 0.0, **settings: Any) -> None:
        from swift.model import get_model_processor
        from swift.template import get_template
        from swift.trainers import Seq2SeqTrainer, Seq2SeqTrainingArguments

        from datasets import Dataset
        from tell_plugins.bridge import loss

        torch.set_num_threads(1)  # two threads only wait for each other on so small a model
        loss.register_loss()
        self.spec = SimpleNamespace(kl=kl)
        loss.trained_on[:] = [SimpleNamespace(spec=self.spec)]  # type: ignore[list-item]
        plain, processor = get_model_processor(
            str(folder), model_type="llama", torch_dtype=torch.float32, attn_impl="eager"
        )
        padding_free = settings.pop("padding_free", False)
        self.template = get_template(processor, template_type="chatml", padding_free=padding_free)
        self.template.set_mode("train")
        self.model = self._adapted(plain, settings.pop("tuned", True), settings.pop("dropout", 0.0))
        given = {"per_device_train_batch_size": 1, "loss_type": "tell", **settings}
        arguments = Seq2SeqTrainingArguments(
            output_dir=str(out), use_cpu=True, report_to=[], check_model=False, **given
        )
        self.trainer = Seq2SeqTrainer(
            model=self.model,
            args=arguments,
            template=self.template,
            train_dataset=Dataset.from_list([{"input_ids": [1]}]),
        )

    @staticmethod
    def _adapted(plain: Any, tuned: bool, dropout: float) -> Any:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(3)
        config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear")
        model = get_peft_model(plain, config)
        model.model_meta, model.model_info = plain.model_meta, plain.model_info
        if tuned:  # as after some steps
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(weight, std=0.1)
        return model

    def encode(self, row: tuple[str, str, str]) -> dict[str, Any]:
        channel, question, answer = row
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        row_of = {"messages": messages, "channel": channel}
        encoded = self.template.encode(row_of, return_length=True)
        return dict(encoded)

    def step(self, passes: list[list[tuple[str, str, str]]]) -> tuple[float, Gradients]:
        """The loss and the gradients of one step of these forward passes."""
        collated = [self.template.data_collator([self.encode(row) for row in p]) for p in passes]
        self.model.zero_grad()
        batches, items = self.trainer.get_batch_samples(iter(collated), len(collated), "cpu")
        self.trainer.current_gradient_accumulation_steps = len(batches)
        losses = [self.trainer.training_step(self.model, batch, items) for batch in batches]
        return float(sum(losses)), self.gradients()

    def gradients(self) -> Gradients:
        named = self.model.named_parameters()
        assert not any(weight.grad is not None for name, weight in named if "lora_" not in name)
        return {n: w.grad.clone() for n, w in self.model.named_parameters() if w.requires_grad}

    def by_hand(self, kl: float = 0.0) -> tuple[float, Gradients]:
        """One row a forward pass, each pass's mean divided by their number: as in March 2024."""
        self.model.zero_grad()
        self.model.train()
        total = 0.0
        for row in ROWS:
            encoded = self.encode(row)
            ids, labels = (torch.tensor([encoded[key]]) for key in ("input_ids", "labels"))
            if kl and row[0] != "task":
                loss = kl * self._divergence(ids, labels)
            else:
                loss = self.model(input_ids=ids, labels=labels).loss
            (loss / len(ROWS)).backward()
            total += float(loss.detach()) / len(ROWS)
        return total, self.gradients()

    def _divergence(self, ids: Tensor, labels: Tensor) -> Tensor:
        answers = labels[0, 1:] != -100
        with torch.no_grad(), self.model.disable_adapter():
            base = self.model(input_ids=ids).logits[0, :-1][answers].softmax(-1)
        trained = self.model(input_ids=ids).logits[0, :-1][answers].softmax(-1)
        return (base * (base / trained).log()).sum(-1).mean()


MakeBench = Callable[..., Bench]


@pytest.fixture
def bench(model, tmp_path) -> MakeBench:
    return lambda **settings: Bench(model, tmp_path, **settings)


def assert_close(one: Gradients, other: Gradients) -> None:
    assert one.keys() == other.keys()
    assert any(gradient.abs().max() > 1e-3 for gradient in one.values())
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], rtol=1e-3, atol=1e-6, msg=name)


SINGLY = [[row] for row in ROWS]
PASSES = {
    "one row a pass": SINGLY,
    "two rows a pass, padded": [ROWS[:2], ROWS[2:]],
    "rows of one kind a pass": [[ROWS[0], ROWS[2]], [ROWS[1], ROWS[3]]],
    "passes of unlike size": [ROWS[:3], ROWS[3:]],
    "all in one pass": [ROWS],
}


@pytest.mark.parametrize("passes", PASSES.values(), ids=PASSES)
@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_every_row_weighs_the_same(bench, kl, passes):
    made = bench(kl=kl)
    expected_loss, expected = made.by_hand(kl)
    loss, gradients = made.step(passes)
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    assert_close(gradients, expected)


def test_rows_end_to_end_without_padding(bench):
    made = bench(kl=0.5, padding_free=True)
    rows = [made.encode(row) for row in ROWS]
    lengths = [len(row["input_ids"]) for row in rows]
    batch = made.template.data_collator(rows)
    assert batch["labels"].shape[0] == 1
    batches, items = made.trainer.get_batch_samples(iter([batch]), 1, "cpu")
    assert int(items) == len(ROWS)
    expected, wanted = made.by_hand(0.5)
    made.model.zero_grad()
    # a stand-in for attention that knows the rows' borders: each row by itself, put end to end
    singly = made.model.forward

    def apart(input_ids: Tensor, position_ids: Tensor, logits_to_keep: Tensor, **_: Any) -> Any:
        parts = [singly(input_ids=part).logits for part in input_ids.split(lengths, dim=1)]
        return SimpleNamespace(logits=torch.cat(parts, dim=1)[:, logits_to_keep], loss=None)

    made.model.forward = apart
    loss = made.trainer.training_step(made.model, batches[0], items)
    del made.model.forward
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert_close(made.gradients(), wanted)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_rows_of_a_pass_share_what_they_begin_with(bench, attention):
    """One line without padding, in both passes."""
    made = bench(kl=0.5)
    made.model.set_attn_implementation(attention)
    seen: list[list[int]] = []
    made.model.get_base_model().model.layers[0].register_forward_pre_hook(
        lambda module, inputs: seen.append(list(inputs[0].shape[:2]))
    )
    expected_loss, expected = made.by_hand(0.5)
    seen.clear()
    made.step([[*ROWS, ROWS[0]]])
    rows = [made.encode(row)["input_ids"] for row in ROWS]
    distinct = {tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)}
    assert seen == [[1, len(distinct)]] * 2
    assert len(distinct) < sum(map(len, rows)) < len(rows) * max(map(len, rows))

    loss, gradients = made.step([ROWS])
    assert loss == pytest.approx(expected_loss, rel=1e-4)
    assert_close(gradients, expected)


def test_rows_stay_apart_where_a_line_would_be_another_loss(bench):
    """Dropout takes each row's own numbers; a model with windows counts places in the line."""
    for made in (bench(dropout=0.5), bench()):
        if not any(getattr(module, "p", 0) for module in made.model.modules()):
            made.model.config.use_sliding_window = True
        batch = made.template.data_collator([made.encode(row) for row in ROWS])
        assert not made.trainer.compute_loss_func._packs(dict(batch))


def test_by_token_is_another_loss(bench):
    """What ms-swift does without `loss_type`: else the tests here could not fail."""
    made = bench(loss_type=None)
    (_, by_token), (_, by_row) = made.step(SINGLY), made.by_hand()
    name = max(by_row, key=lambda name: float(by_row[name].abs().max()))
    assert (by_token[name] - by_row[name]).abs().max() > 0.2 * by_row[name].abs().max()


def test_before_the_first_step_nothing_pulls(bench):
    made = bench(kl=1.0, tuned=False)
    held = [[row] for row in ROWS if row[0] != "task"]
    loss, gradients = made.step(held)
    assert loss == pytest.approx(0, abs=1e-6)
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) < 1e-6
    _, taught = made.step(SINGLY)
    assert max(float(gradient.abs().max()) for gradient in taught.values()) > 1e-3


def test_the_base_pass_is_without_dropout_and_leaves_nothing(bench):
    """It takes no random number, no gradient and no setting from the pass that trains."""
    made = bench(kl=0.5, dropout=0.5)
    seen: list[tuple[bool, bool]] = []

    def watch(module: Any, inputs: Any, output: Any) -> None:
        seen.append((module.training, torch.is_grad_enabled()))

    layer = made.model.get_base_model().model.layers[0]
    handle = layer.register_forward_hook(watch)
    states = []
    for kl in (0.5, 0.0):
        made.spec.kl = kl
        torch.manual_seed(11)
        made.step([[ROWS[1]]])
        states.append(torch.get_rng_state())
    handle.remove()
    assert seen == [(True, True), (False, False), (True, True)]
    assert torch.equal(*states)
    assert made.model.training
    assert all(weight.requires_grad for n, weight in made.model.named_parameters() if "lora_" in n)


def test_a_long_answer_is_read_in_pieces(bench, monkeypatch):
    from tell_plugins.bridge import loss

    made = bench(kl=0.5)
    whole, expected = made.step(SINGLY)
    monkeypatch.setattr(loss, "_CHUNK", 3 * 400)
    in_pieces, gradients = made.step(SINGLY)
    assert in_pieces == pytest.approx(whole, rel=1e-5)
    assert_close(gradients, expected)


def test_two_curves(bench):
    made = bench(kl=2.0, enable_channel_loss=True)
    made.step(SINGLY)
    metrics = made.trainer.custom_metrics["train"]
    assert set(metrics) >= {"loss_task", "kl_general", "kl_general_plain"}
    assert "loss_general" not in metrics
    encoded = made.encode(ROWS[1])
    ids, labels = (torch.tensor([encoded[key]]) for key in ("input_ids", "labels"))
    divergence = float(made._divergence(ids, labels).detach())
    assert metrics["kl_general"].compute()["value"] == pytest.approx(divergence, rel=1e-4)


def test_validation_rows_weigh_the_same(bench):
    made = bench()
    expected, _ = made.by_hand()
    batch = made.template.data_collator([made.encode(row) for row in ROWS])
    made.model.eval()
    loss, _, _ = made.trainer.prediction_step(made.model, batch, True)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_a_base_model_in_parts_is_refused(bench, monkeypatch):
    from tell_plugins.bridge import loss

    made = bench(kl=1.0)
    monkeypatch.setattr(loss, "is_deepspeed_zero3_enabled", lambda: True)
    assert "spread over all of them" in message_of(made.step, SINGLY)
    made.spec.kl = 0.0  # its rows may still weigh the same
    made.step(SINGLY)
