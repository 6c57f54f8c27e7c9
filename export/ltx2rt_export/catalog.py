"""The table of components: name, the factory that makes it, and the files it needs.

A new component is one row here, a module with its factory, and a golden handler.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
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
from ltx2rt_export.component import Component
from ltx2rt_export.modules.diffusion_decoder_config import is_diffusion
from ltx2rt_export.modules.gemma_config import blocks_differ, gemma_facts
from ltx2rt_export.shipped.find import shipped_component

#: roles of the text encoder's files
TEXT_ROLES = ("gemma", "connectors", "text_projection")

#: component -> the module of its factory in `modules/`, where that has another name
FACTORIES = {
    **dict.fromkeys((TEXT_HEAD, TEXT_BLOCK, TEXT_BLOCK_FULL, TEXT_TAIL), "text_encoder"),
    **dict.fromkeys((TRANSFORMER_HEAD, TRANSFORMER_BLOCK, TRANSFORMER_TAIL), "transformer"),
    **dict.fromkeys((VIDEO_ENCODER, VIDEO_DECODER), "video_vae"),
    **dict.fromkeys((AUDIO_ENCODER, AUDIO_DECODER), "audio_vae"),
    **dict.fromkeys((SPATIAL_UPSAMPLER, TEMPORAL_UPSAMPLER), "upsampler"),
    **dict.fromkeys((DIFFUSION_FEATURES, DIFFUSION_CONTEXT, DIFFUSION_PIXELS), "diffusion_decoder"),
}


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
    """The components to build; those that are not optional are listed even if files lack them, but
    for the text encoder's where there is no Gemma: `open_model` was told not to need it.
    """
    rows = [r for r in COMPONENTS if files.gemma is not None or "gemma" not in r.roles]
    return [r for r in rows if (r.when(files) if not r.optional else r.fits(files))]


def components_of(files: ModelFiles) -> list[Component]:
    """The components to build: with shipped graphs where there are any, else from their modules.

    Raises:
        CheckpointError, UnsupportedError: the files do not fit.
        ModuleNotFoundError: a component has to be exported, and PyTorch is not installed.
    """
    return [shipped_component(row.name, files) or row.make(files) for row in rows_of(files)]


def traced_components(files: ModelFiles) -> list[Component]:
    """The same components, each with its module; errors as in `components_of`."""
    return [row.make(files) for row in rows_of(files)]


def _has_diffusion_decoder(files: ModelFiles) -> bool:
    return is_diffusion(files.tensors("video_vae"))


def _has_conv_decoder(files: ModelFiles) -> bool:
    return not _has_diffusion_decoder(files)


def factory_module(name: str) -> str:
    """The module that makes a component."""
    return f"ltx2rt_export.modules.{FACTORIES.get(name, name)}"


def _factory(component: str, name: str | None = None) -> Callable[..., Component]:
    """The function that makes a component, imported when it is called: it needs PyTorch."""

    def make(*arguments: Any) -> Component:
        found = importlib.import_module(factory_module(component))
        made: Component = getattr(found, name or component)(*arguments)
        return made

    return make


def _from_role(name: str, role: str) -> Callable[[ModelFiles], Component]:
    factory = _factory(name)
    return lambda files: factory(files.config(role), files.tensors(role))


def _upsampler(role: str) -> Callable[[ModelFiles], Component]:
    factory = _factory(role)
    return lambda files: factory(
        files.config(role), files.tensors(role), files.tensors("video_vae")
    )


def _text_head(files: ModelFiles) -> Component:
    return _factory(TEXT_HEAD)(files.gemma_config, files.tensors("gemma"))


def _text_block(files: ModelFiles, name: str = TEXT_BLOCK) -> Component:
    factory = _factory(name, TEXT_BLOCK)
    return factory(files.gemma_config, files.tensors("gemma"), name)


def _answers(files: ModelFiles) -> bool:
    """Whether the text encoder can write prompts: Gemma 4 of LTX-2.5 was tuned to encode alone."""
    if not files.has("gemma"):
        return False
    config = files.gemma_config
    text = config.get("text_config") or config
    is_tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", True))
    is_capped = text.get("final_logit_softcapping") is not None
    return config.get("model_type") == "gemma3" and is_tied is not False and not is_capped


def _has_full_block(files: ModelFiles) -> bool:
    if not files.has("gemma"):
        return False
    facts = gemma_facts(files.gemma_config)
    if facts is not None:
        return blocks_differ(facts)
    text_encoder = importlib.import_module("ltx2rt_export.modules.text_encoder")
    return bool(text_encoder.has_full_block(files.gemma_config))


def _text_tail(files: ModelFiles) -> Component:
    return _factory(TEXT_TAIL)(
        files.gemma_config,
        files.tensors("gemma"),
        files.config("text"),
        files.tensors("text"),
    )


COMPONENTS: tuple[Row, ...] = (
    Row(
        TEXT_HEAD,
        ("gemma",),
        _text_head,
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
        LANGUAGE_HEAD,
        ("gemma",),
        lambda files: _factory(LANGUAGE_HEAD)(files.gemma_config, files.tensors("gemma")),
        optional=True,
        when=_answers,
    ),
    Row(
        TRANSFORMER_HEAD,
        ("transformer",),
        _from_role(TRANSFORMER_HEAD, "transformer"),
    ),
    Row(
        TRANSFORMER_BLOCK,
        ("transformer",),
        _from_role(TRANSFORMER_BLOCK, "transformer"),
    ),
    Row(
        TRANSFORMER_TAIL,
        ("transformer",),
        _from_role(TRANSFORMER_TAIL, "transformer"),
    ),
    Row(VIDEO_ENCODER, ("video_vae",), _from_role(VIDEO_ENCODER, "video_vae")),
    Row(
        VIDEO_DECODER,
        ("video_vae",),
        _from_role(VIDEO_DECODER, "video_vae"),
        when=_has_conv_decoder,
    ),
    *(
        Row(
            name,
            ("video_vae",),
            _from_role(name, "video_vae"),
            when=_has_diffusion_decoder,
        )
        for name in (DIFFUSION_FEATURES, DIFFUSION_CONTEXT, DIFFUSION_PIXELS)
    ),
    Row(
        AUDIO_ENCODER,
        ("audio_vae",),
        _from_role(AUDIO_ENCODER, "audio_vae"),
        when=lambda files: files.has_sound_encoder,
    ),
    Row(AUDIO_DECODER, ("audio_vae",), _from_role(AUDIO_DECODER, "audio_vae")),
    Row(VOCODER, ("vocoder",), _from_role(VOCODER, "vocoder")),
    Row(
        DURATION_HEAD,
        ("duration_head",),
        _from_role(DURATION_HEAD, "duration_head"),
        optional=True,
    ),
    Row(
        SPATIAL_UPSAMPLER,
        ("spatial_upsampler", "video_vae"),
        _upsampler("spatial_upsampler"),
        optional=True,
    ),
    Row(
        TEMPORAL_UPSAMPLER,
        ("temporal_upsampler", "video_vae"),
        _upsampler("temporal_upsampler"),
        optional=True,
    ),
)
