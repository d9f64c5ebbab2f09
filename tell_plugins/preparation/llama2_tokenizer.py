"""The Llama-2 tokenizer, the paper's token counter, from a hub that asks for no licence form.

Hubs carry it in several serialisations of one vocabulary. So what proves a copy is its content:
the vocabulary, and the tokens it gives for texts of several kinds. A name proves nothing: files of
other models with the same number of tokens go about under this one.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.core.tokens import tokenizer_file
from tell_plugins.preparation.card_files import HUGGINGFACE
from tell_plugins.preparation.download import Places, fetch, write_record

NAME, FILE = "llama2_tokenizer", "tokenizer.json"
VOCABULARY = "317117d0ed0fa2d643533e2ad16aa34e72ec0091cba4a88a2b582c9e37f4458d"
PROBES = (
    "The quick brown fox jumps over the lazy dog, doesn't it?",
    "Þetta er síðasti dagur tímabilsins og mikið er enn í húfi.",
    '{"thought": "The answer names no source.", "hallucination": "yes"}',
    "def area(r):\n    return 3.14159 * r ** 2\n\n\nprint(area(10))",
    "  two leading blanks, 1,234.5 %, 日本語, €, 🙂",
)
TOKENS = "045e62f6dd7a180a8a77380c2d667bcad6aaa0d0b7b06f412a7a9b849afbad9b"


def problem(path: Path) -> str | None:
    """What is wrong with the file; None when it counts as the Llama-2 tokenizer does."""
    from tokenizers import Tokenizer

    try:
        vocabulary = json.loads(path.read_bytes())["model"]["vocab"]
        tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception; a Unigram model has no dict
        return f"no tokenizer file of Llama-2's kind ({type(error).__name__})"
    if digest(tokens) != VOCABULARY:
        return f"another vocabulary than Llama-2's ({len(vocabulary):,} tokens)"
    if digest([tokenizer.encode(text, add_special_tokens=False).ids for text in PROBES]) != TOKENS:
        return "Llama-2's vocabulary, but it cuts texts into other tokens"
    return None


def digest(value: Any) -> str:
    """SHA-256 over a value's JSON: the tokens in order of their ids, or the ids of texts."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _address(hub: str | None) -> str:
    """Where the file lies on a hub; the hubs' own variables name another endpoint."""
    variable, base = "MODELSCOPE_ENDPOINT", "https://www.modelscope.cn"
    path = f"api/v1/models/modelscope/Llama-2-7b-chat-ms/repo?Revision=master&FilePath={FILE}"
    if hub == HUGGINGFACE:
        variable, base = "HF_ENDPOINT", "https://huggingface.co"
        path = f"NousResearch/Llama-2-7b-chat-hf/resolve/main/{FILE}"
    return f"{os.environ.get(variable, base).rstrip('/')}/{path}"


def prepare(places: Places) -> None:
    """Make the tokenizer ready where the token counter looks for it.

    Raises MachineError when it cannot be had or is another tokenizer, UserError for a folder that
    does not have it, or when another file is found before it.
    """
    here, target = tokenizer_file(), paths.data_homes()[0] / NAME / FILE
    state = "is here"
    if here is None or problem(here) is not None:

        def record(part: Path, source: str) -> None:
            write_record(target, {"place": source}, part, licence="Llama 2 Community License")

        fetch(_address(places.hub), problem, target, places, record=record)
        here, state = tokenizer_file(), "is ready"
    if here is None or problem(here) is not None:
        raise UserError(
            f"it is ready at {target}, but another is found before it and counts the tokens",
            where=str(here),
            remedy="remove that file or give it another name; or unset $TELL_TOKENIZER",
        )
    print(f"  {NAME}: {state}, verified (vocabulary and tokens): {paths.shown(here)}")
