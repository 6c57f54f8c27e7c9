"""A clip that follows reference videos in the way a LoRA was trained to (spec/pipelines.md §5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ltx2rt.components.reference_conditioner import ReferenceFile, load_mask, reference_problems
from ltx2rt.errors import OptionError, join_problems
from ltx2rt.lora_files import open_lora
from ltx2rt.lora_keys import reference_factors
from ltx2rt.manifest import Lora
from ltx2rt.pipelines.base import TWO_STAGE, Pipeline
from ltx2rt.pipelines.run import Request
from ltx2rt.schedules import DISTILLED

if TYPE_CHECKING:
    from ltx2rt.pipelines.clip import Clip
    from ltx2rt.pipelines.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class ICLoraInputs:
    """What the IC-LoRA pipeline takes besides `GenerationConfig`.

    Attributes:
        references: the videos to follow.
        attention_strength: how much the clip and the references attend to each other, 0 to 1.
        attention_mask: a video: white where they do, black where they do not.
        skip_stage_2: stop after stage 1, at half the height and width.
    """

    references: tuple[ReferenceFile, ...]
    attention_strength: float = 1.0
    attention_mask: Path | None = None
    skip_stage_2: bool = False

    def __post_init__(self) -> None:
        problems = []
        if not self.references:
            problems.append("it needs at least one reference video (--reference FILE)")
        if not 0.0 <= self.attention_strength <= 1.0:
            problems.append(f"attention_strength={self.attention_strength} is not in [0, 1]")
        if problems:
            raise OptionError(join_problems("the ic-lora pipeline cannot generate", problems))


class ICLoraPipeline(Pipeline):
    """Prompt, reference videos (and images) to a clip with sound, with a distilled model and
    IC-LoRAs. Their metadata says how much smaller and slower the references are shown. Stage 2
    works without any LoRA and without the references.
    """

    name: ClassVar[str] = "ic-lora"
    summary: ClassVar[str] = (
        "A clip that follows reference videos (depth, pose, edges, ...), by an IC-LoRA."
    )
    requires: ClassVar[tuple[str, ...]] = (*TWO_STAGE, "video_encoder")
    two_stage: ClassVar[bool] = True
    unused: ClassVar[tuple[str, ...]] = ("generated_keyframes",)
    Inputs: ClassVar[type[Any]] = ICLoraInputs

    def prepare(self, request: Request) -> Request:
        """As `Pipeline.prepare`.

        Raises:
            OptionError: references or the mask cannot be read, LoRAs contradict each other, or the
                size does not suit them; all problems are named.
        """
        request = super().prepare(request)
        inputs: ICLoraInputs = request.inputs
        config = request.config
        downscale, _ = factors(config.loras)
        paths = [reference.path for reference in inputs.references]
        if inputs.attention_mask is not None:
            paths.append(inputs.attention_mask)
        multiple = 2 * downscale * self.scale_factors.height
        problems = reference_problems(paths, config.height, config.width, multiple)
        if problems:
            raise OptionError(join_problems(f"the {self.name} pipeline cannot generate", problems))
        return request

    def generate(self, run: Run) -> Clip:
        inputs: ICLoraInputs = run.request.inputs
        loras = run.config.loras
        downscale, temporal_scale = factors(loras)
        stages = {"stage_1": 2} if inputs.skip_stage_2 else {"stage_1": 2, "stage_2": 1}
        items = run.image_items(stages)
        mask = inputs.attention_mask
        references = run.reference_items(
            "stage_1",
            inputs.references,
            2,
            downscale=downscale,
            temporal_scale=temporal_scale,
            attention_strength=inputs.attention_strength,
            attention_mask=None if mask is None else load_mask(mask, run.pixels(2)),
        )
        context = run.encode([run.config.prompt])
        first = run.stage(
            "stage_1",
            DISTILLED,
            context,
            loras,
            video=run.video(2, items=[*items["stage_1"], *references]),
            audio=run.audio(),
        )
        if inputs.skip_stage_2:
            return run.clip(first.video, first.audio)
        second = run.refine(first, context, video_items=items["stage_2"])
        return run.clip(second.video, second.audio)


def factors(loras: tuple[Lora, ...]) -> tuple[int, int]:
    """How much smaller and slower than the clip these LoRAs want their references.

    Raises:
        OptionError: they want different ones.
        CheckpointError: a file cannot be read.
    """
    return reference_factors(open_lora(lora.path) for lora in loras)
