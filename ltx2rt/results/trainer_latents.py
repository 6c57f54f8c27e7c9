"""Latents that musubi-tuner keeps for training, as those of a first stage.

`X_ltx2.safetensors` holds `latents_FxHxW_DTYPE`, `[C, F, H, W]`; the sound, if there is one, lies
beside it in `X_ltx2_audio.safetensors` as `audio_latents_TxMELxC_DTYPE`, `[C, T, mel]`. Both are
what the official encoders give: normalised.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ltx2rt.config import GenerationConfig
from ltx2rt.errors import CheckpointError
from ltx2rt.latents.shapes import VIDEO_SCALE_FACTORS
from ltx2rt.pipelines.request import Request
from ltx2rt.results.record import Record
from ltx2rt.weights.safetensors import SafetensorsFile, TensorEntry

#: a pipeline whose first stage they may be
_PIPELINE = "distilled"
_DTYPES = ("float32", "float16", "bfloat16")
_VIDEO = re.compile(r"latents_(\d+)x(\d+)x(\d+)_\w+")
_AUDIO = re.compile(r"audio_latents_(\d+)x(\d+)x(\d+)_\w+")
_ENDING = "_ltx2.safetensors"


def trainer_latents(file: SafetensorsFile) -> Mapping[str, TensorEntry] | None:
    """`stage_1.video`, and `stage_1.audio` where the sound is beside it; None for other files.

    Raises:
        CheckpointError: a tensor is not what its name says.
    """
    video = _named(file, _VIDEO)
    if video is None:
        return None
    found = {"stage_1.video": video}
    beside = file.path.with_name(file.path.name.replace(_ENDING, "_ltx2_audio.safetensors"))
    if file.path.name.endswith(_ENDING) and beside.is_file():
        audio = _named(SafetensorsFile(beside), _AUDIO)
        if audio is None:
            raise CheckpointError(f"{beside} holds no audio_latents_*: cache it again.")
        found["stage_1.audio"] = audio
    return found


def record_of(tensors: Mapping[str, TensorEntry]) -> Record:
    """The request whose first stage they may be: of twice their size; nothing says its prompt,
    seed and frame rate.
    """
    _, frames, rows, columns = tensors["stage_1.video"].shape
    factors = VIDEO_SCALE_FACTORS
    config = GenerationConfig(
        prompt="",
        height=2 * rows * factors.height,
        width=2 * columns * factors.width,
        num_frames=(frames - 1) * factors.time + 1,
    )
    return Record(pipeline=_PIPELINE, request=Request(config=config))


def _named(file: SafetensorsFile, pattern: re.Pattern[str]) -> TensorEntry | None:
    """The tensor of that name, which says the last three of its four or three sizes."""
    for name, entry in file.items():
        match = pattern.fullmatch(name)
        if match is None:
            continue
        sizes = tuple(int(n) for n in match.groups())
        if pattern is _AUDIO:
            time, mel, channels = sizes
            fits = entry.shape == (channels, time, mel)
        else:
            fits = entry.shape[1:] == sizes
        if not fits or entry.dtype not in _DTYPES:
            raise CheckpointError(
                f"{file.path} is damaged: {name} is {entry.dtype} {list(entry.shape)}."
            )
        return entry
    return None
