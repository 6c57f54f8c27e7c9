"""How much memory the weights of a bundle take, stage by stage, and whether a GPU has that much."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from ltx2rt.bundle.load_weights import ITEM_BYTES
from ltx2rt.bundle.manifest import ComponentEntry, Manifest
from ltx2rt.device.cuda import Gpu
from ltx2rt.errors import UnsupportedError
from ltx2rt.names import STAGES, TEXT_BLOCKS, TEXT_HEAD, TEXT_TAIL, TRANSFORMER_BLOCKS
from ltx2rt.weights.precision import PRECISIONS


def layer_bytes(entry: ComponentEntry) -> list[int]:
    """Memory of the weights of each layer as the component's engine takes them: quantised ones as
    they lie ready, the others in the component's precision.
    """
    sizes = []
    for index, layer in enumerate(entry.layers):
        ready = entry.overlays[index] if entry.overlays else {}
        size = sum(place.length for place in ready.values())
        for name, ref in layer.items():
            if name not in ready:
                dtype = entry.weight_dtypes.get(name, PRECISIONS[entry.precision].dtype)
                size += math.prod(ref.shape) * ITEM_BYTES[dtype]
        sizes.append(size)
    return sizes


def stage_weight_bytes(manifest: Manifest, *, least: bool = False) -> dict[str, int]:
    """Weights that each stage holds at once, with `--residency stage`.

    Args:
        least: on a GPU without room for all layers of the transformer.
    """
    held = {
        name: held_bytes(name, layer_bytes(entry), least=least and not entry.layered)
        for name, entry in manifest.components.items()
    }
    on_card = any(entry.engines for entry in manifest.components.values())
    return {s: held_together(held, names, on_card=on_card) for s, names in STAGES.items()}


def held_together(held: Mapping[str, int], names: Collection[str], *, on_card: bool) -> int:
    """What components of a stage hold at once, of what each of them holds.

    Args:
        on_card: engines: the head of the text encoder makes room for its tail.
    """
    shared = min(held.get(TEXT_HEAD, 0), held.get(TEXT_TAIL, 0)) if TEXT_HEAD in names else 0
    return sum(held.get(n, 0) for n in names) - (shared if on_card else 0)


def held_bytes(name: str, sizes: Sequence[int], *, least: bool) -> int:
    """What a component holds at once of layers of these sizes.

    Args:
        least: layers of the transformer are uploaded at every use, for which they must not be
            inside engines.
    """
    # the text encoder lets go of a layer's weights as soon as it has run
    one = name in TEXT_BLOCKS or (least and name in TRANSFORMER_BLOCKS)
    return max(sizes, default=0) if one else sum(sizes)


def refuse_too_large(stages: dict[str, int], what: str, gpu: Gpu) -> None:
    """Refuse stages that cannot fit a GPU, before anything is loaded.

    Args:
        stages: stage -> bytes that it holds at once.
        what: is held: `weights`, ...

    Raises:
        UnsupportedError: names the largest stage, what it takes and what the GPU has.
    """
    stage, size = max(stages.items(), key=lambda item: item[1], default=("", 0))
    if size > gpu.memory_bytes:
        raise UnsupportedError(
            f"the stage '{stage}' takes {size / 2**30:.1f} GiB of {what}, and {gpu.name} has "
            f"{gpu.memory_bytes / 2**30:.1f} GiB; build in a smaller precision or for smaller "
            "shapes (`ltx2rt build --dry-run` says what each takes), or use a larger card."
        )
