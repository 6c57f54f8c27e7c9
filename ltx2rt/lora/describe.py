"""Describe an adapter from its header alone: format, kinds, strength, what it is made for."""

from __future__ import annotations

import re
from typing import Any

from ltx2rt.lora.generation import lora_generations
from ltx2rt.lora.keys import STYLES, LoraKeys, read_lora_keys
from ltx2rt.lora.metadata import file_reference_factors
from ltx2rt.lora.official_names import official_name
from ltx2rt.lora.products import Factored, Hadamard, Kronecker
from ltx2rt.lora.tensor_names import stem_of
from ltx2rt.lora.updates import Decomposed, LowRank, Update
from ltx2rt.weights.safetensors import SafetensorsFile, read_metadata

#: metadata that is one long text, or says nothing about the adapter
_QUIET = ("config", "license", "format", "lora_adapter_metadata")
_MAX_TEXT = 200


def describe_lora(file: SafetensorsFile) -> dict[str, Any]:
    """What an adapter file says about itself; JSON-able.

    Raises:
        CheckpointError: an alpha is not a number.
    """
    keys = read_lora_keys(file)
    spatial, temporal = file_reference_factors(file)
    no_lora = ["it holds no LoRA; `ltx2rt inspect` explains other files"]
    scaled = [scaled for update in keys.updates.values() if (scaled := _factored(update))]
    names = [target.name for target in keys.updates]
    whole = [n for n in keys.plain if keys.updates and official_name(*stem_of(n)) is not None]
    info: dict[str, Any] = {
        "key_style": STYLES[keys.style],
        "kinds": [*keys.kinds, *(["replacement"] if whole else [])],
        "ranks": sorted({u.rank for u in scaled}),
        "alphas": sorted({round(alpha, 4) for alpha in keys.alphas.values()}),
        "effective_scales": sorted({round(u.scale, 6) for u in scaled}),
        "target_modules": len(dict.fromkeys(names)),
        "layers": len({m[1] for n in names if (m := re.search(r"blocks[._](\d+)[._]", n))}),
        "replaced_tensors": len(whole),
        "unknown_tensors": sorted(keys.plain.keys() - set(whole)) if keys.updates else [],
        "fits": list(lora_generations(file, keys)),
        "distilled": is_distilled_lora(file),
        "reference_downscale_factor": spatial,
        "reference_temporal_scale_factor": temporal,
        "unsupported": list(keys.unsupported),
        "problems": list(keys.problems) or no_lora * (not keys.updates and not keys.unsupported),
    }
    if note := _unused_alpha(file, keys):
        info["note"] = note
    for key in ("lora_rank", "lora_alpha"):
        if key in file.metadata:
            info[key] = read_metadata(file, key)
    return info


def _factored(update: Update) -> Factored | None:
    if isinstance(update, Decomposed):
        update = update.update
    return update if isinstance(update, LowRank | Kronecker | Hadamard) else None


def _unused_alpha(file: SafetensorsFile, keys: LoraKeys) -> str | None:
    """Metadata may name an alpha that the tensors do not: converters fold it into the weights and
    leave the text behind, so nothing applies it.
    """
    if keys.alphas:
        return None
    for alpha, rank in (("lora_alpha", "lora_rank"), ("ss_network_alpha", "ss_network_dim")):
        said = [read_metadata(file, key) for key in (alpha, rank)]
        if all(isinstance(n, int | float) for n in said) and said[0] != said[1]:
            return (
                f"its metadata names alpha {said[0]:g} at rank {said[1]:g}, its tensors hold none: "
                "not applied here, as nowhere else"
            )
    return None


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
