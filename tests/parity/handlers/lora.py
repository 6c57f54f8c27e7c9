"""LoRA goldens: fused weights in numpy; forward passes with the transformer's weights fused."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ltx2rt.components.transformer import Transformer
from ltx2rt.lora.adapter import Updates, collect_updates, fuse_entry, lora_targets, parse_lora
from ltx2rt.lora.files import Lora
from ltx2rt.names import TRANSFORMER_STACK
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile, TensorEntry
from ltx2rt_export.checkpoint import open_model
from ltx2rt_export.fuse_loras import fuse_loras
from ltx2rt_export.modules.transformer import (
    transformer_block,
    transformer_head,
    transformer_tail,
)
from ltx2rt_export.reference import component_stack
from tests.parity.golden import Case, Runner, handles
from tests.parity.handlers.transformer import modality


@handles("lora")
def lora(case: Case, run: Runner) -> dict[str, np.ndarray]:
    return _fused_weights(case, run) if "strengths" in case.params else _forward(case, run)


def _fused_weights(case: Case, run: Runner) -> dict[str, np.ndarray]:
    """Outputs are `<setting>.<weight>`; a setting is one strength for every LoRA of the case."""
    model = open_model(run.checkpoint(case.checkpoint), need=())
    tensors = model.tensors("transformer")
    updates = {
        setting: _updates(run, tensors, zip(case.params["loras"], strengths, strict=True))
        for setting, strengths in case.params["strengths"].items()
    }
    files = MappedFiles()
    result = {}
    for output in case.outputs:
        setting = next(s for s in updates if output.startswith(f"{s}."))
        name = output.removeprefix(f"{setting}.")
        result[output] = fuse_entry(files, tensors[name], updates[setting].get(name, []))
    return result


def _updates(
    run: Runner, tensors: dict[str, TensorEntry], loras: Iterable[tuple[str, float]]
) -> Updates:
    targets = lora_targets(tensors)
    return collect_updates(
        (parse_lora(SafetensorsFile(run.checkpoint(file)), targets), strength)
        for file, strength in loras
    )


def _forward(case: Case, run: Runner) -> dict[str, np.ndarray]:
    """One pass of the transformer with the LoRAs fused as `ltx2rt build --lora` does it."""
    loras = [
        Lora(path=str(run.checkpoint(item["file"])), strength=item["strength"])
        for item in case.params["loras"]
    ]
    files = open_model(run.checkpoint(case.checkpoint), need=())
    config, tensors = files.config("transformer"), files.tensors("transformer")
    makers = (transformer_head, transformer_block, transformer_tail)
    plain = [make(config, tensors) for make in makers]
    with tempfile.TemporaryDirectory() as folder:
        fused = fuse_loras(plain, files, loras, Path(folder))
        stack = component_stack(TRANSFORMER_STACK, fused, run.engine, run.layers)
    model = Transformer(stack, fused[1].options)
    velocities = model(modality(case, "video"), modality(case, "audio"))
    return {
        f"{name}.velocity": velocity
        for name, velocity in zip(("video", "audio"), velocities, strict=True)
        if velocity is not None
    }
