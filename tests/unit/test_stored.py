"""What is found to fit decodes; what does not fit is said before anything is read."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltx2rt.weights.codecs import fp8, nvfp4
from ltx2rt.weights.codecs.stored import GROUPS, LAYOUTS, decode, storage_problems
from ltx2rt.weights.safetensors import DTYPES, Encoding, MappedFiles, SafetensorsFile, TensorEntry
from ltx2rt.weights.safetensors_writer import write_safetensors
from tests.encoders import tile_scales

SIZES = st.sampled_from([0, 1, 2, 3, 4, 16, 31, 32, 48, 64, 128, 256])
SCALE_DTYPES = st.sampled_from(["float32", "bfloat16", "float16", "uint8", "float8_e4m3fn"])
CODE_DTYPES = st.sampled_from(["float8_e4m3fn", "float8_e5m2", "uint8", "int8", "float32"])
NUMPY = dict(DTYPES.values())


def entry(dtype: str, shape: tuple[int, ...]) -> TensorEntry:
    return TensorEntry(Path("x"), "x", dtype, shape, 0, 0)


@st.composite
def encodings(draw: st.DrawFn) -> tuple[tuple[int, ...], str, Encoding]:
    """Mostly shapes that fit a format, with one thing or another wrong."""
    kind = draw(st.sampled_from([*LAYOUTS, "fp3"]))
    rows, columns = draw(SIZES), draw(SIZES)
    group = draw(st.sampled_from([0, 1, 16, 32, 64, *[GROUPS.get(kind, 16)] * 5]))
    layout = LAYOUTS.get(kind)
    shape: tuple[int, ...] = (rows, columns)
    codes = (rows, columns // (layout.per_byte if layout else 1))
    fitting = list(layout.scale_shapes(rows, columns, group)) if layout and group else [()]
    dtypes = st.sampled_from(layout.scale_dtypes) if layout else SCALE_DTYPES
    parts = {
        "scale": entry(
            draw(dtypes | dtypes | SCALE_DTYPES), draw(st.sampled_from([*fitting, (3,)]))
        )
    }
    if draw(st.booleans()):
        parts["tensor_scale"] = entry("float32", draw(st.sampled_from([(), (1,), (2,)])))
    if draw(st.integers(0, 9)) == 0:
        shape = draw(st.sampled_from([(), (rows,), (rows, columns, 1)]))
    dtype = (
        draw(st.sampled_from(layout.dtypes) if layout else CODE_DTYPES)
        if draw(st.integers(0, 9))
        else draw(CODE_DTYPES)
    )
    return shape, dtype, Encoding(format=kind, shape=codes, group=group, parts=parts)


@settings(deadline=None, max_examples=600)
@given(encodings())
def test_what_has_no_problems_decodes(case: tuple[tuple[int, ...], str, Encoding]) -> None:
    shape, dtype, encoding = case
    if storage_problems(shape, dtype, encoding):
        return
    codes = np.ones(encoding.shape, NUMPY[dtype])
    one = {"uint8": 127, "float8_e8m0fnu": 127, "float8_e4m3fn": 0x38}
    parts = {
        name: np.full(
            part.shape, one.get(part.dtype, 1), np.uint8 if part.dtype in one else np.float32
        )
        for name, part in encoding.parts.items()
    }
    values = decode(shape, dtype, encoding, codes, parts)
    assert values.shape == shape
    assert values.dtype == np.float32
    assert np.isfinite(values).all()


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_format_has_a_case_that_fits(kind: str) -> None:
    layout = LAYOUTS[kind]
    rows, columns, group = 64, 64, {"nvfp4": 16, "mxfp8": 32}.get(kind, 16)
    for shape in layout.scale_shapes(rows, columns, group):
        parts = {
            "scale": entry(layout.scale_dtypes[0], shape),
            "tensor_scale": entry("float32", ()),
        }
        codes = rows, columns // layout.per_byte
        encoding = Encoding(format=kind, shape=codes, group=group, parts=parts)
        assert storage_problems((rows, columns), layout.dtypes[0], encoding) == []


@pytest.mark.parametrize("more_rows", [0, 16, 128])
def test_files_are_read_through_their_encoding(tmp_path: Path, more_rows: int) -> None:
    """Codes stay codes for `raw`; `values` and `load` give what they stand for. NVFP4 scales may be
    padded to more rows than their tiles.
    """
    tensor = nvfp4.encode(np.random.default_rng(0).standard_normal((5, 32), np.float32))
    tiled = np.pad(tile_scales(tensor.block_scales), ((0, more_rows), (0, 0)))
    tensors = {
        "w": tensor.codes,
        "s": ("float8_e4m3fn", tiled.shape, (tiled.tobytes(),)),
        "t": np.array(tensor.tensor_scale),
        "plain": ("float8_e5m2", (2,), (b"\x3c\xbe",)),
    }
    write_safetensors(tmp_path / "f", tensors)
    file, maps = SafetensorsFile(tmp_path / "f"), MappedFiles()
    encoding = Encoding(
        format="nvfp4",
        shape=(5, 16),
        group=16,
        parts={"scale": file["s"], "tensor_scale": file["t"]},
    )
    assert storage_problems((5, 32), "uint8", encoding) == []
    e = file["w"]
    weight = TensorEntry(e.path, e.name, e.dtype, (5, 32), e.offset, e.length, encoding)
    assert weight.num_elements == math.prod((5, 32))
    np.testing.assert_array_equal(maps.raw(weight), tensor.codes)
    values, dtype = maps.values(weight)
    assert dtype == "float32"
    np.testing.assert_array_equal(values, nvfp4.decode(tensor))
    np.testing.assert_array_equal(maps.load(weight, "float32"), values)
    assert maps.load(weight, "bfloat16").dtype == np.uint16
    np.testing.assert_array_equal(maps.load(file["plain"], "float32"), [1.0, -1.5])
    np.testing.assert_array_equal(maps.load(file["s"], "float32"), fp8.decode(tiled))


@pytest.mark.parametrize("shape", [(127, 4), (128, 8), (256, 2), (512,)])
def test_nvfp4_scales_of_other_tiles_are_refused(shape: tuple[int, ...]) -> None:
    parts = {"scale": entry("float8_e4m3fn", shape), "tensor_scale": entry("float32", ())}
    encoding = Encoding(format="nvfp4", shape=(5, 16), group=16, parts=parts)
    (problem,) = storage_problems((5, 32), "uint8", encoding)
    assert f"{list(shape)}, expected float8_e4m3fn [128, 4]" in problem
