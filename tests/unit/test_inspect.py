"""`inspect_path`: facts from headers, readable and JSON-able, for every kind of file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ltx2rt.errors import CheckpointError
from ltx2rt.pipelines.catalog import PIPELINES as CATALOG
from ltx2rt.weights.safetensors import SafetensorsFile
from ltx2rt.weights.safetensors_writer import write_safetensors
from ltx2rt_export.checkpoint import open_model
from ltx2rt_export.inspect import PIPELINES, format_inspection, inspect_path
from tests.unit.checkpoint_files import copy_with, write_names

PREFIX = "model.diffusion_model."


def report(path: Path) -> tuple[dict, str]:
    info = inspect_path(path)
    assert json.loads(json.dumps(info)) == info
    return info, format_inspection(info)


def test_a_checkpoint(demo_model: dict[str, Path]) -> None:
    info, text = report(demo_model["checkpoint"])
    file = SafetensorsFile(demo_model["checkpoint"])
    assert info["kind"] == "checkpoint"
    assert info["tensors"] == len(file)
    assert info["bytes"] == sum(e.length for e in file.values())
    assert sum(c["parameters"] for c in info["components"]) == info["parameters"]
    assert sum(info["dtypes"].values()) == len(file)
    assert info["model_version"]["generation"] == "LTX-2.3"
    assert info["model_version"]["number"] == [2, 3, 0]
    needs = {p["name"]: p["needs"] for p in info["pipelines"]}
    assert needs.keys() == PIPELINES.keys() - {"dfr"}  # LTX-2.5 only
    assert needs["upscale"] == ["spatial or temporal upsampler"]
    assert needs["one-stage"] == ["Gemma 3 12B"]
    assert needs["distilled"] == ["Gemma 3 12B", "spatial upsampler"]
    for word in ("LTX-2.3 (model_version 2.3.0), distilled", "30 steps", "video VAE", "vocoder"):
        assert word in text


def test_a_dev_transformer_needs_more(demo_model: dict[str, Path], tmp_path: Path) -> None:
    path = copy_with(
        demo_model["checkpoint"],
        tmp_path / "x-dev.safetensors",
        keep=lambda n: n.startswith(PREFIX),
        metadata={"gemma_source_checkpoint": '{"gemma_version": "v1"}', "model_version": "2.5.0"},
    )
    info, text = report(path)
    assert info["kind"] == "transformer"
    assert info["gemma_version"] == "v1"
    needs = {p["name"]: p["needs"] for p in info["pipelines"]}["distilled"]
    assert needs == [
        "text projection", "video VAE", "audio VAE", "vocoder", "Gemma 4",
        "distilled transformer or distilled LoRA", "spatial upsampler",
    ]  # fmt: skip
    assert "ancestral" in text


def test_gemma_and_upsampler(demo_model: dict[str, Path]) -> None:
    info, text = report(demo_model["gemma"])
    assert info["gemma"]["hidden_layers"] == 6
    assert info["gemma"]["shards"] == 2
    assert info["gemma"]["fits"] == ["LTX-2", "LTX-2.3"]
    assert "gemma3" in text
    info, _ = report(demo_model["spatial_upsampler"])
    assert info["upsampler"] == {
        "direction": "space",
        "factor": 2.0,
        "rational": False,
        "channels": 32,
    }


def test_a_lora(tmp_path: Path) -> None:
    q = "diffusion_model.transformer_blocks.{}.attn1.to_q"
    specs = {f"{q.format(i)}.lora_A.weight": ("float32", (4, 8)) for i in range(3)}
    specs |= {f"{q.format(i)}.lora_B.weight": ("float32", (8, 4)) for i in range(3)}
    specs[f"{q.format(0)}.lora_E"] = ("float32", (8,))
    meta = {"reference_downscale_factor": "2", "lora_rank": "4"}
    path = write_names(tmp_path / "ic.safetensors", specs, meta).path
    info, text = report(path)
    lora = info["lora"]
    assert (lora["target_modules"], lora["layers"], lora["ranks"]) == (3, 3, [4])
    assert (lora["reference_downscale_factor"], lora["lora_rank"]) == (2, 4)
    assert [kind.split()[0] for kind in lora["unsupported"]] == ["AdaLoRA"]
    assert "official / ComfyUI" in text


def test_quantised_files_are_described(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    base = "transformer_blocks.0."
    specs = {
        f"{PREFIX}{n}": ("float32", (2, 2))
        for n in (
            "audio_patchify_proj.weight", f"{base}attn1.to_gate_logits.weight",
            f"{base}ff.net.0.proj.bias",
        )
    }  # fmt: skip
    specs[f"{PREFIX}{base}attn1.to_q.weight"] = ("float8_e4m3fn", (2, 2))
    specs[f"{PREFIX}{base}attn1.to_q.weight_scale"] = ("float32", ())
    info, text = report(write_names(tmp_path / "fp8.safetensors", specs).path)
    assert info["storage_format"]["name"] == "fp8_scaled"
    assert "FP8 with a scale per tensor or row, 1 layers\n" in text
    specs[f"{PREFIX}{base}attn1.to_q.weight_scale"] = ("float32", (3,))
    info, text = report(write_names(tmp_path / "broken.safetensors", specs).path)
    assert info["storage_format"]["buildable"] is False
    assert "1 layers (cannot be built)" in text
    assert "to_q.weight: its scale (weight_scale) is float32 [3]" in text
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(CheckpointError, match=r"x.gguf is damaged or truncated"):
        report(path)


def test_control_characters_of_files_are_escaped(tmp_path: Path) -> None:
    names = [
        "audio_patchify_proj.weight",
        "transformer_blocks.0.attn1.to_q.weight",
        "keyframes_abs_pos_embedding",
    ]
    meta = {"model_version": "2.5\x1b[31m\n"}
    _, text = report(write_names(tmp_path / "m.safetensors", names, meta).path)
    assert "\x1b" not in text
    assert r"\x1b[31m\n" in text


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_files_only_raise_our_errors(
    demo_model: dict[str, Path], tmp_path: Path, damage: list[tuple[int, int]]
) -> None:
    source = demo_model["spatial_upsampler"]
    content = bytearray(source.read_bytes())
    header = SafetensorsFile(source).data_offset
    for position, value in damage:
        content[position % header] = value
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    try:
        report(path)
    except CheckpointError:
        pass


def test_every_pipeline_is_listed() -> None:
    assert set(PIPELINES) == set(CATALOG)


@pytest.mark.parametrize(
    ("name", "kind", "flag"),
    [
        ("latents_2x4x4_bfloat16", "latents", "--latents"),
        ("stage_1.video", "latents", "--latents"),
        ("video_prompt_embeds_bfloat16", "embeddings", "--embeddings"),
        ("video_context", "embeddings", "--embeddings"),
    ],
)
def test_what_is_no_model_is_named(name: str, kind: str, flag: str, tmp_path: Path) -> None:
    path = tmp_path / "x_ltx2.safetensors"
    write_safetensors(path, {name: np.zeros((1, 2, 4, 4), np.float32)}, {})
    assert inspect_path(path)["kind"] == kind
    with pytest.raises(CheckpointError, match=f"give it as {flag} of `ltx2rt generate`"):
        open_model(path)
