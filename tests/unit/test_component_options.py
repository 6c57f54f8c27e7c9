"""Options of components: what no model has is refused where a bundle is opened."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from ltx2rt.bundle.component_options import option_problems

BLOCK: dict[str, Any] = {
    "heads": 4, "modalities": "av", "theta": 10000.0, "rope_type": "split", "eps": 1e-6,
    "frequencies_precision": "float64", "timestep_scale": 1000.0, "cross_head_dim": 8,
    "cross_max_pos": [20.0], "another": "of a later version",
    "video": {"width": 64, "head_dim": 16, "max_pos": [20.0, 2048.0, 2048.0], "ff_bias": True},
    "audio": {"width": 32, "head_dim": 8, "max_pos": [20.0], "caption_channels": 0},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda o: o["audio"].pop("width"), "transformer_block.options.audio lacks 'width'"),
        (lambda o: o.update(theta=None), "theta is None"),
        (lambda o: o.update(eps="/etc/passwd"), "eps is '/etc/passwd'"),
        (lambda o: o.update(heads=-1), "heads is -1"),
        (lambda o: o.update(heads=0), "heads is 0"),
        (lambda o: o.update(heads=10**400), "heads is 1000"),
        (lambda o: o.update(theta=float("nan")), "theta is nan"),
        (lambda o: o["video"].update(max_pos=[20.0, None]), "max_pos[1] is None"),
        (lambda o: o["video"].update(max_pos=5), "max_pos is 5"),
        (lambda o: o.update(modalities="both"), "modalities is 'both'"),
        (lambda o: o.update(another=float("inf")), "another is inf"),
    ],
)
def test_options_of_no_model(change: Callable[[Any], Any], said: str) -> None:
    options = copy.deepcopy(BLOCK)
    assert option_problems("transformer_block", options) == []
    change(options)
    (problem,) = option_problems("transformer_block", options)
    assert said in problem


def test_options_of_the_other_components() -> None:
    factors = {"time": 8, "height": 32, "width": 32}
    vae = {"scale_factors": factors, "latent_channels": 128, "min_latent_cells": 1}
    assert option_problems("video_decoder", vae) == []
    assert option_problems("video_decoder", {**vae, "scale_factors": 1.5})
    assert (
        option_problems("spatial_upsampler", {"spatial_scale": [2, 1], "temporal_scale": 1}) == []
    )
    assert option_problems("spatial_upsampler", {"spatial_scale": 2, "temporal_scale": 1})
    assert option_problems("text_head", {"layers": [["text_block", "x"]]}) == []
    assert option_problems("text_head", {"layers": float("inf")})
    assert option_problems("vocoder", {}) == []
    assert option_problems("vocoder", {"samples_per_mel_frame": 0})
    assert option_problems("audio_decoder", {"mel_frames_per_latent": "4"})
    features = {"scale_factors": factors, "steps": 2, "prediction": "v", "tile_bytes": 2**33}
    assert option_problems("diffusion_features", features) == []
    for wrong in (
        {"steps": 0},
        {"prediction": "w"},
        {"ghost_frames": -1},
        {"feature_stride": [1, 2]},
    ):
        assert option_problems("diffusion_features", {**features, **wrong}), wrong
