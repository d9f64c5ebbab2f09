"""`mix` and `train`: what they write, what they refuse, and real runs on both ms-swift."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest
import yaml

from tell_plugins.bridge import embedded_model
from tell_plugins.cli import main
from tell_plugins.core import paths
from tell_plugins.core.manifest import manifest_of
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.spec import parse_spec
from tell_plugins.recipe import models, train
from tell_plugins.recipe.recipes import Recipe, load_recipe, parse_flags
from tell_plugins.recipe.schedule import processes_of
from tests.conftest import PROJECT, message_of, printed_by, wait_for
from tests.loopback import Server, running
from tests.preloaded import PYTHON
from tests.recipe_world import EMBEDDED, logged, make_model, only_run
from tests.sweep_world import World, unrun_world
from tests.swift_keys_once import keys
from tests.tiny import free_port, run_swift, sft

SPEC = "tell/tiny_task:task=6rows/general=18rows"
FOUR_A_STEP = {"gradient_accumulation_steps": 4, "warmup_ratio": 0.0, "save_steps": 2}


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Path:
    """A recipe on a small task, without a model of its own."""
    given = {"model": "some/model", "output_dir": str(tmp_path / "out" / "toy")}
    world = unrun_world(tmp_path, monkeypatch)
    return world.recipe("toy", dataset=[SPEC], **FOUR_A_STEP, **given)


# --- mix -----------------------------------------------------------------------------------------


def test_mix_writes_rows_manifest_and_anchor(toy, tmp_path, capsys):
    out = tmp_path / "mix"
    assert main(["mix", str(toy), "--out", str(out)]) == 0
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    manifest = json.loads((out / "manifest.json").read_text())
    mixture = build_mixture(parse_spec(SPEC))
    assert rows == list(mixture.rows())
    assert manifest == json.loads(json.dumps(manifest_of(mixture, "token")))
    assert (out / "anchor.txt").read_text() == "Say whether the number is odd."
    printed = capsys.readouterr().out
    assert manifest["hash"] in printed
    assert "24 rows, order shuffle, seed 42, task share 25.0% of rows" in printed
    files = sorted(path.name for path in out.iterdir())
    assert files == ["anchor.txt", "manifest.json", "train.jsonl"]
    # another dataset, and the old anchor is forgotten
    general = ["--dataset", "tell/tiny_general:task=5rows"]
    assert main(["mix", str(toy), "--out", str(out), *general]) == 0
    assert len((out / "train.jsonl").read_text().splitlines()) == 5
    assert not (out / "anchor.txt").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--learning_rate", "1"], "flag --learning_rate does not change a mixture"),
        (["--dataset", "tell/tiny_task:taks=1rows/order=evne"], "did you mean 'even'?"),
        (["--dataset", "tell/tiny_task:task=99rows"], "there are only 16 rows"),
    ],
)
def test_mix_refuses_what_it_cannot_do(toy, tmp_path, flags, says, tell):
    assert says in tell("mix", toy, "--out", tmp_path / "mix", *flags, code=1)
    assert not (tmp_path / "mix").exists()


# --- flags and commands --------------------------------------------------------------------------


def test_flags_are_read_as_ms_swift_reads_them():
    flags = ["--learning_rate", "1e-4", "--save_strategy", "no", "--seed=7", "--strict"]
    flags += ["--report-to", "a", "b", "--system", "You are: helpful", "--use_cpu", "False"]
    assert parse_flags(flags) == {
        "learning_rate": 1e-4,
        "save_strategy": "no",
        "seed": 7,
        "strict": True,
        "report_to": ["a", "b"],
        "system": "You are: helpful",
        "use_cpu": False,
    }
    assert "belongs to no flag" in message_of(parse_flags, ["1e-4"])


def test_the_command_holds_each_key_once_with_the_flags_value(toy):
    recipe = load_recipe(toy, ["--learning_rate", "0.5", "--lr_scheduler_kwargs", '{"a": 1}'])
    command = train.sft_command(recipe)
    assert command[1:4] == ["-m", "tell_plugins.bridge.swift_cli", "sft"]
    assert command.count("--learning_rate") == 1
    assert command[command.index("--learning_rate") + 1] == "0.5"
    assert command[command.index("--dataset") + 1] == SPEC
    assert command[command.index("--use_cpu") + 1] == "true"
    assert json.loads(command[command.index("--lr_scheduler_kwargs") + 1]) == {"a": 1}
    assert "--config" not in command


def test_an_env_map_goes_to_the_environment(toy, monkeypatch):
    toy.write_text(toy.read_text() + "ENV: {NPROC_PER_NODE: 2, TELL_SHELL: theirs}\n")
    monkeypatch.setenv("TELL_SHELL", "mine")
    monkeypatch.delenv("NPROC_PER_NODE", raising=False)
    recipe = load_recipe(toy)
    assert recipe.environment == {"NPROC_PER_NODE": "2"}
    assert "--ENV" not in recipe.argv()
    assert processes_of(recipe) == 2


# --- what train refuses before anything starts ---------------------------------------------------


def test_all_errors_stop_it_together(toy, capsys):
    flags = ["--lora_ran", "4", "--dataset", "tell/tiny_task:taks=6rows", "--packing", "true"]
    assert main(["train", str(toy), *flags]) == 1
    printed = capsys.readouterr()
    for says in ("write 'lora_rank' in full", "did you mean 'task'?", "write 'packing: false'"):
        assert says in printed.err
    assert printed.out == ""


def test_errors_of_the_data_stop_it_and_force_goes_on(
    toy, make_card, tmp_path, monkeypatch, capsys
):
    rows = [{"q": f"question {n}", "r": "a"} for n in range(6)]
    make_card("leak", train=rows, test=rows[:1])
    runs: list[Path] = []

    def trained(recipe: Recipe, *, verbose: bool) -> int:
        folder = recipe.output_dir / "v0-20260101-000000" / "checkpoint-3"
        runs.append(folder)
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
        return 0

    monkeypatch.setattr(train, "_with_model", lambda recipe: recipe)
    monkeypatch.setattr(train, "train", trained)
    flags = ["--dataset", "tell/leak:general=0", "--output_dir", str(tmp_path / "run")]
    assert main(["train", str(toy), *flags]) == 1
    said = capsys.readouterr()
    assert "1 task rows are test rows" in said.err
    assert "`--force` trains all the same" in said.err
    assert (runs, said.out) == ([], "")
    assert main(["train", str(toy), "--force", *flags]) == 0
    said = capsys.readouterr()
    assert "error: " in said.err
    assert f"adapter  {runs[0]}" in said.out
    assert f"./run.sh eval {toy} --adapter {runs[0]}" in said.out


def test_without_a_gpu_a_recipe_of_a_gpu_says_what_to_do(toy, monkeypatch, tell):
    """transformers would stop with a traceback after half a minute of loading."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    printed = tell("train", toy, "--use_cpu", "false", code=1)
    assert "PyTorch sees no GPU on this machine" in printed
    assert "--use_cpu true" in printed


def test_paths_in_flags_are_the_callers(toy, tmp_path, monkeypatch):
    """run.sh works in the project's folder, which has an `output` and `recipes` of its own."""
    caller = tmp_path / "caller"
    (caller / "models" / "mine").mkdir(parents=True)
    monkeypatch.setenv("TELL_CALLER_DIR", str(caller))
    flags = ["--output_dir", "recipes", "--model", "models/mine", "--deepspeed", "zero2"]
    flags += ["--external_plugins", "tell_plugins/register.py"]
    values = load_recipe(toy, flags).values
    assert values["output_dir"] == str(caller / "recipes")
    assert values["model"] == str(caller / "models" / "mine")
    assert values["deepspeed"] == "zero2"
    assert values["external_plugins"] == "tell_plugins/register.py"
    assert load_recipe(toy, ["--model", "Qwen/Qwen-7B-Chat"]).values["model"] == "Qwen/Qwen-7B-Chat"
    assert paths.user_target("results") == caller / "results"  # although the project has one
    monkeypatch.setenv("TELL_CALLER_DIR", str(PROJECT))
    assert load_recipe(toy, ["--output_dir", "output/x"]).values["output_dir"] == "output/x"


def test_it_trains_into_the_folder_where_eval_looks(toy, monkeypatch, capsys):
    values = yaml.safe_load(toy.read_text())
    del values["output_dir"]
    toy.write_text(yaml.safe_dump(values))
    folders: list[list[str]] = []
    monkeypatch.setattr(train, "_with_model", lambda recipe: recipe)
    monkeypatch.setattr(train, "train", lambda recipe, verbose: folders.append(recipe.argv()) or 0)
    assert main(["train", str(toy)]) == 0
    assert folders[0][-2:] == ["--output_dir", str(load_recipe(toy).output_dir)]
    assert "output_dir" not in capsys.readouterr().err


# --- models and hubs -----------------------------------------------------------------------------


@pytest.fixture
def no_cache(tmp_path, monkeypatch) -> Path:
    """Hub caches of the test's own, and hubs that do not answer."""
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "USE_HF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setenv("MODELSCOPE_DOMAIN", f"127.0.0.1:{free_port()}")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    return tmp_path


@pytest.mark.usefixtures("no_cache")
def test_a_model_that_cannot_be_had_is_said_at_once(toy, tell):
    start = time.monotonic()
    printed = tell("train", toy, code=2)
    assert "model 'some/model' is not on this machine, and ModelScope cannot give it" in printed
    assert "--model FOLDER" in printed
    assert time.monotonic() - start < 20
    assert "Hugging Face cannot give it" in tell("train", toy, "--use_hf", "true", code=2)


@pytest.mark.usefixtures("no_cache")
def test_a_hub_that_answers_is_left_to_ms_swift(monkeypatch):
    with running(Server()) as server:  # it knows no method, and says so
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        models.need_model("some/model", True)


@pytest.mark.parametrize(
    ("hugging_face", "place"),
    [
        (True, "hf/hub/models--some--model-1.5/snapshots/abc"),
        (False, "ms/models/some/model-1___5"),
        (False, "ms/hub/models/some/model-1___5"),
        (False, "ms/hub/some/model-1___5"),
        (False, "ms/some/model-1.5"),
        (False, "ms/models/some--model-1.5/snapshots/abc"),
    ],
)
def test_a_model_in_a_hubs_cache_needs_no_hub(no_cache, hugging_face, place):
    assert not models.is_cached("some/model-1.5", hugging_face)
    (no_cache / place).mkdir(parents=True)
    (no_cache / place / "config.json").write_text("{}")
    assert models.is_cached("some/model-1.5", hugging_face)
    models.need_model("some/model-1.5", hugging_face)
    assert not models.is_cached("some/other", hugging_face)


def test_a_folder_is_not_looked_up_on_a_hub(toy, tmp_path):
    (tmp_path / "model" / "config.json").write_text("{}")
    recipe = load_recipe(toy).with_values(model=str(tmp_path / "model"), check_model=None)
    ready = train._with_model(recipe)
    assert ready.values["check_model"] == "false"
    assert ready.values["model"] == str(tmp_path / "model")


def test_the_embedded_model_is_made_ready_when_it_is_missing(toy, tmp_path, monkeypatch):
    """Before the check, which counts its rows by the model's own tokenizer."""
    done: list[str] = []

    def inspect(*_: object) -> None:
        done.append("checked")
        raise InterruptedError

    monkeypatch.setattr(embedded_model, "prepare_model", lambda: done.append("made"))
    monkeypatch.setattr(train, "inspect", inspect)
    name = "./models/SmolLM2-135M-Instruct/"
    assert main(["train", str(toy), "--model", name]) == 2
    assert done == ["made", "checked"]
    recipe = load_recipe(toy).with_values(model=name)
    assert train._with_model(recipe) == recipe


# --- exit codes and signals ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "code"),
    [("sys.exit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 128 + signal.SIGKILL)],
)
def test_the_exit_code_is_passed_on(toy, program, code, monkeypatch):
    command = [sys.executable, "-c", f"import sys; {program}"]
    monkeypatch.setattr(train, "sft_command", lambda recipe: command)
    assert train.train(load_recipe(toy)) == code


_SLEEPS_TWICE = """
import os, subprocess, sys, time
print(os.getpid(), file=open(sys.argv[1], "a"))
if len(sys.argv) == 2:
    subprocess.run([*sys.orig_argv, "child"])
time.sleep(100)
"""


@pytest.mark.parametrize(
    ("number", "code", "last"), [(signal.SIGTERM, 143, ""), (signal.SIGINT, 130, "\nstopped\n")]
)
def test_a_signal_ends_every_process_of_the_training(toy, tmp_path, number, code, last):
    """Like ms-swift, the command starts a child; Ctrl-C gives one line, and no traceback of it."""
    pids = tmp_path / "pids"
    command = [PYTHON, "-c", _SLEEPS_TWICE, str(pids)]
    program = (
        "import sys\n"
        "from tell_plugins import cli\n"
        "from tell_plugins.recipe import train\n"
        f"train.sft_command = lambda recipe: {command!r}\n"
        "train._with_model = lambda recipe: recipe\n"
        f"sys.exit(cli.main(['train', {str(toy)!r}]))\n"
    )
    started = [sys.executable, "-c", program]
    process = subprocess.Popen(started, cwd=PROJECT, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: pids.is_file() and len(pids.read_text().splitlines()) == 2, process)
    process.send_signal(number)
    said = process.communicate(timeout=30)[1]
    assert (process.returncode, "Traceback" in said) == (code, False), said
    assert said.endswith(last)
    for pid in map(int, pids.read_text().split()):
        wait_for(lambda pid=pid: not _runs(pid), seconds=10)


def _runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


# --- real runs -----------------------------------------------------------------------------------

STEPS = 6
HELD = f"{SPEC}/kl=0.5"
_START = '''\
"""Saves the adapter as it is before the first step."""

from transformers import TrainerCallback, trainer


class Start(TrainerCallback):
    def on_train_begin(self, args, state, control, model=None, **kwargs):
        model.save_pretrained(f"{args.output_dir}/start")


trainer.DEFAULT_CALLBACKS.append(Start)
'''
_HANG = '''\
"""Stops for good once the first checkpoint is written, so that the run can be killed there."""

import time
from pathlib import Path

from transformers import TrainerCallback, trainer


class Hang(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        Path(args.output_dir, "hanging").touch()
        time.sleep(600)


trainer.DEFAULT_CALLBACKS.append(Hang)
'''


class Runs(World):
    """A world with recipes that hold their general rows, and what was run in it."""

    def model(self) -> Path:
        """Of small weights: larger ones amplify what a step rounds."""
        recipe = load_recipe(EMBEDDED[0])
        folder = self.root / "models" / Path(recipe.text("model")).name
        return folder if folder.is_dir() else make_model(recipe, folder.parent)

    def held(self, name: str, **changes: Any) -> Path:
        held = {"dataset": [HELD], "loss_type": "tell", "torch_dtype": "float32"}
        held |= {"lora_dropout": 0.0, "output_dir": str(self.root / "out" / name)}
        return self.recipe(name, **{**FOUR_A_STEP, **held, **changes})

    def from_start(self, name: str) -> Path:
        """A recipe whose run keeps its adapter from before the first step, too."""
        plugin = self.root / "start.py"
        plugin.write_text(_START)
        return self.held(name, external_plugins=["tell_plugins/register.py", str(plugin)])

    def weights(self, name: str, step: int) -> dict[str, Any]:
        from safetensors.torch import load_file

        return load_file(self.run_of(name) / f"checkpoint-{step}" / "adapter_model.safetensors")

    def env(self, **more: str) -> dict[str, str]:
        return self.environment | more

    def run_of(self, name: str) -> Path:
        return only_run(self.root / "out" / name)

    def manifest(self, name: str) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.run_of(name) / "manifest.json").read_text())
        return loaded


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), task=8)


@pytest.fixture(scope="module")
def undisturbed(world) -> list[dict[str, Any]]:
    """The steps of `swift sft` with the YAML."""
    run_swift(*sft(world.held("plain_run")), env=world.env())
    return logged(world.run_of("plain_run"))


@pytest.mark.newest
@pytest.mark.slow
def test_a_run_follows_the_schedule_and_the_mixture(world, undisturbed):
    assert len(undisturbed) == STEPS
    manifest = world.manifest("plain_run")
    assert manifest["spec"] == HELD
    assert manifest["rows"] == 24
    assert (manifest["weighting"], manifest["kl"]) == ("row", 0.5)
    assert {"loss_task", "kl_general"} <= {key for step in undisturbed for key in step}
    run = world.run_of("plain_run")
    assert (run / "anchor.txt").read_text() == "Say whether the number is odd."
    adapter = run / f"checkpoint-{STEPS}"
    assert (adapter / "adapter_model.safetensors").is_file()
    assert json.loads((adapter / "manifest.json").read_text()) == manifest


@pytest.mark.slow
def test_a_killed_training_resumes_with_the_rest_of_the_same_order(world, undisturbed):
    plugin = world.root / "hang.py"
    plugin.write_text(_HANG)
    plugins = ["tell_plugins/register.py", str(plugin)]
    recipe = world.held("killed", external_plugins=plugins)
    process = subprocess.Popen(  # as a user calls it, all of it
        [PYTHON, "-m", "swift.cli.main", *sft(recipe)],
        cwd=PROJECT,
        env=world.env(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    hanging = world.root / "out" / "killed"
    wait_for(lambda: any(hanging.glob("v*/hanging")) or process.poll() is not None)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    checkpoint = world.run_of("killed") / "checkpoint-2"
    assert (checkpoint / "trainer_state.json").is_file()
    resumed = world.held("resumed", resume_from_checkpoint=str(checkpoint))
    run_swift(*sft(resumed), env=world.env())
    rest = logged(world.run_of("resumed"))
    assert len(rest) == STEPS - 2
    for mine, theirs in zip(rest, undisturbed[2:], strict=True):
        assert mine["global_step/max_steps"] == theirs["global_step/max_steps"]
        for key in ("loss", "loss_task", "kl_general", "learning_rate"):
            assert mine.get(key) == pytest.approx(theirs.get(key), rel=1e-3, abs=1e-6), key
    assert world.manifest("resumed")["hash"] == world.manifest("plain_run")["hash"]


@pytest.mark.slow
@pytest.mark.usefixtures("undisturbed")
def test_two_processes_train_on_the_same_mixture(world):
    recipe = world.held("two_ranks", ddp_backend="gloo", gradient_accumulation_steps=2)
    port = str(free_port())
    run_swift(*sft(recipe), env=world.env(NPROC_PER_NODE="2", MASTER_PORT=port))
    assert world.manifest("two_ranks")["hash"] == world.manifest("plain_run")["hash"]
    assert len(logged(world.run_of("two_ranks"))) == STEPS
    _assert_equal(world.weights("two_ranks", STEPS), world.weights("plain_run", STEPS))


def _assert_equal(one: dict[str, Any], other: dict[str, Any], rate: float = 0.01) -> None:
    """Adapter weights, to a hundredth of one step of AdamW."""
    assert one.keys() == other.keys()
    assert any(float(weight.abs().max()) > rate for n, weight in one.items() if "lora_B" in n)
    for name, weight in one.items():
        assert float((weight - other[name]).abs().max()) < rate / 100, name


def _by_the_formula_of_2024(run: Path, model: Path) -> dict[str, Any]:
    """The adapter after the steps of a plain loop: each row's mean, then the mean over rows."""
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from swift.model import get_model_processor
    from swift.template import get_template
    from transformers import get_scheduler

    args = _args(run)
    plain, processor = get_model_processor(
        str(model), model_type="llama", torch_dtype=torch.float32
    )
    template = get_template(processor, template_type="chatml")
    template.set_mode("train")
    tuned = PeftModel.from_pretrained(plain, str(run / "start"), is_trainable=True).train()
    weights = [weight for weight in tuned.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        weights,
        lr=args["learning_rate"],
        betas=(args["adam_beta1"], args["adam_beta2"]),
        eps=args["adam_epsilon"],
        weight_decay=args["weight_decay"],
    )
    scheduler = get_scheduler("linear", optimizer, 0, args["max_steps"])
    rows = build_mixture(parse_spec(SPEC)).rows()
    for _ in range(args["max_steps"]):
        for _ in range(4):
            encoded = template.encode({"messages": next(rows)["messages"]})
            ids, labels = (torch.tensor([encoded[key]]) for key in ("input_ids", "labels"))
            (tuned(input_ids=ids, labels=labels).loss / 4).backward()
        torch.nn.utils.clip_grad_norm_(weights, args["max_grad_norm"])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return dict(get_peft_model_state_dict(tuned))


def _args(run: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((run / "args.json").read_text())
    return loaded


FLAGS = (
    *("--force", "--learning_rate", "0.005", "--max_steps", "3"),
    *("--save_steps", "3", "--dataset", SPEC),
)


@pytest.mark.newest
@pytest.mark.slow
@pytest.mark.usefixtures("undisturbed", "ordinary_python")
def test_flags_of_train_win_over_the_recipe(world):
    recipe = world.from_start("flags")
    env = {key: value for key, value in world.env().items() if key != "LOG_LEVEL"}
    command = [sys.executable, "-m", "tell_plugins", "train", recipe, *FLAGS]
    printed = printed_by(*command, env=env)
    run = world.run_of("flags")
    assert "[INFO" not in printed
    assert "'loss': " in printed
    assert (_args(run)["learning_rate"], _args(run)["max_steps"]) == (0.005, 3)
    assert _args(run)["swift_version"] == keys().version
    assert len(logged(run)) == 3
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-3"]
    with mock.patch.dict(os.environ, {"TELL_CARDS": str(world.root / "cards")}):
        expected = _by_the_formula_of_2024(run, world.model())
    _assert_equal(world.weights("flags", 3), expected, 0.005)
    assert world.manifest("flags")["hash"] == world.manifest("plain_run")["hash"]
