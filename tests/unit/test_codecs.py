"""Codecs of quantised weights: the worked examples of spec/quantization.md, and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ltx2rt.errors import ShapeError
from ltx2rt.weights.codecs import fp8, int4, int8, minifloat, nf4, nvfp4
from ltx2rt.weights.floats import round_bfloat16
from tests.encoders import encode_activation, encode_per_tensor, static_linear, tile_scales

#: 0.1, -0.2, 0.3, ... -1.6
RAMP = np.array([[(-1) ** i * 0.1 * (i + 1) for i in range(16)]], np.float32)
FINITE = st.floats(-1e4, 1e4, width=32, allow_nan=False)


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (17, 16), (18, 18), (19, 20), (15.5, 16), (0.3, 0.3125), (2**-10, 0),
        (1.5 * 2**-9, 2**-8), (448, 448), (464, 448), (1e9, 448), (-np.inf, -448), (0, 0),
        (2**-6, 2**-6), (2**-6 * 0.99, 2**-6), (-0.3, -0.3125),
    ],
)  # fmt: skip
def test_fp8_rounds_to_nearest_even_and_clamps(value: float, expected: float) -> None:
    assert fp8.decode(fp8.encode(f32(value)))[0] == expected


def test_fp8_codes_decode_to_themselves() -> None:
    codes = np.arange(256, dtype=np.uint8)
    values = fp8.decode(codes)
    assert np.isnan(values[[0x7F, 0xFF]]).all()
    numbers = np.isfinite(values)
    np.testing.assert_array_equal(fp8.encode(values[numbers]), codes[numbers])
    assert (fp8.encode(f32(np.nan, -np.nan)) & 0x7F == 0x7F).all()


@given(hnp.arrays(np.float32, st.integers(1, 40), elements=FINITE))
def test_fp8_gives_the_nearest_code(values: np.ndarray) -> None:
    levels = np.unique(fp8.TABLE[np.isfinite(fp8.TABLE)]).astype(np.float64)
    clamped = np.clip(values.astype(np.float64), -448, 448)
    nearest = np.abs(levels[None] - clamped[:, None]).min(axis=1)
    got = fp8.decode(fp8.encode(values)).astype(np.float64)
    np.testing.assert_array_equal(np.abs(got - clamped), nearest)


def test_static_activations_are_rounded_to_bfloat16_first() -> None:
    x = round_bfloat16(f32(0.3, -1.7, 25, 0.011))
    codes = encode_activation(x, 0.05)
    np.testing.assert_array_equal(fp8.decode(codes), f32(6, -32, 448, 0.21875))
    weight = fp8.encode(f32(0.5, -0.25, 0.03125, 1) * 448)[None]
    np.testing.assert_array_equal(fp8.decode(weight), [[224, -112, 14, 448]])
    result = static_linear(x[None], weight, 1 / 448, 0.05, None)
    assert result == np.float32(1.2578125)
    assert static_linear(x[None], weight, 1 / 448, 0.05, f32(0.1)) == np.float32(1.359375)


def test_fp8_per_tensor_example() -> None:
    codes, scale = encode_per_tensor(np.array([[0.5, -1], [0.25, 0.06]], np.float32))
    np.testing.assert_array_equal(fp8.decode(codes), [[224, -448], [112, 26]])
    assert scale == np.float32(0.00223214296)


def test_fp8_per_channel_scales_every_row_by_itself() -> None:
    weight = normal(5, 300) * np.logspace(-4, 4, 5, dtype=np.float32)[:, None]
    codes, amax = fp8.encode_per_channel(weight)
    np.testing.assert_array_equal(amax, np.abs(weight).max(axis=1))
    for row, largest, got in zip(weight, amax, codes, strict=True):
        np.testing.assert_array_equal(got, fp8.encode(row * (np.float32(448) / largest)))
    decoded = fp8.decode_scaled(codes, (amax / np.float32(448))[:, None])
    # half a step of three mantissa bits; subnormals have an absolute step
    np.testing.assert_array_less(
        np.abs(decoded - weight), np.abs(weight) * 2**-4 + amax[:, None] * 2**-17
    )


def test_fp8_blocks_scale_every_tile_by_itself() -> None:
    codes = fp8.encode(normal(256, 384))
    scales = np.exp(normal(2, 3))
    got = fp8.scale_blocks(fp8.decode(codes), scales)
    for i, j in np.ndindex(2, 3):
        tile = np.s_[128 * i : 128 * i + 128, 128 * j : 128 * j + 128]
        np.testing.assert_array_equal(got[tile], fp8.decode_scaled(codes[tile], scales[i, j]))


@pytest.mark.parametrize("encode", [encode_per_tensor, fp8.encode_per_channel])
def test_fp8_of_zeros_has_no_nan(encode) -> None:
    for tiny in (0.0, 1e-40):
        codes, scale = encode(np.full((3, 4), tiny, np.float32))
        assert (codes == 0).all()
        assert np.isfinite(scale).all()


def test_mxfp8_multiplies_groups_by_powers_of_two() -> None:
    values = fp8.decode(fp8.encode(normal(2, 64)))
    scales = np.array([[127, 130], [120, 0]], np.uint8)
    got = fp8.decode_mx(fp8.encode(values), scales)
    want = values.reshape(2, 2, 32) * np.array([[[1], [8]], [[2**-7], [2.0**-127]]])
    np.testing.assert_array_equal(got, want.reshape(2, 64).astype(np.float32))
    assert np.isnan(fp8.decode_mx(fp8.encode(values), np.full((2, 2), 255, np.uint8))).all()


def test_e5m2_examples() -> None:
    # 1 00000 01 is -2^-16, 0 01111 10 is 1.5, 0 11110 11 the largest
    np.testing.assert_array_equal(
        fp8.decode_dtype(np.array([0x81, 0x3E, 0x7B], np.uint8), "float8_e5m2"),
        f32(-(2.0**-16), 1.5, 57344),
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.25, 0), (0.75, 1), (1.25, 1), (1.75, 2), (2.5, 2), (3.5, 4), (5, 4), (5.1, 6), (99, 6)],
)
def test_e2m1_ties_go_to_the_even_code(value: float, expected: float) -> None:
    for sign in (1, -1):
        code = minifloat.round_to_codes(f32(sign * value), minifloat.E2M1)
        assert nvfp4.VALUES[code] == sign * expected


@pytest.mark.parametrize(
    ("scale", "block", "data", "decoded"),
    [
        (
            None, 448, "192b4c5d5e6e6f7f",
            [.13333, -.13333, .26667, -.4, .53333, -.53333, .8, -.8, .8, -1.06667, 1.06667,
             -1.06667, 1.06667, -1.6, 1.6, -1.6],
        ),
        (
            1.0, 0.28125, "192b4c4d5e6e6e7f",
            [.140625, -.140625, .28125, -.421875, .5625, -.5625, .5625, -.84375, .84375, -1.125,
             1.125, -1.125, 1.125, -1.125, 1.6875, -1.6875],
        ),
    ],
)  # fmt: skip
def test_nvfp4_examples(scale: float | None, block: float, data: str, decoded: list) -> None:
    tensor = nvfp4.encode(RAMP, scale)
    assert tensor.tensor_scale == (1.0 if scale else np.float32(1.6) / np.float32(2688))
    np.testing.assert_array_equal(fp8.decode(tensor.block_scales), [[block]])
    assert tensor.codes.tobytes().hex() == data
    np.testing.assert_allclose(nvfp4.decode(tensor)[0], decoded, atol=5e-6)


def test_nvfp4_small_groups_become_zeros() -> None:
    tensor = nvfp4.encode(np.concatenate([np.full((1, 16), 0.005, np.float32), RAMP], 1), 1.0)
    assert tensor.block_scales[0, 0] == 0
    np.testing.assert_array_equal(nvfp4.decode(tensor)[0, :16], np.zeros(16))
    assert (nvfp4.decode(nvfp4.encode(np.zeros((2, 32), np.float32))) == 0).all()
    with pytest.raises(ShapeError, match="groups of 16"):
        nvfp4.encode(np.zeros((2, 24), np.float32))


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 20), st.integers(0, 9))
def test_nvfp4_error_is_bounded_by_half_a_step(rows: int, groups: int, seed: int) -> None:
    values = normal(rows, groups * 16, seed=seed)
    tensor = nvfp4.encode(values)
    assert tensor.codes.shape == (rows, groups * 8)
    scale = np.repeat(fp8.decode(tensor.block_scales) * tensor.tensor_scale, 16, axis=1)
    assert (np.abs(nvfp4.decode(tensor) - values) <= scale * 1.0001 + 1e-7).all()


def tiled_offsets(rows: int, groups: int) -> np.ndarray:
    """Where the scale of row r and group c lies in the cuBLAS order (spec/quantization.md §4.2)."""
    r, c = np.arange(rows)[:, None], np.arange(groups)[None, :]
    tile = (r // 128) * (nvfp4.tiled_shape(rows, groups)[1] // 4) + c // 4
    return tile * 512 + (r % 32) * 16 + ((r % 128) // 32) * 4 + c % 4


@pytest.mark.parametrize(
    ("row", "group", "offset"),
    [(0, 0, 0), (0, 3, 3), (0, 4, 512), (1, 0, 16), (32, 0, 4), (33, 2, 22), (127, 3, 511),
     (128, 0, 32768)],
)  # fmt: skip
def test_scale_tiling_offsets(row: int, group: int, offset: int) -> None:
    assert tiled_offsets(129, 256)[row, group] == offset


@given(st.integers(1, 300), st.integers(1, 20))
def test_scale_tiling_follows_the_offsets_and_inverts(rows: int, groups: int) -> None:
    scales = np.random.default_rng(0).integers(1, 255, (rows, groups), np.uint8)
    tiled = tile_scales(scales)
    assert tiled.shape == nvfp4.tiled_shape(rows, groups)
    np.testing.assert_array_equal(tiled.reshape(-1)[tiled_offsets(rows, groups)], scales)
    assert np.count_nonzero(tiled) == scales.size
    np.testing.assert_array_equal(nvfp4.untile_scales(tiled, rows, groups), scales)


def test_swapping_nibbles() -> None:
    np.testing.assert_array_equal(
        nvfp4.swap_nibbles(np.array([0x19, 0xF0], np.uint8)), np.array([0x91, 0x0F], np.uint8)
    )


def test_nf4_example() -> None:
    weight = np.zeros((1, 32), np.float32)
    weight[0, :4] = round_bfloat16(f32(0.02, -0.01, 0.005, 0))
    codes, scales = nf4.encode(weight)
    assert codes[0, :2].tobytes().hex() == "f2a7"
    np.testing.assert_array_equal(scales, round_bfloat16(f32(0.02))[None])
    np.testing.assert_allclose(
        nf4.decode(codes, scales)[0, :4], f32(0.02, -0.0105015, 0.0049222, 0), rtol=2**-8
    )


def test_nf4_takes_the_nearest_level_and_the_lower_of_two() -> None:
    middle = (nf4.LEVELS[1:] + nf4.LEVELS[:-1]) / np.float32(2)
    weight = np.concatenate([nf4.LEVELS, middle, [1.0]]).astype(np.float32)[None]
    codes, scales = nf4.encode(weight)
    nibbles = np.stack([codes >> 4, codes & 15], axis=-1).reshape(-1)
    assert nibbles.tolist() == [*range(16), *range(15), 15]
    np.testing.assert_array_equal(scales, [[1.0]])
    np.testing.assert_array_equal(nf4.decode(codes, scales)[0], round_bfloat16(nf4.LEVELS[nibbles]))
    with pytest.raises(ShapeError, match="blocks of 32"):
        nf4.encode(np.zeros((2, 40), np.float32))


def test_int8_rows() -> None:
    weight = normal(6, 500) * np.logspace(-3, 3, 6, dtype=np.float32)[:, None]
    weight[2] = 0
    codes, scales = int8.encode_rows(weight)
    assert scales.shape == (6, 1)
    assert scales[2] == 1
    np.testing.assert_array_equal(np.abs(codes[[0, 1, 3, 4, 5]]).max(axis=1), 127)
    got = int8.decode_rows(codes, scales)
    assert (np.abs(got - weight) <= scales * 0.5001).all()
    np.testing.assert_array_equal(
        int8.encode_rows(f32(127, 0.5, 1.5, -2.5)[None])[0][0], [127, 0, 2, -2]
    )


def hadamard(size: int) -> np.ndarray:
    """The regular Hadamard matrix `H4 x H4 x ... / sqrt(size)`."""
    h4 = np.array([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], np.float32)
    matrix = np.ones((1, 1), np.float32)
    while matrix.shape[0] < size:
        matrix = np.kron(matrix, h4)
    return matrix / np.float32(size**0.5)


@pytest.mark.parametrize("size", [4, 16, 256])
def test_hadamard_is_its_own_inverse(size: int) -> None:
    matrix = hadamard(size).astype(np.float64)
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_array_equal(matrix @ matrix, np.eye(size))
    np.testing.assert_array_equal(np.abs(matrix), np.full((size, size), size**-0.5))


@pytest.mark.parametrize("group", [4, 16, 256])
def test_rotation_is_the_product_with_the_hadamard_matrix(group: int) -> None:
    weight = normal(5, 512)
    want = weight.reshape(-1, group).astype(np.float64) @ hadamard(group)
    np.testing.assert_allclose(int8.rotate(weight, group), want.reshape(5, 512), atol=2e-6)


def test_convrot_undoes_its_rotation() -> None:
    weight = normal(8, 512)
    weight[:, 7] *= 50  # an outlier channel: what the rotation is for
    np.testing.assert_allclose(int8.rotate(int8.rotate(weight)), weight, atol=1e-4)
    codes, scales = int8.encode_rows(int8.rotate(weight))
    turned = int8.decode_convrot(codes, scales) - weight
    plain = int8.decode_rows(*int8.encode_rows(weight)) - weight
    assert np.linalg.norm(turned) < 0.5 * np.linalg.norm(plain)
    assert (np.linalg.norm(turned, axis=1) <= scales[:, 0] * 0.5 * 512**0.5).all()
    for shape, group in (((2, 100), 256), ((2, 96), 32)):
        with pytest.raises(ShapeError):
            int8.rotate(np.zeros(shape, np.float32), group)


def test_int4_blocks() -> None:
    weight = normal(3, 256)
    weight[0, :128] = 0
    weight[1, :4] = [70, -70, 10, 5]
    codes, scales = int4.encode(weight)
    assert scales[0, 0] == 1
    assert scales[1, 0] == 10
    assert codes[1, :2].tolist() == [0x97, 0x01]  # 7 low, -7 high; 1 low, 0.5 rounds to even 0
    assert (np.abs(int4.decode(codes, scales) - weight) <= np.repeat(scales, 128, 1) * 0.5001).all()
    with pytest.raises(ShapeError, match="blocks of 128"):
        int4.encode(np.zeros((2, 100), np.float32))


def test_results_do_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(70, 256)
    calls = (fp8.encode_per_channel, encode_per_tensor, nf4.encode, int8.encode_rows,
             int8.rotate, int4.encode)  # fmt: skip
    before = [call(weight) for call in calls], nvfp4.encode(weight)
    monkeypatch.setattr(minifloat, "CHUNK", 1000)
    for call, want in zip(calls, before[0], strict=True):
        for a, b in zip(call(weight), want, strict=True):
            np.testing.assert_array_equal(a, b)
    after = nvfp4.encode(weight)
    np.testing.assert_array_equal(after.codes, before[1].codes)
    np.testing.assert_array_equal(nvfp4.decode(after), nvfp4.decode(before[1]))


def test_rotation_leaves_its_input_alone() -> None:
    for shape in ((1, 256), (3, 512)):
        weight = normal(*shape)
        before = weight.copy()
        int8.rotate(weight)
        np.testing.assert_array_equal(weight, before)
