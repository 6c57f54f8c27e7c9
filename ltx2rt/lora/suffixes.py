"""The ends of tensor names in adapter files: which part of which kind a tensor is."""

from __future__ import annotations

import re
from typing import NamedTuple

#: a slot of PEFT (`lora_A.default.weight`), `.weight`, both or neither
_SLOT = r"(\.(?!(?:bias|\w*alpha|\w*scale\w*|scalar|comfy_quant)$)[\w-]+)?(\.weight)?"
_PARTS: tuple[tuple[str, str], ...] = (
    (rf"(lora_A|lora_down|lora\.down|lora_linear_layer\.down){_SLOT}", "down"),
    (rf"(lora_B|lora_up|lora\.up|lora_linear_layer\.up){_SLOT}", "up"),
    (r"lora_mid(\.weight)?", "mid"),
    (rf"lora_E{_SLOT}", "gains"),
    (r"(lora_B|lora_up)(\.[\w-]+)?\.bias", "up_bias"),
    (rf"(?P<piece>hada_(w[12]_[ab]|t[12])){_SLOT}", ""),
    (rf"(?P<piece>lokr_(w[12](_[ab])?|t2)){_SLOT}", ""),
    (r"dora_scale", "dora_scale"),
    (rf"lora_magnitude_vector{_SLOT}", "magnitude"),
    (r"diff", "diff"),
    (r"w_norm", "diff"),
    (r"diff_b", "diff_b"),
    (r"b_norm", "diff_b"),
    (r"set_weight", "set_weight"),
    (r"oft_blocks", "oft_blocks"),
    (r"rescale", "rescale"),
    (rf"oft_R{_SLOT}", "oft_R"),
    (rf"boft_R{_SLOT}", "boft_R"),
    (rf"boft_s{_SLOT}", "boft_s"),
    (rf"ia3_l{_SLOT}", "ia3_l"),
    (r"on_input", "on_input"),
    (r"(?P<piece>[ab][12])\.weight", ""),
    (r"alpha", "alpha"),
)
_KNOWN = re.compile(
    r"(?P<base>.+?)\.(?:"
    + "|".join(f"(?P<p{i}>{pattern})" for i, (pattern, _) in enumerate(_PARTS)).replace(
        "(?P<piece>", "("
    )
    + r")$"
)
_PIECE = re.compile(r"(hada|lokr)_(w[12](_[ab])?|t[12])|[ab][12](?=\.weight$)")
#: what old diffusers writes for an attention: `attn1.processor.to_q_lora.down.weight`
_PROCESSOR = re.compile(r"\.(\w+)_lora\.(down|up)\.")

#: kinds that are named and refused -> pattern of one of their tensors, the module as `base`
UNSUPPORTED: dict[str, re.Pattern[str]] = {
    kind: re.compile(rf"(?P<base>.+?)\.(?:{pattern})")
    for kind, pattern in {
        "OFT of musubi-tuner": r"oft_\w+_metadata$",
        "OFT of PEFT before 0.14 (oft_r)": r"oft_[rs](\.[\w-]+)?$",
        "GLoRA of PEFT": r"glora_[A-E]\b",
        "GLoRA of a convolution (bm)": r"bm\.weight$",
        "VeRA or RandLoRA": r"(vera_lambda|randlora_lambda)\w*",
        "T-LoRA": r"(lambda_layer|[pq]_layer\.weight)$",
        "LoRA of an embedding": r"lora_embedding_[AB]\b",
        "a LoRA that changes its layer's size (reshape_weight)": r"reshape_weight$",
        "a magnitude of musubi-tuner's DoRA-OFT": r"(initial_norm|dora_(log_)?multiplier)$",
    }.items()
}
#: tensors that say how others are stored: their scale, which multiplies the codes
SCALE = re.compile(
    r"(?P<stem>.+?)(?:\.weight)?[._](?:weight_scale_inv|weight_scale|scale_weight|scale)$"
)
#: tensors that say nothing about what the adapter does
MARKER = re.compile(r"(^|\.)scaled_fp8$|\.(input_scale|scale_input)$")
#: ComfyUI's text about a quantised layer; of FP8 it says nothing that dtype and scale do not
QUANT_TEXT = ".comfy_quant"


class Part(NamedTuple):
    """A tensor's place: the module (or tensor) that it is for, and which part of an update."""

    base: str
    part: str


def part_of(name: str) -> Part | None:
    """What a tensor is by its name; None when that is not an adapter's."""
    match = _KNOWN.match(_PROCESSOR.sub(r".\1.lora.\2.", name.replace(".processor.", ".")))
    if match is None:
        return None
    index = next(i for i in range(len(_PARTS)) if match[f"p{i}"] is not None)
    part = _PARTS[index][1]
    piece = _PIECE.match(match[f"p{index}"])
    return Part(match["base"], piece[0] if piece else part)
