"""LoRA files: every published key format, refusals, and fusion with the official rounding."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from ltx2rt.errors import CheckpointError, OptionError, UnsupportedError
from ltx2rt.lora.adapter import collect_updates, fuse_entry, lora_targets, parse_lora
from ltx2rt.lora.describe import is_distilled_lora
from ltx2rt.lora.fuse import add_low_rank
from ltx2rt.lora.generation import lora_generations
from ltx2rt.lora.keys import read_lora_keys
from ltx2rt.lora.metadata import reference_factors
from ltx2rt.lora.updates import LowRank
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile, convert
from ltx2rt.weights.safetensors_writer import bfloat16, write_safetensors
from ltx2rt_export.checkpoint import open_model
from tests.unit.checkpoint_files import write_names

Q = "transformer_blocks.0.attn1.to_q"
OUT = "transformer_blocks.0.audio_to_video_attn.to_out.0"
ADALN = "prompt_adaln_single.linear"
CONNECTOR = "video_embeddings_connector.transformer_1d_blocks.1.ff.net.2"
PROJECTION = "text_embedding_projection.video_aggregate_embed"
MODULES = {
    Q: (8, 6),
    OUT: (8, 4),
    ADALN: (16, 8),
    "proj_out": (4, 8),
    "patchify_proj": (8, 4),
    CONNECTOR: (8, 32),
    PROJECTION: (8, 20),
}
TARGETS = {f"{module}.weight": shape for module, shape in MODULES.items()}
Q_WEIGHT = f"{Q}.weight"
RANK = 2


def lora_file(
    path: Path,
    names: dict[str, str],
    *,
    down: str = "lora_A",
    up: str = "lora_B",
    alpha: float | None = None,
    metadata: dict[str, str] | None = None,
    extra: dict[str, np.ndarray] | None = None,
) -> SafetensorsFile:
    """`names`: module as the file calls it -> the official module."""
    rng = np.random.default_rng(0)
    tensors: dict = dict(extra or {})
    for name, module in names.items():
        out, width = MODULES.get(module, (8, 6))
        tensors[f"{name}.{down}.weight"] = bfloat16(rng.standard_normal((RANK, width)))
        tensors[f"{name}.{up}.weight"] = bfloat16(rng.standard_normal((out, RANK)))
        if alpha is not None:
            tensors[f"{name}.alpha"] = np.array(alpha, np.float32)
    write_safetensors(path, tensors, metadata)
    return SafetensorsFile(path)


def kohya(module: str) -> str:
    return "lora_unet_" + module.replace(".", "_")


STYLES = {
    "official": ({m: f"diffusion_model.{m}" for m in MODULES}, {}, 1.0),
    "official, alpha": ({m: f"diffusion_model.{m}" for m in MODULES}, {"alpha": 1.0}, 0.5),
    "bare, alpha": ({m: m for m in MODULES}, {"alpha": 1.0}, 0.5),
    "model prefix": ({m: f"model.diffusion_model.{m}" for m in MODULES}, {}, 1.0),
    "bare": ({m: m for m in MODULES}, {}, 1.0),
    "kohya": (
        {m: kohya(m) for m in MODULES},
        {"down": "lora_down", "up": "lora_up", "alpha": 1.0},
        0.5,
    ),
    "kohya, model": (
        {m: kohya("model." + m) for m in MODULES},
        {"down": "lora_down", "up": "lora_up"},
        1.0,
    ),
    "peft": (
        {m: f"base_model.model.{m}" for m in MODULES},
        {"down": "lora_A.default", "up": "lora_B.default"},
        1.0,
    ),
    "diffusers": (
        {
            Q: f"transformer.{Q}",
            OUT: f"transformer.{OUT}",
            ADALN: "transformer.prompt_adaln.linear",
            "proj_out": "transformer.proj_out",
            "patchify_proj": "transformer.proj_in",
            CONNECTOR: "connectors.video_connector.transformer_blocks.1.ff.net.2",
            PROJECTION: "connectors.video_text_proj_in",
        },
        {"metadata": {"lora_adapter_metadata": json.dumps({"transformer.r": 2, "lora_alpha": 8})}},
        4.0,
    ),
    "diffusers, old": (
        {Q: f"transformer.{Q}"}, {"down": "lora.down", "up": "lora.up", "alpha": 4.0}, 2.0,
    ),
}  # fmt: skip


def scale_of(file: SafetensorsFile) -> float:
    update = parse_lora(file, TARGETS).updates[Q_WEIGHT]
    assert isinstance(update, LowRank)
    return update.scale


@pytest.mark.parametrize("style", STYLES)
def test_key_formats(tmp_path: Path, style: str) -> None:
    names, options, scale = STYLES[style]
    file = lora_file(tmp_path / "l", {n: m for m, n in names.items()}, **options)
    lora = parse_lora(file, TARGETS)
    assert lora.updates.keys() == {f"{module}.weight" for module in names}
    assert lora.skipped == ()
    for name, pair in lora.updates.items():
        module = name.removesuffix(".weight")
        assert isinstance(pair, LowRank)
        assert pair.down.name.startswith(names[module] + ".")
        assert pair.up.shape == (MODULES[module][0], RANK)
        assert pair.down.shape == (RANK, MODULES[module][1])
        assert pair.scale == scale


def test_alpha_is_ignored_on_request_alone(tmp_path: Path) -> None:
    file = lora_file(tmp_path / "l", {f"diffusion_model.{Q}": Q}, alpha=1.0)
    assert scale_of(file) == 0.5
    assert parse_lora(file, TARGETS, ignore_alpha=True).updates[Q_WEIGHT].scale == 1.0


def test_rank_stabilised_adapters_divide_by_the_root(tmp_path: Path) -> None:
    meta = {"lora_adapter_metadata": json.dumps({"lora_alpha": 4, "use_rslora": True})}
    file = lora_file(tmp_path / "l", {f"transformer.{Q}": Q}, metadata=meta)
    assert scale_of(file) == pytest.approx(4 / RANK**0.5)


def test_the_configuration_beside_a_peft_file_is_read_or_refused(tmp_path: Path) -> None:
    file = lora_file(tmp_path / "l", {f"base_model.model.{Q}": Q})
    config = tmp_path / "adapter_config.json"
    for text, scale in ((None, 1.0), (json.dumps({"lora_alpha": 6}), 3.0)):
        if text is not None:
            config.write_text(text)
        assert scale_of(file) == scale
    config.write_text('{"lora_alpha": 6')
    with pytest.raises(CheckpointError, match=r"adapter_config\.json says how strong.*mend it"):
        parse_lora(file, TARGETS)


def test_video_only_connector_names_are_known(tmp_path: Path) -> None:
    name = "lora_unet_embeddings_connector_transformer_1d_blocks_1_ff_net_2"
    file = lora_file(tmp_path / "l", {name: CONNECTOR}, down="lora_down", up="lora_up")
    assert list(parse_lora(file, TARGETS).updates) == [f"{CONNECTOR}.weight"]


def test_modules_the_model_lacks_are_reported(tmp_path: Path) -> None:
    names = {f"diffusion_model.{Q}": Q, "diffusion_model.caption_projection.linear_1": "other"}
    lora = parse_lora(lora_file(tmp_path / "l", names), TARGETS)
    assert list(lora.updates) == [Q_WEIGHT]
    assert lora.skipped == ("diffusion_model.caption_projection.linear_1",)


def test_a_lora_of_another_model_is_refused(tmp_path: Path) -> None:
    names = {"lora_unet_down_blocks_0_attentions_0_to_q": "other"}
    file = lora_file(tmp_path / "sd.safetensors", names, down="lora_down", up="lora_up")
    with pytest.raises(CheckpointError, match=r"no module of the model matches.*down_blocks"):
        parse_lora(file, TARGETS)


def test_all_shape_mismatches_are_listed(tmp_path: Path) -> None:
    targets = {**TARGETS, Q_WEIGHT: (8, 7), f"{OUT}.weight": (9, 4)}
    names = {f"diffusion_model.{m}": m for m in MODULES}
    with pytest.raises(CheckpointError) as error:
        parse_lora(lora_file(tmp_path / "l", names), targets)
    assert "2 problems" in str(error.value)
    assert f"{Q} is [8, 7], the LoRA is for [8, 6]" in str(error.value)
    assert f"{OUT} is [9, 4]" in str(error.value)


def test_half_pairs_and_broken_alphas_are_refused(tmp_path: Path) -> None:
    file = write_names(tmp_path / "half", [f"diffusion_model.{Q}.lora_A.weight"])
    with pytest.raises(CheckpointError, match="only its down half"):
        parse_lora(file, TARGETS)
    specs = {
        f"diffusion_model.{Q}.lora_A.weight": ("float32", (3, 6)),
        f"diffusion_model.{Q}.lora_B.weight": ("float32", (8, 2)),
    }
    with pytest.raises(CheckpointError, match="do not chain"):
        parse_lora(write_names(tmp_path / "chain", specs), TARGETS)
    extra = {f"{kohya(Q)}.alpha": np.zeros(3, np.float32)}
    file = lora_file(tmp_path / "a", {kohya(Q): Q}, down="lora_down", up="lora_up", extra=extra)
    with pytest.raises(CheckpointError, match="alpha is not one finite number"):
        parse_lora(file, TARGETS)


@pytest.mark.parametrize(
    "name",
    [
        "oft_R.weight",
        "oft_r.default",
        "glora_A.X",
        "bm.weight",
        "vera_lambda_b",
        "scalar",
        "lora_A.alpha",
    ],
)
def test_kinds_that_are_not_merged_are_named(tmp_path: Path, name: str) -> None:
    extra = {f"diffusion_model.{Q}.{name}": np.zeros((2, 2), np.float32)}
    file = lora_file(tmp_path / "l", {f"diffusion_model.{Q}": Q}, extra=extra)
    (kind,) = read_lora_keys(file).unsupported
    with pytest.raises(UnsupportedError, match=re.escape(kind)):
        parse_lora(file, TARGETS)


def test_targets_are_all_tensors_without_prefix(demo_model: dict[str, Path]) -> None:
    model = open_model(**demo_model)
    targets = lora_targets(model.tensors("transformer"), model.tensors("text"))
    assert targets[Q_WEIGHT] == (64, 64)
    assert targets[f"{CONNECTOR}.weight"] == (64, 256)
    assert targets[f"{PROJECTION}.weight"] == (64, 336)
    assert targets[f"{Q[:-4]}q_norm.weight"] == (64,)
    assert targets["transformer_blocks.0.scale_shift_table"] == (9, 64)
    # 34 linears a block, and 28 others: 2 + 2 projections and 8 AdaLN modules of 3
    linears = [n for n, s in targets.items() if n.endswith(".weight") and len(s) == 2]
    assert sum(n.startswith("transformer_blocks.") for n in linears) == 34 * 3
    own = lora_targets(model.tensors("transformer"))
    assert sum(n.endswith(".weight") and len(s) == 2 for n, s in own.items()) == 34 * 3 + 28


def bf16(values: np.ndarray) -> np.ndarray:
    import ml_dtypes

    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def test_fusion_rounds_as_the_recipe_says() -> None:
    pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(2)
    weight = bf16(rng.standard_normal((16, 12)).astype(np.float32))
    pairs = [
        (rng.standard_normal((3, 12)).astype(np.float32), rng.standard_normal((16, 3)), s)
        for s in (0.8, -0.5)
    ]
    pairs = [(bf16(a), bf16(b.astype(np.float32)), s) for a, b, s in pairs]
    (a1, b1, s1), (a2, b2, s2) = pairs
    delta = bf16(bf16(b1 * np.float32(s1)) @ a1)
    np.testing.assert_array_equal(add_low_rank(weight, pairs[:1]), bf16(delta + weight))
    delta = bf16(delta + np.float32(s2) * (b2 @ a2))
    np.testing.assert_array_equal(add_low_rank(weight, pairs), bf16(delta + weight))
    np.testing.assert_array_equal(add_low_rank(weight, pairs, dtype="float32"), delta + weight)
    exact = weight.astype(np.float64) + sum(s * b.astype(np.float64) @ a for a, b, s in pairs)
    # three roundings to 8 bits of values below 8
    np.testing.assert_allclose(add_low_rank(weight, pairs), exact, atol=3 * 2**-6)
    assert add_low_rank(weight, []) is weight


def test_fusing_a_file_applies_scale_and_strength(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    weight = rng.standard_normal(MODULES[Q]).astype(np.float32)
    write_safetensors(tmp_path / "base", {f"{Q}.weight": bfloat16(weight)})
    base = SafetensorsFile(tmp_path / "base")
    file = lora_file(tmp_path / "l", {kohya(Q): Q}, down="lora_down", up="lora_up", alpha=4.0)
    lora = parse_lora(file, TARGETS)
    updates = collect_updates([(lora, 0.5), (lora, 0.0)])
    assert [strength for _, strength in updates[Q_WEIGHT]] == [0.5]
    assert collect_updates([(lora, 0.0)]) == {}
    pair = lora.updates[Q_WEIGHT]
    assert isinstance(pair, LowRank)
    files = MappedFiles()
    got = fuse_entry(files, base[f"{Q}.weight"], updates[Q_WEIGHT])
    down, up = (files.load(e, "float32") for e in (pair.down, pair.up))
    want = files.load(base[f"{Q}.weight"], "float32") + 0.5 * (4.0 / RANK) * (up @ down)
    np.testing.assert_allclose(got, want, atol=2**-6)
    as_stored = convert(convert(got, "float32", "bfloat16", "w"), "bfloat16", "float32", "w")
    np.testing.assert_array_equal(got, as_stored)


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ([{}], (1, 1)),
        ([{"reference_downscale_factor": "2"}], (2, 1)),
        ([{"reference_spatial_scale_factor": "2", "reference_temporal_scale_factor": "4"}], (2, 4)),
        ([{"reference_downscale_factor": "2"}, {}], (2, 1)),
        ([{"reference_downscale_factor": "2.0"}], (2, 1)),
        ([{"reference_downscale_factor": "half"}], (1, 1)),
        ([{"reference_downscale_factor": "Infinity"}], (1, 1)),
        ([{"reference_downscale_factor": "[2]"}], (1, 1)),
    ],
)
def test_reference_factors(tmp_path: Path, factors: list[dict], expected: tuple) -> None:
    files = [
        lora_file(tmp_path / str(i), {f"diffusion_model.{Q}": Q}, metadata=meta)
        for i, meta in enumerate(factors)
    ]
    assert reference_factors(files) == expected


def test_conflicting_reference_factors_are_refused(tmp_path: Path) -> None:
    files = [
        lora_file(tmp_path / f"{n}.safetensors", {Q: Q}, metadata={"reference_downscale_factor": n})
        for n in ("2", "4")
    ]
    with pytest.raises(OptionError, match=r"2\.safetensors: 2, 4\.safetensors: 4"):
        reference_factors(files)


@pytest.mark.parametrize(
    ("name", "modules", "expected"),
    [
        ("style", [Q], ("LTX-2", "LTX-2.3", "LTX-2.5")),
        ("style", [Q, "transformer_blocks.0.attn1.to_gate_logits"], ("LTX-2.3", "LTX-2.5")),
        ("style", ["caption_projection.linear_1"], ("LTX-2",)),
        ("ltx-2.5-style", [Q], ("LTX-2.5",)),
        ("ltx-2.5-style", ["caption_projection.linear_1"], ("LTX-2",)),
    ],
)
def test_generations_a_lora_fits(
    tmp_path: Path, name: str, modules: list[str], expected: tuple[str, ...]
) -> None:
    file = lora_file(tmp_path / name, {f"diffusion_model.{m}": m for m in modules})
    assert lora_generations(file, read_lora_keys(file)) == expected


def test_distilled_loras_are_told_by_name(tmp_path: Path) -> None:
    for name, expected in (("ltx-2.3-22b-distilled-lora-384", True), ("ic-lora-canny", False)):
        assert is_distilled_lora(lora_file(tmp_path / name, {Q: Q})) is expected
