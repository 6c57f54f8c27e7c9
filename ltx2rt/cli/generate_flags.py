"""The flags of `ltx2rt generate`; `--help` after `--pipeline NAME` shows what that one takes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltx2rt.cli import enhancement as enhancement_flags
from ltx2rt.cli import guidance as guidance_flags
from ltx2rt.cli import inputs as input_flags
from ltx2rt.cli import outputs as output_flags
from ltx2rt.cli.common import text_or_file
from ltx2rt.cli.pipelines import facts_of
from ltx2rt.cli.requests import (
    DEFAULT_PIPELINE,
    parse_frames,
    parse_seeds,
)
from ltx2rt.config import HDR_MODES, GenerationConfig, RuntimeConfig
from ltx2rt.pipelines.base import pipeline_class
from ltx2rt.pipelines.catalog import PIPELINES
from ltx2rt.sampling.samplers import SAMPLERS


class HelpAction(argparse.Action):
    """`--help`; after `--pipeline NAME` only what that pipeline takes."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if namespace.pipeline is not None:
            for action in parser._actions:
                if action.dest in not_for(namespace.pipeline):
                    action.help = argparse.SUPPRESS
            parser.description = facts_of(namespace.pipeline)["summary"]
        parser.print_help()
        parser.exit()


def not_for(pipeline: str) -> set[str]:
    """Flags (their `dest`) that a pipeline does not take."""
    cls = pipeline_class(pipeline)
    others = {f.target for f in input_flags.FLAGS if pipeline not in f.pipelines}
    others -= {f.target for f in input_flags.FLAGS if pipeline in f.pipelines}
    others |= {*cls.unused, *guidance_flags.not_for(cls)}
    if not cls.auto_duration:
        others.add("auto_duration")
    if cls.makes == "audio":
        others |= {"stream", "frames"}
    if not cls.two_stage:
        others |= {"stage_2_sampler", "stage_2_sigmas", "stage_2_loras"}
    return others


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every flag defaults to None, so that a job file can fill in what is not given."""
    parser.usage = "%(prog)s BUNDLE [--pipeline NAME] --prompt TEXT -o FILE [...]"
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--pipeline", choices=PIPELINES, help=f"default {DEFAULT_PIPELINE}; see `ltx2rt pipelines`"
    )
    parser.add_argument(
        "--job",
        type=Path,
        metavar="FILE",
        help="flags from a .json or .toml file, or repeat what made an .mp4, .wav, .png, ...; "
        "flags given here win",
    )
    parser.add_argument(
        "--dump-job", type=Path, metavar="FILE", help="write these flags as a job, and stop"
    )
    _add_what(parser)
    enhancement_flags.add_arguments(parser)
    _add_sampling(parser)
    guidance_flags.add_arguments(parser)
    input_flags.add_arguments(parser)
    output_flags.add_arguments(parser)
    add_runtime_arguments(parser)
    parser.add_argument(
        "--residency",
        choices=("stage", "resident"),
        help=f"stage frees engines when their part is done; default {RuntimeConfig().residency}",
    )
    parser.add_argument(
        "--json", action="store_true", default=None, help="print the result as JSON"
    )
    how = parser.add_argument_group("long runs")
    how.add_argument(
        "--work-dir",
        type=Path,
        metavar="DIR",
        help="keep every finished stage here; with --resume OUTPUT.work if left out",
    )
    how.add_argument(
        "--resume",
        action="store_true",
        default=None,
        help="go on after the last finished stage of this same request; clips that it finished "
        "are left alone",
    )


def _add_what(parser: argparse.ArgumentParser) -> None:
    defaults = GenerationConfig.__dataclass_fields__
    what = parser.add_argument_group("what to make")
    what.add_argument(
        "--prompt",
        type=text_or_file,
        metavar="TEXT|@FILE",
        help="describes the clip; @ names a file that holds the text",
    )
    what.add_argument(
        "--seed",
        dest="seeds",
        type=parse_seeds,
        action="extend",
        metavar="N[,N...]",
        help=f"one a clip (repeatable); default {defaults['seed'].default}",
    )
    what.add_argument(
        "--num-videos", type=int, metavar="N", help="clips, with seeds counted up from --seed"
    )
    for side in ("height", "width"):
        what.add_argument(
            f"--{side}",
            type=int,
            metavar="N",
            help="pixels, a multiple of 64 (one stage: 32); default: the pipeline's",
        )
    what.add_argument(
        "--num-frames",
        type=parse_frames,
        metavar="N",
        help="8k+1, or auto (LTX-2.5: as the prompt needs); default "
        f"{defaults['num_frames'].default}",
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
        metavar="X",
        help=f"frames per second; default {defaults['frame_rate'].default}",
    )
    what.add_argument(
        "--image",
        dest="images",
        action="append",
        metavar="FILE[@FRAME[:STRENGTH[:CRF]]]",
        help="show an image at a frame (repeatable); default frame 0, strength 1",
    )
    what.add_argument(
        "--num-generated-keyframes",
        dest="generated_keyframes",
        type=int,
        metavar="N",
        help="LTX-2.5: single frames that stage 1 makes along with the clip; default "
        f"{defaults['generated_keyframes'].default}",
    )
    what.add_argument(
        "--tiling",
        metavar="HOW",
        help="decode in tiles to bound memory: auto, none, SIDExFRAMES or WIDTHxHEIGHTxFRAMES, "
        f"with overlaps such as 512x64:64x24; default {defaults['tiling'].default}",
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
        metavar="FILE[:STRENGTH]",
        help="merge a LoRA in memory (repeatable); strength 1 if omitted",
    )
    what.add_argument(
        "--stage-2-lora",
        dest="stage_2_loras",
        action="append",
        metavar="FILE[:STRENGTH]",
        help="in stage 2 these instead of those of --lora: others, or other strengths; strength 0 "
        "for none (repeatable)",
    )
    what.add_argument(
        "--embeddings",
        type=Path,
        metavar="FILE",
        help="text contexts from a file instead of --prompt and the text encoder",
    )
    what.add_argument(
        "--save-embeddings", type=Path, metavar="FILE", help="write the text contexts of the clip"
    )


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling (default: the pipeline's)")
    for stage, flag in ((1, ""), (2, "stage-2-")):
        group.add_argument(
            f"--{flag}sampler",
            choices=[s.replace("_", "-") for s in SAMPLERS],
            help=f"how steps of stage {stage} are taken",
        )
        group.add_argument(
            f"--{flag}sigmas",
            type=float,
            nargs="+",
            metavar="X",
            help=f"noise levels of stage {stage}, falling, ending in 0",
        )


def add_runtime_arguments(parser: argparse.ArgumentParser) -> None:
    """How to run; shared with `ltx2rt batch`."""
    defaults = RuntimeConfig()
    how = parser.add_argument_group("how to run")
    how.add_argument(
        "--threads", type=int, metavar="N", help=f"0 uses every core; default {defaults.threads}"
    )
    how.add_argument(
        "--max-batch-size",
        type=int,
        metavar="N",
        help=f"guidance passes that run together; default {defaults.max_batch_size}",
    )
    how.add_argument(
        "--weights-dir", type=Path, metavar="DIR", help="where weight files are now, if they moved"
    )
    how.add_argument("--quiet", action="store_true", default=None, help="no progress on stderr")
