"""How much memory the weights of a bundle take, stage by stage, and whether a GPU has that much."""

from __future__ import annotations

import math

from ltx2rt.components.diffusion_decoder import DIFFUSION_DECODER
from ltx2rt.components.text_encoder import FULL_BLOCK, TEXT_ENCODER
from ltx2rt.cuda import Gpu
from ltx2rt.errors import UnsupportedError
from ltx2rt.manifest import PLAIN_BLOCK, ComponentEntry, Manifest
from ltx2rt.weights import ITEM_BYTES, PRECISIONS

#: components whose weights are held at once, by stage of the distilled pipeline
STAGES = {
    "encode prompt": (*TEXT_ENCODER, FULL_BLOCK),
    "denoise": (
        "transformer_head",
        "transformer_block",
        PLAIN_BLOCK,
        "transformer_tail",
        "spatial_upsampler",
    ),
    "decode": ("video_decoder", *DIFFUSION_DECODER, "audio_decoder", "vocoder"),
}

#: components whose layers are loaded one at a time
STREAMED = ("text_block", FULL_BLOCK)


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
                dtype = entry.weight_dtypes.get(name, PRECISIONS[entry.precision])
                size += math.prod(ref.shape) * ITEM_BYTES[dtype]
        sizes.append(size)
    return sizes


def stage_weight_bytes(manifest: Manifest) -> dict[str, int]:
    """Weights that each stage holds at once, with `--residency stage`."""
    layers = {n: layer_bytes(e) for n, e in manifest.components.items()}
    # the text encoder lets go of a layer's weights as soon as it has run
    held = {n: max(s, default=0) if n in STREAMED else sum(s) for n, s in layers.items()}
    return {s: sum(held.get(n, 0) for n in names) for s, names in STAGES.items()}


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
