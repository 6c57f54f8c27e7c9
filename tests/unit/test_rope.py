"""RoPE tables against the values the specification lists (transformer.md sections 8.1, 8.2)."""

from __future__ import annotations

import numpy as np
import pytest

from ltx2rt.errors import OptionError, ShapeError
from ltx2rt.latents.patchify import video_positions
from ltx2rt.latents.rope import index_positions, rope_angles, rope_frequencies, rope_tables
from ltx2rt.latents.shapes import VideoLatentShape
from ltx2rt.weights.floats import as_dtype

MAX_POS = (20, 2048, 2048)
#: 512x768, 121 frames at 24 frames a second
POSITIONS = video_positions(VideoLatentShape(num_frames=16, height=16, width=24), 24.0)
LISTED = 5e-8  # the specification prints eight decimals


def video_tables(count: int) -> tuple[np.ndarray, np.ndarray]:
    return rope_tables(POSITIONS[:, :, :count], width=4096, heads=32, max_pos=MAX_POS)


def test_frequencies() -> None:
    ladder = rope_frequencies(682, 10000.0)
    want = [1.57079637, 1.59218526, 1.61386538]
    np.testing.assert_allclose(ladder[:3], want, rtol=1e-7)
    np.testing.assert_allclose(ladder[-2:], [15496.947, 15707.963], rtol=1e-7)
    assert rope_frequencies(1, 10000.0) == pytest.approx(np.pi / 2)


def test_first_token() -> None:
    cos, sin = video_tables(1)
    assert cos.shape == (1, 32, 1, 64)
    want = [1, 1, 0.00327248, 0.02454114, 0.02454114, -0.01807083, 0.00348897]
    np.testing.assert_allclose(cos[0, 0, 0, :7], want, atol=LISTED)
    want = [0, 0, -0.99999464, -0.99969882, -0.99969882, -0.99983668, -0.99999392]
    np.testing.assert_allclose(sin[0, 0, 0, :7], want, atol=LISTED)
    assert cos[0, 31, 0, 63] == pytest.approx(0.9238892, abs=LISTED)
    assert sin[0, 31, 0, 63] == pytest.approx(0.3826601, abs=LISTED)


def test_first_token_of_the_second_latent_frame() -> None:
    cos, _ = video_tables(16 * 24 + 1)
    want = [0.03271897, 0.02454114, 0.02454114, 0.01178126, 0.00348897, 0.00348897]
    np.testing.assert_allclose(cos[0, 0, -1, 2:8], want, atol=LISTED)


def test_angle_by_hand() -> None:
    angles = rope_angles(POSITIONS[:, :, :1], width=4096, max_pos=MAX_POS)
    assert angles[0, 0, 0] == pytest.approx((0.0208333 / 20 * 2 - 1) * np.pi / 2, abs=1e-6)


def test_layouts_hold_the_same_lanes() -> None:
    positions = POSITIONS[:, :, :5]
    options = {"width": 64, "heads": 4, "max_pos": MAX_POS}
    split, _ = rope_tables(positions, **options)
    wide, _ = rope_tables(positions, **options, rope_type="interleaved")
    assert wide.shape == (1, 5, 64)
    lanes = split.transpose(0, 2, 1, 3).reshape(1, 5, 32)
    np.testing.assert_array_equal(wide[..., 4::2], lanes[..., 2:])  # 2 pad lanes, 4 pad entries
    np.testing.assert_array_equal(wide[..., ::2], wide[..., 1::2])
    np.testing.assert_array_equal(wide[..., :4], 1)


def test_connector_positions() -> None:
    cos, _ = rope_tables(index_positions(3), width=3840, heads=30, max_pos=(4096,))
    middle = np.float32(2) / np.float32(4096) * np.float32(2) - np.float32(1)
    assert cos.shape == (1, 30, 3, 64)
    assert cos[0, 0, 2, 0] == pytest.approx(np.cos(np.float32(np.pi / 2) * middle), abs=LISTED)


def by_token(
    positions: np.ndarray, width: int, heads: int, max_pos: tuple[float, ...], rope_type: str
) -> list[np.ndarray]:
    """The obvious way: an angle for every token and frequency, then the layout."""
    angles = rope_angles(positions, width=width, max_pos=max_pos)
    tables = []
    for lanes, fill in ((np.cos(angles), 1), (np.sin(angles), 0)):
        pad = np.full((*lanes.shape[:-1], width // 2 - lanes.shape[-1]), fill, np.float32)
        whole = np.concatenate([pad, lanes], axis=-1)
        if rope_type == "interleaved":
            tables.append(np.repeat(whole, 2, axis=-1))
        else:
            batch, tokens, _ = whole.shape
            tables.append(whole.reshape(batch, tokens, heads, -1).transpose(0, 2, 1, 3))
    return tables


def some_positions(rng: np.random.Generator, axes: int) -> np.ndarray:
    """Bounds of a grid and of tokens that lie on none, in any order; past the extent, too."""
    sides = rng.integers(1, 7, axes)
    starts = [np.sort(rng.uniform(-5, 60, side)).astype(np.float32) for side in sides]
    grid = np.stack([a.reshape(-1) for a in np.meshgrid(*starts, indexing="ij")])
    loose = rng.uniform(-1e3, 1e4, (axes, int(rng.integers(0, 40)))).astype(np.float32)
    tokens = rng.permutation(np.concatenate([grid, loose], axis=1), axis=1)
    sample = np.stack([tokens, tokens + np.float32(rng.uniform(0, 2))], axis=-1)
    return np.stack([sample, sample[:, ::-1]])


@pytest.mark.parametrize("rope_type", ["split", "interleaved"])
@pytest.mark.parametrize(
    ("axes", "width", "heads"), [(3, 4096, 32), (3, 64, 4), (1, 2048, 32), (1, 6, 1), (2, 64, 2)]
)
def test_tables_have_the_bits_of_those_made_token_by_token(
    rope_type: str, axes: int, width: int, heads: int
) -> None:
    max_pos = (20.0, 2048.0, 2048.0)[:axes]
    for seed in range(3):
        positions = some_positions(np.random.default_rng(seed), axes)
        options = {"width": width, "heads": heads, "max_pos": max_pos, "rope_type": rope_type}
        want = by_token(positions, **options)
        for dtype in ("float32", "bfloat16", "float16"):
            got = rope_tables(positions, **options, dtype=dtype)
            for mine, theirs in zip(got, want, strict=True):
                rounded = as_dtype(theirs, dtype)
                assert mine.dtype == rounded.dtype
                assert mine.shape == rounded.shape
                assert mine.tobytes() == np.ascontiguousarray(rounded).tobytes()


def test_errors() -> None:
    with pytest.raises(ShapeError, match="RoPE positions"):
        rope_tables(POSITIONS, width=64, heads=4, max_pos=(20,))
    with pytest.raises(OptionError, match="rope_type='other'"):
        rope_tables(POSITIONS, width=64, heads=4, max_pos=MAX_POS, rope_type="other")
