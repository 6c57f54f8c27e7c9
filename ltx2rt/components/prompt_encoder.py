"""Prompt to transformer contexts: tokenizer and text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ltx2rt.engine import Array, Engine
from ltx2rt.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TextContext:
    """Contexts of N prompts: video `[N, 1024, Cv]`, audio `[N, 1024, Ca]`, float32, no mask."""

    video: Array
    audio: Array


class PromptEncoder:
    """Encodes prompts. The engine is `text_encoder`; it is closed by its owner."""

    def __init__(self, tokenizer: Tokenizer, engine: Engine) -> None:
        self._tokenizer = tokenizer
        self._engine = engine

    def __call__(self, prompts: Sequence[str]) -> TextContext:
        """Encode prompts, one at a time: they are all 1024 tokens long and memory stays bounded."""
        input_ids, attention_mask = self._tokenizer.encode(prompts)
        parts = [
            self._engine({"input_ids": ids[None], "attention_mask": mask[None]})
            for ids, mask in zip(input_ids, attention_mask, strict=True)
        ]
        return TextContext(
            np.concatenate([p["video_context"] for p in parts]),
            np.concatenate([p["audio_context"] for p in parts]),
        )
