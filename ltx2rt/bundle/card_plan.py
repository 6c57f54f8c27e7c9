"""The memory plan of a bundle for any card, without having it: what engines need is what the files
beside them say.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from ltx2rt.backends.engine_needs import EngineNeeds, count_tensor
from ltx2rt.bundle.buckets import Bucket
from ltx2rt.bundle.engine_file import EngineInfo, read_info
from ltx2rt.bundle.manifest import Manifest, ModelInfo, Tensor
from ltx2rt.bundle.memory_plan import MemoryPlan, room_on
from ltx2rt.bundle.stage_plan import plan_card_memory
from ltx2rt.bundle.targets import CARDS, Card
from ltx2rt.engine import TensorSpec
from ltx2rt.errors import OptionError, UnsupportedError

_UNITS = {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "GB": 10**9, "MB": 10**6}
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)")


class Boundary(Protocol):
    """What goes into an engine and comes out of it, and the sizes that it is built for."""

    @property
    def inputs(self) -> Sequence[Tensor | TensorSpec]: ...

    @property
    def outputs(self) -> Sequence[Tensor | TensorSpec]: ...

    @property
    def buckets(self) -> tuple[Bucket, ...]: ...


class FittingCards(NamedTuple):
    """The smallest cards that hold a bundle: with all layers of the transformer, and with layers
    that go up at every step; None: no card does.
    """

    whole: Card | None
    streaming: Card | None


def fitting_cards(
    manifest: Manifest, needs: Mapping[str, EngineNeeds], targets: Collection[str]
) -> FittingCards:
    """The cards of these architectures that the plan fits, if nothing else uses them."""
    streaming = None
    for card in (c for c in CARDS if c.target in targets):
        memory = card.memory_gib << 30
        try:
            plan = plan_card_memory(
                manifest, needs, room_on(memory, memory, manifest), resident=False, card=card.name
            )
        except UnsupportedError:
            continue
        streaming = streaming or card
        if not plan.streams:
            return FittingCards(card, streaming)
    return FittingCards(None, streaming)


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
    needs = needs_of(folder, manifest, shape)
    room = room_on(memory_bytes, memory_bytes, manifest)
    card = f"a card of {memory_bytes / 2**30:.2f} GiB"
    return plan_card_memory(manifest, needs, room, resident=resident, card=card)


def needs_of(folder: Path, manifest: Manifest, shape: str | None = None) -> dict[str, EngineNeeds]:
    """What every component takes of a card, by the files beside its engines.

    Raises:
        OptionError: see `plan_card`.
    """
    infos: dict[str, EngineInfo] = {}
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
        infos[name] = info
    if shape is not None and shape not in built:
        raise OptionError(
            f"--shape {shape} was not built; this bundle has {', '.join(sorted(built))}. Build "
            "again with it in --shapes."
        )
    return {
        name: EngineNeeds(
            _activations(info, shape), tensor_bytes(info, infos.values(), manifest.model)
        )
        for name, info in infos.items()
    }


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


def tensor_bytes(
    info: Boundary, infos: Iterable[Boundary], model: ModelInfo
) -> dict[tuple[str, str], int]:
    """Bytes of inputs and outputs at their largest, as `engine_needs`. Sizes that only outputs have
    follow from those of the inputs, or are those that other engines take.
    """
    found: dict[tuple[str, str], int] = {}
    others = [bucket for other in infos for bucket in other.buckets]
    for bucket in info.buckets:
        sizes = {symbol: size[2] for symbol, size in bucket.sizes.items()}
        for tensor in (*info.inputs, *info.outputs):
            shape = tuple(
                d
                if isinstance(d, int)
                else 1
                if d.startswith("1|")
                else _size(d, sizes, model)
                or max((b.sizes[d][2] for b in others if d in b.sizes), default=0)
                for d in tensor.shape
            )
            count_tensor(found, TensorSpec(tensor.name, tensor.dtype, tensor.shape), shape)
    return found


def _size(symbol: str, sizes: Mapping[str, int], model: ModelInfo) -> int:
    """A size of an engine in one bucket: an input's, or what it makes of one; 0: of others."""
    if symbol in sizes:
        return sizes[symbol]
    time, space = model.time_scale, model.spatial_scale
    latent = {name: sizes.get(name, 0) for name in ("Fl", "Hl", "Wl")}
    pixels = {name: sizes.get(name, 0) for name in ("F", "H", "W")}
    made = {
        "F": max(0, (latent["Fl"] - 1) * time + 1),
        "H": latent["Hl"] * space,
        "W": latent["Wl"] * space,
        "Fl": max(0, (pixels["F"] - 1) // time + 1),
        "Hl": pixels["H"] // space,
        "Wl": pixels["W"] // space,
        "Fu": 2 * latent["Fl"],
        "Hu": 2 * latent["Hl"],
        "Wu": 2 * latent["Wl"],
    }
    return made.get(symbol, 0)
