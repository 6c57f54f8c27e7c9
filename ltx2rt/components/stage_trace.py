"""Intermediate tensors of a stage, named as in the golden files, for parity tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ltx2rt.engine import Array
from ltx2rt.latents.state import LatentState
from ltx2rt.latents.streams import Streams
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

        def traced(latents: Streams[Array], sigma: Sigma, index: int) -> Streams[Array]:
            self._evaluation += 1
            self._put("sigma", np.array(sigma, np.float64))
            for modality, latent in latents.items():
                self._put(f"{modality}.x", latent)
            predictions = inner(latents, sigma, index)
            for modality, value in predictions.items():
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
    stage: str, states: Streams[LatentState], noises: Streams[Array]
) -> dict[str, Array]:
    """The states that enter the loop and the noise they were made with."""
    tensors = {f"{stage}.{name}.noise": noise for name, noise in noises.items()}
    for name, state in states.items():
        tensors[f"{stage}.{name}.x0"] = state.latent
        tensors[f"{stage}.{name}.mask"] = state.mask
        tensors[f"{stage}.{name}.positions"] = state.positions
        tensors[f"{stage}.{name}.clean"] = state.clean
        for extra in ("keyframes_mask", "attention_mask"):
            if (value := getattr(state, extra)) is not None:
                tensors[f"{stage}.{name}.{extra}"] = value
    return tensors
