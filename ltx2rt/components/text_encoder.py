"""Gemma run a layer at a time: token ids to contexts (spec/text_encoder.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ltx2rt.backends.stack import Call, OnLayer, Stack
from ltx2rt.components.tokenizer import Tokenizer
from ltx2rt.engine import Array


@dataclass(frozen=True, slots=True)
class TextContext:
    """Contexts of N prompts: video `[N, 1024, Cv]`, audio `[N, 1024, Ca]`, float32, no mask."""

    video: Array
    audio: Array


class TextEncoder:
    """Contexts of tokenised prompts.

    Args:
        stack: of `stack_plans.text_plan`; closed by its owner.
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def __call__(
        self, input_ids: Array, attention_mask: Array, on_layer: OnLayer | None = None
    ) -> TextContext:
        """Encode N prompts; each is run alone, so memory grows by its hidden states only.

        Args:
            input_ids, attention_mask: `[N, S]` int64, left padded.
            on_layer: called after each layer with (layers done, all layers).
        """
        prompts = [
            Call({"input_ids": input_ids[i : i + 1], "attention_mask": attention_mask[i : i + 1]})
            for i in range(len(input_ids))
        ]
        parts = self._stack(prompts, on_layer)
        video, audio = (
            np.concatenate([part[name] for part in parts])
            for name in ("video_context", "audio_context")
        )
        return TextContext(video, audio)


class PromptEncoder:
    """Encodes prompts; the engines of `encoder` are closed by their owner."""

    def __init__(self, tokenizer: Tokenizer, encoder: TextEncoder) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder

    def __call__(self, prompts: Sequence[str], on_layer: OnLayer | None = None) -> TextContext:
        """Contexts of prompts, each padded to 1024 tokens; `on_layer` as in `TextEncoder`."""
        return self._encoder(*self._tokenizer.encode(prompts), on_layer)
