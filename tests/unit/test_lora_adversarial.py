"""Broken and hostile LoRA files: refused in one sentence, never a traceback, never more memory than
the model and the file justify.
"""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltx2rt.errors import CheckpointError, Ltx2rtError
from ltx2rt.lora.adapter import parse_lora
from ltx2rt.lora.combine import METHODS, MergeOptions, merge_loras
from ltx2rt.lora.describe import describe_lora
from ltx2rt.lora.files import Lora, open_lora
from ltx2rt.lora.keys import read_lora_keys
from ltx2rt.lora.merger import LoraMerger
from ltx2rt.weights.safetensors import SafetensorsFile
from ltx2rt.weights.safetensors_writer import write_safetensors

Q = "transformer_blocks.0.attn1.to_q"
K = "transformer_blocks.0.attn1.to_k"
TARGETS = {
    f"{Q}.weight": (8, 6), f"{Q}.bias": (8,), f"{K}.weight": (8, 6),
    "transformer_blocks.0.scale_shift_table": (8, 6),
}  # fmt: skip
KOHYA = "lora_unet_" + Q.replace(".", "_")
NAMES = (
    f"diffusion_model.{Q}.lora_A.weight", f"diffusion_model.{Q}.lora_B.weight",
    f"diffusion_model.{Q}.lora_A.default.weight", f"{K}.lora_A.weight", f"{K}.lora_B.weight",
    f"{KOHYA}.lora_down.weight", f"{KOHYA}.lora_up.weight", f"{KOHYA}.alpha",
    f"base_model.model.{Q}.lora_B.weight", "transformer.proj_in.lora_A.weight",
    f"diffusion_model.{Q}.dora_scale", f"diffusion_model.{Q}.diff_b",
    f"diffusion_model.{Q}.lokr_w1", f"diffusion_model.{Q}.lokr_w2_a",
    f"diffusion_model.{Q}.lokr_w2_b", f"diffusion_model.{Q}.lokr_t2", f"{KOHYA}.hada_w1_a",
    f"{KOHYA}.hada_w1_b", f"{KOHYA}.hada_w2_a", f"{KOHYA}.hada_w2_b", f"{KOHYA}.hada_t1",
    f"{K}.oft_blocks", f"{K}.rescale", f"{K}.set_weight", f"{K}.lora_A.weight_scale",
    "transformer_blocks.0.scale_shift_table", f"{Q}.bias", f"{K}.oft_R.weight", f"{K}.boft_R",
    f"{K}.boft_s", f"{K}.ia3_l", f"{K}.on_input", f"{K}.weight", f"{K}.a1.weight",
    f"{K}.a2.weight", f"{K}.b1.weight", f"{K}.b2.weight", f"{K}.lora_A.comfy_quant", f"{K}.lora_E",
    "vae.decoder.conv.lora_A.weight",
    "../../etc/passwd.lora_A.weight", ".lora_A.weight", "",
)  # fmt: skip
PAIR = {NAMES[0]: ("BF16", (2, 6)), NAMES[1]: ("BF16", (8, 2))}
SHAPES = st.sampled_from(
    [
        (2, 6),
        (8, 2),
        (2, 7),
        (3, 6),
        (),
        (1,),
        (0, 6),
        (8, 0),
        (2, 6, 1),
        (6,),
        (64, 1),
        (2, 4, 4),
        (2, 2, 4, 4),
        (4, 3),
        (2, 2),
        (8, 6),
        (8,),
        (8, 1),
        (1, 6),
        (2, 3),
        (1, 15),
        (6, 2),
    ]
)
DTYPES = st.sampled_from(
    ["F32", "BF16", "F16", "F64", "I64", "I8", "U8", "BOOL", "F8_E4M3", "F8_E8M0"]
)
ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8, "I64": 8}
METADATA = st.dictionaries(
    st.sampled_from(
        ["lora_adapter_metadata", "reference_downscale_factor", "lora_rank", "lora_alpha", "format"]
    ),
    st.sampled_from(
        ["2", "NaN", "1e999", "-1", "{}", "[[", '{"lora_alpha": NaN}', '{"lora_alpha": "8"}',
         '{"lora_alpha": 1' + "0" * 400 + "}", '{"transformer.lora_alpha": 4, "use_rslora": true}',
         '{"alpha_pattern": {"attn1.to_q": null}}', "\x1b[31m", '{"alpha_pattern": {"(a*)*": 1}}',
         '{"use_cayley_neumann": false, "coft": true, "eps": NaN}', '{"alpha_pattern": {"[": 1}}',
         '{"peft_version": "0.18.0", "num_cayley_neumann_terms": 4, "block_share": 1}',
         '{"init_r": 4, "lora_alpha": 8}']
    ),
    max_size=3,
)  # fmt: skip


def write(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: Any) -> Path:
    """A file of arbitrary bytes: half of the floats are NaN, huge or denormal."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        length = int(np.prod(shape, dtype=np.int64)) * ITEM_BYTES.get(dtype, 1)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + length]}
        offset += length
    text = json.dumps(header).encode()
    data = np.random.default_rng(0).integers(0, 256, offset, np.uint8).tobytes()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def use_everywhere(path: Path) -> None:
    """All that is ever done with a LoRA file."""
    file = open_lora(path)
    describe_lora(file)
    parse_lora(file, TARGETS)
    lora = Lora(path=str(path), strength=0.5)
    merger = LoraMerger([lora], TARGETS)
    base = write(path.with_name("base"), {n: ("F32", s) for n, s in TARGETS.items()}, None)
    weights = SafetensorsFile(base)
    values = np.random.default_rng(1)
    with np.errstate(all="ignore"):
        for name, shape in TARGETS.items():
            if name in merger.changed:
                assert merger.merge(name, weights[name]).shape == shape
        for method in METHODS:
            strength = 1.0 if method == "ema" else 0.5
            merge_loras(
                [Lora(path=str(path), strength=strength)] * 2,
                path.with_name("merged.safetensors"),
                MergeOptions(method=method, rank=1),
                lambda name: values.standard_normal(TARGETS[name], np.float32),
            )


@settings(deadline=None, max_examples=200)
@given(
    st.dictionaries(st.sampled_from(NAMES), st.tuples(DTYPES, SHAPES), max_size=6),
    METADATA,
    st.booleans(),
)
def test_any_mixture_of_tensors(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: dict[str, tuple[str, tuple[int, ...]]],
    metadata: dict[str, str],
    with_a_pair: bool,
) -> None:
    tensors = tensors | (PAIR if with_a_pair else {})
    path = write(tmp_path_factory.getbasetemp() / "mixed.safetensors", tensors, metadata)
    try:
        use_everywhere(path)
    except Ltx2rtError:
        pass


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2000), st.integers(0, 255))
def test_any_damage_and_any_truncation(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    content = bytearray(write(folder / "whole.safetensors", PAIR, {"lora_rank": "2"}).read_bytes())
    content[position % len(content)] = value
    for data in (bytes(content), bytes(content[: position % len(content)])):
        path = folder / "damaged.safetensors"
        path.write_bytes(data)
        try:
            use_everywhere(path)
        except Ltx2rtError:
            pass


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_alphas_must_be_finite(tmp_path: Path, value: float) -> None:
    tensors: dict[str, Any] = {
        f"{KOHYA}.lora_down.weight": np.ones((2, 6), np.float32),
        f"{KOHYA}.lora_up.weight": np.ones((8, 2), np.float32),
        f"{KOHYA}.alpha": np.array(value, np.float32),
    }
    write_safetensors(tmp_path / "a.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"to_q\.alpha is not one finite number"):
        read_lora_keys(SafetensorsFile(tmp_path / "a.safetensors"))
    tensors[f"{KOHYA}.alpha"] = np.array(1, np.int64)  # some trainers store whole numbers
    write_safetensors(tmp_path / "b.safetensors", tensors)
    keys = read_lora_keys(SafetensorsFile(tmp_path / "b.safetensors"))
    assert [update.scale for update in keys.updates.values()] == [0.5]


def test_ambiguous_and_wrong_halves_are_listed(tmp_path: Path) -> None:
    pair = {
        NAMES[0]: ("F32", (2, 6)), NAMES[2]: ("F32", (2, 6)), NAMES[1]: ("I64", (8, 2)),
        f"{K}.lora_A.weight": ("F32", (0, 6)), f"{K}.lora_B.weight": ("F32", (8, 0)),
    }  # fmt: skip
    file = SafetensorsFile(write(tmp_path / "a.safetensors", pair, None))
    problems = "; ".join(read_lora_keys(file).problems)
    assert f"diffusion_model.{Q} has two down halves" in problems
    assert f"{NAMES[1]} is int64, expected float32" in problems
    assert f"{K} has shapes [0, 6] and [8, 0], which are empty" in problems


def test_memory_is_bounded_by_model_and_file(tmp_path: Path) -> None:
    """A header that promises terabytes, an alpha and a comment of megabytes: nothing of it is
    allocated.
    """
    huge = {NAMES[0]: ("F32", (2**38, 6)), NAMES[1]: ("F32", (8, 2**38))}
    header = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 4 * shape[0] * shape[1]]}
        for name, (dtype, shape) in huge.items()
    }
    text = json.dumps(header).encode()
    (tmp_path / "huge.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))
    wide = {
        f"{KOHYA}.lora_down.weight": ("F32", (2, 6)),
        f"{KOHYA}.lora_up.weight": ("F32", (8, 2)),
        f"{KOHYA}.alpha": ("F32", (2**22,)),
    }
    write(tmp_path / "alpha.safetensors", wide, None)
    tracemalloc.start()
    for name, message in (("huge", "corrupt"), ("alpha", "not one finite number")):
        with pytest.raises(CheckpointError, match=message):
            use_everywhere(tmp_path / f"{name}.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
