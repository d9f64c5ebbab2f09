"""Python's dicts and lists as JSON, where JSON can say the same."""

from __future__ import annotations

import ast
import io
import json
import tokenize
import warnings

_CONSTANTS = (str, int, float, bool, type(None))
_OTHERS = (ast.Expression, ast.List, ast.UnaryOp, ast.USub, ast.Load)
HINT = "where they are Python's, --repair-json writes them as JSON; or "


def json_of_python(text: str) -> str | None:
    """A Python dict or list as JSON, None where it is none or JSON could not say the same.

    That is so for tuples and sets, keys that are no texts or stand twice, infinite numbers, and
    texts side by side, where a comma may be missing.
    """
    text = text.strip()
    if not text.startswith(("{", "[")):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a backslash that Python only guesses at
            tree = ast.parse(text, mode="eval")
        if not _is_plain(tree, text):
            return None
        written = json.dumps(ast.literal_eval(tree), ensure_ascii=False, allow_nan=False)
        written.encode()
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError):
        return None
    return written


def _is_plain(tree: ast.Expression, text: str) -> bool:
    """Whether a literal has an equal in JSON."""
    texts = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            if not isinstance(node.value, _CONSTANTS):
                return False
            texts += isinstance(node.value, str)
        elif isinstance(node, ast.Dict):
            keys = [getattr(key, "value", None) for key in node.keys]
            if len(set(keys)) < len(keys) or not all(isinstance(key, str) for key in keys):
                return False
        elif not isinstance(node, _OTHERS):
            return False
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return texts == sum(token.type == tokenize.STRING for token in tokens)
