"""What a diffusers model says about itself (`config.json`) in the words of official metadata.

Values that diffusers may set and official files have no word for are checked: those of the
released models pass, others are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ltx2rt.errors import UnsupportedError
from ltx2rt_export.layouts.diffusers_joined import decoder_config, head_config
from ltx2rt_export.modules.text_projection_config import V2_KEYS

Config = Mapping[str, Any]

#: diffusers' class -> the part that it is
CLASSES: dict[str, str] = {
    "LTX2VideoTransformer3DModel": "transformer",
    "LTX2TextConnectors": "connectors",
    "AutoencoderKLLTX2Video": "video_vae",
    "AutoencoderKLLTX2Audio": "audio_vae",
    "LTX2Vocoder": "vocoder",
    "LTX2VocoderWithBWE": "vocoder",
    "LTX2LatentUpsamplerModel": "upsampler",
    "LTX2VideoDiffusionDecoderModel": "diffusion_decoder",
    "LTX2DurationHead": "duration_head",
}
_FIXED: dict[str, dict[str, Any]] = {
    "transformer": {
        "patch_size": 1,
        "patch_size_t": 1,
        "vae_scale_factors": [8, 32, 32],
        "audio_patch_size": 1,
        "audio_patch_size_t": 1,
        "audio_scale_factor": 4,
        "audio_sampling_rate": 16000,
        "audio_hop_length": 160,
        "causal_offset": 1,
        "qk_norm": "rms_norm_across_heads",
        "attention_out_bias": True,
    },
    "connectors": {"rope_theta": 10000.0},
    "video_vae": {"patch_size_t": 1, "encoder_causal": True, "decoder_causal": False},
    "audio_vae": {"is_causal": True},
}
_SAME = (
    "num_attention_heads", "attention_head_dim", "cross_attention_dim", "in_channels",
    "out_channels", "num_layers", "activation_fn", "norm_elementwise_affine", "norm_eps",
    "caption_channels", "attention_bias", "timestep_scale_multiplier", "rope_type",
    "audio_num_attention_heads", "audio_attention_head_dim", "audio_cross_attention_dim",
    "audio_out_channels",
)  # fmt: skip
_STRIDES = {"spatial": "space", "temporal": "time", "spatiotemporal": "all"}


def official_config(part: str, config: Config) -> dict[str, Any]:
    """The object of a part as official metadata has it; {} where nothing is said.

    Raises:
        UnsupportedError: values that no released model has; all are listed.
    """
    if not config:
        return {}
    problems = [
        f"{key}={config[key]!r}, expected {value!r}"
        for key, value in _FIXED.get(part, {}).items()
        if key in config and _plain(config[key]) != value
    ]
    if problems:
        raise UnsupportedError(f"this {part.replace('_', ' ')} is not supported", problems)
    return _READERS[part](config)


def _transformer(config: Config) -> dict[str, Any]:
    sizes = [config.get("pos_embed_max_pos", 20), config.get("base_height", 2048)]
    return {
        **{key: config[key] for key in _SAME if key in config},
        "positional_embedding_max_pos": [*sizes, config.get("base_width", 2048)],
        "audio_positional_embedding_max_pos": [config.get("audio_pos_embed_max_pos", 20)],
        "positional_embedding_theta": config.get("rope_theta", 10000.0),
        "av_ca_timestep_scale_multiplier": config.get("cross_attn_timestep_scale_multiplier", 1000),
        **_rope(config),
    }


def _rope(config: Config) -> dict[str, Any]:
    double = config.get("rope_double_precision", True)
    return {
        "rope_type": config.get("rope_type", "interleaved"),
        "frequencies_precision": "float64" if double else "float32",
    }


def _connectors(config: Config) -> dict[str, Any]:
    """Keys of the `transformer` object, which in official files holds the connectors' too."""
    found: dict[str, Any] = {
        f"{theirs}connector_{key}": config[f"{ours}_connector_{key}"]
        for ours, theirs in (("video", ""), ("audio", "audio_"))
        for key in ("num_attention_heads", "attention_head_dim", "num_layers")
        if f"{ours}_connector_{key}" in config
    }
    found["connector_positional_embedding_max_pos"] = [
        config.get("connector_rope_base_seq_len", 4096)
    ]
    return found | _rope(config) | (V2_KEYS if config.get("per_modality_projections") else {})


def _video_vae(config: Config) -> dict[str, Any]:
    encoder, decoder = (
        config.get(f"{side}_spatial_padding_mode", default)
        for side, default in (("encoder", "zeros"), ("decoder", "reflect"))
    )
    padding = {"spatial_padding_mode": decoder} if encoder == decoder else {}
    if encoder != decoder and decoder != "reflect":
        raise UnsupportedError(
            f"this video VAE is not supported: encoder_spatial_padding_mode={encoder!r} with "
            f"decoder_spatial_padding_mode={decoder!r}, expected the same, or 'reflect' there."
        )
    return {
        "_class_name": "CausalVideoAutoencoder",
        **{
            key: config[key]
            for key in ("latent_channels", "in_channels", "out_channels", "patch_size")
            if key in config
        },
        "timestep_conditioning": config.get("timestep_conditioning", False),
        "encoder_spatial_padding_mode": encoder,
        **padding,
        "encoder_blocks": _encoder_blocks(config),
        "decoder_blocks": _decoder_blocks(config),
    }


def _encoder_blocks(config: Config) -> list[Any]:
    layers, kinds = config["layers_per_block"], config["downsample_type"]
    widths = [config["latent_channels"], *config["block_out_channels"]]
    blocks: list[Any] = [["res_x", {"num_layers": layers[0]}]]
    for i, kind in enumerate(kinds):
        multiplier = widths[i + 1] // widths[i]
        blocks.append([f"compress_{_STRIDES[kind]}_res", {"multiplier": multiplier}])
        blocks.append(["res_x", {"num_layers": layers[i + 1]}])
    return blocks


def _decoder_blocks(config: Config) -> list[Any]:
    """In the encoder's order, as official files list them; only kinds are in running order here."""
    layers, noise = config["decoder_layers_per_block"], config["decoder_inject_noise"]
    factors, residual = config["upsample_factor"], config["upsample_residual"]
    kinds = list(config["upsample_type"])[::-1]

    def res(i: int) -> list[Any]:
        noisy = noise[i] if isinstance(noise, list | tuple) else noise
        return ["res_x", {"num_layers": layers[i], "inject_noise": bool(noisy)}]

    blocks = [res(0)]
    for i, kind in enumerate(kinds):
        keep = residual[i] if isinstance(residual, list | tuple) else residual
        options = {"multiplier": factors[i], "residual": bool(keep)}
        blocks += [[f"compress_{_STRIDES[kind]}", options], res(i + 1)]
    return blocks


def _audio_vae(config: Config) -> dict[str, Any]:
    names = {
        "base_channels": "ch", "ch_mult": "ch_mult", "num_res_blocks": "num_res_blocks",
        "in_channels": "in_channels", "output_channels": "out_ch", "latent_channels": "z_channels",
        "mel_bins": "mel_bins", "resolution": "resolution", "attn_resolutions": "attn_resolutions",
        "norm_type": "norm_type", "causality_axis": "causality_axis", "double_z": "double_z",
        "mid_block_add_attention": "mid_block_add_attention",
    }  # fmt: skip
    ddconfig = {official: config[own] for own, official in names.items() if own in config}
    rate, hop = config.get("sample_rate", 16000), config.get("mel_hop_length", 160)
    return {
        "model": {"params": {"ddconfig": ddconfig, "sampling_rate": rate}},
        "preprocessing": {"audio": {"sampling_rate": rate}, "stft": {"hop_length": hop}},
    }


def _vocoder(config: Config) -> dict[str, Any]:
    first = _generator(config, "")
    if "bwe_hidden_channels" not in config:
        return first | {"output_sampling_rate": config.get("output_sampling_rate", 24000)}
    second = _generator(config, "bwe_") | {
        "hop_length": config.get("hop_length", 80),
        "n_fft": config.get("filter_length", 512),
        "num_mels": config.get("num_mel_channels", 64),
        "input_sampling_rate": config.get("input_sampling_rate", 16000),
        "output_sampling_rate": config.get("output_sampling_rate", 48000),
    }
    return {"vocoder": first, "bwe": second}


def _generator(config: Config, prefix: str) -> dict[str, Any]:
    names = {
        "hidden_channels": "upsample_initial_channel", "upsample_factors": "upsample_rates",
        "upsample_kernel_sizes": "upsample_kernel_sizes",
        "resnet_kernel_sizes": "resblock_kernel_sizes",
        "resnet_dilations": "resblock_dilation_sizes", "final_bias": "use_bias_at_final",
    }  # fmt: skip
    found = {o: config[prefix + own] for own, o in names.items() if prefix + own in config}
    activation = config.get(f"{prefix}act_fn", "leaky_relu")
    if activation != "leaky_relu":
        found["activation"] = activation
    found["resblock"] = "1" if activation == "leaky_relu" else "AMP1"
    return found | {"use_tanh_at_final": config.get(f"{prefix}final_act_fn", "tanh") == "tanh"}


def _upsampler(config: Config) -> dict[str, Any]:
    rational = config.get("use_rational_resampler", False)
    same = ("in_channels", "mid_channels", "num_blocks_per_stage", "dims", "spatial_upsample",
            "temporal_upsample")  # fmt: skip
    return {
        **{key: config[key] for key in same if key in config},
        "spatial_scale": config.get("rational_spatial_scale", 2.0),
        "rational_resampler": rational,
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


_READERS: dict[str, Callable[[Config], dict[str, Any]]] = {
    "transformer": _transformer,
    "connectors": _connectors,
    "video_vae": _video_vae,
    "audio_vae": _audio_vae,
    "vocoder": _vocoder,
    "upsampler": _upsampler,
    "diffusion_decoder": decoder_config,
    "duration_head": head_config,
}
