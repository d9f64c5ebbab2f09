"""The last guard before training: what it refuses, what it lets pass, what it leaves behind."""

import json
import os
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from datasets import Dataset
from tell_plugins import bridge
from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.core.mixture import Mixture, build_mixture
from tell_plugins.core.spec import parse_spec
from tests.conftest import message_of

Begin = Callable[..., None]
TRAINED_ON = "tell_plugins.bridge.callback.trained_on"


@pytest.fixture
def mixture(make_card) -> Mixture:
    """4 task rows among 8 general ones."""
    make_card("toy", train=[{"q": f"task {n}", "r": "a"} for n in range(6)])
    make_card("plain", train=[{"q": f"general {n}", "r": "b"} for n in range(20)], kind="general")
    return _mixture("task=4rows/general=8rows")


def _mixture(text: str) -> Mixture:
    return build_mixture(parse_spec(f"tell/toy:{text}"))


@pytest.fixture
def begin(mixture, tmp_path, monkeypatch) -> Begin:
    """Begin a training on the mixture with a data loader and settings, below `tmp_path / "run"`."""
    from tell_plugins.bridge import callback

    monkeypatch.setattr(TRAINED_ON, [mixture])
    state = SimpleNamespace(is_world_process_zero=True, global_step=3)

    def run(loader: Any = None, **settings: Any) -> None:
        args = SimpleNamespace(output_dir=str(tmp_path / "run"), **settings)
        callback.TellCallback().on_train_begin(args, state, None, train_dataloader=loader)
        callback.TellCallback().on_save(args, state, None)

    return run


def _rows(mixture: Mixture) -> Dataset:
    from tell_plugins.bridge.loader import load_mixture

    return load_mixture(mixture)


def _tokenised(rows: Dataset) -> Dataset:
    """The rows as ms-swift hands them on when it has tokenised them all."""
    return rows.add_column("lengths", [3] * len(rows))


def _loader(rows: Dataset, *, strict: bool = True, sampler: Any = None) -> Any:
    """What the trainer has: rows in ms-swift's data set, in a data loader."""
    from swift.dataset import LazyLLMDataset
    from torch.utils.data import DataLoader

    return DataLoader(LazyLLMDataset(rows, dict, strict=strict), sampler=sampler)


def test_a_run_without_a_mixture_is_left_alone(begin, tmp_path, monkeypatch):
    monkeypatch.setattr(TRAINED_ON, [])
    begin(train_dataloader_shuffle=True)
    assert not (tmp_path / "run").exists()


def test_manifest_and_anchor_lie_beside_the_adapter(begin, mixture, tmp_path):
    begin(_loader(_tokenised(_rows(mixture))), train_dataloader_shuffle=False)
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-3"):
        assert json.loads((folder / "manifest.json").read_text())["hash"] == mixture.hash
        assert (folder / "anchor.txt").read_text() == "ANCHOR: do the task."


def test_a_run_can_be_served_from_any_folder(begin, mixture, tmp_path, monkeypatch):
    """`swift infer --adapters DIR` imports what the run's `args.json` names (4.0.4 and 4.6)."""
    from swift.utils import import_external_file

    saved = {
        "external_plugins": ["tell_plugins/register.py", "gone.py"],
        "model": "tests",
        "custom_register_path": [],
        "dataset": ["tell/toy"],
    }
    paths.write_text(tmp_path / "run" / "args.json", json.dumps(saved))
    begin(_loader(_tokenised(_rows(mixture))))
    found = json.loads((tmp_path / "run" / "args.json").read_text())
    plugin = str(paths.PROJECT / "tell_plugins" / "register.py")
    assert found == saved | {
        "external_plugins": [plugin, "gone.py"],
        "model": str(paths.PROJECT / "tests"),
    }
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="py_dir"):
        import_external_file(saved["external_plugins"][0])
    import_external_file(plugin)
    paths.write_text(tmp_path / "run" / "args.json", json.dumps({"model": "owner/name"}))
    monkeypatch.chdir(paths.PROJECT)
    begin(_loader(_tokenised(_rows(mixture))))
    assert json.loads((tmp_path / "run" / "args.json").read_text()) == {"model": "owner/name"}


def test_ids_that_end_like_ours_stay_ms_swifts(tmp_path, monkeypatch):
    """Their subsets with them: `gsm8k` has `main`."""
    from swift.dataset import DATASET_MAPPING, DatasetLoader, dataset_syntax

    from tell_plugins.bridge.loader import TellLoader

    kept = dict(DATASET_MAPPING)
    bridge.register()
    monkeypatch.setattr(dataset_syntax, "_dataset_meta_mapping", None)
    assert set(kept) <= set(DATASET_MAPPING)
    local = tmp_path / "gsm8k"
    local.mkdir()

    def meta(text: str) -> Any:
        return dataset_syntax.DatasetSyntax.parse(text).get_dataset_meta(use_hf=True)

    for name in ("openai/gsm8k", "someone/gsm8k", str(local)):
        assert meta(name).loader is DatasetLoader
        assert [subset.subset for subset in meta(name).subsets] == ["main"]
    assert meta("tell/gsm8k:task=15rows").loader is TellLoader


def test_an_adapter_of_general_rows_has_no_anchor(begin, tmp_path, monkeypatch):
    from tell_plugins.bridge import templates

    alone = _mixture("task=0/general=8rows")
    monkeypatch.setattr(TRAINED_ON, [alone])
    paths.write_text(tmp_path / "run" / "anchor.txt", "of an earlier run")
    begin(_loader(_tokenised(_rows(alone))))
    assert not list((tmp_path / "run").rglob("anchor.txt"))
    assert templates.serving_front([tmp_path / "run" / "checkpoint-3"]).text == ""


@pytest.fixture
def resume(begin, mixture, tmp_path, monkeypatch) -> Begin:
    """Begin on the mixture, and go on from its checkpoint with another mixture or other settings;
    `began` changes what the checkpoint says, None takes a key out."""
    begin(_loader(_tokenised(_rows(mixture))), loss_type="tell")
    checkpoint = tmp_path / "run" / "checkpoint-3"

    def again(text: str = "", began: Mapping[str, Any] = {}, **settings: Any) -> None:
        manifest = json.loads((checkpoint / "manifest.json").read_text()) | dict(began)
        kept = {key: value for key, value in manifest.items() if value is not None}
        (checkpoint / "manifest.json").write_text(json.dumps(kept))
        (checkpoint / "args.json").write_text(json.dumps(dict(began)))
        now = _mixture(f"task=4rows/general=8rows{text}")
        monkeypatch.setattr(TRAINED_ON, [now])
        given = {"loss_type": "tell", "resume_from_checkpoint": str(checkpoint), **settings}
        begin(_loader(_tokenised(_rows(now))), **given)

    return again


BY_TOKEN = {"weighting": None, "kl": None}  # a manifest that says neither


@pytest.mark.parametrize(
    ("text", "began", "now", "told"),
    [
        ("/seed=1", {}, {}, r"had mixture .*8rows, this has .*seed=1"),
        ("", {}, {"loss_type": None}, "the same weight for each row, this has token"),
        ("", BY_TOKEN, {}, "the same weight for each token, this has row"),
        ("/kl=1", {"kl": 0.5}, {}, r"had kl 0\.5, this has 1"),
        *(  # the trainer skips batches: of other sizes, rows are lost or come twice
            ("", {key: then}, {key.removeprefix("global_"): now}, f"{then}, this has {now}: rows")
            for key, then, now in (
                *(("per_device_train_batch_size", 1, 2), ("gradient_accumulation_steps", 16, 8)),
                *(("global_world_size", 1, 2), ("dataloader_drop_last", False, True)),
            )
        ),
    ],
)
def test_a_run_goes_on_as_it_began(resume, text, began, now, told):
    resume()
    with pytest.raises(UserError, match=told):
        resume(text, began, **now)
    resume(text, began, **now, resume_only_model=True)


def test_a_run_goes_on_where_nothing_says_how_it_began(resume, tmp_path):
    resume("/seed=1", resume_from_checkpoint=str(tmp_path))


def test_rows_that_changed_under_a_run_are_told(resume, make_card):
    make_card("toy", train=[{"q": f"task {n}!", "r": "a"} for n in range(6)])
    assert "had rows and anchor of hash" in message_of(resume)


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        (lambda task, general: task + general, "do not come in the mixture's order"),
        (lambda task, general: sorted(task + general) * 2, "or others follow"),
        (lambda task, general: sorted(task + general[2:]), None),
        (lambda task, general: sorted(task[2:] + general), "2 scarce task rows are longer than"),
    ],
)
def test_what_training_sees_of_the_mixture(chosen, told, begin, mixture):
    task, general = (np.flatnonzero(m).tolist() for m in (mixture.is_task, ~mixture.is_task))
    loader = _loader(_tokenised(_rows(mixture)).select(chosen(task, general)), strict=False)
    if told is None:
        begin(loader)
    else:
        assert told in message_of(begin, loader)


def test_rows_tokenised_late_must_not_be_replaced(begin, mixture):
    rows = _rows(mixture)
    assert "strict: true" in message_of(begin, _loader(rows, strict=False))
    begin(_loader(rows, strict=True))
    begin(_loader(_tokenised(rows), strict=False))


def _longer(row: dict[str, Any]) -> dict[str, Any]:
    return {"channel": row["channel"] + "!"}


def test_the_same_mixture_is_tokenised_into_one_file(mixture):
    """What other processes find, and what a next run writes over, hangs on the content alone."""
    first = _rows(mixture)
    os.utime(first.cache_files[0]["filename"], (1e9, 1e9))
    second = _rows(mixture)
    assert second._fingerprint == first._fingerprint
    assert _rows(_mixture("task=4rows/general=8rows/seed=1"))._fingerprint != first._fingerprint
    for rows in (first, second):
        rows.map(_longer, load_from_cache_file=False)
    assert len(list((paths.cache_dir() / "mixtures").glob("cache-*"))) == 1


def test_old_mixtures_are_forgotten(tmp_path):
    from tell_plugins.bridge.loader import _forget_old

    tmp_path = paths.make_folder(tmp_path / "mixtures")
    for name in ("old.arrow", "old.arrow.lock", "new.arrow"):
        (tmp_path / name).touch()
    for name in ("old.arrow", "old.arrow.lock"):
        os.utime(tmp_path / name, (1e9, 1e9))
    (tmp_path / "gone.arrow").symlink_to(tmp_path / "nowhere")  # as if just forgotten by another
    _forget_old(tmp_path)
    kept = {path.name for path in tmp_path.glob("*.arrow*")}
    assert kept - {"gone.arrow"} == {"old.arrow.lock", "new.arrow"}
