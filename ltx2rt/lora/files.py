"""Open LoRA files: given as a file, or as the folder that a trainer or a download left."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ltx2rt.errors import CheckpointError
from ltx2rt.field_types import settle_types
from ltx2rt.hub.reference import local_path
from ltx2rt.weights.safetensors import SafetensorsFile

logger = logging.getLogger(__name__)
#: what trainers that write every file twice add to the name of the one for ComfyUI
_COMFY = ".comfy.safetensors"
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """A LoRA file and its strength: fused at build time, or merged at run time.

    ```python
    style = ltx2rt.Lora(path="style.safetensors", strength=0.8)
    pipe(prompt="A lake.", loras=[style]).save("out.mp4")
    ```
    """

    path: str
    strength: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.path, os.PathLike):
            object.__setattr__(self, "path", os.fspath(self.path))
        settle_types(self)


def find_lora(path: str | os.PathLike[str]) -> Path:
    """The file itself, or the only `.safetensors` file in a folder; both may be names on the model
    hub. Of `x.safetensors` and `x.comfy.safetensors`, the same adapter in two namings, it is the
    first.

    Raises:
        CheckpointError: the folder holds none, or several: they are listed; it is a part of one.
    """
    place = local_path(path)
    try:
        if not place.is_dir():
            return _whole(place)
        found = sorted(p for p in place.iterdir() if p.suffix == ".safetensors" and p.is_file())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {str(path)!r}: {error}") from error
    names = {p.name for p in found}
    twins = [p for p in found if p.name.replace(_COMFY, ".safetensors") in names - {p.name}]
    if twins and len(found) - len(twins) == 1:
        found = [p for p in found if p not in twins]
        logger.warning("%s: using %s, of which %s is a copy", place, found[0].name, twins[0].name)
    if len(found) == 1:
        return _whole(found[0])
    if found and all(_SHARD.search(p.name) for p in found):
        raise CheckpointError(
            f"{place} is a folder with a model in {len(found)} files (shards); an adapter is one "
            "file: save it as one, or, if it is a model, give it to `ltx2rt build`."
        )
    if not found:
        raise CheckpointError(f"{place} is a folder without a .safetensors file{_instead(place)}.")
    listed = ", ".join(p.name for p in found[:10])
    more = f" and {len(found) - 10} more" if len(found) > 10 else ""
    raise CheckpointError(
        f"{place} is a folder with {len(found)} LoRA files ({listed}{more}): name one of them."
    )


def _whole(path: Path) -> Path:
    """A file that is no part of one.

    Raises:
        CheckpointError: it is.
    """
    if match := _SHARD.search(path.name):
        raise CheckpointError(
            f"{path} is part {int(match[1])} of {int(match[2])} of a model or adapter in several "
            "files (shards); an adapter is one file: save it as one."
        )
    return path


def _instead(folder: Path) -> str:
    """What a folder without an adapter holds, and what to do."""
    if (folder / "manifest.json").is_file():
        return ": it is a bundle; name a LoRA file"
    if (folder / "model_index.json").is_file():
        return ": it is a diffusers folder, a model, which `ltx2rt build --checkpoint` takes"
    if (folder / "transformer").is_dir():
        return ": it is the folder of a model, which `ltx2rt build --checkpoint` takes"
    for pattern in _PICKLES:
        if pickle := next(folder.glob(pattern), None):
            return (
                f": {pickle.name} in it is a PyTorch file (a pickle, which can run code); save the "
                "adapter as safetensors"
            )
    below = sorted(str(p.relative_to(folder)) for p in folder.glob("*/*.safetensors"))
    if below:
        more = f" and {len(below) - 10} more" if len(below) > 10 else ""
        return f"; name one of those below it: {', '.join(below[:10])}{more}"
    return ": name a LoRA file"


def open_lora(path: str | os.PathLike[str]) -> SafetensorsFile:
    """Open the header of a LoRA; see `find_lora`.

    Raises:
        CheckpointError: no file, several, or not a safetensors file.
    """
    return SafetensorsFile(find_lora(path))
