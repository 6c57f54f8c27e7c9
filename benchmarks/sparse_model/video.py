"""Video VAEs of released models (spec/video_vae.md §1.2, spec/diffusion_decoder.md §1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.sparse_model.files import Shapes, shapes_of
from ltx2rt.weights.safetensors import TensorEntry
from ltx2rt_export.modules.diffusion_decoder import Context, Features, Pixels
from ltx2rt_export.modules.diffusion_decoder_config import DiffusionDecoderConfig, Stage
from ltx2rt_export.modules.meta import on_meta
from ltx2rt_export.modules.video_vae import VideoDecoder, VideoEncoder
from ltx2rt_export.modules.video_vae_config import VideoDecoderConfig, VideoEncoderConfig


def _vae(encoder: list[Any], decoder: list[Any], padding: str) -> dict[str, Any]:
    return {
        "_class_name": "CausalVideoAutoencoder",
        "latent_channels": 128,
        "patch_size": 4,
        "norm_layer": "pixel_norm",
        "causal_decoder": False,
        "timestep_conditioning": False,
        "decoder_base_channels": 128,
        "encoder_blocks": encoder,
        "decoder_blocks": decoder,
        "spatial_padding_mode": padding,
    }


def _res(layers: int) -> list[Any]:
    return ["res_x", {"num_layers": layers}]


def _step(name: str, multiplier: int, **facts: Any) -> list[Any]:
    return [f"compress_{name}", {"multiplier": multiplier, **facts}]


#: LTX-2: its decoder pads by reflection, the encoder with zeros
VAE_2 = _vae(
    [
        _res(4), _step("space_res", 2), _res(6), _step("time_res", 2), _res(6),
        _step("all_res", 2), _res(2), _step("all_res", 2), _res(2),
    ],
    [
        _res(5), _step("all", 2, residual=True), _res(5), _step("all", 2, residual=True), _res(5),
        _step("all", 2, residual=True), _res(5),
    ],
    "reflect",
)  # fmt: skip
#: LTX-2.3, and the convolutional one of LTX-2.5
VAE_23 = _vae(
    [
        _res(4), _step("space_res", 2), _res(6), _step("time_res", 2), _res(4),
        _step("all_res", 2), _res(2), _step("all_res", 1), _res(2),
    ],
    [
        _res(4), _step("space", 2), _res(6), _step("time", 2), _res(4), _step("all", 1), _res(2),
        _step("all", 2), _res(2),
    ],
    "zeros",
)  # fmt: skip

_KERNELS = ((3, 7, 7), (3, 7, 7), (3, 5, 5), (3, 5, 5))
_CHANNELS = (2048, 1024, 512, 512, 256)
_DEPTHS = (4, 6, 4, 2, 8)
_UPSAMPLES = (((1, 2, 2), 2), ((2, 1, 1), 2), ((2, 2, 2), 1), ((2, 2, 2), 2))
_LAST_KERNEL = (11, 11, 11)

#: LTX-2.5 as shipped: the encoder of LTX-2.3, a decoder by diffusion
VAE_25 = {
    "_class_name": "CausalDiffusionVAE",
    "model_output_type": "x0",
    "encoder": {
        "dims": 3,
        "in_channels": 3,
        "out_channels": 128,
        "patch_size": 4,
        "norm_layer": "pixel_norm",
        "latent_log_var": "constant",
        "spatial_padding_mode": "zeros",
        "blocks": VAE_23["encoder_blocks"],
    },
    "decoder": {
        "_class_name": "NADiffusionDecoder",
        "in_channels": 128,
        "out_channels": 3,
        "patch_size": 4,
        "head_dim": 64,
        "stage_channels": list(_CHANNELS),
        "stage_depths": list(_DEPTHS),
        "stage_kernels": [*map(list, _KERNELS), list(_LAST_KERNEL)],
        "upsamples": [[list(stride), factor] for stride, factor in _UPSAMPLES],
        "stage5_kernel": list(_LAST_KERNEL),
        "t_emb_dim": 384,
        "timestep_scale_multiplier": 1000.0,
        "default_num_inference_steps": 1,
    },
}


class _Ends(dict[str, Any]):
    """The few tensors that tell the widths of a video VAE; the rest follows from its blocks."""

    def __init__(self, last_width: int) -> None:
        sizes: Shapes = {
            "encoder.conv_in.conv.weight": (128, 48, 3, 3, 3),
            "encoder.conv_out.conv.weight": (129, last_width, 3, 3, 3),
            "decoder.conv_in.conv.weight": (1024, 128, 3, 3, 3),
            "decoder.conv_out.conv.weight": (48, 128, 3, 3, 3),
            "per_channel_statistics.mean-of-means": (128,),
        }
        super().__init__(
            {n: TensorEntry(Path("absent"), n, "bfloat16", s, 0, 0) for n, s in sizes.items()}
        )


def video_encoder(vae: dict[str, Any]) -> Shapes:
    """Tensors of a video encoder."""
    ends = _Ends(2048 if vae is VAE_2 else 1024)
    return shapes_of(
        "vae.", on_meta(lambda: VideoEncoder(VideoEncoderConfig.from_checkpoint(vae, ends)))
    )


def video_decoder(vae: dict[str, Any]) -> Shapes:
    """Tensors of a convolutional video decoder."""
    ends = _Ends(1024)
    return shapes_of(
        "vae.", on_meta(lambda: VideoDecoder(VideoDecoderConfig.from_checkpoint(vae, ends)))
    )


def diffusion_decoder() -> Shapes:
    """Tensors of the diffusion decoder of LTX-2.5, with the one that no version of it reads."""
    stages = [
        Stage(channels=c, depth=d, kernel=k, stride=s, out_channels=after)
        for c, d, k, (s, _), after in zip(
            _CHANNELS[:-1], _DEPTHS[:-1], _KERNELS, _UPSAMPLES, _CHANNELS[1:], strict=True
        )
    ]
    config = DiffusionDecoderConfig(
        stages=tuple(stages),
        pixels=Stage(channels=_CHANNELS[-1], depth=_DEPTHS[-1], kernel=_LAST_KERNEL),
        latent_channels=128,
        out_channels=3,
        patch_size=4,
        head_dim=64,
        time_width=384,
        frequencies=256,
        timestep_scale=1000.0,
        steps=1,
        prediction="x0",
        gated=False,
    )
    shapes: Shapes = {"vae.decoder.type_emb": (128,)}
    for part in (Features, Context, Pixels):
        shapes |= shapes_of("vae.", on_meta(lambda part=part: part(config)))
    return shapes
