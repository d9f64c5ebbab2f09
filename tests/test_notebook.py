"""The plugin in a notebook: no command line, several trainings in one process, other plugins."""

import os
import sys

import pytest

from tests.conftest import PROJECT, printed_by
from tests.tiny import make_tiny_cards

SESSION = """
import json, os, sys, time
from pathlib import Path

sys.argv = ["ipykernel_launcher.py", "-f", "kernel.json", "--dataset", "tell/no_card_at_all"]
root, model, plugin = Path(sys.argv_of_test[0]), sys.argv_of_test[1], sys.argv_of_test[2]
from swift import sft_main
from swift.arguments import SftArguments
from tell_plugins.core.errors import UserError


def arguments(dataset, run, max_length=1024, **values):
    return SftArguments(
        model=model, model_type="llama", template="chatml", check_model=False, use_cpu=True,
        torch_dtype="float32", dataset=dataset, dataset_shuffle=False, strict=True,
        train_dataloader_shuffle=False, max_length=max_length, tuner_type="lora", max_steps=1,
        target_modules=["all-linear"], per_device_train_batch_size=1, report_to=["none"],
        gradient_accumulation_steps=2, gradient_checkpointing=False, dataloader_num_workers=0,
        output_dir=str(root / run), add_version=False, **values)


start = time.monotonic()
try:
    arguments("tell/tiny_tusk", "never", external_plugins=plugin)
except UserError as error:
    assert "unknown card 'tiny_tusk'" in str(error) and "'tiny_task'" in str(error)
    assert time.monotonic() - start < 60
else:
    raise SystemExit("a misspelt card passed")

folder = str(Path(plugin).parent)
assert folder not in sys.path, "its names would hide others"
plugins = [plugin, str(root / "other.py")]
first = arguments("tell/tiny_task:task=4rows/general=0", "first", external_plugins=plugins)
assert os.environ.get("OTHER_PLUGIN") == "here"

stopped = arguments("tell/tiny_task:task=4rows", "stopped", 2, external_plugins=plugins)
try:
    sft_main(stopped)
except Exception as error:
    assert "TELL mixtures" not in str(error)
else:
    raise SystemExit("rows over max_length trained")
(root / "cards" / "plain").rename(root / "cards" / "later")
card = root / "cards" / "later" / "card.yaml"
card.write_text(card.read_text().replace("name: plain", "name: later"))
second = arguments(["tell/later:task=6rows"], "second", external_plugins=plugins)
for args in (first, second):
    sft_main(args)
for run, dataset in (("first", "tell/tiny_task"), ("second", "tell/later")):
    checkpoint = root / run / "checkpoint-1"
    assert json.loads((checkpoint / "manifest.json").read_text())["spec"].startswith(dataset)
    assert json.loads((checkpoint / "args.json").read_text())["external_plugins"] == plugins
print("all of it went well")
"""


@pytest.mark.slow
def test_two_trainings_and_a_misspelt_card(tmp_path, model, make_card):
    make_tiny_cards(make_card)
    (tmp_path / "other.py").write_text("import os\nos.environ['OTHER_PLUGIN'] = 'here'\n")
    plugin = PROJECT / "tell_plugins" / "register.py"
    given = [str(tmp_path), str(model), str(plugin)]
    program = f"import sys\nsys.argv_of_test = {given!r}\n{SESSION}"
    env = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    printed = printed_by(sys.executable, "-c", program, cwd=tmp_path, env=env)
    assert "all of it went well\n" in printed
