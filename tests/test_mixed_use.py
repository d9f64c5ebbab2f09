"""What does not go with a TELL mixture is refused by ms-swift's own commands, in our words."""

from collections.abc import Sequence
from typing import Any

import pytest

from tests.conftest import in_preloaded_process
from tests.swift_keys_once import keys
from tests.tiny import make_tiny_cards

TELL = "tell/tiny_task:task=4rows/general=8rows"
# command, what is given beside model and plugin, and what is said; None: nothing
ORDER = {"dataset_shuffle": False, "train_dataloader_shuffle": False}
HELD = f"{TELL}/kl=1"
LOSS = "'loss_type: tell' does not go with "
CASES: list[tuple[str, dict[str, Any], str | None]] = [
    ("Sft", {"dataset": [TELL]}, None),
    ("Sft", {"dataset": ["some/other"], "packing": True, "attn_impl": "flash_attn"}, None),
    ("Sft", {"dataset": [TELL, "some/other"]}, "1 TELL data sets among 2 under 'dataset'"),
    ("Sft", {"dataset": [TELL, TELL]}, "2 TELL data sets among 2 under 'dataset'"),
    ("Sft", {"dataset": [TELL, "tell/tiny_taks"]}, "unknown card 'tiny_taks'"),
    ("Sft", {"dataset": "tell/tiny_taks"}, "unknown card 'tiny_taks'"),
    ("Sft", {"dataset": ["tell/tiny_task:split=test"]}, "its rows never train"),
    ("Sft", {"dataset": [TELL], "val_dataset": ["tell/no:split=test"]}, "unknown card 'no'"),
    (
        "Sft",
        {"dataset": [TELL], "dataset_shuffle": True},
        "'dataset_shuffle' is true, which shuffles",
    ),
    ("Sft", {"dataset": [TELL], "train_dataloader_shuffle": True}, "shuffles the mixture again"),
    ("Sft", {"dataset": [TELL], "split_dataset_ratio": 0.1}, "takes scarce task rows out of"),
    ("Sft", {"dataset": [TELL], "sequence_parallel_size": 2}, "brings a sampler of its own"),
    ("Sft", {"dataset": [HELD]}, "kl=1 has no effect without the loss that knows it"),
    ("Sft", {"dataset": [HELD], "loss_type": "tell", "tuner_type": "full"}, "full tuning has none"),
    ("Sft", {"dataset": [HELD], "loss_type": "tell", "train_type": "full"}, "full tuning has none"),
    ("Sft", {"dataset": [HELD], "loss_type": "tell", "deepspeed": "zero3"}, "deepspeed: zero2"),
    ("Sft", {"dataset": [TELL], "loss_type": "tell", "use_liger_kernel": True}, LOSS),
    ("Sft", {"dataset": [TELL], "loss_type": "tell", "enable_dft_loss": True}, LOSS),
    ("Sft", {"dataset": [TELL], "loss_type": "tell", "label_smoothing_factor": 0.1}, LOSS),
    ("Sft", {"dataset": [TELL], "loss_type": "tell", "loss_scale": "last_round"}, LOSS),
    ("Sft", {"dataset": [TELL], "cached_dataset": ["x"]}, "1 TELL data sets among 2"),
    ("Sft", {"dataset": [TELL], "val_dataset": [TELL, "some/other"]}, "under 'val_dataset'"),
    ("Sft", {"dataset": [TELL], "interleave_prob": [1.0]}, "draws from several data sets"),
    ("Sft", {"dataset": [TELL], "packing": True}, "'packing' is true, which puts rows together"),
    ("Sft", {"dataset": [TELL], "group_by_length": True}, "'group_by_length' is true, which sorts"),
    ("Sft", {"dataset": [TELL], "streaming": True, "max_steps": 1}, "'streaming' is true"),
    ("RLHF", {"dataset": [TELL], "rlhf_type": "dpo"}, "needs rows with a rejected answer"),
    ("RLHF", {"dataset": [TELL], "rlhf_type": "kto"}, "needs rows with a rejected answer"),
    ("Export", {"dataset": [TELL], "to_cached_dataset": True}, "keeps neither the mixture's"),
]


def _said(model: str, out: str, cases: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """What each command says of its arguments; an empty text where it takes them."""
    import swift.arguments

    from tell_plugins.core.errors import UserError

    common = {
        "model": model,
        "model_type": "llama",
        "template": "chatml",
        "torch_dtype": "float32",
        "external_plugins": ["tell_plugins/register.py"],
    }
    found = []
    for number, (name, given) in enumerate(cases):
        kind = getattr(swift.arguments, f"{name}Arguments")
        more: dict[str, Any] = {"output_dir": f"{out}/{number}"}
        if name != "Export":
            more |= {"use_cpu": True, "check_model": False, "split_dataset_ratio": 0.0, **ORDER}
        try:
            kind(**{**common, **more, **given})
        except UserError as problem:
            found.append(str(problem))
        except Exception as other:  # ms-swift's own, which comes later
            found.append(f"not ours: {other!r}")
        else:
            found.append("")
    return found


@pytest.mark.newest
@pytest.mark.slow
def test_each_is_refused_before_a_model_is_loaded(make_card, model, tmp_path):
    make_tiny_cards(make_card)
    old = "train_type"  # the newest ms-swift does not know this name any more
    cases = [case for case in CASES if old not in case[1] or old in keys().keys]
    given = [(name, values) for name, values, _ in cases]
    said = in_preloaded_process(_said, str(model), str(tmp_path / "out"), given)
    for (name, values, expected), text in zip(cases, said, strict=True):
        if expected is None:
            assert "TELL" not in text, (name, values, text)
        else:
            assert expected in text, (name, values, text)
            assert "remedy" in text
