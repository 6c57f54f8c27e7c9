"""Pixel, latent and token arithmetic: pure Python, the source of every shape and profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ltx2rt.errors import Field, Problem, ShapeError


class VideoScaleFactors(NamedTuple):
    """Pixels per latent cell along time, height and width."""

    time: int = 8
    height: int = 32
    width: int = 32


VIDEO_SCALE_FACTORS = VideoScaleFactors()
VIDEO_LATENT_CHANNELS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioGrid:
    """Audio time: `sample_rate / hop_length / downsample` latent frames a second."""

    sample_rate: int = 16000
    hop_length: int = 160
    downsample: int = 4

    @property
    def latents_per_second(self) -> float:
        return self.sample_rate / self.hop_length / self.downsample


AUDIO_GRID = AudioGrid()


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoPixelShape:
    """A clip as the user asks for it; `frame_rate` in frames per second."""

    batch: int = 1
    num_frames: int
    height: int
    width: int
    frame_rate: float

    @property
    def duration_s(self) -> float:
        return self.num_frames / self.frame_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoLatentShape:
    """`[B, C, F, H, W]` of a video latent, in latent cells."""

    batch: int = 1
    channels: int = VIDEO_LATENT_CHANNELS
    num_frames: int
    height: int
    width: int

    @classmethod
    def from_pixel_shape(
        cls,
        shape: VideoPixelShape,
        channels: int = VIDEO_LATENT_CHANNELS,
        scale_factors: VideoScaleFactors = VIDEO_SCALE_FACTORS,
    ) -> VideoLatentShape:
        """Latent of a clip: `(frames - 1) // 8 + 1` frames; height and width floor-divide.

        A frame count that is not `8k+1` silently yields the next smaller one, as upstream does
        (spec/pipelines.md §0.1); `check_generation_size` refuses it at the edge.
        """
        return cls(
            batch=shape.batch,
            channels=channels,
            num_frames=(shape.num_frames - 1) // scale_factors.time + 1,
            height=shape.height // scale_factors.height,
            width=shape.width // scale_factors.width,
        )

    @classmethod
    def from_sizes(cls, sizes: Sequence[int]) -> VideoLatentShape:
        """From `[B, C, F, H, W]`, e.g. the `.shape` of an array."""
        if len(sizes) != 5:
            raise ShapeError(
                f"A video latent has 5 dimensions [B, C, F, H, W], not {tuple(sizes)}."
            )
        batch, channels, num_frames, height, width = (int(s) for s in sizes)
        return cls(
            batch=batch, channels=channels, num_frames=num_frames, height=height, width=width
        )

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        return (self.batch, self.channels, self.num_frames, self.height, self.width)

    @property
    def tokens_per_frame(self) -> int:
        return self.height * self.width

    @property
    def token_count(self) -> int:
        return self.num_frames * self.height * self.width

    def pixel_frames(self, scale_factors: VideoScaleFactors = VIDEO_SCALE_FACTORS) -> int:
        """Number of pixel frames this latent decodes to."""
        return (self.num_frames - 1) * scale_factors.time + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioLatentShape:
    """`[B, C, T, mel bins]` of an audio latent."""

    batch: int = 1
    channels: int = 8
    num_frames: int
    mel_bins: int = 16

    @classmethod
    def from_duration(
        cls,
        duration_s: float,
        *,
        batch: int = 1,
        channels: int = 8,
        mel_bins: int = 16,
        grid: AudioGrid = AUDIO_GRID,
    ) -> AudioLatentShape:
        """Latent of `duration_s` seconds, rounded half to even on the double product."""
        frames = round(duration_s * grid.latents_per_second)
        return cls(batch=batch, channels=channels, num_frames=frames, mel_bins=mel_bins)

    @classmethod
    def from_sizes(cls, sizes: Sequence[int]) -> AudioLatentShape:
        """From `[B, C, T, mel bins]`, e.g. the `.shape` of an array."""
        if len(sizes) != 4:
            raise ShapeError(
                f"An audio latent has 4 dimensions [B, C, T, mel], not {tuple(sizes)}."
            )
        batch, channels, num_frames, mel_bins = (int(s) for s in sizes)
        return cls(batch=batch, channels=channels, num_frames=num_frames, mel_bins=mel_bins)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return (self.batch, self.channels, self.num_frames, self.mel_bins)

    @property
    def token_count(self) -> int:
        return self.num_frames

    @property
    def token_features(self) -> int:
        return self.channels * self.mel_bins


def nearest_multiples(value: int, step: int, offset: int = 0) -> tuple[int, ...]:
    """The one or two positive numbers `step * k + offset` that surround `value`.

    `offset` counts from 0; the smallest number returned is positive. A valid `value` gives itself.
    """
    smallest = offset if offset > 0 else step
    if value <= smallest:
        return (smallest,)
    below = (value - offset) // step * step + offset
    return (below,) if below == value else (below, below + step)


def check_generation_size(
    height: int,
    width: int,
    num_frames: int,
    scale_factors: VideoScaleFactors = VIDEO_SCALE_FACTORS,
) -> None:
    """Check a requested size once, at the edge. A clip is cut out of what the model renders
    (`rendered_size`), so that height and width only have to be even, as video files need them.

    Args:
        height, width: pixels, even.
        num_frames: pixel frames, `8k+1`.
        scale_factors: pixels per latent cell.

    Raises:
        ShapeError: lists every problem, each with the nearest valid values.
    """
    problems: list[str] = []
    for name, value in (("height", height), ("width", width)):
        if value < 1 or value % 2:
            valid = ", ".join(str(v) for v in nearest_multiples(value, 2))
            wrong = "positive" if value < 1 else "even"
            problems.append(
                Problem(Field(name), f"={value} is not {wrong}. Nearest valid: {valid}.")
            )
    if num_frames < 1 or (num_frames - 1) % scale_factors.time:
        valid = ", ".join(str(v) for v in nearest_multiples(num_frames, scale_factors.time, 1))
        wrong = "positive" if num_frames < 1 else f"{scale_factors.time}k+1"
        problems.append(
            Problem(Field("num_frames"), f"={num_frames} is not {wrong}. Nearest valid: {valid}.")
        )
    if problems:
        raise ShapeError("The requested size is not valid", problems)


def rendered_size(height: int, width: int, multiple: int) -> tuple[int, int]:
    """The smallest height and width that a model can render and that hold these."""
    return height + -height % multiple, width + -width % multiple
