"""Adapters of every place at run time: connectors and projections, biases, norms, tables; refused
before anything is loaded.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.bundle.loader import Loader
from ltx2rt.config import GenerationConfig, RuntimeConfig
from ltx2rt.engine import Array
from ltx2rt.errors import CheckpointError, OptionError
from ltx2rt.lora.files import Lora
from ltx2rt.names import ADAPTED_COMPONENTS, TRANSFORMER
from ltx2rt.pipelines.distilled import DistilledPipeline
from ltx2rt.weights.safetensors_writer import write_safetensors
from tests.parity.command_line import build_flags, ltx2rt, use_graphs_of

CONNECTOR = "video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q"
PROJECTION = "text_embedding_projection.audio_aggregate_embed"
BLOCK = "transformer_blocks.1"
SMALL = GenerationConfig(prompt="a lake", seed=3, height=64, width=64, num_frames=9, tiling="none")


def adapter(path: Path, bundle: Path, *, text: bool, block: bool) -> Lora:
    """Updates of several kinds and places: low-rank, LoKr, DoRA, biases, a norm, tables."""
    shapes = open_bundle(bundle).lora_targets()
    rng = np.random.default_rng(4)

    def random(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32) * np.float32(0.2)

    tensors: dict[str, Array] = {}
    if text:
        for module in (CONNECTOR, PROJECTION):
            out, width = shapes[f"{module}.weight"]
            tensors[f"diffusion_model.{module}.lora_A.weight"] = random(2, width)
            tensors[f"diffusion_model.{module}.lora_B.weight"] = random(out, 2)
        registers = "audio_embeddings_connector.learnable_registers"
        tensors[f"diffusion_model.{registers}.diff"] = random(*shapes[registers])
    if block:
        module = f"{BLOCK}.attn1.to_q"
        out, width = shapes[f"{module}.weight"]
        tensors[f"diffusion_model.{module}.lokr_w1"] = random(4, 4)
        tensors[f"diffusion_model.{module}.lokr_w2"] = random(out // 4, width // 4)
        module = f"{BLOCK}.attn2.to_v"
        out, width = shapes[f"{module}.weight"]
        tensors[f"diffusion_model.{module}.lora_A.weight"] = random(2, width)
        tensors[f"diffusion_model.{module}.lora_B.weight"] = random(out, 2)
        tensors[f"diffusion_model.{module}.dora_scale"] = 1 + random(out, 1)
        for name, suffix in (
            (f"{BLOCK}.attn1.to_k.bias", "diff_b"),
            (f"{BLOCK}.ff.net.2.bias", "diff_b"),
            (f"{BLOCK}.attn1.q_norm.weight", "w_norm"),
            ("adaln_single.linear.bias", "diff_b"),
        ):
            stem = name.rpartition(".")[0]
            tensors[f"diffusion_model.{stem}.{suffix}"] = random(*shapes[name])
        for table in (f"{BLOCK}.scale_shift_table", "scale_shift_table"):
            tensors[f"diffusion_model.{table}.diff"] = random(*shapes[table])
    write_safetensors(path, tensors)
    return Lora(path=str(path), strength=0.7)


def weights(bundle: Path, *loras: Lora) -> dict[str, Array]:
    opened = open_bundle(bundle)
    loader = Loader(opened)
    return {
        f"{name}.{index}.{weight}": array
        for name in filter(opened.has, ADAPTED_COMPONENTS)
        for index in range(len(opened.component(name).layers))
        for weight, array in loader.weights(name, index, loras).items()
    }


def test_run_time_equals_build_time(
    demo_bundle: Path,
    demo_model: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And nothing but the named tensors changes."""
    lora = adapter(tmp_path / "a.safetensors", demo_bundle, text=True, block=True)
    plain, merged = weights(demo_bundle), weights(demo_bundle, lora)
    changed = {n for n in plain if not np.array_equal(plain[n], merged[n])}
    assert changed == {
        f"text_tail.0.projection.{CONNECTOR}.weight",
        f"text_tail.0.projection.{PROJECTION}.weight",
        "text_tail.0.projection.audio_embeddings_connector.learnable_registers",
        "transformer_block.1.attn1.to_q.weight",
        "transformer_block.1.attn2.to_v.weight",
        "transformer_block.1.attn1.to_k.bias",
        "transformer_block.1.ff.net.2.bias",
        "transformer_block.1.attn1.q_norm.weight",
        "transformer_block.1.scale_shift_table",
        "transformer_head.0.adaln_single.linear.bias",
        "transformer_tail.0.scale_shift_table",
    }
    use_graphs_of(demo_bundle, monkeypatch)
    target = tmp_path / "built"
    flags = ["--lora", f"{lora.path}:{lora.strength}"]
    assert ltx2rt("build", "--quiet", *build_flags(demo_model), *flags, "-o", target).code == 0
    built = weights(target)
    for name, value in merged.items():
        np.testing.assert_array_equal(built[name], value, err_msg=name)


def test_contexts_follow_the_loras_of_their_connectors(demo_bundle: Path, tmp_path: Path) -> None:
    """Encoded anew when they change, alone; never saved as the model's own."""
    text = adapter(tmp_path / "text.safetensors", demo_bundle, text=True, block=False)
    block = adapter(tmp_path / "block.safetensors", demo_bundle, text=False, block=True)
    with DistilledPipeline(
        open_bundle(demo_bundle), RuntimeConfig(threads=1, residency="resident")
    ) as pipe:
        contexts = {}
        for name, loras in {"none": (), "block": (block,), "text": (text,), "again": ()}.items():
            pipe(replace(SMALL, loras=loras))
            assert pipe.engines.contexts is not None
            contexts[name] = pipe.engines.contexts
            if name == "text":
                with pytest.raises(OptionError, match="changes the text connectors"):
                    pipe.save_embeddings(tmp_path / "contexts.safetensors")
    assert contexts["block"] is contexts["none"]
    plain = contexts["none"][2]
    for stream in ("video", "audio"):
        before, after = getattr(plain, stream), getattr(contexts["text"][2], stream)
        assert np.linalg.norm(after - before) > 1e-3 * np.linalg.norm(before)
        np.testing.assert_array_equal(getattr(contexts["again"][2], stream), before)


def test_connectors_of_stage_2_alone_are_warned_of(
    demo_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = adapter(tmp_path / "text.safetensors", demo_bundle, text=True, block=True)
    with DistilledPipeline(open_bundle(demo_bundle), RuntimeConfig(threads=1)) as pipe:
        with caplog.at_level(logging.WARNING):
            pipe(replace(SMALL, stage_2_loras=(text,)))
    assert "text.safetensors changes the text connectors, but prompts are encoded" in caplog.text


def test_numbers_that_are_none_are_refused_before_anything_is_loaded(
    demo_bundle: Path, tmp_path: Path
) -> None:
    shape = open_bundle(demo_bundle).lora_targets()[f"{BLOCK}.scale_shift_table"]
    values = np.zeros(shape, np.float32)
    values[0, 1] = np.nan
    name = f"diffusion_model.{BLOCK}.scale_shift_table.diff"
    write_safetensors(tmp_path / "nan.safetensors", {name: values})
    lora = Lora(path=str(tmp_path / "nan.safetensors"), strength=1.0)
    with DistilledPipeline(open_bundle(demo_bundle), RuntimeConfig(threads=1)) as pipe:
        with pytest.raises(CheckpointError, match=rf"{name} holds values that are not finite"):
            pipe(replace(SMALL, loras=(lora,)))
        assert not pipe.engines._engines
        assert not pipe.engines._stacks


def test_lora_info_and_merge_with_a_bundle(demo_bundle: Path, tmp_path: Path) -> None:
    """A 2.5 adapter on a 2.3 model is warned of; DoRA is written as what it does to this model."""
    lora = adapter(tmp_path / "ltx-2.5-x.safetensors", demo_bundle, text=False, block=True)
    told = ltx2rt("lora", "info", lora.path, "--bundle", demo_bundle, "--json")
    assert "made for LTX-2.5, this model is LTX-2.3" in told.json["warning"]
    assert told.json["kinds"] == ["DoRA (LoRA)", "LoKr", "difference"]
    out = tmp_path / "out.safetensors"
    arguments = ["lora", "merge", f"{lora.path}:{lora.strength}", "-o", out]
    assert ltx2rt(*arguments, "--bundle", demo_bundle).code == 0
    written = weights(demo_bundle, Lora(path=str(out), strength=1.0))
    for name, value in weights(demo_bundle, lora).items():
        # factors and deltas of LoRAs are rounded to bfloat16, as the official recipe does
        np.testing.assert_allclose(written[name], value, atol=2e-2, rtol=2**-7, err_msg=name)
    assert set(TRANSFORMER) <= set(ADAPTED_COMPONENTS)
