"""What a model's folder holds, told by its content: saved answers of other weights never pass."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from tell_plugins.core.rows import file_sha256

_WEIGHTS = (".safetensors", ".bin", ".gguf")
_TEXT = (".json", ".model", ".txt", ".jinja", ".tiktoken", ".py")  # settings, tokenizer, code
# what a trainer leaves beside a model; it changes no answer
_OTHERS = {"training_args.bin", "trainer_state.json", "args.json", "manifest.json", "anchor.txt"}
_SMALL = 1 << 30  # bytes; a file of weights up to here is read whole
_SAMPLES, _SAMPLE = 256, 1 << 16  # else so many evenly spaced parts of so many bytes


def model_sha256(folder: Path) -> str:
    """One hash over weights, settings, tokenizer and code in a model's folder; "" for no folder.

    Of a large file of weights the size, the beginning (safetensors' header) and 256 evenly spaced
    parts of 64 KiB are read: what trains a model changes all of its tensors.
    """
    if not folder.is_dir():
        return ""
    states = [(path, path.stat()) for path in model_files(folder)]
    return _hash_of(tuple((path, state.st_size, state.st_mtime_ns) for path, state in states))


def model_files(folder: Path) -> list[Path]:
    """The files of a model's folder on which its answers depend."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.suffix in (*_WEIGHTS, *_TEXT) and path.name not in _OTHERS and path.is_file()
    ]


def file_or_empty(path: Path) -> str:
    """The SHA-256 of a file, "" where there is none."""
    return file_sha256(path) if path.is_file() else ""


@lru_cache(maxsize=16)
def _hash_of(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, size, _ in files:
        sampled = path.suffix in _WEIGHTS and size > _SMALL
        content = _sampled(path, size) if sampled else file_sha256(path)
        digest.update(f"{path.name} {size} {content}\n".encode())
    return digest.hexdigest()


def _sampled(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for number in range(_SAMPLES):
            file.seek(number * (size - _SAMPLE) // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()
