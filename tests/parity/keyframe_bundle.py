"""The demo model with a keyframe embedding and a temporal upsampler: what `dfr` needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ltx2rt_export.bundle as export
from ltx2rt.bundle.manifest import BuildInputs, read_manifest
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile
from ltx2rt.weights.safetensors_writer import bfloat16, write_safetensors
from ltx2rt_export.graph import ExportedGraph
from ltx2rt_export.onnx import export_component
from tests.once import made_once
from tests.parity.command_line import graphs_as_exported, use_export
from tests.parity.golden import REPOSITORY, Runner

KEYFRAMES = "model.diffusion_model.keyframes_abs_pos_embedding"


@pytest.fixture(scope="session")
def keyframe_bundle(
    demo_model: dict[str, Path], demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The demo model with a keyframe embedding and a temporal upsampler, as a bundle; read-only.

    Only what differs from the demo bundle is exported.
    """

    def build(folder: Path) -> dict[str, Path]:
        return {"bundle": build_keyframe_bundle(demo_model, demo_bundle, folder)}

    return made_once(tmp_path_factory, "keyframes", build)["bundle"]


def build_keyframe_bundle(demo_model: dict[str, Path], demo_bundle: Path, folder: Path) -> Path:
    names = keyframe_files(demo_model, folder)
    inputs = BuildInputs(**{name: str(path) for name, path in names.items()})
    manifest, graph = read_manifest(demo_bundle), graphs_as_exported(demo_bundle)

    def reuse(component: Any, *dtype: str) -> ExportedGraph:
        entry = manifest.components.get(component.name)
        if entry is None or component.name == "transformer_head":
            return export_component(component, *dtype)
        return ExportedGraph(component, graph(component), (), frozenset(entry.transposed))

    with pytest.MonkeyPatch.context() as patch:
        use_export(reuse, patch)
        export.build_bundle(
            export.open_inputs(inputs), inputs, folder / "demo.bundle", export.BuildConfig()
        )
    return folder / "demo.bundle"


def keyframe_files(demo_model: dict[str, Path], folder: Path) -> dict[str, Path]:
    """The model's files, as a build names them; what the demo model lacks goes into `folder`."""
    file, maps = SafetensorsFile(demo_model["checkpoint"]), MappedFiles()
    tensors: dict[str, Any] = {n: (e.dtype, e.shape, (maps.raw(e),)) for n, e in file.items()}
    width = file["model.diffusion_model.patchify_proj.weight"].shape[0]
    embedding = np.random.default_rng(0).standard_normal((1, width)).astype(np.float32)
    tensors[KEYFRAMES] = bfloat16(embedding)
    checkpoint = folder / "ltx-2.5-demo-distilled.safetensors"
    write_safetensors(checkpoint, tensors, file.metadata)
    return {
        "checkpoint": checkpoint,
        "gemma": demo_model["gemma"],
        "spatial_upsampler": demo_model["spatial_upsampler"],
        "temporal_upsampler": Runner(REPOSITORY / "tests/golden", "torch").checkpoint(
            "ltx-2.3-tiny-temporal-upscaler-x2.safetensors"
        ),
    }
