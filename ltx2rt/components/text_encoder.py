"""Gemma run a layer at a time: token ids to contexts (spec/text_encoder.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ltx2rt.components.tokenizer import Tokenizer
from ltx2rt.components.transformer_inputs import as_dtype
from ltx2rt.engine import NUMPY_DTYPES, Array, Engine
from ltx2rt.weights.safetensors import convert

Layers = Sequence[Mapping[str, Array]]
OnLayer = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class TextContext:
    """Contexts of N prompts: video `[N, 1024, Cv]`, audio `[N, 1024, Ca]`, float32, no mask."""

    video: Array
    audio: Array


class TextEncoder:
    """Contexts of tokenised prompts.

    Args:
        head, tail: engines of one engine set; closed by their owner.
        blocks: block component -> its engine and the weights of its layers. Every layer's weights
            are read once a call, in order, whatever the number of prompts.
        head_weights: the token embedding.
        options: those of the component `text_head`.
    """

    def __init__(
        self,
        head: Engine,
        blocks: Mapping[str, tuple[Engine, Layers]],
        tail: Engine,
        head_weights: Layers,
        options: Mapping[str, Any],
    ) -> None:
        self._head, self._blocks, self._tail = head, blocks, tail
        self._head_weights = head_weights
        self._plan: list[tuple[str, str]] = [(str(b), str(k)) for b, k in options["layers"]]

    def __call__(
        self, input_ids: Array, attention_mask: Array, on_layer: OnLayer | None = None
    ) -> TextContext:
        """Encode N prompts; each is run alone, so memory grows by its hidden states only.

        Args:
            input_ids, attention_mask: `[N, S]` int64, left padded.
            on_layer: called after each layer with (layers done, all layers).
        """
        prompts = [slice(i, i + 1) for i in range(len(input_ids))]
        heads = [
            self._head(
                {"input_ids": input_ids[i], "attention_mask": attention_mask[i]}
                | dict(self._head_weights[0])
            )
            for i in prompts
        ]
        dtype = self._tail.spec.inputs[0].dtype
        states = []
        for tables in heads:
            first = as_dtype(tables["hidden"], dtype)
            states.append(np.empty((len(self._plan) + 1, *first.shape), NUMPY_DTYPES[dtype]))
            states[-1][0] = first
        for index, (name, kind, weights) in enumerate(self._layers()):
            engine = self._blocks[name][0]
            for i, tables in enumerate(heads):
                feeds = {
                    "hidden": states[i][index],
                    "attention_bias": tables[f"{kind}_bias"],
                    "rope_cos": tables[f"{kind}_cos"],
                    "rope_sin": tables[f"{kind}_sin"],
                }
                feeds = {s.name: as_dtype(feeds[s.name], s.dtype) for s in engine.spec.inputs}
                out = engine(feeds | dict(weights))["hidden_out"]
                states[i][index + 1] = as_dtype(out, dtype)
            if on_layer is not None:
                on_layer(index + 1, len(self._plan))
        parts = [
            self._tail({"hidden_states": stack, "attention_mask": attention_mask[i]})
            for stack, i in zip(states, prompts, strict=True)
        ]
        video, audio = (
            np.concatenate([convert(p[s.name], s.dtype, "float32", s.name) for p in parts])
            for s in self._tail.spec.outputs
        )
        return TextContext(video, audio)

    def _layers(self) -> Any:
        """Block, kind and weights of every layer, each block's layers in their order."""
        each = {name: iter(layers) for name, (_, layers) in self._blocks.items()}
        return ((name, kind, next(each[name])) for name, kind in self._plan)


class PromptEncoder:
    """Encodes prompts; the engines of `encoder` are closed by their owner."""

    def __init__(self, tokenizer: Tokenizer, encoder: TextEncoder) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder

    def __call__(self, prompts: Sequence[str], on_layer: OnLayer | None = None) -> TextContext:
        """Contexts of prompts, each padded to 1024 tokens; `on_layer` as in `TextEncoder`."""
        return self._encoder(*self._tokenizer.encode(prompts), on_layer)
