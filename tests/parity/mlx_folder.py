"""The demo checkpoint as mlx-video's converter leaves it, by the rules of its names and axes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile
from ltx2rt.weights.safetensors_writer import Stream, write_safetensors

_MODEL = "model.diffusion_model."
_CONNECTORS = ("video_embeddings_connector.", "audio_embeddings_connector.")
_RENAMED = {
    ".to_out.0.": ".to_out.", "ff.net.0.proj.": "ff.proj_in.", "ff.net.2.": "ff.proj_out.",
}  # fmt: skip


def write_mlx_folder(checkpoint: Path, folder: Path) -> Path:
    """One folder a part, channels of convolutions last, no metadata, no encoder of sound."""
    file, maps = SafetensorsFile(checkpoint), MappedFiles()
    parts: dict[str, dict[str, Stream]] = {}
    for name, entry in file.items():
        values = maps.raw(entry)
        for place, new in _places(name):
            axes = _order(place, new, values.ndim)
            if place == "vae/decoder" and new.endswith((".conv.weight", ".conv.bias")):
                new = new if ".conv.conv." in new else new.replace(".conv.", ".conv.conv.")
            stored = np.ascontiguousarray(values.transpose(axes))
            stream = entry.dtype, stored.shape, (stored.tobytes(),)
            parts.setdefault(place, {})[new] = stream
    for place, tensors in parts.items():
        (folder / place).mkdir(parents=True)
        shards = ("model-00001-of-00002", "model-00002-of-00002")
        names = sorted(tensors)
        if place != "transformer":
            write_safetensors(folder / place / "model.safetensors", tensors, {"format": "mlx"})
            continue
        for half, shard in zip((names[::2], names[1::2]), shards, strict=True):
            write_safetensors(
                folder / place / f"{shard}.safetensors", {n: tensors[n] for n in half}, None
            )
        (folder / place / "config.json").write_text(json.dumps({"model_type": "ltx av model"}))
    return folder


def _places(name: str) -> list[tuple[str, str]]:
    """Part and name there; the statistics of a VAE are in both of its halves."""
    if name.startswith(_MODEL):
        own = name.removeprefix(_MODEL)
        for old, new in _RENAMED.items():
            own = own.replace(old, new)
        if own.startswith(_CONNECTORS):
            return [("text_projections", own)]
        return [
            (
                "transformer",
                own.replace(".linear_1.", ".linear1.").replace(".linear_2.", ".linear2."),
            )
        ]
    part, _, own = name.partition(".")
    if part == "text_embedding_projection":
        return [("text_projections", own)]
    if part == "vocoder":
        return [("vocoder", own)]
    side, _, rest = own.partition(".")
    if side == "per_channel_statistics":
        kind = rest.removesuffix("-of-means")
        if kind not in ("mean", "std"):
            return []
        if part == "audio_vae":
            return [("audio_vae/decoder", f"{side}.{kind}_of_means")]
        return [(f"vae/{half}", f"{side}.{kind}") for half in ("decoder", "encoder")]
    return [] if (part, side) == ("audio_vae", "encoder") else [(f"{part}/{side}", rest)]


def _order(place: str, name: str, rank: int) -> tuple[int, ...]:
    """The official axes in the order of MLX."""
    if name.endswith("weight") and (
        (place == "vae/decoder" and rank == 5 and ".conv.weight" in name)
        or (place in ("vae/encoder", "audio_vae/decoder") and rank > 3 and "conv" in name)
    ):
        return 0, *range(2, rank), 1
    if place == "vocoder" and rank == 3 and "weight" in name:
        return (1, 2, 0) if "ups" in name else (0, 2, 1)
    return tuple(range(rank))
