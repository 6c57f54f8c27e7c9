"""The bundle of the demo model, which pipelines are compared on."""

from __future__ import annotations

from pathlib import Path


def demo_bundle(folder: Path) -> Path:
    """Build the tiny demo bundle."""
    from ltx2rt_export.demo import write_demo_model

    return bundle_of(write_demo_model(folder / "model"), folder / "demo.bundle")


def bundle_of(files: dict[str, Path], target: Path) -> Path:
    """Build the demo bundle from the model's files."""
    from ltx2rt.bundle.manifest import BuildInputs
    from ltx2rt_export.bundle import BuildConfig, build_bundle, open_inputs

    inputs = BuildInputs(
        checkpoint=str(files["checkpoint"]),
        gemma=str(files["gemma"]),
        spatial_upsampler=str(files["spatial_upsampler"]),
    )
    build_bundle(open_inputs(inputs), inputs, target, BuildConfig())
    return target
