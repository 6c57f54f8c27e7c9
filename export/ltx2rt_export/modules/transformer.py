"""The diffusion transformer as three components: head, block (run once a layer), tail.

Symbols of the boundary: B batch, Tv / Ta tokens, Uv / Ua distinct timesteps of the whole batch,
S context tokens. Tables of modulation rows have one row a distinct timestep; tokens refer to them
through `*_timestep_index`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ltx2rt.engine import TensorSpec
from ltx2rt.names import TRANSFORMER_BLOCK, TRANSFORMER_HEAD, TRANSFORMER_TAIL
from ltx2rt_export.component import Component, TensorIndex
from ltx2rt_export.modules.meta import match_weights, on_meta
from ltx2rt_export.modules.transformer_block import OTHER, TransformerBlock
from ltx2rt_export.modules.transformer_config import (
    BLOCK,
    Modalities,
    StreamConfig,
    TransformerConfig,
)
from ltx2rt_export.modules.transformer_ends import TransformerHead, TransformerTail

TRACE = {"B": 2, "Tv": 6, "Ta": 5, "Uv": 3, "Ua": 4, "S": 7}

#: head inputs that stay float32 in every precision: bfloat16 has no room for them
FLOAT32_INPUTS = (
    "video_timestep_values",
    "audio_timestep_values",
    "video_sigma",
    "audio_sigma",
)


def _spec(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, dtype, shape)


def _tokens(stream: StreamConfig) -> str:
    return "Tv" if stream.name == "video" else "Ta"


def _steps(stream: StreamConfig) -> str:
    return "Uv" if stream.name == "video" else "Ua"


def head_inputs(config: TransformerConfig) -> tuple[TensorSpec, ...]:
    """Latent tokens, distinct timesteps (0..1), noise levels (0..1) and contexts."""
    specs: list[TensorSpec] = []
    for stream in config.streams:
        name, tokens = stream.name, _tokens(stream)
        context = stream.caption_channels or stream.context_dim
        specs.append(_spec(f"{name}_latent", "B", tokens, stream.in_channels))
        specs.append(_spec(f"{name}_timestep_values", _steps(stream)))
        if config.modalities == "av" or stream.prompt_adaln:
            specs.append(_spec(f"{name}_sigma", "B"))
        specs.append(_spec(f"{name}_context", "B", "S", context))
    if config.keyframes_embedding:
        specs.append(_spec("video_keyframes_mask", "B", "Tv", 1))
    return tuple(specs)


def _modulation(config: TransformerConfig, stream: StreamConfig) -> list[TensorSpec]:
    """What the head computes for the blocks, hidden states left out."""
    name, steps, width = stream.name, _steps(stream), stream.width
    specs = [_spec(f"{name}_adaln", steps, config.adaln_rows, width)]
    if config.modalities == "av":
        specs.append(_spec(f"{name}_cross_adaln", steps, 4, width))
        specs.append(_spec(f"{name}_cross_gate", "B", 1, width))
    if stream.prompt_adaln:
        specs.append(_spec(f"{name}_prompt_adaln", "B", 2, width))
    specs.append(_spec(f"{name}_text_context", "B", "S", stream.context_dim))
    return specs


def head_outputs(config: TransformerConfig) -> tuple[TensorSpec, ...]:
    """Hidden states, modulation rows and the contexts that the blocks read."""
    specs: list[TensorSpec] = []
    for stream in config.streams:
        name, width = stream.name, stream.width
        specs.append(_spec(f"{name}_hidden", "B", _tokens(stream), width))
        specs.append(_spec(f"{name}_embedded_timestep", _steps(stream), width))
        specs += _modulation(config, stream)
    return tuple(specs)


def block_inputs(config: TransformerConfig) -> tuple[TensorSpec, ...]:
    """Hidden states, modulation, RoPE tables, additive biases and switches (1 = normal)."""
    specs: list[TensorSpec] = []
    for stream in config.streams:
        name, tokens = stream.name, _tokens(stream)
        specs.append(_spec(f"{name}_hidden", "B", tokens, stream.width))
        specs.append(_spec(f"{name}_timestep_index", "B", tokens, dtype="int64"))
        specs += _modulation(config, stream)
        specs += _rope(config, f"{name}_rope", tokens, stream.head_dim)
        if config.modalities == "av":
            specs += _rope(config, f"{name}_cross_rope", tokens, config.cross_head_dim)
            specs.append(_spec(f"{OTHER[name]}_to_{name}_keep", "B"))
        specs.append(_spec(f"{name}_attention_bias", "B", 1, f"1|{tokens}", tokens))
        specs.append(_spec(f"{name}_context_bias", "B", 1, 1, "S"))
        specs.append(_spec(f"{name}_self_keep", "B"))
        specs.append(_spec(f"{name}_enabled", "B"))
    return tuple(specs)


def _rope(config: TransformerConfig, name: str, tokens: str, head_dim: int) -> list[TensorSpec]:
    shape: tuple[int | str, ...] = ("B", config.heads, tokens, head_dim // 2)
    if config.rope_type == "interleaved":
        shape = ("B", tokens, config.heads * head_dim)
    return [_spec(f"{name}_{part}", *shape) for part in ("cos", "sin")]


def block_outputs(config: TransformerConfig) -> tuple[TensorSpec, ...]:
    """Hidden states after the block."""
    return tuple(_spec(f"{s.name}_hidden_out", "B", _tokens(s), s.width) for s in config.streams)


def tail_inputs(config: TransformerConfig) -> tuple[TensorSpec, ...]:
    """Hidden states and embedded timesteps."""
    specs: list[TensorSpec] = []
    for stream in config.streams:
        name, tokens = stream.name, _tokens(stream)
        specs.append(_spec(f"{name}_hidden", "B", tokens, stream.width))
        specs.append(_spec(f"{name}_embedded_timestep", _steps(stream), stream.width))
        specs.append(_spec(f"{name}_timestep_index", "B", tokens, dtype="int64"))
    return tuple(specs)


def tail_outputs(config: TransformerConfig) -> tuple[TensorSpec, ...]:
    """Velocities (noise minus clean latent)."""
    return tuple(
        _spec(f"{s.name}_velocity", "B", _tokens(s), s.out_channels) for s in config.streams
    )


def _trace(config: TransformerConfig) -> dict[str, int]:
    absent = {"video": ("Ta", "Ua"), "audio": ("Tv", "Uv"), "av": ()}[config.modalities]
    return {symbol: size for symbol, size in TRACE.items() if symbol not in absent}


def transformer_head(
    config: Mapping[str, Any], tensors: TensorIndex, modalities: Modalities = "av"
) -> Component:
    """Component `transformer_head`; arguments and errors: `TransformerConfig.from_checkpoint`."""
    facts = TransformerConfig.from_checkpoint(config, tensors, modalities)
    outputs = head_outputs(facts)
    names = tuple(spec.name for spec in outputs)
    module = on_meta(lambda: TransformerHead(facts, names))
    inputs = head_inputs(facts)
    return Component(
        name=TRANSFORMER_HEAD,
        module=module,
        inputs=inputs,
        outputs=outputs,
        weights=match_weights(module, tensors, "the transformer"),
        trace=_trace(facts),
        options={"float32_inputs": [s.name for s in inputs if s.name in FLOAT32_INPUTS]},
    )


def transformer_block(
    config: Mapping[str, Any], tensors: TensorIndex, modalities: Modalities = "av"
) -> Component:
    """Component `transformer_block`: weights are inputs, one set a layer.

    Arguments and errors: `TransformerConfig.from_checkpoint`. `options` are the facts that
    `ltx2rt.components.transformer.Transformer` needs.
    """
    facts = TransformerConfig.from_checkpoint(config, tensors, modalities)
    module = on_meta(lambda: TransformerBlock(facts))
    layers = tuple(
        match_weights(module, tensors, "the transformer", f"{BLOCK}{i}.")
        for i in range(facts.num_layers)
    )
    return Component(
        name=TRANSFORMER_BLOCK,
        module=module,
        inputs=block_inputs(facts),
        outputs=block_outputs(facts),
        weights=layers[0],
        layers=layers,
        weight_binding="input",
        trace=_trace(facts),
        options=facts.options(),
    )


def transformer_tail(
    config: Mapping[str, Any], tensors: TensorIndex, modalities: Modalities = "av"
) -> Component:
    """Component `transformer_tail`; arguments and errors: `TransformerConfig.from_checkpoint`."""
    facts = TransformerConfig.from_checkpoint(config, tensors, modalities)
    module = on_meta(lambda: TransformerTail(facts))
    return Component(
        name=TRANSFORMER_TAIL,
        module=module,
        inputs=tail_inputs(facts),
        outputs=tail_outputs(facts),
        weights=match_weights(module, tensors, "the transformer"),
        trace=_trace(facts),
    )
