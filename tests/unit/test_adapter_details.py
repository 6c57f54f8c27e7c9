"""Adapter files with the details that trainers leave in them: what configurations say, scales and
alphas of other spellings, parts that nobody knows, parts of other models.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltx2rt.errors import CheckpointError, Ltx2rtError, UnsupportedError
from ltx2rt.lora.adapter import parse_lora
from ltx2rt.lora.combine import merge_loras
from ltx2rt.lora.files import Lora, find_lora
from ltx2rt.lora.merger import LoraMerger
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile
from ltx2rt.weights.safetensors_writer import write_safetensors
from tests.adapter_cases import official
from tests.unit.test_adapter_files import (
    BLOCK,
    MODULES,
    RANK,
    TARGETS,
    Q,
    assert_is_update,
    base_file,
    changes,
    factors,
    match,
    quantised,
    write_lora,
)

OUT = f"{BLOCK}.attn1.to_out.0"


@pytest.fixture
def base(tmp_path: Path) -> SafetensorsFile:
    return base_file(tmp_path / "base.safetensors")


def peft(module: str) -> str:
    return f"base_model.model.{module}"


def peft_folder(
    folder: Path, config: Any, spell: Any = peft, name: str = "adapter_model.safetensors"
) -> Path:
    folder.mkdir(exist_ok=True)
    write_lora(folder / name, spell)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder / name


def scales(path: Path, base: SafetensorsFile) -> dict[str, float]:
    """How strong each module's update is."""
    got = changes(path, base)
    update = {name: b @ a for name, (a, b) in factors().items()}
    return {
        name: round(float((got[f"{name}.weight"] * value).sum() / (value * value).sum()), 4)
        for name, value in update.items()
    }


@pytest.mark.parametrize("spell", [peft, official, str])
def test_the_configuration_beside_adapter_model_counts_under_every_naming(
    spell: Any, base: SafetensorsFile, tmp_path: Path
) -> None:
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2}
    assert_is_update(peft_folder(tmp_path / "a", config, spell), base, 0.5)
    # of another file in that folder it says nothing, unless it is PEFT's by its names
    other = peft_folder(tmp_path / "b", config, spell, "x.safetensors")
    assert_is_update(other, base, 0.5 if spell is peft else 1.0)


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("to_q", {Q}), (r"attn1\.to_q", {Q}), ("^" + Q, {Q}), ("^attn1.to_q", set()),
        (r".*\.attn1\.to_(q|k)", {Q}), (r"to_(q|out\.\d+)", {Q, OUT}), ("o_q", set()),
        (r"transformer_blocks\.\d+\..*", {Q, OUT}),
        (r"^transformer_blocks\.[0-3]\.attn1.*$", {Q, OUT}),
    ],
)  # fmt: skip
def test_patterns_are_expressions(
    pattern: str, matched: set[str], base: SafetensorsFile, tmp_path: Path
) -> None:
    config = {"r": RANK, "lora_alpha": RANK, "alpha_pattern": {pattern: 2}}
    got = scales(peft_folder(tmp_path / "a", config), base)
    assert got == {name: 0.5 if name in matched else 1.0 for name in MODULES}


def test_the_first_pattern_counts(base: SafetensorsFile, tmp_path: Path) -> None:
    config = {
        "r": 4,
        "lora_alpha": 4,
        "alpha_pattern": {"to_out.0": 1, r"to_\w+(\.0)?": 2, "to_q": 8},
    }
    assert scales(peft_folder(tmp_path / "a", config), base) == {Q: 0.5, OUT: 0.25}


@pytest.mark.parametrize(
    "pattern", ["(a*)*", "[", r"(.)\1", "(?=x)", "(" + "a|" * 200 + "b)", ".*.*.*.*.*"]
)
def test_patterns_that_are_none_or_never_end(pattern: str, tmp_path: Path) -> None:
    path = peft_folder(tmp_path / "a", {"r": 4, "lora_alpha": 2, "alpha_pattern": {pattern: 1}})
    with pytest.raises(CheckpointError, match=r"alpha_pattern names .* is (no expression|too)"):
        match(path)


def test_each_component_has_its_own_configuration(base: SafetensorsFile, tmp_path: Path) -> None:
    def metadata(config: dict[str, Any]) -> dict[str, str]:
        return {"lora_adapter_metadata": json.dumps(config)}

    for config in (
        {"transformer.lora_alpha": 2, "connectors.lora_alpha": 16, "text_encoder.lora_alpha": 9},
        {"connectors.lora_alpha": 16, "transformer.lora_alpha": 2},
    ):
        path = tmp_path / "a.safetensors"
        write_lora(path, lambda m: f"transformer.{m}", metadata=metadata(config))
        assert_is_update(path, base, 0.5)
    write_lora(path, official, metadata={"lora_adapter_metadata": "[1]"})
    with pytest.raises(CheckpointError, match="lora_adapter_metadata is not a JSON object"):
        match(path)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights=pissa_niter_16"),
        ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "loftq"}, "changed the base as well"),
        ({"init_lora_weights": "corda"}, "corda"), ({"use_qalora": True}, "use_qalora"),
        ({"layer_replication": [[0, 1]]}, "layer_replication of PEFT"),
        ({"peft_type": "XLORA"}, "XLORA of PEFT"), ({"peft_type": "HRA"}, "HRA of PEFT"),
    ],
)  # fmt: skip
def test_what_a_configuration_rules_out(config: Any, named: str, tmp_path: Path) -> None:
    path = peft_folder(tmp_path / "a", {"r": 4, "lora_alpha": 4, **config})
    with pytest.raises(UnsupportedError, match=named):
        match(path)


def test_what_a_configuration_may_say(base: SafetensorsFile, tmp_path: Path) -> None:
    config = {"init_lora_weights": "gaussian", "fan_in_fan_out": True, "bias": "none"}
    config |= {"use_qalora": False, "layer_replication": None, "eva_config": {"rho": 2}}
    path = peft_folder(tmp_path / "a", {"peft_type": "LORA", "lora_alpha": 2, "r": 4, **config})
    assert_is_update(path, base, 0.5)
    (path.parent / "adapter_config.json").write_text("[1, 2]")
    with pytest.raises(CheckpointError, match="it is not a JSON object"):
        match(path)


def test_oft_needs_to_be_told_how_to_read_it(tmp_path: Path) -> None:
    tensors = {f"base_model.model.{Q}.oft_R.weight": np.ones((2, 6), np.float32)}
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "adapter_model.safetensors"
    write_safetensors(path, tensors)
    with pytest.raises(UnsupportedError, match=r"without its adapter_config\.json"):
        match(path)
    config: dict[str, Any] = {"peft_type": "OFT", "oft_block_size": 4}
    for more, problem in (
        ({}, "before 0.18"), ({"peft_version": "0.17.1"}, "before 0.18"),
        ({"peft_version": "0.18.0", "num_cayley_neumann_terms": 0}, "its series has 0 terms"),
        ({"use_cayley_neumann": False, "coft": True, "eps": "x"}, "its bound .* is 'x'"),
    ):  # fmt: skip
        (path.parent / "adapter_config.json").write_text(json.dumps(config | more))
        with pytest.raises(Ltx2rtError, match=problem):
            match(path)
    (path.parent / "adapter_config.json").write_text(
        json.dumps(config | {"use_cayley_neumann": False})
    )
    assert match(path).keys.kinds == ("OFT",)


@pytest.mark.parametrize(
    "scale_name",
    [".weight_scale_inv", "_scale", ".weight.scale", ".weight_scale", ".scale", ".scale_weight"],
)
def test_scales_of_every_spelling(scale_name: str, base: SafetensorsFile, tmp_path: Path) -> None:
    tensors: dict[str, Any] = {}
    for module, (a, b) in factors().items():
        for half, values in (("lora_A", a), ("lora_B", b)):
            stem = f"diffusion_model.{module}.{half}"
            tensors[f"{stem}.weight"], tensors[f"{stem}{scale_name}"] = quantised(values, "fp8")
            text = np.frombuffer(b'{"format": "float8_e4m3fn"}', np.uint8)
            tensors[f"{stem}.comfy_quant"] = "uint8", text.shape, (text.tobytes(),)
    write_safetensors(tmp_path / "a.safetensors", tensors)
    assert_is_update(tmp_path / "a.safetensors", base, tolerance=0.05)


@pytest.mark.parametrize(
    "part",
    [
        "alpha.default", "lora_alpha", "network_alpha", "scalar", "lora_A.alpha", "weight_scale",
        "lora_A.scale", "lora_A.comfy_quant", "anything",
    ],
)  # fmt: skip
def test_a_part_that_nobody_knows_is_refused(part: str, tmp_path: Path) -> None:
    extra = {f"diffusion_model.{Q}.{part}": np.ones(1, np.float32)}
    path = write_lora(tmp_path / "a.safetensors", official, extra=extra)
    with pytest.raises(UnsupportedError, match=rf"parts of unknown meaning \(\.{part}\)"):
        match(path)


def test_parts_of_other_models_are_left_out_right_or_wrong(
    base: SafetensorsFile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extra = {
        "vae.decoder.conv_in.conv.lora_A.weight": np.ones((4, 8, 3, 3, 3)),
        "vae.decoder.conv_in.conv.lora_B.weight": np.ones((8, 4, 1, 1, 1)),
        "text_encoders.gemma.embed_tokens.lora_embedding_A": np.ones((4, 8)),
        "lora_te_layers_0.hada_w1_a": np.ones((4, 8)),
        "vocoder.resblocks.0.act.alpha": np.ones(12),
    }
    path = write_lora(tmp_path / "a.safetensors", official, extra=extra)
    with caplog.at_level(logging.WARNING):
        assert_is_update(path, base)
    (line,) = set(caplog.messages)
    assert "5 of 7 modules and tensors are not part of this model" in line


def test_alpha_0_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_lora(tmp_path / "a.safetensors", official, alpha=0.0)
    with caplog.at_level(logging.WARNING):
        LoraMerger([Lora(path=str(path))], TARGETS)
    assert "alpha is 0 in 2 modules, which therefore change nothing" in caplog.text


def test_names_of_slots_may_have_hyphens(base: SafetensorsFile, tmp_path: Path) -> None:
    halves = ".lora_A.my-style.weight", ".lora_B.my-style.weight"
    assert_is_update(write_lora(tmp_path / "a.safetensors", official, *halves), base)


def test_magnitudes_of_1x1_convolutions(base: SafetensorsFile, tmp_path: Path) -> None:
    path, wide = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    magnitude = np.linspace(0.5, 2, 8, dtype=np.float32)
    for file, shape in ((path, (8, 1)), (wide, (8, 1, 1, 1))):
        write_lora(file, str, extra={f"{Q}.dora_scale": magnitude.reshape(shape)})
    got, want = changes(wide, base), changes(path, base)
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value)


def test_ia3_of_a_layer_without_bias(base: SafetensorsFile, tmp_path: Path) -> None:
    """PEFT's scales the bias too, where there is one."""
    factor = np.linspace(0.5, 2, 8, dtype=np.float32)[:, None]
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {f"base_model.model.{m}.ia3_l": factor for m in (Q, OUT)})
    adapter = match(path)
    assert adapter.updates.keys() == {f"{Q}.weight", f"{Q}.bias", f"{OUT}.weight"}
    assert adapter.skipped == ()
    own = MappedFiles().load(base[f"{Q}.bias"], "float32")
    np.testing.assert_allclose(
        changes(path, base)[f"{Q}.bias"], own * (factor[:, 0] - 1), atol=1e-6
    )


def test_a_rotation_that_fits_no_bundle(base: SafetensorsFile, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {f"{Q}.oft_blocks": np.ones((3, 4, 4), np.float32)})
    maps = MappedFiles()
    with pytest.raises(CheckpointError, match=r"blocks \[3, 4, 4\] do not turn a weight"):
        merge_loras(
            [Lora(path=str(path))],
            tmp_path / "o.safetensors",
            base=lambda name: maps.load(base[name], "float32"),
        )


def test_a_whole_model_with_alphas_of_its_own(tmp_path: Path) -> None:
    """Snake activations of vocoders have an `alpha` a channel."""
    model = {name: np.ones(shape, np.float32) for name, shape in TARGETS.items()}
    model["vocoder.resblocks.0.act.alpha"] = np.ones(12, np.float32)
    write_safetensors(tmp_path / "m.safetensors", model)
    with pytest.raises(CheckpointError, match="whole tensors of a model"):
        parse_lora(SafetensorsFile(tmp_path / "m.safetensors"), TARGETS)


def test_folders_without_an_adapter_say_what_they_are(tmp_path: Path) -> None:
    def folder(name: str, *files: str) -> Path:
        for file in files:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).touch()
        return tmp_path / name

    shard = "adapter_model-00001-of-00002.safetensors"
    cases = {
        "it is a bundle": folder("a", "manifest.json"),
        "it is a diffusers folder": folder("b", "model_index.json", "vae/x.safetensors"),
        "the folder of a model, which": folder(
            "g", "transformer/x.safetensors", "vae/y.safetensors"
        ),
        "adapter_model.bin in it is a PyTorch file": folder("c", "adapter_model.bin"),
        "below it: checkpoint-5/x.safetensors": folder("d", "checkpoint-5/x.safetensors"),
        r"a model in 2 files \(shards\)": folder("e", shard, shard.replace("1", "2", 1)),
        "part 1 of 2 of a model or adapter": tmp_path / "e" / shard,
        "name a LoRA file": folder("f", "README.md"),
    }
    for message, path in cases.items():
        with pytest.raises(CheckpointError, match=message):
            find_lora(path)


def test_adalora_needs_its_configuration(tmp_path: Path) -> None:
    gains = {f"base_model.model.{Q}.lora_E": np.ones((RANK, 1), np.float32)}
    path = write_lora(tmp_path / "adapter_model.safetensors", peft, extra=gains)
    with pytest.raises(UnsupportedError, match=r"AdaLoRA without its adapter_config\.json"):
        match(path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({"peft_type": "ADALORA", "lora_alpha": 8}))
    with pytest.raises(CheckpointError, match="init_r is not one finite number"):
        match(path)
    config.write_text(json.dumps({"peft_type": "ADALORA", "lora_alpha": 8, "init_r": 12}))
    assert match(path).keys.kinds == ("AdaLoRA", "LoRA")
    gains = {f"base_model.model.{Q}.lora_E": np.ones((RANK + 1, 1), np.float32)}
    write_lora(path, peft, extra=gains)
    with pytest.raises(CheckpointError, match=r"has \[5, 1\] gains \(lora_E\) of rank 4"):
        match(path)
