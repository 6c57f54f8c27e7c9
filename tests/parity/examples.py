"""Examples run as they are written, on the demo bundle: clips of its size, in a folder with files
of the names that examples use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ltx2rt.backends import onnxruntime
from ltx2rt.backends.onnxruntime import OrtOptions
from ltx2rt.config import GenerationConfig
from ltx2rt.engine import Array
from ltx2rt.media.writer import VideoWriter, write_audio
from ltx2rt.pipelines.catalog import PIPELINES, catalog_class
from ltx2rt.pipelines.distilled import DistilledPipeline
from tests.parity.demo_loras import write_demo_lora

SIDE, FRAMES, RATE = 64, 9, 24


def use_demo_sizes(patch: pytest.MonkeyPatch) -> None:
    """What names no size is as small as the demo model's clips, and sampled in few steps."""
    usual = GenerationConfig.__init__.__kwdefaults__
    small = {**usual, "height": SIDE, "width": SIDE, "num_frames": FRAMES}
    patch.setattr(GenerationConfig.__init__, "__kwdefaults__", small)
    usually = DistilledPipeline.defaults

    def quick(inputs: Any, given: Mapping[str, Any]) -> dict[str, Any]:
        steps = {"sigmas": (1.0, 0.5, 0.0), "stage_2_sigmas": (0.9, 0.0)}
        return {**usually(inputs, given), **steps}

    patch.setattr(DistilledPipeline, "defaults", staticmethod(quick))
    for name in PIPELINES:
        if catalog_class(name).default_size is not None:
            patch.setattr(catalog_class(name), "default_size", (SIDE, SIDE))


_SESSIONS: dict[str, tuple[Any, Mapping[str, Array]]] = {}


def keep_sessions(patch: pytest.MonkeyPatch) -> None:
    """Sessions of ONNX Runtime are created once a process, whoever asks again: most of what a small
    clip takes is to load its engines.
    """

    def kept(
        graph: bytes, component: str, weights: Mapping[str, Array], options: OrtOptions
    ) -> Any:
        key = hashlib.sha256(graph)
        for name, array in sorted(weights.items()):
            key.update(name.encode())
            key.update(np.ascontiguousarray(array).data)
        if key.hexdigest() not in _SESSIONS:
            made = onnxruntime.new_session(graph, component, weights, options)
            _SESSIONS[key.hexdigest()] = made, weights
        return _SESSIONS[key.hexdigest()][0]

    defaults = onnxruntime.OrtEngine.__init__.__defaults__
    changed = tuple(kept if value is onnxruntime.new_session else value for value in defaults)
    patch.setattr(onnxruntime.OrtEngine.__init__, "__defaults__", changed)


def write_media(folder: Path, model: dict[str, Path]) -> None:
    """`first.png`, `last.png`, `in.mp4`, `a.mp4`, `b.mp4`, `depth.mp4`, `talk.wav`, LoRAs."""
    pixels = np.random.default_rng(0).integers(0, 255, (2 * FRAMES, SIDE, SIDE, 3), np.uint8)
    for number, name in enumerate(("first", "last")):
        Image.fromarray(pixels[number]).save(folder / f"{name}.png")
    time = np.arange(48_000, dtype=np.float32) / 48_000
    sound = np.stack([np.sin(880 * time), np.cos(660 * time)]).astype(np.float32)
    for name in ("in", "a", "b", "depth"):
        with VideoWriter(folder / f"{name}.mp4", SIDE, SIDE, RATE, (sound, 48_000)) as writer:
            writer.write(pixels)
    write_audio(folder / "talk.wav", sound, 48_000)
    write_demo_lora(folder / "style.safetensors", model, 1)
