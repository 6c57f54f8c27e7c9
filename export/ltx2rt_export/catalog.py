"""The table of components: name, the factory that makes it, and the files it needs.

A new component is one row here, a module with its factory, and a golden handler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ltx2rt_export.checkpoint import ModelFiles
from ltx2rt_export.component import Component
from ltx2rt_export.modules import (
    audio_vae,
    text_encoder,
    transformer,
    upsampler,
    video_vae,
    vocoder,
)


@dataclass(frozen=True, slots=True)
class Row:
    """One component: `roles` are the `ModelFiles` roles it reads; `optional` ones are built if
    present.
    """

    name: str
    roles: tuple[str, ...]
    make: Callable[[ModelFiles], Component]
    optional: bool = False


def _from_role(factory: Callable[..., Component], role: str) -> Callable[[ModelFiles], Component]:
    return lambda files: factory(files.config(role), files.tensors(role))


def _upsampler(factory: Callable[..., Component], role: str) -> Callable[[ModelFiles], Component]:
    return lambda files: factory(
        files.config(role), files.tensors(role), files.tensors("video_vae")
    )


def _text_encoder(files: ModelFiles) -> Component:
    return text_encoder.text_encoder(
        files.gemma_config,
        files.tensors("gemma"),
        files.config("transformer"),
        files.tensors("text"),
    )


COMPONENTS: tuple[Row, ...] = (
    Row("text_encoder", ("gemma", "text"), _text_encoder),
    Row(
        "transformer_head",
        ("transformer",),
        _from_role(transformer.transformer_head, "transformer"),
    ),
    Row(
        "transformer_block",
        ("transformer",),
        _from_role(transformer.transformer_block, "transformer"),
    ),
    Row(
        "transformer_tail",
        ("transformer",),
        _from_role(transformer.transformer_tail, "transformer"),
    ),
    Row("video_encoder", ("video_vae",), _from_role(video_vae.video_encoder, "video_vae")),
    Row("video_decoder", ("video_vae",), _from_role(video_vae.video_decoder, "video_vae")),
    Row("audio_encoder", ("audio_vae",), _from_role(audio_vae.audio_encoder, "audio_vae")),
    Row("audio_decoder", ("audio_vae",), _from_role(audio_vae.audio_decoder, "audio_vae")),
    Row("vocoder", ("vocoder",), _from_role(vocoder.vocoder, "vocoder")),
    Row(
        "spatial_upsampler",
        ("spatial_upsampler", "video_vae"),
        _upsampler(upsampler.spatial_upsampler, "spatial_upsampler"),
        optional=True,
    ),
    Row(
        "temporal_upsampler",
        ("temporal_upsampler", "video_vae"),
        _upsampler(upsampler.temporal_upsampler, "temporal_upsampler"),
        optional=True,
    ),
)
