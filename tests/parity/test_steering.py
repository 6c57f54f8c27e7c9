"""Samplers, sigmas and guidance as options: equal to the pipelines that have them built in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ltx2rt
from ltx2rt.bundle.bundle import Bundle, open_bundle
from ltx2rt.errors import OptionError
from ltx2rt.lora.files import Lora
from ltx2rt.pipelines.base import Pipeline
from ltx2rt.sampling.guidance import HQ_AUDIO_GUIDER, HQ_VIDEO_GUIDER, GuiderParams, GuiderSchedule
from ltx2rt.sampling.schedules import DISTILLED, STAGE2_DISTILLED, ltx2_sigmas
from tests.parity.demo_loras import write_demo_lora

SMALL = {"prompt": "a lake", "seed": 5, "height": 64, "width": 64, "num_frames": 9}
RUNTIME = ltx2rt.RuntimeConfig(threads=1, residency="resident")
Latents = Mapping[str, np.ndarray]
Make = Callable[..., Latents]


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path) -> Bundle:
    return open_bundle(demo_bundle)


@pytest.fixture(scope="module")
def lora(demo_model: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_lora(tmp_path_factory.mktemp("lora") / "d.safetensors", demo_model, 0)


def maker(pipe: Pipeline) -> Make:
    return lambda guidance=None, **options: pipe(guidance=guidance, **{**SMALL, **options}).latents


@pytest.fixture(scope="module")
def distilled(bundle: Bundle) -> Iterator[Make]:
    with ltx2rt.DistilledPipeline(bundle, RUNTIME) as pipe:
        yield maker(pipe)


@pytest.fixture(scope="module")
def one_stage(bundle: Bundle) -> Iterator[Make]:
    with ltx2rt.OneStagePipeline(bundle, RUNTIME) as pipe:
        yield maker(pipe)


def assert_equal(one: Latents, two: Latents) -> None:
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def distance(one: Latents, two: Latents, name: str = "stage_1.video") -> float:
    return float(np.linalg.norm(one[name] - two[name]) / np.linalg.norm(one[name]))


def test_naming_what_the_pipeline_does_changes_nothing(distilled: Make) -> None:
    named = distilled(
        sampler="euler", stage_2_sampler="euler", sigmas=DISTILLED, stage_2_sigmas=STAGE2_DISTILLED
    )
    assert_equal(named, distilled())


def test_ancestral_steps_are_those_of_newer_models(bundle: Bundle, distilled: Make) -> None:
    class Newer(Bundle):
        @property
        def model(self) -> Any:
            return dataclasses.replace(super().model, distilled_sampler="euler_ancestral")

    newer = Newer(bundle.folder, bundle.manifest, bundle._sources)
    with ltx2rt.DistilledPipeline(newer, RUNTIME) as pipe:
        assert_equal(maker(pipe)(), distilled(sampler="euler_ancestral"))


def test_two_stage_steered_to_hq(bundle: Bundle, lora: Path) -> None:
    guidance = ltx2rt.GuidanceConfig(
        num_inference_steps=3, video=HQ_VIDEO_GUIDER, audio=HQ_AUDIO_GUIDER
    )
    distilled = Lora(path=str(lora), strength=0.5)
    with ltx2rt.TwoStagesHQPipeline(bundle, RUNTIME) as pipe:
        hq = dataclasses.replace(guidance, distilled_lora=distilled, distilled_strengths=(0.0, 0.5))
        want = maker(pipe)(hq)
    with ltx2rt.TwoStagesPipeline(bundle, RUNTIME) as pipe:
        plain = dataclasses.replace(guidance, distilled_lora=distilled, num_inference_steps=None)
        sigmas = tuple(float(s) for s in ltx2_sigmas(3, token_count=2))  # 2 frames of one cell
        got = maker(pipe)(plain, sampler="res_2s", stage_2_sampler="res_2s", sigmas=sigmas)
    assert_equal(got, want)


def test_stage_2_starts_at_its_first_level(distilled: Make) -> None:
    """Almost no noise leaves the upsampled latent almost as it was."""
    made = distilled(stage_2_sigmas=(1e-5, 0.0))
    difference = made["stage_2.video"] - made["upsampled.video"]
    assert 0 < np.abs(difference).max() < 1e-3


def test_gradient_estimation_needs_two_steps_to_differ(one_stage: Make) -> None:
    euler, gradient = (
        [one_stage(sampler=name, sigmas=s) for s in ((1.0, 0.5, 0.0), (1.0, 0.6, 0.3, 0.0))]
        for name in ("euler", "gradient_estimation")
    )  # fmt: skip
    assert distance(euler[0], gradient[0]) < 1e-6  # no step has one before it that counts
    assert distance(euler[1], gradient[1]) > 1e-3


def test_cfg_pp_steps_along_the_negative_prediction(one_stage: Make) -> None:
    euler, cfg_pp = (
        [one_stage(sampler=name, sigmas=sigmas) for sigmas in ((1.0, 0.0), (1.0, 0.5, 0.0))]
        for name in ("euler", "cfg_pp")
    )
    assert distance(euler[0], cfg_pp[0]) < 1e-6  # the last step returns the prediction
    assert distance(euler[1], cfg_pp[1]) > 1e-2
    other = ltx2rt.GuidanceConfig(negative_prompt="another")
    assert distance(cfg_pp[1], one_stage(other, sampler="cfg_pp", sigmas=(1.0, 0.5, 0.0))) > 1e-4


def test_schedulers_and_guiders_change_stage_1(one_stage: Make) -> None:
    def make(**values: Any) -> Latents:
        return one_stage(ltx2rt.GuidanceConfig(num_inference_steps=3, **values))

    plain = make()
    assert all(distance(plain, make(scheduler=s)) > 1e-3 for s in ("linear_quadratic", "beta"))
    base = {"cfg_scale": 3.0, "stg_scale": 0.0, "modality_scale": 1.0}
    cfg, same, star, apg, moving = (
        make(video=guider, audio=guider)
        for guider in (
            GuiderParams(**base),
            GuiderParams(**base, cfg_mode="apg"),
            GuiderParams(**base, cfg_mode="cfg_star"),
            GuiderParams(**base, cfg_mode="apg", apg_eta=0.0),
            GuiderParams(**base, cfg_mode="apg", apg_momentum=-0.5),
        )
    )
    assert distance(cfg, same) < 1e-5  # eta 1 without bound is plain CFG
    assert all(distance(cfg, other) > 1e-3 for other in (star, apg, moving))


def test_guidance_by_noise_level(one_stage: Make) -> None:
    strong = GuiderParams(cfg_scale=4.0)
    weak = GuiderParams()
    sigmas = (1.0, 0.6, 0.3, 0.0)

    def make(bins: Mapping[float, GuiderParams] | None) -> Latents:
        schedule = None if bins is None else GuiderSchedule(bins=bins)
        guidance = ltx2rt.GuidanceConfig(
            video=strong, audio=strong, video_schedule=schedule, audio_schedule=schedule
        )
        return one_stage(guidance, sigmas=sigmas)

    assert_equal(make({1.0: strong, 0.5: strong}), make(None))
    split = make({1.0: strong, 0.5: weak})
    assert distance(split, make(None)) > 1e-3
    assert distance(split, make({1.0: weak})) > 1e-3


def test_options_that_stages_cannot_do(distilled: Make, one_stage: Make) -> None:
    with pytest.raises(OptionError, match="cfg_pp is for guided pipelines"):
        distilled(sampler="cfg_pp")
    with pytest.raises(OptionError, match="stage_2_sigmas is for pipelines of two stages"):
        one_stage(stage_2_sigmas=(0.5, 0.0))
    with pytest.raises(OptionError, match="stage_2_loras is for pipelines of two stages"):
        one_stage(stage_2_loras=())
    off = GuiderParams()
    with pytest.raises(OptionError, match="needs a negative prompt"):
        one_stage(ltx2rt.GuidanceConfig(video=off, audio=off), sampler="cfg_pp")
    with pytest.raises(OptionError, match="exclude each other"):
        one_stage(ltx2rt.GuidanceConfig(num_inference_steps=3), sigmas=(1.0, 0.0))
    with pytest.raises(ltx2rt.ShapeError, match="not a multiple of 32"):
        distilled(tiling="100x64")


def test_a_prompt_or_contexts_are_needed(distilled: Make) -> None:
    with pytest.raises(OptionError, match="the prompt is empty"):
        distilled(prompt="")
