"""The table of components: name, the factory that makes it, and the files it needs.

A new component is one row here, a module with its factory, and a golden handler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ltx2rt.names import (
    AUDIO_DECODER,
    AUDIO_ENCODER,
    DIFFUSION_CONTEXT,
    DIFFUSION_FEATURES,
    DIFFUSION_PIXELS,
    DURATION_HEAD,
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
from ltx2rt_export.component import Component
from ltx2rt_export.modules import (
    audio_vae,
    diffusion_decoder,
    duration_head,
    text_encoder,
    transformer,
    upsampler,
    video_vae,
    vocoder,
)
from ltx2rt_export.modules.diffusion_decoder_config import is_diffusion


@dataclass(frozen=True, slots=True)
class Row:
    """One component: `roles` are the `ModelFiles` roles it reads; `optional` ones are built if
    present, and all of them only `when` the model is of a kind that has them.
    """

    name: str
    roles: tuple[str, ...]
    make: Callable[[ModelFiles], Component]
    optional: bool = False
    when: Callable[[ModelFiles], bool] = lambda _files: True

    def fits(self, files: ModelFiles) -> bool:
        """Whether the model has this component."""
        return self.when(files) and all(files.has(role) for role in self.roles)


def rows_of(files: ModelFiles) -> list[Row]:
    """The components to build; those that are not optional are listed even if files lack them."""
    return [r for r in COMPONENTS if (r.when(files) if not r.optional else r.fits(files))]


def _has_diffusion_decoder(files: ModelFiles) -> bool:
    return is_diffusion(files.tensors("video_vae"))


def _has_conv_decoder(files: ModelFiles) -> bool:
    return not _has_diffusion_decoder(files)


def _from_role(factory: Callable[..., Component], role: str) -> Callable[[ModelFiles], Component]:
    return lambda files: factory(files.config(role), files.tensors(role))


def _upsampler(factory: Callable[..., Component], role: str) -> Callable[[ModelFiles], Component]:
    return lambda files: factory(
        files.config(role), files.tensors(role), files.tensors("video_vae")
    )


def _text_block(files: ModelFiles, name: str = TEXT_BLOCK) -> Component:
    return text_encoder.text_block(files.gemma_config, files.tensors("gemma"), name)


def _has_full_block(files: ModelFiles) -> bool:
    return files.has("gemma") and text_encoder.has_full_block(files.gemma_config)


def _text_tail(files: ModelFiles) -> Component:
    return text_encoder.text_tail(
        files.gemma_config,
        files.tensors("gemma"),
        files.config("text"),
        files.tensors("text"),
    )


COMPONENTS: tuple[Row, ...] = (
    Row(
        TEXT_HEAD,
        ("gemma",),
        lambda files: text_encoder.text_head(files.gemma_config, files.tensors("gemma")),
    ),
    Row(TEXT_BLOCK, ("gemma",), _text_block),
    Row(
        TEXT_BLOCK_FULL,
        ("gemma",),
        lambda files: _text_block(files, TEXT_BLOCK_FULL),
        when=_has_full_block,
    ),
    Row(TEXT_TAIL, ("gemma", "text"), _text_tail),
    Row(
        TRANSFORMER_HEAD,
        ("transformer",),
        _from_role(transformer.transformer_head, "transformer"),
    ),
    Row(
        TRANSFORMER_BLOCK,
        ("transformer",),
        _from_role(transformer.transformer_block, "transformer"),
    ),
    Row(
        TRANSFORMER_TAIL,
        ("transformer",),
        _from_role(transformer.transformer_tail, "transformer"),
    ),
    Row(VIDEO_ENCODER, ("video_vae",), _from_role(video_vae.video_encoder, "video_vae")),
    Row(
        VIDEO_DECODER,
        ("video_vae",),
        _from_role(video_vae.video_decoder, "video_vae"),
        when=_has_conv_decoder,
    ),
    *(
        Row(name, ("video_vae",), _from_role(make, "video_vae"), when=_has_diffusion_decoder)
        for name, make in (
            (DIFFUSION_FEATURES, diffusion_decoder.diffusion_features),
            (DIFFUSION_CONTEXT, diffusion_decoder.diffusion_context),
            (DIFFUSION_PIXELS, diffusion_decoder.diffusion_pixels),
        )
    ),
    Row(AUDIO_ENCODER, ("audio_vae",), _from_role(audio_vae.audio_encoder, "audio_vae")),
    Row(AUDIO_DECODER, ("audio_vae",), _from_role(audio_vae.audio_decoder, "audio_vae")),
    Row(VOCODER, ("vocoder",), _from_role(vocoder.vocoder, "vocoder")),
    Row(
        DURATION_HEAD,
        ("duration_head",),
        _from_role(duration_head.duration_head, "duration_head"),
        optional=True,
    ),
    Row(
        SPATIAL_UPSAMPLER,
        ("spatial_upsampler", "video_vae"),
        _upsampler(upsampler.spatial_upsampler, "spatial_upsampler"),
        optional=True,
    ),
    Row(
        TEMPORAL_UPSAMPLER,
        ("temporal_upsampler", "video_vae"),
        _upsampler(upsampler.temporal_upsampler, "temporal_upsampler"),
        optional=True,
    ),
)
