"""Finding a model's parts on disk: kinds, versions, completeness, and refusals that explain."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ltx2rt.errors import CheckpointError, UnsupportedError
from ltx2rt.lora.describe import distilled_hint
from ltx2rt.weights.safetensors import SafetensorsFile
from ltx2rt_export.checkpoint import REQUIRED, ROLES, open_model
from ltx2rt_export.gemma_files import check_gemma_version, open_gemma
from ltx2rt_export.kinds import detect_kind, split_components, transformer_prefix
from ltx2rt_export.storage_format import detect_storage_format
from ltx2rt_export.version import (
    detect_version,
    generation_of_tensors,
    parse_model_version,
)
from tests.unit.checkpoint_files import copy_with, write_names

PREFIX = "model.diffusion_model."
BLOCK = "transformer_blocks.0."
TRANSFORMER = (
    "patchify_proj.weight",
    "audio_patchify_proj.weight",
    f"{BLOCK}attn1.to_q.weight",
    f"{BLOCK}ff.net.0.proj.weight",
    f"{BLOCK}ff.net.0.proj.bias",
    "caption_projection.linear_1.weight",
)
Demo = dict[str, Path]


def test_importing_needs_no_torch() -> None:
    code = (
        "import sys, ltx2rt_export.checkpoint, ltx2rt_export.inspect, ltx2rt.lora\n"
        "import ltx2rt_export.demo\n"
        "assert not {'torch', 'onnx', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_monolith_is_taken_apart(demo_model: Demo) -> None:
    model = open_model(**demo_model)
    parts = {role: model.tensors(role) for role in ROLES}
    held = SafetensorsFile(demo_model["checkpoint"])
    sorted_out = [r for r in ROLES if r not in {"text", "gemma", "spatial_upsampler"}]
    assert sum(len(parts[role]) for role in sorted_out) == len(held)
    names = {role: next(iter(parts[role]), "") for role in ROLES}
    assert parts["transformer"][f"{BLOCK}attn1.to_q.weight"].name.startswith(PREFIX)
    assert not any("connector" in name for name in parts["transformer"])
    assert "decoder.conv_in.conv.weight" in parts["video_vae"]
    assert "vocoder.conv_pre.weight" in parts["vocoder"]
    assert all(name in held for name in parts["text"]), names
    assert len(parts["text"]) == len(parts["connectors"]) + len(parts["text_projection"])
    assert "initial_conv.weight" in parts["spatial_upsampler"]
    assert model.config("transformer")["num_layers"] == 3
    assert model.config("text") == model.config("transformer")
    assert model.config("video_vae")["_class_name"] == "CausalVideoAutoencoder"
    assert "bwe" in model.config("vocoder")
    assert model.config("spatial_upsampler")["mid_channels"] == 32
    assert model.tokenizer_path == demo_model["gemma"] / "tokenizer.json"
    assert model.gemma_config["model_type"] == "gemma3"
    assert not model.has("duration_head")
    assert model.config("duration_head") == {}
    with pytest.raises(KeyError):
        model.tensors("unet")


@pytest.mark.parametrize("prefix", ["diffusion_model.", ""])
def test_repacks_without_prefix_or_metadata_load(
    demo_model: Demo, tmp_path: Path, prefix: str
) -> None:
    plain = open_model(**demo_model)
    path = copy_with(
        demo_model["checkpoint"],
        tmp_path / "repack.safetensors",
        rename=lambda name: name.replace(PREFIX, prefix),
        metadata={},
    )
    repack = open_model(path, demo_model["gemma"])
    assert transformer_prefix(SafetensorsFile(path)) == prefix
    for role in ("transformer", "connectors", "text", "video_vae"):
        assert repack.tensors(role).keys() == plain.tensors(role).keys()
        assert repack.config(role) == {}
    assert repack.version.generation == "LTX-2.3"
    assert repack.version.num_inference_steps == 30
    assert repack.version.is_distilled is None


def test_split_files_are_put_together(demo_model: Demo, tmp_path: Path) -> None:
    source = demo_model["checkpoint"]

    def part(name: str, *prefixes: str, strip: str = "\0") -> Path:
        return copy_with(
            source,
            tmp_path / f"{name}.safetensors",
            keep=lambda n: n.startswith(prefixes),
            rename=lambda n: n.removeprefix(strip),
        )

    transformer = part("transformer", PREFIX)
    with pytest.raises(CheckpointError) as error:
        open_model(transformer)
    for word in ("text projection", "video VAE", "audio VAE", "vocoder", "Gemma"):
        assert f"no {word}" in str(error.value)
    split = open_model(
        transformer,
        demo_model["gemma"],
        video_vae=part("vae", "vae.", strip="vae."),
        audio_vae=part("audio", "audio_vae.", "vocoder."),
        text_encoder=part("text", "text_embedding_projection."),
    )
    whole = open_model(**demo_model)
    for role in REQUIRED:
        assert split.tensors(role).keys() == whole.tensors(role).keys()
        assert split.config(role) == whole.config(role)
    assert split.files["video_vae"].path.name == "vae.safetensors"
    relaxed = open_model(transformer, need=("transformer",))
    assert relaxed.gemma is None
    assert relaxed.gemma_config == {}


def test_a_vae_without_decoder_is_incomplete(demo_model: Demo, tmp_path: Path) -> None:
    path = copy_with(
        demo_model["checkpoint"],
        tmp_path / "x.safetensors",
        keep=lambda n: not n.startswith(("vae.decoder.", "vocoder.")),
    )
    with pytest.raises(CheckpointError, match=r"(?s)video VAE has no decoder.*no vocoder"):
        open_model(path, demo_model["gemma"])


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2.3.0", (2, 3, 0)), ("2.3.rc1", (2, 3)), ("2.4-rc2", (2, 4)), ("2.3rc1", (2,)),
        ("", ()), (None, ()), ("v2", ()), ("2..3", (2,)), ("10.1", (10, 1)), ("²", ()),
        ("9" * 5000, ()),
    ],
)  # fmt: skip
def test_versions_are_parsed(text: str | None, number: tuple[int, ...]) -> None:
    assert parse_model_version(text) == number


def test_the_gemma_check_reads_dashes_differently() -> None:
    assert parse_model_version("2.4-rc2", dash_is_dot=False) == (2,)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("2.0.0", ("LTX-2", 40, 29, 33, "euler")),
        ("2.3.0", ("LTX-2.3", 30, 28, 33, "euler")),
        ("2.4-rc2", ("LTX-2.5", 30, 28, 18, "euler")),
        ("2.5.0", ("LTX-2.5", 30, 28, 18, "euler_ancestral")),
        ("3.1", ("LTX-2.5", 30, 28, 18, "euler_ancestral")),
    ],
)
def test_defaults_follow_the_version(tmp_path: Path, version: str, expected: tuple) -> None:
    file = write_names(tmp_path / "m.safetensors", TRANSFORMER, {"model_version": version})
    got = detect_version(file, file, file)
    assert expected == (
        got.generation, got.num_inference_steps, got.stg_block, got.image_crf,
        got.distilled_sampler,
    )  # fmt: skip


def test_image_crf_is_that_of_the_vae_file(tmp_path: Path) -> None:
    file = write_names(tmp_path / "a", TRANSFORMER, {"model_version": "2.3.0"})
    vae = write_names(tmp_path / "b", ["decoder.conv_in.weight"], {"model_version": "2.5.0"})
    assert detect_version(file, file, vae).image_crf == 18
    assert detect_version(file, file, None).image_crf == 33


def test_generation_is_told_by_tensors() -> None:
    base = {*TRANSFORMER}
    gate = f"{BLOCK}attn1.to_gate_logits.weight"
    assert generation_of_tensors(base) == "LTX-2"
    assert generation_of_tensors(base | {gate}) == "LTX-2.3"
    assert generation_of_tensors(base | {f"{BLOCK}prompt_scale_shift_table"}) == "LTX-2.3"
    assert generation_of_tensors(base | {gate, "keyframes_abs_pos_embedding"}) == "LTX-2.5"
    assert generation_of_tensors((base | {gate}) - {f"{BLOCK}ff.net.0.proj.bias"}) == "LTX-2.5"
    assert generation_of_tensors(base - {"caption_projection.linear_1.weight"}) is None
    assert generation_of_tensors(set()) is None


def test_file_names_hint_at_distillation() -> None:
    assert distilled_hint("ltx-2.3-22b-distilled-1.1.safetensors") is True
    assert distilled_hint("ltx-2-19b-dev-fp8.safetensors") is False
    assert distilled_hint("model.safetensors") is None
    assert distilled_hint("ltx-2.5-22b-distilled-lora-450-bf16.safetensors") is False


def test_broken_config_metadata_is_refused(tmp_path: Path) -> None:
    names = [PREFIX + name for name in TRANSFORMER]
    for text in ("{", "[1]", "3", "[" * 100_000):
        write_names(tmp_path / "m", names, {"config": text})
        with pytest.raises(CheckpointError, match="config"):
            open_model(tmp_path / "m", need=()).config("transformer")


OTHERS = {
    "Stable Diffusion": "model.diffusion_model.input_blocks.0.0.weight",
    "Stable Diffusion 3": "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",
    "Flux": "double_blocks.0.img_attn.qkv.weight",
    "Wan": "blocks.0.self_attn.q.weight",
    "Mochi": "blocks.0.attn.qkv_x.weight",
    "Qwen-Image": "transformer_blocks.0.img_mod.1.weight",
    "diffusers layout": "transformer_blocks.0.audio_attn1.norm_q.weight",
    "LTX-Video 0.9": "model.diffusion_model.transformer_blocks.0.attn1.q_norm.weight",
    "T5": "encoder.block.0.layer.0.SelfAttention.q.weight",
    "CLIP": "text_model.encoder.layers.0.mlp.fc1.weight",
    "other than Gemma": "model.layers.0.self_attn.q_proj.weight",
    "not recognised": "something.else",
}


@pytest.mark.parametrize("model", OTHERS)
def test_other_models_are_named(tmp_path: Path, model: str) -> None:
    file = write_names(tmp_path / "other.safetensors", [OTHERS[model]])
    with pytest.raises(CheckpointError, match=f"{model}.*expected an LTX-2") as error:
        detect_kind(file)
    assert str(error.value).count("\n") == 0


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tensors"):
        detect_kind(write_names(tmp_path / "empty.safetensors", []))


KINDS = {
    "checkpoint": [*(PREFIX + n for n in TRANSFORMER), "vae.decoder.conv_in.conv.weight"],
    "transformer": list(TRANSFORMER),
    "video_vae": ["decoder.conv_in.conv.weight", "per_channel_statistics.mean-of-means"],
    "audio_vae": ["audio_vae.decoder.conv_in.conv.weight", "vocoder.conv_pre.weight"],
    "vocoder": ["vocoder.conv_pre.weight"],
    "duration_head": ["duration_head.mlp_out.weight"],
    "text_projection": ["text_embedding_projection.aggregate_embed.weight"],
    "spatial_upsampler": ["initial_conv.weight", "upsampler.0.weight", "final_conv.weight"],
    "gemma": ["language_model.model.layers.3.post_feedforward_layernorm.weight"],
    "text_encoder": [
        "model.layers.0.post_feedforward_layernorm.weight",
        "text_embedding_projection.video_aggregate_embed.weight",
        "tokenizer_json",
    ],
    "lora": ["diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_detected(tmp_path: Path, kind: str) -> None:
    assert detect_kind(write_names(tmp_path / "f.safetensors", KINDS[kind])) == kind


def test_a_temporal_upsampler_is_told_by_its_shape(tmp_path: Path) -> None:
    specs = {
        "initial_conv.weight": ("float32", (4, 4)),
        "upsampler.0.weight": ("float32", (8, 4, 3, 3, 3)),
    }
    assert detect_kind(write_names(tmp_path / "t", specs)) == "temporal_upsampler"


def test_video_only_connectors_get_the_two_stream_name(tmp_path: Path) -> None:
    file = write_names(tmp_path / "c", [f"{PREFIX}embeddings_connector.learnable_registers"])
    assert list(split_components(file)["connectors"]) == [
        "video_embeddings_connector.learnable_registers"
    ]


def test_a_file_in_the_wrong_place_is_refused(demo_model: Demo) -> None:
    with pytest.raises(CheckpointError, match=r"--checkpoint .* is a spatial upsampler"):
        open_model(demo_model["spatial_upsampler"])
    with pytest.raises(CheckpointError, match=r"--video-vae .* is a spatial upsampler"):
        open_model(demo_model["checkpoint"], video_vae=demo_model["spatial_upsampler"])
    with pytest.raises(CheckpointError, match=r"--temporal-upsampler .* is a spatial"):
        open_model(demo_model["checkpoint"], temporal_upsampler=demo_model["spatial_upsampler"])
    with pytest.raises(CheckpointError, match=r"is Gemma weights \(give it as --gemma\); expected"):
        open_model(demo_model["gemma"])


W = "transformer_blocks.0.attn1.to_q"
FORMATS = {
    "fp8_blocks": {f"{W}.weight": "float8_e4m3fn", f"{W}.weight_scale": "bfloat16"},
    "fp8": {f"{W}.weight": "float8_e4m3fn"},
    "mxfp8": {f"{W}.weight": "float8_e4m3fn", f"{W}.weight_scale": "float8_e8m0fnu"},
    "nvfp4": {
        f"{W}.weight": "uint8",
        f"{W}.weight_scale": "float8_e4m3fn",
        f"{W}.weight_scale_2": "float32",
        f"{W}.input_scale": "float32",
    },
    "int8": {f"{W}.weight": "int8", f"{W}.weight_scale": "float32"},
    "nf4": {
        f"{W}.weight": "uint8", f"{W}.scale_weight": "bfloat16", f"{W}.nf4_shape": "int64",
    },
    "nf4_bitsandbytes": {f"{W}.weight": "uint8", f"{W}.weight.absmax": "float32"},
    "unknown": {f"{W}.weight": "uint8"},
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_quantised_formats_are_named(tmp_path: Path, name: str) -> None:
    """All tensors are [2, 2] zeros: what has a shape of its own does not fit, and that is said."""
    specs = {PREFIX + n: ("float32", (2, 2)) for n in TRANSFORMER}
    specs |= {PREFIX + n: (dtype, (2, 2)) for n, dtype in FORMATS[name].items()}
    file = write_names(tmp_path / "q.safetensors", specs)
    found = detect_storage_format(split_components(file)["transformer"])
    assert found is not None
    assert (found.name, found.layers) == (name, 1)
    assert found.static_input_scales == (name == "nvfp4")
    if name in {"fp8", "fp8_blocks"}:
        assert open_model(file.path, need=()).storage_format == found
    elif name == "unknown":
        with pytest.raises(UnsupportedError, match=rf"\({name}\), which is not read"):
            open_model(file.path, need=())
    else:
        with pytest.raises(CheckpointError, match=rf"cannot be decoded.*{W}\.weight: "):
            open_model(file.path, need=())


def test_plain_weights_have_no_format(demo_model: Demo) -> None:
    assert open_model(**demo_model).storage_format is None


def gemma_copy(demo: Demo, target: Path, **config: object) -> Path:
    shutil.copytree(demo["gemma"], target)
    path = target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return target


def test_gemma_problems_are_listed_together(demo_model: Demo, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"(?s)config.json.*tokenizer.json.*model\*"):
        open_gemma(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="cannot read"):
        open_gemma(tmp_path / "nowhere")
    partial = gemma_copy(demo_model, tmp_path / "partial")
    (partial / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors is missing"):
        open_gemma(partial)
    with pytest.raises(UnsupportedError, match="model_type='llama'"):
        open_gemma(gemma_copy(demo_model, tmp_path / "llama", model_type="llama"))


def test_gemma_is_found_below_the_given_folder(demo_model: Demo, tmp_path: Path) -> None:
    gemma_copy(demo_model, tmp_path / "snapshots" / "main")
    found = open_gemma(tmp_path)
    assert (found.num_layers, found.hidden_size) == (6, 48)
    assert (
        found.read_asset("tokenizer.json") == (demo_model["gemma"] / "tokenizer.json").read_bytes()
    )
    assert found.read_asset("nothing.json") is None


def test_a_gemma_of_another_size_is_refused(demo_model: Demo, tmp_path: Path) -> None:
    small = gemma_copy(demo_model, tmp_path / "small")
    (small / "model.safetensors.index.json").unlink()
    (small / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="5 layers of width 48"):
        open_model(demo_model["checkpoint"], small)


@pytest.mark.parametrize(
    ("metadata", "config", "outcome"),
    [
        ({"gemma_source_checkpoint": '{"gemma_version": "v1"}'}, {"gemma_version": "v1"}, "ok"),
        ({"gemma_source_checkpoint": '{"gemma_version": "v1"}'}, {}, "refused"),
        ({"model_version": "2.5.0"}, {"gemma_version": "v1"}, "refused"),
        ({"model_version": "2.5.0"}, {}, "warned"),
        ({"model_version": "2.4-rc2"}, {}, "ok"),
        ({"model_version": "2.3.0"}, {}, "ok"),
        ({"model_version": "2.3.0"}, {"model_type": "gemma4"}, "refused"),
        ({}, {}, "ok"),
        ({}, {"model_type": "gemma4"}, "refused"),
    ],
)
def test_gemma_versions_must_match(
    demo_model: Demo, tmp_path: Path, metadata: dict, config: dict, outcome: str
) -> None:
    file = write_names(tmp_path / "m.safetensors", TRANSFORMER, metadata)
    generation = detect_version(file, file, None).generation
    gemma = open_gemma(gemma_copy(demo_model, tmp_path / "gemma", **config))
    if outcome == "refused":
        with pytest.raises(CheckpointError):
            check_gemma_version(file, gemma, generation)
    else:
        assert (check_gemma_version(file, gemma, generation) is not None) == (outcome == "warned")


def calls_to_open(path: Path) -> int:
    """Python calls while a model is opened."""
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        open_model(path, need=())
    finally:
        sys.setprofile(None)
    return calls


def test_work_grows_with_the_number_of_tensors_and_no_faster(tmp_path: Path) -> None:
    """Seconds at published size: `python -m benchmarks.run --case open-ltx23-headers`."""

    def calls(layers: int) -> int:
        blocks = range(layers)
        names = {f"{PREFIX}transformer_blocks.{i}.x{j}.weight" for i in blocks for j in range(90)}
        names |= {PREFIX + n for n in TRANSFORMER}
        return calls_to_open(write_names(tmp_path / f"{layers}.safetensors", names).path)

    few, some, many = calls(2), calls(4), calls(8)
    assert many - some <= 2.1 * (some - few)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_headers_only_raise_our_errors(
    demo_model: Demo, tmp_path: Path, damage: list[tuple[int, int]]
) -> None:
    source = demo_model["spatial_upsampler"]
    content = bytearray(source.read_bytes())
    header = SafetensorsFile(source).data_offset
    for position, value in damage:
        content[position % header] = value
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    try:
        open_model(demo_model["checkpoint"], spatial_upsampler=path, need=())
    except CheckpointError:
        pass


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**31))
def test_truncated_files_only_raise_our_errors(demo_model: Demo, tmp_path: Path, cut: int) -> None:
    content = demo_model["spatial_upsampler"].read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(content[: cut % len(content)])
    with pytest.raises(CheckpointError):
        SafetensorsFile(path)
