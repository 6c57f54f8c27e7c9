"""One-stage generation: full size, guided (spec/pipelines.md §1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ltx2rt.names import ONE_STAGE
from ltx2rt.pipelines.guided import GuidedPipeline

if TYPE_CHECKING:
    from ltx2rt.pipelines.clip import Clip
    from ltx2rt.pipelines.run import Run


class OneStagePipeline(GuidedPipeline):
    """Prompt (and images) to a clip with sound in one guided stage."""

    name: ClassVar[str] = "one-stage"
    requires: ClassVar[tuple[str, ...]] = ONE_STAGE
    auto_duration: ClassVar[bool] = True
    default_size: ClassVar[tuple[int, int] | None] = (512, 768)

    def generate(self, run: Run) -> Clip:
        items = run.image_items({"stage_1": 1})
        encoded = self.encode(run)
        video = run.video(items=[*items["stage_1"], *run.keyframe_items()])
        result = self.only_stage(run, encoded, video=video, audio=run.audio())
        return run.clip(result.video, result.audio)
