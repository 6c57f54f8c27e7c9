"""Small LoRAs for the demo model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ltx2rt.lora import lora_targets
from ltx2rt.safetensors_writer import bfloat16, write_safetensors
from ltx2rt_export.checkpoint import open_model

RANK = 2


def write_demo_lora(
    path: Path, model: dict[str, Path], seed: int, metadata: dict[str, str] | None = None
) -> Path:
    """A LoRA of every linear of the demo model's transformer, in the official format."""
    targets = lora_targets(open_model(**model).tensors("transformer"))
    random = np.random.default_rng(seed)
    tensors = {}
    for module, (out, width) in targets.items():
        down = random.standard_normal((RANK, width)) / width**0.5
        up = random.standard_normal((out, RANK)) * 0.3
        tensors[f"diffusion_model.{module}.lora_A.weight"] = bfloat16(down)
        tensors[f"diffusion_model.{module}.lora_B.weight"] = bfloat16(up)
    write_safetensors(path, tensors, metadata)
    return path
