"""The parts: building and checking mixtures, counting tokens, starting a training, answering."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Case, Sample, by_turns, ratio, run_child, time_until
from benchmarks.world import TASK_ROWS, World, general_texts
from tell_plugins.core import paths

_HALF_GENERAL = "tell/sample_complaints:task=48rows/general=48rows/order=even"
_SMALL = {
    **{"model_type": "llama", "hidden_size": 64, "intermediate_size": 128},
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    "max_position_embeddings": 4096,
}
_HELD_STEPS = 12
_FIRST_STEP = "'loss'"  # ms-swift prints the first step's loss when the step is done


@dataclass(frozen=True)
class Target:
    """A number that should not be above (or below) a limit."""

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def is_met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(frozen=True)
class Part:
    """What a part measured: a table's rows, and the targets that hang on it."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    targets: list[Target]


def mixtures(world: World, sizes: list[int], rounds: int, *, cold: bool) -> Part:
    """Building the mixture of each size, beside ms-swift's own load of the same rows."""
    table: list[tuple[str, ...]] = []
    warm = {rows: _measure_load(world, rows, rounds, cold=cold, table=table) for rows in sizes}
    small, large = warm[sizes[0]], warm[sizes[-1]]
    tell, swift = large["TELL, lengths cached"], large["ms-swift"]
    growth = tell.median("peak_mb") / small["TELL, lengths cached"].median("peak_mb")
    targets = [
        Target(f"time, {sizes[-1]:,} rows, TELL / ms-swift", ratio(tell, swift, "seconds"), 1.2),
        Target(
            f"peak memory, {sizes[-1]:,} rows, TELL / ms-swift", ratio(tell, swift, "peak_mb"), 1.0
        ),
        Target(f"peak memory of TELL, {sizes[-1]:,} rows / {sizes[0]:,} rows", growth, 1.5),
    ]
    columns = ("general rows", "case", "seconds", "peak MB", "time / ms-swift", "CPU / ms-swift")
    return Part(
        "Building a mixture in a process that has imported ms-swift", columns, table, targets
    )


def _measure_load(
    world: World, rows: int, rounds: int, *, cold: bool, table: list[tuple[str, ...]]
) -> dict[str, Case]:
    print(f"building, {rows:,} general rows", file=sys.stderr)
    tell_cache, swift_cache = world.folder / f"tell_{rows}", world.folder / f"swift_{rows}"
    fresh = world.folder / "fresh"
    warm_env = world.environment(tell_cache=tell_cache, swift_cache=swift_cache)
    cold_env = world.environment(tell_cache=fresh, swift_cache=fresh)
    spec, plain = world.spec(rows), str(world.plain(rows))
    if not world.plain(rows).is_file():
        run_child(["write", spec, plain], warm_env)

    def case(name: str, dataset: str, env: Mapping[str, str], cached: str = "no") -> Case:
        return Case(name, lambda: run_child(["load", dataset, cached], env))

    def forget(folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    ours = case("TELL, lengths cached", spec, warm_env)
    ours.prepare = lambda: forget(tell_cache / "mixtures")
    cases = [
        case("ms-swift", plain, warm_env),
        ours,
        case("ms-swift, load_from_cache_file", plain, warm_env, "yes"),
        case("TELL, same mixture again", spec, warm_env),
    ]
    for once in (cases[0], cases[2], cases[1]):  # fills the caches that the names speak of
        once.run()
    by_turns(cases, rounds)
    if cold:
        first = [
            case("ms-swift, first time", plain, cold_env),
            case("TELL, first time", spec, cold_env),
        ]
        for one in first:
            one.prepare = lambda: forget(fresh)
        by_turns(first, 1)
        forget(fresh)
        cases = [*first, *cases]
    for one in cases:
        by = cases[0] if "first" in one.name else _named(cases, "ms-swift")
        table.append(
            (
                f"{rows:,}",
                one.name,
                f"{one.median('seconds'):.2f}",
                f"{one.median('peak_mb'):,.0f}",
                f"{ratio(one, by, 'seconds'):.2f}",
                f"{ratio(one, by, 'cpu'):.2f}",
            )
        )
        expected = rows + TASK_ROWS
        assert all(sample["rows"] == expected for sample in one.samples), one.name
    forget(swift_cache)
    return {one.name: one for one in cases}


def _named(cases: list[Case], name: str) -> Case:
    return next(case for case in cases if case.name == name)


def counting(world: World, rows: int, rounds: int) -> Part:
    """Counting tokens of fresh rows, beside the bare tokenizer on the same texts."""
    print(f"counting, {rows:,} rows", file=sys.stderr)
    cache = world.folder / "counting"
    env = world.environment(tell_cache=cache, swift_cache=cache)
    file = world.folder / f"general_{rows}.jsonl"
    sample = run_child(["count", str(file), str(rounds)], env)
    shutil.rmtree(cache, ignore_errors=True)
    table = [
        ("bare tokenizer, encode_batch_fast", f"{sample['raw_tokens_per_second']:,.0f}", "1.00"),
        (
            "TokenCounter.lengths",
            f"{sample['counter_tokens_per_second']:,.0f}",
            f"{sample['ratio']:.2f}",
        ),
    ]
    targets = [Target("counting speed / bare tokenizer", sample["ratio"], 0.8, at_least=True)]
    title = f"Counting {sample['tokens']:,} tokens in {rows:,} fresh rows"
    return Part(title, ("case", "tokens/s", "speed / bare"), table, targets)


def checking(world: World, rows: int, rounds: int) -> Part:
    """`check` of a recipe, which counts by the model's tokenizer alone, beside `mix`, which counts
    nothing then; both read the rows for the first time."""
    print(f"checking, {rows:,} general rows", file=sys.stderr)
    cache, recipe = world.folder / "checking", world.folder / "checking.yaml"
    env = world.environment(tell_cache=cache, swift_cache=cache)
    del env["TELL_TOKENIZER"]
    paths.write_text(recipe, json.dumps(_recipe(world, rows)))
    run_child(["verb", "check", str(recipe)], env)  # asks ms-swift for its keys

    def case(*words: str) -> Case:
        return Case(
            f"./run.sh {words[0]}",
            lambda: run_child(["verb", *words], env),
            prepare=lambda: _forget_rows(cache),
        )

    mixed = case("mix", str(recipe), "--out", str(cache / "out"))
    checked = case("check", str(recipe))
    by_turns([mixed, checked], rounds)
    assert all(sample["code"] == 0 for one in (mixed, checked) for sample in one.samples)
    shutil.rmtree(cache, ignore_errors=True)
    table = [
        (
            one.name,
            f"{one.median('seconds'):.1f}",
            f"{ratio(one, mixed, 'seconds'):.2f}",
            f"{ratio(one, mixed, 'cpu'):.2f}",
            f"{one.median('peak_mb'):,.0f}",
        )
        for one in (mixed, checked)
    ]
    targets = [Target("CPU, check / mix, nothing cached", ratio(checked, mixed, "cpu"), 5.0)]
    title = f"Checking a recipe of {rows:,} general rows, nothing cached"
    return Part(title, ("verb", "seconds", "/ mix", "CPU / mix", "peak MB"), table, targets)


def _forget_rows(cache: Path) -> None:
    for name in ("rows", "lengths"):
        shutil.rmtree(cache / name, ignore_errors=True)


def _recipe(world: World, rows: int) -> dict[str, object]:
    """A recipe without findings, whose model is a tokenizer alone."""
    model = world.folder / "tokenizer_alone"
    paths.write_text(model / "config.json", json.dumps({"architectures": ["LlamaForCausalLM"]}))
    shutil.copyfile(world.tokenizer, model / "tokenizer.json")
    return {
        "external_plugins": ["tell_plugins/register.py"],
        "model": str(model),
        "model_type": "llama",
        "template": "chatml",
        "dataset": [world.spec(rows)],
        "dataset_shuffle": False,
        "train_dataloader_shuffle": False,
        "strict": True,
        "max_length": 8192,
        "output_dir": "output/checking",
    }


def starting(world: World, rows: int, rounds: int) -> Part:
    """The start of `swift sft` until its first optimizer step is done."""
    print(f"starting a training, {rows:,} general rows", file=sys.stderr)
    tell_cache, swift_cache = world.folder / "tell_start", world.folder / "swift_start"
    env = world.environment(tell_cache=tell_cache, swift_cache=swift_cache)
    _make_model(world)
    run_child(["write", world.spec(rows), str(world.plain(rows))], env)

    def case(name: str, flags: list[str]) -> Case:
        def run() -> Sample:
            return time_until(_training(world, flags), env, _FIRST_STEP, world.folder)

        return Case(name, run)

    ours = case(
        "TELL, a new mixture",
        ["--external_plugins", "tell_plugins/register.py", "--dataset", world.spec(rows)],
    )
    ours.prepare = lambda: shutil.rmtree(tell_cache / "mixtures", ignore_errors=True)
    plain = case("JSON lines file", ["--dataset", str(world.plain(rows))])
    by_turns([plain, ours], rounds)
    shutil.rmtree(tell_cache, ignore_errors=True)
    shutil.rmtree(swift_cache, ignore_errors=True)
    quotient = ratio(ours, plain, "seconds")
    table = [
        (
            one.name,
            f"{one.median('seconds'):.1f}",
            f"{ratio(one, plain, 'seconds'):.2f}",
            f"{one.median('cpu'):.1f}",
            f"{ratio(one, plain, 'cpu'):.2f}",
        )
        for one in (plain, ours)
    ]
    title = f"Start of `swift sft` to its first step, {rows + TASK_ROWS:,} rows, a 2-layer model"
    targets = [Target("start of training, TELL / JSON lines", quotient, 1.1)]
    columns = ("data set", "seconds", "/ JSON lines", "CPU seconds", "/ JSON lines")
    return Part(title, columns, table, targets)


def holding(world: World, rounds: int, *, embedded: bool) -> Part:
    """Steps whose general rows, half of all, hold the model by KL, beside cross-entropy on them.

    Of the embedded model, else of the random one.
    """
    from tell_plugins.bridge.embedded_model import prepare_model

    print("holding rows by KL", file=sys.stderr)
    model = prepare_model() if embedded else _make_model(world)
    cache = world.folder / "holding"
    env = world.environment(tell_cache=cache, swift_cache=cache)
    cases = [
        _steps_case(name, world, model, spec, loss, env)
        for name, spec, loss in (
            ("cross-entropy by token (ms-swift)", _HALF_GENERAL, "cross_entropy"),
            ("cross-entropy by row", _HALF_GENERAL, "tell"),
            ("general rows held by KL", f"{_HALF_GENERAL}/kl=1", "tell"),
        )
    ]
    by_turns(cases, rounds)
    shutil.rmtree(cache, ignore_errors=True)
    plain, held = cases[0], cases[-1]
    table = [
        (
            one.name,
            f"{one.median('seconds'):.1f}",
            f"{ratio(one, plain, 'seconds'):.2f}",
            f"{ratio(one, plain, 'cpu'):.2f}",
            f"{one.median('peak_mb'):,.0f}",
            f"{ratio(one, plain, 'peak_mb'):.2f}",
        )
        for one in cases
    ]
    targets = [
        Target("CPU time of a step, held / cross-entropy", ratio(held, plain, "cpu"), 1.25),
        Target("peak memory, held / cross-entropy", ratio(held, plain, "peak_mb"), 1.25),
    ]
    title = f"{_HELD_STEPS} steps of 8 rows, one a forward pass, half of them general, {model.name}"
    columns = ("loss", "seconds", "/ first", "CPU / first", "peak MB", "/ first")
    return Part(title, columns, table, targets)


def _steps_case(
    name: str, world: World, model: Path, spec: str, loss: str, env: Mapping[str, str]
) -> Case:
    changes = {
        "model": str(model),
        "torch_dtype": "bfloat16",
        "gradient_checkpointing": "false",
        "gradient_accumulation_steps": "8",
        "max_steps": str(_HELD_STEPS),
        "loss_type": loss,
        "output_dir": str(world.folder / "steps" / f"{loss}{'kl' in spec}"),
    }
    plugin = ["--external_plugins", "tell_plugins/register.py", "--dataset", spec]
    flags = _training(world, plugin, **changes)[4:]
    file = world.folder / f"{loss}{'kl' in spec}.json"
    paths.write_text(file, json.dumps(flags))
    folder = Path(changes["output_dir"])
    return Case(
        name,
        lambda: run_child(["train", str(file)], env),
        prepare=lambda: shutil.rmtree(folder, ignore_errors=True),
    )


def answering(world: World, asked: Asked, rounds: int) -> Part:
    """Answering prompts as `eval` does, beside a loop over single rows: same model, fp32, greedy.

    The loop is that of the paper's published script (batch 1), with transformers' own `generate`.
    """
    print(f"answering, {len(asked.prompts)} prompts", file=sys.stderr)
    cache = world.folder / "answering"
    env = world.environment(tell_cache=cache, swift_cache=cache)
    del env["OMP_NUM_THREADS"]  # a model of this size is worth all cores
    env["OMP_WAIT_POLICY"] = "PASSIVE"
    model, file, ids, out = (
        str(asked.model),
        cache / "prompts.json",
        cache / "ids.json",
        cache / "a",
    )
    paths.write_text(file, json.dumps(asked.prompts))
    encoded = run_child(["encode", model, str(file), str(ids)], env)
    alone = ["answer_singly", model, str(ids), str(asked.limit)]
    together = ["answer_batched", model, str(file), str(asked.limit), str(asked.batch), str(out)]
    single = Case("one row at a time", lambda: run_child(alone, env))
    batched = Case(f"eval, batches of {asked.batch}", lambda: run_child(together, env))
    batched.prepare = lambda: shutil.rmtree(out, ignore_errors=True)
    by_turns([single, batched], rounds)
    shutil.rmtree(cache, ignore_errors=True)
    quotient = ratio(batched, single, "answers_per_second")
    pairs = zip(single.samples[0]["hashes"], batched.samples[0]["hashes"], strict=True)
    same = sum(one == other for one, other in pairs)
    table = [
        (
            one.name,
            f"{one.median('answers_per_second'):.3f}",
            f"{one.median('tokens') / one.median('seconds'):.1f}",
            f"{ratio(one, single, 'answers_per_second'):.2f}",
            f"{one.median('tokens'):,.0f}",
        )
        for one in (single, batched)
    ]
    title = (
        f"Answering {len(asked.prompts)} prompts ({asked.what}, {encoded['tokens']:,} tokens), "
        f"up to {asked.limit} new tokens, "
        f"{asked.model.name}, fp32, greedy; {same} of {len(asked.prompts)} answers are the same"
    )
    columns = ("case", "answers/s", "tokens/s", "/ one at a time", "new tokens")
    targets = [
        Target("answers per second, eval / one row at a time", quotient, 2.5, at_least=True),
        Target("share of answers that are the same", same / len(asked.prompts), 0.98, True),
    ]
    return Part(title, columns, table, targets)


@dataclass(frozen=True)
class Asked:
    """What is answered: prompts, by which model, up to how many new tokens."""

    what: str
    prompts: list[str]
    model: Path
    limit: int
    batch: int = 16  # the default of `eval`


def official_prompts(rows: int, limit: int) -> Asked:
    """A seeded draw of official test prompts for the embedded model.

    Raises UserError where the data is not here, MachineError where the model cannot be had.
    """
    from tell_plugins.bridge.embedded_model import prepare_model
    from tell_plugins.core.cards import load_card
    from tell_plugins.evaluation.prompts import task_prompts

    card = load_card("halu_cot_json")
    _, prompts = task_prompts(card, "test", "card", rows)
    texts = [prompt.text for prompt in prompts]
    return Asked("test split of halu_cot_json", texts, prepare_model(), limit)


def made_prompts(world: World, rows: int, limit: int) -> Asked:
    """Prompts and a random model of the benchmark's own."""
    texts = [row["instruction"] for row in general_texts(rows)]
    return Asked("made up", texts, _make_model(world), limit)


def embedded_prompts(rows: int, limit: int) -> Asked:
    """Prompts of the benchmark's own for the embedded model. MachineError without it."""
    from tell_plugins.bridge.embedded_model import prepare_model

    texts = [row["instruction"] for row in general_texts(rows)]
    return Asked("made up", texts, prepare_model(), limit)


def _make_model(world: World) -> Path:
    """The random model of the benchmark's own, made where it is missing."""
    if not (world.model / "config.json").is_file():
        env = world.environment(tell_cache=world.folder, swift_cache=world.folder)
        config = world.folder / "config.json"
        paths.write_text(config, json.dumps(_SMALL))
        run_child(["model", str(config), str(world.tokenizer), str(world.model), "float32"], env)
    return world.model


def _training(world: World, flags: list[str], **changes: str) -> list[str]:
    values = {
        "model": str(world.model),
        "model_type": "llama",
        "template": "chatml",
        "check_model": "false",
        "use_cpu": "true",
        "torch_dtype": "float32",
        "tuner_type": "lora",
        "target_modules": "all-linear",
        "dataset_shuffle": "false",
        "train_dataloader_shuffle": "false",
        "dataloader_num_workers": "0",
        "split_dataset_ratio": "0",
        "max_length": "2048",
        "per_device_train_batch_size": "1",
        "gradient_accumulation_steps": "16",
        "max_steps": "1",
        "logging_steps": "1",
        "save_strategy": "no",
        "report_to": "none",
        "output_dir": str(world.folder / "output"),
        "add_version": "false",
        **changes,
    }
    pairs = [part for key, value in values.items() for part in (f"--{key}", value)]
    return [sys.executable, "-m", "swift.cli.main", "sft", *pairs, *flags]
