"""How long things are: seconds, pixel frames, audio latent steps."""

from __future__ import annotations

from ltx2rt.shapes import AUDIO_GRID, VIDEO_SCALE_FACTORS, AudioGrid, AudioLatentShape


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
