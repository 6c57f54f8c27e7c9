"""Names of diffusers' LTX-2 modules, and the official ones (spec/checkpoints.md §2)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from ltx2rt.lora.tensor_names import DIFFUSERS_PARTS, DIFFUSERS_PROJECTIONS

_PARTS = {theirs: official for official, theirs in DIFFUSERS_PARTS.items()}
del _PARTS["transformer_blocks"]  # of connectors only
_PROJECTIONS = {theirs: official for official, theirs in DIFFUSERS_PROJECTIONS.items()}
_VOCODER = {
    "conv_in": "conv_pre",
    "upsamplers": "ups",
    "resnets": "resblocks",
    "act_out": "act_post",
    "conv_out": "conv_post",
}
_STATISTICS = {
    "latents_mean": "per_channel_statistics.mean-of-means",
    "latents_std": "per_channel_statistics.std-of-means",
}
#: a block of the VAE, and its sampler if the tensor belongs to that
_BLOCK = re.compile(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.((?:down|up)samplers\.0\.)?")
#: tensors that no engine reads: they follow from others
_UNUSED = re.compile(r"inverse_basis$")
#: where a part's tensors lie in an official checkpoint
PREFIXES: dict[str, str] = {
    "transformer": "model.diffusion_model.",
    "connectors": "",
    "video_vae": "vae.",
    "audio_vae": "audio_vae.",
    "vocoder": "vocoder.",
    "upsampler": "",
}


def official_names(part: str, names: Iterable[str]) -> dict[str, str]:
    """Each name of one of diffusers' modules -> where an official checkpoint holds the tensor.

    Args:
        part: a key of `PREFIXES`.
        names: all that the module has; what no engine reads is left out.
    """
    listed = [name for name in names if not _UNUSED.search(name)]
    spell = _SPELLINGS.get(part) or _video_vae(listed)
    return {name: PREFIXES[part] + spell(name) for name in listed}


def part_of_names(names: Iterable[str]) -> str | None:
    """Which of diffusers' modules has such names; None for none, and for official names."""
    known = set(names)
    signs = {
        "transformer": "transformer_blocks.0.audio_attn1.norm_q.weight",
        "connectors": "video_connector.learnable_registers",
        "vocoder": "upsamplers.0.weight",
        "duration_head": "attention_pooler.to_q.weight",
        "video_vae": "latents_mean",
    }
    part = next((part for part, sign in signs.items() if sign in known), None)
    if "decoder.conv_in_x_t.weight" in known:  # official files have it too, but one tensor of qkv
        return "diffusion_decoder" if any(".attn.to_q." in name for name in known) else None
    if part is None and "vocoder.upsamplers.0.weight" in known:
        return "vocoder"
    is_audio = any(".up.0." in name or ".down.0." in name for name in known)
    return "audio_vae" if part == "video_vae" and is_audio else part


def _transformer(name: str) -> str:
    return ".".join(_PARTS.get(part, part) for part in name.split("."))


def _connectors(name: str) -> str:
    head, _, rest = name.partition(".")
    if head in _PROJECTIONS:
        return f"text_embedding_projection.{_PROJECTIONS[head]}.{rest}"
    inner = rest.replace("transformer_blocks.", "transformer_1d_blocks.", 1)
    return f"model.diffusion_model.{_PARTS[head]}.{_norms(inner)}"


def _norms(name: str) -> str:
    return name.replace(".norm_q.", ".q_norm.").replace(".norm_k.", ".k_norm.")


def _audio_vae(name: str) -> str:
    return _STATISTICS.get(name, name)


def _vocoder(name: str) -> str:
    official = ".".join(_VOCODER.get(part, part) for part in name.split("."))
    return official.replace(".downsample.filter", ".downsample.lowpass.filter")


def _video_vae(names: Iterable[str]) -> Callable[[str], str]:
    """A spelling for a VAE: blocks and samplers are numbered in turn, the middle block after the
    encoder's others and before the decoder's.
    """
    found = [match for name in names if (match := _BLOCK.match(name))]
    last = 2 * (max((int(m[2]) for m in found if m[1] == "encoder.down"), default=-1) + 1)
    middles = {"encoder.mid_block.": f"encoder.down_blocks.{last}.",
               "decoder.mid_block.": "decoder.up_blocks.0."}  # fmt: skip

    def spell(name: str) -> str:
        if name in _STATISTICS:
            return _STATISTICS[name]
        match = _BLOCK.match(name)
        if match is not None:
            index, is_sampler = int(match[2]), match[3] is not None
            number = 2 * index + (is_sampler if match[1] == "encoder.down" else 2 - is_sampler)
            name = f"{match[1]}_blocks.{number}.{name[match.end() :]}"
        for theirs, official in middles.items():
            name = name.replace(theirs, official)
        return name.replace(".resnets.", ".res_blocks.")

    return spell


_SPELLINGS: dict[str, Callable[[str], str]] = {
    "transformer": _transformer,
    "connectors": _connectors,
    "audio_vae": _audio_vae,
    "vocoder": _vocoder,
    "upsampler": str,
}
