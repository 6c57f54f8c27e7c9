"""Audio path: check values of the specification, real sizes, ONNX parity, refusals."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from ltx2rt.errors import CheckpointError, UnsupportedError
from ltx2rt_export.component import Component
from ltx2rt_export.demo.audio import low_pass_taps
from ltx2rt_export.modules import audio_vae, bigvgan, tables
from ltx2rt_export.modules.audio_vae_config import AudioVaeConfig
from ltx2rt_export.modules.mel_config import MelConfig
from ltx2rt_export.modules.meta import on_meta
from ltx2rt_export.modules.vocoder import UNUSED_TENSORS, BweVocoder, Vocoder, vocoder
from ltx2rt_export.modules.vocoder_config import BweConfig, GeneratorConfig, VocoderConfig
from ltx2rt_export.reference import TorchEngine
from tests.parity.audio_models import BWE, GENERATOR, random_tensors
from tests.parity.exports import exported
from tests.parity.ort_engine import ort_engine
from tests.tolerances import ORT_REL_RMS

SNAKE = {"activation": "snakebeta", "final_bias": False}
REAL_BWE = VocoderConfig(
    generator=GeneratorConfig(
        initial_channels=1536,
        rates=(5, 2, 2, 2, 2, 2),
        kernels=(11, 4, 4, 4, 4, 4),
        final="clamp",
        **SNAKE,
    ),
    bwe=BweConfig(
        generator=GeneratorConfig(
            initial_channels=512,
            rates=(6, 5, 2, 2, 2),
            kernels=(12, 11, 4, 4, 4),
            final="none",
            **SNAKE,
        )
    ),
    output_sampling_rate=48000,
)
TINY_VAE = AudioVaeConfig(
    widths=(8, 16, 32),
    stem_channels=8,
    num_res_blocks=1,
    latent_channels=4,
    mel=MelConfig(mel_bins=16),
)


def parameters(module: nn.Module) -> int:
    return sum(v.numel() for v in module.parameters())


def test_mel_check_values() -> None:
    """Numbers of spec/audio.md §2."""
    points = tables.mel_points(16000, 64)
    np.testing.assert_allclose(points[1], 46.4057851, atol=1e-6)
    np.testing.assert_allclose(points[63:65], [7269.788, 7626.159], atol=1e-3)
    bank = tables.mel_filterbank(**asdict(MelConfig()))
    assert bank.shape == (513, 64)
    assert np.flatnonzero(bank[:, 0]).tolist() == [1, 2, 3, 4, 5]
    first = [0.00725564, 0.01451128, 0.02133115, 0.01407551, 0.00681987]
    np.testing.assert_allclose(bank[1:6, 0], first, atol=1e-8)
    np.testing.assert_allclose(bank.max(), 0.0213, atol=5e-5)


def test_filter_check_values() -> None:
    """Numbers of spec/audio.md §6.1 and §6.4."""
    half = [0.002028965, 0.009389466, -0.025543462, -0.057657383, 0.128572583, 0.443209797]
    np.testing.assert_allclose(low_pass_taps(), half + half[::-1], atol=5e-8)
    taps = bigvgan.resampler_filter(3)
    assert taps.shape == (43,)
    np.testing.assert_allclose(taps.sum(), 1.0005, atol=5e-5)
    centre = [0.13534595, 0.27194273, 0.33000001, 0.27194273, 0.13534595]
    np.testing.assert_allclose(taps[19:24], centre, atol=1e-7)


def test_mel_front_end_against_fft() -> None:
    engine = TorchEngine(audio_vae.mel_front_end())
    rng = np.random.default_rng(1)
    waveform = (rng.standard_normal((1, 2, 15999)) * 0.1).astype(np.float32)
    got = engine({"waveform": waveform})["mel"]
    padded = np.pad(waveform[0].astype(np.float64), ((0, 0), (512, 512)), mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    frames = np.lib.stride_tricks.sliding_window_view(padded, 1024, axis=1)[:, ::160]
    magnitude = np.abs(np.fft.rfft(frames * window))
    want = np.log(np.maximum(magnitude @ tables.mel_filterbank(**asdict(MelConfig())), 1e-5))
    assert got.shape == (1, 2, 100, 64)
    # float32 sums of 1024 products, then a logarithm
    np.testing.assert_allclose(got[0], want, atol=2e-5)
    silence = engine({"waveform": np.zeros((1, 2, 16000), np.float32)})["mel"]
    assert silence.shape == (1, 2, 101, 64)
    np.testing.assert_allclose(silence, -11.5129, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "millions", "tensors"),
    [
        (lambda: audio_vae.Encoder(AudioVaeConfig()), 21.33, 44),
        (lambda: audio_vae.Decoder(AudioVaeConfig()), 31.92, 56),
        (lambda: Vocoder(GeneratorConfig()), 55.59, 194),
        (lambda: BweVocoder(REAL_BWE), 128.54, 1227 - len(UNUSED_TENSORS)),
    ],
)
def test_sizes_of_the_real_models(make, millions: float, tensors: int) -> None:
    module = on_meta(make)
    assert round(parameters(module) / 1e6, 2) == millions
    assert len(module.state_dict()) == tensors


def check_onnx(part: Component, name: str, shapes: list[tuple[int, ...]], out: list[int]) -> None:
    """One export, then several sizes; `out` are the expected lengths (third axis) of the output."""
    torch_engine, onnx_engine = TorchEngine(part), ort_engine(exported(part))
    rng = np.random.default_rng(7)
    for shape, length in zip(shapes, out, strict=True):
        x = rng.standard_normal(shape).astype(np.float32)
        (want,) = torch_engine({name: x}).values()
        (got,) = onnx_engine({name: x}).values()
        assert got.shape == want.shape
        assert got.shape[2] == length
        assert want.std() > 1e-3
        relative = np.sqrt(((got - want) ** 2).sum() / (want**2).sum())
        assert relative <= ORT_REL_RMS, (shape, relative)


@pytest.fixture
def vae(tmp_path: Path):
    class Both(audio_vae.AudioMelEncoder):
        def __init__(self) -> None:
            super().__init__(TINY_VAE)
            self.decoder = audio_vae.AudioDecoder(TINY_VAE).decoder

    return random_tensors(tmp_path / "vae.safetensors", Both, 8)


def test_encoder_onnx(vae) -> None:
    sizes = [1, 4, 5, 40]
    part = audio_vae.audio_mel_encoder({}, vae)
    check_onnx(part, "mel", [(1, 2, m, 16) for m in sizes], [1, 1, 2, 10])


def test_waveform_encoder_onnx(vae) -> None:
    part = audio_vae.audio_encoder({}, vae)
    check_onnx(part, "waveform", [(1, 2, 513), (3, 2, 16000)], [1, 26])


def test_decoder_onnx(vae) -> None:
    part = audio_vae.audio_decoder({}, vae)
    check_onnx(part, "audio_latent", [(1, 4, 1, 4), (1, 4, 25, 4), (3, 4, 2, 4)], [1, 97, 5])


def tiny_vocoder(path: Path, config: dict):
    first = config.get("vocoder", config)
    shared = {
        "in_channels": 8,
        "initial_channels": 8,
        "res_kernels": (3, 7),
        "res_dilations": ((1, 3), (1, 5)),
        **({} if first is config else SNAKE),
    }
    generator = GeneratorConfig(rates=(5, 2), kernels=(11, 4), **shared)
    if first is config:
        return random_tensors(path, lambda: Vocoder(generator), 9)
    second = GeneratorConfig(rates=(5, 3), kernels=(11, 5), **shared)
    bwe = BweConfig(generator=second, n_fft=16, hop_length=5, mel_bins=4)
    whole = VocoderConfig(generator=generator, bwe=bwe, output_sampling_rate=48000)
    return random_tensors(path, lambda: BweVocoder(whole), 9)


@pytest.mark.parametrize(("config", "factor"), [(GENERATOR, 10), (BWE, 30)], ids=["hifi", "bwe"])
def test_vocoder_onnx(tmp_path: Path, config: dict, factor: int) -> None:
    part = vocoder(config, tiny_vocoder(tmp_path / "v.safetensors", config))
    assert part.options["samples_per_mel_frame"] == factor
    sizes = [1, 2, 23]
    check_onnx(part, "mel", [(1, 2, m, 4) for m in sizes], [factor * m for m in sizes])


@pytest.mark.parametrize(
    "said", [{}, {"apply_final_activation": True}, {"apply_final_activation": False}]
)
def test_only_the_first_generator_bounds_its_waveform(tmp_path: Path, said: dict) -> None:
    """By position, whatever `apply_final_activation` says (spec/audio.md §6)."""
    tensors = tiny_vocoder(tmp_path / "v.safetensors", BWE)
    bwe = {k: v for k, v in BWE["bwe"].items() if k != "apply_final_activation"}
    found = VocoderConfig.from_checkpoint(
        {"vocoder": BWE["vocoder"] | said, "bwe": bwe | said}, tensors
    )
    assert found.bwe is not None
    assert (found.generator.final, found.bwe.generator.final) == ("clamp", "none")


def test_vae_refusals(vae, tmp_path: Path) -> None:
    config = {
        "model": {
            "params": {
                "ddconfig": {"norm_type": "group", "ch": 8, "ch_mult": [1, 2], "mel_bins": 16}
            }
        },
        "preprocessing": {"mel": {"mel_fmin": 50}},
    }
    with pytest.raises(UnsupportedError) as caught:
        audio_vae.audio_decoder(config, vae)
    for part in ("3 problems", "norm_type is 'group'", "[8, 16], but", "mel_fmin is 50"):
        assert part in str(caught.value)
    with pytest.raises(CheckpointError, match=r"decoder.conv_in.conv.weight is missing"):
        audio_vae.audio_decoder({}, {n: e for n, e in vae.items() if "conv_in" not in n})
    extra = dict(vae) | {"decoder.up.1.attn.0.q.weight": vae["decoder.conv_in.conv.weight"]}
    with pytest.raises(UnsupportedError, match=r"decoder.up.1.attn.0.q.weight"):
        audio_vae.audio_decoder({}, extra)


def test_vocoder_refusals(tmp_path: Path) -> None:
    tensors = tiny_vocoder(tmp_path / "v.safetensors", BWE)
    with pytest.raises(UnsupportedError, match=r"vocoder\.vocoder\.upsample_rates is missing"):
        vocoder({}, tensors)
    bad = {
        "vocoder": BWE["vocoder"] | {"resblock": "AMP2"},
        "bwe": BWE["bwe"] | {"hop_length": 4, "output_sampling_rate": 44100},
    }
    with pytest.raises(UnsupportedError) as caught:
        vocoder(bad, tensors)
    for part in ("resblock is 'AMP2'", "44100, which is not a multiple", "which does not divide"):
        assert part in str(caught.value)
    extra = dict(tensors) | {"vocoder.conv_pre.weight_g": tensors["vocoder.conv_pre.bias"]}
    with pytest.raises(UnsupportedError, match="weight_g"):
        vocoder(BWE, extra)
