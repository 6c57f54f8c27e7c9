"""Adapter files as they are found: namings, scaled factors, broken numbers, what is left out."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltx2rt.cli.__main__ import main
from ltx2rt.components.reference_conditioner import ReferenceFile
from ltx2rt.errors import CheckpointError, OptionError, UnsupportedError
from ltx2rt.lora.adapter import Adapter, parse_lora
from ltx2rt.lora.combine import MergeOptions, merge_loras
from ltx2rt.lora.files import Lora, find_lora
from ltx2rt.lora.fuse import ROWS, add_low_rank
from ltx2rt.lora.generation import lora_generations, misfit
from ltx2rt.lora.keys import read_lora_keys
from ltx2rt.lora.merger import LoraMerger
from ltx2rt.lora.metadata import reference_factors
from ltx2rt.lora.peft_config import REFUSED as BY_CONFIG
from ltx2rt.lora.suffixes import UNSUPPORTED
from ltx2rt.pipelines.dub_it import DubItInputs
from ltx2rt.pipelines.hdr_ic_lora import HDRICLoraInputs
from ltx2rt.pipelines.ic_lora import ICLoraInputs
from ltx2rt.pipelines.ic_lora import factors as reference_sizes
from ltx2rt.weights.floats import cast
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile
from ltx2rt.weights.safetensors_writer import Stream, write_safetensors
from tests.adapter_cases import NAMINGS, REFUSED, official
from tests.adapter_page import PAGE, rewritten

BLOCK = "transformer_blocks.0"
MODULES = {f"{BLOCK}.attn1.to_q": (8, 8), f"{BLOCK}.attn1.to_out.0": (8, 8)}
TABLES = {
    f"{BLOCK}.attn1.to_q.bias": (8,),
    f"{BLOCK}.attn1.q_norm.weight": (8,),
    f"{BLOCK}.scale_shift_table": (9, 8),
}
TARGETS = {f"{module}.weight": shape for module, shape in MODULES.items()} | TABLES
Q = f"{BLOCK}.attn1.to_q"
RANK = 4


def base_file(path: Path) -> SafetensorsFile:
    rng = np.random.default_rng(9)
    write_safetensors(path, {n: rng.standard_normal(s, np.float32) for n, s in TARGETS.items()})
    return SafetensorsFile(path)


def factors() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return {
        module: (
            rng.standard_normal((RANK, width), np.float32),
            rng.standard_normal((out, RANK), np.float32),
        )
        for module, (out, width) in MODULES.items()
    }


def write_lora(
    path: Path,
    spell: Callable[[str], str],
    down: str = ".lora_A.weight",
    up: str = ".lora_B.weight",
    alpha: float | None = None,
    extra: dict[str, Any] | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """The same update under any naming."""
    tensors: dict[str, Any] = dict(extra or {})
    for module, (a, b) in factors().items():
        tensors[spell(module) + down], tensors[spell(module) + up] = a, b
        if alpha is not None:
            tensors[spell(module) + ".alpha"] = np.array(alpha, np.float32)
    write_safetensors(path, tensors, metadata)
    return path


def match(path: Path) -> Adapter:
    return parse_lora(SafetensorsFile(path), TARGETS)


def changes(path: Path, base: SafetensorsFile) -> dict[str, np.ndarray]:
    """What an adapter adds to each tensor, in float32."""
    lora = Lora(path=str(path), strength=1.0)
    merger = LoraMerger([lora], TARGETS, dtype="float32", delta_dtype="float32")
    maps = MappedFiles()
    return {
        name: merger.merge(name, base[name]) - maps.load(base[name], "float32")
        for name in TARGETS
        if name in merger.changed
    }


def assert_is_update(
    path: Path, base: SafetensorsFile, scale: float = 1.0, tolerance: float = 1e-5
) -> None:
    """Whether a file adds the update, and nothing else, within a relative error."""
    got = changes(path, base)
    assert got.keys() == {f"{module}.weight" for module in MODULES}
    for module, (a, b) in factors().items():
        want = scale * (b.astype(np.float64) @ a)
        error = np.linalg.norm(got[f"{module}.weight"] - want)
        assert error <= tolerance * np.linalg.norm(want), module


def test_the_page_lists_what_is_tested_here() -> None:
    """`make docs` writes it; every refused kind has its reason, every naming its row."""
    assert REFUSED.keys() == {*UNSUPPORTED, *BY_CONFIG}
    text = PAGE.read_text()
    assert "| LoKr, both factors products |" in text
    assert rewritten(text) == text, "run `make docs`"


@pytest.fixture
def base(tmp_path: Path) -> SafetensorsFile:
    return base_file(tmp_path / "base.safetensors")


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_every_naming_is_the_same_update(
    naming: str, alpha: float | None, base: SafetensorsFile, tmp_path: Path
) -> None:
    path = write_lora(tmp_path / "a.safetensors", *NAMINGS[naming], **{"alpha": alpha})
    assert_is_update(path, base, 1.0 if alpha is None else alpha / RANK)


@pytest.mark.parametrize("naming", ["official / ComfyUI", "diffusers", "PEFT"])
@pytest.mark.parametrize(("rslora", "scale"), [(False, 0.5), (True, 1.0)])
def test_alpha_in_metadata_counts_under_every_naming(
    naming: str, rslora: bool, scale: float, base: SafetensorsFile, tmp_path: Path
) -> None:
    config = {"r": RANK, "lora_alpha": 2, "use_rslora": rslora}
    metadata = {
        "lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in config.items()})
    }
    path = write_lora(tmp_path / "a.safetensors", *NAMINGS[naming], metadata=metadata)
    assert_is_update(path, base, scale)


def test_text_of_a_converter_is_no_alpha(tmp_path: Path, base: SafetensorsFile) -> None:
    """Converters fold alpha and keep the trainer's text: applied, it would count twice."""
    metadata = {"ss_network_alpha": "2", "ss_network_dim": "4"}
    path = write_lora(tmp_path / "a.safetensors", official, metadata=metadata)
    assert_is_update(path, base)
    assert "alpha 2 at rank 4" in described(path)["note"]


def test_the_configuration_of_simpletuner_counts_once(
    tmp_path: Path, base: SafetensorsFile
) -> None:
    """LyCORIS writes alphas as tensors; SimpleTuner notes beside them where they came from."""
    lycoris = {"algo": "lora", "multiplier": 1.0, "linear_dim": RANK, "linear_alpha": 2}
    metadata = {"lycoris_config": json.dumps(lycoris)}
    path = write_lora(tmp_path / "a.safetensors", official, alpha=2.0, metadata=metadata)
    assert_is_update(path, base, 2.0 / RANK)


def described(path: Path) -> dict[str, Any]:
    from ltx2rt.lora.describe import describe_lora

    return describe_lora(SafetensorsFile(path))


def test_info_shows_alpha_and_what_it_makes_of_it(tmp_path: Path) -> None:
    info = described(write_lora(tmp_path / "a.safetensors", official, alpha=2.0))
    assert (info["kinds"], info["ranks"]) == (["LoRA"], [RANK])
    assert (info["alphas"], info["effective_scales"]) == ([2.0], [0.5])
    assert "note" not in info


def quantised(values: np.ndarray, dtype: str) -> tuple[Stream, np.ndarray]:
    top, kind, name = (127, np.dtype(np.int8), "int8")
    if dtype == "fp8":
        ml_dtypes = pytest.importorskip("ml_dtypes")
        top, kind, name = (448, np.dtype(ml_dtypes.float8_e4m3fn), "float8_e4m3fn")
    scale = np.float32(np.abs(values).max() / top)
    codes = (values / scale).round() if dtype == "int8" else values / scale
    return (name, values.shape, (codes.astype(kind).tobytes(),)), np.array(scale)


@pytest.mark.parametrize("dtype", ["fp8", "int8"])
@pytest.mark.parametrize("scale_name", ["weight_scale", "scale_weight"])
def test_scaled_factors(dtype: str, scale_name: str, base: SafetensorsFile, tmp_path: Path) -> None:
    tensors: dict[str, Any] = {}
    for module, (a, b) in factors().items():
        for half, values in (("lora_A", a), ("lora_B", b)):
            stem = f"diffusion_model.{module}.{half}"
            tensors[f"{stem}.weight"], tensors[f"{stem}.{scale_name}"] = quantised(values, dtype)
    tensors["scaled_fp8"] = np.zeros(0, np.float32)
    path = tmp_path / "scaled.safetensors"
    write_safetensors(path, tensors)
    assert match(path).skipped == ()
    assert_is_update(path, base, tolerance=0.05)  # three or seven bits of mantissa, each factor
    del tensors[f"diffusion_model.{Q}.lora_A.{scale_name}"]
    write_safetensors(path, tensors)
    if dtype == "int8":
        with pytest.raises(CheckpointError, match=r"lora_A\.weight is int8, expected"):
            match(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_numbers_that_are_none_are_refused_at_once(bad: float, dtype: str, tmp_path: Path) -> None:
    types: dict[str, Any] = {}
    if dtype == "bfloat16":
        types[dtype] = pytest.importorskip("ml_dtypes").bfloat16
    path = write_lora(tmp_path / "good.safetensors", official)
    tensors: dict[str, Any] = {}
    for name, entry in SafetensorsFile(path).items():
        values = MappedFiles().load(entry, "float32").copy()
        if name.endswith("to_out.0.lora_B.weight"):
            values[1, 2] = bad
        numpy_type = np.dtype(types[dtype] if dtype in types else dtype)
        tensors[name] = dtype, values.shape, (values.astype(numpy_type).tobytes(),)
    broken = tmp_path / "broken.safetensors"
    write_safetensors(broken, tensors)
    lora = Lora(path=str(broken), strength=1.0)
    name = f"diffusion_model.{BLOCK}.attn1.to_out.0.lora_B.weight"
    with pytest.raises(CheckpointError, match=f"corrupt: {name} holds values"):
        LoraMerger([lora], TARGETS)
    with pytest.raises(CheckpointError, match=name):
        merge_loras([lora], tmp_path / "out.safetensors")
    LoraMerger([Lora(path=str(path), strength=1.0)], TARGETS)


def test_a_file_that_was_sound_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "a.safetensors", official)
    lora = Lora(path=str(path), strength=1.0)
    LoraMerger([lora], TARGETS)
    content = bytearray(path.read_bytes())
    content[-4:] = np.array(np.nan, np.float32).tobytes()
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not finite"):
        LoraMerger([lora], TARGETS)


def test_biases_norms_and_tables_are_changed_too(base: SafetensorsFile, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    bias, norm, table, whole = (
        rng.standard_normal(s, np.float32) for s in ((8,), (8,), (9, 8), (8, 8))
    )
    attention = f"diffusion_model.{BLOCK}.attn1"
    cases: dict[str, tuple[str, np.ndarray, bool]] = {
        f"{attention}.to_q.lora_B.bias": (f"{Q}.bias", bias, False),
        f"{attention}.to_q.diff_b": (f"{Q}.bias", bias, False),
        f"{attention}.to_q.bias": (f"{Q}.bias", bias, True),
        f"{attention}.q_norm.w_norm": (f"{BLOCK}.attn1.q_norm.weight", norm, False),
        f"{attention}.q_norm.diff": (f"{BLOCK}.attn1.q_norm.weight", norm, False),
        f"transformer.{BLOCK}.attn1.norm_q.weight": (f"{BLOCK}.attn1.q_norm.weight", norm, True),
        f"diffusion_model.{BLOCK}.scale_shift_table": (f"{BLOCK}.scale_shift_table", table, True),
        f"diffusion_model.{BLOCK}.scale_shift_table.diff": (
            f"{BLOCK}.scale_shift_table", table, False,
        ),
    }  # fmt: skip
    maps = MappedFiles()
    for index, (name, (target, values, replaces)) in enumerate(cases.items()):
        path = write_lora(tmp_path / f"{index}.safetensors", official, extra={name: values})
        assert match(path).skipped == (), name
        got = changes(path, base)
        own = maps.load(base[target], "float32")
        np.testing.assert_allclose(got[target], values - own if replaces else values, atol=1e-6)
    path = tmp_path / "set.safetensors"
    write_safetensors(path, {f"{attention}.to_q.set_weight": whole})
    own = maps.load(base[f"{Q}.weight"], "float32")
    np.testing.assert_allclose(changes(path, base)[f"{Q}.weight"], whole - own, atol=1e-6)


def test_what_is_left_out_is_counted_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    extra = {
        "text_encoders.gemma3.model.layers.0.self_attn.q_proj.lora_A.weight": np.ones((4, 8)),
        "text_encoders.gemma3.model.layers.0.self_attn.q_proj.lora_B.weight": np.ones((8, 4)),
        f"diffusion_model.{BLOCK}.attn1.to_out.0.diff_b": np.ones(8),
        "epoch": np.ones(1),
    }
    path = write_lora(tmp_path / "a.safetensors", official, extra=extra)
    with caplog.at_level(logging.WARNING):
        LoraMerger([Lora(path=str(path), strength=1.0)], TARGETS)
    (line,) = caplog.messages
    assert "3 of 5 modules and tensors" in line
    for part in ("epoch", "self_attn.q_proj", "attn1.to_out.0 (bias)"):
        assert part in line


def test_a_whole_model_is_no_adapter(tmp_path: Path, base: SafetensorsFile) -> None:
    with pytest.raises(CheckpointError, match=r"whole tensors of a model .* as --checkpoint"):
        match(base.path)
    mixed = {f"diffusion_model.{Q}.lora_A.weight": np.ones((2, 8))}
    write_safetensors(tmp_path / "half.safetensors", mixed)
    with pytest.raises(CheckpointError, match="has only its down half"):
        match(tmp_path / "half.safetensors")


def test_parts_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    name = f"diffusion_model.{Q}"
    cases = {
        "w1_a of no w1_b": {f"{name}.lokr_w1_a": (2, 2), f"{name}.lokr_w2": (4, 4)},
        "inner": {
            f"{name}.hada_w1_a": (8, 2), f"{name}.hada_w1_b": (3, 8),
            f"{name}.hada_w2_a": (8, 2), f"{name}.hada_w2_b": (2, 8),
        },
        "shape": {f"{name}.lokr_w1": (3, 3), f"{name}.lokr_w2": (4, 4)},
        "magnitude": {f"{name}.dora_scale": (8, 1)},
        "magnitude size": {
            f"{name}.lora_A.weight": (2, 8), f"{name}.lora_B.weight": (8, 2),
            f"{name}.dora_scale": (5, 1),
        },
        "blocks": {f"{name}.oft_blocks": (3, 4, 4)},
        "two ways": {f"{name}.diff": (8, 8), f"{name}.set_weight": (8, 8)},
    }  # fmt: skip
    messages = {
        "w1_a of no w1_b": r"LoKr factors \(w1_a \[2, 2\], w2 \[4, 4\]\), which are not two",
        "inner": "LoHa factors .* which are not two complete matrices whose parts chain",
        "shape": r"is \[8, 8\], the LoKr is for \[12, 12\]",
        "magnitude": r"has magnitudes \(.*dora_scale\) of no update",
        "magnitude size": r"dora_scale is \[5, 1\], expected \[8, 1\]",
        "blocks": r"blocks \[3, 4, 4\] do not turn a weight of \[8, 8\]",
        "two ways": "is changed in two ways",
    }
    for case, shapes in cases.items():
        path = tmp_path / "x.safetensors"
        write_safetensors(path, {n: np.ones(s, np.float32) for n, s in shapes.items()})
        with pytest.raises(CheckpointError, match=messages[case]):
            match(path)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("out", "width", "ranks"), [(1, 7, (1,)), (300, 65, (4, 3)), (ROWS * 2, 33, (9,))]
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_rows_are_cut_without_changing_a_bit(
    threads: int, out: int, width: int, ranks: tuple[int, ...], dtype: str
) -> None:
    """Against the recipe on whole matrices (spec/lora.md §2)."""
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((out, width), np.float32)
    updates = [
        (rng.standard_normal((r, width), np.float32), rng.standard_normal((out, r), np.float32), s)
        for r, s in zip(ranks, (0.7, -1.3), strict=False)
    ]
    delta = None
    for down, up, strength in updates:
        a, b, s = cast(down, "bfloat16"), cast(up, "bfloat16"), np.float32(strength)
        if delta is None:
            delta = cast(cast(b * s, "bfloat16") @ a, "bfloat16")
        else:
            delta = cast(delta + s * (b @ a), "bfloat16")
    want = cast(delta + weight, dtype)
    before = weight.copy()
    got = add_low_rank(weight, updates, dtype=dtype, threads=threads)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(weight, before)


def test_of_two_copies_in_a_folder_one_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("x.safetensors", "x.comfy.safetensors"):
        write_lora(tmp_path / name, official)
    assert find_lora(tmp_path).name == "x.safetensors"
    assert "x.comfy.safetensors is a copy" in caplog.text
    write_lora(tmp_path / "y.comfy.safetensors", official)
    with pytest.raises(CheckpointError, match="3 LoRA files"):
        find_lora(tmp_path)


@pytest.mark.parametrize(
    "key",
    [
        "reference_downscale_factor", "ss_reference_downscale_factor",
        "reference_spatial_scale_factor",
    ],
)  # fmt: skip
def test_reference_factors_of_every_trainer(key: str, tmp_path: Path) -> None:
    path = write_lora(tmp_path / "ic.safetensors", official, metadata={key: "2"})
    files = [SafetensorsFile(path)]
    assert reference_factors(files) == (2, 1)
    assert reference_factors(files, spatial=3) == (3, 1)
    lora = [Lora(path=str(path), strength=1.0)]
    out = SafetensorsFile(merge_loras(lora, tmp_path / "out.safetensors").path)
    assert reference_factors([out]) == (2, 1)


def test_a_user_names_the_factor_that_a_file_does_not(tmp_path: Path) -> None:
    lora = Lora(path=str(write_lora(tmp_path / "ic.safetensors", official)), strength=1.0)
    given = {"references": (ReferenceFile(path=Path("a.mp4")),)}
    assert reference_sizes((lora,), ICLoraInputs(**given)) == (1, 1)
    assert reference_sizes((lora,), ICLoraInputs(**given, reference_downscale=3)) == (3, 1)
    video = Path("a.mp4")
    for make in (
        lambda n: ICLoraInputs(**given, reference_downscale=n),
        lambda n: HDRICLoraInputs(**given, reference_downscale=n),
        lambda n: DubItInputs(reference_video=video, reference_downscale=n),
    ):
        assert make(2).reference_downscale == 2
        with pytest.raises(OptionError, match="reference_downscale=0 is below 1"):
            make(0)


def test_generation_from_name_and_metadata(tmp_path: Path) -> None:
    named = write_lora(tmp_path / "ltx-2.3-style.safetensors", official)
    said = write_lora(tmp_path / "a.safetensors", official, metadata={"model_version": "2.5.0"})
    silent = write_lora(tmp_path / "b.safetensors", official)
    fits = {}
    for path in (named, said, silent):
        file = SafetensorsFile(path)
        keys = read_lora_keys(file)
        fits[path.name] = lora_generations(file, keys), misfit(file, keys, "LTX-2.5")
    assert fits["ltx-2.3-style.safetensors"][0] == ("LTX-2.3",)
    assert "made for LTX-2.3, this model is LTX-2.5" in str(fits["ltx-2.3-style.safetensors"][1])
    assert fits["a.safetensors"] == (("LTX-2.5",), None)
    assert fits["b.safetensors"] == (("LTX-2", "LTX-2.3", "LTX-2.5"), None)


def test_merge_options(tmp_path: Path) -> None:
    """Those that other merge tools have: the first file alone for some modules, a part of the
    directions, alphas, the files' own dtype.
    """
    paths = [write_lora(tmp_path / f"{i}.safetensors", official) for i in range(2)]
    loras = [Lora(path=str(p), strength=s) for p, s in zip(paths, (1.0, 0.5), strict=True)]
    options = MergeOptions(keep_first=r"\.to_q", emit_alpha=True)
    merged = merge_loras(loras, tmp_path / "out.safetensors", options)
    assert merged.ranks == {Q: RANK, f"{BLOCK}.attn1.to_out.0": 2 * RANK}
    file = SafetensorsFile(merged.path)
    alpha = MappedFiles().raw(file[f"diffusion_model.{Q}.alpha"])
    assert float(alpha.reshape(-1)[0]) == RANK
    kept = {}
    for fraction in (0.0, 1.0):
        options = MergeOptions(method="orthogonal", orthogonal_fraction=fraction, dtype="auto")
        path = merge_loras(loras, tmp_path / f"{fraction}.safetensors", options).path
        out = SafetensorsFile(path)
        assert {e.dtype for e in out.values()} == {"float32"}
        up = MappedFiles().load(out[f"diffusion_model.{Q}.lora_B.weight"], "float32")
        kept[fraction] = np.linalg.norm(up[:, RANK:])
    assert kept[1.0] < 1e-5 < kept[0.0]  # the same directions: all of them, or none, are taken out


def test_kinds_that_need_the_model_say_so(
    tmp_path: Path, base: SafetensorsFile, capsys: pytest.CaptureFixture[str]
) -> None:
    magnitude = {f"diffusion_model.{Q}.dora_scale": np.ones((8, 1), np.float32)}
    path = write_lora(tmp_path / "dora.safetensors", official, extra=magnitude)
    lora = [Lora(path=str(path), strength=1.0)]
    with pytest.raises(UnsupportedError, match=r"DoRA \(LoRA\).*name it with --bundle DIR"):
        merge_loras(lora, tmp_path / "out.safetensors")
    assert main(["lora", "merge", str(path), "-o", str(tmp_path / "out.safetensors")]) == 2
    assert "--bundle DIR" in capsys.readouterr().err
    maps = MappedFiles()
    out = merge_loras(
        lora, tmp_path / "out.safetensors", base=lambda name: maps.load(base[name], "float32")
    )
    assert out.differences == (f"{Q}.weight",)
    got, want = changes(out.path, base), changes(path, base)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, atol=1e-5)
