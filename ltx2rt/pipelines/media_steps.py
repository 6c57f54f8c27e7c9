"""Steps of pipelines that begin with sound or video of the user's: read, encode, fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltx2rt.components.audio import as_stereo
from ltx2rt.engine import Array
from ltx2rt.errors import MediaError
from ltx2rt.latents.tiling import TilingConfig
from ltx2rt.media.reader import AudioInfo, VideoInfo, probe_audio, probe_video, read_audio
from ltx2rt.names import AUDIO_ENCODER, VIDEO_ENCODER
from ltx2rt.pipelines.run import Run

Sound = tuple[NDArray[np.float32], int]


def check_sound(path: Path) -> AudioInfo:
    """The facts of a file's sound.

    Raises:
        MediaError: no such file, not a media file, no audio stream, or more than two channels.
    """
    info = probe_audio(path)
    if info.channels > 2:
        raise MediaError(
            f"the sound of '{path}' has {info.channels} channels; mono or stereo is needed: mix it "
            "down to two channels first."
        )
    return info


def check_video(path: Path) -> VideoInfo:
    """The facts of a video file, with sound that can be used if it has any.

    Raises:
        MediaError: no such file, not a media file, no video stream, or more than two channels.
    """
    info = probe_video(path)
    if info.has_audio:
        check_sound(path)
    return info


def read_sound(path: Path, start_s: float = 0.0, max_duration_s: float | None = None) -> Sound:
    """A window of a file's sound, `[2, N]` float32, and its own rate in Hz; mono is doubled."""
    waveform, rate = read_audio(path, start_s, max_duration_s)
    return as_stereo(waveform), rate


def encode_sound(run: Run, sound: Sound) -> Array:
    """Latent of sound, as long as it is; the audio encoder is released."""
    run.job.report("encode audio", 0, 1)
    latent = run.pipeline.audio_encoder()(*sound)
    run.pipeline.release(AUDIO_ENCODER)
    run.job.report("encode audio", 1, 1)
    return latent


def encode_video(run: Run, pixels: NDArray[np.float32]) -> Array:
    """Latent of a clip `[1, 3, n, H, W]` in [-1, 1]; what goes beyond `8k+1` frames is dropped. It
    is encoded in tiles (spec/media_io.md §5.3); the encoder is released.
    """
    run.job.report("encode video", 0, 1)
    latent = run.pipeline.video_encoder().encode(pixels, TilingConfig.default())
    run.pipeline.release(VIDEO_ENCODER)
    run.job.report("encode video", 1, 1)
    return latent


def fit_video(latent: Array, num_frames: int) -> Array:
    """Cut a latent `[B, C, F, H, W]` to `num_frames` latent frames, or append zeros."""
    missing = max(num_frames - latent.shape[2], 0)
    return np.pad(latent[:, :, :num_frames], ((0, 0), (0, 0), (0, missing), (0, 0), (0, 0)))
