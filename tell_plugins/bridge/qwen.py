"""Compatibility with Qwen-7B-Chat's remote code."""

from __future__ import annotations


def let_qwen_generate() -> None:
    """Let Qwen-7B-Chat's remote code generate under transformers 4.56.

    Its attention expects no cache or tuples; transformers hands a DynamicCache to every class that
    does not say otherwise. https://huggingface.co/Qwen/Qwen-7B-Chat/blob/main/modeling_qwen.py
    """
    from transformers.generation.utils import GenerationMixin

    original = getattr(GenerationMixin, "_supports_default_dynamic_cache", None)
    if original is None or getattr(original, "_tell", False):
        return

    def supports(cls: type) -> bool:
        if any(base.__name__ == "QWenLMHeadModel" for base in cls.__mro__):
            return False
        return bool(original.__func__(cls))

    supports._tell = True  # type: ignore[attr-defined]
    GenerationMixin._supports_default_dynamic_cache = classmethod(supports)  # type: ignore
