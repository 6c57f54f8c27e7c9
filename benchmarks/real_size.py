"""Real-size models without their weights: tensor lists made from the modules themselves, for
`meta` exports.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from ltx2rt.names import TRANSFORMER_BLOCK
from ltx2rt.weights.safetensors import TensorEntry
from ltx2rt_export.component import Component
from ltx2rt_export.modules import transformer
from ltx2rt_export.modules.meta import on_meta
from ltx2rt_export.modules.transformer_block import TransformerBlock
from ltx2rt_export.modules.transformer_config import StreamConfig, TransformerConfig
from ltx2rt_export.modules.transformer_ends import TransformerHead, TransformerTail

#: LTX-2.3 (22B): spec/transformer.md §2
LTX23 = TransformerConfig(
    streams=(
        StreamConfig(
            name="video",
            width=4096,
            head_dim=128,
            in_channels=128,
            out_channels=128,
            context_dim=4096,
            caption_channels=0,
            ff_bias=True,
            prompt_adaln=True,
            max_pos=(20.0, 2048.0, 2048.0),
        ),
        StreamConfig(
            name="audio",
            width=2048,
            head_dim=64,
            in_channels=128,
            out_channels=128,
            context_dim=2048,
            caption_channels=0,
            ff_bias=True,
            prompt_adaln=True,
            max_pos=(20.0,),
        ),
    ),
    num_layers=48,
    heads=32,
    cross_head_dim=64,
    eps=1e-6,
    theta=10000.0,
    timestep_scale=1000.0,
    cross_timestep_scale=1000.0,
    rope_type="split",
    frequencies_precision="float64",
    gated=True,
    text_adaln=True,
    keyframes_embedding=False,
)

#: LTX-2 (19B): projects Gemma's width itself, no gates, text attention is not modulated
LTX2 = replace(
    LTX23,
    streams=tuple(replace(s, caption_channels=3840, prompt_adaln=False) for s in LTX23.streams),
    gated=False,
    text_adaln=False,
)

#: LTX-2.5 (22B): the video's feed-forward has no biases, keyframes have an embedding
LTX25 = replace(
    LTX23,
    streams=(replace(LTX23.streams[0], ff_bias=False), LTX23.streams[1]),
    keyframes_embedding=True,
)


def tensor_list(config: TransformerConfig) -> dict[str, TensorEntry]:
    """Official names and shapes of a transformer checkpoint; the entries point nowhere."""
    names = tuple(spec.name for spec in transformer.head_outputs(config))
    parts: list[tuple[str, nn.Module]] = [
        ("", on_meta(lambda: TransformerHead(config, names))),
        ("", on_meta(lambda: TransformerTail(config))),
    ]
    block = on_meta(lambda: TransformerBlock(config))
    parts += [(f"transformer_blocks.{i}.", block) for i in range(config.num_layers)]
    return {
        name: entry for prefix, module in parts for name, entry in entries(prefix, module).items()
    }


def transformer_components(config: TransformerConfig) -> list[Component]:
    """Head, block and tail, made through the same factories as for a real file."""
    tensors = tensor_list(config)
    metadata = {
        "num_layers": config.num_layers,
        "num_attention_heads": config.heads,
        "audio_num_attention_heads": config.heads,
        "frequencies_precision": config.frequencies_precision,
        "av_ca_timestep_scale_multiplier": config.cross_timestep_scale,
    }
    factories = (
        transformer.transformer_head,
        transformer.transformer_block,
        transformer.transformer_tail,
    )
    return [factory(metadata, tensors) for factory in factories]


def block_component(width: int) -> Component:
    """LTX-2.3's block of that width; its audio stream has half."""
    widths = (width, width // 2)
    streams = tuple(
        replace(s, width=w, head_dim=w // LTX23.heads, context_dim=w)
        for s, w in zip(LTX23.streams, widths, strict=True)
    )
    config = replace(LTX23, streams=streams, cross_head_dim=width // 2 // LTX23.heads, num_layers=1)
    return next(c for c in transformer_components(config) if c.name == TRANSFORMER_BLOCK)


def entries(prefix: str, module: nn.Module) -> dict[str, TensorEntry]:
    """Names and shapes of a module's tensors; the entries point nowhere."""
    return {
        prefix + name: TensorEntry(Path("absent"), prefix + name, "bfloat16", tuple(w.shape), 0, 0)
        for name, w in module.state_dict().items()
    }
