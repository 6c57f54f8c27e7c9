"""The flags of `ltx2rt generate` for what single pipelines take besides the common options: one
row a flag, shown in the help under the pipelines that take it.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx2rt.cli.common import parse_lora, split_strength
from ltx2rt.pipelines.base import pipeline_class

if TYPE_CHECKING:
    from ltx2rt.pipelines.base import Pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One flag.

    Attributes:
        name: as typed, `--audio`.
        target: field of the pipelines' `Inputs` that it sets; also its `dest`.
        pipelines: names of the pipelines that take it.
        help: one line.
        read: text (or list of texts, where it may be repeated) -> value of the field.
        options: further arguments of `add_argument`.
    """

    name: str
    target: str
    pipelines: tuple[str, ...]
    help: str
    read: Callable[[Any], Any] = lambda value: value
    options: Mapping[str, Any] = field(default_factory=dict)


def read_references(texts: list[str]) -> tuple[Any, ...]:
    """`FILE[:STRENGTH]` each."""
    from ltx2rt.components.reference_conditioner import ReferenceFile

    found = [split_strength(text) for text in texts]
    return tuple(ReferenceFile(path=Path(path), strength=strength) for path, strength in found)


RETAKE = ("retake", "retake-guided")

FLAGS: tuple[Flag, ...] = (
    Flag(
        name="--audio",
        target="audio",
        pipelines=("audio-to-video",),
        help="a sound or video file; its sound is kept as it is (mono is doubled to stereo)",
        options={"type": Path, "metavar": "FILE"},
    ),
    Flag(
        name="--audio-start-time",
        target="audio_start_time",
        pipelines=("audio-to-video",),
        help="where in the file the clip begins; default 0",
        options={"type": float, "metavar": "SECONDS"},
    ),
    Flag(
        name="--audio-max-duration",
        target="audio_max_duration",
        pipelines=("audio-to-video",),
        help="read no more than this; default: as long as the clip",
        options={"type": float, "metavar": "SECONDS"},
    ),
    Flag(
        name="--video",
        target="video",
        pipelines=RETAKE,
        help="the clip to change; it gives size, frames and frame rate; with --hdr also a folder "
        "of EXR frames",
        options={"type": Path, "metavar": "FILE"},
    ),
    Flag(
        name="--video-frame-rate",
        target="video_frame_rate",
        pipelines=RETAKE,
        help="frames per second of a --video of EXR frames, which needs it",
        options={"type": float, "metavar": "X"},
    ),
    Flag(
        name="--start-time",
        target="start_time",
        pipelines=RETAKE,
        help="where the part that is made anew begins",
        options={"type": float, "metavar": "SECONDS"},
    ),
    Flag(
        name="--end-time",
        target="end_time",
        pipelines=RETAKE,
        help="where it ends",
        options={"type": float, "metavar": "SECONDS"},
    ),
    *(
        Flag(
            name=f"--no-regenerate-{modality}",
            target=f"regenerate_{modality}",
            pipelines=RETAKE,
            help=f"keep the {modality} of the source",
            options={"action": "store_const", "const": False},
        )
        for modality in ("video", "audio")
    ),
    Flag(
        name="--reference-video",
        target="reference_video",
        pipelines=("dub-it",),
        help="the clip whose picture and voice are followed; it gives frames and frame rate",
        options={"type": Path, "metavar": "FILE"},
    ),
    Flag(
        name="--reference-strength",
        target="reference_strength",
        pipelines=("dub-it",),
        help="how strictly the picture follows it, 0 to 1; default 1",
        options={"type": float, "metavar": "X"},
    ),
    Flag(
        name="--reference",
        target="references",
        pipelines=("ic-lora", "hdr-ic-lora"),
        help="a video that the clip follows (repeatable); strength 1 if omitted; hdr-ic-lora: the "
        "first gives size, frames and frame rate unless they are named",
        read=read_references,
        options={"action": "append", "metavar": "FILE[:STRENGTH]"},
    ),
    Flag(
        name="--reference-audio",
        target="reference_audio",
        pipelines=("ic-lora",),
        help="a sound or video file whose voice speaks in the clip, for an ID-LoRA",
        options={"type": Path, "metavar": "FILE"},
    ),
    Flag(
        name="--reference-downscale",
        target="reference_downscale",
        pipelines=("ic-lora", "hdr-ic-lora", "dub-it"),
        help="how much smaller than the clip the LoRA wants its reference, for files that do not "
        "say so; default: what the file says, else 1",
        options={"type": int, "metavar": "N"},
    ),
    Flag(
        name="--attention-strength",
        target="attention_strength",
        pipelines=("ic-lora",),
        help="how much clip and references attend to each other, 0 to 1; default 1",
        options={"type": float, "metavar": "X"},
    ),
    Flag(
        name="--attention-mask",
        target="attention_mask",
        pipelines=("ic-lora",),
        help="a video or image, white where clip and references attend to each other",
        options={"type": Path, "metavar": "FILE"},
    ),
    Flag(
        name="--skip-stage-2",
        target="skip_stage_2",
        pipelines=("ic-lora",),
        help="stop after stage 1, at half height and width",
        options={"action": "store_true"},
    ),
    Flag(
        name="--high-quality",
        target="high_quality",
        pipelines=("hdr-ic-lora",),
        help="make every frame twice over and keep one: steadier, at twice the work",
        options={"action": "store_true"},
    ),
    Flag(
        name="--source",
        target="source",
        pipelines=("upscale",),
        help="the video, whose sound is kept, or the image to upscale",
        options={"type": Path, "metavar": "FILE"},
    ),
    Flag(
        name="--upscale",
        target="upscale",
        pipelines=("upscale",),
        help="what is raised; default spatial",
        options={"choices": ("spatial", "temporal", "both")},
    ),
    Flag(
        name="--refine",
        target="refine",
        pipelines=("upscale",),
        help="refine the result with --prompt: its first noise level, 0 to 1",
        options={"type": float, "metavar": "SIGMA"},
    ),
    Flag(
        name="--temporal-upsample-rounds",
        target="temporal_upsample_rounds",
        pipelines=("dfr",),
        help="how often the frame rate is doubled; default 0",
        options={"type": int, "choices": (0, 1, 2)},
    ),
    Flag(
        name="--detailing-lora",
        target="detailing_lora",
        pipelines=("dfr",),
        help="sharpens stage 2; strength 1 if omitted",
        read=parse_lora,
        options={"metavar": "FILE[:STRENGTH]"},
    ),
)

#: fields of `GenerationConfig` that some pipelines have no use for -> their flags
COMMON = {
    "height": "--height",
    "width": "--width",
    "num_frames": "--num-frames",
    "frame_rate": "--frame-rate",
    "images": "--image",
    "hdr": "--hdr",
    "generated_keyframes": "--num-generated-keyframes",
    "sampler": "--sampler",
    "sigmas": "--sigmas",
    "tiling": "--tiling",
    "stage_2_loras": "--stage-2-lora",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every flag, grouped by pipeline; all default to None: the `Inputs` know the defaults."""
    groups: dict[tuple[str, ...], Any] = {}
    for flag in FLAGS:
        if flag.pipelines not in groups:
            title = f"only for --pipeline {', '.join(flag.pipelines)}"
            groups[flag.pipelines] = parser.add_argument_group(title)
        groups[flag.pipelines].add_argument(
            flag.name, dest=flag.target, default=None, help=flag.help, **flag.options
        )


def problems_of(options: argparse.Namespace, *, has_inputs: bool = False) -> list[str]:
    """Flags that this pipeline does not take, and those that it needs, unless it `has_inputs` from
    a record that is repeated.
    """
    cls = pipeline_class(options.pipeline)
    problems = [
        f"--pipeline {options.pipeline} has no use for {flag}"
        for name, flag in COMMON.items()
        if name in cls.unused and getattr(options, name, None) not in (None, [], 0)
    ]
    if not cls.auto_duration and (options.auto_duration or options.num_frames == "auto"):
        problems.append(f"--pipeline {options.pipeline} cannot choose its duration")
    if cls.makes == "audio" and (options.stream or options.frames):
        problems.append(f"--pipeline {options.pipeline} makes sound: no --stream, no --frames")
    required = [] if has_inputs else cls.required_inputs()
    problems += [
        f"--pipeline {options.pipeline} needs {flag.name}"
        for flag in FLAGS
        if flag.target in required and getattr(options, flag.target, None) is None
    ]
    return problems + [
        f"{flag.name} is for --pipeline {' and '.join(flag.pipelines)}, not for "
        f"{options.pipeline}; leave it out or choose another pipeline"
        for flag in FLAGS
        if getattr(options, flag.target, None) is not None
        and options.pipeline not in flag.pipelines
    ]


def inputs_of(options: argparse.Namespace, pipeline: type[Pipeline], base: Any = None) -> Any:
    """The pipeline's `Inputs` from the command line, what is not given as in `base`; None for a
    pipeline without, or where a flag is missing that `problems_of` names.

    Raises:
        OptionError: a value cannot be read, or the `Inputs` refuse it.
    """
    if pipeline.Inputs is None:
        return None
    names = {f.name for f in dataclasses.fields(pipeline.Inputs)}
    given = {
        flag.target: flag.read(value)
        for flag in FLAGS
        if flag.target in names and (value := getattr(options, flag.target, None)) is not None
    }
    if base is not None:
        return dataclasses.replace(base, **given)
    return None if set(pipeline.required_inputs()) - given.keys() else pipeline.Inputs(**given)
