"""Released models at real size in files that take no disk: official names, shapes and metadata,
weights that are holes of sparse files (they read as zeros).

`python -m benchmarks.sparse_model DIR [2|2.3|2.5]` writes one and prints the flags that
`ltx2rt build` takes, so that the real commands can be tried and timed on any machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.real_size import LTX2, LTX23, LTX25, tensor_list
from benchmarks.sparse_model import sound, text, upsamplers, video
from benchmarks.sparse_model.files import Shapes, write_sparse
from ltx2rt_export.modules.transformer_config import TransformerConfig

Paths = dict[str, Path]


def _transformer(config: TransformerConfig, connectors: Mapping[str, Any]) -> dict[str, Any]:
    video_stream, audio_stream = config.streams
    return {
        "num_layers": config.num_layers,
        "num_attention_heads": config.heads,
        "attention_head_dim": video_stream.head_dim,
        "audio_num_attention_heads": config.heads,
        "audio_attention_head_dim": audio_stream.head_dim,
        "cross_attention_dim": video_stream.width,
        "audio_cross_attention_dim": audio_stream.width,
        "positional_embedding_max_pos": [20, 2048, 2048],
        "audio_positional_embedding_max_pos": [20],
        "av_ca_timestep_scale_multiplier": config.cross_timestep_scale,
        "rope_type": config.rope_type,
        "frequencies_precision": config.frequencies_precision,
        "apply_gated_attention": config.gated,
        "cross_attention_adaln": config.text_adaln,
        "ff_bias": video_stream.ff_bias,
        "audio_ff_bias": audio_stream.ff_bias,
        "use_keyframes_abs_pos_embedding": config.keyframes_embedding,
        **connectors,
    }


def _transformer_shapes(config: TransformerConfig) -> Shapes:
    return {text.TRANSFORMER + n: e.shape for n, e in tensor_list(config).items()}


def _metadata(version: str, **config: Any) -> dict[str, str]:
    return {"config": json.dumps(config), "model_version": version}


def _write_2(folder: Path) -> Paths:
    paths = {
        "checkpoint": folder / "ltx-2-19b-dev.safetensors",
        "gemma": folder / "gemma-3-12b-it",
        "spatial_upsampler": folder / "ltx-2-spatial-upscaler-x2-1.0.safetensors",
    }
    shapes = (
        _transformer_shapes(LTX2)
        | text.connectors_2()
        | text.projection_2()
        | video.video_encoder(video.VAE_2)
        | video.video_decoder(video.VAE_2)
        | sound.audio_vae()
        | sound.vocoder_2()
    )
    metadata = _metadata(
        "2.0.0",
        transformer=_transformer(LTX2, text.CONNECTORS_2),
        vae=video.VAE_2,
        audio_vae=sound.AUDIO_VAE,
        vocoder=sound.VOCODER_2,
    )
    write_sparse(paths["checkpoint"], shapes, metadata)
    text.write_gemma_3(paths["gemma"])
    upsamplers.write_upsampler(paths["spatial_upsampler"], upsamplers.SPATIAL_2)
    return paths


def _write_23(folder: Path) -> Paths:
    paths = {
        "checkpoint": folder / "ltx-2.3-22b-dev.safetensors",
        "gemma": folder / "gemma-3-12b-it",
        "spatial_upsampler": folder / "ltx-2.3-spatial-upscaler-x2-1.0.safetensors",
        "temporal_upsampler": folder / "ltx-2.3-temporal-upscaler-x2-1.0.safetensors",
    }
    shapes = (
        _transformer_shapes(LTX23)
        | text.connectors_23()
        | text.projection_23()
        | video.video_encoder(video.VAE_23)
        | video.video_decoder(video.VAE_23)
        | sound.audio_vae()
        | sound.vocoder_23()
    )
    metadata = _metadata(
        "2.3.0",
        transformer=_transformer(LTX23, text.CONNECTORS_23),
        vae=video.VAE_23,
        audio_vae=sound.AUDIO_VAE,
        vocoder=sound.VOCODER_23,
    )
    write_sparse(paths["checkpoint"], shapes, metadata)
    text.write_gemma_3(paths["gemma"])
    upsamplers.write_upsampler(paths["spatial_upsampler"], upsamplers.SPATIAL_23)
    upsamplers.write_upsampler(paths["temporal_upsampler"], upsamplers.TEMPORAL_23)
    return paths


def _write_25(folder: Path) -> Paths:
    paths = {
        "checkpoint": folder / "ltx-2.5-22b-dev-transformer-bf16.safetensors",
        "text_encoder": folder / "gemma4-12b-with-proj-ltx-2.5-bf16.safetensors",
        "video_vae": folder / "ltx-2.5-video-vae-bf16.safetensors",
        "audio_vae": folder / "ltx-2.5-audio-vae-bf16.safetensors",
        "spatial_upsampler": folder / "ltx-2.5-spatial-upscaler-x2-bf16-1.0.safetensors",
        "temporal_upsampler": folder / "ltx-2.5-temporal-upscaler-x2-bf16-1.0.safetensors",
        "duration_head": folder / "ltx-2.5-duration-head-bf16.safetensors",
    }
    source = {"ltx_version": "2.5.0", "gemma_version": text.GEMMA_4["gemma_version"]}
    transformer = _metadata("2.5.0", transformer=_transformer(LTX25, text.CONNECTORS_23))
    write_sparse(
        paths["checkpoint"],
        _transformer_shapes(LTX25) | text.connectors_23(),
        transformer | {"gemma_source_checkpoint": json.dumps(source)},
    )
    write_sparse(
        paths["text_encoder"],
        text.gemma(text.GEMMA_4, "model.") | text.projection_23(),
        {"gemma_config": json.dumps(text.GEMMA_4), "format": "pt"},
        text.packed_assets(),
    )
    write_sparse(
        paths["video_vae"],
        video.video_encoder(video.VAE_25) | video.diffusion_decoder(),
        _metadata("2.5.0", vae=video.VAE_25),
    )
    write_sparse(
        paths["audio_vae"],
        sound.audio_vae() | sound.vocoder_23(),
        _metadata("2.5.0", audio_vae=sound.AUDIO_VAE, vocoder=sound.VOCODER_23),
    )
    upsamplers.write_upsampler(paths["spatial_upsampler"], upsamplers.SPATIAL_23)
    upsamplers.write_upsampler(paths["temporal_upsampler"], upsamplers.TEMPORAL_23)
    write_sparse(paths["duration_head"], text.duration_head(), _metadata("2.5.0", duration_head={}))
    return paths


GENERATIONS: dict[str, Callable[[Path], Paths]] = {
    "2": _write_2,
    "2.3": _write_23,
    "2.5": _write_25,
}


def write_sparse_model(folder: Path, generation: str = "2.3") -> Paths:
    """Write all files of a generation: `2` (19B), `2.3` or `2.5` (22B); paths as `open_model`'s."""
    folder.mkdir(parents=True, exist_ok=True)
    return GENERATIONS[generation](folder)
