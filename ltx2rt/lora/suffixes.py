"""The ends of tensor names in adapter files: which part of which kind a tensor is."""

from __future__ import annotations

import re
from typing import NamedTuple

#: a slot of PEFT (`lora_A.default.weight`), `.weight`, both or neither
_SLOT = r"(\.(?!bias$)\w+)?(\.weight)?"
_PARTS: tuple[tuple[str, str], ...] = (
    (rf"(lora_A|lora_down|lora\.down|lora_linear_layer\.down){_SLOT}", "down"),
    (rf"(lora_B|lora_up|lora\.up|lora_linear_layer\.up){_SLOT}", "up"),
    (r"lora_mid(\.weight)?", "mid"),
    (r"(lora_B|lora_up)(\.\w+)?\.bias", "up_bias"),
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
    (r"alpha", "alpha"),
)
_KNOWN = re.compile(
    r"(?P<base>.+?)\.(?:"
    + "|".join(f"(?P<p{i}>{pattern})" for i, (pattern, _) in enumerate(_PARTS)).replace(
        "(?P<piece>", "("
    )
    + r")$"
)
_PIECE = re.compile(r"(hada|lokr)_(w[12](_[ab])?|t[12])")
#: what old diffusers writes for an attention: `attn1.processor.to_q_lora.down.weight`
_PROCESSOR = re.compile(r"\.(\w+)_lora\.(down|up)\.")

#: kinds that are named and refused -> pattern of one of their tensors
UNSUPPORTED: dict[str, re.Pattern[str]] = {
    "OFT of PEFT or musubi-tuner (oft_R)": re.compile(r"\.(oft_R\b|oft_\w+_metadata$)"),
    "BOFT of PEFT": re.compile(r"\.boft_[RSs]\b"),
    "(IA)^3": re.compile(r"\.(ia3_l\b|on_input$)"),
    "GLoRA": re.compile(r"\.[ab][12]\.weight$|\.bm\.weight$"),
    "AdaLoRA": re.compile(r"\.lora_E\b"),
    "VeRA or RandLoRA": re.compile(r"\.(vera_lambda|randlora_lambda)\w*"),
    "T-LoRA": re.compile(r"\.(lambda_layer|[pq]_layer\.weight)$"),
    "LoRA of an embedding": re.compile(r"\.lora_embedding_[AB]\b"),
    "a LoRA that changes its layer's size (reshape_weight)": re.compile(r"\.reshape_weight$"),
    "a magnitude of musubi-tuner's DoRA-OFT": re.compile(
        r"\.(initial_norm|dora_(log_)?multiplier)$"
    ),
}
#: tensors that say how others are stored: their scale
SCALE = re.compile(r"(?P<stem>.+)\.(weight_scale|scale_weight)$")
#: tensors that say nothing about what the adapter does
MARKER = re.compile(r"(^|\.)scaled_fp8$|\.(input_scale|scale_input)$")


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
