"""Goldens of the audio path: audio VAE, mel front end, vocoders and their parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from ltx2rt.components.audio import AudioDecoder, AudioEncoder
from ltx2rt.engine import TensorSpec
from ltx2rt.media.resample import resample
from ltx2rt_export.component import Component
from ltx2rt_export.demo.audio import low_pass_taps
from ltx2rt_export.modules import audio_vae, bigvgan, mel, tables
from ltx2rt_export.modules import vocoder as vocoders
from ltx2rt_export.modules.mel_config import MelConfig
from ltx2rt_export.modules.meta import match_weights, on_meta
from ltx2rt_export.modules.vocoder_config import VocoderConfig
from tests.parity.golden import Case, Runner, handles


def component(case: Case, run: Runner, name: str) -> Component:
    """A component of the case's checkpoint, by name."""
    config = run.config(case.checkpoint)
    if name == "vocoder":
        tensors = run.tensors(case.checkpoint, "vocoder.")
        return vocoders.vocoder(config.get("vocoder") or {}, tensors)
    tensors = run.tensors(case.checkpoint, "audio_vae.")
    return getattr(audio_vae, name)(config.get("audio_vae") or {}, tensors)


@handles("audio_vae_decoder")
def decode(case: Case, run: Runner) -> Mapping[str, np.ndarray]:
    engine = run.engine(component(case, run, "audio_decoder"))
    return {"mel": engine({"audio_latent": case.inputs["latent"]})["mel"]}


@handles("audio_vae_encoder")
def encode(case: Case, run: Runner) -> Mapping[str, np.ndarray]:
    engine = run.engine(component(case, run, "audio_mel_encoder"))
    return {"latent": engine({"mel": case.inputs["mel"]})["audio_latent"]}


@handles("audio")
def chain(case: Case, run: Runner) -> Mapping[str, np.ndarray]:
    """Latent to waveform, waveform to latent, log-mel to latent: what the case has inputs for."""
    got: dict[str, np.ndarray] = {}
    if "waveform" in case.inputs:
        part = component(case, run, "audio_encoder")
        encoder = AudioEncoder(run.engine(part), part.options["sampling_rate"])
        rate = case.params["sampling_rate"]
        got["latent"] = encoder(case.inputs["waveform"][0].astype(np.float32), rate)
    if "latent" in case.inputs:
        part = component(case, run, "vocoder")
        rate = part.options["output_sampling_rate"]
        decoder = run.engine(component(case, run, "audio_decoder"))
        audio, found = AudioDecoder(decoder, run.engine(part), rate)(case.inputs["latent"])
        assert found == case.params["sampling_rate"]
        got["waveform"] = audio
    if "mel" in case.inputs:
        engine = run.engine(component(case, run, "audio_mel_encoder"))
        got["encoded"] = engine({"mel": case.inputs["mel"]})["audio_latent"]
    return got


@handles("audio_processor")
def front_end(case: Case, run: Runner) -> Mapping[str, np.ndarray]:
    """Resampling and log-mel of every `waveform_<rate>`."""
    params = case.params
    config = MelConfig(
        sampling_rate=params["sample_rate"],
        n_fft=params["n_fft"],
        hop_length=params["hop"],
        mel_bins=params["n_mels"],
    )
    assert params["log_floor"] == mel.LOG_FLOOR
    engine = run.engine(audio_vae.mel_front_end(config))
    got = {"mel_filterbank": tables.mel_filterbank(**dataclasses.asdict(config))}
    for name, waveform in case.inputs.items():
        rate = int(name.removeprefix("waveform_"))
        samples = resample(waveform[0].astype(np.float32), rate, config.sampling_rate)
        got[f"resampled_{rate}"] = samples[None]
        got[f"mel_{rate}"] = engine({"waveform": samples[None]})["mel"]
    return got


@handles("vocoder")
def vocode(case: Case, run: Runner) -> Mapping[str, np.ndarray]:
    if "mel" in case.inputs:
        return _waveform(case, run)
    if "alpha" in case.inputs:
        return _activation(case, run)
    filters = low_pass_taps()[None, None]
    return {"up_filter": filters, "down_filter": filters}


STAGES = ("waveform", "low_rate_waveform", "bwe_mel", "bwe_residual", "bwe_skip")


class _Stages(vocoders.BweVocoder):
    """The vocoder with its intermediate tensors as outputs."""

    def forward(self, mel: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.stages(mel)


def _waveform(case: Case, run: Runner) -> Mapping[str, np.ndarray]:
    whole = component(case, run, "vocoder")
    got = dict(run.engine(whole)({"mel": case.inputs["mel"]}))
    config = VocoderConfig.from_checkpoint(
        run.config(case.checkpoint).get("vocoder") or {}, run.tensors(case.checkpoint, "vocoder.")
    )
    if config.bwe is not None:
        mel_bins = config.bwe.mel_bins
        shapes = [("B", 2, mel_bins, "F") if n == "bwe_mel" else ("B", 2, n) for n in STAGES]
        staged = dataclasses.replace(
            whole,
            module=on_meta(lambda: _Stages(config)),
            outputs=tuple(TensorSpec(n, "float32", s) for n, s in zip(STAGES, shapes, strict=True)),
        )
        stages = run.engine(staged)({"mel": case.inputs["mel"]})
        np.testing.assert_array_equal(stages["waveform"], got["waveform"])
        ratio = config.bwe.ratio(config.output_sampling_rate)
        got |= stages | {"resampler_filter": bigvgan.resampler_filter(ratio)[None, None]}
    return got


class _Activation(nn.Module):
    """One activation: result, signal at twice the rate, and snake without resampling."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.act_post = bigvgan.AntiAliasedSnake(channels, beta=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.act_post(x), self.act_post.up(x), self.act_post.act(x)


def _activation(case: Case, run: Runner) -> Mapping[str, np.ndarray]:
    """The last activation of the bandwidth extension; the case repeats its weights."""
    x = case.inputs["x"]
    tensors = run.tensors(case.checkpoint, "vocoder.bwe_generator.")
    module = on_meta(lambda: _Activation(x.shape[1]))
    shape, double = ("B", x.shape[1], "L"), ("B", x.shape[1], "L2")
    part = Component(
        name="activation",
        module=module,
        inputs=(TensorSpec("x", "float32", shape),),
        outputs=(
            TensorSpec("y", "float32", shape),
            TensorSpec("up", "float32", double),
            TensorSpec("snake", "float32", shape),
        ),
        weights=match_weights(module, tensors, "activation"),
        trace={"B": 2, "L": 7},
    )
    return run.engine(part)({"x": x})
