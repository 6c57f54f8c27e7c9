"""Diffusion fidelity rendering: a clip between generated keyframes, its frame rate doubled by
rounds (spec/pipelines.md §12).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ltx2rt.components.diffusion_stage import StageResult
from ltx2rt.components.image_conditioner import EncodedImage
from ltx2rt.components.text_encoder import TextContext
from ltx2rt.config import lora_problems
from ltx2rt.engine import Array
from ltx2rt.errors import Field, OptionError, Problem
from ltx2rt.field_types import settle_types
from ltx2rt.latents.conditioning import (
    ConditioningItem,
    GeneratedKeyframes,
    Keyframe,
    ReferenceVideo,
)
from ltx2rt.latents.temporal_rounds import TemporalTile, keyframe_canvas, temporal_tiles
from ltx2rt.lora.files import Lora, open_lora
from ltx2rt.lora.metadata import detailing_factor
from ltx2rt.names import TEMPORAL_UPSAMPLER, TRANSFORMER_BLOCK, TWO_STAGE
from ltx2rt.pipelines.base import Pipeline
from ltx2rt.pipelines.facts import MEDIA_FIELDS
from ltx2rt.pipelines.generation import Run
from ltx2rt.pipelines.inputs import encode_prompts, images_of_stages
from ltx2rt.pipelines.options import DFRCalls
from ltx2rt.pipelines.request import Request
from ltx2rt.results.clip import Clip
from ltx2rt.sampling.schedules import DISTILLED, TEMPORAL_ROUND

#: how firmly a round holds on to the keyframes of the one before
ANCHOR_STRENGTH = 0.95
#: share of fresh noise in every step of a round
ROUND_ETA = 0.5
#: the model was trained up to this frame rate: faster clips are conditioned as if they had it
MAX_FRAME_RATE = 60.0

#: pixel frame -> latent `[1, C, 1, H, W]`
Keyframes = Mapping[int, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class DFRInputs:
    """What the DFR pipeline takes besides `GenerationConfig`.

    Attributes:
        temporal_upsample_rounds: how often the frame rate is doubled, 0 to 2.
        detailing_lora: a LoRA that sharpens stage 2, which then also sees the result of stage 1.
    """

    temporal_upsample_rounds: int = 0
    detailing_lora: Lora | None = None

    def __post_init__(self) -> None:
        settle_types(self)
        problems = lora_problems([self.detailing_lora] if self.detailing_lora else [])
        if self.temporal_upsample_rounds not in (0, 1, 2):
            problems.append(
                Problem(
                    Field("temporal_upsample_rounds"),
                    f"={self.temporal_upsample_rounds}; allowed: 0, 1, 2",
                )
            )
        if problems:
            raise OptionError("the dfr pipeline cannot generate", problems)


class DFRPipeline(DFRCalls[DFRInputs], Pipeline):
    """Prompt (and images) to a clip with sound, with a distilled LTX-2.5 model that has a keyframe
    embedding (a distilled LoRA is an ordinary one here). Latents stay float32 in the rounds;
    upstream rounds them to bfloat16.
    """

    name: ClassVar[str] = "dfr"
    summary: ClassVar[str] = (
        "LTX-2.5: distilled, with generated keyframes; the frame rate can be doubled twice."
    )
    requires: ClassVar[tuple[str, ...]] = TWO_STAGE
    two_stage: ClassVar[bool] = True
    in_tiles: ClassVar[bool] = True
    unused: ClassVar[tuple[str, ...]] = (
        "generated_keyframes", "hdr", "stage_2_tile", *MEDIA_FIELDS,
    )  # fmt: skip
    auto_duration: ClassVar[bool] = True
    Inputs: ClassVar[type[Any] | None] = DFRInputs

    def prepare(self, request: Request) -> Request:
        """As `Pipeline.prepare`.

        Raises:
            ShapeError: a clip of one frame.
            OptionError: the model has no keyframe embedding, or the bundle no temporal upsampler
                where rounds are asked for.
        """
        request = super().prepare(request)
        if isinstance(request.config.num_frames, int):
            keyframe_canvas(request.config.num_frames)
        problems = []
        if not self.source.options(TRANSFORMER_BLOCK)["keyframes_embedding"]:
            problems.append(
                f"{self.source.model.generation} has no keyframe embedding; use an LTX-2.5 model"
            )
        if request.inputs.temporal_upsample_rounds and not self.source.has(TEMPORAL_UPSAMPLER):
            problems.append(
                Problem(
                    "temporal rounds need a temporal upsampler; build the bundle with one (ltx2rt "
                    "build --temporal-upsampler FILE), or leave ",
                    Field("temporal_upsample_rounds"),
                    " at 0",
                )
            )
        if problems:
            raise self.refusal(problems)
        return request

    def stage_loras(self, request: Request) -> list[tuple[Lora, ...]]:
        """The user's; stage 2 adds the detailing one."""
        config, detailing = request.config, request.inputs.detailing_lora
        return [config.loras, (*config.refine_loras, *([detailing] if detailing else []))]

    def generate(self, run: Run) -> Clip:
        rounds = run.request.inputs.temporal_upsample_rounds
        stage_1_loras, stage_2_loras = self.stage_loras(run.request)
        context = encode_prompts(run, [run.config.prompt])
        canvas = keyframe_canvas(run.config.frame_count)
        run.canvas = replace(run.canvas, num_frames=canvas.num_frames)
        images = images_of_stages(run, {"stage_1": 2, "stage_2": 1})
        slots = GeneratedKeyframes(frame_indices=canvas.keyframes)
        first = run.stage(
            "stage_1",
            DISTILLED,
            context,
            stage_1_loras,
            video=run.video(2, items=[*(i.item() for i in images["stage_1"]), slots]),
            audio=run.audio(),
            overrides=run.stage_1_overrides,
        )
        slots = replace(slots, latents=run.upsample(first.keyframes))
        items = [*(i.item() for i in images["stage_2"]), slots, *self.details(run, first)]
        second = run.refine(first, context, stage_2_loras, video_items=items)
        video = second.video
        keyframes: Keyframes = by_frame(canvas.keyframes, second.keyframes)
        for number in range(1, rounds + 1):
            video, keyframes = self.double(
                run, number, video, keyframes, context, images["stage_2"]
            )
        frames = (run.config.frame_count - 1) * 2**rounds + 1
        assert video is not None
        return self.clip(
            run,
            video[:, :, : (frames - 1) // self.scale_factors.time + 1],
            first.audio,
            frame_rate=run.config.frame_rate * 2**rounds,
            cut_audio=True,
        )

    def details(self, run: Run, first: StageResult) -> list[ConditioningItem]:
        """With a detailing LoRA, the result of stage 1 as a reference of stage 2."""
        lora = run.request.inputs.detailing_lora
        if lora is None or first.video is None:
            return []
        factor = detailing_factor(open_lora(lora.path))
        return [ReferenceVideo(latent=first.video, downscale=factor)]

    def double(
        self,
        run: Run,
        number: int,
        video: Array | None,
        keyframes: Keyframes,
        context: TextContext,
        images: Sequence[EncodedImage],
    ) -> tuple[Array, Keyframes]:
        """One temporal round: twice the frame rate, refined tile by tile between the keyframes so
        far, which stay; new ones are generated between them.

        Images keep their frame number, as upstream: they attach at half their time.
        """
        upsampled = run.upsample(video, TEMPORAL_UPSAMPLER)
        run.canvas = replace(
            run.canvas,
            num_frames=2 * (run.canvas.num_frames - 1) + 1,
            frame_rate=2 * run.canvas.frame_rate,
        )
        anchors = {2 * frame: latent for frame, latent in keyframes.items()}
        parts: list[Array] = []
        made: dict[int, Array] = {}
        for index, tile in enumerate(temporal_tiles(sorted(anchors), 2**number)):
            latent = upsampled[:, :, tile.latents]
            result = run.stage(
                f"round_{number}_tile_{index + 1}",
                TEMPORAL_ROUND,
                context,
                run.config.refine_loras,
                video=run.video_part(
                    latent,
                    noise_scale=TEMPORAL_ROUND[0],
                    items=tile_items(tile, latent, images, anchors, self.scale_factors.time),
                ),
                audio=None,
                overrides=None,
                frame_rate=min(run.canvas.frame_rate, MAX_FRAME_RATE),
                sampler="euler_ancestral",
                ancestral_seed=run.config.seed + 1000 * number + index,
                ancestral_eta=ROUND_ETA,
            )
            assert result.video is not None
            parts.append(result.video[:, :, tile.drop :])
            made = {**by_frame(tile.slots, result.keyframes), **made}  # the earlier tile's stay
        return np.concatenate(parts, axis=2), {**anchors, **made}


def tile_items(
    tile: TemporalTile,
    latent: Array,
    images: Sequence[EncodedImage],
    anchors: Keyframes,
    time_scale: int,
) -> list[ConditioningItem]:
    """What one tile is shown: images within it, keyframes so far, and the slots of new ones, which
    start from the tile's own nearest latent frame.
    """
    shown = [
        replace(image, frame=image.frame - tile.start).item()
        for image in images
        if tile.start == 0 or tile.start <= image.frame <= tile.end
    ]
    kept = [
        Keyframe(latent=anchors[frame], frame_index=frame - tile.start, strength=ANCHOR_STRENGTH)
        for frame in tile.anchors
    ]
    slots = [frame - tile.start for frame in tile.slots]
    seeds = [min(round(frame / time_scale), latent.shape[2] - 1) for frame in slots]
    return [*shown, *kept, GeneratedKeyframes(frame_indices=slots, latents=latent[:, :, seeds])]


def by_frame(frames: Sequence[int], keyframes: Array | None) -> dict[int, Array]:
    """Keyframes `[1, C, K, H, W]` by their pixel frames."""
    assert keyframes is not None
    return {frame: keyframes[:, :, i : i + 1] for i, frame in enumerate(frames)}
