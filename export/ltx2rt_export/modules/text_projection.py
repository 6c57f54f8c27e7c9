"""Feature extractors: Gemma's hidden states to features (spec/text_encoder.md §3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ltx2rt.errors import CheckpointError, UnsupportedError
from ltx2rt_export.component import TensorIndex
from ltx2rt_export.text_keys import V2_KEYS

EPS = 1e-6


class FeatureExtractorV1(nn.Module):
    """LTX-2: mean and range over valid tokens and channels of a layer; one projection for both."""

    def __init__(self, width: int, features: int, *, bias: bool) -> None:
        super().__init__()
        self.aggregate_embed = nn.Linear(width, features, bias=bias)

    @property
    def widths(self) -> tuple[int, int]:
        return self.aggregate_embed.out_features, self.aggregate_embed.out_features

    def forward(self, states: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Project.

        Args:
            states: `[B, S, D, L]`, all hidden states, the layer index last.
            valid: `[B, S]` bool, false on pads.

        Returns:
            Video and audio features `[B, S, D]`: the same tensor.
        """
        mask = valid[:, :, None, None]
        limit = torch.finfo(states.dtype).max
        total = torch.where(mask, states, 0.0).sum(dim=(1, 2), keepdim=True)
        count = valid.sum(dim=1).float()[:, None, None, None] * states.shape[2] + EPS
        low = torch.where(mask, states, limit).amin(dim=(1, 2), keepdim=True)
        high = torch.where(mask, states, -limit).amax(dim=(1, 2), keepdim=True)
        scaled = 8 * (states - total / count) / (high - low + EPS)
        flat = torch.where(mask, scaled, 0.0).to(states.dtype).flatten(2)
        features = self.aggregate_embed(flat)
        return features, features


class FeatureExtractorV2(nn.Module):
    """LTX-2.3 and later: RMS norm per token and layer; one projection for each modality."""

    def __init__(self, width: int, video: int, audio: int, *, bias: bool) -> None:
        super().__init__()
        self.video_aggregate_embed = nn.Linear(width, video, bias=bias)
        self.audio_aggregate_embed = nn.Linear(width, audio, bias=bias)

    @property
    def widths(self) -> tuple[int, int]:
        return self.video_aggregate_embed.out_features, self.audio_aggregate_embed.out_features

    def forward(self, states: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Project; arguments as `FeatureExtractorV1`, results `[B, S, Cv]` and `[B, S, Ca]`."""
        normed = states * torch.rsqrt(states.square().mean(dim=2, keepdim=True) + EPS)
        flat = torch.where(valid[:, :, None, None], normed, 0.0).flatten(2)
        video, audio = self.video_aggregate_embed, self.audio_aggregate_embed
        hidden = states.shape[2]
        return (
            video(flat * (video.out_features / hidden) ** 0.5),
            audio(flat * (audio.out_features / hidden) ** 0.5),
        )


def feature_extractor(
    config: Mapping[str, Any], tensors: TensorIndex, width: int
) -> FeatureExtractorV1 | FeatureExtractorV2:
    """Choose and build the extractor.

    Args:
        config: the `transformer` object of the metadata, or {}.
        tensors: names below `text_embedding_projection.`.
        width: hidden size times number of hidden states, the projection's input width.

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
        return FeatureExtractorV2(
            width,
            shapes["video_aggregate_embed"],
            shapes["audio_aggregate_embed"],
            bias="video_aggregate_embed.bias" in tensors,
        )
    if "aggregate_embed" in shapes:
        return FeatureExtractorV1(
            width, shapes["aggregate_embed"], bias="aggregate_embed.bias" in tensors
        )
    raise CheckpointError(
        "no text projection found: a checkpoint holds "
        "text_embedding_projection.aggregate_embed.weight (LTX-2) or "
        "text_embedding_projection.{video,audio}_aggregate_embed.weight (LTX-2.3 and "
        "later); for split files pass the text-encoder file too."
    )
