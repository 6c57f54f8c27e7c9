"""LTX-2.3 (22B) with Gemma 3 (12B) at real size in files that take no disk: official names, shapes
and metadata, weights that are holes of sparse files (they read as zeros).

`python -m benchmarks.sparse_model DIR` writes them, so that the real commands can be tried and
timed at real size on any machine. Sizes: spec/transformer.md §1, video_vae.md §1.2, audio.md,
text_encoder.md §2.1, upsampler.md.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.real_size import LTX23, tensor_list
from ltx2rt_export.component import on_meta
from ltx2rt_export.demo import write_demo_model
from ltx2rt_export.modules.audio_vae import AudioDecoder, AudioEncoder
from ltx2rt_export.modules.audio_vae_config import AudioVaeConfig
from ltx2rt_export.modules.connectors import Connector, ConnectorConfig
from ltx2rt_export.modules.gemma import GemmaEncoder
from ltx2rt_export.modules.text_projection import FeatureExtractorV2
from ltx2rt_export.modules.upsampler import LatentUpsampler, UpsamplerConfig
from ltx2rt_export.modules.video_vae import VideoDecoder, VideoEncoder
from ltx2rt_export.modules.video_vae_config import VideoDecoderConfig, VideoEncoderConfig
from ltx2rt_export.modules.vocoder import BweVocoder
from ltx2rt_export.modules.vocoder_config import BweConfig, GeneratorConfig, VocoderConfig

Shapes = dict[str, tuple[int, ...]]

GEMMA: dict[str, Any] = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "num_hidden_layers": 48,
        "sliding_window": 1024,
        "vocab_size": 262208,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
}

ENCODER_BLOCKS = [
    ["res_x", {"num_layers": 4}], ["compress_space_res", {"multiplier": 2}],
    ["res_x", {"num_layers": 6}], ["compress_time_res", {"multiplier": 2}],
    ["res_x", {"num_layers": 4}], ["compress_all_res", {"multiplier": 2}],
    ["res_x", {"num_layers": 2}], ["compress_all_res", {"multiplier": 1}],
    ["res_x", {"num_layers": 2}],
]  # fmt: skip
DECODER_BLOCKS = [
    ["res_x", {"num_layers": 4}], ["compress_space", {"multiplier": 2}],
    ["res_x", {"num_layers": 6}], ["compress_time", {"multiplier": 2}],
    ["res_x", {"num_layers": 4}], ["compress_all", {"multiplier": 1}],
    ["res_x", {"num_layers": 2}], ["compress_all", {"multiplier": 2}],
    ["res_x", {"num_layers": 2}],
]  # fmt: skip

VAE = {
    "_class_name": "CausalVideoAutoencoder",
    "latent_channels": 128,
    "patch_size": 4,
    "norm_layer": "pixel_norm",
    "causal_decoder": False,
    "timestep_conditioning": False,
    "decoder_base_channels": 128,
    "encoder_blocks": ENCODER_BLOCKS,
    "decoder_blocks": DECODER_BLOCKS,
    "spatial_padding_mode": "zeros",
}
CONNECTORS = {
    "connector_num_attention_heads": 32,
    "connector_attention_head_dim": 128,
    "audio_connector_num_attention_heads": 32,
    "audio_connector_attention_head_dim": 64,
    "connector_num_layers": 8,
    "connector_positional_embedding_max_pos": [4096],
    "connector_apply_gated_attention": True,
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_proj_input_norm": False,
    "caption_projection_second_linear": False,
}
FIRST = GeneratorConfig(
    initial_channels=1536,
    rates=(5, 2, 2, 2, 2, 2),
    kernels=(11, 4, 4, 4, 4, 4),
    activation="snakebeta",
    final="clamp",
    final_bias=False,
)
SECOND = GeneratorConfig(
    initial_channels=512,
    rates=(6, 5, 2, 2, 2),
    kernels=(12, 11, 4, 4, 4),
    activation="snakebeta",
    final="none",
    final_bias=False,
)


def _shapes(prefix: str, module: nn.Module) -> Shapes:
    return {prefix + k: tuple(v.shape) for k, v in module.state_dict().items()}


def _connector(heads: int, head_dim: int) -> nn.Module:
    return on_meta(
        lambda: Connector(
            ConnectorConfig(
                heads=heads, head_dim=head_dim, blocks=8, registers=128, gated=True, ff_bias=True,
                max_pos=(4096.0,), rope_type="split", frequencies_precision="float64",
            )
        )
    )  # fmt: skip


def checkpoint_shapes() -> Shapes:
    """Names and shapes of a single-file LTX-2.3 checkpoint."""
    encoder = VideoEncoderConfig.from_checkpoint(VAE, _Vae())
    decoder = VideoDecoderConfig.from_checkpoint(VAE, _Vae())
    vocoder = VocoderConfig(
        generator=FIRST, bwe=BweConfig(generator=SECOND), output_sampling_rate=48000
    )
    width = 3840 * 49
    model = "model.diffusion_model."
    shapes: Shapes = {model + n: e.shape for n, e in tensor_list(LTX23).items()}
    for name, module in (
        (f"{model}video_embeddings_connector.", _connector(32, 128)),
        (f"{model}audio_embeddings_connector.", _connector(32, 64)),
        (
            "text_embedding_projection.",
            on_meta(lambda: FeatureExtractorV2(width, 4096, 2048, bias=True)),
        ),
        ("vae.", on_meta(lambda: VideoEncoder(encoder))),
        ("vae.", on_meta(lambda: VideoDecoder(decoder))),
        ("audio_vae.", on_meta(lambda: AudioEncoder(AudioVaeConfig()))),
        ("audio_vae.", on_meta(lambda: AudioDecoder(AudioVaeConfig()))),
        ("vocoder.", on_meta(lambda: BweVocoder(vocoder))),
    ):
        shapes |= _shapes(name, module)
    return shapes


class _Vae(dict[str, Any]):
    """The few tensors that tell the sizes of the video VAE; the rest follows from `VAE`."""

    def __init__(self) -> None:
        from ltx2rt.safetensors import TensorEntry

        sizes: Shapes = {
            "encoder.conv_in.conv.weight": (128, 48, 3, 3, 3),
            "encoder.conv_out.conv.weight": (129, 1024, 3, 3, 3),
            "decoder.conv_in.conv.weight": (1024, 128, 3, 3, 3),
            "decoder.conv_out.conv.weight": (48, 128, 3, 3, 3),
            "per_channel_statistics.mean-of-means": (128,),
        }
        super().__init__(
            {n: TensorEntry(Path("absent"), n, "bfloat16", s, 0, 0) for n, s in sizes.items()}
        )


def _vocoder_config() -> dict[str, Any]:
    def generator(config: GeneratorConfig) -> dict[str, Any]:
        return {
            "upsample_initial_channel": config.initial_channels,
            "upsample_rates": list(config.rates),
            "upsample_kernel_sizes": list(config.kernels),
            "resblock": "AMP1",
            "resblock_kernel_sizes": [3, 7, 11],
            "resblock_dilation_sizes": [[1, 3, 5]] * 3,
            "stereo": True,
            "use_tanh_at_final": False,
            "activation": "snakebeta",
            "use_bias_at_final": False,
        }

    bwe = {
        "apply_final_activation": False,
        "input_sampling_rate": 16000,
        "output_sampling_rate": 48000,
        "hop_length": 80,
        "n_fft": 512,
        "win_size": 512,
        "num_mels": 64,
    }
    return {"vocoder": generator(FIRST), "bwe": generator(SECOND) | bwe}


def _transformer_config() -> dict[str, Any]:
    return {
        "num_layers": LTX23.num_layers,
        "num_attention_heads": LTX23.heads,
        "audio_num_attention_heads": LTX23.heads,
        "attention_head_dim": 128,
        "audio_attention_head_dim": 64,
        "rope_type": LTX23.rope_type,
        "frequencies_precision": LTX23.frequencies_precision,
        "positional_embedding_max_pos": [20, 2048, 2048],
        "audio_positional_embedding_max_pos": [20],
        "av_ca_timestep_scale_multiplier": LTX23.cross_timestep_scale,
        "apply_gated_attention": True,
        "cross_attention_adaln": True,
        **CONNECTORS,
    }


def write_sparse(
    path: Path, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]
) -> None:
    """Write a bfloat16 safetensors file whose data is one hole."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)


def write_sparse_model(folder: Path) -> dict[str, Path]:
    """Write checkpoint, Gemma folder, spatial and temporal upsampler; paths as `open_model`'s."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {
        "checkpoint": folder / "ltx-2.3-22b-dev.safetensors",
        "gemma": folder / "gemma-3-12b-it",
        "spatial_upsampler": folder / "ltx-2.3-spatial-upscaler-x2.safetensors",
        "temporal_upsampler": folder / "ltx-2.3-temporal-upscaler-x2.safetensors",
    }
    config = {
        "transformer": _transformer_config(),
        "vae": VAE,
        "vocoder": _vocoder_config(),
    }
    metadata = {"config": json.dumps(config), "model_version": "2.3.0"}
    write_sparse(paths["checkpoint"], checkpoint_shapes(), metadata)
    paths["gemma"].mkdir(exist_ok=True)
    gemma = on_meta(lambda: GemmaEncoder(GEMMA))
    write_sparse(paths["gemma"] / "model.safetensors", _shapes("language_model.model.", gemma), {})
    demo = write_demo_model(folder / "demo")["gemma"]  # for its small files: a tokenizer
    for file in demo.glob("*.json"):
        if not file.name.endswith("index.json"):
            shutil.copyfile(file, paths["gemma"] / file.name)
    (paths["gemma"] / "config.json").write_text(json.dumps(GEMMA))
    shutil.rmtree(folder / "demo")
    kinds = {
        "spatial_upsampler": UpsamplerConfig(kind="spatial", scale=(2, 1)),
        "temporal_upsampler": UpsamplerConfig(kind="temporal", scale=(1, 1), mid_channels=512),
    }
    for name, parsed in kinds.items():
        module = on_meta(lambda parsed=parsed: LatentUpsampler(parsed, raw=True))
        settings = {
            "mid_channels": parsed.mid_channels,
            "spatial_upsample": parsed.kind == "spatial",
            "temporal_upsample": parsed.kind == "temporal",
        }
        write_sparse(paths[name], _shapes("", module), {"config": json.dumps(settings)})
    return paths


if __name__ == "__main__":
    for role, place in write_sparse_model(Path(sys.argv[1])).items():
        print(f"--{role.replace('_', '-')} {place}")
