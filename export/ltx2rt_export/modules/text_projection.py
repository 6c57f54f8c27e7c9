"""Feature extractors: Gemma's hidden states to features (spec/text_encoder.md §3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ltx2rt_export.modules.text_projection_config import ExtractorConfig

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
    config: ExtractorConfig, width: int
) -> FeatureExtractorV1 | FeatureExtractorV2:
    """Build the extractor.

    Args:
        config: which one, and its sizes.
        width: hidden size times number of hidden states, the projection's input width.
    """
    video, audio = config.widths
    if config.apart:
        return FeatureExtractorV2(width, video, audio, bias=config.bias)
    return FeatureExtractorV1(width, video, bias=config.bias)
