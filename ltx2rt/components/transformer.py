"""The diffusion transformer: head, one block engine run a layer at a time, tail.

What engines cannot or should not do happens here, on the host: distinct timesteps, RoPE tables,
additive masks, and the choice of weights for each layer (spec/transformer.md §4 to §14).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ltx2rt.components.transformer_inputs import (
    KINDS,
    AttentionSkip,
    ModalityInput,
    Perturbations,
    as_dtype,
    attention_bias,
    context_bias,
)
from ltx2rt.engine import Array, Engine, KeepingEngine, Kept
from ltx2rt.errors import OptionError, ShapeError
from ltx2rt.latents.rope import rope_tables
from ltx2rt.weights.safetensors import convert

__all__ = ["AttentionSkip", "ModalityInput", "Perturbations", "Transformer"]


class Transformer:
    """Velocity of video and audio tokens.

    Args:
        head, block, tail: engines of one engine set; closed by their owner.
        layers: weights of every layer, named and laid out as the block engine takes them. Read
            in order once a call, so a sequence may load them lazily.
        options: those of the component `transformer_block`.
        plain: a second block engine and its layers, for those that are empty in `layers`: blocks
            that stay in 16 bits where the others are quantised.
    """

    def __init__(
        self,
        head: Engine,
        block: Engine,
        tail: Engine,
        layers: Sequence[Mapping[str, Array]],
        options: Mapping[str, Any],
        plain: tuple[Engine, Sequence[Mapping[str, Array]]] | None = None,
    ) -> None:
        self._head, self._block, self._tail = head, block, tail
        self._layers = layers
        self._plain = plain
        self._options = options
        modalities = options["modalities"]
        self._streams = ("video", "audio") if modalities == "av" else (str(modalities),)
        self._rope_cache: dict[str, tuple[bytes, dict[str, Array]]] = {}

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def __call__(
        self,
        video: ModalityInput | None,
        audio: ModalityInput | None,
        perturbations: Perturbations | None = None,
    ) -> tuple[Array | None, Array | None]:
        """Run one forward pass.

        A stream that is None (or has no tokens) while the engines hold both runs as one disabled
        zero token whose exchange with the other stream is off: the other stream's result is
        exactly that of a model without it.

        Returns:
            velocities `[B, T, C]` float32, new arrays; None for a stream that is None.

        Raises:
            OptionError: no stream is given, one is given that these engines do not hold, or a
                perturbation names a block that does not exist.
            ShapeError: tensors do not fit each other or the engines.
        """
        given = {"video": video, "audio": audio}
        perturbations = perturbations or Perturbations()
        present = self._check(given, perturbations)
        like = next(iter(present.values()))
        batch = like.latent.shape[0]
        feeds: dict[str, Array | Kept] = dict(self._switches(given, batch))
        fixed: dict[str, Array] = {}
        for name in self._streams:
            stream = present.get(name) or self._absent(name, like)
            feeds |= self._head_feeds(name, stream)
            fixed |= self._block_feeds(name, stream)
        feeds |= self._placed(fixed)
        feeds |= self._run(self._head, feeds)
        for index, weights in enumerate(self._layers):
            feeds |= self._keeps(index, batch, perturbations, both=len(present) == 2)
            block = self._block
            if not weights and self._plain is not None:
                block, weights = self._plain[0], self._plain[1][index]
            out = self._run(block, feeds, weights)
            feeds |= {f"{name}_hidden": out[f"{name}_hidden_out"] for name in self._streams}
        result = self._tail(_chosen(self._tail, feeds, {}))
        return self._velocity("video", given, result), self._velocity("audio", given, result)

    def _check(
        self, given: Mapping[str, ModalityInput | None], perturbations: Perturbations
    ) -> dict[str, ModalityInput]:
        for name, stream in given.items():
            if stream is not None and name not in self._streams:
                raise OptionError(
                    f"{name} tokens were given, but these engines hold "
                    f"{' and '.join(self._streams)} only; build the bundle with both streams."
                )
        present = {n: s for n, s in given.items() if s is not None and s.latent.shape[1] > 0}
        if not present:
            raise OptionError("the transformer got no tokens: give video, audio or both.")
        named = {b for s in perturbations.skips for b in s.blocks or ()}
        if wrong := sorted(b for b in named if not 0 <= b < len(self._layers)):
            raise OptionError(
                f"perturbed blocks {wrong} do not exist: the model has {len(self._layers)} "
                f"blocks, 0 to {len(self._layers) - 1}."
            )
        return present

    def _absent(self, name: str, like: ModalityInput) -> ModalityInput:
        facts = self._options[name]
        batch, tokens = like.latent.shape[0], like.context.shape[1]
        context = facts["caption_channels"] or facts["context_dim"]
        return ModalityInput(
            latent=np.zeros((batch, 1, facts["in_channels"]), np.float32),
            sigma=np.zeros(batch, np.float32),
            timesteps=np.zeros((batch, 1), np.float32),
            positions=np.zeros((batch, len(facts["max_pos"]), 1, 2), np.float32),
            context=np.zeros((batch, tokens, context), np.float32),
        )

    def _switches(self, given: Mapping[str, ModalityInput | None], batch: int) -> dict[str, Array]:
        feeds: dict[str, Array] = {}
        for name in self._streams:
            stream = given[name]
            enabled = stream is not None and stream.enabled and stream.latent.shape[1] > 0
            feeds[f"{name}_enabled"] = np.full(batch, enabled, np.float32)
        return feeds

    def _keeps(
        self, block: int, batch: int, perturbations: Perturbations, *, both: bool
    ) -> dict[str, Array]:
        keeps = {f"{kind}_keep": perturbations.keep(kind, block, batch) for kind in KINDS}
        if not both:
            keeps["audio_to_video_keep"] = keeps["video_to_audio_keep"] = np.zeros(
                batch, np.float32
            )
        return keeps

    def _head_feeds(self, name: str, stream: ModalityInput) -> dict[str, Array]:
        batch, tokens = stream.latent.shape[:2]
        timesteps = np.asarray(stream.timesteps, np.float32)
        if timesteps.size != batch * tokens:
            raise ShapeError(
                f"{name} timesteps have shape {list(timesteps.shape)}; expected "
                f"[{batch}, {tokens}] or [{batch}, {tokens}, 1], one for every token."
            )
        values, index = np.unique(timesteps, return_inverse=True)
        feeds = {
            f"{name}_latent": stream.latent,
            f"{name}_timestep_values": values,
            f"{name}_timestep_index": index.reshape(batch, tokens).astype(np.int64),
            f"{name}_sigma": np.asarray(stream.sigma, np.float32),
            f"{name}_context": stream.context,
        }
        marked = stream.keyframes_mask
        if marked is None:
            marked = np.zeros((batch, tokens, 1), np.float32)
        feeds[f"{name}_keyframes_mask"] = np.asarray(marked, np.float32)
        return feeds

    def _block_feeds(self, name: str, stream: ModalityInput) -> dict[str, Array]:
        batch, tokens = stream.latent.shape[:2]
        dtype = next(s.dtype for s in self._block.spec.inputs if s.name == f"{name}_attention_bias")
        length = stream.context.shape[1]
        biases = {
            f"{name}_attention_bias": attention_bias(stream.attention_mask, batch, tokens, dtype),
            f"{name}_context_bias": context_bias(stream.context_mask, batch, length, dtype),
        }
        tables = self._rope(name, stream.positions)
        return tables | {n: as_dtype(bias, dtype) for n, bias in biases.items()}

    def _rope(self, name: str, positions: Array) -> dict[str, Array]:
        """RoPE tables of a stream: computed when its positions change, that is once a stage."""
        batch = positions.shape[0]
        if positions.strides[0] == 0:  # one sample seen as several: one set of tables serves all
            positions = positions[:1]
        key = hashlib.sha256(repr(positions.shape).encode() + positions.tobytes()).digest()
        cached = self._rope_cache.get(name)
        if cached is None or cached[0] != key:
            self._rope_cache.pop(name, None)
            cached = self._rope_cache[name] = (key, self._rope_tables(name, positions))
        return {n: np.broadcast_to(t, (batch, *t.shape[1:])) for n, t in cached[1].items()}

    def _rope_tables(self, name: str, positions: Array) -> dict[str, Array]:
        options, facts = self._options, self._options[name]
        uses = {f"{name}_rope": (positions, facts["width"], facts["max_pos"])}
        if len(self._streams) == 2:
            width = options["heads"] * options["cross_head_dim"]
            uses[f"{name}_cross_rope"] = (positions[:, :1], width, options["cross_max_pos"])
        tables: dict[str, Array] = {}
        for use, (used, width, max_pos) in uses.items():
            tables[f"{use}_cos"], tables[f"{use}_sin"] = rope_tables(
                used,
                width=width,
                heads=options["heads"],
                max_pos=max_pos,
                theta=options["theta"],
                rope_type=options["rope_type"],
                precision=options["frequencies_precision"],
            )
        wanted = {s.name: s.dtype for s in self._block.spec.inputs}
        return {n: as_dtype(t, wanted[n]) for n, t in tables.items()}

    def _placed(self, fixed: dict[str, Array]) -> Mapping[str, Array | Kept]:
        """What every block takes, on the device where tensors are kept there."""
        return self._block.place(fixed) if isinstance(self._block, KeepingEngine) else fixed

    def _run(
        self,
        engine: Engine,
        feeds: Mapping[str, Array | Kept],
        weights: Mapping[str, Array] | None = None,
    ) -> Mapping[str, Array | Kept]:
        """Run head or block; outputs stay on the device if the engine can keep them."""
        chosen = _chosen(engine, feeds, weights or {})
        return engine.keep(chosen) if isinstance(engine, KeepingEngine) else engine(chosen)

    def _velocity(
        self,
        name: str,
        given: Mapping[str, ModalityInput | None],
        out: Mapping[str, Array],
    ) -> Array | None:
        stream = given[name]
        if stream is None:
            return None
        if stream.latent.shape[1] == 0:
            channels = self._options[name]["out_channels"]
            return np.zeros((stream.latent.shape[0], 0, channels), np.float32)
        dtype = next(s.dtype for s in self._tail.spec.outputs if s.name == f"{name}_velocity")
        velocity = out[f"{name}_velocity"]
        return np.array(convert(velocity, dtype, "float32", name), np.float32)


def _chosen(
    engine: Engine, feeds: Mapping[str, Array | Kept], weights: Mapping[str, Array]
) -> dict[str, Any]:
    """What an engine takes, in its dtypes."""
    found: dict[str, Any] = {}
    for spec in engine.spec.inputs:
        if spec.name not in weights:  # low-rank inputs belong to the layer
            given = feeds[spec.name]
            found[spec.name] = given if isinstance(given, Kept) else as_dtype(given, spec.dtype)
    return {**found, **weights}
