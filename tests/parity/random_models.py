"""Random small networks of every kind in the official layout, for differential tests."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

from ltx2rt.components.transformer import ModalityInput, Transformer
from ltx2rt.engine import Array, Engine
from ltx2rt.latents.patchify import audio_positions, video_positions
from ltx2rt.latents.shapes import AudioLatentShape, VideoLatentShape
from ltx2rt.names import TRANSFORMER_STACK
from ltx2rt.weights.safetensors import SafetensorsFile
from ltx2rt_export.component import Component
from ltx2rt_export.modules.audio_vae import AudioDecoder, AudioMelEncoder
from ltx2rt_export.modules.audio_vae_config import AudioVaeConfig
from ltx2rt_export.modules.diffusion_decoder import Context, Features, Pixels
from ltx2rt_export.modules.diffusion_decoder_config import DiffusionDecoderConfig, Stage
from ltx2rt_export.modules.mel_config import MelConfig
from ltx2rt_export.modules.transformer import transformer_block, transformer_head, transformer_tail
from ltx2rt_export.modules.transformer_config import TransformerConfig
from ltx2rt_export.modules.video_vae import VideoDecoder, VideoEncoder
from ltx2rt_export.modules.video_vae_config import (
    Block,
    Resample,
    ResBlocks,
    VideoDecoderConfig,
    VideoEncoderConfig,
)
from ltx2rt_export.reference import TorchEngine, component_stack, load_weights
from tests.parity import tiny_transformer as tiny
from tests.parity.audio_models import random_tensors
from tests.parity.exports import exported
from tests.parity.ort_engine import ort_engine

LATENT_CHANNELS = 4
STRIDES = {"space": (1, 2, 2), "time": (2, 1, 1), "all": (2, 2, 2)}


def rel_rms(got: np.ndarray, want: np.ndarray) -> float:
    """RMS error over the RMS of what is wanted."""
    assert got.shape == want.shape
    assert np.isfinite(got).all()
    assert want.std() > 1e-4  # a comparison of constants would prove nothing
    return float(np.sqrt(((got - want) ** 2).sum() / (want**2).sum()))


def tensors_of(make: Callable[[], nn.Module], seed: int) -> SafetensorsFile:
    """Random weights of a module, in a file that lives as long as the process."""
    return random_tensors(new_file(), make, seed)


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="ltx2rt-random-")


def new_file() -> Path:
    """A new name in a folder that goes with the process."""
    return Path(tempfile.mkdtemp(dir=_folder().name)) / "model.safetensors"


def both(component: Component) -> tuple[Engine, Engine]:
    """The component in PyTorch and in ONNX Runtime."""
    return TorchEngine(component), ort_engine(exported(component))


# --- transformer ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class TransformerCase:
    """A transformer and what it is called with."""

    generation: str
    config: TransformerConfig
    batch: int
    grid: tuple[int, int, int]
    audio_frames: int
    text: int

    @property
    def metadata(self) -> dict[str, Any]:
        """What tensors do not tell."""
        return {
            **tiny.METADATA,
            "num_attention_heads": self.config.heads,
            "rope_type": self.config.rope_type,
        }

    def inputs(self) -> dict[str, ModalityInput]:
        """One sigma for all tokens, as diffusers has it."""
        video, audio = self.config.streams
        frames, height, width = self.grid
        shape = VideoLatentShape(
            batch=self.batch, channels=16, num_frames=frames, height=height, width=width
        )
        tokens = shape.token_count
        sounds = AudioLatentShape(
            batch=self.batch, channels=1, num_frames=self.audio_frames, mel_bins=16
        )
        sigma = np.full(self.batch, np.float32(0.725))
        marked = (np.arange(tokens) < self.grid[1] * self.grid[2]).astype(np.float32)

        def stream(name: str, count: int, width: int, **extra: Any) -> ModalityInput:
            return ModalityInput(
                latent=tiny.gen(f"{name}.latent", (self.batch, count, 16), 1.5),
                sigma=sigma,
                timesteps=np.full((self.batch, count, 1), np.float32(0.725)),
                context=tiny.gen(f"{name}.context", (self.batch, self.text, width), 1),
                **extra,
            )

        return {
            "video": stream(
                "video",
                tokens,
                video.caption_channels or video.width,
                positions=video_positions(shape, 24.0),
                keyframes_mask=np.repeat(marked[None, :, None], self.batch, axis=0),
            ),
            "audio": stream(
                "audio",
                self.audio_frames,
                audio.caption_channels or audio.width,
                positions=audio_positions(sounds),
            ),
        }


@st.composite
def transformers(draw: st.DrawFn) -> TransformerCase:
    """Widths, heads, depths, RoPE, generations, token counts."""
    generation = draw(st.sampled_from(tiny.GENERATIONS))
    rope = draw(st.sampled_from(["split", "interleaved"]))
    heads = draw(st.sampled_from([1, 2, 4]))
    video_head, audio_head = draw(st.sampled_from([8, 16, 24])), draw(st.sampled_from([4, 8, 16]))
    base = tiny.tiny_config(generation, rope_type=rope)
    streams = tuple(
        dataclasses.replace(s, width=heads * d, head_dim=d, context_dim=heads * d)
        for s, d in zip(base.streams, (video_head, audio_head), strict=True)
    )
    config = dataclasses.replace(
        base,
        streams=streams,
        heads=heads,
        cross_head_dim=audio_head,
        num_layers=draw(st.integers(1, 3)),
    )
    return TransformerCase(
        generation=generation,
        config=config,
        batch=draw(st.integers(1, 2)),
        grid=draw(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))),
        audio_frames=draw(st.integers(1, 6)),
        text=draw(st.integers(1, 7)),
    )


def transformer_pair(case: TransformerCase) -> tuple[Transformer, Transformer]:
    """The runtime's transformer on PyTorch and on ONNX Runtime."""
    tensors = tiny.write_checkpoint(new_file(), case.config)
    parts = [
        make(case.metadata, tensors, "av")
        for make in (transformer_head, transformer_block, transformer_tail)
    ]
    graphs = {part.name: exported(part) for part in parts}

    def turned(part: Component) -> list[dict[str, Array]]:
        return [load_weights(layer, graphs[part.name].transposed) for layer in part.layers]

    stacks = (
        component_stack(TRANSFORMER_STACK, parts, TorchEngine),
        component_stack(
            TRANSFORMER_STACK, parts, lambda part: ort_engine(graphs[part.name]), turned
        ),
    )
    reference, runtime = (Transformer(stack, parts[1].options) for stack in stacks)
    return reference, runtime


# --- video VAE -----------------------------------------------------------------------------------


@st.composite
def vae_blocks(draw: st.DrawFn) -> tuple[Block, ...]:
    """An encoder's blocks in running order: one or two resamplings, in time and space each."""
    blocks: list[Block] = []
    kinds = draw(
        st.sampled_from([("all",), ("space", "time"), ("space", "all"), ("time", "space")])
    )
    for kind in kinds:
        if draw(st.booleans()):
            blocks.append(ResBlocks(num_layers=draw(st.integers(1, 2))))
        blocks.append(Resample(stride=STRIDES[kind], multiplier=draw(st.integers(1, 2))))
    return (*blocks, ResBlocks(num_layers=1))


def vae_metadata(blocks: tuple[Block, ...], padding: str, *, causal: bool) -> dict[str, Any]:
    """The `vae` object of a file with these encoder blocks and a decoder that mirrors them."""
    names = {stride: kind for kind, stride in STRIDES.items()}

    def listed(suffix: str) -> list[Any]:
        return [
            ["res_x", {"num_layers": b.num_layers}]
            if isinstance(b, ResBlocks)
            else [f"compress_{names[b.stride]}{suffix}", {"multiplier": b.multiplier}]
            for b in blocks
        ]

    return {
        "_class_name": "CausalVideoAutoencoder",
        "encoder_blocks": listed("_res"),
        "decoder_blocks": listed(""),
        "timestep_conditioning": False,
        "spatial_padding_mode": padding,
        "causal_decoder": causal,
    }


def vae_tensors(blocks: tuple[Block, ...], seed: int) -> tuple[SafetensorsFile, SafetensorsFile]:
    """Weights of the encoder and of the decoder."""
    multipliers = [b.multiplier for b in blocks if isinstance(b, Resample)]
    encoder = VideoEncoderConfig(
        blocks=blocks, latent_channels=LATENT_CHANNELS, width=8, out_rows=LATENT_CHANNELS + 1
    )
    decoder = VideoDecoderConfig(
        blocks=tuple(reversed(blocks)),
        latent_channels=LATENT_CHANNELS,
        width=8 * int(np.prod(multipliers)),
    )
    return (
        tensors_of(lambda: VideoEncoder(encoder), seed),
        tensors_of(lambda: VideoDecoder(decoder), seed + 1),
    )


# --- diffusion decoder ---------------------------------------------------------------------------

ODD = st.sampled_from([1, 3])


@st.composite
def diffusion_decoders(draw: st.DrawFn) -> DiffusionDecoderConfig:
    """Two deterministic stages and the pixel stage."""
    head = draw(st.sampled_from([8, 16]))
    widths = [head * draw(st.integers(1, 2)) for _ in range(3)]
    kernels = [draw(st.tuples(ODD, ODD, st.sampled_from([1, 3, 5]))) for _ in range(3)]
    strides = draw(st.sampled_from([((1, 2, 2), (2, 2, 2)), ((2, 1, 1), (2, 2, 2))]))
    stages = tuple(
        Stage(channels=c, depth=draw(st.integers(1, 2)), kernel=k, stride=s, out_channels=o)
        for c, k, s, o in zip(widths[:2], kernels[:2], strides, widths[1:], strict=True)
    )
    return DiffusionDecoderConfig(
        stages=stages,
        pixels=Stage(channels=widths[2], depth=draw(st.integers(1, 2)), kernel=kernels[2]),
        latent_channels=LATENT_CHANNELS,
        out_channels=3,
        patch_size=draw(st.sampled_from([2, 4])),
        head_dim=head,
        time_width=8,
        frequencies=16,
        timestep_scale=1000.0,
        steps=draw(st.integers(1, 2)),
        prediction=draw(st.sampled_from(["x0", "v"])),
        gated=draw(st.booleans()),
    )


def decoder_metadata(config: DiffusionDecoderConfig) -> dict[str, Any]:
    """The `vae` object of a file with this decoder."""
    return {
        "_class_name": "CausalDiffusionVAE",
        "model_output_type": config.prediction,
        "decoder": {
            "_class_name": "NADiffusionDecoder",
            "patch_size": config.patch_size,
            "stage_kernels": [list(s.kernel) for s in config.stages],
            "upsamples": [[list(s.stride), 1] for s in config.stages],
            "stage5_kernel": list(config.pixels.kernel),
            "timestep_scale_multiplier": config.timestep_scale,
            "default_num_inference_steps": config.steps,
        },
    }


def decoder_tensors(config: DiffusionDecoderConfig, seed: int) -> SafetensorsFile:
    """Weights of all three components under their official names."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([Features(config), Context(config), Pixels(config)])

        def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:  # type: ignore[override]
            return {n: t for part in self.parts for n, t in part.state_dict().items()}

    return tensors_of(Whole, seed)


# --- audio ---------------------------------------------------------------------------------------


@st.composite
def audio_vaes(draw: st.DrawFn) -> AudioVaeConfig:
    """Widths as multiples of the stem, as diffusers has them."""
    stem = draw(st.sampled_from([4, 8]))
    levels = draw(st.integers(2, 3))
    multiples = sorted(draw(st.integers(1, 3)) for _ in range(levels))
    return AudioVaeConfig(
        widths=tuple(stem * m for m in (1, *multiples[1:])),
        stem_channels=stem,
        num_res_blocks=draw(st.integers(1, 2)),
        latent_channels=draw(st.sampled_from([2, 4])),
        mid_attention=draw(st.booleans()),
        mel=MelConfig(mel_bins=draw(st.sampled_from([8, 16]))),
    )


def audio_vae_tensors(config: AudioVaeConfig, seed: int) -> SafetensorsFile:
    """Weights of both sides."""

    class Both(AudioMelEncoder):
        def __init__(self) -> None:
            super().__init__(config)
            self.decoder = AudioDecoder(config).decoder

    return tensors_of(Both, seed)


@st.composite
def hifi_gans(draw: st.DrawFn) -> Mapping[str, Any]:
    """Metadata of a vocoder: kernels are odd or even as their rates."""
    stages = draw(st.integers(1, 3))
    rates = [draw(st.integers(2, 5)) for _ in range(stages)]
    kernels = [rate + 2 * draw(st.integers(0, 3)) for rate in rates]
    blocks = draw(st.integers(1, 2))
    sizes = draw(st.lists(st.sampled_from([3, 5, 7]), min_size=blocks, max_size=blocks))
    dilations = [[draw(st.integers(1, 3)) for _ in range(draw(st.integers(1, 2)))] for _ in sizes]
    return {
        "upsample_initial_channel": 4 * 2**stages,
        "upsample_rates": rates,
        "upsample_kernel_sizes": kernels,
        "resblock_kernel_sizes": sizes,
        "resblock_dilation_sizes": dilations,
        "resblock": "1",
        "stereo": True,
        "use_tanh_at_final": draw(st.booleans()),
    }
