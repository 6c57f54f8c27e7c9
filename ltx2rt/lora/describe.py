"""Describe a LoRA from its header alone: format, ranks, what it changes, what it was made for."""

from __future__ import annotations

import re
from typing import Any

from ltx2rt.lora.keys import STYLES, lora_generations, read_lora_keys
from ltx2rt.lora.metadata import file_reference_factors
from ltx2rt.weights.safetensors import SafetensorsFile, read_metadata

#: metadata that is one long text, or says nothing about the adapter
_QUIET = ("config", "license", "format", "lora_adapter_metadata")
_MAX_TEXT = 200


def describe_lora(file: SafetensorsFile) -> dict[str, Any]:
    """What a LoRA file says about itself; JSON-able.

    Raises:
        CheckpointError: an alpha is not a number.
    """
    keys = read_lora_keys(file)
    spatial, temporal = file_reference_factors(file)
    no_lora = ["it holds no LoRA; `ltx2rt inspect` explains other files"]
    alphas = sorted({round(p.scale * p.rank, 4) for p in keys.pairs.values()})
    info: dict[str, Any] = {
        "key_style": STYLES[keys.style],
        "ranks": sorted({p.rank for p in keys.pairs.values()}),
        "alphas": alphas if keys.style not in {"official", "bare"} else [],
        "target_modules": len(keys.pairs),
        "layers": len({m[1] for n in keys.pairs if (m := re.search(r"blocks[._](\d+)[._]", n))}),
        "fits": list(lora_generations(file, keys)),
        "distilled": is_distilled_lora(file),
        "reference_downscale_factor": spatial,
        "reference_temporal_scale_factor": temporal,
        "unsupported": list(keys.unsupported),
        "problems": list(keys.problems) or no_lora * (not keys.pairs and not keys.unsupported),
    }
    for key in ("lora_rank", "lora_alpha"):
        if key in file.metadata:
            info[key] = read_metadata(file, key)
    return info


def short_metadata(file: SafetensorsFile) -> dict[str, str]:
    """The file's metadata without long texts."""
    return {
        key: value
        for key, value in sorted(file.metadata.items())
        if key not in _QUIET and len(value) <= _MAX_TEXT
    }


def distilled_hint(file_name: str) -> bool | None:
    """Whether a file name says distilled (True) or dev (False); None when it says neither."""
    words = set(file_name.lower().replace(".", "-").replace("_", "-").split("-"))
    if "distilled" in words:
        return "lora" not in words
    return False if "dev" in words else None


def is_distilled_lora(file: SafetensorsFile) -> bool:
    """Whether the file name says that this LoRA distils a model (a hint, nothing more)."""
    return distilled_hint(file.path.name.lower().replace("lora", "")) is True
