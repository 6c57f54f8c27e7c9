"""The memory plan of a bundle for any card, without having it: what engines need is what the files
beside them say.
"""

from __future__ import annotations

import re
from pathlib import Path

from ltx2rt.backends.engine_needs import EngineNeeds
from ltx2rt.bundle.engine_file import EngineInfo, read_info
from ltx2rt.bundle.manifest import Manifest
from ltx2rt.bundle.memory_plan import MemoryPlan, plan_memory, room_on
from ltx2rt.errors import OptionError

_UNITS = {"": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "GB": 10**9, "MB": 10**6}
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)")


def parse_memory(text: str) -> int:
    """Bytes of `24GiB`, `80GB`, `1024MiB`.

    Raises:
        OptionError: it is none of these.
    """
    match = _MEMORY.fullmatch(text.strip())
    unit = match[2].upper() if match else None
    if match is None or unit not in _UNITS:
        raise OptionError(f"--memory '{text}' is no size; write it like 24GiB or 80GB.")
    return int(float(match[1]) * _UNITS[unit])


def plan_card(
    folder: Path, manifest: Manifest, memory_bytes: int, shape: str | None, *, resident: bool
) -> MemoryPlan:
    """How a card of that much memory would be divided.

    Args:
        shape: `WxHxN`, one that the bundle was built for; None: all of them.

    Raises:
        OptionError: another backend, engines of an older build, or a shape that was not built.
        UnsupportedError: it does not fit.
    """
    needs: dict[str, EngineNeeds] = {}
    built: set[str] = set()
    for name, entry in manifest.components.items():
        if not entry.engines:
            raise OptionError(
                f"--memory plans a GPU, and this bundle runs on {manifest.backend}; build one with "
                "--backend tensorrt or tensorrt-rtx."
            )
        info = read_info(folder / entry.engines[0].file)
        if len(info.activation_bytes) != len(info.buckets):
            raise OptionError(
                f"the engine of {name} does not say what it needs, as those of older builds; build "
                f"the bundle again: {manifest.command()}"
            )
        built |= {b.name for b in info.buckets if _SHAPE.fullmatch(b.name)}
        needs[name] = EngineNeeds(_activations(info, shape), {})
    if shape is not None and shape not in built:
        raise OptionError(
            f"--shape {shape} was not built; this bundle has {', '.join(sorted(built))}. Build "
            "again with it in --shapes."
        )
    room = room_on(memory_bytes, memory_bytes, manifest)
    card = f"a card of {memory_bytes / 2**30:.2f} GiB"
    return plan_memory(manifest, needs, room, resident=resident, card=card)


def _activations(info: EngineInfo, shape: str | None) -> int:
    """Of the buckets made for a shape and its half-size stage; of all where none is."""
    sizes = dict(zip((b.name for b in info.buckets), info.activation_bytes, strict=True))
    match = _SHAPE.fullmatch(shape or "")
    if match is not None:
        width, height, frames = (int(n) for n in match.groups())
        wanted = (f"{width}x{height}x{frames}", f"{width // 2}x{height // 2}x{frames}")
        of_shape = [size for name, size in sizes.items() if name.split(" ")[0] in wanted]
        if of_shape:
            return max(of_shape)
    return max(sizes.values(), default=0)
