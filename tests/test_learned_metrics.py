"""BLEURT and COMET for real, on small random checkpoints: limits, order, files, errors."""

import json
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tell_plugins.core.errors import UserError
from tell_plugins.evaluation import scoring
from tell_plugins.evaluation.scorers import learned
from tell_plugins.evaluation.scorers.learned import (
    DEFAULT_MODELS,
    LearnedMetric,
    Triple,
    bleurt,
    comet,
    score_documents,
    wanted,
)
from tell_plugins.evaluation.scoring import load_scored
from tests import learned_checkpoints
from tests.conftest import message_of
from tests.saved_answers import save_answers

pytestmark = pytest.mark.slow

KINDS = ["bleurt", "comet"]
LONG = " ".join(["x"] * 600)
PAIRS = [
    Triple("One house stands here.", "Eitt hus.", "Eitt hus stendur her."),
    Triple("A dog.", "Hundur", "Hundur."),
    Triple("The cat sleeps all day long.", "Kotturinn sefur", "Kotturinn sefur allan daginn."),
    Triple("Rain.", "", "Rigning."),
    Triple("Sun and wind today.", "Sol og vindur i dag", "Sol og vindur i dag"),
]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch) -> None:
    monkeypatch.setattr(learned, "_BATCH", 2)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {kind: getattr(learned_checkpoints, kind)(root / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def loaded(checkpoints) -> dict[str, LearnedMetric]:
    return {kind: getattr(learned, kind)(str(path)) for kind, path in checkpoints.items()}


@pytest.fixture(params=KINDS)
def metric(request, loaded) -> LearnedMetric:
    return loaded[request.param]


def test_a_score_depends_on_its_segment_alone(metric):
    together = metric.score(PAIRS)
    alone = metric.score([PAIRS[2]])[0]
    backwards = metric.score(PAIRS[::-1])[::-1]
    assert together[2] == pytest.approx(alone, abs=1e-4)
    assert together == pytest.approx(backwards, abs=1e-4)
    assert np.ptp(together) > 0.01  # the checkpoints do tell texts apart
    references = [PAIRS[-1].reference, *(pair.reference for pair in PAIRS[:-1])]
    others = [pair._replace(reference=r) for pair, r in zip(PAIRS, references, strict=True)]
    assert together != pytest.approx(metric.score(others), abs=1e-4)


def test_a_text_over_the_limit_is_known(metric):
    assert metric.limit in (510, 512)
    long = Triple(LONG, LONG, LONG + " y")
    assert metric.lengths([long])[0] > 600
    scores = metric.score([PAIRS[0], long, PAIRS[1]])
    assert [scores[0], scores[2]] == pytest.approx(metric.score([PAIRS[0], PAIRS[1]]), abs=1e-4)
    words = 1
    while metric.lengths([Triple("a", "b", " ".join(["x"] * (words + 1)))])[0] <= metric.limit:
        words += 1
    exact, one_more = (Triple("a", "b", " ".join(["x"] * n)) for n in (words, words + 1))
    assert metric.over_limit([PAIRS[1], exact, one_more]) == [2]


def test_scores_equal_the_librarys_own_calls(checkpoints, loaded):
    import torch
    from bleurt_pytorch import BleurtForSequenceClassification, BleurtTokenizer
    from comet import load_from_checkpoint

    references, hypotheses = ([p.reference for p in PAIRS], [p.hypothesis for p in PAIRS])
    path = str(checkpoints["bleurt"])
    model = BleurtForSequenceClassification.from_pretrained(path).eval()
    tokenizer = BleurtTokenizer.from_pretrained(path)
    encoded = tokenizer(references, hypotheses, padding="longest", return_tensors="pt")
    with torch.no_grad():
        expected = model(**encoded).logits.flatten().tolist()
    assert loaded["bleurt"].score(PAIRS) == pytest.approx(expected, abs=1e-4)
    file = checkpoints["comet"] / "checkpoints" / "model.ckpt"
    samples = [{"src": p.source, "mt": p.hypothesis, "ref": p.reference} for p in PAIRS]
    model = load_from_checkpoint(str(file))
    expected = model.predict(samples, batch_size=8, gpus=0, progress_bar=False)["scores"]
    for metric in (loaded["comet"], comet(str(file))):
        assert metric.score(PAIRS) == pytest.approx(expected, abs=1e-4)


@pytest.fixture
def folder(make_card, tmp_path) -> Path:
    """Three documents; the second line of the last one is too long for any metric."""
    rows = [
        {"q": "One\nTwo", "r": "Sure: here.\nEitt\nTvo"},
        {"q": "Rain", "r": "Sure: here.\nRigning"},
        {"q": f"Sun\n{LONG}", "r": f"Sure: here.\nSol\n{LONG}"},
    ]
    make_card("lines", train=rows, test=rows, metric="translation")
    return save_answers(tmp_path / "answers", "lines", ["Eitt\nTvo", "Regn", f"Sol\n{LONG}"])


def test_documents_are_scored_by_line_and_long_lines_named(folder, metric):
    result = score_documents(metric, load_scored(folder))
    assert len(result.segments) == 5  # of 2, 1 and 2 lines
    assert result.over_limit == ["row 2, line 2"]
    if metric.name == "comet":
        assert result.raw == []
    else:  # whole answers against whole references: the long one is cut, and said to be
        assert (result.raw_cut, len(result.raw)) == (1, 3)


def test_learned_scores_are_kept_while_the_answers_are_the_same(folder, checkpoints):
    first = scoring.write(folder, {name: str(path) for name, path in checkpoints.items()})
    assert {"BLEURT", "COMET"} <= set(first.headline)
    saved = json.loads((folder / "scores.bleurt.json").read_text())
    lines, documents, raw = (
        next(v.value for name, v in part.measures.items() if name.startswith("bleurt"))
        for part in first.readings.values()
    )
    each = saved["segments"]
    assert lines == pytest.approx(np.mean(each))
    assert documents == pytest.approx(np.mean([np.mean(each[:2]), each[2], np.mean(each[3:])]))
    assert raw == pytest.approx(np.mean(saved["raw"]))
    assert scoring.write(folder).to_dict() == first.to_dict()  # no metric is loaded for this

    lines = (folder / "answers.jsonl").read_text().splitlines(keepends=True)
    (folder / "answers.jsonl").write_text("".join(lines[::-1]))
    assert not {"BLEURT", "COMET"} & set(scoring.write(folder).headline)


def test_learned_scores_are_computed_once_for_each_checkpoint(folder, tmp_path, monkeypatch):
    loaded, scored = [], []

    def score(triples: Sequence[Triple]) -> list[float]:
        scored.append(len(triples))
        return [0.5] * len(triples)

    def constant(model: str) -> LearnedMetric:
        loaded.append(model)
        return LearnedMetric("comet", model, 512, lambda triples: [5] * len(triples), score)

    monkeypatch.setattr(learned, "comet", constant)
    other = save_answers(tmp_path / "other", "lines", ["Eitt", "Rigning", "Sol\nog tungl"])
    one, two = f"{tmp_path.name}/one", f"{tmp_path.name}/two"
    for answers in (folder, other, folder, other):
        assert f"comet {one}" in scoring.write(answers, {"comet": one}).first.measures
    assert (loaded, len(scored)) == ([one], 2)
    again = scoring.write(folder, {"comet": two}).first.measures
    assert f"comet {two}" in again
    assert f"comet {one}" not in again
    assert loaded == [one, two]


def test_which_checkpoint_is_taken(monkeypatch):
    def asked(learned: str, **options: str) -> dict[str, str]:
        given = {"bleurt": None, "comet": None} | options
        return dict(wanted(SimpleNamespace(learned=learned, **given)))

    monkeypatch.delenv("TELL_BLEURT", raising=False)
    default = {"comet": "Unbabel/wmt22-comet-da", "bleurt": "lucadiliello/BLEURT-20"}
    assert asked("comet, bleurt,comet") == default == DEFAULT_MODELS
    monkeypatch.setenv("TELL_BLEURT", "from/variable")
    assert asked("bleurt") == {"bleurt": "from/variable"}
    assert asked("bleurt", bleurt="from/argument") == {"bleurt": "from/argument"}
    assert "did you mean 'bleurt'" in message_of(asked, "bleu,blert")


class _Harmful:
    """Unpickling this runs code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch harmed",)


def test_a_checkpoint_that_would_run_code_is_not_loaded(checkpoints, tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "hparams.yaml").write_bytes((checkpoints["comet"] / "hparams.yaml").read_bytes())
    torch.save({"state_dict": {}, "x": _Harmful()}, folder / "checkpoints" / "model.ckpt")
    assert "it holds more than weights" in message_of(comet, str(folder))
    for kind in (bleurt, comet):
        assert "no checkpoint at" in message_of(kind, str(tmp_path / "nowhere"))
        assert "no checkpoint of this metric" in message_of(kind, str(tmp_path))
    (folder / "checkpoints" / "model.ckpt").write_bytes(pickle.dumps(_Harmful()))
    with pytest.raises(UserError):
        comet(str(folder))
    assert not (tmp_path / "harmed").exists()


def test_a_checkpoint_out_of_reach_is_the_machines_fault(folder, monkeypatch, cli):
    monkeypatch.delenv("TELL_COMET", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    error = cli(2, "compare", folder, "--learned", "comet", "--out", folder / "out")
    assert f"{DEFAULT_MODELS['comet']}: not available" in error
    assert "$TELL_BLEURT / $TELL_COMET" in error
