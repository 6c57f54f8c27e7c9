"""A tiny random model in the official file formats: to try everything without a download.

Nothing in it was trained; the decoder is shaped so that clips show soft moving colours.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from ltx2rt.weights.safetensors_writer import write_safetensors
from ltx2rt_export.demo import audio, gemma, video_vae
from ltx2rt_export.demo.random_weights import RandomWeights
from ltx2rt_export.demo.transformer import DemoTransformer

_SCHEDULER = {
    "_class_name": "RectifiedFlowScheduler",
    "_diffusers_version": "0.25.1",
    "num_train_timesteps": 1000,
    "shifting": None,
    "base_resolution": None,
    "sampler": "LinearQuadratic",
}


def write_demo_model(directory: str | os.PathLike[str], seed: int = 0) -> dict[str, Path]:
    """Write the demo model, about 17 MB.

    Returns:
        `checkpoint` (an LTX-2.3 single file), `gemma` (a directory), `spatial_upsampler`: paths as
        `open_model` takes them.

    Raises:
        CheckpointError: the directory cannot be written.
    """
    root = Path(directory)
    root.mkdir(parents=True, exist_ok=True)
    paths = {
        "checkpoint": root / "ltx-2.3-demo-distilled.safetensors",
        "gemma": root / "gemma-3-demo",
        "spatial_upsampler": root / "ltx-2.3-demo-spatial-upscaler-x2.safetensors",
    }
    gemma.write_gemma(paths["gemma"], seed)
    transformer = DemoTransformer()
    weights = RandomWeights(seed)
    transformer.write(weights, gemma.HIDDEN_SIZE * (gemma.NUM_LAYERS + 1))
    video_vae.write_video_vae(weights)
    audio.write_audio_vae(weights)
    audio.write_vocoder(weights)
    config = {
        "transformer": transformer.config(gemma.HIDDEN_SIZE),
        "vae": video_vae.CONFIG,
        "scheduler": _SCHEDULER,
        "audio_vae": audio.AUDIO_VAE_CONFIG,
        "vocoder": audio.VOCODER_CONFIG,
    }
    metadata = {"config": json.dumps(config), "model_version": "2.3.0"}
    write_safetensors(paths["checkpoint"], weights.tensors, metadata)
    upsampler = RandomWeights(seed)
    video_vae.write_spatial_upsampler(upsampler)
    metadata = {"config": json.dumps(video_vae.UPSAMPLER_CONFIG)}
    write_safetensors(paths["spatial_upsampler"], upsampler.tensors, metadata)
    return paths
