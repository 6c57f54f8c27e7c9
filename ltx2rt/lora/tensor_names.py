"""From the names in an adapter's file to the model's official tensor names.

Every official name is known by its own spelling, diffusers' (spec/checkpoints.md §2), and
both with underscores for dots: flattened names are found by flattening, never by rules
(spec/lora.md §1). Prefixes of trainers and wrappers are peeled off one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

#: official path segments -> diffusers' ones
DIFFUSERS_PARTS: dict[str, str] = {
    "patchify_proj": "proj_in",
    "audio_patchify_proj": "audio_proj_in",
    "adaln_single": "time_embed",
    "audio_adaln_single": "audio_time_embed",
    "prompt_adaln_single": "prompt_adaln",
    "audio_prompt_adaln_single": "audio_prompt_adaln",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
    "scale_shift_table_a2v_ca_video": "video_a2v_cross_attn_scale_shift_table",
    "scale_shift_table_a2v_ca_audio": "audio_a2v_cross_attn_scale_shift_table",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
    "video_embeddings_connector": "video_connector",
    "audio_embeddings_connector": "audio_connector",
    "transformer_1d_blocks": "transformer_blocks",
}
_TEXT_PROJECTION = "text_embedding_projection."
DIFFUSERS_PROJECTIONS = {
    "aggregate_embed": "text_proj_in",
    "video_aggregate_embed": "video_text_proj_in",
    "audio_aggregate_embed": "audio_text_proj_in",
}
#: left out wherever they stand: the official loader does so with the first, `torch.compile` adds
#: the second, PEFT the others
_ANYWHERE = ("diffusion_model.", "_orig_mod.", ".base_layer", ".modules_to_save")
_PREFIXES = (
    "base_model.model.", "model.", "transformer.", "unet.", "dit.", "pipe.", "module.",
    "velocity_model.", "connectors.",
)  # fmt: skip
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_", "oft_unet_")
_FLAT_INNER = ("model_", "diffusion_model_", "transformer_", "dit_", "unet_")


class TensorNames:
    """The tensors of a model, found by the names that adapters give them.

    Args:
        tensors: official names (`transformer_blocks.0.attn1.to_q.weight`, `scale_shift_table`).
    """

    def __init__(self, tensors: Iterable[str]) -> None:
        self._tensors = frozenset(tensors)
        self._stems: dict[str, str] = {}
        stems = dict.fromkeys(stem_of(name)[0] for name in sorted(self._tensors))
        for spelling in (_official, _short, _diffusers):
            for stem in stems:
                alias = spelling(stem)
                self._stems.setdefault(alias, stem)
                self._stems.setdefault(alias.replace(".", "_"), stem)

    def find(self, name: str, field: str) -> str | None:
        """The official name of a module's `weight` or `bias`, or of a tensor that is neither.

        Args:
            name: of the module, or the whole tensor, as a file spells it.
            field: `weight`, `bias`, or "" for a tensor named in full.

        Returns:
            None where the model has no such tensor.
        """
        for spelling in spellings(name):
            stem = self._stems.get(spelling)
            if stem is None:
                continue
            whole = () if field == "bias" else (stem,)
            return next((n for n in (f"{stem}.{field}", *whole) if n in self._tensors), None)
        return None


def stem_of(tensor: str) -> tuple[str, str]:
    """A tensor's module and field: `weight`, `bias`, or "" when it has neither."""
    stem, _, field = tensor.rpartition(".")
    return (stem, field) if field in {"weight", "bias"} else (tensor, "")


def is_flat(name: str) -> bool:
    """Whether a file spells a module with underscores for dots."""
    return name.startswith(FLAT_PREFIXES)


def spellings(name: str) -> Iterator[str]:
    """A name, and what is left of it when prefixes are peeled off."""
    for word in _ANYWHERE:
        name = name.replace(word, "")
    flat = next((p for p in FLAT_PREFIXES if name.startswith(p)), None)
    prefixes = _PREFIXES if flat is None else _FLAT_INNER
    name = name.removeprefix(flat or "")
    while True:
        yield name
        prefix = next((p for p in prefixes if name.startswith(p)), None)
        if prefix is None:
            return
        name = name.removeprefix(prefix)


def _official(stem: str) -> str:
    return stem


def _short(stem: str) -> str:
    """As files of video-only models call the connector, and old diffusers the last projection."""
    return stem.removeprefix("video_" if "_embeddings_connector." in stem else "").removesuffix(
        ".0" if stem.endswith(".to_out.0") else ""
    )


def _diffusers(stem: str) -> str:
    if stem.startswith(_TEXT_PROJECTION):
        return DIFFUSERS_PROJECTIONS.get(stem.removeprefix(_TEXT_PROJECTION), stem)
    return ".".join(DIFFUSERS_PARTS.get(part, part) for part in stem.split("."))
