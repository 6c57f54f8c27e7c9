"""Distilled two-stage generation: half size in 8 steps, latent upsampling, refinement in 3
(spec/pipelines.md §4).
"""

from __future__ import annotations

from typing import ClassVar

from ltx2rt.components.diffusion_stage import ANCESTRAL_SEED_OFFSET
from ltx2rt.names import TWO_STAGE
from ltx2rt.pipelines.base import Pipeline
from ltx2rt.pipelines.generation import Run
from ltx2rt.pipelines.inputs import encode_prompts, image_items, keyframe_items
from ltx2rt.pipelines.soundtrack import given_audio
from ltx2rt.results.clip import Clip
from ltx2rt.sampling.schedules import DISTILLED


class DistilledPipeline(Pipeline):
    """Prompt (and images) to a clip with sound, with a distilled model.

    ```python
    with ltx2rt.DistilledPipeline(bundle) as pipe:
        clip = pipe(prompt="A lighthouse at dusk.", seed=42)
        clip.save("out.mp4")
    ```
    """

    name: ClassVar[str] = "distilled"
    counterpart: ClassVar[str | None] = "two-stage"
    requires: ClassVar[tuple[str, ...]] = TWO_STAGE
    two_stage: ClassVar[bool] = True
    auto_duration: ClassVar[bool] = True

    def generate(self, run: Run) -> Clip:
        loras = self.stage_loras(run.request)
        audio = given_audio(run)
        items = image_items(run, {"stage_1": 2, "stage_2": 1})
        context = encode_prompts(run, [run.config.prompt])
        keyframes = keyframe_items(run)
        first = run.stage(
            "stage_1",
            DISTILLED,
            context,
            loras[0],
            video=run.video(2, items=[*items["stage_1"], *keyframes]),
            audio=audio or run.audio(),
            overrides=run.stage_1_overrides,
            sampler=self.source.model.distilled_sampler,
            ancestral_seed=run.config.seed + ANCESTRAL_SEED_OFFSET,
        )
        second = run.refine(first, context, loras[1], video_items=items["stage_2"], audio=audio)
        return self.clip(run, second.video, second.audio)
