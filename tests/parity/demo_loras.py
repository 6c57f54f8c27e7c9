"""Small LoRAs for the demo model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ltx2rt.lora.adapter import lora_targets
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile
from ltx2rt.weights.safetensors_writer import Stream, bfloat16, write_safetensors
from ltx2rt_export.checkpoint import open_model

RANK = 2


#: key style -> scale that its files stand for, at rank 2
STYLES = {"official": 1.0, "bare": 1.0, "kohya": 0.5, "peft": 2.0, "diffusers": 1.5}
_DIFFUSERS = {"patchify_proj": "proj_in", "adaln_single": "time_embed"}


def restyle_lora(official: Path, folder: Path, style: str) -> Path:
    """A copy of an official-format LoRA in another key style, in a folder of its own; its alphas
    scale it by `STYLES[style]`.
    """
    folder.mkdir()
    file, maps = SafetensorsFile(official), MappedFiles()
    scale = STYLES[style]
    tensors: dict[str, np.ndarray | Stream] = {}
    metadata = {}
    for name, entry in file.items():
        module, half = name.removeprefix("diffusion_model.").rsplit(".lora_", 1)
        match style:
            case "bare":
                new = f"{module}.lora_{half}"
            case "kohya":
                flat = "lora_unet_" + module.replace(".", "_")
                new = flat + (".lora_down.weight" if half == "A.weight" else ".lora_up.weight")
                tensors[f"{flat}.alpha"] = np.array(scale * RANK, np.float32)
            case "peft":
                new = f"base_model.model.{module}.lora_{half[0]}.default.weight"
            case "diffusers":
                head, dot, rest = module.partition(".")
                new = f"transformer.{_DIFFUSERS.get(head, head)}{dot}{rest}.lora_{half}"
            case _:
                new = name
        tensors[new] = entry.dtype, entry.shape, (maps.raw(entry).tobytes(),)
    config = {"r": RANK, "lora_alpha": scale * RANK}
    if style == "peft":
        (folder / "adapter_config.json").write_text(json.dumps(config))
    if style == "diffusers":
        metadata["lora_adapter_metadata"] = json.dumps(
            {f"transformer.{k}": v for k, v in config.items()}
        )
    write_safetensors(folder / "lora.safetensors", tensors, metadata)
    return folder


def write_demo_lora(
    path: Path, model: dict[str, Path], seed: int, metadata: dict[str, str] | None = None
) -> Path:
    """A LoRA of every linear of the demo model's transformer, in the official format."""
    targets = lora_targets(open_model(**model).tensors("transformer"))
    random = np.random.default_rng(seed)
    linears = {
        n.removesuffix(".weight"): s
        for n, s in targets.items()
        if n.endswith(".weight") and len(s) == 2
    }
    tensors = {}
    for module, (out, width) in linears.items():
        down = random.standard_normal((RANK, width)) / width**0.5
        up = random.standard_normal((out, RANK)) * 0.3
        tensors[f"diffusion_model.{module}.lora_A.weight"] = bfloat16(down)
        tensors[f"diffusion_model.{module}.lora_B.weight"] = bfloat16(up)
    write_safetensors(path, tensors, metadata)
    return path
