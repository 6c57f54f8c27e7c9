"""The host side of the diffusion decoder: padding, tiles, noise, steps and blending."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from ltx2rt.components.decoder_tiles import decode_bytes, decoder_tiles, feature_cells
from ltx2rt.components.diffusion_decoder import DiffusionVideoDecoder, patchify, unpatchify
from ltx2rt.errors import BundleError, ShapeError, UnsupportedError
from ltx2rt.latents.tiling import AxisTiling, TilingConfig
from ltx2rt.sampling.noise import TorchGenerator
from tests.tolerances import TOLERANCES

SHIPPED: dict[str, Any] = {
    "scale_factors": {"time": 8, "height": 32, "width": 32},
    "latent_channels": 3,
    "patch_size": 4,
    "pixel_channels": 256,
    "border_patches": 5,
    "feature_channels": 512,
    "steps": 1,
    "prediction": "x0",
    "ghost_frames": 2,
    "min_latent_cells": [3, 7, 7],
    "feature_stride": [2, 2, 2],
    "min_feature_cells": [6, 6, 6],
    "halo_feature_cells": [20, 20, 20],
}
#: the same with a short reach, so that tiles are small
NEAR = {**SHIPPED, "min_feature_cells": [2, 2, 2], "halo_feature_cells": [1, 1, 1]}


class Features:
    """Every latent cell repeated over its feature cells; in time as the real stages grow it."""

    def __call__(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        x = tensors["video_latent"].transpose(0, 2, 3, 4, 1)
        x = x.repeat(4, axis=1)[:, 3:]
        return {"features": x.repeat(4, axis=2).repeat(4, axis=3)}


class Context:
    """Every feature cell repeated; the first frame is not dropped."""

    def __call__(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        x = tensors["features"]
        return {"context": x.repeat(2, axis=1).repeat(2, axis=2).repeat(2, axis=3)}


class Pixels:
    """The context as colour, and what a step was called with."""

    def __init__(self) -> None:
        self.timesteps: list[float] = []
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.timesteps += [float(t) for t in tensors["timestep"]]
        self.shapes.append(tensors["noisy_patches"].shape)
        assert tensors["noisy_patches"].shape[:4] == tensors["context"].shape[:4]
        return {"predicted_patches": tensors["context"].repeat(16, axis=-1)}


def decoder(options: Mapping[str, Any]) -> tuple[DiffusionVideoDecoder, Pixels]:
    pixels = Pixels()
    engines: list[Any] = [Features(), Context(), pixels]
    return DiffusionVideoDecoder(*engines, options), pixels


def latent(frames: int, height: int, width: int) -> np.ndarray:
    sizes = (1, 3, frames, height, width)
    return np.random.default_rng(0).uniform(-1, 1, sizes).astype(np.float32)


def expected(values: np.ndarray) -> np.ndarray:
    """What the stand-in engines decode to: each latent cell is one colour."""
    x = values[0].transpose(1, 2, 3, 0).repeat(8, axis=0)[7:]
    return (x.repeat(32, axis=1).repeat(32, axis=2) + 1) / 2


def decode(
    what: DiffusionVideoDecoder, values: np.ndarray, tiling: TilingConfig | None = None
) -> np.ndarray:
    return np.concatenate(list(what.decode(values, TorchGenerator(1).randn, tiling)))


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 9), (3, 7, 7), (4, 8, 1)])
def test_small_latents_are_padded_and_cut_back(sizes: tuple[int, int, int]) -> None:
    values = latent(*sizes)
    got = decode(decoder(SHIPPED)[0], values)
    np.testing.assert_allclose(got, expected(values), atol=TOLERANCES["scalar"].atol)


def test_tiles_of_any_size_blend_to_the_same_clip() -> None:
    values = latent(4, 7, 8)
    what, _ = decoder(NEAR)
    want = expected(values)
    for frames, height, width in ((8, 32, 32), (12, 96, 0), (0, 40, 64), (6, 24, 88)):
        tiling = TilingConfig(
            frames=AxisTiling(frames, 2 if frames else 0),
            height=AxisTiling(height, 8),
            width=AxisTiling(width, 16 if width else 0),
        )
        # the stand-ins predict pixels, whatever the noise: drawing it is what would take long
        got = np.concatenate(list(what.decode(values, np.zeros, tiling)))
        np.testing.assert_allclose(got, want, atol=1e-5)  # sums of blending weights


def test_tiles_are_those_of_the_reference() -> None:
    what, pixels = decoder(SHIPPED)
    side = {"height": AxisTiling(512, 160), "width": AxisTiling(768, 160)}
    tiling = TilingConfig(frames=AxisTiling(80, 40), **side)
    axes = decoder_tiles(what.options, tiling, feature_cells(what.options, (16, 32, 48)))
    assert [[(t.source.start, t.source.stop) for t in a] for a in axes] == [
        [(0, 40), (20, 60), (40, 61)],
        [(0, 64), (44, 108), (88, 128)],
        [(0, 96), (76, 172), (152, 192)],
    ]
    assert [[(t.target.start, t.target.stop) for t in a] for a in axes] == [
        [(0, 79), (39, 119), (79, 121)],
        [(0, 512), (352, 864), (704, 1024)],
        [(0, 768), (608, 1376), (1216, 1536)],
    ]
    assert not pixels.shapes


def test_a_short_last_tile_grows_to_the_left() -> None:
    what, _ = decoder({**SHIPPED, "halo_feature_cells": [2, 2, 2]})
    tiling = TilingConfig(frames=AxisTiling(20, 4))
    frames = decoder_tiles(what.options, tiling, (27, 28, 28))[0]
    assert [(t.source.start, t.source.stop) for t in frames] == [
        (0, 10),
        (8, 18),
        (16, 26),
        (21, 27),
    ]
    total = np.zeros(53, np.float32)
    for tile in frames:
        total[tile.target] += tile.weights
    np.testing.assert_allclose(total, 1, atol=1e-5)


def test_decoding_twice_draws_the_same_noise() -> None:
    generator = TorchGenerator(5)
    generator.randn((32,))
    drawn = [generator.copy().randn((64,)) for _ in range(2)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(generator.randn((64,)), drawn[0])


def test_noise_is_drawn_by_tile_or_as_one_canvas() -> None:
    shapes: list[list[int]] = []

    def draw(shape: Sequence[int]) -> np.ndarray:
        shapes.append(list(shape))
        return np.zeros(shape, np.float32)

    tiling = TilingConfig(width=AxisTiling(128, 16))
    list(decoder(NEAR)[0].decode(latent(3, 7, 7), draw, tiling))
    assert shapes == [[1, 3, 17, 224, 128], [1, 3, 17, 224, 112]]
    shapes.clear()
    list(decoder({**NEAR, "steps": 2})[0].decode(latent(3, 7, 7), draw, tiling))
    assert shapes == [[1, 3, 17, 224, 224]]


def test_steps_follow_the_velocity() -> None:
    values = latent(3, 7, 7)
    two, pixels = decoder({**SHIPPED, "steps": 2})
    np.testing.assert_allclose(decode(two, values), expected(values), atol=1e-6)
    assert pixels.timesteps == [1.0, 0.5]
    velocity, pixels = decoder({**SHIPPED, "steps": 4, "prediction": "v"})
    noise = TorchGenerator(1).randn((1, 3, 17, 224, 224))
    wanted = np.clip((np.moveaxis(noise[0], 0, -1) + 1) / 2 - (expected(values) - 0.5), 0, 1)
    np.testing.assert_allclose(decode(velocity, values), wanted, atol=1e-6)
    assert pixels.timesteps == [1.0, 0.75, 0.5, 0.25]


def test_patches_are_packed_column_first() -> None:
    video = np.arange(2 * 3 * 2 * 8 * 4, dtype=np.float32).reshape(2, 3, 2, 8, 4)
    patches = patchify(video, 4)
    assert patches[1, 1, 1, 0, 2 * 16 + 3 * 4 + 1] == video[1, 2, 1, 5, 3]
    np.testing.assert_array_equal(unpatchify(patches, 4), video)


def test_what_cannot_be_decoded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    what, _ = decoder(SHIPPED)
    with pytest.raises(ShapeError, match="overlap of 8 is below the 40"):
        decode(what, latent(16, 8, 8), TilingConfig(frames=AxisTiling(80, 8)))
    with pytest.raises(ShapeError, match="one clip"):
        decode(what, np.zeros((2, 3, 3, 7, 7), np.float32))
    monkeypatch.setattr("ltx2rt.machine.os.sysconf", lambda name: 1024)
    with pytest.raises(UnsupportedError, match="tiling='auto'"):
        decode(what, latent(3, 7, 7))


def test_a_bundle_of_another_version_is_told_to_be_built_again() -> None:
    options = {k: v for k, v in SHIPPED.items() if k != "border_patches"}
    with pytest.raises(BundleError, match="does not say its border_patches"):
        decoder(options)


def test_a_tile_that_memory_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    what, _ = decoder(SHIPPED)
    cells = feature_cells(what.options, (3, 7, 7))
    needed = decode_bytes(what.options, cells, cells, 4)
    sizes = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": needed}
    monkeypatch.setattr("ltx2rt.machine.os.sysconf", lambda name: sizes[name])
    assert decode(what, latent(3, 7, 7)).shape == (17, 224, 224, 3)
    sizes["SC_PHYS_PAGES"] -= 1
    with pytest.raises(UnsupportedError, match="18 frames of 224x224"):
        decode(what, latent(3, 7, 7))


def test_a_tile_below_the_minimum_is_refused() -> None:
    what, _ = decoder({**SHIPPED, "halo_feature_cells": [1, 1, 1]})
    for axis, size in (("width", 32), ("height", 32), ("frames", 4)):
        tiling = TilingConfig(**{axis: AxisTiling(size, 8 if axis != "frames" else 2)})
        with pytest.raises(ShapeError, match=f"{axis}: a tile of .* is below the"):
            decode(what, latent(4, 8, 8), tiling)
