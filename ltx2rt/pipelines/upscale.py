"""A video or image with more pixels or frames, by the latent upsamplers; no model of the text is
needed unless the result is refined.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ltx2rt.engine import Array
from ltx2rt.errors import BundleError, Field, OptionError, Problem
from ltx2rt.field_types import settle_types
from ltx2rt.latents.shapes import VideoPixelShape
from ltx2rt.latents.tiling import TilingConfig
from ltx2rt.media.audio import check_rate
from ltx2rt.media.files import OutputKind, is_still
from ltx2rt.media.image import to_vae_input
from ltx2rt.media.reader import VideoInfo, probe_video, read_video_frames
from ltx2rt.media.still_reader import load_image
from ltx2rt.names import (
    SPATIAL_UPSAMPLER,
    TEMPORAL_UPSAMPLER,
    TEXT_ENCODER,
    TRANSFORMER,
    VIDEO_DECODER,
    VIDEO_ENCODER,
)
from ltx2rt.pipelines.base import Pipeline
from ltx2rt.pipelines.facts import MEDIA_FIELDS
from ltx2rt.pipelines.generation import Run
from ltx2rt.pipelines.inputs import encode_prompts, padded, read_sound
from ltx2rt.pipelines.options import UpscaleCalls
from ltx2rt.pipelines.request import Request
from ltx2rt.results.clip import Clip
from ltx2rt.sampling.schedules import DISTILLED, begun_at


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscaleInputs:
    """What is upscaled, and how.

    Attributes:
        source: a video, whose sound is kept, or an image.
        upscale: raise height and width by the bundle's spatial upsampler, double the frame rate by
            its temporal one, or both.
        refine: first noise level of a refinement with the prompt, above 0 and at most 1. A
            distilled model takes the noise out again; two-stage pipelines use 0.909375. None: no
            refinement.
    """

    source: Path
    upscale: Literal["spatial", "temporal", "both"] = "spatial"
    refine: float | None = None

    def __post_init__(self) -> None:
        settle_types(self)
        problems: list[str] = []
        if self.refine is not None and not 0 < self.refine <= 1:
            problems.append(
                Problem(Field("refine"), f"={self.refine} is not above 0 and at most 1")
            )
        if self.upscale not in ("spatial", "temporal", "both"):
            problems.append(
                Problem(Field("upscale"), f"={self.upscale!r}; allowed: spatial, temporal, both")
            )
        if self.temporal and self.is_image:
            problems.append(f"'{self.source}' is an image, which has no frame rate to double")
        if problems:
            raise OptionError("the upscale pipeline cannot run", problems)

    @property
    def spatial(self) -> bool:
        return self.upscale != "temporal"

    @property
    def temporal(self) -> bool:
        return self.upscale != "spatial"

    @property
    def is_image(self) -> bool:
        """Whether the source is a still, by its extension."""
        return is_still(self.source)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels of the refinement: from `refine` on down the distilled table."""
        assert self.refine is not None
        return begun_at(self.refine, DISTILLED)


class UpscalePipeline(UpscaleCalls[UpscaleInputs], Pipeline):
    """Encode, upsample, (refine,) decode. Any size and any number of frames: what is missing to the
    model's multiples is filled by reflection or by the last frame, and cut off in the end.
    """

    name: ClassVar[str] = "upscale"
    summary: ClassVar[str] = (
        "Raise size or frame rate of a video or image that exists; `refine` adds detail."
    )
    requires: ClassVar[tuple[str, ...]] = (VIDEO_ENCODER, VIDEO_DECODER)
    unused: ClassVar[tuple[str, ...]] = (
        "height", "width", "num_frames", "frame_rate", "images", "generated_keyframes", "hdr",
        "sampler", "sigmas", *MEDIA_FIELDS,
    )  # fmt: skip
    needs_prompt: ClassVar[bool] = False
    default_size: ClassVar[tuple[int, int] | None] = None
    Inputs: ClassVar[type[Any] | None] = UpscaleInputs

    @classmethod
    def output_kinds(cls, inputs: Any) -> tuple[OutputKind, ...]:
        """A video makes a video, with sound if it has any; an image makes an image."""
        if inputs.is_image:
            return ("image",)
        return ("video", "audio") if probe_video(inputs.source).has_audio else ("video",)

    @classmethod
    def problems(cls, request: Request) -> list[str]:
        """Also a prompt that is missing, and what would change nothing."""
        config, refines = request.config, request.inputs.refine is not None
        problems = super().problems(request)
        if refines and not config.prompt.strip() and config.embeddings is None:
            problems.append("refining takes a prompt that describes the picture")
        if not refines:
            given = {"a prompt": "prompt", "embeddings": "embeddings", "LoRAs": "loras"}
            problems += [
                Problem(
                    f"{what} would change nothing where nothing is refined (", Field("refine"), ")"
                )
                for what, name in given.items()
                if getattr(config, name)
            ]
        return problems

    def prepare(self, request: Request) -> Request:
        """The request at the source's size, frames and frame rate.

        Raises:
            MediaError: the source cannot be read.
            BundleError: the bundle lacks an upsampler, or parts that refining takes.
            OptionError: refining without a prompt, or a result that no video can hold.
        """
        inputs: UpscaleInputs = request.inputs
        needed = [SPATIAL_UPSAMPLER] * inputs.spatial + [TEMPORAL_UPSAMPLER] * inputs.temporal
        if inputs.refine is not None:
            needed += [*TEXT_ENCODER, *TRANSFORMER]
        missing = [name for name in needed if not self.source.has(name)]
        if missing:
            raise BundleError(
                f"this request needs {', '.join(missing)}, which the bundle does not hold; build "
                "it again with the files that hold them, or ask for less."
            )
        source = source_shape(inputs)
        problems = self.problems(request)
        if not inputs.is_image:
            problems += sound_problems(probe_video(inputs.source))
        height, width = self.output_size(inputs, source)
        if not inputs.is_image and (height % 2 or width % 2):
            problems.append(
                f"the result of {width}x{height} pixels is odd, which a video cannot hold; crop "
                "the source to even sides"
            )
        if problems:
            raise self.refusal(problems)
        frame_rate = source.frame_rate * (2 if inputs.temporal else 1)
        config = replace(
            request.config,
            height=height,
            width=width,
            num_frames=2 * source.num_frames - 1 if inputs.temporal else source.num_frames,
            frame_rate=frame_rate,
        )
        return replace(request, config=config)

    def output_size(self, inputs: UpscaleInputs, source: VideoPixelShape) -> tuple[int, int]:
        """Height and width of the result."""
        if not inputs.spatial:
            return source.height, source.width
        numerator, denominator = self._spatial_scale()
        return source.height * numerator // denominator, source.width * numerator // denominator

    def _spatial_scale(self) -> tuple[int, int]:
        numerator, denominator = self.source.options(SPATIAL_UPSAMPLER)["spatial_scale"]
        return int(numerator), int(denominator)

    def clip_class(self, request: Request) -> type[Clip]:
        from ltx2rt.results.image_clip import ImageClip

        return ImageClip if request.inputs.is_image else Clip

    def generate(self, run: Run) -> Clip:
        inputs: UpscaleInputs = run.request.inputs
        run.job.report("encode video", 0, 1)
        pixels = to_vae_input(padded(read_source(inputs), self.scale_factors))
        tiling = None if run.config.tiling == "none" else TilingConfig.default()
        latent = run.engines.video_encoder().encode(pixels, tiling)
        run.engines.release(VIDEO_ENCODER)
        run.job.report("encode video", 1, 1)
        run.latents["source.video"] = latent
        if inputs.spatial:
            latent = run.upsample(latent)
        if inputs.temporal:
            latent = run.upsample(latent, TEMPORAL_UPSAMPLER)
        if inputs.refine is not None:
            latent = self.refine(run, latent)
        config = run.config
        return self.clip(
            run,
            latent,
            None,
            crop=(config.frame_count, config.height, config.width),
            waveform=sound_of(inputs),
        )

    def refine(self, run: Run, latent: Array) -> Array:
        """Add noise and take it out again, with the prompt; the video alone."""
        time, rows, columns = self.scale_factors
        frames, height, width = latent.shape[2:]
        run.canvas = replace(
            run.canvas,
            num_frames=(frames - 1) * time + 1,
            height=height * rows,
            width=width * columns,
        )
        sigmas = run.request.inputs.sigmas
        context = encode_prompts(run, [run.config.prompt])
        video = run.video(initial=latent, noise_scale=sigmas[0])
        result = run.stage(
            "refine",
            sigmas,
            context,
            run.config.loras,
            video=video,
            audio=None,
            overrides=None,  # the request gives its noise level, and nothing else
        )
        assert result.video is not None
        return result.video


def source_shape(inputs: UpscaleInputs) -> VideoPixelShape:
    """Size, frames and frame rate of the source; an image is a clip of one frame."""
    if inputs.is_image:
        height, width = load_image(inputs.source).shape[:2]
        return VideoPixelShape(num_frames=1, height=height, width=width, frame_rate=24.0)
    info = probe_video(inputs.source)
    return VideoPixelShape(
        num_frames=info.num_frames,
        height=info.height,
        width=info.width,
        frame_rate=float(info.frame_rate),
    )


def read_source(inputs: UpscaleInputs) -> NDArray[np.uint8]:
    """The source's frames, `[n, H, W, 3]` uint8."""
    if inputs.is_image:
        return load_image(inputs.source)[None]
    return read_video_frames(inputs.source)


def sound_problems(info: VideoInfo) -> list[str]:
    """Why a video file could not hold the source's sound."""
    if not info.has_audio:
        return []
    try:
        check_rate(info.audio_sampling_rate)
    except OptionError as error:
        return list(error.problems)
    return []


def sound_of(inputs: UpscaleInputs) -> tuple[NDArray[np.float32], int] | None:
    """The source's own sound, see `read_sound`."""
    if inputs.is_image or not probe_video(inputs.source).has_audio:
        return None
    return read_sound(inputs.source, keep_channels=True)
