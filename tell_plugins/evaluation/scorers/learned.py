"""BLEURT and COMET, computed on request and kept beside the answers.

Both read a limited number of tokens and cut what is longer, so every length is counted and what is
cut is named. Saved scores are read without torch.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tell_plugins.core import paths
from tell_plugins.core.cards import Card
from tell_plugins.core.errors import MachineError, UserError, unknown
from tell_plugins.core.progress import tracked
from tell_plugins.core.state_files import Shape, cached_json, write_json
from tell_plugins.evaluation.intervals import counts_of
from tell_plugins.evaluation.judged import Judged, Scored, mean, ratio
from tell_plugins.evaluation.scorers.translation import UNITS, documents, one_line, pairs

DEFAULT_MODELS = {"bleurt": "lucadiliello/BLEURT-20", "comet": "Unbabel/wmt22-comet-da"}
VARIABLES = {"bleurt": "TELL_BLEURT", "comet": "TELL_COMET"}
LEARNED = tuple(DEFAULT_MODELS)
_BATCH = 16

Wanted = Mapping[str, str]  # the checkpoint of each metric that is asked for


class LearnedScores(Shape):
    """Scores by one learned metric of the answers to a translation task, as they are kept.

    Attributes:
        model: the checkpoint, as it was named.
        answers_sha256: of the answers; scores of others never pass as these.
        limit: tokens that the metric reads at once.
        segments: the score of each aligned line, answer after answer.
        over_limit: the lines longer than `limit`, which were cut to it.
        raw: BLEURT of each whole answer against its whole reference, opening included, cut to
            `limit`: the paper's way. Empty for COMET.
        raw_cut: how many of these lost text by that.
    """

    metric: str
    model: str
    answers_sha256: str
    limit: int
    segments: list[float]
    over_limit: list[str]
    raw: list[float]
    raw_cut: int

    @property
    def note(self) -> str:
        """What is to be said below its scores."""
        text = (
            f"{self.metric}: {self.model}; {len(self.over_limit)} lines cut to {self.limit} tokens"
        )
        return f"{text}, {self.raw_cut} of {len(self.raw)} raw documents cut" if self.raw else text


# --- what is asked for, and what is kept ----------------------------------------------------------


def wanted(asked: Any) -> Wanted:
    """The metrics that `--learned` names, and the checkpoint of each: the option of its name, else
    `$TELL_BLEURT` or `$TELL_COMET`, else the default.

    `asked` has these options as attributes. Raises UserError for an unknown metric, and for a
    checkpoint that is a path and not there.
    """
    found = {}
    for part in filter(str.strip, (asked.learned or "").split(",")):
        name = part.strip().lower()
        if name not in LEARNED:
            raise unknown("learned metric", name, LEARNED, "--learned")
        variable = os.environ.get(VARIABLES[name])
        found[name] = getattr(asked, name) or variable or DEFAULT_MODELS[name]
        _local_or_name(found[name])
    return found


def need_translation(card: Card, metrics: Wanted) -> None:
    """Raise UserError when learned metrics are asked for a card that is no translation task."""
    if metrics and card.metric != "translation":
        raise UserError(
            f"{', '.join(metrics)} score translations; card '{card.name}' has metric "
            f"'{card.metric}'",
            where="--learned",
            remedy="leave it out",
        )


def score_learned(scored: Scored, metrics: Wanted) -> None:
    """Score the answers by these metrics, unless the same checkpoint has done so already.

    Raises UserError for answers that are no translations.
    """
    need_translation(scored.card, metrics)
    kept = saved_learned(scored) if metrics else {}
    for name, model in metrics.items():
        if name not in kept or kept[name].model != model:
            found = score_documents(load_metric(name, model), scored)
            write_json(_file(scored.folder, name), found.model_dump())


def saved_learned(scored: Scored) -> dict[str, LearnedScores]:
    """Learned scores saved earlier for the same answers, by metric."""
    read = {name: cached_json(_file(scored.folder, name), LearnedScores) for name in LEARNED}
    return {
        name: LearnedScores(**saved)
        for name, saved in read.items()
        if saved is not None and saved["answers_sha256"] == scored.sha256
    }


def _file(folder: Path, name: str) -> Path:
    return folder / f"scores.{name}.json"


def with_learned(scored: Scored, judged: Mapping[str, Judged]) -> dict[str, Judged]:
    """The readings of a translation with what learned metrics said of the same answers.

    The checkpoint is part of a measure's name: scores of two checkpoints are never paired.
    """
    found = dict(judged)
    for name, scores in saved_learned(scored).items():
        over, under = counts_of(scores.segments, pairs(documents(scored), UNITS[0]).owners).T
        parts = {
            UNITS[0]: ratio(over, under, percent=False),
            UNITS[1]: mean(over / under, percent=False),
        }
        if scores.raw:
            parts[UNITS[2]] = mean(scores.raw, percent=False)
        for unit, column in parts.items():
            columns = {**found[unit].columns, f"{name} {scores.model}": column}
            notes = [*found[unit].notes, scores.note]
            found[unit] = replace(found[unit], columns=columns, notes=notes)
    return found


# --- the metrics ----------------------------------------------------------------------------------


class Triple(NamedTuple):
    """One segment: source, translation, reference."""

    source: str
    hypothesis: str
    reference: str


class LearnedMetric(NamedTuple):
    """A loaded metric; `score` cuts what is longer than `limit` tokens.

    `lengths` gives the tokens that it needs for each segment, special tokens included.
    """

    name: str
    model: str
    limit: int
    lengths: Callable[[Sequence[Triple]], list[int]]
    score: Callable[[Sequence[Triple]], list[float]]

    def over_limit(self, triples: Sequence[Triple]) -> list[int]:
        """The positions of the segments that lose text."""
        return [i for i, length in enumerate(self.lengths(triples)) if length > self.limit]


def bleurt(model: str) -> LearnedMetric:
    """BLEURT by bleurt-pytorch: reads reference and translation together (512 tokens)."""
    import torch

    source = _local_or_name(model)
    with _loading(model):
        from bleurt_pytorch import BleurtForSequenceClassification, BleurtTokenizer

        tokenizer: Any = BleurtTokenizer.from_pretrained(source)
        network: Any = BleurtForSequenceClassification.from_pretrained(source).eval()
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    limit = int(network.config.max_position_embeddings)

    def encoded(triples: Sequence[Triple], **settings: Any) -> Any:
        references, hypotheses = ([t.reference for t in triples], [t.hypothesis for t in triples])
        return tokenizer(references, hypotheses, verbose=False, **settings)

    def lengths(triples: Sequence[Triple]) -> list[int]:
        return [len(ids) for ids in encoded(triples, truncation=False)["input_ids"]]

    def score(triples: Sequence[Triple]) -> list[float]:
        parts = [triples[start : start + _BATCH] for start in range(0, len(triples), _BATCH)]
        cut = {"truncation": "longest_first", "max_length": limit}
        found: list[float] = []
        with torch.inference_mode(), _quiet():
            for part in tracked(parts, "BLEURT", "batches", len(parts)):
                batch = encoded(part, padding="longest", return_tensors="pt", **cut)
                found += network(**batch.to(network.device)).logits.flatten().tolist()
        return found

    return LearnedMetric("bleurt", model, limit, lengths, score)


def comet(model: str) -> LearnedMetric:
    """COMET by unbabel-comet: reads source, translation and reference, each on its own."""
    import torch

    path = Path(_local_or_name(model))
    with _loading(model):
        from comet import download_model, load_from_checkpoint

        if not path.exists():
            path = Path(download_model(model))
        file = path / "checkpoints" / "model.ckpt" if path.is_dir() else path
        network: Any = load_from_checkpoint(str(file))

    def lengths(triples: Sequence[Triple]) -> list[int]:
        texts = [text for triple in triples for text in triple]
        encoded = network.encoder.tokenizer(texts, truncation=False, verbose=False)
        counts = [len(ids) for ids in encoded["input_ids"]]
        return [max(counts[i : i + 3]) for i in range(0, len(counts), 3)]

    def score(triples: Sequence[Triple]) -> list[float]:
        with _quiet():
            prediction = network.predict(
                [{"src": t.source, "mt": t.hypothesis, "ref": t.reference} for t in triples],
                batch_size=_BATCH,
                gpus=1 if torch.cuda.is_available() else 0,
                progress_bar=len(triples) > 500,
            )
        return [float(score) for score in prediction["scores"]]

    return LearnedMetric("comet", model, int(network.encoder.max_positions) - 2, lengths, score)


@functools.cache
def load_metric(name: str, model: str) -> LearnedMetric:
    """The metric `bleurt` or `comet` of a checkpoint, loaded once a process."""
    return bleurt(model) if name == "bleurt" else comet(model)


def score_documents(metric: LearnedMetric, scored: Scored) -> LearnedScores:
    """The scores of each aligned line and, by BLEURT, of whole answers."""
    docs = documents(scored)
    lines = [
        (f"row {doc.row}, line {number}", Triple(*map(one_line, texts)))
        for doc in docs
        for number, texts in enumerate(
            zip(doc.sources, doc.hypotheses, doc.references, strict=True), 1
        )
    ]
    triples = [triple for _, triple in lines]
    whole: list[Triple] = []
    if metric.name == "bleurt":
        whole = [Triple("", one_line(doc.answer), one_line(doc.reference)) for doc in docs]
    return LearnedScores(
        metric=metric.name,
        model=metric.model,
        answers_sha256=scored.sha256,
        limit=metric.limit,
        segments=metric.score(triples),
        over_limit=[lines[i][0] for i in metric.over_limit(triples)],
        raw=metric.score(whole) if whole else [],
        raw_cut=len(metric.over_limit(whole)) if whole else 0,
    )


# --- checkpoints ----------------------------------------------------------------------------------


def _local_or_name(model: str) -> str:
    """A folder's path, or a hub name as it is. UserError for a path that is not there."""
    path = paths.user_path(model)
    if path.exists():
        return str(path)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UserError(
            f"no checkpoint at '{model}'",
            where="--bleurt, --comet, $TELL_BLEURT, $TELL_COMET",
            allowed=f"a folder, or a hub's name such as {DEFAULT_MODELS['comet']}",
            remedy="correct the path",
        )
    return model


@contextlib.contextmanager
def _loading(model: str) -> Iterator[None]:
    """Turn the libraries' many ways to fail into one message, and keep them quiet."""
    try:
        with _quiet():
            yield
    except (MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:  # the libraries raise bare Exception, KeyError, OSError ...
        message = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
        if not paths.user_path(model).exists():
            raise MachineError(
                f"{model}: not available ({message})",
                remedy="check the network, or name a local folder by argument or by "
                "$TELL_BLEURT / $TELL_COMET",
            ) from None
        unsafe = isinstance(error, pickle.UnpicklingError)
        found = "it holds more than weights" if unsafe else "no checkpoint of this metric"
        raise UserError(
            f"{found}, and is not loaded: {message}",
            where=model,
            remedy="name a folder of plain weights that the metric's library saved; what its "
            "hparams.yaml names as pretrained_model must be on this machine or the network",
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' notices out of the output; their errors still come through."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
