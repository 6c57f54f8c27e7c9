"""Open what a user names as weights, in whatever layout it is, under official names."""

from __future__ import annotations

import os
from pathlib import Path

from ltx2rt_export.layouts import diffusers
from ltx2rt_export.layouts.gguf_file import open_gguf
from ltx2rt_export.layouts.mlx_video import is_mlx_video, open_mlx_video, refuse_part
from ltx2rt_export.weight_set import WeightSet, open_files


def open_weights(path: str | os.PathLike[str]) -> WeightSet:
    """Weights under official names: a file, shards, or a folder of one model or part.

    Raises:
        CheckpointError, UnsupportedError: something else is there, or it is not complete.
    """
    where = Path(path)
    if diffusers.is_pipeline(where):
        return diffusers.open_pipeline(where)
    if is_mlx_video(where):
        return open_mlx_video(where)
    if where.suffix.lower() == ".gguf" and where.is_file():
        file, tensors = open_gguf(where)
        return diffusers.translated(WeightSet(where, {}, (file,), tensors))
    weights = open_files(where)
    refuse_part(weights)
    return diffusers.translated(weights)


def holds_gemma(folder: Path) -> bool:
    """Whether a folder is a whole model with its text encoder inside."""
    whole = diffusers.is_pipeline(folder) or is_mlx_video(folder)
    return whole and (folder / "text_encoder").is_dir()
