"""Samplers, schedules, guiders, tiling and text contexts as options: values and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltx2rt.components.embeddings import check_embeddings, read_embeddings, write_embeddings
from ltx2rt.components.text_encoder import TextContext
from ltx2rt.config import GenerationConfig, GuidanceConfig
from ltx2rt.errors import CheckpointError, Ltx2rtError, OptionError
from ltx2rt.latents.tiling import AxisTiling, TilingConfig
from ltx2rt.pipelines.checks import stage_option_problems
from ltx2rt.sampling.guidance import (
    GuiderParams,
    GuiderSchedule,
    cfg_star_delta,
    guided,
    running_difference,
)
from ltx2rt.sampling.noise import TorchGenerator
from ltx2rt.sampling.schedules import SCHEDULERS, Scheduler, scheduled_sigmas, sigma_table
from ltx2rt.weights.safetensors_writer import bfloat16, write_safetensors

WIDTHS = {"video_context": 6, "audio_context": 4}


def estimates(count: int) -> list[np.ndarray]:
    generator = TorchGenerator(3)
    return [generator.randn((1, 8, 4)) for _ in range(count)]


def test_guided_uses_the_chosen_difference() -> None:
    cond, uncond = estimates(2)
    star = guided(GuiderParams(cfg_scale=3.0, cfg_mode="cfg_star"), cond, uncond=uncond)
    np.testing.assert_array_equal(star, cond + cfg_star_delta(3.0, cond, uncond))
    params = GuiderParams(cfg_scale=3.0, cfg_mode="apg", apg_eta=0.2, apg_norm_threshold=1.5)
    apg = guided(params, cond, uncond=uncond)
    bounded = (cond - uncond) * min(1, 1.5 / np.linalg.norm(cond - uncond))
    parallel = (bounded * cond).sum() / (cond * cond).sum() * cond
    want = cond + 2 * (0.2 * parallel + bounded - parallel)
    np.testing.assert_allclose(apg, want, rtol=0, atol=1e-5)  # sums of 32 float32 products
    plain = guided(GuiderParams(cfg_scale=3.0), cond, uncond=uncond)
    np.testing.assert_array_equal(plain, cond + np.float32(2) * (cond - uncond))
    whole = guided(GuiderParams(cfg_scale=3.0, cfg_mode="apg"), cond, uncond=uncond)
    np.testing.assert_allclose(whole, plain, rtol=0, atol=1e-5)  # eta 1, no bound: plain CFG


def test_momentum_adds_up_over_steps() -> None:
    """The second step is guided by its own difference and a part of the first's."""
    c1, u1, c2, u2 = estimates(4)
    params = GuiderParams(
        cfg_scale=3.0, cfg_mode="apg", apg_eta=0.5, apg_norm_threshold=5.0, apg_momentum=-0.5
    )
    d1 = running_difference(params, c1, u1, None)
    d2 = running_difference(params, c2, u2, d1)
    np.testing.assert_array_equal(d1, c1 - u1)
    np.testing.assert_array_equal(d2, np.float32(-0.5) * d1 + (c2 - u2))
    one = guided(params, c1, uncond=u1, difference=d1)
    np.testing.assert_array_equal(one, guided(params, c1, uncond=u1))
    two = guided(params, c2, uncond=u2, difference=d2)
    want = guided(params, c2, uncond=c2 - d2)
    np.testing.assert_allclose(two, want, rtol=0, atol=1e-5)  # c2 - (c2 - d2) is rounded


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"cfg_mode": "x"}, "allowed: cfg, cfg_star, apg"),
        ({"apg_eta": 0.5}, "apg_eta is for cfg_mode='apg'"),
        ({"cfg_mode": "apg", "apg_norm_threshold": -1.0}, "negative; 0 is off"),
        ({"cfg_mode": "apg", "apg_momentum": 1.0}, "is not between -1 and 1"),
        ({"cfg_mode": "apg", "apg_eta": float("inf")}, "apg_eta=inf is not a number"),
    ],
)
def test_guiders_refuse(values: dict, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        GuiderParams(**values)


def test_schedules_of_guiders_refuse_other_levels() -> None:
    for bound in (0.0, 1.5, float("nan")):
        with pytest.raises(OptionError, match="upper bounds of sigma"):
            GuiderSchedule(bins={bound: GuiderParams()})


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(SCHEDULERS), st.integers(1, 60), st.none() | st.integers(1, 9000))
def test_every_scheduler_falls_to_zero(
    scheduler: Scheduler, steps: int, tokens: int | None
) -> None:
    try:
        sigmas = scheduled_sigmas(scheduler, steps, tokens)
    except OptionError as error:
        assert "no schedule for" in str(error)  # noqa: PT017
        return
    assert sigmas.dtype == np.float32
    assert len(sigmas) == steps + 1 or scheduler == "beta"
    assert 0.09 < sigmas[0] <= 1
    assert sigmas[-1] == 0
    np.testing.assert_array_equal(sigma_table(sigmas), sigmas)


SIGMAS = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8)


@settings(max_examples=80, deadline=None)
@given(SIGMAS)
def test_user_sigmas_fall_from_one_to_zero_or_are_refused(values: list[float]) -> None:
    good = values[-1] == 0 and len(values) > 1 and values == sorted(set(values), reverse=True)
    if good:
        config = GenerationConfig(prompt="a", sigmas=tuple(values), stage_2_sigmas=tuple(values))
        assert config.sigmas == tuple(values)
    else:
        with pytest.raises(OptionError, match="sigmas"):
            GenerationConfig(prompt="a", sigmas=tuple(values))


def test_configs_list_everything_that_is_wrong() -> None:
    with pytest.raises(OptionError) as error:
        GenerationConfig(
            prompt="a", sigmas=(1.0,), stage_2_sigmas=(2.0, 0.0), sampler="x", tiling="5",  # type: ignore[arg-type]
        )  # fmt: skip
    for part in ("4 problems", "sampler='x'", "sigmas:", "stage_2_sigmas must", "tiling='5'"):
        assert part in str(error.value)
    with pytest.raises(OptionError, match="scheduler='x'; allowed: ltx2"):
        GuidanceConfig(scheduler="x")  # type: ignore[arg-type]
    one = GenerationConfig(
        prompt="a", sampler="cfg_pp", stage_2_sampler="cfg_pp", stage_2_sigmas=(0.5, 0.0)
    )
    assert len(stage_option_problems(one, "p", guided=False, two_stage=False)) == 4
    (only,) = stage_option_problems(one, "p", guided=True, two_stage=True)
    assert "stage 2 is not guided" in only


def test_tiling_by_numbers() -> None:
    assert TilingConfig.parse("auto") == TilingConfig.auto()
    assert TilingConfig.parse("none") == TilingConfig.none()
    side = AxisTiling(512, 64)
    assert TilingConfig.parse("512x64") == TilingConfig(
        frames=AxisTiling(64, 24), height=side, width=side
    )
    assert TilingConfig.parse("0x32:0x16") == TilingConfig(frames=AxisTiling(32, 16))
    for text in ("", "512", "512x", "512x64:64", "-1x2", "1e3x2", "x", "9" * 50, "512x64:64x24:1"):
        with pytest.raises(OptionError, match="allowed: auto, none"):
            TilingConfig.parse(text)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 70), max_size=5), st.integers(1, 90))
def test_a_generator_goes_on_from_its_state(seed: int, before: list[int], count: int) -> None:
    one, two = TorchGenerator(seed), TorchGenerator(0)
    for size in before:
        one.randn((size,))
    two.state = one.state
    np.testing.assert_array_equal(two.randn((count,)), one.randn((count,)))
    np.testing.assert_array_equal(two.randn((3,), "float64"), one.randn((3,), "float64"))


def test_a_generator_refuses_other_states() -> None:
    state = TorchGenerator(1).state
    for wrong in (state[:-1], state.astype(np.int64), np.full(627, 2**63, np.uint64)):
        with pytest.raises(OptionError, match="not the state"):
            TorchGenerator(1).state = wrong


def contexts(rows: int) -> TextContext:
    generator = TorchGenerator(rows)
    return TextContext(generator.randn((rows, 16, 6)), generator.randn((rows, 16, 4)))


def test_contexts_come_back(tmp_path: Path) -> None:
    path, made = tmp_path / "e.safetensors", contexts(2)
    write_embeddings(path, made, ["a ☂", "b"], "encoder")
    info = check_embeddings(path, WIDTHS, "encoder")
    assert (info.rows, info.prompts, info.text_encoder) == (2, ("a ☂", "b"), "encoder")
    assert check_embeddings(path, WIDTHS, "") == info  # a bundle without a text encoder
    read = read_embeddings(path, 2)
    np.testing.assert_array_equal(read.video, made.video)
    np.testing.assert_array_equal(read_embeddings(path, 1).audio, made.audio[:1])


def test_official_files_hold_two_tensors_only(tmp_path: Path) -> None:
    path, made = tmp_path / "hdr.safetensors", contexts(1)
    write_safetensors(
        path,
        {"video_context": bfloat16(made.video[0]), "audio_context": bfloat16(made.audio)},
    )
    assert check_embeddings(path, WIDTHS, "any").prompts == ()
    read = read_embeddings(path, 1)
    assert read.video.shape == (1, 16, 6)
    np.testing.assert_allclose(read.video, made.video, rtol=2**-8)
    with pytest.raises(OptionError, match="holds 1 prompt, but 2 are needed"):
        read_embeddings(path, 2)


def test_caches_of_musubi_tuner(tmp_path: Path) -> None:
    path, made = tmp_path / "0_ltx2_te.safetensors", contexts(1)
    video, audio = bfloat16(made.video[0]), bfloat16(made.audio[0])
    mask = np.ones(16, np.int64)
    tensors = {
        "video_prompt_embeds_bfloat16": video,
        "audio_prompt_embeds_bfloat16": audio,
        "text_bfloat16": bfloat16(np.concatenate([made.video[0], made.audio[0]], -1)),
        "prompt_attention_mask": mask,
        "text_mask": mask,
    }
    metadata = {"architecture": "ltx2_v1", "caption1": "a bell", "format_version": "1.0.1"}
    write_safetensors(path, tensors, metadata)
    assert check_embeddings(path, WIDTHS, "any").prompts == ("a bell",)
    read = read_embeddings(path, 1)
    np.testing.assert_allclose(read.video, made.video, rtol=2**-8)
    np.testing.assert_allclose(read.audio, made.audio, rtol=2**-8)
    write_safetensors(path, {"video_prompt_embeds_bfloat16": video}, metadata)
    with pytest.raises(CheckpointError, match=r"without audio_prompt_embeds_\*: cache again"):
        check_embeddings(path, WIDTHS, "any")


@pytest.mark.parametrize(
    ("tensors", "metadata", "said"),
    [
        ({}, {}, "2 problems"),
        ({"video_context": (1, 16, 6)}, {}, "it holds no audio_context"),
        ({"video_context": (1, 16, 5), "audio_context": (1, 16, 4)}, {}, "is 5 wide; this model"),
        ({"video_context": (2, 16, 6), "audio_context": (1, 16, 4)}, {}, "different numbers"),
        ({"video_context": (6,), "audio_context": (0, 16, 4)}, {}, "expected [prompts, tokens"),
        (
            {"video_context": (1, 16, 6), "audio_context": (1, 16, 4)},
            {"text_encoder": "other"},
            "made by text encoder other, this bundle has encoder",
        ),
        (
            {"video_context": (1, 16, 6), "audio_context": (1, 16, 4)},
            {"prompts": '["a", "b"]'},
            "list of prompts is damaged",
        ),
    ],
)
def test_contexts_of_other_models_are_refused(
    tmp_path: Path, tensors: dict, metadata: dict, said: str
) -> None:
    path = tmp_path / "e.safetensors"
    write_safetensors(path, {n: np.zeros(s, np.float32) for n, s in tensors.items()}, metadata)
    with pytest.raises(CheckpointError) as error:
        check_embeddings(path, WIDTHS, "encoder")
    assert said in str(error.value)


def test_damaged_context_files(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    write_embeddings(path, contexts(1), ["a"], "encoder")
    whole = path.read_bytes()
    for data in (b"", whole[:50], whole[:-10], b"\xff" * 64):
        path.write_bytes(data)
        with pytest.raises(Ltx2rtError, match=r"e\.safetensors"):
            check_embeddings(path, WIDTHS, "encoder")
