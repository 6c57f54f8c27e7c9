"""What the command line says of a field otherwise than its dataclass: names, texts, how values are
written.
"""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltx2rt.cli.common import parse_device, parse_devices, split_strength, text_or_file
from ltx2rt.config import HDR_MODES
from ltx2rt.errors import OptionError
from ltx2rt.pipelines.catalog import PIPELINES

AUTO = "auto"
RANDOM = "random"

WHAT = "what to make"
SAMPLING = "sampling (default: the pipeline's)"
SIZE = "pixels, even; default: the pipeline's"
LONG = "long runs"
ENHANCE = "prompt enhancement"
GUIDED = "guidance (for guided pipelines)"


def parse_frames(text: str) -> int | str:
    """`121` or `auto`."""
    if text == AUTO:
        return AUTO
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"invalid int value: {text!r}; or {AUTO}") from error


def parse_seeds(text: str) -> list[int]:
    """`7`, `1,2,3`, or `random`: a seed that nobody knows before, which the clip tells."""
    if text.strip().lower() == RANDOM:
        return [secrets.randbits(32)]
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"invalid int value: {text!r}") from error


def file_with_strength(text: str) -> dict[str, Any]:
    """`FILE[:STRENGTH]`."""
    path, strength = split_strength(text)
    return {"path": path} if path == text else {"path": path, "strength": strength}


def image(text: str) -> dict[str, Any]:
    """`FILE[@FRAME[:STRENGTH[:CRF]]]`."""
    path, at, rest = text.rpartition("@")
    if not at or not path or Path(text).exists():  # a name like photo@2x.png
        return {"path": text}
    parts = rest.split(":")
    readers = {"frame": int, "strength": float, "crf": int}
    try:
        numbers = {
            name: read(part) for (name, read), part in zip(readers.items(), parts, strict=False)
        }
        if len(parts) > len(readers):
            raise ValueError(rest)
    except ValueError as error:
        raise OptionError(
            f"--image {text!r} is not FILE[@FRAME[:STRENGTH[:CRF]]]; an example: photo.png@0:0.8"
        ) from error
    return {"path": path, **numbers}


def neighbour(text: str) -> dict[str, Any]:
    """`FILE[@FRAMES]`."""
    path, at, frames = text.rpartition("@")
    if not at or not path or Path(text).exists():
        return {"path": text}
    try:
        return {"path": path, "frames": int(frames)}
    except ValueError as error:
        raise OptionError(f"{text!r} is not FILE[@FRAMES]; an example: before.mp4@25") from error


def window(text: str) -> dict[str, Any]:
    """`START-END`, in seconds."""
    start, dash, end = text.partition("-")
    try:
        if not dash:
            raise ValueError(text)
        return {"start": float(start), "end": float(end)}
    except ValueError as error:
        raise OptionError(f"{text!r} is not START-END in seconds; an example: 1.5-3") from error


#: place of a field -> what its flag has otherwise than `spelling` says
ROWS: Mapping[str, dict[str, Any]] = {
    "config.prompt": {
        "aliases": ("-p",), "help": "describes the clip; @ names a file that holds the text",
        "metavar": "TEXT|@FILE", "convert": text_or_file,
    },
    "config.seed": {
        "aliases": ("-s",), "help": "one a clip (repeatable), or random", "metavar": "N[,N...]",
        "convert": parse_seeds, "action": "extend", "read": lambda seeds: seeds[0],
    },
    "config.height": {"help": SIZE},
    "config.width": {"help": SIZE},
    "config.num_frames": {
        "help": "8k+1, or auto (LTX-2.5: as the prompt needs)", "convert": parse_frames,
        "read": lambda frames: {} if frames == AUTO else frames,
    },
    "config.images": {
        "name": "--image", "help": "show an image, or a short video, at a frame (repeatable); "
        "default frame 0, strength 1",
    },
    "config.tiling": {
        "metavar": "HOW", "help": "decode in tiles to bound memory: auto, none, SIDExFRAMES or "
        "WIDTHxHEIGHTxFRAMES, with overlaps such as 512x64:64x24",
    },
    "config.loras": {
        "name": "--lora", "help": "merge a LoRA in memory (repeatable); strength 1 if omitted",
    },
    "config.generated_keyframes": {
        "name": "--num-generated-keyframes",
        "help": "LTX-2.5: single frames that stage 1 makes along with the clip",
    },
    "config.hdr": {
        "convert": str.upper, "choices": HDR_MODES, "metavar": None, "help": "high dynamic range: "
        "EXR images and references in, EXR frames and an HLG video out",
    },
    "config.sampler": {"group": SAMPLING, "help": "how steps of stage 1 are taken"},
    "config.sigmas": {
        "group": SAMPLING, "help": "noise levels of stage 1, falling, ending in 0"
    },
    "config.stage_2_sampler": {"group": SAMPLING, "help": "how steps of stage 2 are taken"},
    "config.stage_2_sigmas": {
        "group": SAMPLING, "help": "noise levels of stage 2, falling, ending in 0"
    },
    "config.noise": {
        "group": SAMPLING, "metavar": "GPU", "help": "draw noise as the official pipelines do on "
        "this GPU: a100, h100, h200, b200, rtx4090, rtx5090, or multiprocessors and threads of "
        "each (132x2048); default: cpu, the same noise everywhere",
    },
    "config.stage_2_tile": {
        "metavar": "SIZE", "help": "stage 2 in overlapping tiles no larger than this, such as "
        "1920x1088 or 1080p: for 1440p and 4k"
    },
    "config.stage_2_loras": {
        "name": "--stage-2-lora", "help": "in stage 2 these instead of those of --lora: others, or "
        "other strengths; strength 0 for none (repeatable)",
    },
    "config.with_audio": {"name": "--audio", "help": "make the picture alone: quicker"},
    "config.embeddings": {
        "help": "text contexts from a file instead of --prompt and the text encoder"
    },
    "guidance.negative_prompt": {
        "help": "what the clip must not be, or @ and a file of it; default: a list of artefacts",
        "metavar": "TEXT|@FILE", "convert": text_or_file,
    },
    "guidance.video_schedule": {
        "name": "--guidance-schedule", "is_path": True, "metavar": "FILE",
        "places": ("guidance.video_schedule", "guidance.audio_schedule"), "help": "guidance by "
        'noise level, JSON: {"video": {"1.0": {"cfg_scale": 5}, "0.5": {}}}',
    },
    "guidance.distilled_lora": {
        "help": "two-stage pipelines need one; strength 1 if omitted",
    },
    "guidance.video.cfg_mode": {
        "help": "how the difference to the negative prompt is used"
    },
    "inputs.video_parts": {
        "name": "--video-part", "help": "a part whose picture alone is made anew (repeatable)"
    },
    "inputs.audio_parts": {
        "name": "--audio-part", "help": "a part whose sound alone is made anew (repeatable)"
    },
    "inputs.regenerate_video": {"help": "keep the video of the source"},
    "inputs.regenerate_audio": {"help": "keep the audio of the source"},
    "inputs.references": {
        "name": "--reference", "help": "a video that the clip follows (repeatable); strength 1 if "
        "omitted; hdr-ic-lora: the first gives size, frames and frame rate unless they are named",
    },
    "runtime.device": {"convert": parse_device, "metavar": "N|cuda:N"},
    "runtime.devices": {
        "convert": parse_devices, "action": "extend", "count": None, "metavar": "N,N[,...]",
        "help": "GPUs by number: guidance passes of a step side by side, all else on the first",
    },
    "runtime.residency": {"choices": ("stage", "resident"), "metavar": None},
    "runtime.kernels": {"choices": ("eager", "none", "lazy"), "metavar": None},
    "output.clip": {"name": "--output", "aliases": ("-o",)},
    "output.quality": {"metavar": "N"},
    "output.preset": {"metavar": "NAME"},
    "output.stream": {"aliases": ("--fragmented",)},
    "output.frames": {"metavar": "DIR"},
    "output.audio": {"name": "--audio-output"},
    "output.latents": {"name": "--save-latents"},
    "enhance.url": {
        "name": "--enhance-url", "metavar": "URL", "help": "an endpoint that speaks the OpenAI "
        "protocol, such as http://127.0.0.1:8080/v1; its key is read from LTX2RT_ENHANCE_KEY, "
        "which goes to no address that a file names, unless LTX2RT_ENHANCE_URL names the same host",
    },
    "enhance.model": {
        "name": "--enhance-model", "metavar": "NAME|DIR", "help": "the model's name there; without "
        "--enhance-url the folder of a transformers model; without either the bundle's own Gemma 3 "
        "writes",
    },
    "enhance.insecure": {"name": "--enhance-insecure"},
    "enhance.timeout_s": {"name": "--enhance-timeout", "metavar": "S"},
    "run.pipeline": {
        "group": "", "choices": tuple(PIPELINES), "metavar": None
    },
    "run.num_videos": {"group": WHAT},
    "run.save_embeddings": {"group": WHAT},
    "run.enhance_prompt": {"group": ENHANCE},
    "run.json": {"group": ""},
    "run.weights_dir": {"metavar": "DIR"},
    "run.trace": {"group": LONG},
    "run.work_dir": {"group": LONG, "metavar": "DIR"},
    "run.resume": {"group": LONG},
}  # fmt: skip
