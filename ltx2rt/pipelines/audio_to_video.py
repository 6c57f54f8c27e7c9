"""A clip for sound that exists (spec/pipelines.md §7)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from ltx2rt.components.audio import crop_latent
from ltx2rt.components.denoisers import Guidance
from ltx2rt.components.text_encoder import TextContext
from ltx2rt.errors import Field, OptionError, Problem, ShapeError
from ltx2rt.field_types import settle_types
from ltx2rt.latents.duration import audio_steps, longest_clip
from ltx2rt.latents.shapes import AudioLatentShape
from ltx2rt.media.audio import check_rate
from ltx2rt.media.sound import probe_audio
from ltx2rt.names import AUDIO_ENCODER, SPATIAL_UPSAMPLER, TEXT_ENCODER, TRANSFORMER, VIDEO_DECODER
from ltx2rt.pipelines.generation import Run
from ltx2rt.pipelines.inputs import Sound, encode_sound, image_items, read_sound
from ltx2rt.pipelines.request import Request
from ltx2rt.pipelines.two_stages import TwoStagesPipeline
from ltx2rt.results.clip import Clip
from ltx2rt.sampling.guidance import GuiderParams


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioToVideoInputs:
    """The sound of a clip.

    Attributes:
        audio: a sound or video file; its sound ends up in the clip as it is, at its own rate (mono
            is doubled to stereo, more channels are mixed down to it).
        audio_start_time: where in the file the clip begins, in seconds.
        audio_max_duration: read no more seconds than this; by default as many as the clip lasts.
    """

    audio: Path
    audio_start_time: float = 0.0
    audio_max_duration: float | None = None

    def __post_init__(self) -> None:
        settle_types(self)
        problems = []
        if not (math.isfinite(self.audio_start_time) and self.audio_start_time >= 0):
            problems.append(
                Problem(
                    Field("audio_start_time"), f"={self.audio_start_time} is not 0 or more seconds"
                )
            )
        longest = self.audio_max_duration
        if longest is not None and not (math.isfinite(longest) and longest > 0):
            problems.append(
                Problem(
                    Field("audio_max_duration"), f"={longest} is not a number of seconds above 0"
                )
            )
        if problems:
            raise OptionError(f"the sound of '{self.audio}'", problems)


class AudioToVideoPipeline(TwoStagesPipeline):
    """As `TwoStagesPipeline`, but the sound is given: both stages see it and leave it alone, and
    the clip carries it as it was read. Only the video is guided.
    """

    name: ClassVar[str] = "audio-to-video"
    counterpart: ClassVar[str | None] = None
    summary: ClassVar[str] = (
        "A clip for sound that exists, which is kept as it is; guided, two stages."
    )
    requires: ClassVar[tuple[str, ...]] = (
        *TEXT_ENCODER,
        *TRANSFORMER,
        SPATIAL_UPSAMPLER,
        VIDEO_DECODER,
        AUDIO_ENCODER,
    )
    Inputs: ClassVar[type[Any] | None] = AudioToVideoInputs
    unused: ClassVar[tuple[str, ...]] = ("generated_keyframes",)
    auto_duration: ClassVar[bool] = False
    guides: ClassVar[tuple[str, ...]] = ("video",)

    def default_guiders(self) -> tuple[GuiderParams, GuiderParams]:
        """Those of the model version for the video; none for the sound."""
        return super().default_guiders()[0], GuiderParams()

    def prepare(self, request: Request) -> Request:
        """As `GuidedPipeline.prepare`.

        Raises:
            MediaError: the sound cannot be read.
            ShapeError: it is shorter than the clip; the longest possible clip is named.
            OptionError: guidance of the sound, or a sampling rate that mp4 cannot hold.
        """
        request = super().prepare(request)
        check_rate(probe_audio(request.inputs.audio).sampling_rate)
        self._check_length(request)
        return request

    def generate(self, run: Run) -> Clip:
        loras = self.stage_loras(run.request)
        sound = _sound_of(run.request)
        latent = encode_sound(run, sound)
        steps = run.audio().shape.num_frames
        audio = run.audio(initial=crop_latent(latent, steps), noise_scale=0.0, frozen=True)
        items = image_items(run, {"stage_1": 2, "stage_2": 1})
        context, guidance = self.encode(run)
        first = run.stage(
            "stage_1",
            self.stage_1_sigmas(run),
            context,
            loras[0],
            video=run.video(2, items=items["stage_1"]),
            audio=audio,
            overrides=run.stage_1_overrides,
            guidance=guidance,
        )
        second = run.refine(first, context, loras[1], video_items=items["stage_2"], audio=audio)
        return self.clip(run, second.video, None, waveform=sound)

    def encode(self, run: Run) -> tuple[TextContext, Guidance | None]:
        """As `GuidedPipeline.encode`; the sound never sees the negative prompt."""
        context, guidance = super().encode(run)
        assert guidance is not None
        return context, replace(guidance, negative_audio=None)

    def _check_length(self, request: Request) -> None:
        waveform, rate = _sound_of(request)
        found = audio_steps(waveform.shape[1], rate)
        duration_s = request.config.frame_count / request.config.frame_rate
        if found >= AudioLatentShape.from_duration(duration_s).num_frames:
            return
        longest = longest_clip(found, request.config.frame_rate, self.scale_factors.time)
        raise ShapeError(
            Problem(
                Field("num_frames"),
                f"={request.config.frame_count} at {request.config.frame_rate:g} frames per second "
                f"needs more sound than the {waveform.shape[1] / rate:.3f} s found in "
                f"'{request.inputs.audio}'; ",
                *(
                    ("the longest possible is ", Field("num_frames"), f"={longest}.")
                    if longest
                    else ("use longer sound.",)
                ),
            )
        )


def _sound_of(request: Request) -> Sound:
    own = request.inputs
    seconds = own.audio_max_duration or request.config.frame_count / request.config.frame_rate
    return read_sound(own.audio, own.audio_start_time, seconds)
