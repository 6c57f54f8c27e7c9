"""Audio at the pipelines' boundary: latents to waveforms, waveforms of any rate to latents.

Shapes: waveform `[2, N]` float32 in [-1, 1], latent `[1, z, Ta, bins]` float32, normalised.
"""

from __future__ import annotations

import numpy as np

from ltx2rt.engine import F32, Engine
from ltx2rt.errors import ShapeError
from ltx2rt.media.resample import resample


class AudioDecoder:
    """Latent to waveform: audio VAE decoder, then vocoder.

    Args:
        decoder_engine: component `audio_decoder`.
        vocoder_engine: component `vocoder`.
        sampling_rate: of the waveform, in Hz (option `output_sampling_rate` of the vocoder).
    """

    def __init__(self, decoder_engine: Engine, vocoder_engine: Engine, sampling_rate: int) -> None:
        self._decoder = decoder_engine
        self._vocoder = vocoder_engine
        self.sampling_rate = sampling_rate

    def __call__(self, latent: F32) -> tuple[F32, int]:
        """Decode one clip.

        Args:
            latent: `[1, z, Ta, bins]`.

        Returns:
            waveform `[2, N]` in [-1, 1], owned by the caller, and its sampling rate in Hz.
            It is not cut to the length of the video.

        Raises:
            ShapeError: the latent does not fit the decoder.
        """
        if latent.ndim != 4 or latent.shape[0] != 1:
            raise ShapeError(
                f"the audio latent has shape {list(latent.shape)}; "
                "one clip, [1, z, Ta, bins], is needed."
            )
        mel = self._decoder({"audio_latent": latent})["mel"]
        waveform = self._vocoder({"mel": mel})["waveform"][0]
        return np.array(waveform, np.float32), self.sampling_rate


class AudioEncoder:
    """Waveform of any rate to latent: resampling, then mel front end and audio VAE encoder.

    Args:
        engine: component `audio_encoder`.
        sampling_rate: what the engine takes, in Hz (its option `sampling_rate`).
        n_fft: of its front end (its option `n_fft`); fixes the shortest waveform.
    """

    def __init__(self, engine: Engine, sampling_rate: int = 16000, n_fft: int = 1024) -> None:
        self._engine = engine
        self._sampling_rate = sampling_rate
        self._n_fft = n_fft

    def __call__(self, waveform: F32, sampling_rate: int) -> F32:
        """Encode one clip.

        Args:
            waveform: `[2, N]`; see `as_stereo` for mono.
            sampling_rate: of `waveform`, in Hz.

        Returns:
            latent `[1, z, Ta, bins]`, the caller's own; fit it with `crop_latent` or `fit_latent`.

        Raises:
            ShapeError: not two channels, or too short for the front end.
        """
        if waveform.ndim != 2 or waveform.shape[0] != 2:
            raise ShapeError(
                f"the audio has shape {list(waveform.shape)}; "
                "the audio VAE takes stereo, [2, samples]."
            )
        samples = resample(waveform, sampling_rate, self._sampling_rate)
        shortest = self._n_fft // 2 + 1
        if samples.shape[1] < shortest:
            raise ShapeError(
                f"the audio has {samples.shape[1]} samples at {self._sampling_rate} Hz; at least "
                f"{shortest} are needed; use a longer file."
            )
        batch = np.ascontiguousarray(samples[None], dtype=np.float32)
        return np.array(self._engine({"waveform": batch})["audio_latent"], np.float32)


def as_stereo(waveform: F32) -> F32:
    """Duplicate a mono waveform `[1, N]` to `[2, N]`; stereo passes unchanged.

    Raises:
        ShapeError: more than two channels.
    """
    if waveform.ndim == 2 and waveform.shape[0] == 1:
        return np.repeat(waveform, 2, axis=0)
    if waveform.ndim == 2 and waveform.shape[0] == 2:
        return waveform
    raise ShapeError(
        f"the audio has shape {list(waveform.shape)}; mono or stereo is needed, "
        "mix it down to two channels."
    )


def crop_latent(latent: F32, num_latents: int) -> F32:
    """Cut a latent `[1, z, Ta, bins]` to `num_latents` time steps, never padding it.

    Raises:
        ShapeError: the audio is shorter than that.
    """
    if latent.shape[2] < num_latents:
        raise ShapeError(
            f"the audio gives {latent.shape[2]} latent steps, the clip needs {num_latents}; "
            "use longer audio or fewer frames."
        )
    return latent[:, :, :num_latents]


def fit_latent(latent: F32, num_latents: int) -> F32:
    """Cut a latent `[1, z, Ta, bins]` to `num_latents` time steps, or append (normalised) zeros."""
    missing = max(num_latents - latent.shape[2], 0)
    return np.pad(latent[:, :, :num_latents], ((0, 0), (0, 0), (0, missing), (0, 0)))
