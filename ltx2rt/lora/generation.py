"""Which generations of the model an adapter can belong to."""

from __future__ import annotations

import re

from ltx2rt.lora.keys import LoraKeys
from ltx2rt.weights.safetensors import SafetensorsFile

#: metadata that names the model an adapter was trained on
_VERSION_KEYS = (
    "model_version", "ss_base_model_version", "ss_sd_model_name", "modelspec.architecture",
    "ltx_version", "base_model",
)  # fmt: skip


def lora_generations(file: SafetensorsFile, keys: LoraKeys) -> tuple[str, ...]:
    """Generations whose modules a LoRA can belong to; shapes alone often fit all three."""
    fits = ["LTX-2", "LTX-2.3", "LTX-2.5"]
    names = [target.name for target in keys.updates]
    newer = any(re.search(r"to_gate_logits|prompt_(adaln|scale_shift)", name) for name in names)
    older = any(re.search(r"caption_projection|\.aggregate_embed$", name) for name in names)
    for target, update in keys.updates.items():
        if re.search(r"(^|[._])(adaln_single|time_embed)[._]linear$", target.name):
            if update.shape is not None and len(update.shape) == 2:
                rows = update.shape[0] // max(update.shape[1], 1)
                newer, older = newer or rows == 9, older or rows == 6
    if newer and not older:
        fits = fits[1:]
    elif older and not newer:
        fits = fits[:1]
    named = {"2.5": "LTX-2.5", "2.3": "LTX-2.3", "19b": "LTX-2"}
    said = [file.path.name, *(file.metadata.get(key, "") for key in _VERSION_KEYS)]
    hints = {fit for sign, fit in named.items() if any(sign in text.lower() for text in said)}
    both = [fit for fit in fits if fit in hints]
    return tuple(both or fits)


def misfit(file: SafetensorsFile, keys: LoraKeys, generation: str) -> str | None:
    """Why an adapter may not work on a model of this generation; None when nothing says so."""
    fits = lora_generations(file, keys)
    if generation in fits:
        return None
    return (
        f"{file.path.name} was made for {' or '.join(fits)}, this model is {generation}: adapters "
        "of another generation often fit in shape and do not work"
    )
