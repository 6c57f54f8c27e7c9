"""Latents of a clip in a safetensors file: those of every stage, and all that decoding takes."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ltx2rt import __version__
from ltx2rt.engine import Array
from ltx2rt.errors import CheckpointError, OptionError
from ltx2rt.media.hdr import HdrFormat
from ltx2rt.plain_data import from_plain, parse_json, to_plain
from ltx2rt.results.record import Record, record_in
from ltx2rt.results.trainer_latents import record_of, trainer_latents
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile, TensorEntry
from ltx2rt.weights.safetensors_writer import write_safetensors

_FINISH, _GENERATORS = "ltx2rt_finish", "ltx2rt_generators"
#: the state of the random generator that decoding goes on from
DECODE = "decode"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """How latents become a clip: fields of `Clip`, where latents are named.

    Attributes:
        video, audio: names of the latents that the decoders get; None: no picture, no sound.
        sound_rate: of the tensor `sound`, the clip's finished sound; 0: there is none.
        frame_rate, crop, frame_step, cut_audio, hdr: see `Clip`.
    """

    video: str | None = None
    audio: str | None = None
    sound_rate: int = 0
    frame_rate: float = 24.0
    crop: tuple[int, int, int] | None = None
    frame_step: int = 1
    cut_audio: bool = False
    hdr: HdrFormat | None = None


def write_latents(
    path: str | Path,
    latents: Mapping[str, Array],
    decoded: Mapping[str, Array | None],
    sound: Array | None,
    finish: Finish,
    generators: Mapping[str, Array],
    tags: Mapping[str, str],
) -> None:
    """Write the latents of a clip, as one safetensors file.

    Args:
        latents: of every stage.
        decoded: what the decoders of `video` and `audio` get, among those or not.
        sound: the clip's finished sound.
        finish: how they become a clip; their names are filled in.
        generators: states of the random generator, by stage.
        tags: of the clip.

    Raises:
        CheckpointError: the file cannot be written.
    """
    tensors = dict(latents)
    names: dict[str, str | None] = {}
    for part, latent in decoded.items():
        found = next((n for n, kept in latents.items() if kept is latent), None)
        if latent is not None and found is None:
            found = f"final.{part}"
            tensors[found] = latent
        names[part] = found
    if sound is not None:
        tensors["sound"] = sound
    states = {
        n: base64.b64encode(np.ascontiguousarray(state, "<u8").tobytes()).decode()
        for n, state in generators.items()
    }
    metadata = {
        "ltx2rt": __version__,
        **tags,
        _FINISH: json.dumps(to_plain(finish) | names),
        _GENERATORS: json.dumps(states),
    }
    write_safetensors(path, {n: np.ascontiguousarray(t) for n, t in tensors.items()}, metadata)


def record_of_latents(path: str | Path) -> Record:
    """The record of a file of latents; one of a trainer says sizes and nothing else.

    Raises:
        CheckpointError, OptionError: see `LatentFile`.
    """
    cached = trainer_latents(SafetensorsFile(Path(path)))
    return record_in(path) if cached is None else record_of(cached)


class LatentFile:
    """A file that `write_latents` wrote, or that a trainer keeps (`trainer_latents`).

    Raises:
        CheckpointError: it cannot be read.
        OptionError: ltx2rt did not write it, or an older version did.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = SafetensorsFile(path)
        self._tensors: Mapping[str, TensorEntry] = self._file
        self._states: Mapping[str, str] = {}
        cached = trainer_latents(self._file)
        #: a trainer's file says neither rate nor seed, and has no axis for several clips
        self.is_cache = cached is not None
        if cached is not None:
            self._tensors, self.record = cached, record_of(cached)
            audio = "stage_1.audio" if "stage_1.audio" in cached else None
            self.finish = Finish(video="stage_1.video", audio=audio)
            return
        self.record = record_in(path)
        try:
            finish, states = (parse_json(self._file.metadata[k]) for k in (_FINISH, _GENERATORS))
        except (KeyError, ValueError) as error:
            raise OptionError(
                f"{path} holds latents of an older ltx2rt, which do not say how they are decoded; "
                "make them again."
            ) from error
        self.finish = from_plain(Finish, finish, f"the latents in {path}")
        self._states = states

    @property
    def stages(self) -> list[str]:
        """Names of the stages that it has latents of."""
        return sorted({name.partition(".")[0] for name in self._tensors if "." in name})

    def sizes(self, name: str) -> tuple[int, ...] | None:
        """Shape of a tensor; None: there is none."""
        if name not in self._tensors:
            return None
        shape = tuple(self._tensors[name].shape)
        return (1, *shape) if self.is_cache else shape

    def read(self, name: str) -> Array:
        """A tensor, the caller's own.

        Raises:
            CheckpointError: there is none.
        """
        if name not in self._tensors:
            raise CheckpointError(
                f"{self.path} holds no {name}; it has {', '.join(self._tensors)}."
            )
        maps = MappedFiles()
        try:
            if self.is_cache:
                values: Array = maps.load(self._tensors[name], "float32")[None].copy()
                return values
            return maps.raw(self._tensors[name]).copy()
        finally:
            maps.close()

    def generator(self, name: str) -> Array | None:
        """The state of the random generator after a stage, or before decoding."""
        text = self._states.get(name)
        return None if text is None else np.frombuffer(base64.b64decode(text), "<u8").copy()
