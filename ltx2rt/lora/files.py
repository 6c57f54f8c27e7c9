"""Open LoRA files: given as a file, or as the folder that a trainer or a download left."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from ltx2rt.errors import CheckpointError
from ltx2rt.field_types import settle_types
from ltx2rt.hub.reference import local_path
from ltx2rt.weights.safetensors import SafetensorsFile

logger = logging.getLogger(__name__)
#: what trainers that write every file twice add to the name of the one for ComfyUI
_COMFY = ".comfy.safetensors"


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
        CheckpointError: the folder holds none, or several: they are listed.
    """
    place = local_path(path)
    try:
        if not place.is_dir():
            return place
        found = sorted(p for p in place.iterdir() if p.suffix == ".safetensors" and p.is_file())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {str(path)!r}: {error}") from error
    names = {p.name for p in found}
    twins = [p for p in found if p.name.replace(_COMFY, ".safetensors") in names - {p.name}]
    if twins and len(found) - len(twins) == 1:
        found = [p for p in found if p not in twins]
        logger.warning("%s: using %s, of which %s is a copy", place, found[0].name, twins[0].name)
    if len(found) == 1:
        return found[0]
    if not found:
        raise CheckpointError(f"{place} is a folder without a .safetensors file: name a LoRA file.")
    listed = ", ".join(p.name for p in found[:10])
    more = f" and {len(found) - 10} more" if len(found) > 10 else ""
    raise CheckpointError(
        f"{place} is a folder with {len(found)} LoRA files ({listed}{more}): name one of them."
    )


def open_lora(path: str | os.PathLike[str]) -> SafetensorsFile:
    """Open the header of a LoRA; see `find_lora`.

    Raises:
        CheckpointError: no file, several, or not a safetensors file.
    """
    return SafetensorsFile(find_lora(path))
