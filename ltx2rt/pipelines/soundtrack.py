"""Sound that exists, in any pipeline that makes a picture: stages see it and leave it alone, and
the clip carries it as it was read (spec/pipelines.md §7).
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ltx2rt.bundle.source import ModelFacts
from ltx2rt.components.audio import crop_latent
from ltx2rt.components.diffusion_stage import ModalityRequest
from ltx2rt.config import GenerationConfig
from ltx2rt.errors import BundleError, Field, Problem, ShapeError
from ltx2rt.latents.duration import AutoDuration, audio_steps, longest_clip
from ltx2rt.latents.shapes import AudioLatentShape, VideoScaleFactors
from ltx2rt.media.audio import check_rate
from ltx2rt.media.sound import probe_audio
from ltx2rt.names import AUDIO_ENCODER
from ltx2rt.pipelines.generation import Run
from ltx2rt.pipelines.inputs import Sound, encode_sound, read_sound


def given_audio(run: Run) -> ModalityRequest[AudioLatentShape] | None:
    """The sound that the request names, as both stages are shown it; from here on it is the clip's.
    None where the request names none.
    """
    if run.config.audio is None:
        return None
    run.sound = sound_of(run.config, keep_channels=True)
    heard = run.sound if len(run.sound[0]) == 2 else sound_of(run.config)
    latent = encode_sound(run, heard)
    steps = run.audio().shape.num_frames
    return run.audio(initial=crop_latent(latent, steps), noise_scale=0.0, frozen=True)


def with_soundtrack(
    config: GenerationConfig, source: ModelFacts, factors: VideoScaleFactors
) -> GenerationConfig:
    """The request with a length that its sound fills.

    Raises:
        BundleError: there is no audio encoder.
        MediaError: the sound cannot be read.
        OptionError: a sampling rate that mp4 cannot hold.
        ShapeError: it is shorter than the clip; the longest possible clip is named.
    """
    assert config.audio is not None
    if not source.has(AUDIO_ENCODER):
        raise BundleError(
            f"sound for a clip needs the {AUDIO_ENCODER}, which this bundle does not hold; build "
            "it again with all components."
        )
    check_rate(probe_audio(config.audio).sampling_rate)
    asked = config.num_frames
    limit_s = asked.max_s + 1 if isinstance(asked, AutoDuration) else None
    waveform, rate = sound_of(config, limit_s, keep_channels=True)
    if isinstance(asked, AutoDuration):
        waveform = _within(waveform, rate, config, asked)
    steps = audio_steps(waveform.shape[1], rate)
    longest = longest_clip(steps, config.frame_rate, factors.time)
    if isinstance(asked, AutoDuration) and longest is not None:
        return replace(config, num_frames=longest)
    if isinstance(asked, int):
        duration_s = asked / config.frame_rate
        if steps >= AudioLatentShape.from_duration(duration_s).num_frames:
            return config
    what = "the clip" if isinstance(asked, AutoDuration) else Field("num_frames")
    raise ShapeError(
        Problem(
            what,
            f"={asked}" if isinstance(asked, int) else "",
            f" at {config.frame_rate:g} frames per second needs more sound than the "
            f"{waveform.shape[1] / rate:.3f} s found in '{config.audio}'; ",
            *(
                ("the longest possible is ", Field("num_frames"), f"={longest}.")
                if longest
                else ("use longer sound.",)
            ),
        )
    )


def sound_of(
    config: GenerationConfig, seconds: float | None = None, *, keep_channels: bool = False
) -> Sound:
    """The part of the file that the clip hears; `seconds` where its length is not known yet, and
    `keep_channels` as of `read_sound`.
    """
    assert config.audio is not None
    if seconds is None:
        seconds = config.frame_count / config.frame_rate
    if config.audio_max_duration is not None:
        seconds = config.audio_max_duration
    start = config.audio_start_time
    return read_sound(config.audio, start, seconds, keep_channels=keep_channels)


def _within(
    waveform: NDArray[np.float32], rate: int, config: GenerationConfig, asked: AutoDuration
) -> NDArray[np.float32]:
    """Sound cut to the longest clip that is made of it unasked, which is said."""
    most = round(asked.max_s * rate)
    if waveform.shape[1] > most and config.audio_max_duration is None:
        warnings.warn(
            f"the sound of '{config.audio}' goes on after {asked.max_s:g} s, where the clip ends; "
            "for more, name a number of frames or a longest duration.",
            stacklevel=4,
        )
    return waveform[:, :most]
