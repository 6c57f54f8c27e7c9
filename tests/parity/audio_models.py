"""Tiny random audio models in the official layout, written to files, for parity tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn

from ltx2rt.weights.safetensors import SafetensorsFile
from ltx2rt_export.demo.audio import low_pass_taps
from ltx2rt_export.modules.meta import on_meta

GENERATOR = {
    "upsample_initial_channel": 8,
    "upsample_rates": [5, 2],
    "upsample_kernel_sizes": [11, 4],
    "resblock_kernel_sizes": [3, 7],
    "resblock_dilation_sizes": [[1, 3], [1, 5]],
    "resblock": "1",
    "stereo": True,
}
BIGVGAN = GENERATOR | {
    "resblock": "AMP1",
    "activation": "snakebeta",
    "use_tanh_at_final": False,
    "use_bias_at_final": False,
}
BWE: dict[str, Any] = {
    "vocoder": BIGVGAN,
    "bwe": BIGVGAN
    | {
        "upsample_rates": [5, 3],
        "upsample_kernel_sizes": [11, 5],
        "apply_final_activation": False,
        "input_sampling_rate": 16000,
        "output_sampling_rate": 48000,
        "hop_length": 5,
        "n_fft": 16,
        "win_size": 16,
        "num_mels": 4,
    },
}


def random_tensors(path: Path, make: Callable[[], nn.Module], seed: int) -> SafetensorsFile:
    """A file with random values for every tensor of a module, scaled to keep activations near 1."""
    rng = np.random.default_rng(seed)
    state: dict[str, np.ndarray] = {}
    for name, weight in on_meta(make).state_dict().items():
        shape = tuple(weight.shape)
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 4
        value = rng.standard_normal(shape) / np.sqrt(max(fan_in, 1))
        if name.endswith(".filter"):
            value = np.broadcast_to(low_pass_taps(), shape)
        elif name.endswith(("std-of-means", "mel_basis")):
            value = 0.5 + np.abs(value)
        state[name] = np.ascontiguousarray(value, dtype=np.float32)
    save_file(state, path)
    return SafetensorsFile(path)


def loaded(file: SafetensorsFile) -> dict[str, torch.Tensor]:
    """The values of a file, for other implementations."""
    from safetensors.torch import load_file

    return load_file(file.path)
