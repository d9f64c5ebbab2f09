"""Steps, learning rates, exposure and cost, held against transformers, ms-swift and autograd."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tell_plugins.core.errors import UserError
from tell_plugins.core.order import arrange
from tell_plugins.recipe.models import block_bytes, memory, reported_flops, shape_of
from tell_plugins.recipe.recipes import Recipe
from tell_plugins.recipe.schedule import Training, exposure, plan, why_no_op, world_size
from tests.conftest import in_fresh_process, message_of

PAPER = Training(epochs=1, warmup_ratio=0.03)
SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup")


# --- learning rates ----------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (2, 1), (8, 1), (56, 2), (40, 60)])
def test_rates_are_those_of_transformers(scheduler, steps, warmup):
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    real = get_scheduler(scheduler, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        real.step()
    run = plan(steps, Training(accumulation=1, epochs=1, scheduler=scheduler, warmup_steps=warmup))
    mine = run.rates_at(np.arange(steps)) * 3e-4
    assert mine.tolist() == pytest.approx(rates, rel=1e-12, abs=0)


# --- steps -------------------------------------------------------------------------------------

RUNS = [
    (15, Training(accumulation=16, epochs=1, warmup_ratio=0.03)),
    (16, Training(accumulation=16, epochs=1, warmup_ratio=0.03)),
    (17, Training(accumulation=16, epochs=1, warmup_ratio=0.03)),
    (37, Training(per_device=2, accumulation=4, epochs=2, warmup_ratio=0.1)),
    (37, Training(per_device=2, accumulation=4, epochs=2, warmup_steps=3, drop_last=True)),
    (37, Training(per_device=3, accumulation=2, epochs=1.5, scheduler="cosine")),
    (37, Training(per_device=3, accumulation=2, max_steps=4, warmup_ratio=0.5)),
    (10, Training(per_device=4, accumulation=2, max_steps=7, scheduler="constant_with_warmup")),
    (10, Training(per_device=16, accumulation=1, epochs=3)),
]


Taken = list[tuple[float, list[int]]]


@pytest.fixture(scope="module")
def real_trainings(tmp_path_factory) -> list[Taken]:
    """What a real Trainer did in each of RUNS (ms-swift changes the Trainer on import)."""
    return in_fresh_process(_real_trainings, tmp_path_factory.mktemp("trainings"))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(RUNS)))
def test_steps_and_rows_are_those_of_a_real_training(number, real_trainings):
    (rows, training), taken = RUNS[number], real_trainings[number]
    mine = plan(rows, training)
    assert mine.steps == len(taken)
    assert (
        mine.rates_at(np.arange(mine.steps)) * training.learning_rate
    ).tolist() == pytest.approx([rate for rate, _ in taken], rel=1e-12, abs=0)
    seen: list[list[int]] = [[] for _ in range(mine.steps)]
    for entry in range(rows):
        for step in np.flatnonzero(mine.by_step(np.arange(rows) == entry)):
            seen[step].append(entry)
    assert seen == [batch for _, batch in taken]


def _real_trainings(folder: Path) -> list[Taken]:
    return [_real_training(rows, training, folder) for rows, training in RUNS]


def _real_training(rows: int, training: Training, folder: Path) -> Taken:
    """What a real Trainer does without shuffling: each step's learning rate and rows."""
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, row: torch.Tensor) -> dict[str, torch.Tensor]:
            held.extend(row.tolist())
            return {"loss": (self.weight * row).mean()}

    class Plain(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(train_dataset if train_dataset is not None else data)

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            taken.append((kw["optimizer"].param_groups[0]["lr"], list(held)))
            held.clear()

    held: list[int] = []
    taken: Taken = []
    data = [{"row": row} for row in range(rows)]
    args = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        optim="adamw_torch",
        per_device_train_batch_size=training.per_device,
        gradient_accumulation_steps=training.accumulation,
        num_train_epochs=training.epochs,
        max_steps=training.max_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.scheduler,
        warmup_ratio=training.warmup_ratio,
        warmup_steps=training.warmup_steps,
        dataloader_drop_last=training.drop_last,
    )
    Plain(model=Model(), args=args, train_dataset=data, callbacks=[Watch()]).train()  # type: ignore[arg-type]
    return taken


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("rows", [7, 48, 50])
@pytest.mark.parametrize("drop_last", [False, True])
def test_processes_share_rows_as_ms_swift_does(world, rows, drop_last):
    training = Training(per_device=2, accumulation=3, world=world, epochs=1, drop_last=drop_last)
    by_step: dict[int, set[int]] = {}
    for rank in range(world):
        for number, batch in enumerate(_swift_batches(rows, rank, world, 2, drop_last)):
            by_step.setdefault(number // training.accumulation, set()).update(batch)
    mine = plan(rows, training)
    assert mine.steps == len(by_step)
    for row in range(rows):
        held = {step for step, batch in by_step.items() if row in batch}
        assert held == set(np.flatnonzero(mine.by_step(np.arange(rows) == row)))
    assert mine.seen == sum(len(batch) for batch in by_step.values())


def _swift_batches(
    rows: int, rank: int, world: int, batch: int, drop_last: bool
) -> list[list[int]]:
    from swift.dataloader import BatchSamplerShard

    class Rank(BatchSamplerShard):
        @property
        def rank(self) -> int:
            return rank

        @property
        def world_size(self) -> int:
            return world

    return list(Rank(rows, batch, shuffle=False, drop_last=drop_last, data_seed=42))


def test_max_epochs_ends_the_run_but_not_the_schedule():
    short = plan(64, Training(epochs=3, max_epochs=1))
    assert (short.steps, short.scheduled) == (4, 12)
    assert short.rates_at(np.array([3]))[0] == pytest.approx(9 / 12)


@pytest.mark.parametrize(
    "training",
    [Training(epochs=0), Training(max_steps=0), Training(world=20), Training(max_epochs=0)],
)
def test_a_run_without_a_step_is_an_error(training):
    with pytest.raises(UserError, match=r"takes 0 optimizer steps|no batch"):
        plan(15, training)


@pytest.mark.parametrize(
    ("environ", "processes"),
    [({}, 1), ({"NPROC_PER_NODE": "2"}, 2), ({"NPROC_PER_NODE": "4", "NNODES": "3"}, 12)],
)
def test_processes_come_from_the_environment(environ, processes):
    assert world_size(environ) == processes
    assert "NPROC_PER_NODE is 'gpu'" in message_of(world_size, {"NPROC_PER_NODE": "gpu"})


# --- no-op and exposure --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "steps", "no_op"), [(15, 1, True), (16, 1, True), (17, 2, False), (115, 8, False)]
)
def test_the_papers_smallest_baseline_trains_nothing(rows, steps, no_op):
    run = plan(rows, PAPER)
    assert (run.steps, run.is_no_op) == (steps, no_op)
    reason = why_no_op(run)
    assert (reason is not None) == no_op
    if reason:
        assert f"{rows} rows at 16 rows a step are 1 optimizer step" in reason


def test_exposure_adds_up_by_hand():
    run = plan(6, Training(accumulation=2, epochs=1))  # rates 1, 2/3, 1/3
    got = exposure(run, np.array([True, False, False, True, True, False]))
    assert got.steps == got.working_steps == 3
    assert got.weight == pytest.approx(1 + 2 / 3 + 1 / 3)
    assert got.relative == pytest.approx(1.0)
    assert got.unseen == 0


def test_exposure_counts_epochs_and_what_is_never_seen():
    task = np.array([True] + [False] * 6 + [True])
    two = exposure(plan(8, Training(accumulation=4, epochs=2, scheduler="constant")), task)
    assert (two.steps, two.weight) == (4, 4.0)
    cut = exposure(plan(8, Training(accumulation=4, max_steps=1, scheduler="constant")), task)
    assert (cut.steps, cut.weight, cut.unseen) == (1, 1.0, 1)
    shared = exposure(plan(8, Training(accumulation=1, world=3, epochs=1)), task)
    assert shared.unseen == 1  # 8 rows over 3 processes: the last two are left out


def test_a_long_schedule_adds_up():
    run = plan(32, Training(max_steps=10**6))
    told = exposure(run, np.arange(32) < 8)
    assert run.peak == 1
    assert told.weight == pytest.approx(4 * run.steps / 2, rel=0.01)
    assert run.over_the_run(np.ones(32)) == 16 * run.steps


@pytest.mark.parametrize(
    "training", [Training(max_steps=10**18), Training(epochs=1e300), Training(max_steps=10**8)]
)
def test_a_schedule_beyond_all_trainings_is_an_error(training):
    assert "optimizer steps" in message_of(plan, 32, training)


def test_even_order_gives_steady_exposure():
    """15 task rows among 22,700: under 2 % from seed to seed; a shuffle has over 10 %."""
    task, general = 15, 22_685
    run = plan(task + general, PAPER)
    spread = {}
    for order in ("even", "shuffle"):
        weights = []
        for seed in range(200):
            hashes = np.random.default_rng(seed).integers(0, 2**64, task + general, np.uint64)
            places = arrange(order, hashes[:task], hashes[task:], task_rows=task)
            weights.append(exposure(run, places < task).weight)
        spread[order] = float(np.std(weights) / np.mean(weights))
    assert spread["even"] < 0.02
    assert spread["shuffle"] > 0.10


# --- cost ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("Qwen/Qwen-7B-Chat", 7_721_324_544),
        ("modelscope/Llama-2-7b-chat-ms", 6_738_415_616),
        ("AI-ModelScope/gemma-7b-it", 8_537_680_896),
    ],
)
def test_sizes_of_the_papers_models(model, parameters):
    shape = shape_of(model)
    assert shape.parameters == parameters


@pytest.mark.parametrize("kind", ["llama", "gemma"])
@pytest.mark.parametrize("targets", [["q_proj", "k_proj", "v_proj"], ["all-linear"]])
def test_sizes_from_a_config_are_those_of_the_model(kind, targets, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = _small_model(kind, layers=2)
    model.config.save_pretrained(tmp_path)
    shape = shape_of(str(tmp_path))
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    names = "all-linear" if targets == ["all-linear"] else targets
    tuned = get_peft_model(model, LoraConfig(r=8, target_modules=names))
    trainable = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    assert shape.lora_parameters(targets, 8) == trainable


@pytest.mark.parametrize("text", ['{"model_type": "mamba"}', '{"model_type": "llama"}', "{"])
def test_a_model_of_another_kind_has_no_sizes(text, tmp_path):
    assert shape_of("some/model") is None
    (tmp_path / "config.json").write_text(text)
    assert shape_of(str(tmp_path)) is None


def test_reported_flops_span_the_papers_range():
    """Appendix A.1: 3e14 to 4e17 FLOPs a run, for 1e4 to 1e7 tokens."""
    shape = shape_of("Qwen/Qwen-7B-Chat")
    assert 3e14 < reported_flops(shape, 10_000) < 5e14
    assert 3.5e17 < reported_flops(shape, 10_000_000) < 5e17


@pytest.mark.parametrize("kind", ["llama", "gemma"])
@pytest.mark.parametrize("targets", [("q_proj", "k_proj", "v_proj"), ("all-linear",)])
def test_activations_are_about_what_autograd_keeps(kind, targets, tmp_path):
    tokens = 512
    small, large = (_kept_bytes(kind, layers, targets, tokens) for layers in (1, 3))
    _small_model(kind, layers=3).config.save_pretrained(tmp_path)
    shape = shape_of(str(tmp_path))
    formula = block_bytes(shape, targets, 2, cast=4)
    assert formula == pytest.approx((large - small) / 2 / tokens, rel=0.15)


def _kept_bytes(kind: str, layers: int, targets: tuple[str, ...], tokens: int) -> int:
    """Bytes that the forward pass of a LoRA model keeps for the backward pass."""
    from peft import LoraConfig, get_peft_model

    model = _small_model(kind, layers).bfloat16()
    names = "all-linear" if targets == ("all-linear",) else list(targets)
    tuned = get_peft_model(model, LoraConfig(r=8, lora_dropout=0.05, target_modules=names))
    tuned.train()
    weights = {p.untyped_storage().data_ptr() for p in tuned.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        square = tensor.shape[-2:] == (tokens, tokens)  # the CPU's mask; a GPU makes none
        if storage.data_ptr() not in weights and not square:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(0, 200, (1, tokens))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = tuned.model.model(ids, use_cache=False).last_hidden_state
    assert result.requires_grad
    return sum(kept.values())


def _small_model(kind: str, layers: int) -> Any:
    from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": 200,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    if kind == "gemma":
        return GemmaForCausalLM(GemmaConfig(head_dim=64, **sizes))
    return LlamaForCausalLM(LlamaConfig(**sizes))


def _memory(model: str, lengths: list[list[int]], **keys: Any) -> dict[str, float]:
    held = keys.pop("held", False)
    recipe = Recipe(Path("any.yaml"), {"target_modules": ["all-linear"], **keys})
    return memory(shape_of(model), recipe, np.array(lengths), held=held)


def test_memory_takes_the_row_that_needs_most():
    model, targets = "Llama-2-7b-chat-ms", ["q_proj", "k_proj", "v_proj"]
    parts = _memory(model, [[100, 50], [2048, 2048], [2048, 10]], target_modules=targets)
    assert parts == _memory(model, [[2048, 2048]], target_modules=targets)
    assert sum(_memory(model, [[100, 50]]).values()) < sum(parts.values())
    assert parts["weights"] == 2 * shape_of(model).parameters
    assert parts["adapter with Adam"] == 16 * shape_of(model).lora_parameters(targets, 8)


def test_memory_knows_what_saves_logits_and_activations():
    def part(name: str = "logits", model: str = "gemma-7b-it", **keys: Any) -> float:
        return _memory(model, [[3500, 2000]], **keys)[name]

    assert part() == 2000 * 256_000 * 14
    assert part(use_logits_to_keep=False) == 3500 * 256_000 * 14
    chunks = 2**28  # of fp32 numbers, whatever the row's length
    assert part(loss_type="tell") == 2000 * 256_000 * 4 + chunks
    assert part(loss_type="tell", held=True) == 2000 * 256_000 * 6 + chunks
    assert part(model="Qwen-7B-Chat") == 3500 * 151_936 * 14  # its remote code computes every logit
    kept = part("activations", gradient_checkpointing=False)
    assert kept > 5 * part("activations", gradient_checkpointing=True)
