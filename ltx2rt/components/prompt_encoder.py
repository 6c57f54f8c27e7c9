"""Prompt to transformer contexts: tokenizer and text encoder."""

from __future__ import annotations

from collections.abc import Sequence

from ltx2rt.components.text_encoder import OnLayer, TextContext, TextEncoder
from ltx2rt.components.tokenizer import Tokenizer

__all__ = ["PromptEncoder", "TextContext"]


class PromptEncoder:
    """Encodes prompts; the engines of `encoder` are closed by their owner."""

    def __init__(self, tokenizer: Tokenizer, encoder: TextEncoder) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder

    def __call__(self, prompts: Sequence[str], on_layer: OnLayer | None = None) -> TextContext:
        """Contexts of prompts, each padded to 1024 tokens; `on_layer` as in `TextEncoder`."""
        return self._encoder(*self._tokenizer.encode(prompts), on_layer)
