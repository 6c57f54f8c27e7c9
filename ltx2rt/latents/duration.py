"""How long things are: seconds, pixel frames, audio latent steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ltx2rt.errors import OptionError
from ltx2rt.field_types import settle_types
from ltx2rt.latents.shapes import AUDIO_GRID, VIDEO_SCALE_FACTORS, AudioGrid, AudioLatentShape


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoDuration:
    """As long as the model finds right for the prompt, within limits in seconds (LTX-2.5)."""

    min_s: float = 1.0
    max_s: float = 20.0

    def __post_init__(self) -> None:
        settle_types(self)
        if not (math.isfinite(self.max_s) and 0 <= self.min_s <= self.max_s and self.max_s > 0):
            raise OptionError(
                f"automatic duration from {self.min_s:g} to {self.max_s:g} seconds is not a range: "
                "0 <= min_s <= max_s, and max_s above 0."
            )

    def limits(self, frame_rate: float) -> tuple[int, int]:
        """The fewest and the most pixel frames.

        Raises:
            OptionError: no `8k+1` lies between them.
        """
        low, high = round(self.min_s * frame_rate), round(self.max_s * frame_rate)
        if _on_grid(low) > high:
            raise OptionError(
                f"automatic duration from {self.min_s:g} to {self.max_s:g} seconds is {low} to "
                f"{high} frames at {frame_rate:g} frames per second, with no 8k+1 between; "
                f"{_on_grid(low) / frame_rate:.4g} seconds would be {_on_grid(low)} frames."
            )
        return low, high

    def frames(self, seconds: float, frame_rate: float) -> int:
        """Pixel frames, `8k+1`, of a predicted duration: rounded half to even, clamped, then
        floored to the grid, or raised if that fell below the minimum (spec/duration_head.md).
        """
        low, high = self.limits(frame_rate)
        clamped = min(max(round(min(seconds, self.max_s + 1) * frame_rate), low), high)
        floored = (clamped - 1) // _STEP * _STEP + 1
        return floored if floored >= max(low, 1) else _on_grid(low)


#: a latent frame holds 8 pixel frames, the first one holds 1
_STEP = VIDEO_SCALE_FACTORS.time


def _on_grid(frames: int) -> int:
    """The smallest `8k+1` that is not below `frames`, at least 1."""
    return max(-(-(frames - 1) // _STEP), 0) * _STEP + 1


def audio_steps(samples: int, sampling_rate: int, grid: AudioGrid = AUDIO_GRID) -> int:
    """Latent steps that the audio encoder makes of a waveform (spec/audio.md §2, §3)."""
    resampled = -(-samples * grid.sample_rate // sampling_rate)
    mel_frames = resampled // grid.hop_length + 1
    return (mel_frames - 1) // grid.downsample + 1


def longest_clip(
    steps: int, frame_rate: float, time_scale: int = VIDEO_SCALE_FACTORS.time
) -> int | None:
    """The most pixel frames, `8k+1`, whose sound takes no more than `steps` latent steps; None if
    even a single frame takes more.
    """
    longest = (steps + 1) / AUDIO_GRID.latents_per_second * frame_rate  # rounding gives half a step
    frames = int(longest) // time_scale * time_scale + 1
    while frames > 0:
        if AudioLatentShape.from_duration(frames / frame_rate).num_frames <= steps:
            return frames
        frames -= time_scale
    return None
