"""LoRA goldens: fused weights in numpy; forward passes with the transformer's weights fused."""

from __future__ import annotations

import numpy as np
from ltx2rt_export.kinds import split_components
from ltx2rt_export.lora import collect_updates, fuse_entry, lora_targets, parse_lora

from ltx2rt.safetensors import MappedFiles, SafetensorsFile, TensorEntry
from tests.parity.golden import Case, Runner, Skip, handles


@handles("lora")
def lora(case: Case, run: Runner) -> dict[str, np.ndarray]:
    if isinstance(case.params.get("strengths"), dict):
        return _fused_weights(case, run)
    raise Skip("no handler for a forward pass with fused weights")


def _fused_weights(case: Case, run: Runner) -> dict[str, np.ndarray]:
    """Outputs are `<setting>.<weight>`; a setting is one strength for every LoRA of the case."""
    tensors = _transformer(case, run)
    updates = {
        setting: _updates(run, tensors, zip(case.params["loras"], strengths, strict=True))
        for setting, strengths in case.params["strengths"].items()
    }
    files = MappedFiles()
    result = {}
    for output in case.outputs:
        setting = next(s for s in updates if output.startswith(f"{s}."))
        name = output.removeprefix(f"{setting}.")
        module = name.removesuffix(".weight")
        result[output] = fuse_entry(files, tensors[name], updates[setting].get(module, []))
    return result


def _transformer(case: Case, run: Runner) -> dict[str, TensorEntry]:
    return split_components(SafetensorsFile(run.checkpoint(case.checkpoint)))["transformer"]


def _updates(run: Runner, tensors: dict[str, TensorEntry], loras):
    targets = lora_targets(tensors)
    return collect_updates(
        (parse_lora(SafetensorsFile(run.checkpoint(file)), targets), strength)
        for file, strength in loras
    )
