"""The diffusion transformer: what its stack of engines takes and gives.

What engines cannot or should not do happens here, on the host: distinct timesteps, RoPE tables,
additive masks, switches (spec/transformer.md §4 to §14). Which engine runs a layer, and where its
weights lie, is the stack's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ltx2rt.backends.device_stack import DeviceStack
from ltx2rt.backends.device_steps import DeviceLatents, DeviceSteps
from ltx2rt.backends.host_stack import HostStack
from ltx2rt.backends.stack import Call, Stack
from ltx2rt.components.stack_plans import streams_of
from ltx2rt.components.stage_constants import PassKind, StageConstants
from ltx2rt.components.transformer_inputs import AttentionSkip, ModalityInput, Perturbations
from ltx2rt.engine import Array
from ltx2rt.errors import OptionError, ShapeError

__all__ = ["AttentionSkip", "ModalityInput", "Perturbations", "Transformer"]

#: video, audio and what is skipped in one forward pass
Pass = tuple[ModalityInput | None, ModalityInput | None, Perturbations]
#: of video and audio
Velocities = tuple[Array | None, Array | None]


class Transformer:
    """Velocity of video and audio tokens.

    Args:
        stack: of `stack_plans.transformer_plan`; closed by its owner.
        options: those of the component `transformer_block`.
        steps: what takes steps where the stack runs, if that is a device which does.
    """

    def __init__(
        self, stack: Stack, options: Mapping[str, Any], steps: DeviceSteps | None = None
    ) -> None:
        self.steps = steps if isinstance(stack, DeviceStack) else None
        self._stack = stack
        self._options = options
        self._streams = streams_of(options)
        self._stage: StageConstants | None = None

    @property
    def num_layers(self) -> int:
        return self._stack.num_layers

    @property
    def is_on_device(self) -> bool:
        """Whether its layers run on a GPU, or several."""
        return not isinstance(self._stack, HostStack)

    @contextmanager
    def stage(self) -> Iterator[None]:
        """Within it an array that is given again is one that did not change: tables, biases,
        contexts and switches are made and uploaded once. Without it, at every call.
        """
        outer, self._stage = self._stage, StageConstants(self._stack, self._options)
        try:
            yield
        finally:
            self._stage.close()
            self._stage = outer

    def __call__(
        self,
        video: ModalityInput | None,
        audio: ModalityInput | None,
        perturbations: Perturbations | None = None,
    ) -> Velocities:
        """Run one forward pass.

        A stream that is None (or has no tokens) while the engines hold both runs as one disabled
        zero token whose exchange with the other stream is off: the other stream's result is
        exactly that of a model without it.

        Returns:
            velocities `[B, T, C]` float32, new arrays; None for a stream that is None.

        Raises:
            OptionError: no stream is given, one is given that these engines do not hold, or a
                perturbation names a block that does not exist.
            ShapeError: tensors do not fit each other or the engines.
        """
        (result,) = self.passes([(video, audio, perturbations or Perturbations())])
        return result

    def passes(self, asked: Sequence[Pass]) -> list[Velocities]:
        """Several forward passes, of which none needs another's result: on a device they are
        enqueued one after another and waited for once. Each as a call.
        """
        if self._stage is None:
            with self.stage():
                return self.passes(asked)
        calls = self._calls(asked, self._stage)
        given = [{"video": video, "audio": audio} for video, audio, _ in asked]
        return [
            (self._velocity("video", streams, out), self._velocity("audio", streams, out))
            for streams, out in zip(given, self._stack(calls), strict=True)
        ]

    def step(self, asked: Sequence[Pass], names: Sequence[str], latents: DeviceLatents) -> None:
        """Enqueue the passes of a step and the step, inside `stage()`: the latents of the passes
        are tensors on the device.
        """
        assert self._stage is not None
        assert isinstance(self._stack, DeviceStack)
        self._stack.step(self._calls(asked, self._stage), names, latents)

    def _calls(self, asked: Sequence[Pass], stage: StageConstants) -> list[Call]:
        distinct: dict[int, tuple[Array, Array]] = {}  # of the same timesteps, the same arrays
        return [
            self._call({"video": video, "audio": audio}, perturbations, stage, distinct)
            for video, audio, perturbations in asked
        ]

    def _call(
        self,
        given: Mapping[str, ModalityInput | None],
        perturbations: Perturbations,
        stage: StageConstants,
        distinct: dict[int, tuple[Array, Array]],
    ) -> Call:
        present = self._check(given, perturbations)
        like = next(iter(present.values()))
        streams = {n: present.get(n) or stage.absent(n, like) for n in self._streams}
        tensors: dict[str, Array] = {}
        indices: dict[str, Array] = {}
        for name, stream in streams.items():
            if (key := id(stream.timesteps)) not in distinct:
                distinct[key] = distinct_timesteps(name, stream)
            values, indices[name] = distinct[key]
            tensors |= {
                f"{name}_latent": stream.latent,
                f"{name}_timestep_values": values,
                f"{name}_sigma": np.asarray(stream.sigma, np.float32),
            }
        kind = PassKind(
            enabled=tuple(n for n in streams if n in present and present[n].enabled),
            perturbations=perturbations,
            exchange=len(present) == 2,
        )
        return Call(tensors, stage.of_pass(streams, indices, kind))

    def _check(
        self, given: Mapping[str, ModalityInput | None], perturbations: Perturbations
    ) -> dict[str, ModalityInput]:
        for name, stream in given.items():
            if stream is not None and name not in self._streams:
                raise OptionError(
                    f"{name} tokens were given, but these engines hold "
                    f"{' and '.join(self._streams)} only; build the bundle with both streams."
                )
        present = {n: s for n, s in given.items() if s is not None and s.latent.shape[1] > 0}
        if not present:
            raise OptionError("the transformer got no tokens: give video, audio or both.")
        named = {b for s in perturbations.skips for b in s.blocks or ()}
        if wrong := sorted(b for b in named if not 0 <= b < self.num_layers):
            raise OptionError(
                f"perturbed blocks {wrong} do not exist: the model has {self.num_layers} "
                f"blocks, 0 to {self.num_layers - 1}."
            )
        return present

    def _velocity(
        self,
        name: str,
        given: Mapping[str, ModalityInput | None],
        out: Mapping[str, Array],
    ) -> Array | None:
        stream = given[name]
        if stream is None:
            return None
        if stream.latent.shape[1] == 0:
            channels = self._options[name]["out_channels"]
            return np.zeros((stream.latent.shape[0], 0, channels), np.float32)
        return out[f"{name}_velocity"]


def distinct_timesteps(name: str, stream: ModalityInput) -> tuple[Array, Array]:
    """The distinct timesteps of a stream, float32 `[U]`, and which of them every token has, int64
    `[B, T]`.

    Raises:
        ShapeError: there is not one timestep for every token.
    """
    batch, tokens = stream.latent.shape[:2]
    timesteps = np.asarray(stream.timesteps, np.float32)
    if timesteps.size != batch * tokens:
        raise ShapeError(
            f"{name} timesteps have shape {list(timesteps.shape)}; expected "
            f"[{batch}, {tokens}] or [{batch}, {tokens}, 1], one for every token."
        )
    values, index = np.unique(timesteps, return_inverse=True)
    return values, index.reshape(batch, tokens).astype(np.int64)
