"""What the forward passes of one stage share: tables and biases of a stage, contexts and switches
of one kind of pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ltx2rt.backends.stack import Constants, Stack
from ltx2rt.components.stack_plans import streams_of
from ltx2rt.components.transformer_inputs import (
    KINDS,
    ModalityInput,
    Perturbations,
    attention_bias,
    context_bias,
)
from ltx2rt.engine import Array
from ltx2rt.latents.rope import rope_tables

Streams = Mapping[str, ModalityInput]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassKind:
    """The switches of a forward pass.

    Attributes:
        enabled: streams whose tokens change.
        perturbations: attentions that are skipped.
        exchange: whether the streams see each other at all.
    """

    enabled: tuple[str, ...]
    perturbations: Perturbations
    exchange: bool


class StageConstants:
    """Makes constants when a pass first needs them, and holds them until the stage ends.

    Arrays are told apart by where they lie, and kept alive: nobody may write to them meanwhile.

    Args:
        stack: holds them.
        options: those of the component `transformer_block`.
    """

    def __init__(self, stack: Stack, options: Mapping[str, Any]) -> None:
        self._stack = stack
        self._options = options
        self._streams = streams_of(options)
        self._held: dict[Hashable, Constants] = {}
        self._alive: list[Any] = []
        self._absent: dict[tuple[str, int, int], ModalityInput] = {}

    def of_pass(self, streams: Streams, indices: Mapping[str, Array], kind: PassKind) -> Constants:
        """The constants of a pass.

        Args:
            indices: stream -> which of its distinct timesteps every token has, `[B, T]`.
        """
        masked = self._is_masked(streams)
        stage = [
            (
                n,
                masked,
                s.latent.shape[:2],
                *map(_place, (s.positions, s.attention_mask, s.keyframes_mask)),
            )
            for n, s in streams.items()
        ]
        tables = self._begun(
            ("stage", *stage),
            streams,
            lambda: self._stack.begin(self._of_stage(streams)),
        )
        own = [
            (_place(s.context), _place(s.context_mask), hashlib.sha256(indices[n].data).digest())
            for n, s in streams.items()
        ]
        return self._begun(
            ("pass", *stage, *own, kind),
            streams,
            lambda: self._stack.begin(
                self._of_kind(streams, indices, kind), self._by_layer(streams, kind), tables
            ),
        )

    def absent(self, name: str, like: ModalityInput) -> ModalityInput:
        """One zero token in the place of a stream that is not there."""
        batch, length = like.latent.shape[0], like.context.shape[1]
        if (name, batch, length) not in self._absent:
            facts = self._options[name]
            context = facts["caption_channels"] or facts["context_dim"]
            self._absent[name, batch, length] = ModalityInput(
                latent=np.zeros((batch, 1, facts["in_channels"]), np.float32),
                sigma=np.zeros(batch, np.float32),
                timesteps=np.zeros((batch, 1), np.float32),
                positions=np.zeros((batch, len(facts["max_pos"]), 1, 2), np.float32),
                context=np.zeros((batch, length, context), np.float32),
            )
        return self._absent[name, batch, length]

    def close(self) -> None:
        """Free everything, what was made last first."""
        while self._held:
            self._held.popitem()[1].close()
        self._alive.clear()

    def _begun(self, key: Hashable, streams: Streams, begin: Callable[[], Constants]) -> Constants:
        if key not in self._held:
            self._held[key] = begin()
            self._alive.append(dict(streams))  # or another array could come to lie in their place
        return self._held[key]

    def _of_stage(self, streams: Streams) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for name, stream in streams.items():
            batch, tokens = stream.latent.shape[:2]
            marked = stream.keyframes_mask
            if marked is None:
                marked = np.zeros((batch, tokens, 1), np.float32)
            found |= self._rope(name, stream.positions)
            if self._is_masked(streams):
                dtype = self._stack.dtype(f"{name}_attention_bias")
                bias = attention_bias(stream.attention_mask, batch, tokens, dtype)
                found[f"{name}_attention_bias"] = bias
            found[f"{name}_keyframes_mask"] = np.asarray(marked, np.float32)
        return found

    def _of_kind(
        self, streams: Streams, indices: Mapping[str, Array], kind: PassKind
    ) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for name, stream in streams.items():
            batch, length = stream.latent.shape[0], stream.context.shape[1]
            if self._is_masked(streams):
                dtype = self._stack.dtype(f"{name}_context_bias")
                bias = context_bias(stream.context_mask, batch, length, dtype)
                found[f"{name}_context_bias"] = bias
            found |= {
                f"{name}_context": stream.context,
                f"{name}_timestep_index": indices[name],
                f"{name}_enabled": np.full(batch, name in kind.enabled, np.float32),
            }
        return found

    def _is_masked(self, streams: Streams) -> bool:
        """Whether biases are given: where a stream has a mask, or engines cannot do without."""
        masks = [m for s in streams.values() for m in (s.attention_mask, s.context_mask)]
        return not self._stack.masks or any(mask is not None for mask in masks)

    def _by_layer(self, streams: Streams, kind: PassKind) -> dict[str, Array]:
        """`[layers, B]` switches of the attentions."""
        batch = next(iter(streams.values())).latent.shape[0]
        layers = range(self._stack.num_layers)
        keeps = {
            f"{attention}_keep": np.stack(
                [kind.perturbations.switches(attention, layer, batch) for layer in layers]
            )
            for attention in KINDS
        }
        if not kind.exchange:
            for name in ("audio_to_video_keep", "video_to_audio_keep"):
                keeps[name] = np.zeros_like(keeps[name])
        return keeps

    def _rope(self, name: str, positions: Array) -> dict[str, Array]:
        batch, options, facts = positions.shape[0], self._options, self._options[name]
        if positions.strides[0] == 0:  # one sample seen as several: one set of tables serves all
            positions = positions[:1]
        uses = {f"{name}_rope": (positions, facts["width"], facts["max_pos"])}
        if len(self._streams) == 2:
            width = options["heads"] * options["cross_head_dim"]
            uses[f"{name}_cross_rope"] = (positions[:, :1], width, options["cross_max_pos"])
        tables: dict[str, Array] = {}
        for use, (used, width, max_pos) in uses.items():
            both = rope_tables(
                used,
                width=width,
                heads=options["heads"],
                max_pos=max_pos,
                theta=options["theta"],
                rope_type=options["rope_type"],
                precision=options["frequencies_precision"],
                dtype=self._stack.dtype(f"{use}_cos"),
            )
            for part, table in zip(("cos", "sin"), both, strict=True):
                tables[f"{use}_{part}"] = np.broadcast_to(table, (batch, *table.shape[1:]))
        return tables


def _place(array: Array | None) -> Hashable:
    """Where an array lies, and how it is read there."""
    if array is None:
        return None
    facts = array.__array_interface__
    return facts["data"][0], array.shape, array.strides, array.dtype.str
