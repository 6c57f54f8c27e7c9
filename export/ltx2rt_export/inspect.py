"""Describe a weight file or a Gemma directory from its headers: what it is, and what it can run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ltx2rt.errors import CheckpointError
from ltx2rt.file_kind import read_json_object
from ltx2rt.lora.describe import describe_lora
from ltx2rt.lora.files import open_lora
from ltx2rt.weights.safetensors import SafetensorsFile, TensorEntry, read_metadata
from ltx2rt_export.gemma_files import GemmaFiles, open_gemma
from ltx2rt_export.kinds import (
    KINDS,
    detect_kind,
    is_lora,
    split_components,
)
from ltx2rt_export.layouts.diffusers import is_pipeline
from ltx2rt_export.layouts.gemma_single import is_gguf_gemma
from ltx2rt_export.layouts.gguf_file import gguf_summary
from ltx2rt_export.layouts.mlx_video import is_mlx_video
from ltx2rt_export.layouts.open import holds_gemma, open_weights
from ltx2rt_export.storage_format import storage_summary
from ltx2rt_export.version import (
    GENERATIONS,
    ModelVersion,
    detect_version,
    read_config,
)
from ltx2rt_export.weight_set import WeightFile

_PARTS: dict[str, str] = {
    "transformer": "transformer",
    "connectors": "text connectors",
    "text_projection": "text projection",
    "video_vae": "video VAE",
    "audio_vae": "audio VAE",
    "vocoder": "vocoder",
    "duration_head": "duration head",
    "gemma": "Gemma",
    "upsampler": "upsampler",
    "assets": "tokenizer files",
    "other": "not used",
}

#: pipeline -> what it needs besides the model itself
PIPELINES: dict[str, tuple[str, ...]] = {
    "one-stage": (),
    "text-to-audio": (),
    "retake": ("distilled transformer",),
    "retake-guided": (),
    "retake-two-stage": ("distilled transformer", "spatial upsampler"),
    "retake-two-stage-guided": ("spatial upsampler", "distilled LoRA"),
    "two-stage": ("spatial upsampler", "distilled LoRA"),
    "two-stage-hq": ("spatial upsampler", "distilled LoRA"),
    "keyframe": ("spatial upsampler", "distilled LoRA"),
    "audio-to-video": ("spatial upsampler", "distilled LoRA"),
    "distilled": ("distilled transformer", "spatial upsampler"),
    "ic-lora": ("distilled transformer", "spatial upsampler", "IC-LoRA"),
    "ic-lora-guided": ("spatial upsampler", "IC-LoRA", "distilled LoRA"),
    "dub-it": ("distilled transformer", "spatial upsampler", "IC-LoRA"),
    "hdr-ic-lora": ("distilled transformer", "spatial upsampler", "HDR IC-LoRA"),
    "dfr": ("distilled transformer", "spatial upsampler"),
    "upscale": ("spatial or temporal upsampler",),
}
#: pipelines that only some generations can run, or that take less than the whole model
_GENERATIONS = {"dfr": ("LTX-2.5",)}
_OWN_PARTS = {"upscale": ("video_vae",)}
_MODEL = ("transformer", "connectors", "text_projection", "video_vae", "audio_vae", "vocoder")


def inspect_path(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe a checkpoint, split file, LoRA, upsampler, or Gemma directory; JSON-able.

    Raises:
        CheckpointError: it is missing, broken, or of another model.
    """
    where = Path(path)
    if where.is_dir():
        where = _only_lora(where) or where
    if where.is_dir() and "model_type" in read_json_object(where / "config.json"):
        gemma = open_gemma(where)
        return {**_summary(where, "gemma", gemma.tensors, gemma.files), "gemma": _gemma(gemma)}
    if is_gguf_gemma(where):
        gemma = open_gemma(where)
        result = _summary(where, "gemma", gemma.tensors, gemma.files)
        stored = gguf_summary(gemma.tensors)
        return {**result, "gemma": _gemma(gemma), **({"storage_format": stored} if stored else {})}
    file = open_weights(where)
    kind = detect_kind(file)
    result = _summary(where, kind, file, file.files)
    parts = split_components(file)
    if is_mlx_video(where):
        result["description"] = f"{KINDS[kind]} (mlx-video's folder)"
    elif is_pipeline(where):
        result["description"] = f"{KINDS[kind]} (diffusers folder)"
    if holds_gemma(where):
        gemma = open_gemma(where)
        parts = {**parts, "gemma": dict(gemma.tensors)}
        result["gemma"] = _gemma(gemma)
    if kind == "lora":
        return {**result, "lora": describe_lora(open_lora(where))}
    result["components"] = [
        {"name": name, **_size(parts[name].values())} for name in _PARTS if name in parts
    ]
    if kind in {"checkpoint", "transformer"}:
        video_vae = file if "video_vae" in parts else None
        version = detect_version(file, parts["transformer"], video_vae)
        result["model_version"] = asdict(version) | {"number": list(version.number)}
        result["pipelines"] = _pipelines(version, parts)
        source = read_metadata(file, "gemma_source_checkpoint")
        if isinstance(source, dict):
            result["gemma_version"] = source.get("gemma_version")
    if kind.endswith("_upsampler"):
        result["upsampler"] = _upsampler(parts["upsampler"], read_config(file))
    if kind in ("text_encoder", "gemma"):
        result["gemma"] = _gemma(open_gemma(where))
    quantized = parts.get("transformer") or parts.get("gemma") or {}
    if stored := gguf_summary(quantized) or storage_summary(quantized):
        result["storage_format"] = stored
    return result


def format_inspection(info: Mapping[str, Any]) -> str:
    """Lay an inspection out as text; control characters of file contents are escaped."""
    rows: list[tuple[str, str]] = [("file", info["path"]), ("kind", info["description"])]
    if "parameters" in info:
        rows.append(("size", _amount(info)))
        rows.append(("dtypes", ", ".join(f"{d} {n}" for d, n in info["dtypes"].items())))
    if version := info.get("model_version"):
        said = f"model_version {version['text']}" if version["text"] else "told by its tensors"
        distilled = {True: ", distilled", False: ", dev", None: ""}[version["is_distilled"]]
        rows.append(("model", f"{version['generation']} ({said}){distilled}"))
        rows.append(
            (
                "defaults",
                f"{version['num_inference_steps']} steps, STG block {version['stg_block']}, image "
                f"CRF {version['image_crf']}, distilled sampler {version['distilled_sampler']}",
            )
        )
    if stored := info.get("storage_format"):
        layers = f", {stored['layers']} layers" if "layers" in stored else ""
        usable = "" if stored["buildable"] else " (cannot be built)"
        rows.append(("quantised", f"{stored['description']}{layers}{usable}"))
        if problem := stored.get("problem"):
            rows.append(("problem", " ".join(problem.split())))
    for section in ("lora", "upsampler", "gemma"):
        rows += [
            (key.replace("_", " "), _value(value)) for key, value in info.get(section, {}).items()
        ]
    width = max(len(name) for name, _ in rows) + 2
    lines = [f"{name:<{width}}{_printable(value)}" for name, value in rows]
    if info.get("components"):
        lines += ["", "components"]
        lines += [f"  {_PARTS[c['name']]:<20}{_amount(c)}" for c in info["components"]]
    if info.get("pipelines"):
        lines += ["", "pipelines"]
        for entry in info["pipelines"]:
            needs = ", ".join(entry["needs"])
            lines.append(f"  {entry['name']:<24}" + (f"needs {needs}" if needs else "ready"))
    return "\n".join(lines)


def _summary(
    path: Path, kind: str, tensors: Mapping[str, TensorEntry], files: Iterable[WeightFile]
) -> dict[str, Any]:
    dtypes: dict[str, int] = {}
    for entry in tensors.values():
        dtypes[entry.dtype] = dtypes.get(entry.dtype, 0) + 1
    return {
        "path": str(path),
        "kind": kind,
        "description": KINDS[kind],
        "file_bytes": sum(file.file_bytes for file in files),
        **_size(tensors.values()),
        "dtypes": dict(sorted(dtypes.items())),
    }


def _size(entries: Iterable[TensorEntry]) -> dict[str, int]:
    listed = list(entries)
    return {
        "tensors": len(listed),
        "parameters": sum(e.num_elements for e in listed),
        "bytes": sum(e.length for e in listed),
    }


def _only_lora(folder: Path) -> Path | None:
    """The LoRA file that is alone in a folder; None for a Gemma folder."""
    files = list(folder.glob("*.safetensors"))
    return files[0] if len(files) == 1 and is_lora(SafetensorsFile(files[0])) else None


def _pipelines(
    version: ModelVersion, parts: Mapping[str, Mapping[str, TensorEntry]]
) -> list[dict[str, Any]]:
    """Per pipeline, what must be given besides this file."""
    gemma = "Gemma 4" if version.generation == "LTX-2.5" else "Gemma 3 12B"
    result = []
    for name, extras in PIPELINES.items():
        if version.generation not in _GENERATIONS.get(name, (version.generation,)):
            continue
        own = _OWN_PARTS.get(name, (*_MODEL, "gemma"))
        needs = [gemma if part == "gemma" else _PARTS[part] for part in own if part not in parts]
        for extra in extras:
            if extra == "distilled transformer":
                if version.is_distilled is not True:
                    needs.append("distilled transformer or distilled LoRA")
            elif extra != "distilled LoRA" or version.is_distilled is not True:
                needs.append(extra)
        result.append({"name": name, "needs": needs})
    return result


def _upsampler(tensors: Mapping[str, TensorEntry], config: Mapping[str, Any]) -> dict[str, Any]:
    conv = tensors.get("upsampler.0.weight") or tensors.get("upsampler.conv.weight")
    if conv is None:
        raise CheckpointError("the upsampler has no upsampler.0.weight or upsampler.conv.weight.")
    factor = conv.shape[0] // max(conv.shape[1], 1)
    temporal = len(conv.shape) == 5
    rational = "upsampler.conv.weight" in tensors
    return {
        "direction": "time" if temporal else "space",
        "factor": {9: 1.5, 4: 2.0, 2: 2.0}.get(factor, config.get("spatial_scale", factor)),
        "rational": rational,
        "channels": conv.shape[1],
    }


def _gemma(gemma: GemmaFiles) -> dict[str, Any]:
    family = gemma.config.get("model_type")
    version = gemma.config.get("gemma_version")
    fits = ["LTX-2.5"] if family != "gemma3" else [g for g in GENERATIONS if g != "LTX-2.5"]
    return {
        "family": family,
        "gemma_version": version,
        "hidden_layers": gemma.num_layers,
        "hidden_size": gemma.hidden_size,
        "shards": len(gemma.files),
        "tokenizer": str(gemma.tokenizer_path or "packed in the file"),
        "fits": fits,
    }


def _amount(info: Mapping[str, Any]) -> str:
    count, size = info["parameters"], info["bytes"]
    words = f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"
    return f"{words} parameters, {size / 1e9:.2f} GB, {info['tensors']} tensors"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
