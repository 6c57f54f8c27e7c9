"""`ltx2rt client --prompt "..." -o out.mp4`: generate on a server, saved while it is made."""

from __future__ import annotations

import argparse
import base64
import json
import sys
from pathlib import Path
from typing import Any

from ltx2rt.cli.common import print_json, split_strength, text_or_file
from ltx2rt.cli.job_file import read_table
from ltx2rt.cli.preview import check_preview
from ltx2rt.cli.progress import add_progress_flags, printer_of
from ltx2rt.config import GenerationConfig
from ltx2rt.env import api_key
from ltx2rt.errors import OptionError
from ltx2rt.media.files import OutputFile, OutputPipe, check_file_path
from ltx2rt.progress import Progress
from ltx2rt.service.clients import Client, HttpClient, TritonClient, data_url
from ltx2rt.service.http.forms import frames_of
from ltx2rt.service.requests import DEFAULT_PIPELINE
from ltx2rt.service.schema import request_schema

STDOUT = Path("-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of `ltx2rt serve`")
    parser.add_argument("--triton", metavar="HOST:PORT", help="gRPC of a Triton server, instead")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="-: standard output")
    parser.add_argument("--request", type=Path, metavar="FILE", help="JSON or TOML of the schema")
    parser.add_argument("--schema", action="store_true", help="print the schema of requests, stop")
    parser.add_argument("--prompt", type=text_or_file, metavar="TEXT")
    parser.add_argument("--negative-prompt", type=text_or_file, metavar="TEXT")
    parser.add_argument("--model", metavar="NAME", help="one of the server's; default its first")
    parser.add_argument("--pipeline", help=f"default {DEFAULT_PIPELINE}")
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--num-frames", type=int)
    parser.add_argument("--seconds", type=float, help="instead of --num-frames")
    parser.add_argument("--frame-rate", type=float)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--image", type=Path, metavar="FILE", help="what the first frame shows")
    parser.add_argument(
        "--lora", action="append", default=[], metavar="NAME[:STRENGTH]", help="one of the server's"
    )
    parser.add_argument(
        "--preview", type=Path, metavar="FILE", help="a small .webp of it, while it is sampled"
    )
    parser.add_argument(
        "--preview-every", type=int, default=1, metavar="N", help="after every so many-th step"
    )
    parser.add_argument("--stream", action="store_true", help="write a file that plays as it grows")
    parser.add_argument("--json", action="store_true", help="print what was made as JSON")
    add_progress_flags(parser)


def run(options: argparse.Namespace) -> int:
    """Until the clip is saved; an interrupt cancels it on the server too."""
    if options.schema:
        print(json.dumps(request_schema(), indent=2, ensure_ascii=False))
        return 0
    if options.output is None:
        raise OptionError("name an output: -o FILE.")
    request = request_of(options)
    client: Client = HttpClient(options.url, api_key(), options.model)
    if options.triton is not None:
        if options.model is not None:
            raise OptionError("--model is for `ltx2rt serve`: a Triton repository has one bundle.")
        client = TritonClient(options.triton)
    printer = printer_of(options)
    result: dict[str, Any] = {}

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            names = ("stage", "step", "total", "elapsed_s", "eta_s", "detail")
            told = {name: event[name] for name in names}
            printer(Progress(**told, clip_eta_s=event.get("clip_eta_s")))
        elif event["event"] == "result":
            result.update(event)
        elif event["event"] == "preview" and options.preview is not None:
            write_file(options.preview, base64.b64decode(event["webp"]))

    sink: OutputFile | OutputPipe
    if options.output == STDOUT:
        sink = OutputPipe(sys.stdout.buffer)
    else:
        check_file_path(options.output)
        sink = OutputFile(options.output, in_place=options.stream)
    pieces = client.generate(request, on_event)
    try:
        for piece in pieces:
            with sink.guard():
                sink.write(piece)
        sink.commit()
    finally:
        pieces.close()  # type: ignore[attr-defined]
        if not sink.complete:
            sink.discard()
    if options.output != STDOUT:
        made = result.get("ltx2rt", result)
        if options.json:
            print_json({"output": str(options.output), **made})
        else:
            print(f"{options.output}: {made['num_frames']} frames, seed {made['seed']}")
    return 0


def write_file(path: Path, data: bytes) -> None:
    """A file that is always a whole one, over the one before."""
    with OutputFile(path) as file, file.guard():
        file.write(data)


def request_of(options: argparse.Namespace) -> dict[str, Any]:
    """What the flags ask for, on top of a file."""
    request = {} if options.request is None else read_table(options.request)
    config = dict(request.get("config", {}))
    for name in ("prompt", "height", "width", "num_frames", "frame_rate", "seed"):
        if (value := getattr(options, name)) is not None:
            config[name] = value
    if options.seconds is not None:
        if options.num_frames is not None:
            raise OptionError("--seconds and --num-frames exclude each other.")
        rate = config.get("frame_rate", GenerationConfig(prompt="a").frame_rate)
        config["num_frames"] = frames_of(options.seconds, rate)
    if options.image is not None:
        config["images"] = [{"path": data_url(options.image)}]
    if options.lora:
        pairs = map(split_strength, options.lora)
        config["loras"] = [{"path": name, "strength": strength} for name, strength in pairs]
    request["config"] = config
    if options.pipeline is not None:
        request["pipeline"] = options.pipeline
    if options.negative_prompt is not None:
        guidance = request.get("guidance") or {}
        request["guidance"] = {**guidance, "negative_prompt": options.negative_prompt}
    if options.preview is not None:
        if options.preview.suffix.lower() != ".webp":
            raise OptionError(f"--preview {options.preview} is not the name of a .webp file.")
        if options.preview_every < 1:
            raise OptionError(f"--preview-every {options.preview_every} is less than 1.")
        check_preview(options.preview)
        request["preview"] = options.preview_every
    return request
