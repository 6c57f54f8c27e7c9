"""A video in high dynamic range, made from one without (spec/pipelines.md §9)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ltx2rt.components.reference_conditioner import (
    ReferenceFile,
    load_reference,
    reference_problems,
)
from ltx2rt.components.text_encoder import TextContext
from ltx2rt.engine import Array
from ltx2rt.errors import MediaError, OptionError
from ltx2rt.field_types import settle_types
from ltx2rt.latents.conditioning import ReferenceVideo
from ltx2rt.latents.shapes import VIDEO_SCALE_FACTORS
from ltx2rt.latents.tiling import AxisTile, AxisTiling, TilingConfig, refine_tiles
from ltx2rt.lora.files import Lora, open_lora
from ltx2rt.lora.metadata import hdr_transfer, reference_downscale_problems, reference_factors
from ltx2rt.media.exr import openexr
from ltx2rt.media.files import OutputKind
from ltx2rt.media.hdr import HdrFormat
from ltx2rt.media.reader import probe_video
from ltx2rt.names import (
    DIFFUSION_DECODER,
    SPATIAL_UPSAMPLER,
    TEXT_ENCODER,
    TRANSFORMER,
    VIDEO_DECODER,
    VIDEO_ENCODER,
)
from ltx2rt.pipelines.base import Pipeline
from ltx2rt.pipelines.facts import MEDIA_FIELDS
from ltx2rt.pipelines.generation import Run
from ltx2rt.pipelines.inputs import encode_prompts
from ltx2rt.pipelines.options import HDRICLoraCalls
from ltx2rt.pipelines.refine_tiles import latent_box
from ltx2rt.pipelines.request import Request
from ltx2rt.results.clip import Clip
from ltx2rt.sampling.schedules import DISTILLED, HDR_STAGE2
from ltx2rt.weights.safetensors import SafetensorsFile

#: references with more pixels are encoded in tiles
UNTILED_PIXELS = 512 * 768
#: of decoder and encoder, in the official command
COMMAND_TILING = "1280x32:256x16"
#: tiles of stage 2 along frames, rows and columns, and their overlaps in latent cells
TILES, OVERLAPS = (2, 2, 2), (8, 6, 6)


@dataclass(frozen=True, slots=True, kw_only=True)
class HDRICLoraInputs:
    """What the HDR IC-LoRA pipeline takes besides `GenerationConfig`.

    Attributes:
        references: the videos that are turned into high dynamic range (one, as a rule).
        high_quality: make every frame twice over and keep one: steadier, at twice the work.
        reference_downscale: how much smaller than the clip the LoRA wants its reference, for files
            that do not say it; by default what the file says, else 1.
    """

    references: tuple[ReferenceFile, ...]
    high_quality: bool = False
    reference_downscale: int | None = None

    def __post_init__(self) -> None:
        settle_types(self)
        problems = reference_downscale_problems(self.reference_downscale)
        if not self.references:
            problems.append("it needs a reference video")
        if problems:
            raise OptionError("the hdr-ic-lora pipeline cannot generate", problems)


class HDRICLoraPipeline(HDRICLoraCalls[HDRICLoraInputs], Pipeline):
    """A reference video and an HDR LoRA to linear light, without sound. Any size is possible: what
    is missing to multiples of 64 is filled by reflection and cut off in the end.
    """

    name: ClassVar[str] = "hdr-ic-lora"
    summary: ClassVar[str] = "A video to linear light: EXR frames and a preview, by an HDR IC-LoRA."
    requires: ClassVar[tuple[str, ...]] = (
        *TEXT_ENCODER,
        *TRANSFORMER,
        SPATIAL_UPSAMPLER,
        VIDEO_ENCODER,
        VIDEO_DECODER,
    )
    two_stage: ClassVar[bool] = True
    default_size: ClassVar[tuple[int, int] | None] = None
    makes_exr: ClassVar[bool] = True
    unused: ClassVar[tuple[str, ...]] = (
        "images", "generated_keyframes", "hdr", "stage_2_loras", "stage_2_tile", *MEDIA_FIELDS,
    )  # fmt: skip
    Inputs: ClassVar[type[Any] | None] = HDRICLoraInputs

    @classmethod
    def output_kinds(cls, inputs: Any) -> tuple[OutputKind, ...]:
        """A picture without sound."""
        return ("video",)

    @classmethod
    def defaults(cls, inputs: HDRICLoraInputs | None, given: Mapping[str, Any]) -> dict[str, Any]:
        """Size, frames (cut to `8k+1`) and frame rate of the first reference; `prepare` refuses one
        that cannot be read.
        """
        found = super().defaults(inputs, given)
        try:
            info = probe_video(inputs.references[0].path) if inputs else None
        except MediaError:
            info = None
        if info is None:
            return found
        time = VIDEO_SCALE_FACTORS.time
        return {
            "height": info.height - info.height % 2,
            "width": info.width - info.width % 2,
            "num_frames": (info.num_frames - 1) // time * time + 1,
            "frame_rate": float(info.frame_rate),
        }

    @classmethod
    def command_defaults(cls, has: Callable[..., bool]) -> dict[str, Any]:
        """The official command's tiles; a diffusion decoder needs more overlap than they share."""
        found = super().command_defaults(has)
        return found if has(*DIFFUSION_DECODER) else {**found, "tiling": COMMAND_TILING}

    def prepare(self, request: Request) -> Request:
        """As `Pipeline.prepare`, for any even height and width.

        Raises:
            OptionError: references cannot be read, or LoRAs contradict each other.
            ShapeError: the tiling cannot encode references.
            UnsupportedError: OpenEXR is not installed.
        """
        request = super().prepare(request)
        openexr()
        config, files = request.config, lora_files(request.config.loras)
        hdr_transfer(files)
        height, width = self.rendered_size(request)
        paths = [reference.path for reference in request.inputs.references]
        downscale, _ = reference_factors(files, request.inputs.reference_downscale)
        tiling = encoder_tiling(config.tiling)
        if tiling is not None and height * width > UNTILED_PIXELS * downscale**2:
            tiling.check(self.scale_factors, encode=True)
        problems = reference_problems(paths)
        if problems:
            raise self.refusal(problems)
        return request

    def size_multiple(self, request: Request) -> int:
        """Also of the references, at the size that the LoRA wants."""
        files = lora_files(request.config.loras)
        downscale, _ = reference_factors(files, request.inputs.reference_downscale)
        return super().size_multiple(request) * downscale

    def clip_class(self, request: Request) -> type[Clip]:
        from ltx2rt.results.hdr_clip import HdrClip

        return HdrClip

    def generate(self, run: Run) -> Clip:
        config, inputs = run.config, run.request.inputs
        files = lora_files(config.loras)
        frames = 2 * config.frame_count - 1 if inputs.high_quality else config.frame_count
        run.canvas = replace(run.canvas, num_frames=frames)
        downscale, _ = reference_factors(files, inputs.reference_downscale)
        half, full = (self.references(run, divisor, downscale) for divisor in (2, 1))
        run.engines.release(VIDEO_ENCODER)
        context = encode_prompts(run, [config.prompt])
        first = run.stage(
            "stage_1",
            DISTILLED,
            context,
            config.loras,
            video=run.video(2, items=half),
            audio=None,
            overrides=run.stage_1_overrides,
        )
        video = self.refine_tiles(run, run.upsample(first.video), full, context)
        return self.clip(
            run,
            video,
            None,
            hdr=HdrFormat(transfer=hdr_transfer(files), files="rec709"),
            crop=(config.frame_count, config.height, config.width),
            frame_step=2 if inputs.high_quality else 1,
        )

    def references(self, run: Run, divisor: int, downscale: int) -> list[ReferenceVideo]:
        """The references at the canvas over `divisor`, filled by reflection."""
        pixels = run.pixels(divisor)
        items = []
        for reference in run.request.inputs.references:
            shown = pixels.num_frames
            if run.request.inputs.high_quality:
                shown = (shown + 1) // 2
            video = load_reference(
                reference.path, replace(pixels, num_frames=shown), downscale=downscale
            )
            if run.request.inputs.high_quality:
                video = np.repeat(video, 2, axis=2)[:, :, : pixels.num_frames]
            tiled = video.shape[3] * video.shape[4] > UNTILED_PIXELS
            tiling = encoder_tiling(run.config.tiling) if tiled else None
            latent = run.engines.video_encoder().encode(video, tiling)
            items.append(
                ReferenceVideo(latent=latent, strength=reference.strength, downscale=downscale)
            )
        return items

    def refine_tiles(
        self, run: Run, upsampled: Array, references: Sequence[ReferenceVideo], context: TextContext
    ) -> Array:
        """Stage 2: overlapping tiles of the clip, each with noise of its own."""
        axes = refine_tiles(upsampled.shape[2:], TILES, OVERLAPS)

        def shown(tile: Sequence[AxisTile]) -> list[ReferenceVideo]:
            parts = [cut_reference(reference, tile) for reference in references]
            return [part for part in parts if part.latent.size]  # a short one has ended

        return run.refine_tiles(upsampled, axes, HDR_STAGE2, context, run.config.loras, shown, None)


def encoder_tiling(text: str) -> TilingConfig | None:
    """The decoder's tiling, both sides at its larger tile, for a reference; None: in one piece."""
    if text == "auto":
        return TilingConfig.default()
    tiling = TilingConfig.parse(text)
    whole = AxisTiling()
    sides = (tiling.height, tiling.width)
    if whole in sides:
        sides = (whole, whole)
    else:
        larger = max(side.size for side in sides)
        sides = (replace(sides[0], size=larger), replace(sides[1], size=larger))
    if tiling.frames == sides[0] == whole:
        return None
    return replace(tiling, height=sides[0], width=sides[1])


def cut_reference(reference: ReferenceVideo, tile: Sequence[AxisTile]) -> ReferenceVideo:
    """The part of a reference that lies under a tile."""
    time, *sides = (axis.source for axis in tile)
    scaled = [
        slice(side.start // reference.downscale, side.stop // reference.downscale) for side in sides
    ]
    return replace(reference, latent=reference.latent[latent_box(time, *scaled)])


def lora_files(loras: Sequence[Lora]) -> list[SafetensorsFile]:
    """The headers of LoRA files."""
    return [open_lora(lora.path) for lora in loras]
