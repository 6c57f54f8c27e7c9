"""Which feature extractor a checkpoint has (spec/text_encoder.md §3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ltx2rt.errors import CheckpointError, UnsupportedError
from ltx2rt_export.component import TensorIndex

#: keys of the transformer configuration that only V2 files have, with the values they must have
V2_KEYS = {
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_proj_input_norm": False,
    "caption_projection_second_linear": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractorConfig:
    """A feature extractor.

    Attributes:
        widths: of video and audio features.
        apart: video and audio have projections of their own (LTX-2.3 and later).
        bias: they add one.
    """

    widths: tuple[int, int]
    apart: bool
    bias: bool

    @classmethod
    def from_checkpoint(cls, config: Mapping[str, Any], tensors: TensorIndex) -> ExtractorConfig:
        """Choose the extractor.

        Args:
            config: the `transformer` object of the metadata, or {}.
            tensors: names below `text_embedding_projection.`.

        Raises:
            UnsupportedError: the configuration describes an extractor we do not know.
            CheckpointError: the tensors are missing.
        """
        present = [key for key in V2_KEYS if key in config]
        problems = [
            f"{key} is {config.get(key, 'missing')!r}, expected {want!r}"
            for key, want in V2_KEYS.items()
            if present and config.get(key) is not want
        ]
        if problems:
            raise UnsupportedError("the text projection is not supported", problems)
        shapes = {
            name: tensors[f"{name}.weight"].shape[0]
            for name in ("aggregate_embed", "video_aggregate_embed", "audio_aggregate_embed")
            if f"{name}.weight" in tensors
        }
        if {"video_aggregate_embed", "audio_aggregate_embed"} <= shapes.keys():
            return cls(
                widths=(shapes["video_aggregate_embed"], shapes["audio_aggregate_embed"]),
                apart=True,
                bias="video_aggregate_embed.bias" in tensors,
            )
        if "aggregate_embed" in shapes:
            width = shapes["aggregate_embed"]
            bias = "aggregate_embed.bias" in tensors
            return cls(widths=(width, width), apart=False, bias=bias)
        raise CheckpointError(
            "no text projection found: a checkpoint holds "
            "text_embedding_projection.aggregate_embed.weight (LTX-2) or "
            "text_embedding_projection.{video,audio}_aggregate_embed.weight (LTX-2.3 and "
            "later); for split files pass the text-encoder file too."
        )
