"""Configuration of the vocoders: structure from tensors, rates and final activation from metadata.

Keys and defaults: spec/audio.md §5 and §6.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from ltx2rt.errors import CheckpointError, UnsupportedError
from ltx2rt_export.component import TensorIndex
from ltx2rt_export.modules.audio_config import agree, count, plain, shape_of

#: upsampling kernel sizes of the released generators -> their rates, for files without metadata
RELEASED_RATES = {
    (16, 15, 8, 4, 4): (6, 5, 2, 2, 2),
    (11, 4, 4, 4, 4, 4): (5, 2, 2, 2, 2, 2),
    (12, 11, 4, 4, 4): (6, 5, 2, 2, 2),
}

#: presence of this tensor selects the vocoder with bandwidth extension
BWE_TENSOR = "bwe_generator.conv_pre.weight"

#: Stored by checkpoints, takes no part in synthesis (spec/audio.md §6.3).
UNUSED_TENSORS = ("mel_stft.stft_fn.inverse_basis",)


#: what bounds a generator's waveform
Final = Literal["tanh", "clamp", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorConfig:
    """Structure of one generator (HiFi-GAN or BigVGAN).

    Attributes:
        in_channels: stereo channels times mel bins.
        initial_channels: width after `conv_pre`; every upsampling halves it.
        rates, kernels: of the transposed convolutions.
        res_kernels: kernel of each residual block of a stage; res_dilations: the dilations of each.
        activation: `leaky_relu` (HiFi-GAN), `snakebeta` or `snake` (BigVGAN).
        final: what bounds the waveform.
        final_bias: whether the last convolution has a bias.
    """

    in_channels: int = 128
    initial_channels: int = 1024
    rates: tuple[int, ...] = (6, 5, 2, 2, 2)
    kernels: tuple[int, ...] = (16, 15, 8, 4, 4)
    res_kernels: tuple[int, ...] = (3, 7, 11)
    res_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3
    activation: Literal["leaky_relu", "snakebeta", "snake"] = "leaky_relu"
    final: Final = "tanh"
    final_bias: bool = True

    @property
    def factor(self) -> int:
        """Samples per mel frame."""
        return math.prod(self.rates)


@dataclass(frozen=True, slots=True, kw_only=True)
class BweConfig:
    """Bandwidth extension: a second generator, fed with the log-mel of the first one's waveform."""

    generator: GeneratorConfig
    n_fft: int = 512
    hop_length: int = 80
    mel_bins: int = 64
    input_sampling_rate: int = 16000

    def ratio(self, output_sampling_rate: int) -> int:
        """Factor between the two sampling rates."""
        return output_sampling_rate // self.input_sampling_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class VocoderConfig:
    """One vocoder; `bwe` is None for the HiFi-GAN of LTX-2."""

    generator: GeneratorConfig
    bwe: BweConfig | None = None
    output_sampling_rate: int = 24000

    @property
    def mel_bins(self) -> int:
        """Mel bins of the input."""
        return self.generator.in_channels // 2

    @property
    def samples_per_mel_frame(self) -> int:
        """Output samples per input mel frame."""
        ratio = self.bwe.ratio(self.output_sampling_rate) if self.bwe else 1
        return self.generator.factor * ratio

    @classmethod
    def from_checkpoint(cls, config: Mapping[str, Any], tensors: TensorIndex) -> Self:
        """Read the structure; `tensors` are named without the leading `vocoder.`.

        Raises:
            CheckpointError: tensors that define the structure are missing.
            UnsupportedError: metadata or tensors ask for something else; all problems are listed.
        """
        problems: list[str] = []
        if BWE_TENSOR not in tensors:
            flat = config.get("vocoder") or config
            generator = _generator(flat, tensors, "", "vocoder", _final(flat, "tanh"), problems)
            rate = flat.get("output_sampling_rate", 24000)
            result = cls(generator=generator, output_sampling_rate=rate)
        else:
            result = cls._with_bwe(config, tensors, problems)
        if problems:
            raise UnsupportedError("this vocoder is not supported", problems)
        return result

    @classmethod
    def _with_bwe(
        cls, config: Mapping[str, Any], tensors: TensorIndex, problems: list[str]
    ) -> Self:
        first = config.get("vocoder") or {}
        bwe = config.get("bwe") or {}
        final = _final(first, "clamp")
        generator = _generator(first, tensors, "vocoder.", "vocoder.vocoder", final, problems)
        second = _generator(bwe, tensors, "bwe_generator.", "vocoder.bwe", "none", problems)
        basis = shape_of(tensors, "mel_stft.stft_fn.forward_basis", "vocoder")
        mel_bins = shape_of(tensors, "mel_stft.mel_basis", "vocoder")[0]
        found = BweConfig(
            generator=second,
            n_fft=basis[2],
            hop_length=bwe.get("hop_length", 80),
            mel_bins=mel_bins,
            input_sampling_rate=bwe.get("input_sampling_rate", 16000),
        )
        rate = bwe.get("output_sampling_rate", 48000)
        expected = {"n_fft": found.n_fft, "win_size": found.n_fft, "num_mels": mel_bins}
        agree(problems, bwe, "vocoder.bwe", expected)
        ratio, remainder = divmod(rate, found.input_sampling_rate)
        if remainder or ratio < 1:
            problems.append(
                f"vocoder.bwe.output_sampling_rate is {rate}, which is not a multiple of "
                f"input_sampling_rate {found.input_sampling_rate}"
            )
        if generator.factor % found.hop_length:
            problems.append(
                f"vocoder.bwe.hop_length is {found.hop_length}, which does not divide the "
                f"{generator.factor} samples of a mel frame"
            )
        if second.factor != ratio * found.hop_length:
            problems.append(
                f"vocoder.bwe.upsample_rates multiply to {second.factor}, but {ratio} times "
                f"hop_length {found.hop_length} samples are needed"
            )
        if second.in_channels != 2 * mel_bins:
            problems.append(
                f"vocoder.bwe takes {second.in_channels} channels, but two signals with "
                f"{mel_bins} mel bins are computed"
            )
        if found.n_fft < found.hop_length:
            problems.append(
                f"vocoder.bwe.hop_length {found.hop_length} is over n_fft {found.n_fft}"
            )
        return cls(generator=generator, bwe=found, output_sampling_rate=rate)


def _generator(
    config: Mapping[str, Any],
    tensors: TensorIndex,
    prefix: str,
    where: str,
    final: Final,
    problems: list[str],
) -> GeneratorConfig:
    conv_pre = shape_of(tensors, f"{prefix}conv_pre.weight", where)
    stages = count(tensors, rf"{prefix}ups\.(\d+)\.weight")
    blocks = count(tensors, rf"{prefix}resblocks\.(\d+)\.")
    if not stages or blocks % stages:
        raise CheckpointError(
            f"{where} is not complete: {blocks} residual blocks do not spread over {stages} stages."
        )
    kernels = tuple(shape_of(tensors, f"{prefix}ups.{i}.weight", where)[2] for i in range(stages))
    per_stage = range(blocks // stages)
    res_kernels = tuple(
        shape_of(tensors, f"{prefix}resblocks.{j}.convs1.0.weight", where)[2] for j in per_stage
    )
    depths = [count(tensors, rf"{prefix}resblocks\.{j}\.convs1\.(\d+)\.") for j in per_stage]
    activation: Literal["leaky_relu", "snakebeta", "snake"] = "leaky_relu"
    if f"{prefix}act_post.act.alpha" in tensors:
        activation = "snakebeta" if f"{prefix}act_post.act.beta" in tensors else "snake"

    rates = config.get("upsample_rates") or RELEASED_RATES.get(kernels)
    dilations = config.get("resblock_dilation_sizes") or [[1, 3, 5]] * len(res_kernels)
    if rates is None:
        problems.append(f"{where}.upsample_rates is missing; kernel sizes {list(kernels)} are new")
        rates = kernels
    elif len(rates) != stages or any(
        (k - r) % 2 or k < r for k, r in zip(kernels, rates, strict=False)
    ):
        problems.append(
            f"{where}.upsample_rates is {plain(rates)}, which does not fit kernel sizes "
            f"{list(kernels)}"
        )
    if [len(d) for d in dilations] != depths:
        problems.append(
            f"{where}.resblock_dilation_sizes is {plain(dilations)}, but the blocks have {depths} "
            "convolutions"
        )
    if any(k % 2 == 0 for k in res_kernels):
        problems.append(
            f"{where}.resblock_kernel_sizes is {list(res_kernels)}; only odd sizes work"
        )
    final_bias = f"{prefix}conv_post.bias" in tensors
    expected: dict[str, Any] = {
        "upsample_initial_channel": conv_pre[0],
        "upsample_kernel_sizes": kernels,
        "resblock_kernel_sizes": res_kernels,
        "resblock": "1" if activation == "leaky_relu" else "AMP1",
        "stereo": True,
        "use_bias_at_final": final_bias,
    }
    if activation != "leaky_relu":
        expected["activation"] = activation
    agree(problems, config, where, expected)
    return GeneratorConfig(
        in_channels=conv_pre[1],
        initial_channels=conv_pre[0],
        rates=tuple(rates),
        kernels=kernels,
        res_kernels=res_kernels,
        res_dilations=tuple(tuple(d) for d in dilations),
        activation=activation,
        final=final,
        final_bias=final_bias,
    )


def _final(config: Mapping[str, Any], unsaid: Final) -> Final:
    """What bounds the waveform of the first or only generator; `unsaid` without metadata.

    `apply_final_activation` is not read: the first generator always has one, that of the bandwidth
    extension never (spec/audio.md §6).
    """
    if not config:
        return unsaid
    return "tanh" if config.get("use_tanh_at_final", True) else "clamp"
