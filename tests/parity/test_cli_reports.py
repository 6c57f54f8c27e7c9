"""`ltx2rt inspect`, `doctor` and `verify`, for people and as JSON."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.bundle.manifest import read_manifest
from ltx2rt.cli import doctor
from ltx2rt.device.cuda import Gpu
from ltx2rt.install import install_hint
from ltx2rt.weights.safetensors import SafetensorsFile
from ltx2rt.weights.safetensors_writer import write_safetensors
from ltx2rt_export import verify
from tests.parity.command_line import edited_bundle, expect_user_error, ltx2rt, only_components

TO_Q = "diffusion_model.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    tensors = {
        f"{TO_Q}.lora_A.weight": np.ones((2, 64), np.float32),
        f"{TO_Q}.lora_B.weight": np.ones((64, 2), np.float32),
    }
    write_safetensors(path, tensors)
    return path


def test_inspect_model_files(demo_model: dict[str, Path], lora: Path) -> None:
    for path, kind, words in (
        (demo_model["checkpoint"], "checkpoint", ("an LTX-2 checkpoint", "LTX-2.3", "video VAE")),
        (demo_model["spatial_upsampler"], "spatial_upsampler", ("a spatial upsampler",)),
        (demo_model["gemma"], "gemma", ("Gemma weights", "gemma3")),
        (lora, "lora", ("a LoRA", "rank")),
    ):
        text, data = ltx2rt("inspect", path), ltx2rt("inspect", path, "--json")
        assert (text.code, text.err, data.code, data.err) == (0, "", 0, "")
        assert all(word in text.out for word in (str(path), *words)), text.out
        assert data.json["kind"] == kind
        assert data.json["path"] == str(path)
    assert data.json["lora"]


def test_inspect_bundle(demo_bundle: Path, demo_model: dict[str, Path], tmp_path: Path) -> None:
    manifest = read_manifest(demo_bundle)
    text, report = ltx2rt("inspect", demo_bundle).out, ltx2rt("inspect", demo_bundle, "--json").json
    assert report["kind"] == "bundle"
    assert report["id"] == manifest.bundle_id
    assert report["components"].keys() == manifest.components.keys()
    assert report["pipelines"]["distilled"] == {"runs": True, "missing": []}
    block = report["components"]["transformer_block"]
    elements = sum(
        SafetensorsFile(demo_model["checkpoint"])[name].num_elements
        for name in SafetensorsFile(demo_model["checkpoint"])
        if ".transformer_blocks." in name
    )
    assert block["parameters"] == elements
    assert block["layers"] == len(manifest.components["transformer_block"].layers)
    assert f"bundle {manifest.bundle_id}: LTX-2.3" in text
    assert "pipeline distilled: runs" in text
    assert str(demo_model["checkpoint"]) in text

    def remove(data: dict[str, Any]) -> None:
        del data["components"]["spatial_upsampler"]

    less = edited_bundle(demo_bundle, tmp_path / "less", remove)
    assert "pipeline distilled: needs spatial_upsampler" in ltx2rt("inspect", less).out


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_inspect_refuses(flags: tuple[str, ...], tmp_path: Path) -> None:
    expect_user_error(ltx2rt("inspect", tmp_path / "none", *flags), "No such file")
    expect_user_error(ltx2rt("inspect", tmp_path, *flags), "is a folder without weights")
    text = tmp_path / "x.safetensors"
    text.write_text("hello, this is no safetensors file")
    expect_user_error(ltx2rt("inspect", text, *flags), "is a text file: give a .safetensors file")
    (tmp_path / "manifest.json").write_text("{}")
    expect_user_error(ltx2rt("inspect", tmp_path, *flags), "has schema None")


def test_doctor_plans_memory(demo_bundle: Path, demo_model: dict[str, Path]) -> None:
    report = ltx2rt("doctor", demo_bundle, "--json").json["bundle"]
    assert report["id"] == read_manifest(demo_bundle).bundle_id
    sizes, stages = report["component_weight_bytes"], report["stage_weight_bytes"]
    assert all(sizes[name] > 0 for name in read_manifest(demo_bundle).components)
    upsampler = SafetensorsFile(demo_model["spatial_upsampler"])
    statistics = 2 * 128  # the video VAE's, by which latents are scaled
    elements = sum(e.num_elements for e in upsampler.values()) + statistics
    assert sizes["spatial_upsampler"] == 4 * elements
    blocks = sizes["text_block"] // len(read_manifest(demo_bundle).components["text_block"].layers)
    ends = sizes["text_head"] + sizes["text_tail"]
    assert stages["encode prompt"] == ends + blocks  # its layers are held one at a time
    assert stages["denoise"] > sizes["transformer_block"]
    host = report["host"]
    assert host["kept_layers"] == host["layers"] == 3
    planned = ltx2rt("doctor", demo_bundle, "--memory", "64GiB").out
    assert "plan for a machine of 64.00 GiB:\n  the 3 layers of the transformer take" in planned
    expect_user_error(
        ltx2rt("doctor", demo_bundle, "--memory", "64GiB", "--shape", "64x64x9"), "runs on a CPU"
    )
    for size in ("24", "24 cats"):  # a card of 24 bytes is none
        expect_user_error(
            ltx2rt("doctor", demo_bundle, "--memory", size), f"'{size}' is no size; write it like"
        )
    outcome = ltx2rt("doctor", demo_bundle)
    assert outcome.code == 0
    text = outcome.out
    assert text.splitlines()[-1] == "verdict: this machine can run the bundle."
    assert f"bundle {report['id']} is complete" in text
    assert all(stage in text for stage in stages)
    assert "run on" not in text  # no engines, no GPU wanted


def test_doctor_names_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    report = ltx2rt("doctor", "--json").json
    assert set(report["packages"]["GPU backends"]) == {"tensorrt", "tensorrt-rtx", "cuda-bindings"}
    bare = {**report, "packages": {**report["packages"], "build": {"onnx": None}}}
    assert f"to build bundles it needs {install_hint('build')}" in doctor.verdict(bare)[1]
    monkeypatch.setattr(doctor, "local_gpu", lambda purpose: Gpu("a card", "sm89", 24 << 30))
    monkeypatch.setattr(doctor, "driver_cuda", lambda: (13, 1))
    assert "GPU: a card (sm89, 24.00 GiB), driver for CUDA 13.1" in ltx2rt("doctor").out
    bundle = {"id": "b", "backend": "tensorrt-rtx", "precision": "bf16", "stage_weight_bytes": {}}
    shown = {**report, "gpu": doctor.gpu()}
    can, said = doctor.verdict({**shown, "bundle": {**bundle, "targets": ["sm120"]}})
    assert not can
    assert "its engines run on sm120, and it has a card (sm89); build it anew" in said
    assert doctor.verdict({**shown, "bundle": {**bundle, "targets": ["sm89"]}})[0]
    large = {**bundle, "targets": [], "stage_weight_bytes": {"denoise": 2**50}}
    can, said = doctor.verdict({**shown, "bundle": large})
    assert not can
    assert "largest stage needs 1048576.00 GiB of weights" in said


def test_verify_agrees_everywhere(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also through a relative path."""
    monkeypatch.chdir(demo_bundle.parent)
    outcome = ltx2rt("verify", demo_bundle.name, "--json", "--seed", 5)
    assert outcome.code == 0, outcome.out
    report = outcome.json
    manifest = read_manifest(demo_bundle)
    assert report["passed"]
    assert report["bundle"] == manifest.bundle_id
    rungs = report["rungs"]
    entries = {
        **manifest.components,
        "transformer_block_unmasked": manifest.components["transformer_block"],
    }
    outputs = {(name, t.name) for name, e in entries.items() for t in e.outputs}
    assert {(r["component"], r["output"]) for r in rungs} == outputs
    last = len(manifest.components["transformer_block"].layers) - 1
    layers = {r["layer"] for r in rungs if r["component"] == "transformer_block"}
    assert layers == {0, last}
    assert all(r["passed"] and r["rel_rms"] <= r["bound"] for r in rungs)
    assert all(r["max_abs"] < np.inf for r in rungs)
    assert "FAILS" not in outcome.err
    assert len(outcome.err.splitlines()) == len(rungs)


def test_verify_sees_exchanged_weights(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tensors of one shape change places: every file is intact, the model is wrong."""

    def exchange(data: dict[str, Any]) -> None:
        layer = data["components"]["transformer_block"]["layers"][0]
        one, two = (layer[f"attn1.to_{k}.weight"] for k in "qk")
        assert one["shape"] == two["shape"]
        one["offset"], two["offset"] = two["offset"], one["offset"]

    bundle = edited_bundle(demo_bundle, tmp_path / "b", exchange)
    assert ltx2rt("doctor", bundle).code == 0
    only_components(monkeypatch, "transformer_block")
    text, data = ltx2rt("verify", bundle), ltx2rt("verify", bundle, "--json")
    assert (text.code, data.code) == (1, 1)
    assert not data.json["passed"]
    failed = [r for r in data.json["rungs"] if not r["passed"]]
    assert failed
    assert {(r["component"], r["layer"]) for r in failed} == {
        ("transformer_block", 0),
        ("transformer_block_unmasked", 0),
    }
    assert text.out.count("FAIL") == text.err.count("FAILS") == len(failed)
    assert f"of {len(data.json['rungs'])} outputs agree" in text.out


def test_verify_fails_on_numbers_that_are_none(demo_bundle: Path) -> None:
    """NaN agrees with nothing, and the JSON stays JSON."""
    rung = verify.Rung("x", None, "y", float("nan"), float("nan"), 1e-5)
    assert not rung.passed


def test_verify_needs_the_originals(demo_bundle: Path, tmp_path: Path) -> None:
    def forget(data: dict[str, Any]) -> None:
        data["build"]["spatial_upsampler"] = str(tmp_path / "gone.safetensors")

    bundle = edited_bundle(demo_bundle, tmp_path / "b", forget)
    expect_user_error(ltx2rt("verify", bundle, "--json"), tmp_path / "gone.safetensors")


def test_bundle_may_be_moved(demo_bundle: Path, tmp_path: Path) -> None:
    moved = tmp_path / "deeper" / "b"
    shutil.copytree(demo_bundle, moved)
    assert open_bundle(moved).bundle_id == read_manifest(demo_bundle).bundle_id
    assert read_manifest(moved) == read_manifest(demo_bundle)
