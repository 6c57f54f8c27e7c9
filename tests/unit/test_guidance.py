from __future__ import annotations

import numpy as np
import pytest

from ltx2rt.errors import OptionError
from ltx2rt.sampling.guidance import (
    GuiderParams,
    GuiderSchedule,
    cfg_delta,
    cfg_star_delta,
    default_guiders,
    guided,
)
from tests.tolerances import TOLERANCES

NET = TOLERANCES["net"]
RANDOM = np.random.default_rng(0)
COND, UNCOND, PERTURBED, ISOLATED = (
    RANDOM.standard_normal((1, 6, 16)).astype(np.float32) for _ in range(4)
)


def test_neutral_guidance_is_the_prediction():
    got = guided(GuiderParams(), COND, uncond=UNCOND, perturbed=PERTURBED, isolated=ISOLATED)
    assert np.array_equal(got, COND)


def test_scales_add_up():
    params = GuiderParams(cfg_scale=3.0, stg_scale=0.5, modality_scale=2.0)
    got = guided(params, COND, uncond=UNCOND, perturbed=PERTURBED, isolated=ISOLATED)
    want = COND + 2 * (COND - UNCOND) + 0.5 * (COND - PERTURBED) + (COND - ISOLATED)
    np.testing.assert_allclose(got, want, rtol=NET.rtol, atol=NET.atol)


def test_full_rescale_restores_the_deviation():
    got = guided(GuiderParams(cfg_scale=7.0, rescale_scale=1.0), COND, uncond=UNCOND)
    assert got.std(ddof=1) == pytest.approx(COND.std(ddof=1), rel=NET.rtol)


def test_missing_pass_is_refused():
    with pytest.raises(OptionError, match="perturbed"):
        guided(GuiderParams(stg_scale=1.0), COND)


def apg(scale: float, **options: float) -> np.ndarray:
    """What adaptive projected guidance adds to `COND`."""
    params = GuiderParams(cfg_scale=scale, cfg_mode="apg", **options)
    return guided(params, COND, uncond=UNCOND) - COND


def test_deltas_agree_where_they_must():
    """Parallel predictions leave CFG* nothing; APG with eta 1 is CFG."""
    np.testing.assert_allclose(
        cfg_star_delta(3.0, COND, 2 * COND), np.zeros_like(COND), atol=NET.atol
    )
    np.testing.assert_allclose(apg(3.0), cfg_delta(3.0, COND, UNCOND), atol=NET.atol)


def test_apg_orthogonal_part():
    delta = apg(2.0, apg_eta=0.0)
    assert abs(float((delta * COND).sum())) < 1e-3  # a sum of 96 float32 products near 1


def test_apg_bounds_the_norm():
    delta = apg(2.0, apg_norm_threshold=0.5)
    assert np.linalg.norm(delta) == pytest.approx(0.5, rel=NET.rtol)


def test_schedule_lookup():
    low, high = GuiderParams(cfg_scale=1.0), GuiderParams(cfg_scale=3.0)
    schedule = GuiderSchedule(bins={0.5: low, 1.0: high})
    assert schedule.at(0.5) is low
    assert schedule.at(0.51) is high
    assert schedule.at(2.0) is high
    with pytest.raises(OptionError):
        GuiderSchedule(bins={})


def test_defaults():
    video, audio = default_guiders(28)
    assert video.stg_blocks == audio.stg_blocks == (28,)
    assert (video.cfg_scale, audio.cfg_scale) == (3.0, 7.0)
