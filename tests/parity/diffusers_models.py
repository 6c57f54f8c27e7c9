"""The demo model as diffusers saves it: its own modules, filled with the demo's weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import nn

from ltx2rt.weights.safetensors import MappedFiles
from ltx2rt_export.checkpoint import ModelFiles
from ltx2rt_export.layouts.diffusers_names import official_names

HEADS, HEAD_DIM, AUDIO_HEAD_DIM = 4, 16, 8


def modules(model: ModelFiles) -> dict[str, tuple[str, nn.Module]]:
    """Folder of a pipeline -> the part that it is, and diffusers' module with the demo's sizes."""
    from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video
    from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel
    from diffusers.pipelines.ltx2 import LTX2TextConnectors
    from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE

    gemma = model.gemma
    assert gemma is not None
    heads = {
        f"{stream}_connector_{key}": value
        for stream, head_dim in (("video", HEAD_DIM), ("audio", AUDIO_HEAD_DIM))
        for key, value in (("num_attention_heads", HEADS), ("attention_head_dim", head_dim))
    }
    config = model.config("audio_vae")["model"]["params"]["ddconfig"]
    return {
        "transformer": ("transformer", LTX2VideoTransformer3DModel(
            num_attention_heads=HEADS, attention_head_dim=HEAD_DIM, cross_attention_dim=64,
            audio_num_attention_heads=HEADS, audio_attention_head_dim=AUDIO_HEAD_DIM,
            audio_cross_attention_dim=32, gated_attn=True, cross_attn_mod=True,
            audio_gated_attn=True, audio_cross_attn_mod=True, num_layers=3, rope_type="split",
            caption_channels=gemma.hidden_size, use_prompt_embeddings=False,
        )),
        "connectors": ("connectors", LTX2TextConnectors(
            caption_channels=gemma.hidden_size, text_proj_in_factor=gemma.num_layers + 1,
            video_gated_attn=True, audio_gated_attn=True, rope_type="split",
            per_modality_projections=True, video_hidden_dim=64, audio_hidden_dim=32,
            proj_bias=True, **heads,
        )),
        "vae": ("video_vae", AutoencoderKLLTX2Video(
            block_out_channels=(128, 128, 128, 128), layers_per_block=(1,) * 5,
            decoder_block_out_channels=(8, 16, 16, 32), decoder_layers_per_block=(1,) * 5,
            decoder_spatio_temporal_scaling=(True,) * 4, decoder_inject_noise=(False,) * 5,
            upsample_type=("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
            upsample_residual=(False,) * 4, upsample_factor=(2, 2, 1, 2), decoder_causal=False,
            decoder_spatial_padding_mode="zeros",
        )),
        "audio_vae": ("audio_vae", AutoencoderKLLTX2Audio(
            base_channels=config["ch"], ch_mult=tuple(config["ch_mult"]),
            num_res_blocks=config["num_res_blocks"],
        )),
        "vocoder": ("vocoder", LTX2VocoderWithBWE(
            hidden_channels=64, bwe_hidden_channels=32, final_act_fn="clamp",
        )),
    }  # fmt: skip


def write_folder(model: ModelFiles, folder: Path) -> Path:
    """Fill the modules (every name must fit) and save them as a pipeline's folder.

    The VAE keeps random weights: the demo's encoder has blocks that diffusers cannot number.
    """
    import diffusers

    torch.manual_seed(0)
    files = MappedFiles()
    assert model.gemma is not None
    own = {name: e for weights in model.files.values() for name, e in weights.items()}
    for name, (part, module) in modules(model).items():
        state = module.state_dict()
        if part != "video_vae":
            spelled = official_names(part, state)
            values = {
                theirs: torch.from_numpy(files.load(own[official], "float32").copy())
                for theirs, official in spelled.items()
            }
            module.load_state_dict(
                {n: v.reshape(state[n].shape) for n, v in values.items()}, strict=False
            )
        size = "200KB" if name == "transformer" else "50GB"
        module.save_pretrained(folder / name, max_shard_size=size)
    (folder / "model_index.json").write_text(
        f'{{"_class_name": "LTX2Pipeline", "_diffusers_version": "{diffusers.__version__}"}}'
    )
    shutil.copytree(model.gemma.path, folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    (folder / "text_encoder/tokenizer.json").rename(folder / "tokenizer/tokenizer.json")
    return folder
