"""What learned metrics leave behind; light, so that saved scores can be read without torch."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pickle
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tell_plugins.core import paths
from tell_plugins.core.errors import MachineError, UserError, unknown
from tell_plugins.core.files import Shape, cached_json, write_json
from tell_plugins.core.progress import track
from tell_plugins.evaluation.answers import Scored
from tell_plugins.evaluation.judged import Judged, mean, ratio, summed
from tell_plugins.evaluation.scorers.translation import UNITS, documents, one_line, pairs

LEARNED = ("bleurt", "comet")


@dataclass(frozen=True)
class LearnedScores:
    """Scores by one learned metric of the answers to a translation task, as they are kept.

    Attributes:
        model: the checkpoint, as it was named.
        answers_sha256: of the answers; scores of others never pass as these.
        limit: tokens that the metric reads at once.
        segments: the score of each aligned line, answer after answer.
        over_limit: the lines longer than `limit`, which were cut to it.
        raw: BLEURT of each whole answer against its whole reference, opening included, cut to
            `limit` as BLEURT's own scorer does it: the paper's way. Empty for COMET.
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


def learned_file(folder: Path, name: str) -> Path:
    """Where the scores of a folder's answers by a learned metric are kept."""
    return folder / f"scores.{name}.json"


class _Saved(Shape):
    answers_sha256: str
    segments: list[float]
    raw: list[float]


def saved_learned(scored: Scored) -> dict[str, LearnedScores]:
    """Learned scores saved earlier for the same answers, by metric."""
    found = {}
    for name in LEARNED:
        saved = cached_json(learned_file(scored.folder, name), _Saved)
        if saved is not None and saved["answers_sha256"] == scored.sha256:
            found[name] = LearnedScores(**saved)
    return found


def with_learned(scored: Scored, judged: Mapping[str, Judged]) -> dict[str, Judged]:
    """The readings of a translation with what learned metrics said of the same answers.

    The checkpoint is part of a measure's name: scores of two checkpoints are never paired.
    """
    found = dict(judged)
    for name, scores in saved_learned(scored).items():
        owners = pairs(documents(scored)[0], UNITS[0]).owners
        lines = np.stack([scores.segments, np.ones(len(owners))], axis=1)
        over, under = summed(lines, owners).T
        parts = {
            UNITS[0]: ratio(over, under, percent=False),
            UNITS[1]: mean(over / under, percent=False),
            UNITS[2]: mean(scores.raw, percent=False) if scores.raw else None,
        }
        for unit, column in parts.items():
            part, key = found[unit], f"{name} {scores.model}"
            if column is not None:
                columns, notes = {**part.columns, key: column}, [*part.notes, scores.note]
                found[unit] = replace(part, columns=columns, notes=notes)
    return found


def metric_names(text: str) -> list[str]:
    """The learned metrics that `--learned` names. UserError for an unknown one."""
    names = [part.strip().lower() for part in text.split(",") if part.strip()]
    for name in names:
        if name not in LEARNED:
            raise unknown("learned metric", name, LEARNED, "--learned")
    return list(dict.fromkeys(names))


DEFAULT_MODELS = {"bleurt": "lucadiliello/BLEURT-20", "comet": "Unbabel/wmt22-comet-da"}
VARIABLES = {"bleurt": "TELL_BLEURT", "comet": "TELL_COMET"}


class Triple(NamedTuple):
    """One segment: source, translation, reference."""

    source: str
    hypothesis: str
    reference: str


class LearnedMetric(ABC):
    """A loaded metric. It cuts what is longer than `limit` tokens."""

    name: str
    model_name: str
    limit: int

    @abstractmethod
    def lengths(self, triples: Sequence[Triple]) -> list[int]:
        """The tokens that the metric needs for each segment, special tokens included."""

    @abstractmethod
    def score(self, triples: Sequence[Triple]) -> list[float]:
        """One score a segment."""

    def over_limit(self, triples: Sequence[Triple]) -> list[int]:
        """The positions of the segments that lose text."""
        return [i for i, length in enumerate(self.lengths(triples)) if length > self.limit]


class Bleurt(LearnedMetric):
    """BLEURT by bleurt-pytorch: reads reference and translation together (512 tokens)."""

    name = "bleurt"

    def __init__(self, model: str | None = None, *, batch_size: int = 16) -> None:
        self.model_name = chosen_model("bleurt", model)
        self._batch_size = batch_size
        source = _local_or_name(self.model_name, "bleurt")
        with _quiet(), _loading(self.model_name):
            from bleurt_pytorch import BleurtForSequenceClassification, BleurtTokenizer

            self._tokenizer: Any = BleurtTokenizer.from_pretrained(source)
            self._model: Any = BleurtForSequenceClassification.from_pretrained(source).eval()
        self._model.to(_device())
        self.limit = int(self._model.config.max_position_embeddings)

    def lengths(self, triples: Sequence[Triple]) -> list[int]:
        encoded = self._tokenizer(
            [triple.reference for triple in triples],
            [triple.hypothesis for triple in triples],
            truncation=False,
            verbose=False,
        )
        return [len(ids) for ids in encoded["input_ids"]]

    def score(self, triples: Sequence[Triple]) -> list[float]:
        import torch

        lengths = self.lengths(triples)
        order = sorted(range(len(triples)), key=lambda i: -lengths[i])
        scores = [0.0] * len(triples)
        with track(len(triples), "BLEURT", "segments") as bar, torch.inference_mode(), _quiet():
            for start in range(0, len(order), self._batch_size):
                batch = order[start : start + self._batch_size]
                encoded = self._tokenizer(
                    [triples[i].reference for i in batch],
                    [triples[i].hypothesis for i in batch],
                    padding="longest",
                    truncation="longest_first",
                    max_length=self.limit,
                    return_tensors="pt",
                    verbose=False,
                ).to(self._model.device)
                values = self._model(**encoded).logits.flatten().tolist()
                for i, value in zip(batch, values, strict=True):
                    scores[i] = value
                bar.update(len(batch))
        return scores


class Comet(LearnedMetric):
    """COMET by unbabel-comet: reads source, translation and reference, each on its own."""

    name = "comet"

    def __init__(self, model: str | None = None, *, batch_size: int = 16) -> None:
        self.model_name = chosen_model("comet", model)
        self._batch_size = batch_size
        checkpoint = _comet_checkpoint(self.model_name)
        with _quiet(), _loading(self.model_name):
            from comet import load_from_checkpoint
            from comet.models import RegressionMetric

            self._model: Any = load_from_checkpoint(str(checkpoint))
        if type(self._model) is not RegressionMetric:
            raise UserError(
                f"'{self.model_name}' is a {type(self._model).__name__}",
                where=f"--comet or ${VARIABLES['comet']}",
                allowed="a RegressionMetric, which reads its three texts apart: wmt22-comet-da",
                remedy=f"leave it out for {DEFAULT_MODELS['comet']}",
            )
        self.limit = int(self._model.encoder.max_positions) - 2

    def lengths(self, triples: Sequence[Triple]) -> list[int]:
        texts = [text for triple in triples for text in triple]
        encoded = self._model.encoder.tokenizer(texts, truncation=False, verbose=False)
        counts = [len(ids) for ids in encoded["input_ids"]]
        return [max(counts[i : i + 3]) for i in range(0, len(counts), 3)]

    def score(self, triples: Sequence[Triple]) -> list[float]:
        import torch

        samples = [{"src": t.source, "mt": t.hypothesis, "ref": t.reference} for t in triples]
        with _quiet():
            prediction = self._model.predict(
                samples,
                batch_size=self._batch_size,
                gpus=1 if torch.cuda.is_available() else 0,
                progress_bar=len(samples) > 500,
            )
        return [float(score) for score in prediction["scores"]]


@functools.cache
def load_metric(name: str, model: str, *, batch_size: int = 16) -> LearnedMetric:
    """The metric `bleurt` or `comet` of a checkpoint, loaded once a process."""
    kinds: dict[str, type[Bleurt] | type[Comet]] = {"bleurt": Bleurt, "comet": Comet}
    return kinds[name](model, batch_size=batch_size)


def need_checkpoint(name: str, model: str | None = None) -> None:
    """Raise UserError when the checkpoint that would be taken is a path and not there."""
    _local_or_name(chosen_model(name, model), name)


def chosen_model(name: str, model: str | None = None) -> str:
    """The checkpoint's path or name: the argument, `$TELL_BLEURT`/`$TELL_COMET`, the default."""
    return model or os.environ.get(VARIABLES[name]) or DEFAULT_MODELS[name]


def score_learned(scored: Scored, names: Sequence[str], models: Mapping[str, str]) -> None:
    """Score the answers by the named metrics, unless the same checkpoint has done so already.

    What they give is kept beside the answers.
    """
    kept = saved_learned(scored)
    for name in names:
        model = chosen_model(name, models.get(name))
        if name not in kept or kept[name].model != model:
            found = score_documents(load_metric(name, model), scored)
            write_json(learned_file(scored.folder, name), asdict(found))


def score_documents(metric: LearnedMetric, scored: Scored) -> LearnedScores:
    """The scores of each aligned line and, by BLEURT, of whole answers."""
    docs, _ = documents(scored)
    triples = [
        Triple(one_line(source), one_line(hypothesis), one_line(reference))
        for doc in docs
        for source, hypothesis, reference in zip(
            doc.sources, doc.hypotheses, doc.references, strict=True
        )
    ]
    places = [(doc.row, line) for doc in docs for line in range(len(doc.references))]
    whole: list[Triple] = []
    if isinstance(metric, Bleurt):
        raw = pairs(docs, "raw_document")
        whole = [Triple("", h, r) for h, r in zip(raw.hypotheses, raw.references, strict=True)]
    return LearnedScores(
        metric=metric.name,
        model=metric.model_name,
        answers_sha256=scored.sha256,
        limit=metric.limit,
        segments=metric.score(triples),
        over_limit=[
            f"row {places[i][0]}, line {places[i][1] + 1}" for i in metric.over_limit(triples)
        ],
        raw=metric.score(whole) if whole else [],
        raw_cut=len(metric.over_limit(whole)) if whole else 0,
    )


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _local_or_name(model: str, name: str) -> str:
    """A folder's path, or a hub name as it is. UserError for a path that is not there."""
    path = paths.user_path(model)
    if path.exists():
        return str(path)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UserError(
            f"no checkpoint at '{model}'",
            where=f"--{name} or ${VARIABLES[name]}",
            allowed=f"a folder, or a hub's name such as {DEFAULT_MODELS[name]}",
            remedy="correct the path",
        )
    return model


def _comet_checkpoint(model: str) -> Path:
    """The checkpoint file of a COMET model; downloads a model that is named, not a path."""
    path = Path(_local_or_name(model, "comet"))
    if path.is_file():
        return path
    if path.is_dir():
        checkpoint = path / "checkpoints" / "model.ckpt"
        if not checkpoint.is_file():
            raise UserError(
                "no checkpoints/model.ckpt in the folder",
                where=f"--comet or ${VARIABLES['comet']}: {model}",
                remedy="name the folder that holds hparams.yaml and checkpoints/",
            )
        return checkpoint
    with _quiet(), _loading(model):
        from comet import download_model

        return Path(download_model(model))


@contextlib.contextmanager
def _loading(model: str) -> Iterator[None]:
    """Turn the libraries' many ways to fail into one message."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise UserError(
            f"the checkpoint holds more than weights and is not loaded: {str(error)[:300]}",
            where=model,
            remedy="use a checkpoint of plain weights",
        ) from None
    except (UserError, MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:  # the libraries raise bare Exception, KeyError, OSError ...
        reason = str(error).strip().splitlines() or [""]
        message = f"{type(error).__name__}: {reason[0][:300]}"
        if paths.user_path(model).exists():
            raise UserError(
                f"not loadable as a checkpoint of this metric: {message}",
                where=model,
                remedy="name a folder that the metric's library saved; what its hparams.yaml names "
                "as pretrained_model must be on this machine or the network",
            ) from None
        raise MachineError(
            f"{model}: not available ({message})\n"
            "  remedy:  check the network, or name a local folder by argument or by "
            "$TELL_BLEURT / $TELL_COMET"
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' notices out of the output; their errors still come through."""
    names = (
        "pytorch_lightning",
        "lightning",
        "lightning_fabric",
        "comet",
        "transformers",
        "huggingface_hub",  # each of its retries, twice
    )
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
