"""What reads hostile input, and a good input to begin with, each in a folder of its own."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from PIL import Image

from ltx2rt.bundle.component_options import option_problems
from ltx2rt.bundle.load_weights import weight_problems
from ltx2rt.bundle.manifest import content_id, read_manifest
from ltx2rt.cli.batch import DEFAULTS, SHARED, _lines, read_jobs
from ltx2rt.cli.job_file import read_job
from ltx2rt.cli.long import read_plan
from ltx2rt.cli.outputs import Outputs
from ltx2rt.cli.requests import asked_of
from ltx2rt.components.embeddings import check_embeddings, read_embeddings
from ltx2rt.components.enhance import _answer_in
from ltx2rt.components.tokenizer import Tokenizer
from ltx2rt.config import GenerationConfig
from ltx2rt.errors import OptionError
from ltx2rt.lora.adapter import parse_lora
from ltx2rt.media.reader import read_tags, read_video_frames
from ltx2rt.media.sound import read_audio
from ltx2rt.media.still_reader import load_image
from ltx2rt.media.writer import VideoWriter, write_audio
from ltx2rt.pipelines.request import Request
from ltx2rt.results.record import RECORD_TAG, Record, read_record, record_in, record_text
from ltx2rt.service.http.forms import parse_body, read_fields
from ltx2rt.service.limits import Limits
from ltx2rt.service.requests import read_order
from ltx2rt.service.sources import Allowed, Sources
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile
from ltx2rt.weights.safetensors_writer import write_safetensors
from ltx2rt_export.layouts.gguf_file import open_gguf
from tests.unit.manifests import MANIFEST

RECORD = Record(pipeline="distilled", request=Request(config=GenerationConfig(prompt="a")))
JOB = {
    "prompt": "a", "seed": [1, 2], "height": 64, "width": 64, "num_frames": 9, "lora": "l:0.5",
    "image": ["i.png@0:0.5"], "sampler": "euler", "sigmas": [1, 0.5, 0], "output": "o.mp4",
    "tiling": "512x64:64x24", "record": json.loads(record_text(RECORD)),
}  # fmt: skip
PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAEElEQVR4nGP4z8AARAwQ"
    "CgAf7gP9i18U1AAAAABJRU5ErkJggg=="
)
ORDER = {
    "schema": 1, "pipeline": "distilled",
    "config": {
        "prompt": "a", "height": 64, "width": 64, "num_frames": 9, "seed": 1,
        "images": [{"path": PICTURE, "frame": 0, "strength": 0.5}],
    },
}  # fmt: skip
PLAN = {"height": 64, "width": 64, "num_frames": 25, "segments": [{"prompt": "a"}, {"prompt": "b"}]}


@dataclass(frozen=True)
class Target:
    """What is attacked.

    Attributes:
        name: of the file that it reads.
        seed: makes a good one in a folder.
        read: reads it, in full.
    """

    name: str
    seed: Callable[[Path], bytes]
    read: Callable[[Path], Any]


def _written(name: str, write: Callable[[Path], Any]) -> Callable[[Path], bytes]:
    def seed(folder: Path) -> bytes:
        path = folder / name
        write(path)
        data = path.read_bytes()
        path.unlink()
        return data

    return seed


def _manifest(path: Path) -> None:
    with contextlib.suppress(ValueError, RecursionError, AttributeError, KeyError, TypeError):
        data = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(data | {"bundle_id": content_id(data)}))  # as an attacker would
    manifest = read_manifest(path.parent)
    weight_problems(manifest)
    for name, entry in manifest.components.items():
        option_problems(name, entry.options)


def _weights(path: Path) -> None:
    file, maps = SafetensorsFile(path), MappedFiles()
    for entry in file.values():
        maps.raw(entry)


def _lora(path: Path) -> None:
    parse_lora(SafetensorsFile(path), {"transformer_blocks.0.attn1.to_q.weight": (4, 6)})


def _embeddings(path: Path) -> None:
    check_embeddings(path, {"video_context": 4, "audio_context": 4}, "")
    read_embeddings(path, 1)


def _job(path: Path) -> None:
    given, record = read_job(path)
    asked_of(given, record)


def _batch(path: Path) -> None:
    options = argparse.Namespace(jobs=path, output=path.parent / "out", resume=True)
    for key in (*DEFAULTS, *SHARED):
        setattr(options, key, None)
    jobs, _ = read_jobs(_lines(path), options)
    for job in jobs:
        assert isinstance(job.output, Outputs)


def _order(path: Path) -> None:
    folder = path.parent / "job"
    sources = Sources(folder=folder, allowed=Allowed(), limits=Limits())
    try:
        read_order(parse_body(path.read_bytes()), sources)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # as the service does: a job's own files


def _video_request(path: Path) -> None:
    data = parse_body(path.read_bytes())
    if not isinstance(data, dict):
        raise OptionError("not an object")  # as the door says
    read_fields(data)


def _plan(path: Path) -> None:
    read_plan(path, {})


def _gguf_file(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "ltxv")
    writer.add_tensor("a.weight", np.ones((2, 64), np.float16))
    writer.add_tensor(
        "b.weight",
        gguf.quants.quantize(np.ones((2, 64), np.float32), gguf.GGMLQuantizationType.Q8_0),
        raw_dtype=gguf.GGMLQuantizationType.Q8_0,
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf(path: Path) -> None:
    maps = MappedFiles()
    for entry in open_gguf(path)[1].values():
        maps.values(entry)


def _clip(path: Path) -> None:
    tags = {RECORD_TAG: record_text(RECORD)}
    sound = np.zeros((2, 8000), np.float32)
    with VideoWriter(path, 32, 32, 8, (sound, 16000), metadata=tags) as writer:
        writer.write(np.zeros((4, 32, 32, 3), np.uint8))


def _video(path: Path) -> None:
    read_tags(path)
    read_video_frames(path, 4)


def _lora_file(path: Path) -> None:
    name = "diffusion_model.transformer_blocks.0.attn1.to_q"
    down, up = np.ones((2, 6), np.float32), np.ones((4, 2), np.float32)
    tensors = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    write_safetensors(path, tensors, {"lora_alpha": "8", "format": "pt"})


def _embeddings_file(path: Path) -> None:
    tensors = {n: np.zeros((1, 8, 4), np.float32) for n in ("video_context", "audio_context")}
    write_safetensors(path, tensors, {"prompts": '["a"]', "text_encoder": "x"})


TARGETS: Mapping[str, Target] = {
    "manifest": Target(
        "manifest.json", lambda _: json.dumps(dataclasses.asdict(MANIFEST)).encode(), _manifest
    ),
    "safetensors": Target(
        "w.safetensors",
        _written(
            "w.safetensors", lambda p: write_safetensors(p, {"a": np.ones((3, 2))}, {"k": "v"})
        ),
        _weights,
    ),
    "lora": Target("l.safetensors", _written("l.safetensors", _lora_file), _lora),
    "embeddings": Target(
        "e.safetensors",
        _written("e.safetensors", _embeddings_file),
        _embeddings,
    ),
    "job": Target("j.json", lambda _: json.dumps(JOB).encode(), _job),
    "job (TOML)": Target("j.toml", lambda _: b'prompt = "a"\nseed = [1]\nheight = 64\n', _job),
    "batch": Target("j.jsonl", lambda _: b"\n".join([json.dumps(JOB).encode()] * 2), _batch),
    "record": Target(
        "r.json",
        lambda _: record_text(RECORD).encode(),
        lambda p: read_record(p.read_text("utf-8", "surrogateescape"), "r"),
    ),
    "clip as a job": Target("c.mp4", _written("c.mp4", _clip), record_in),
    "video": Target("v.mp4", _written("v.mp4", _clip), _video),
    "sound": Target(
        "s.wav",
        _written("s.wav", lambda p: write_audio(p, np.zeros((2, 2000), np.float32), 16000, {})),
        read_audio,
    ),
    "image": Target(
        "i.png", _written("i.png", lambda p: Image.new("RGB", (9, 7), "red").save(p)), load_image
    ),
    "image (JPEG)": Target(
        "i.jpg", _written("i.jpg", lambda p: Image.new("RGB", (9, 7), "red").save(p)), load_image
    ),
    "tokenizer": Target(
        "tokenizer.json",
        lambda _: json.dumps({"version": "1.0", "model": {"type": "BPE"}}).encode(),
        Tokenizer.from_file,
    ),
    "request to a server": Target("r.json", lambda _: json.dumps(ORDER).encode(), _order),
    "request of the video API": Target(
        "v.json",
        lambda _: json.dumps(
            {"prompt": "a", "size": "64x64", "seconds": "1", "seed": 3, "config": {"num_frames": 9}}
        ).encode(),
        _video_request,
    ),
    "plan of a long clip": Target("p.json", lambda _: json.dumps(PLAN).encode(), _plan),
    "GGUF": Target("g.gguf", _written("g.gguf", _gguf_file), _gguf),
    "answer of an enhancer": Target(
        "a.json",
        lambda _: json.dumps({"choices": [{"message": {"content": "A lake."}}]}).encode(),
        lambda p: _answer_in(p.read_bytes(), "http://h"),
    ),
}
