"""The golden cases' arguments as the `Inputs` of the pipelines that take some."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame

from ltx2rt.components.reference_conditioner import ReferenceFile
from ltx2rt.engine import Array
from ltx2rt.lora.files import Lora
from ltx2rt.pipelines.base import Pipeline
from ltx2rt.pipelines.dfr import DFRInputs
from ltx2rt.pipelines.hdr_ic_lora import HDRICLoraInputs
from ltx2rt.pipelines.ic_lora import ICLoraInputs
from ltx2rt.weights.safetensors import SafetensorsFile
from tests.parity.golden import Runner, read_arrays

#: official argument -> field of our `Inputs`, where they mean the same
FIELDS = {
    "video_path": "video",
    "start_time": "start_time",
    "end_time": "end_time",
    "regenerate_video": "regenerate_video",
    "regenerate_audio": "regenerate_audio",
    "reference_video_path": "reference_video",
    "reference_strength": "reference_strength",
}
#: those of them that name a file of `inputs/`
FILES = {"video_path", "reference_video_path"}
#: official arguments about sound that exists -> field of our `GenerationConfig`
SOUND = {
    "audio_path": "audio",
    "audio_start_time": "audio_start_time",
    "audio_max_duration": "audio_max_duration",
}


def sound_fields(case: Mapping[str, Any], runner: Runner) -> dict[str, Any]:
    """Fields of the configuration of a case that names sound."""
    found = {field: case["call"][name] for name, field in SOUND.items() if name in case["call"]}
    if "audio" in found:
        found["audio"] = runner.root / "pipelines" / "inputs" / found["audio"]
    return found


def own_inputs(pipeline: type[Pipeline], case: Mapping[str, Any], runner: Runner) -> Any:
    """The `Inputs` of a case; None for a pipeline without."""
    if pipeline.Inputs is None:
        return None
    if make := OWN_INPUTS.get(case["pipeline"]):
        return make(case, runner)
    folder, call = runner.root / "pipelines" / "inputs", case["call"]
    values = {
        field: folder / call[name] if name in FILES else call[name]
        for name, field in FIELDS.items()
        if name in call
    }
    return pipeline.Inputs(**values)


def _references(case: Mapping[str, Any], runner: Runner) -> tuple[ReferenceFile, ...]:
    folder = runner.root / "pipelines" / "inputs"
    given = case["call"]["video_conditioning"]
    return tuple(ReferenceFile(path=folder / name, strength=strength) for name, strength in given)


def _ic_lora(case: Mapping[str, Any], runner: Runner) -> ICLoraInputs:
    call = case["call"]
    mask = None
    if call.get("attn_mask"):
        stored = runner.root / "pipelines" / f"{case['name']}.safetensors"
        values = read_arrays(SafetensorsFile(stored))["attention_mask_u8"][0, 0]
        mask = write_lossless(Path(tempfile.mkdtemp()) / "mask.mkv", values)
    return ICLoraInputs(
        references=_references(case, runner),
        attention_strength=call["conditioning_attention_strength"],
        attention_mask=mask,
        skip_stage_2=call.get("skip_stage_2", False),
    )


def _dfr(case: Mapping[str, Any], runner: Runner) -> DFRInputs:
    detailing = None
    if case["call"].get("detailing"):
        name, strength = case["stages"][1]["loras"][-1]
        detailing = Lora(path=str(runner.checkpoint(name)), strength=strength)
    return DFRInputs(
        temporal_upsample_rounds=case["call"]["temporal_upsample_rounds"], detailing_lora=detailing
    )


def _hdr_ic_lora(case: Mapping[str, Any], runner: Runner) -> HDRICLoraInputs:
    return HDRICLoraInputs(references=_references(case, runner))


def write_lossless(path: Path, frames: Array) -> Path:
    """Grey frames `[n, H, W]` uint8 as a video that gives back every value."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "bgr0"
        for frame in frames:
            rgb = np.repeat(frame[..., None], 3, axis=-1)
            picture = VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="bgr0")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


#: official class -> what makes our inputs
OWN_INPUTS = {"DFRPipeline": _dfr, "HDRICLoraPipeline": _hdr_ic_lora, "ICLoraPipeline": _ic_lora}

#: arguments of the golden files that become `Inputs`
KNOWN_INPUTS = frozenset(
    {
        "video_conditioning",
        "conditioning_attention_strength",
        "attn_mask",
        "skip_stage_2",
        "detailing",
        "temporal_upsample_rounds",
        *FIELDS,
        *SOUND,
    }
)
