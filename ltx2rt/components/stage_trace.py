"""Intermediate tensors of a stage, named as in the golden files, for parity tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ltx2rt.engine import Array
from ltx2rt.latents.state import LatentState
from ltx2rt.sampling.samplers import Denoise, DrawNoise, Sigma


@dataclass(slots=True)
class StageTrace:
    """What was written down so far: `stage_1.video.x0`, `stage_1.eval00.audio.cond`, ..."""

    tensors: dict[str, Array] = field(default_factory=dict)

    def count(self, part: str) -> int:
        """How many names hold `part`: numbers evaluations and draws."""
        return sum(part in name for name in self.tensors)


class StageTracer:
    """Writes what happens inside one stage to a trace."""

    def __init__(self, stage: str, trace: StageTrace) -> None:
        self._stage = stage
        self._trace = trace
        self._evaluation = -1

    def denoise(self, inner: Denoise) -> Denoise:
        """`inner`, with its latents and predictions written down."""

        def traced(
            video: Array | None, audio: Array | None, sigma: Sigma, index: int
        ) -> tuple[Array | None, Array | None]:
            self._evaluation += 1
            self._put("sigma", np.array(sigma, np.float64))
            for modality, latent in (("video", video), ("audio", audio)):
                if latent is not None:
                    self._put(f"{modality}.x", latent)
            predictions = inner(video, audio, sigma, index)
            for modality, value in zip(("video", "audio"), predictions, strict=True):
                if value is not None:
                    self._put(f"{modality}.denoised", value)
            return predictions

        return traced

    def on_passes(self, modality: str, found: Mapping[str, Array]) -> None:
        """Write the passes of one modality."""
        for name, value in found.items():
            self._put(f"{modality}.{name}", value)

    def draw(self, inner: DrawNoise) -> DrawNoise:
        """`inner`, with its noise written down; draws are numbered through all stages."""

        def traced(shape: tuple[int, ...]) -> Array:
            noise = inner(shape)
            self._trace.tensors[f"{self._stage}.sde{self._trace.count('.sde'):03d}"] = noise
            return noise

        return traced

    def _put(self, name: str, value: Array) -> None:
        self._trace.tensors[f"{self._stage}.eval{self._evaluation:02d}.{name}"] = value


def entry_tensors(
    stage: str, draws: Mapping[str, tuple[LatentState | None, Array | None]]
) -> dict[str, Array]:
    """The states that enter the loop (by modality) and the noise they were made with."""
    tensors: dict[str, Array] = {}
    for name, (state, noise) in draws.items():
        if state is None or noise is None:
            continue
        tensors[f"{stage}.{name}.noise"] = noise
        tensors[f"{stage}.{name}.x0"] = state.latent
        tensors[f"{stage}.{name}.mask"] = state.mask
        tensors[f"{stage}.{name}.positions"] = state.positions
        tensors[f"{stage}.{name}.clean"] = state.clean
        for extra in ("keyframes_mask", "attention_mask"):
            if (value := getattr(state, extra)) is not None:
                tensors[f"{stage}.{name}.{extra}"] = value
    return tensors
