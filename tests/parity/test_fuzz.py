"""Differential fuzz: the runtime on ONNX Runtime, our PyTorch and diffusers on random networks.

Every check runs twice: a few configurations always, many with `pytest -m fuzz` (minutes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ltx2rt.components.decoder_tiles import decoder_tiles, feature_cells
from ltx2rt.components.diffusion_decoder import DiffusionVideoDecoder
from ltx2rt.components.video_decoder import VideoDecoder
from ltx2rt.components.video_encoder import VideoEncoder
from ltx2rt.errors import ShapeError
from ltx2rt.latents.shapes import VideoScaleFactors
from ltx2rt.latents.tiling import AxisTiling, TilingConfig
from ltx2rt.sampling.noise import TorchGenerator
from ltx2rt.sampling.samplers import euler_step, to_denoised
from ltx2rt.sampling.schedules import ltx2_sigmas
from ltx2rt_export.modules.audio_vae import audio_decoder, audio_mel_encoder
from ltx2rt_export.modules.diffusion_decoder import (
    diffusion_context,
    diffusion_features,
    diffusion_pixels,
)
from ltx2rt_export.modules.diffusion_decoder_config import DiffusionDecoderConfig
from ltx2rt_export.modules.video_vae import video_decoder, video_encoder
from ltx2rt_export.modules.vocoder import Vocoder, vocoder
from ltx2rt_export.modules.vocoder_config import GeneratorConfig
from tests.parity import random_models as models
from tests.parity.audio_models import loaded
from tests.parity.random_models import rel_rms
from tests.tolerances import ORT_REL_RMS, TOLERANCES

Check = Callable[..., None]
SEEDS = st.integers(0, 2**16)
#: configurations of a check that always runs; exports take seconds
FEW = 1
MANY = 60


def fuzzed(few: int = FEW, **strategies: st.SearchStrategy[Any]) -> Callable[[Check], Check]:
    """Run a check on `few` configurations, always the same, or with `-m fuzz` on many new ones."""

    def decorate(check: Check) -> Check:
        calm = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

        def run(count: int, *, fixed: bool) -> None:
            limits = settings(
                max_examples=count,
                deadline=None,
                derandomize=fixed,
                database=None,
                phases=(Phase.generate,) if fixed else (Phase.generate, Phase.shrink),
                suppress_health_check=calm,
            )
            limits(given(**strategies)(check))()

        @pytest.mark.parametrize(
            "many", [False, pytest.param(True, marks=[pytest.mark.fuzz, pytest.mark.slow])]
        )
        def test(many: bool) -> None:
            run(MANY if many else few, fixed=not many)

        test.__doc__ = check.__doc__
        return test

    return decorate


def near(got: np.ndarray, want: torch.Tensor, kind: str) -> None:
    bound = TOLERANCES[kind]
    np.testing.assert_allclose(got, want.numpy(), rtol=bound.rtol, atol=bound.atol)


@fuzzed(case=models.transformers())
def test_transformer(case: models.TransformerCase) -> None:
    reference, runtime = models.transformer_pair(case)
    streams = case.inputs()
    want = reference(streams["video"], streams["audio"])
    for got, wanted in zip(runtime(streams["video"], streams["audio"]), want, strict=True):
        assert got is not None
        assert wanted is not None
        assert rel_rms(got, wanted) <= ORT_REL_RMS
    theirs = diffusers_transformer(case)
    for got, wanted in zip(want, theirs, strict=True):
        near(got, wanted, "dit")


def diffusers_transformer(case: models.TransformerCase) -> tuple[torch.Tensor, torch.Tensor]:
    """What diffusers makes of the same weights and inputs."""
    from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel

    from ltx2rt_export.layouts.diffusers_names import official_names
    from tests.parity import tiny_transformer as tiny

    newer = case.generation != "19b"
    video, audio = case.config.streams
    model = LTX2VideoTransformer3DModel(
        in_channels=16,
        out_channels=16,
        num_attention_heads=case.config.heads,
        attention_head_dim=video.head_dim,
        cross_attention_dim=video.width,
        gated_attn=newer,
        cross_attn_mod=newer,
        audio_in_channels=16,
        audio_out_channels=16,
        audio_num_attention_heads=case.config.heads,
        audio_attention_head_dim=audio.head_dim,
        audio_cross_attention_dim=audio.width,
        audio_gated_attn=newer,
        audio_cross_attn_mod=newer,
        num_layers=case.config.num_layers,
        caption_channels=24,
        rope_type=case.config.rope_type,
        use_prompt_embeddings=not newer,
        ff_bias=case.generation != "2.5",
        use_keyframes_abs_pos_embedding=case.generation == "2.5",
    ).eval()
    weights = tiny.weights(case.config)
    names = official_names("transformer", model.state_dict())
    prefix = "model.diffusion_model."
    model.load_state_dict(
        {n: torch.from_numpy(weights[o.removeprefix(prefix)]) for n, o in names.items()}
    )
    streams = case.inputs()
    v, a = streams["video"], streams["audio"]
    sigma = torch.from_numpy(v.sigma) * 1000
    extra = {}
    if case.config.keyframes_embedding:
        extra["video_keyframes_mask"] = torch.from_numpy(v.keyframes_mask)
    with torch.no_grad():
        found: tuple[torch.Tensor, torch.Tensor] = model(
            hidden_states=torch.from_numpy(v.latent),
            audio_hidden_states=torch.from_numpy(a.latent),
            encoder_hidden_states=torch.from_numpy(v.context),
            audio_encoder_hidden_states=torch.from_numpy(a.context),
            timestep=torch.from_numpy(v.timesteps[..., 0]) * 1000,
            audio_timestep=torch.from_numpy(a.timesteps[..., 0]) * 1000,
            sigma=sigma,
            audio_sigma=sigma,
            video_coords=torch.from_numpy(v.positions),
            audio_coords=torch.from_numpy(a.positions),
            return_dict=False,
            **extra,
        )
    return found


def axis_tilings(factor: int, least_overlap: int = 0) -> st.SearchStrategy[AxisTiling]:
    """Whole, by size or by count; in multiples of the factor."""

    def by_size(cells: tuple[int, int]) -> AxisTiling:
        overlap = least_overlap + cells[1] * factor
        return AxisTiling(max(2 * factor, overlap + cells[0] * factor), overlap)

    size = st.tuples(st.integers(1, 3), st.integers(0, 2)).map(by_size)
    count = st.tuples(st.integers(1, 3), st.integers(0, 2)).map(
        lambda c: AxisTiling(count=c[0], overlap=c[1])
    )
    return st.one_of(st.just(AxisTiling()), size, count)


def tilings(factors: VideoScaleFactors, overlaps: Sequence[int]) -> st.SearchStrategy[TilingConfig]:
    return st.builds(
        lambda f, h, w: TilingConfig(frames=f, height=h, width=w),
        *(axis_tilings(f, o) for f, o in zip(factors, overlaps, strict=True)),
    )


def decoded(decoder: VideoDecoder, latent: np.ndarray, tiling: TilingConfig | None) -> np.ndarray:
    return np.concatenate(list(decoder.decode_raw(latent, tiling)), axis=2)


@fuzzed(
    blocks=models.vae_blocks(),
    padding=st.sampled_from(["zeros", "reflect"]),
    causal=st.booleans(),
    seed=SEEDS,
    data=st.data(),
)
def test_video_vae(
    blocks: tuple[Any, ...], padding: str, causal: bool, seed: int, data: st.DataObject
) -> None:
    config = models.vae_metadata(blocks, padding, causal=causal)
    encoder_file, decoder_file = models.vae_tensors(blocks, seed)
    rng = np.random.default_rng(seed)

    part = video_decoder(config, decoder_file)
    factors = VideoScaleFactors(**part.options["scale_factors"])
    decoders = [VideoDecoder.from_options(e, part.options) for e in models.both(part)]
    cells = data.draw(st.tuples(st.integers(1, 5), st.integers(2, 5), st.integers(2, 5)))
    latent = rng.standard_normal((1, models.LATENT_CHANNELS, *cells)).astype(np.float32)
    for tiling in (None, data.draw(tilings(factors, (0, 0, 0)))):
        try:
            want, got = (decoded(d, latent, tiling) for d in decoders)
        except ShapeError:
            assert tiling is not None
            continue
        assert rel_rms(got, want) <= ORT_REL_RMS

    part = video_encoder(config, encoder_file)
    encoders = [VideoEncoder.from_options(e, part.options) for e in models.both(part)]
    height, width = cells[1] * factors.height, cells[2] * factors.width
    sizes = (1, 3, (cells[0] - 1) * factors.time + 1, height, width)
    video = rng.uniform(-1, 1, sizes).astype(np.float32)
    for tiling in (None, data.draw(tilings(factors, (16, 64, 64)))):
        try:
            want, got = (e.encode(video, tiling) for e in encoders)
        except ShapeError:
            assert tiling is not None
            continue
        assert rel_rms(got, want) <= ORT_REL_RMS


@fuzzed(config=models.diffusion_decoders(), seed=SEEDS, data=st.data())
def test_diffusion_decoder(config: DiffusionDecoderConfig, seed: int, data: st.DataObject) -> None:
    tensors = models.decoder_tensors(config, seed)
    metadata = models.decoder_metadata(config)
    read = DiffusionDecoderConfig.from_checkpoint(metadata, tensors)
    assert read == config
    makers = (diffusion_features, diffusion_context, diffusion_pixels)
    parts = [make(metadata, tensors) for make in makers]
    pairs = [models.both(part) for part in parts]
    reference, runtime = (
        DiffusionVideoDecoder(*(pair[i] for pair in pairs), parts[0].options) for i in range(2)
    )
    facts = reference.options
    cells = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)))
    latent = np.random.default_rng(seed).standard_normal((1, models.LATENT_CHANNELS, *cells))
    latent = latent.astype(np.float32)
    halo = [h * f for h, f in zip(facts.halo_feature_cells, facts.feature_factors, strict=True)]
    for tiling in (None, data.draw(tilings(facts.feature_factors, halo))):
        if tiling is not None:
            try:
                decoder_tiles(facts, tiling, feature_cells(facts, cells))
            except ShapeError:
                continue
        want, got = (
            np.concatenate(list(d.decode(latent, TorchGenerator(seed).randn, tiling)))
            for d in (reference, runtime)
        )
        factors = facts.scale_factors
        assert want.shape[0] == (cells[0] - 1) * factors.time + 1
        assert rel_rms(got, want) <= ORT_REL_RMS


@fuzzed(config=models.audio_vaes(), seed=SEEDS, frames=st.integers(1, 9))
def test_audio_vae(config: Any, seed: int, frames: int) -> None:
    tensors = models.audio_vae_tensors(config, seed)
    rng = np.random.default_rng(seed)
    mel = rng.standard_normal((1, 2, frames, config.mel.mel_bins)).astype(np.float32)
    shape = (1, config.latent_channels, frames, config.latent_bins)
    latent = rng.standard_normal(shape).astype(np.float32)
    found = {}
    for make, name, value in (
        (audio_mel_encoder, "mel", mel),
        (audio_decoder, "audio_latent", latent),
    ):
        part = make({}, tensors)
        want, got = (next(iter(e({name: value}).values())) for e in models.both(part))
        assert rel_rms(got, want) <= ORT_REL_RMS
        found[name] = want

    from diffusers import AutoencoderKLLTX2Audio

    theirs = AutoencoderKLLTX2Audio(
        base_channels=config.stem_channels,
        ch_mult=tuple(w // config.stem_channels for w in config.widths),
        num_res_blocks=config.num_res_blocks,
        latent_channels=config.latent_channels,
        mel_bins=config.mel.mel_bins,
        mid_block_add_attention=config.mid_attention,
    ).eval()
    state = loaded(tensors)
    view = (1, config.latent_channels, 1, config.latent_bins)
    mean, std = (
        state.pop(f"per_channel_statistics.{k}-of-means").reshape(view) for k in ("mean", "std")
    )
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert (set(missing), unexpected) == ({"latents_mean", "latents_std"}, [])
    with torch.no_grad():
        encoded = (theirs.encode(torch.from_numpy(mel)).latent_dist.mode() - mean) / std
        decoded = theirs.decode(torch.from_numpy(latent) * std + mean).sample
    near(found["mel"], encoded, "net")
    near(found["audio_latent"], decoded, "net")


@fuzzed(config=models.hifi_gans(), seed=SEEDS, frames=st.integers(1, 12))
def test_vocoder(config: dict[str, Any], seed: int, frames: int) -> None:
    structure = GeneratorConfig(
        in_channels=8,
        initial_channels=config["upsample_initial_channel"],
        rates=tuple(config["upsample_rates"]),
        kernels=tuple(config["upsample_kernel_sizes"]),
        res_kernels=tuple(config["resblock_kernel_sizes"]),
        res_dilations=tuple(tuple(d) for d in config["resblock_dilation_sizes"]),
    )
    tensors = models.tensors_of(lambda: Vocoder(structure), seed)
    mel = np.random.default_rng(seed).standard_normal((1, 2, frames, 4)).astype(np.float32)
    want, got = (e({"mel": mel})["waveform"] for e in models.both(vocoder(config, tensors)))
    assert rel_rms(got, want) <= ORT_REL_RMS
    if not config["use_tanh_at_final"]:
        return  # diffusers has no bound that it does not name

    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    from tests.parity.test_audio_diffusers import load

    theirs = LTX2Vocoder(
        in_channels=8,
        hidden_channels=config["upsample_initial_channel"],
        upsample_kernel_sizes=config["upsample_kernel_sizes"],
        upsample_factors=config["upsample_rates"],
        resnet_kernel_sizes=config["resblock_kernel_sizes"],
        resnet_dilations=config["resblock_dilation_sizes"],
    )
    with torch.no_grad():
        near(want, load(theirs, loaded(tensors))(torch.from_numpy(mel)), "net")


@fuzzed(few=20, steps=st.integers(2, 60), tokens=st.integers(1, 16_000), seed=SEEDS)
def test_schedule_and_steps(steps: int, tokens: int, seed: int) -> None:
    """The LTX-2 schedule and Euler steps against the scheduler of diffusers with its numbers."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )
    slope = (2.05 - 0.95) / (4096 - 1024)
    scheduler.set_timesteps(
        sigmas=np.linspace(1.0, 1 / steps, steps), mu=slope * tokens + 0.95 - slope * 1024
    )
    theirs = scheduler.sigmas.numpy()
    sigmas = ltx2_sigmas(steps, tokens)
    np.testing.assert_allclose(sigmas, theirs, atol=2e-6)
    rng = np.random.default_rng(seed)
    ours = other = rng.standard_normal((1, 5, 3)).astype(np.float32)
    for index, (now, after) in enumerate(pairwise(theirs)):
        velocity = rng.standard_normal(ours.shape).astype(np.float32)
        denoised = to_denoised(ours, velocity, now)
        ours = euler_step(ours, denoised, now, after)
        other = scheduler.step(
            torch.from_numpy(velocity), scheduler.timesteps[index], torch.from_numpy(other)
        )[0].numpy()
    np.testing.assert_allclose(ours, other, atol=2e-4)  # divided and multiplied by small sigmas
