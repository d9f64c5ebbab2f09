"""Planted faults: each has the one finding that it should, and every rule has some."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tell_plugins.core.errors import UserError
from tell_plugins.recipe.checked import Finding, as_errors
from tests.check_world import HELD, look
from tests.conftest import PROJECT
from tests.swift_keys_once import keys


def of(spec: str, **keys: Any) -> dict[str, Any]:
    """A recipe with another dataset string."""
    return {"dataset": [f"tell/{spec}"], **keys}


# rule -> what is planted, and what the finding says of it. A text is a line of the recipe, a
# mapping its keys (None: left out). Of these, `text` is a line too, `whole` the whole file, `also`
# the rule of what follows from the fault.
PLANTED: dict[str, list[tuple[str | dict[str, Any], str]]] = {
    "tell-recipe": [
        ({"whole": "base: recipes/a.yaml\nmethods: {TELL: {}}\n"}, "this is a sweep file"),
        ({"whole": "name: a\nkind: task\nsplits: {}\n"}, "this is a card"),
        ({"whole": "- a\n"}, "a recipe is a mapping"),
        ({"whole": ""}, "a recipe is a mapping"),
    ],
    "tell-key-unknown": [
        ("learnin_rate: 1", "did you mean 'learning_rate'?"),
        ("lora_ran: 1", "write 'lora_rank' in full"),
        ("lora-rank: 1", "did you mean 'lora_rank'?"),
        ("lora_dropout_p: 1", "did you mean 'lora_dropout'?"),
        ("sft_type: 1", "write 'tuner_type'"),
        ("no_add_version: 1", "did you mean 'add_version'?"),
        ("xyzzy: 1", "remove it"),
        ({"rlhf_type": "dpo"}, "needs rows with a rejected answer"),
    ],
    "tell-key-renamed": [
        ({"text": "train_type: lora\n", "tuner_type": None}, "write 'tuner_type'")
    ],
    "tell-secret": [("hub_token: hf_abc", "'hub_token' in a recipe is read by everyone")],
    "tell-value-empty": [
        ("system:", "reads as the text 'None'"),
        ("system: None", "reads as the text 'None'"),
    ],
    "tell-value-type": [
        ("save_strategy: no", 'put it into quotes: save_strategy: "no"'),
        ("report_to: no", "put texts into quotes"),
        ("report_to: []", "remove the key"),
        ("logging_steps: 1.5", "a whole number"),
        ("logging_steps: true", "a whole number"),
        ("logging_steps: 2024-01-31", "a whole number"),
        ("adam_epsilon: small", "a number"),
        ("adam_epsilon: [1, 2]", "a number"),
        ("adam_epsilon: 2024-01-31", "a number"),
        ("use_cpu: maybe", "true or false"),
        ("attn_impl: [sdpa]", "one text"),
        ({"learning_rate": "1e-4x"}, "a number"),
        ({"weight_decay": None, "text": "weight_decay: .nan\n"}, "a number"),
    ],
    "tell-value-unknown": [
        ("truncation_strategy: rigth", "did you mean 'right'?"),
        ("eval_strategy: epochs", "did you mean 'epoch'?"),
        ("tuner_backend: pfet", "did you mean 'peft'?"),
        ({"optim": "adamw_troch"}, "adamw_torch"),
        ({"tuner_type": "lorra"}, "lora"),
        ({"deepspeed": "zero9"}, "zero2_offload"),
        ({"deepspeed": "ds.json"}, "zero2_offload"),
    ],
    "tell-value-range": [
        (
            {"also": "tell-rate-low", "warmup_ratio": None, "text": "warmup_ratio: 3\n"},
            "allowed: from 0 to 1",
        ),
        ({"warmup_ratio": None, "text": "warmup_ratio: -0.03\n"}, "allowed: from 0 to 1"),
        ({"lora_dropout": None, "text": "lora_dropout: 5\n"}, "allowed: from 0 to 1"),
        ({"learning_rate": None, "text": "learning_rate: -1e-4\n"}, "allowed: from 0"),
        ({"lora_rank": None, "text": "lora_rank: 0\n"}, "allowed: from 1"),
        ({"lora_alpha": None, "text": "lora_alpha: -32\n"}, "allowed: from 1"),
        ({"max_length": None, "text": "max_length: -1\n"}, "allowed: from 1"),
    ],
    "tell-value-text": [
        ("run_name: 007", "write 'run_name: \"007\"'"),
        ("run_name: 1.10", "write 'run_name: \"1.10\"'"),
        ("logging_steps: 012", "write it in plain digits"),
    ],
    "tell-path-variable": [
        ({"output_dir": "$HOME/out"}, "holds $HOME"),
        ({"model": "${MODELS}/a"}, "holds ${MODELS}"),
        ({"run_name": "${oc.env:USER}"}, "holds ${oc.env:USER}"),
    ],
    "tell-value-list": [("modules_to_save: [1, 2]", "stops `swift sft --config`")],
    "tell-dataset": [
        (of("toy:split=tran"), "did you mean 'train'?"),
        (of("toi:tsk=8rows"), "did you mean 'toy'?"),
        (of("toy:split=test"), "its rows never train"),
        (of("toy:anchor=crad"), "did you mean 'card'?"),
        (of("toy:from=plane"), "did you mean 'plain'?"),
        (of("toy:from=toy"), "name general cards only"),
        ({"dataset": ["tell/toy", "tell/plain"]}, "exactly one entry"),
        ({"dataset": ["tell/toy", "tell/plain"]}, "gets a card like datasets/sample_general/card"),
        ({"dataset": ["tell/toy", "some/data"]}, "1 TELL data sets among 2"),
        ({"dataset": ["some/data"]}, "0 TELL data sets"),
        ({"dataset": ["toy"]}, "write dataset: [tell/<card>]"),
        ({"dataset": None, "cached_dataset": ["x"]}, "0 TELL data sets among 0"),
        ({"dataset": None}, "write dataset: [tell/<card>]"),
        (of("toy#5"), "'#' takes no sample"),
    ],
    "tell-validation": [
        ({"val_dataset": ["tell/tooy:split=test"]}, "did you mean 'toy'?"),
        ({"val_dataset": ["nowhere.jsonl#50"]}, "no file 'nowhere.jsonl'"),
        ({"val_dataset": ["tell/toy:split=test"]}, "test rows serve as validation data"),
        ({"val_dataset": ["tell/toy"]}, "validates on training rows"),
    ],
    "tell-data": [
        (of("toy:task=99rows"), "there are only 10 rows"),
        (
            {"also": "tell-kl", "dataset": ["tell/plain:kl=1"]},
            "it has no anchor, order, copies or general part",
        ),
        (of("plain:from=plain"), "it has no anchor, order, copies or general part"),
        (of("leak:general=24rows"), "1 task rows are test rows"),
    ],
    "tell-answer-schema": [(of("bad_schema:general=24rows"), "leads out of the file")],
    "tell-pattern-slow": [(of("slow_pattern:general=24rows"), "runs longer than 1 s")],
    "tell-data-missing": [
        (of("halu_cot_json:task=115rows/general=0"), "no file 'dev_Halu_CoT_JSON.jsonl'")
    ],
    "tell-data-duplicates": [
        (of("toy:task=8rows/general=all/from=doubled"), "'doubled' holds 1 duplicate row")
    ],
    "tell-data-malformed": [
        (
            of("toy:task=8rows/general=24rows/from=rough"),
            "left out (lines 1): the response is empty",
        )
    ],
    "tell-test-rows-train": [
        (
            of("toy:task=8rows/general=all/from=leaky/overlap=keep"),
            "1 general row trained on with a held-out query",
        )
    ],
    "tell-test-rows-missing": [(of("half:general=24rows/overlap=keep"), "test rows are not here")],
    "tell-control-task": [
        (of("steered:general=24rows"), "the model's tokenizer is not here"),
        (
            {
                "dataset": ["tell/steered:general=24rows"],
                "model": "{}/own_words",
                "model_type": "llama",
                "template": "chatml",
                "target_modules": None,
            },
            "the model reads the end or beginning of a turn there",
        ),
    ],
    "tell-control-general": [
        (of("toy:task=8rows/general=24rows/from=steering"), "1 row of 'steering' left out")
    ],
    "tell-row-long": [
        (of("long:general=24rows", max_length=200), "(line 1: 304 tokens) is over max_length 200")
    ],
    "tell-row-near": [(of("long:general=24rows", max_length=320), "line 1: 304 tokens")],
    "tell-general-long": [
        (
            of("toy:task=8rows/general=all/from=wide", max_length=200),
            "1 general row of 'wide' over max_length 200",
        )
    ],
    "tell-general-few": [
        (of("toy:task=8rows/general=4rows", gradient_accumulation_steps=4), "8 task rows among 4")
    ],
    "tell-anchor-answers": [
        (of("labels:general=24rows"), "'yes' and 'no'"),
        (of("quoted:general=24rows"), "names 'unsure' as"),
        (of("part:general=24rows"), "names 'rig' as"),
        (of("objects:general=24rows"), "names 'maybe' as"),
    ],
    "tell-order": [
        ({"dataset_shuffle": None}, "which shuffles the mixture again"),
        ({"dataset_shuffle": True}, "write 'dataset_shuffle: false'"),
        ({"train_dataloader_shuffle": None}, "write 'train_dataloader_shuffle: false'"),
        ({"packing": True}, "write 'packing: false'"),
        ({"group_by_length": True}, "write 'group_by_length: false'"),
        ({"streaming": True}, "write 'streaming: false'"),
        ({"interleave_prob": ["0.5", "0.5"]}, "in an order of its own"),
        ({"cached_dataset": ["some/folder"]}, "brings rows of other data sets"),
        ({"split_dataset_ratio": 0.01}, "takes scarce task rows out of training"),
        ({"sequence_parallel_size": 2}, "brings a sampler of its own"),
        ({"ignore_data_skip": True}, "begin the mixture anew"),
    ],
    "tell-strict": [({"strict": False}, "'strict' is not true")],
    "tell-truncation": [
        ({"truncation_strategy": "split"}, "for pre-training only"),
        ({"truncation_strategy": "left"}, "are cut, not refused"),
    ],
    "tell-schedule": [
        ({"num_train_epochs": 0}, "takes 0 optimizer steps"),
        ({"gradient_accumulation_steps": 0}, "a whole number from 1"),
    ],
    "tell-schedule-unknown": [
        ({"lr_scheduler_type": "polynomial"}, "'polynomial' is not modelled"),
        ({"lr_scheduler_kwargs": {"num_cycles": 2}}, "with arguments of its own is not modelled"),
    ],
    "tell-no-op": [
        (of("toy:task=8rows/general=0"), "are 1 optimizer step, 1 of them warm-up"),
        ({"learning_rate": 0}, "a learning_rate above 0"),
    ],
    "tell-exposure-zero": [
        (of("toy:task=8rows/general=24rows/order=task_first"), "exposure 0.00: the 8 task rows")
    ],
    "tell-rate-low": [({"warmup_steps": 50}, "never reaches 0.0001")],
    "tell-rate-high": [({"learning_rate": 10000.0}, "check the exponent's sign")],
    "tell-rows-unseen": [
        ({"max_steps": 1, "warmup_ratio": 0.0}, "rows never trained on"),
        (
            {
                "max_steps": 1,
                "warmup_ratio": 0.0,
                "dataset": ["tell/toy:task=8rows/general=24rows/order=task_first"],
            },
            "16 rows never trained on, 0 of task data",
        ),
    ],
    "tell-plugin": [
        ({"external_plugins": None}, "does not name tell_plugins/register.py"),
        ({"external_plugins": ["register.py"]}, "does not name tell_plugins/register.py"),
        (
            {"external_plugins": ["tell_plugins/register.py", "mine/register.py"]},
            "'mine/register.py' beside tell_plugins/register.py",
        ),
    ],
    "tell-model-missing": [
        ({"model": None}, "no 'model'"),
        ({"model": "models/none"}, "no model folder 'models/none'"),
        ({"model": "tests"}, "holds no config.json"),
        ({"model": "~nobody-at-all/x"}, "no model folder '~nobody-at-all/x'"),
    ],
    "tell-model-type": [
        ({"model_type": "lama"}, "did you mean 'llama'?"),
        ({"model": "Qwen/Qwen2.5-0.5B-Instruct", "model_type": "llama"}, "Qwen2For"),
        (
            {"also": "tell-template", "model": "{}/qwen2", "model_type": "llama"},
            "is Qwen2ForCausalLM",
        ),
        ({"model": "{}/llama"}, "LlamaForCausalLM may be several"),
        ({"model": "{}/nameless"}, "a config.json without architectures may be"),
        ({"model": "{}/unknown"}, "its table has no NobodysForCausalLM"),
    ],
    "tell-template": [
        ({"template": "chatmll"}, "did you mean 'chatml'?"),
        ({"template": "gemma"}, "ms-swift's table has 'llama'"),
        ({"model": "{}/llama", "model_type": "llama"}, "have several chat templates"),
    ],
    "tell-model-cpu": [
        ({"use_cpu": True}, "has 6.7e9 parameters"),
        ({"use_cpu": True, "model": "Qwen/Qwen2.5-14B-Instruct"}, "has 14.0e9"),
        ({"use_cpu": True, "quant_method": "bnb", "quant_bits": 4}, "on a GPU only"),
    ],
    "tell-positions": [({"max_length": 8192}, "write 'max_length: 4096'")],
    "tell-targets": [
        ({"target_modules": ["q_proj", "c_attn"]}, "and Llama-2-7b-chat has no such layers"),
        ({"target_modules": ["c_attn"]}, "and Llama-2-7b-chat has no such layers"),
        (
            {"model": "Qwen/Qwen2.5-14B-Instruct", "target_modules": ["c_attn"]},
            "and type 'qwen2' has no such layers",
        ),
    ],
    "tell-loss": [
        ({"loss_type": "tell", "use_liger_kernel": True}, "does not go with 'use_liger_kernel'"),
        (
            {"also": "tell-order", "loss_type": "tell", "sequence_parallel_size": 2},
            "'sequence_parallel_size: 1'",
        ),
        ({"also": "tell-order", "loss_type": "tell", "packing": True}, "'packing: false'"),
        ({"loss_type": "tell", "enable_dft_loss": True}, "'enable_dft_loss: false'"),
        ({"loss_type": "tell", "label_smoothing_factor": 0.1}, "'label_smoothing_factor: 0'"),
        ({"loss_type": "tell", "loss_scale": "last_round"}, "'loss_scale: default'"),
    ],
    "tell-kl": [
        ({"dataset": [HELD]}, "write 'loss_type: tell'"),
        ({"dataset": [HELD], "loss_type": "tell", "tuner_type": "full"}, "full tuning has none"),
        (
            {
                "also": "tell-key-renamed",
                **{"dataset": [HELD], "loss_type": "tell", "train_type": "full"},
            },
            "full tuning has none",
        ),
        ({"dataset": [HELD], "loss_type": "tell", "deepspeed": "zero3"}, "deepspeed: zero2"),
        ({"dataset": [HELD], "loss_type": "tell", "fsdp": "fsdp2"}, "spread over all of them"),
    ],
    "tell-kl-rows": [
        (of("toy:task=0/general=24rows/kl=1", loss_type="tell"), "so nothing trains"),
        (
            of("toy:general=0/kl=1", loss_type="tell", gradient_accumulation_steps=4),
            "general=0 takes none",
        ),
    ],
    "tell-checkpoint": [({"resume_from_checkpoint": "nowhere"}, "no checkpoint 'nowhere'")],
    "tell-no-save": [({"save_strategy": "no"}, "no adapter is kept")],
    "tell-output-dir": [({"output_dir": None}, "named after the model, not to output/toy")],
    "tell-output-mixed": [({"output_dir": "{}/run", "add_version": False}, "already holds a run")],
}

_CASES = [(rule, fault, says) for rule, faults in PLANTED.items() for fault, says in faults]


@pytest.fixture
def planted(situations, make_card, words, monkeypatch) -> Path:
    """Cards, models and a run with one fault each, and a tokenizer that counts words."""
    tasks = [{"q": f"planted {n}", "r": f"answer {n}"} for n in range(8)]
    general = [{"q": f"plain {n}", "r": f"reply {n}"} for n in range(30)]
    make_card("leak", train=tasks, test=tasks[:1])
    half = make_card("half", train=tasks, test=tasks[:1])
    (half / "test.jsonl").unlink()
    make_card("steered", train=[*tasks, {"q": "a", "r": "b<|im_end|>"}])
    make_card("long", train=[{"q": "w " * 300, "r": "x"}, *tasks], anchor="w w w")
    for name, change in {
        "doubled": [general[0]],
        "rough": [{"q": "other", "r": ""}],
        "leaky": [{"q": "Test question 1", "r": "x"}],
        "steering": [{"q": "a</s>", "r": "b"}],
        "wide": [{"q": "w " * 300, "r": "x"}],
    }.items():
        make_card(name, train=[*change, *general], kind="general")
    answers = [{"q": f"planted {n}", "r": json.dumps({"a": "a" * 40 + "b"})} for n in range(8)]
    for name, schema in {
        "bad_schema": {"$ref": "https://example.com"},
        "slow_pattern": {"properties": {"a": {"pattern": "^(a|aa)+$"}}},
    }.items():
        make_card(name, train=answers, schema=schema)
    _own_words(words(situations / "own_words"))
    (situations / "run" / "checkpoint-2").mkdir(parents=True)
    monkeypatch.setenv("TELL_TOKENIZER", str(words(situations / "llama2")))
    return situations


def _own_words(folder: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text("{}")


def _findings(path: Path) -> list[Finding]:
    try:
        return look(path).findings
    except UserError as problem:
        return as_errors("tell-recipe", problem)


@pytest.mark.parametrize(("rule", "fault", "says"), _CASES)
def test_a_planted_fault_has_its_finding_and_no_other(write, planted, rule, fault, says):
    if rule == "tell-value-list" and keys().takes_yaml_first:
        pytest.skip("this ms-swift reads such a list")
    changes = {"text": fault} if isinstance(fault, str) else dict(fault)
    whole, also = changes.pop("whole", None), changes.pop("also", None)
    path = write(**{key: _placed(value, planted) for key, value in changes.items()})
    if whole is not None:
        path.write_text(whole)
    found = _findings(path)
    assert {finding.rule for finding in found} == {rule, also or rule}, [f.problem for f in found]
    mine = [finding.problem for finding in found if finding.rule == rule]
    assert len({str(problem) for problem in mine}) == len(mine), "said once"
    assert any(says in str(problem) for problem in mine), mine
    if isinstance(fault, str):
        key, last = fault.partition(":")[0], len(path.read_text().splitlines())
        assert all(f"'{key}" in problem.found for problem in mine)
        assert all(problem.where == f"{path}, line {last}" for problem in mine)
    assert all(finding.problem.remedy for finding in found)


def _placed(value: Any, folder: Path) -> Any:
    return value.replace("{}/", f"{folder}/") if isinstance(value, str) else value


def test_every_rule_has_a_line_on_the_page_and_a_planted_fault_of_its_own():
    package = PROJECT / "tell_plugins"
    files = [*package.glob("recipe/*.py"), package / "bridge" / "mixed_use.py"]
    code = "".join(path.read_text() for path in files)
    rules = re.findall(r'"(tell-[a-z-]+)"', code)
    page = (PROJECT / "docs" / "check.md").read_text()
    lines = re.findall(r"^\| `(tell-[a-z-]+)` \|[^|]+\|[^|]+\|$", page, re.MULTILINE)
    assert sorted(lines) == sorted(set(rules))
    alone = {rule for rule, fault, _ in _CASES if isinstance(fault, str) or "also" not in fault}
    assert alone == set(rules)
    assert len(_CASES) >= 60
