"""LoRA: match adapters to a model and fuse them into its weights (spec/lora.md).

Only headers (and scalar alphas) are read until a weight is fused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ltx2rt.engine import Array
from ltx2rt.errors import CheckpointError, UnsupportedError
from ltx2rt.lora.files import Lora, open_lora
from ltx2rt.lora.keys import LoraPair, read_lora_keys
from ltx2rt.names import TRANSFORMER_BLOCK
from ltx2rt.weights.floats import cast
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile, TensorEntry

logger = logging.getLogger(__name__)

#: diffusers path segments -> official ones (spec/checkpoints.md §2)
_DIFFUSERS: dict[str, str] = {
    "proj_in": "patchify_proj",
    "audio_proj_in": "audio_patchify_proj",
    "time_embed": "adaln_single",
    "audio_time_embed": "audio_adaln_single",
    "prompt_adaln": "prompt_adaln_single",
    "audio_prompt_adaln": "audio_prompt_adaln_single",
    "av_cross_attn_video_scale_shift": "av_ca_video_scale_shift_adaln_single",
    "av_cross_attn_audio_scale_shift": "av_ca_audio_scale_shift_adaln_single",
    "av_cross_attn_video_a2v_gate": "av_ca_a2v_gate_adaln_single",
    "av_cross_attn_audio_v2a_gate": "av_ca_v2a_gate_adaln_single",
    "video_connector": "video_embeddings_connector",
    "audio_connector": "audio_embeddings_connector",
    "text_proj_in": "text_embedding_projection.aggregate_embed",
    "video_text_proj_in": "text_embedding_projection.video_aggregate_embed",
    "audio_text_proj_in": "text_embedding_projection.audio_aggregate_embed",
}


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """An adapter matched to a model.

    Attributes:
        pairs: official module name (no prefix, no `.weight`) -> update.
        skipped: modules of the file that the model does not have; the official loader ignores them.
    """

    file: SafetensorsFile
    style: str
    pairs: Mapping[str, LoraPair]
    skipped: tuple[str, ...]


def parse_lora(
    file: SafetensorsFile, targets: Mapping[str, tuple[int, ...]], *, honour_alpha: bool = False
) -> Adapter:
    """Match an adapter to a model.

    Args:
        targets: official module name -> weight shape `[out, in]`; see `lora_targets`.
        honour_alpha: see `read_lora_keys`.

    Raises:
        UnsupportedError: it holds adapters other than plain LoRA; all kinds are named.
        CheckpointError: it is broken, fits no module of this model, or shapes differ: all listed.
    """
    keys = read_lora_keys(file, honour_alpha=honour_alpha)
    if keys.unsupported:
        raise UnsupportedError(
            f"{file.path} uses {', '.join(keys.unsupported)}; only plain LoRA pairs are supported: "
            "convert it, or bake it into a checkpoint first."
        )
    flat = flat_names(targets)
    pairs: dict[str, LoraPair] = {}
    skipped: list[str] = []
    problems = list(keys.problems)
    for module, pair in keys.pairs.items():
        name = official_module(module, targets, flat)
        if name is None:
            skipped.append(module)
            continue
        shape = (pair.up.shape[0], pair.down.shape[1])
        if tuple(targets[name]) != shape:
            problems.append(f"{name} is {list(targets[name])}, the LoRA is for {list(shape)}")
        elif name in pairs:
            problems.append(f"{name} occurs twice")
        else:
            pairs[name] = pair
    if not problems and not pairs:
        first = ", ".join(sorted(skipped)[:3]) or "nothing"
        problems.append(f"no module of the model matches (the file has {first})")
    if problems:
        more = [f"and {len(problems) - 10} more"] if len(problems) > 10 else []
        raise CheckpointError(f"LoRA {file.path} does not fit this model", problems[:10] + more)
    return Adapter(file, keys.style, pairs, tuple(skipped))


def lora_targets(*parts: Mapping[str, TensorEntry]) -> dict[str, tuple[int, ...]]:
    """Modules that a LoRA may change: the 2-D weights of transformer, connectors, projections."""
    return {
        name.removesuffix(".weight").removeprefix("model.diffusion_model."): entry.shape
        for part in parts
        for name, entry in part.items()
        if name.endswith(".weight") and len(entry.shape) == 2
    }


def official_module(
    module: str, targets: Iterable[str] | Mapping[str, Any], flat: Mapping[str, str]
) -> str | None:
    """The model's name of a module as a LoRA file names it; None when the model lacks it."""
    name = module.removeprefix("base_model.model.")
    if name.startswith("lora_unet_"):
        name = name.removeprefix("lora_unet_")
        return flat.get(name) or flat.get(name.removeprefix("model_"))
    name = name.replace("diffusion_model.", "").removeprefix("model.")
    short = name.removeprefix("transformer.").removeprefix("connectors.")
    head, _, rest = short.partition(".")
    renamed = ".".join(filter(None, (_DIFFUSERS.get(head, head), rest)))
    if "_connector." in short:
        renamed = renamed.replace("transformer_blocks.", "transformer_1d_blocks.")
    return next((n for n in (name, short, renamed) if n in targets), None)


def fuse(
    weight: Array,
    updates: Sequence[tuple[Array, Array, float]],
    *,
    dtype: str = "bfloat16",
    delta_dtype: str = "bfloat16",
) -> Array:
    """Add low-rank updates to a weight with the official rounding (spec/lora.md §2).

    Args:
        weight: float32 values, `[out, in]`.
        updates: `(down [rank, in], up [out, rank], strength)` in order; float32 values.
        dtype: the weight's own dtype, `bfloat16` or `float32`; the result is rounded to it.
        delta_dtype: what factors and deltas are rounded to. Official: bfloat16 whatever `dtype`
            is; float32 is what the official arithmetic does to a float32 model.

    Returns:
        float32 values, `[out, in]`.
    """
    delta: Array | None = None
    for down, up, strength in updates:
        down, up, scale = cast(down, delta_dtype), cast(up, delta_dtype), np.float32(strength)
        if delta is None:
            delta = cast(cast(up * scale, delta_dtype) @ down, delta_dtype)
        else:
            delta = cast(delta + scale * (up @ down), delta_dtype)
    return weight if delta is None else cast(delta + weight, dtype)


def fuse_entry(
    files: MappedFiles,
    weight: TensorEntry,
    updates: Sequence[tuple[LoraPair, float]],
    *,
    dtype: str | None = None,
    delta_dtype: str = "bfloat16",
) -> Array:
    """Fuse LoRA pairs, each with its strength, into a checkpoint tensor; float32 values.

    `dtype` defaults to `fused_dtype`; see `fuse`.
    """
    loaded = [
        (files.load(p.down, "float32"), files.load(p.up, "float32"), strength * p.scale)
        for p, strength in updates
    ]
    dtype = dtype or fused_dtype(weight)
    return fuse(files.load(weight, "float32"), loaded, dtype=dtype, delta_dtype=delta_dtype)


def fused_dtype(weight: TensorEntry) -> str:
    """What a fused weight is rounded to: its own dtype, bfloat16 for quantised ones.

    The runtime does not quantise fused weights again (spec/lora.md §5 does): bfloat16 keeps
    more of them, and the delta is a bfloat16 number anyway.
    """
    return "float32" if weight.dtype in {"float64", "float32", "float16"} else "bfloat16"


def collect_updates(
    loras: Iterable[tuple[Adapter, float]],
) -> dict[str, list[tuple[LoraPair, float]]]:
    """Module -> its updates in list order; LoRAs of strength 0 change nothing and are left out."""
    updates: dict[str, list[tuple[LoraPair, float]]] = {}
    for lora, strength in loras:
        for module, pair in lora.pairs.items() if strength else ():
            updates.setdefault(module, []).append((pair, strength))
    return updates


def flat_names(targets: Iterable[str]) -> dict[str, str]:
    """Flattened official name, as kohya files use it -> official name."""
    flat = {name.replace(".", "_"): name for name in targets}
    for name in list(flat):
        if name.startswith("video_embeddings_connector_"):
            flat[name.removeprefix("video_")] = flat[name]
    return flat


def weight_module(component: str, layer: int, weight: str) -> str:
    """The official module of a component's weight: block weights are named without their layer."""
    prefix = f"transformer_blocks.{layer}." if component.startswith(TRANSFORMER_BLOCK) else ""
    return prefix + weight.removesuffix(".weight")


def factor_names(module: str) -> tuple[str, str]:
    """Inputs A `[in, r]` and B `[r, out]` of graphs that take LoRAs unmerged: the names of the
    official format.
    """
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


class LoraMerger:
    """LoRAs matched to a transformer, merged into its weights one tensor at a time.

    The weights they start from are never changed: without LoRAs, or with others, the same tensors
    are read again.

    Args:
        loras: files and strengths, in order; those of strength 0 change nothing.
        targets: official module -> weight shape.
        dtype, delta_dtype: see `fuse_entry`.

    Raises:
        CheckpointError: a file is not a LoRA, is broken, or fits no module of this transformer.
        UnsupportedError: an adapter kind that cannot be merged.
    """

    def __init__(
        self,
        loras: Iterable[Lora],
        targets: Mapping[str, tuple[int, ...]],
        *,
        dtype: str | None = None,
        delta_dtype: str = "bfloat16",
    ) -> None:
        adapters = []
        for lora in loras:
            adapter = parse_lora(open_lora(lora.path), targets)
            if adapter.skipped:
                logger.warning(
                    "%d of %d modules of LoRA %s are not part of this transformer: ignored",
                    len(adapter.skipped),
                    len(adapter.skipped) + len(adapter.pairs),
                    lora.path,
                )
            adapters.append((adapter, lora.strength))
        self._updates = collect_updates(adapters)
        self._dtype, self._delta_dtype = dtype, delta_dtype
        self._files = MappedFiles()

    def changes(self, module: str) -> bool:
        """Whether any LoRA changes this module's weight."""
        return module in self._updates

    def merge(self, module: str, weight: TensorEntry) -> Array:
        """The merged weight `[out, in]`, float32 values."""
        return fuse_entry(
            self._files,
            weight,
            self._updates[module],
            dtype=self._dtype,
            delta_dtype=self._delta_dtype,
        )

    @property
    def rank(self) -> int:
        """The largest rank of all updates of one module together; at least 1."""
        sums = (sum(pair.rank for pair, _ in pairs) for pairs in self._updates.values())
        return max(sums, default=1)

    def factors(self, module: str, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """All updates of a module as one, for graphs that take them unmerged.

        Args:
            shape: of the module's weight, `[out, in]`.

        Returns:
            A `[in, rank]` and B `[rank, out]` with the strengths, float32; zeros where ranks are
            left over (spec/lora.md §4: ranks side by side).
        """
        out, width = shape
        down = np.zeros((self.rank, width), np.float32)
        up = np.zeros((out, self.rank), np.float32)
        begin = 0
        for pair, strength in self._updates.get(module, ()):
            rows = slice(begin, begin + pair.rank)
            down[rows] = self._files.load(pair.down, "float32")
            up[:, rows] = self._files.load(pair.up, "float32") * np.float32(strength * pair.scale)
            begin += pair.rank
        return np.ascontiguousarray(down.T), np.ascontiguousarray(up.T)
