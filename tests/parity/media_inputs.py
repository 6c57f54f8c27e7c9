"""The call of a golden pipeline case as our pipelines' own inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltx2rt.pipelines.base import Pipeline

#: official argument -> field of our `Inputs`
FIELDS = {
    "audio_path": "audio",
    "audio_start_time": "audio_start_time",
    "audio_max_duration": "audio_max_duration",
    "video_path": "video",
    "start_time": "start_time",
    "end_time": "end_time",
    "regenerate_video": "regenerate_video",
    "regenerate_audio": "regenerate_audio",
    "reference_video_path": "reference_video",
    "reference_strength": "reference_strength",
}
#: those of them that name a file of `inputs/`
FILES = {"audio_path", "video_path", "reference_video_path"}
INPUT_ARGUMENTS = frozenset(FIELDS)


def inputs_of(pipeline: type[Pipeline], call: Mapping[str, Any], folder: Path) -> Any:
    """The pipeline's `Inputs`; None if it takes none."""
    if pipeline.Inputs is None:
        return None
    values = {
        field: folder / call[name] if name in FILES else call[name]
        for name, field in FIELDS.items()
        if name in call
    }
    return pipeline.Inputs(**values)
