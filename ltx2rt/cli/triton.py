"""`ltx2rt triton BUNDLE -o REPO`: a model repository for Triton Inference Server."""

from __future__ import annotations

import argparse
from pathlib import Path

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.cli.common import parse_devices, print_json
from ltx2rt.errors import OptionError
from ltx2rt.names import TEXT_ENCODER
from ltx2rt.pipelines.distilled import DistilledPipeline
from ltx2rt.service.triton.repository import RepositoryConfig, write_repository


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--instances", type=int, default=1, help="a GPU; each holds its weights")
    parser.add_argument("--gpus", type=parse_devices, default=(), metavar="N,N", help="default all")
    parser.add_argument(
        "--text-gpus", type=parse_devices, default=(), metavar="N,N",
        help="of the model that only encodes prompts; default those of --gpus",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=0, help="CPU threads per engine; 0: all")
    parser.add_argument("--max-queue", type=int, default=100, help="requests that may wait")
    parser.add_argument(
        "--timeout", type=float, default=0.0, metavar="S", help="seconds one may wait; 0: any"
    )
    parser.add_argument(
        "--media-dir", type=Path, metavar="DIR", help="media that requests may name"
    )
    parser.add_argument("--lora-dir", type=Path, metavar="DIR", help="LoRAs that requests may name")
    parser.add_argument(
        "--weights-dir", type=Path, metavar="DIR", help="where weight files are now"
    )
    parser.add_argument(
        "--warm-up", type=parse_clip_size, metavar="WxHxN",
        help="make such a clip while a model is loaded: the first request finds everything ready",
    )  # fmt: skip
    parser.add_argument(
        "--environment", type=Path, metavar="PATH",
        help="Python environment of the models: a folder, or an archive (EXECUTION_ENV_PATH)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the files as one JSON document")


def parse_clip_size(text: str) -> tuple[int, int, int]:
    """`768x512x121`: width, height and frames."""
    parts = text.split("x")
    if len(parts) != 3 or not all(p.isascii() and p.isdigit() and len(p) < 6 for p in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHTxFRAMES, as 768x512x121")
    width, height, frames = map(int, parts)
    return width, height, frames


def run(options: argparse.Namespace) -> int:
    bundle = open_bundle(options.bundle, weights_dir=options.weights_dir)
    if options.environment is not None and not options.environment.exists():
        raise OptionError(f"--environment {options.environment} does not exist.")
    config = RepositoryConfig(
        bundle=options.bundle,
        instances=options.instances,
        gpus=tuple(options.gpus),
        text_gpus=tuple(options.text_gpus),
        has_text=bundle.has(*TEXT_ENCODER),
        threads=options.threads,
        max_queue=options.max_queue,
        timeout_s=options.timeout,
        media_dir=options.media_dir,
        lora_dir=options.lora_dir,
        weights_dir=options.weights_dir,
        warm_up=options.warm_up,
        environment=options.environment,
    )
    if config.warm_up is not None:
        width, height, frames = config.warm_up
        with DistilledPipeline(bundle) as pipe:
            pipe.accept(
                pipe.make_request(
                    None, None, None,
                    {"prompt": "-", "width": width, "height": height, "num_frames": frames},
                )
            )  # fmt: skip
    files = [str(options.output / name) for name in write_repository(options.output, config)]
    if options.json:
        print_json({"files": files})
    else:
        print("\n".join(files))
    return 0
