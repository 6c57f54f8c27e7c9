"""Configuration of the audio VAE: structure from tensors, front end from metadata.

Keys and defaults: spec/audio.md §4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from ltx2rt.errors import UnsupportedError
from ltx2rt_export.component import TensorIndex
from ltx2rt_export.modules.audio_config import agree, count, section, shape_of
from ltx2rt_export.modules.mel_config import MelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioVaeConfig:
    """Structure of one side of the audio VAE.

    Attributes:
        widths: channels of each resolution level, finest first (`ch * ch_mult`).
        stem_channels: encoder only: channels after its first convolution (`ch`).
        num_res_blocks: residual blocks of each encoder level; decoder levels have one more.
        latent_channels: channels of the latent (`z_channels`).
        audio_channels: channels of the spectrogram (2, stereo).
        mid_attention: whether `mid.attn_1` exists.
        mel: the front end; `mel.mel_bins` is the height of the spectrogram.
    """

    widths: tuple[int, ...] = (128, 256, 512)
    stem_channels: int = 128
    num_res_blocks: int = 2
    latent_channels: int = 8
    audio_channels: int = 2
    mid_attention: bool = False
    mel: MelConfig = field(default_factory=MelConfig)

    @property
    def downsample_factor(self) -> int:
        """Mel frames per latent frame, and mel bins per latent bin."""
        return 1 << (len(self.widths) - 1)

    @property
    def latent_bins(self) -> int:
        """Height of the latent."""
        return self.mel.mel_bins // self.downsample_factor

    @classmethod
    def from_checkpoint(
        cls,
        config: Mapping[str, Any],
        tensors: TensorIndex,
        side: Literal["encoder", "decoder"] = "decoder",
    ) -> Self:
        """Read the structure from `side`'s tensors and the front end from the metadata.

        Raises:
            CheckpointError: tensors that define the structure are missing.
            UnsupportedError: the metadata asks for something else; all differences are listed.
        """
        where = f"audio VAE {side}"
        conv_in = shape_of(tensors, f"{side}.conv_in.conv.weight", where)
        conv_out = shape_of(tensors, f"{side}.conv_out.conv.weight", where)
        level_name = "down" if side == "encoder" else "up"
        sampler = "downsample" if side == "encoder" else "upsample"
        levels = count(tensors, rf"{side}\.{level_name}\.(\d+)\.{sampler}\.") + 1
        blocks = count(tensors, rf"{side}\.{level_name}\.0\.block\.(\d+)\.")
        first = [f"{side}.{level_name}.{i}.block.0.conv1.conv.weight" for i in range(levels)]
        if side == "encoder":
            stem, audio_channels, latent_channels = conv_in[0], conv_in[1], conv_out[0] // 2
            widths = tuple(tensors[n].shape[0] if n in tensors else stem for n in first)
        else:
            stem, audio_channels, latent_channels = conv_out[1], conv_out[0], conv_in[1]
            widths = tuple(shape_of(tensors, n, where)[0] for n in first)
            blocks -= 1
        features = shape_of(tensors, "per_channel_statistics.mean-of-means", where)[0]
        result = cls(
            widths=widths,
            stem_channels=stem,
            num_res_blocks=blocks,
            latent_channels=latent_channels,
            audio_channels=audio_channels,
            mid_attention=any(n.startswith(f"{side}.mid.attn_1.") for n in tensors),
            mel=_mel_config(config, (features // latent_channels) << (levels - 1)),
        )
        _check(config, result, features)
        return result


def _mel_config(config: Mapping[str, Any], mel_bins: int) -> MelConfig:
    stft = section(config, "preprocessing", "stft")
    parameters = section(config, "model", "params")
    default = MelConfig()
    return MelConfig(
        sampling_rate=parameters.get("sampling_rate", default.sampling_rate),
        n_fft=stft.get("filter_length", default.n_fft),
        hop_length=stft.get("hop_length", default.hop_length),
        mel_bins=mel_bins,
    )


def _check(config: Mapping[str, Any], found: AudioVaeConfig, features: int) -> None:
    problems: list[str] = []
    dd = section(config, "model", "params", "ddconfig")
    mel = found.mel
    agree(
        problems,
        dd,
        "audio_vae.model.params.ddconfig",
        {
            "double_z": True,
            "norm_type": "pixel",
            "causality_axis": "height",
            "attn_type": "vanilla",
            "resamp_with_conv": True,
            "give_pre_end": False,
            "tanh_out": False,
            "in_channels": found.audio_channels,
            "out_ch": found.audio_channels,
            "z_channels": found.latent_channels,
            "mel_bins": mel.mel_bins,
            "num_res_blocks": found.num_res_blocks,
        },
    )
    if dd.get("ch") is not None and dd.get("ch_mult") is not None:
        widths = [dd["ch"] * m for m in dd["ch_mult"]]
        if widths != list(found.widths):
            problems.append(
                f"audio_vae.model.params.ddconfig.ch and ch_mult give level widths {widths}, but "
                f"the tensors have {list(found.widths)}"
            )
    resolutions = {(dd.get("resolution") or 256) >> i for i in range(len(found.widths))}
    attention = sorted(resolutions & set(dd.get("attn_resolutions") or ()))
    if attention:
        problems.append(
            f"audio_vae.model.params.ddconfig.attn_resolutions asks for attention at {attention}, "
            "which no released model has"
        )
    pre = "audio_vae.preprocessing"
    agree(
        problems,
        section(config, "preprocessing", "audio"),
        f"{pre}.audio",
        {"sampling_rate": mel.sampling_rate, "stereo": found.audio_channels == 2},
    )
    agree(
        problems,
        section(config, "preprocessing", "stft"),
        f"{pre}.stft",
        {"win_length": mel.n_fft, "causal": True},
    )
    agree(
        problems,
        section(config, "preprocessing", "mel"),
        f"{pre}.mel",
        {"n_mel_channels": mel.mel_bins, "mel_fmin": 0, "mel_fmax": mel.sampling_rate / 2},
    )
    if features != found.latent_channels * found.latent_bins:
        problems.append(
            f"audio_vae.per_channel_statistics has {features} features, which is not a multiple of "
            f"{found.latent_channels} latent channels"
        )
    if problems:
        raise UnsupportedError("this audio VAE is not supported", problems)
