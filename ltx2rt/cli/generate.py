"""`ltx2rt generate BUNDLE --prompt "..." -o out.mp4`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from ltx2rt.bundle import open_bundle
from ltx2rt.cli import guidance as guidance_flags
from ltx2rt.cli import inputs as input_flags
from ltx2rt.cli.common import ProgressPrinter, parse_lora, print_json
from ltx2rt.config import HDR_MODES, GenerationConfig, ImageCondition, RuntimeConfig
from ltx2rt.duration import AutoDuration
from ltx2rt.errors import OptionError
from ltx2rt.pipelines.catalog import PIPELINES, pipeline_class
from ltx2rt.progress import Job


def add_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = {f.name: f.default for f in dataclasses.fields(GenerationConfig)}
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--pipeline", default="distilled", choices=PIPELINES)
    what = parser.add_argument_group("what to make")
    what.add_argument("--prompt", metavar="TEXT", help="describes the clip")
    what.add_argument("--seed", type=int, default=defaults["seed"], help="default %(default)s")
    what.add_argument(
        "--height",
        type=int,
        help="pixels, a multiple of 64 (one-stage: 32); default 1024 (one-stage 512, HQ 1088)",
    )
    what.add_argument(
        "--width",
        type=int,
        help="pixels, a multiple of 64 (one-stage: 32); default 1536 (one-stage 768, HQ 1920)",
    )
    what.add_argument(
        "--num-frames",
        type=frame_count,
        metavar="N",
        help=f"8k+1, or auto (LTX-2.5: as the prompt needs); default {defaults['num_frames']}",
    )
    what.add_argument(
        "--auto-duration",
        type=float,
        nargs=2,
        metavar=("MIN", "MAX"),
        help="limits of --num-frames auto, which this implies, in seconds; default 1 20",
    )
    what.add_argument(
        "--frame-rate",
        type=float,
        help=f"frames per second; default {defaults['frame_rate']:g}",
    )
    what.add_argument(
        "--image",
        dest="images",
        action="append",
        default=[],
        metavar="FILE[@FRAME[:STRENGTH[:CRF]]]",
        help="show an image at a frame (repeatable); default frame 0, strength 1",
    )
    what.add_argument(
        "--num-generated-keyframes",
        dest="generated_keyframes",
        type=int,
        default=defaults["generated_keyframes"],
        metavar="N",
        help="LTX-2.5: single frames that stage 1 makes along with the clip; default %(default)s",
    )
    what.add_argument(
        "--tiling",
        default=defaults["tiling"],
        choices=("auto", "none"),
        help="tiled decoding bounds memory; default %(default)s",
    )
    what.add_argument(
        "--hdr",
        type=str.upper,
        choices=HDR_MODES,
        help="high dynamic range: EXR images and references in, EXR frames and an HLG video out",
    )
    what.add_argument(
        "--lora",
        dest="loras",
        action="append",
        default=[],
        metavar="FILE[:STRENGTH]",
        help="merge a LoRA in memory (repeatable); strength 1 if omitted",
    )
    guidance_flags.add_arguments(parser)
    input_flags.add_arguments(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help=".mp4, .mov or .mkv; .wav or .flac for text-to-audio; .png for an upscaled image",
    )
    output.add_argument(
        "--fragmented", action="store_true", help="write a file that plays while it grows"
    )
    output.add_argument(
        "--audio-output", type=Path, metavar="FILE", help="also write the sound: .wav or .flac"
    )
    output.add_argument(
        "--save-latents",
        type=Path,
        metavar="FILE",
        help="write every stage's latents (safetensors)",
    )
    how = parser.add_argument_group("how to run")
    how.add_argument(
        "--threads", type=int, default=RuntimeConfig().threads, help="0 uses every core"
    )
    how.add_argument(
        "--residency", default=RuntimeConfig().residency, choices=("stage", "resident")
    )
    how.add_argument(
        "--max-batch-size",
        type=int,
        default=RuntimeConfig().max_batch_size,
        metavar="N",
        help="guidance passes that run together; default %(default)s",
    )
    how.add_argument("--weights-dir", type=Path, help="where weight files are now, if they moved")
    how.add_argument("--quiet", action="store_true", help="no progress on stderr")
    how.add_argument("--json", action="store_true", help="print the result as JSON")


def frame_count(text: str) -> int | AutoDuration:
    """`N` or `auto`."""
    return AutoDuration() if text == "auto" else int(text)


def parse_image(text: str) -> ImageCondition:
    """`FILE[@FRAME[:STRENGTH[:CRF]]]`."""
    path, at, rest = text.rpartition("@")
    if not at or not path or Path(text).exists():  # a name like photo@2x.png
        return ImageCondition(path=Path(text))
    parts = rest.split(":")
    try:
        if len(parts) > 3:
            raise ValueError(rest)
        return ImageCondition(
            path=Path(path),
            frame=int(parts[0]),
            strength=float(parts[1]) if len(parts) > 1 else 1.0,
            crf=int(parts[2]) if len(parts) > 2 else None,
        )
    except OptionError:
        raise
    except ValueError as error:
        raise OptionError(
            f"--image {text!r} is not FILE[@FRAME[:STRENGTH[:CRF]]]; an example: photo.png@0:0.8"
        ) from error


def config_of(options: argparse.Namespace) -> GenerationConfig:
    """The command line as a `GenerationConfig`; what has no flag keeps its default, and the size
    is the pipeline's.
    """
    names = [f.name for f in dataclasses.fields(GenerationConfig) if hasattr(options, f.name)]
    images = tuple(parse_image(text) for text in options.images)
    values = {n: value for n in names if (value := getattr(options, n)) is not None}
    if options.auto_duration is not None:
        low, high = options.auto_duration
        if isinstance(options.num_frames, int):
            raise OptionError(
                f"--auto-duration leaves the number of frames open, --num-frames "
                f"{options.num_frames} fixes it; give one of them."
            )
        values["num_frames"] = AutoDuration(min_s=low, max_s=high)
    size = zip(("height", "width"), pipeline_class(options.pipeline).default_size, strict=True)
    values = dict(size) | values
    loras = tuple(parse_lora(text) for text in options.loras)
    return GenerationConfig(**{**values, "images": images, "loras": loras})


def run(options: argparse.Namespace) -> int:
    result = generate(options)
    if options.json:
        print_json(result)
    else:
        if "width" in result:
            what = (
                f"{result['num_frames']} frames of {result['width']}x{result['height']} at "
                f"{result['frame_rate']:g} fps"
            )
        else:
            what = f"{result['duration_s']:.2f} s of sound"
        print(
            f"{result['output']}: {what}, seed {result['seed']}, bundle {result['bundle']}, "
            f"ltx2rt {result['ltx2rt_version']}"
        )
    return 0


def generate(options: argparse.Namespace) -> dict[str, Any]:
    """Check everything that can be checked, generate, write; returns what was made and how long it
    took.
    """
    from ltx2rt.media.files import check_file_path, check_fragmented, check_output_path
    from ltx2rt.pipelines.exr_checks import exr_folder
    from ltx2rt.pipelines.guided import GuidedPipeline

    pipeline = pipeline_class(options.pipeline)
    config = config_of(options)
    guidance_flags.check_flags(options)
    inputs = input_flags.inputs_of(options, pipeline)
    kind = check_output_path(options.output, *pipeline.output_kinds(inputs))
    is_hdr = config.hdr is not None or pipeline.makes_exr
    if is_hdr:
        check_output_path(exr_folder(options.output), "frames")
    if options.fragmented:
        check_fragmented(options.output)
        if is_hdr or kind == "image":
            raise OptionError("--fragmented is for video of ordinary dynamic range; leave it out.")
    if options.audio_output is not None:
        check_output_path(options.audio_output, "audio")
    if options.save_latents is not None:
        check_file_path(options.save_latents)
    runtime = RuntimeConfig(
        threads=options.threads,
        residency=options.residency,
        max_batch_size=options.max_batch_size,
    )
    bundle = open_bundle(options.bundle, weights_dir=options.weights_dir)
    job = Job(ProgressPrinter(quiet=options.quiet))
    with pipeline(bundle, runtime) as pipe:
        guidance = None
        if isinstance(pipe, GuidedPipeline):
            guidance = guidance_flags.guidance_of(options, pipe)
        clip = pipe(config, guidance, inputs, job=job)
        if options.save_latents is not None:
            clip.save_latents(options.save_latents)
        clip.save(options.output, fragmented=options.fragmented)
        if options.audio_output is not None:
            clip.save_audio(options.audio_output)
        if pipeline.makes == "video":
            size = {"num_frames": clip.num_frames, "height": clip.height, "width": clip.width}
        else:
            size = {
                "num_frames": clip.config.frame_count,
                "duration_s": clip.audio.shape[1] / clip.audio_sampling_rate,
            }
        return {
            "output": str(options.output),
            **clip.metadata(),
            "seed": config.seed,
            **size,
            "frame_rate": clip.frame_rate,
            "timings_s": {k: round(v, 3) for k, v in job.timings_s.items()},
        }
