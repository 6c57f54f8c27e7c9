"""The part of a model's configuration that decides one component, as JSON data.

Two models for which it is the same have the same graph of that component, whatever else their
files say. It is found without PyTorch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ltx2rt.names import (
    AUDIO_DECODER,
    AUDIO_ENCODER,
    DIFFUSION_CONTEXT,
    DIFFUSION_FEATURES,
    DIFFUSION_PIXELS,
    DURATION_HEAD,
    LANGUAGE_HEAD,
    SPATIAL_UPSAMPLER,
    TEMPORAL_UPSAMPLER,
    TEXT_BLOCK,
    TEXT_BLOCK_FULL,
    TEXT_HEAD,
    TEXT_TAIL,
    TRANSFORMER_BLOCK,
    TRANSFORMER_HEAD,
    TRANSFORMER_TAIL,
    VIDEO_DECODER,
    VIDEO_ENCODER,
    VOCODER,
)
from ltx2rt_export.checkpoint import ModelFiles
from ltx2rt_export.component import below
from ltx2rt_export.modules.audio_vae_config import AudioVaeConfig
from ltx2rt_export.modules.connectors_config import ConnectorConfig
from ltx2rt_export.modules.diffusion_decoder_config import DiffusionDecoderConfig
from ltx2rt_export.modules.duration_head_config import DurationHeadConfig
from ltx2rt_export.modules.gemma_config import gemma_facts
from ltx2rt_export.modules.text_projection_config import ExtractorConfig
from ltx2rt_export.modules.transformer_config import TransformerConfig
from ltx2rt_export.modules.upsampler_config import UpsamplerConfig
from ltx2rt_export.modules.video_vae_config import VideoDecoderConfig, VideoEncoderConfig
from ltx2rt_export.modules.vocoder_config import VocoderConfig

Facts = Mapping[str, Any]


def facts_of(name: str, files: ModelFiles) -> Facts | None:
    """What decides the component `name` of these files; None where it cannot be told without
    PyTorch.

    Raises:
        CheckpointError, UnsupportedError: the files do not fit.
    """
    return FACTS[name](files)


def _gemma(files: ModelFiles) -> Facts | None:
    return gemma_facts(files.gemma_config)


def _text_tail(files: ModelFiles) -> Facts | None:
    gemma, tensors = _gemma(files), files.tensors("text")
    if gemma is None:
        return None
    config = files.config("transformer")
    facts = {"gemma": gemma}
    extractor = below(tensors, "text_embedding_projection.")
    facts["extractor"] = _plain(ExtractorConfig.from_checkpoint(config, extractor))
    for modality in ("video", "audio"):
        own = below(tensors, f"model.diffusion_model.{modality}_embeddings_connector.")
        facts[modality] = _plain(ConnectorConfig.from_checkpoint(config, own, modality))
    return facts


def _from_role(role: str, parse: Callable[..., Any], *rest: str) -> Callable[[ModelFiles], Facts]:
    return lambda files: _plain(parse(files.config(role), files.tensors(role), *rest))


def _plain(config: Any) -> dict[str, Any]:
    return dataclasses.asdict(config)


FACTS: dict[str, Callable[[ModelFiles], Facts | None]] = {
    **dict.fromkeys((TEXT_HEAD, TEXT_BLOCK, TEXT_BLOCK_FULL, LANGUAGE_HEAD), _gemma),
    TEXT_TAIL: _text_tail,
    **dict.fromkeys(
        (TRANSFORMER_HEAD, TRANSFORMER_BLOCK, TRANSFORMER_TAIL),
        _from_role("transformer", TransformerConfig.from_checkpoint),
    ),
    VIDEO_ENCODER: _from_role("video_vae", VideoEncoderConfig.from_checkpoint),
    VIDEO_DECODER: _from_role("video_vae", VideoDecoderConfig.from_checkpoint),
    **dict.fromkeys(
        (DIFFUSION_FEATURES, DIFFUSION_CONTEXT, DIFFUSION_PIXELS),
        _from_role("video_vae", DiffusionDecoderConfig.from_checkpoint),
    ),
    AUDIO_ENCODER: _from_role("audio_vae", AudioVaeConfig.from_checkpoint, "encoder"),
    AUDIO_DECODER: _from_role("audio_vae", AudioVaeConfig.from_checkpoint, "decoder"),
    VOCODER: _from_role("vocoder", VocoderConfig.from_checkpoint),
    DURATION_HEAD: _from_role("duration_head", DurationHeadConfig.from_checkpoint),
    **{
        name: _from_role(name, UpsamplerConfig.from_checkpoint)
        for name in (SPATIAL_UPSAMPLER, TEMPORAL_UPSAMPLER)
    },
}
