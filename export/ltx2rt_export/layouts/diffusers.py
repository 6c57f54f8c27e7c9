"""Models as diffusers saves them: a folder with a part in each sub-folder, or one part alone.

Names and configurations become official ones (`diffusers_names`, `diffusers_configs`), so what
reads a checkpoint sees one; the weights stay where they are.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltx2rt.errors import CheckpointError, UnsupportedError
from ltx2rt.file_kind import read_json_object
from ltx2rt.weights.safetensors import TensorEntry
from ltx2rt_export.layouts.diffusers_configs import CLASSES, official_config
from ltx2rt_export.layouts.diffusers_joined import joined_tensors
from ltx2rt_export.layouts.diffusers_names import official_names, part_of_names
from ltx2rt_export.weight_set import WeightSet, open_files

logger = logging.getLogger(__name__)

INDEX = "model_index.json"
#: folders of a pipeline that are read -> the part that each must be
_FOLDERS = {
    "transformer": "transformer",
    "connectors": "connectors",
    "vae": "video_vae",
    "audio_vae": "audio_vae",
    "vocoder": "vocoder",
}
#: those that models of LTX-2.5 have
_OPTIONAL = {"duration_head": "duration_head"}
#: folders with weights that are not read -> why, and what does it instead
_UNREAD = {
    "diffusion_decoder": "clips are decoded by the conv VAE of vae/, as in diffusers; to have this "
    "one: --video-vae FOLDER/diffusion_decoder, or the official file, whose weights differ",
    "latent_upsampler": "give it beside the folder: --spatial-upsampler FOLDER/latent_upsampler",
    "transformer_full": "the one of transformer/ is taken; for the full model build with this "
    "folder as --checkpoint and the other parts beside it",
}
#: key of a part's object in official metadata
_CONFIG_KEYS = {"connectors": "transformer", "video_vae": "vae", "diffusion_decoder": "vae"}


def is_pipeline(folder: Path) -> bool:
    """Whether a folder is a whole model of diffusers."""
    return (folder / INDEX).is_file()


def open_pipeline(folder: Path) -> WeightSet:
    """All parts of a model, as one official checkpoint; Gemma is not among them.

    Raises:
        CheckpointError: parts are missing or broken; all are listed.
        UnsupportedError: a part is of a class or has values that are not read.
    """
    missing = [name for name in _FOLDERS if not (folder / name).is_dir()]
    if missing:
        raise CheckpointError(
            f"{folder} is a diffusers folder without {', '.join(missing)}: it is no LTX-2 model, "
            "or its download is not complete."
        )
    parts = [
        translated(open_files(folder / name), part)
        for name, part in {**_FOLDERS, **_OPTIONAL}.items()
        if name in _FOLDERS or (folder / name).is_dir()
    ]
    for name, why in _UNREAD.items():
        if (folder / name).is_dir():
            logger.warning("%s is not read: %s", folder / name, why)
    config: dict[str, Any] = {}
    tensors: dict[str, TensorEntry] = {}
    for part in parts:
        for key, value in json.loads(part.metadata["config"]).items():
            config[key] = _joined(key, config.get(key, {}), value, folder)
        tensors |= part.tensors
    files = tuple(file for part in parts for file in part.files)
    return WeightSet(folder, {"config": json.dumps(config)}, files, tensors)


def translated(weights: WeightSet, expected: str | None = None) -> WeightSet:
    """One of diffusers' modules as an official file of that part; other weights as they are.

    Args:
        weights: as the files name them; `config.json` beside them is read, if it is there.
        expected: the part that it must be; None for any, and for other layouts.

    Raises:
        UnsupportedError: a class of diffusers, or values, that are not read.
    """
    own = read_json_object(weights.files[0].path.with_name("config.json"))
    named = own.get("_class_name")
    part = CLASSES.get(str(named)) if named else part_of_names(weights)
    if (named and part is None) or expected not in (None, part):
        raise UnsupportedError(
            f"{weights.path} is of diffusers' class {named}, which is not read"
            + (f" as {expected.replace('_', ' ')}" if expected else "")
            + f"; known are {', '.join(CLASSES)}."
        )
    if part is None:
        return weights
    if part in ("diffusion_decoder", "duration_head"):
        tensors = joined_tensors(part, weights)
    else:
        tensors = {
            official: dataclasses.replace(weights[name], name=official)
            for name, official in official_names(part, weights).items()
        }
    config = official_config(part, own)
    nested = {_CONFIG_KEYS.get(part, part): config} if config else {}
    found = config if part == "upsampler" else nested
    made = WeightSet(weights.path, {"config": json.dumps(found)}, weights.files, tensors)
    if part == "diffusion_decoder":
        return _with_encoder(made, weights.files[0].path.parent.parent / "vae")
    return made


def _with_encoder(decoder: WeightSet, vae: Path) -> WeightSet:
    """A diffusion decoder, with the encoder of the VAE whose latents it decodes, if it is there."""
    if not vae.is_dir():
        return decoder
    other = translated(open_files(vae), "video_vae")
    encoder = {n: e for n, e in other.items() if not n.startswith("vae.decoder.")}
    config = {**_vae_config(other), **_vae_config(decoder)}
    return WeightSet(
        decoder.path,
        {"config": json.dumps({"vae": config})},
        (*decoder.files, *other.files),
        {**encoder, **decoder.tensors},
    )


def _vae_config(weights: WeightSet) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(weights.metadata["config"]).get("vae", {})
    return found


def _joined(
    key: str, known: Mapping[str, Any], more: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """Two objects of one key; what both say must agree: transformer and connectors share RoPE."""
    if differ := [name for name in known.keys() & more.keys() if known[name] != more[name]]:
        raise UnsupportedError(
            f"{folder} is not supported: its parts differ in {', '.join(sorted(differ))} ({key})."
        )
    return {**known, **more}
