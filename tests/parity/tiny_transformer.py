"""Tiny transformers; weights and inputs come from an integer hash, no weight file is needed."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from ltx2rt.components.transformer import ModalityInput, Transformer
from ltx2rt.latents.patchify import audio_positions, video_positions
from ltx2rt.latents.shapes import AudioLatentShape, VideoLatentShape
from ltx2rt.names import TRANSFORMER_STACK
from ltx2rt.weights.safetensors import SafetensorsFile
from ltx2rt_export.modules.transformer import (
    transformer_block,
    transformer_head,
    transformer_tail,
)
from ltx2rt_export.modules.transformer_block import TransformerBlock
from ltx2rt_export.modules.transformer_config import (
    BLOCK,
    Modalities,
    StreamConfig,
    TransformerConfig,
)
from ltx2rt_export.modules.transformer_ends import TransformerHead, TransformerTail
from ltx2rt_export.reference import TorchEngine, component_stack

GENERATIONS = ("19b", "2.3", "2.5")
#: what tensors do not tell
METADATA = {
    "num_attention_heads": 4,
    "frequencies_precision": "float64",
    "av_ca_timestep_scale_multiplier": 1000,
}
GRID = VideoLatentShape(batch=2, channels=16, num_frames=3, height=2, width=3)


def gen(name: str, shape: tuple[int, ...], amp: float) -> np.ndarray:
    """Values in +-amp from a hash of name and flat index (spec/transformer.md §20)."""
    low = np.uint64(0xFFFFFFFF)
    x = np.arange(np.prod(shape), dtype=np.uint64) * np.uint64(0x9E3779B1)
    x = (x + np.uint64(zlib.crc32(name.encode()))) & low
    x ^= x >> np.uint64(16)
    x = (x * np.uint64(0x85EBCA6B)) & low
    x ^= x >> np.uint64(13)
    x = (x * np.uint64(0xC2B2AE35)) & low
    x ^= x >> np.uint64(16)
    return (amp * (x / 2.0**31 - 1)).astype(np.float32).reshape(shape)


def tiny_config(generation: str, *, rope_type: str = "split") -> TransformerConfig:
    """Four heads of 16 (video) and 8 (audio), two blocks."""
    newer = generation != "19b"

    def stream(name: str, width: int, max_pos: tuple[float, ...], *, ff_bias: bool) -> StreamConfig:
        return StreamConfig(
            name=name,
            width=width,
            head_dim=width // 4,
            in_channels=16,
            out_channels=16,
            context_dim=width,
            caption_channels=0 if newer else 24,
            ff_bias=ff_bias,
            prompt_adaln=newer,
            max_pos=max_pos,
        )

    return TransformerConfig(
        streams=(
            stream("video", 64, (20.0, 2048.0, 2048.0), ff_bias=generation != "2.5"),
            stream("audio", 32, (20.0,), ff_bias=True),
        ),
        num_layers=2,
        heads=4,
        cross_head_dim=8,
        eps=1e-6,
        theta=10000.0,
        timestep_scale=1000.0,
        cross_timestep_scale=1000.0,
        rope_type=rope_type,
        frequencies_precision="float64",
        gated=newer,
        text_adaln=newer,
        keyframes_embedding=generation == "2.5",
    )


def weights(config: TransformerConfig) -> dict[str, np.ndarray]:
    """Every weight of the transformer under its official name."""
    with torch.device("meta"):
        parts = [("", TransformerHead(config, ())), ("", TransformerTail(config))]
        block = TransformerBlock(config)
    parts += [(f"{BLOCK}{i}.", block) for i in range(config.num_layers)]
    shapes = {p + n: tuple(w.shape) for p, part in parts for n, w in part.state_dict().items()}
    return {
        name: 1 + gen(name, shape, 1) * np.float32(0.2)
        if name.endswith(("q_norm.weight", "k_norm.weight"))
        else gen(name, shape, 0.25)
        for name, shape in shapes.items()
    }


def write_checkpoint(path: Path, config: TransformerConfig) -> SafetensorsFile:
    save_file(weights(config), path)
    return SafetensorsFile(path)


def torch_transformer(
    tensors: SafetensorsFile,
    modalities: Modalities = "av",
    metadata: Mapping[str, Any] = METADATA,
) -> Transformer:
    """The runtime class over the PyTorch reference."""
    parts = [
        make(metadata, tensors, modalities)
        for make in (transformer_head, transformer_block, transformer_tail)
    ]
    return Transformer(component_stack(TRANSFORMER_STACK, parts, TorchEngine), parts[1].options)


def inputs(config: TransformerConfig) -> dict[str, ModalityInput]:
    """Batch 2: an 18-token video whose first frame is clean, and 5 audio tokens."""
    video, audio = config.streams
    audio_shape = AudioLatentShape(batch=2, channels=1, num_frames=5, mel_bins=16)
    first = np.arange(18)[None, :, None] < 6
    return {
        "video": ModalityInput(
            latent=gen("in.video.latent", (2, 18, 16), 1.5),
            sigma=np.full(2, 0.725, np.float32),
            timesteps=np.repeat(np.where(first, 0, np.float32(0.725)), 2, axis=0),
            positions=video_positions(GRID, 24.0),
            context=gen("in.video.context", (2, 6, video.caption_channels or 64), 1),
            keyframes_mask=np.repeat(first.astype(np.float32), 2, axis=0),
        ),
        "audio": ModalityInput(
            latent=gen("in.audio.latent", (2, 5, 16), 1.5),
            sigma=np.full(2, 0.5, np.float32),
            timesteps=np.full((2, 5, 1), 0.5, np.float32),
            positions=audio_positions(audio_shape),
            context=gen("in.audio.context", (2, 6, audio.caption_channels or 32), 1),
        ),
    }
