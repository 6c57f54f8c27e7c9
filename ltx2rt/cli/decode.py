"""`ltx2rt decode BUNDLE LATENTS -o out.mp4`: latents that were saved, decoded in any way."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.cli.common import print_json
from ltx2rt.cli.fields import all_flags, spell
from ltx2rt.cli.generate import given_in
from ltx2rt.cli.outputs import Outputs
from ltx2rt.cli.progress import printer_of
from ltx2rt.config import RuntimeConfig
from ltx2rt.errors import OptionError
from ltx2rt.pipelines.base import pipeline_class
from ltx2rt.pipelines.kept import open_latents
from ltx2rt.plain_data import from_plain
from ltx2rt.progress import Job
from ltx2rt.results.latent_file import LatentFile

__all__ = ["add_arguments", "run", "spell"]

OUTPUT = ("output", "stream", "frames", "audio_output", "codec", "quality", "preset", "encoder")
RUNTIME = ("threads", "device")
FLAGS = (*OUTPUT, *RUNTIME, "tiling", "weights_dir", "quiet", "progress", "json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "latents",
        type=Path,
        metavar="LATENTS",
        help="a file of `--save-latents`, or of musubi-tuner's cache (*_ltx2.safetensors)",
    )
    parser.add_argument(
        "--stage", metavar="NAME", help="decode those of this stage, such as stage_1"
    )
    parser.add_argument(
        "--frame-rate", type=float, metavar="FPS", help="of a trainer's latents (default 24)"
    )
    for key in FLAGS:
        flag = all_flags()[key]
        parser.add_argument(*flag.names, **flag.arguments())


def run(options: argparse.Namespace) -> int:
    given = given_in(options)

    def part(keys: tuple[str, ...]) -> dict[str, object]:
        flags = {key: all_flags()[key] for key in keys if key in given}
        return {f.places[0].partition(".")[2]: f.read(given[k]) for k, f in flags.items()}

    output = from_plain(Outputs, part(OUTPUT), "the output")
    runtime = from_plain(RuntimeConfig, part(RUNTIME), "how to run")
    file = LatentFile(options.latents)
    output.check(pipeline_class(file.record.pipeline), file.record.request)
    if output.clip is not None and output.clip.resolve() == options.latents.resolve():
        raise OptionError(f"'{output.clip}' holds the latents; choose another name.")
    bundle = open_bundle(options.bundle, weights_dir=options.weights_dir)
    with open_latents(
        bundle,
        options.latents,
        stage=options.stage,
        tiling=options.tiling,
        frame_rate=options.frame_rate,
        runtime=runtime,
        job=Job(printer_of(options)),
    ) as clip:
        output.write(clip)
        stream = sys.stderr if output.is_stdout else sys.stdout
        if options.json:
            print_json({"output": str(output.paths[0]), **clip.metadata()}, stream)
        else:
            print(
                f"{output.paths[0]}: {clip.num_frames} frames of {clip.width}x{clip.height} at "
                f"{clip.frame_rate:g} fps, from {options.latents}",
                file=stream,
            )
    return 0
