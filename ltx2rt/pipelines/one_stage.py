"""One-stage generation: full size, guided (spec/pipelines.md §1)."""

from __future__ import annotations

from typing import ClassVar

from ltx2rt.names import ONE_STAGE
from ltx2rt.pipelines.generation import Run
from ltx2rt.pipelines.guided import GuidedPipeline
from ltx2rt.pipelines.inputs import image_items, keyframe_items
from ltx2rt.pipelines.soundtrack import given_audio
from ltx2rt.results.clip import Clip


class OneStagePipeline(GuidedPipeline):
    """Prompt (and images) to a clip with sound in one guided stage.

    ```python
    guidance = ltx2rt.GuidanceConfig(num_inference_steps=2, negative_prompt="captions")
    with ltx2rt.OneStagePipeline(bundle) as pipe:
        pipe(guidance=guidance, prompt="A lighthouse at dusk.").save("out.mp4")
    ```
    """

    name: ClassVar[str] = "one-stage"
    requires: ClassVar[tuple[str, ...]] = ONE_STAGE
    auto_duration: ClassVar[bool] = True
    default_size: ClassVar[tuple[int, int] | None] = (512, 768)

    def generate(self, run: Run) -> Clip:
        audio = given_audio(run)
        items = image_items(run, {"stage_1": 1})
        encoded = self.encode(run)
        video = run.video(items=[*items["stage_1"], *keyframe_items(run)])
        result = self.first_stage(run, encoded, video=video, audio=audio or run.audio())
        return self.clip(run, result.video, result.audio)
