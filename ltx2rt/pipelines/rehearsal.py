"""A generation in sizes alone: a pipeline runs on zeros, and every size that would reach an engine
is compared with those that the engine was built for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from ltx2rt.backends.frame_memory import SLICE_FRAMES
from ltx2rt.backends.stack import Stack
from ltx2rt.bundle.buckets import symbol_sizes
from ltx2rt.bundle.bundle import Bundle
from ltx2rt.bundle.source import ModelFacts, ModelLoader
from ltx2rt.components.decoder_tiles import DecoderOptions, decoder_tiles, feature_cells
from ltx2rt.components.denoisers import Guidance, pass_counts
from ltx2rt.components.diffusion_stage import StageRequest, StageResult, fresh_states
from ltx2rt.components.text_encoder import TextContext
from ltx2rt.components.tokenizer import MAX_TOKENS
from ltx2rt.components.upsampler import LatentUpsampler
from ltx2rt.config import RuntimeConfig
from ltx2rt.engine import Array, Engine, EngineBase, EngineSpec
from ltx2rt.errors import InternalError
from ltx2rt.latents.duration import AutoDuration, audio_steps
from ltx2rt.latents.shapes import VideoScaleFactors
from ltx2rt.latents.state import LatentState, freeze, slot_latents, target_latent
from ltx2rt.latents.streams import MODALITIES
from ltx2rt.latents.tiling import TilingConfig
from ltx2rt.lora.files import Lora
from ltx2rt.names import (
    AUDIO_DECODER,
    AUDIO_ENCODER,
    DEVICE_STEPS,
    DIFFUSION_CONTEXT,
    DIFFUSION_DECODER,
    DIFFUSION_FEATURES,
    DIFFUSION_PIXELS,
    LORA_COMPONENTS,
    VIDEO_BLEND,
    VIDEO_DECODER,
    VIDEO_ENCODER,
    VIDEO_FLOAT,
    VIDEO_I420,
    VIDEO_RGB,
    VIDEO_UNPATCH,
    VIDEO_YUV422,
    VOCODER,
    StackNames,
)
from ltx2rt.pipelines.built_sizes import SizeChecks
from ltx2rt.pipelines.engines import Engines
from ltx2rt.pipelines.generation import Run
from ltx2rt.pipelines.request import Request
from ltx2rt.progress import Job
from ltx2rt.results.clip import Clip
from ltx2rt.sampling.gpu_noise import Generator
from ltx2rt.sampling.schedules import sigma_table


class _SizeEngine(EngineBase):
    """Checks what it gets, and gives zeros of the size that the real engine would give."""

    def __init__(self, spec: EngineSpec, checks: SizeChecks) -> None:
        self._spec = spec
        self._checks = checks

    @property
    def spec(self) -> EngineSpec:
        return self._spec

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """See `Engine`."""
        name, (spec,) = self._spec.component, self._spec.inputs
        given = tensors[spec.name].shape
        self._checks.check(name, symbol_sizes({spec.name: spec.shape}, {spec.name: given}))
        (out,) = self._spec.outputs
        sizes = (given[0], 0, *self._made(given[2:]))
        shape = [n if isinstance(d, str) else d for d, n in zip(out.shape, sizes, strict=False)]
        shape += [d for d in out.shape[len(sizes) :] if isinstance(d, int)]
        return {out.name: np.zeros(shape, np.float32)}

    def _made(self, given: Sequence[int]) -> tuple[int, ...]:
        """The lengths of what an encoder or upsampler makes of these, batch and channels aside."""
        name = self._spec.component
        options = self._checks.bundle.options(name)
        if name == AUDIO_ENCODER:
            return (audio_steps(given[0], int(options["sampling_rate"])),)
        frames, rows, columns = given
        if name == VIDEO_ENCODER:
            time, height, width = VideoScaleFactors(**options["scale_factors"])
            return (frames - 1) // time + 1, rows // height, columns // width
        return LatentUpsampler.from_options(self, options).output_cells(frames, rows, columns)


class _SizeLoader:
    """A `ModelLoader` whose engines only check sizes."""

    def __init__(self, loader: ModelLoader, checks: SizeChecks) -> None:
        self._loader = loader
        self._checks = checks

    def check_loras(self, loras: Sequence[Lora]) -> None:
        """Those of the request are checked with it."""

    def text_loras(self, loras: Sequence[Lora]) -> tuple[Lora, ...]:
        """See `ModelLoader`."""
        return self._loader.text_loras(loras)

    def engine(self, name: str, runtime: RuntimeConfig) -> Engine:
        """One that gives zeros."""
        return _SizeEngine(self._checks.bundle.component(name).spec(name), self._checks)

    def stack(self, names: StackNames, runtime: RuntimeConfig, loras: Sequence[Lora] = ()) -> Stack:
        """Prompts and stages are not run."""
        raise InternalError("a rehearsal runs no stack")


class _RehearsedEngines(Engines):
    """Engines of a rehearsal; text encoder and duration head are not asked."""

    def __init__(self, engines: Engines, checks: SizeChecks) -> None:
        super().__init__(checks.bundle, engines.runtime)
        self.loader = _SizeLoader(engines.loader, checks)

    def prompt_encoder(self, loras: Sequence[Lora] = ()) -> Any:
        """Contexts of zeros."""
        widths = self.source.context_widths()

        def encode(prompts: Sequence[str], *_: object) -> TextContext:
            sizes = ((len(prompts), MAX_TOKENS, widths[f"{n}_context"]) for n in MODALITIES)
            return TextContext(*(np.zeros(size, np.float32) for size in sizes))

        return encode

    def tokenizer(self) -> Any:
        """One to which every prompt is short: the run itself warns of those that are cut."""
        return _Uncut()


class _Uncut:
    """A tokenizer to which every prompt is short: what is cut is said when it is encoded."""

    def cut(self, prompt: str) -> tuple[int, str]:
        return 0, ""


class Rehearsal(Run):
    """A run whose stages denoise nothing.

    Args:
        engines: of the pipeline.
        request: as `prepare` gave it.
    """

    def __init__(self, engines: Engines, request: Request) -> None:
        assert isinstance(engines.source, Bundle)
        self.checks = SizeChecks(engines.source)
        super().__init__(_RehearsedEngines(engines, self.checks), request, Job())

    def denoised(
        self,
        request: StageRequest,
        loras: Sequence[Lora],
        context: TextContext,
        generator: Generator,
        guidance: Guidance | None,
        identity: float,
    ) -> StageResult:
        """Latents as the stage would make them, of zeros."""
        states = fresh_states(request)
        asked = {"video": request.video, "audio": request.audio}
        sizes: dict[str, int] = {"S": context.video.shape[1]}
        for stream, short in (("video", "v"), ("audio", "a")):
            state, wanted = getattr(states, stream), asked[stream]
            frozen = wanted is not None and wanted.frozen
            sizes |= _stream_sizes(short, freeze(state) if frozen else state)
        self.checks.tokens = max(self.checks.tokens, sizes["Tv"])
        streams = [name for name, _ in states.items()]
        counts = {1}
        if guidance is not None:
            counts = pass_counts(guidance, streams, sigma_table(request.sigmas))
        self.checks.passes = max(self.checks.passes, *counts)
        for name, batch in product(LORA_COMPONENTS, sorted(counts)):
            self.checks.check(name, {**sizes, "B": batch})
        for graph, stream in product(DEVICE_STEPS, streams):
            self.checks.note(graph, {"T": sizes[f"T{stream[0]}"]})
        video, audio = states.map(target_latent)
        keyframes = None if states.video is None else slot_latents(states.video)
        return StageResult(video=video, audio=audio, keyframes=keyframes)


def _stream_sizes(short: str, state: LatentState | None) -> dict[str, int]:
    """Tokens, distinct timesteps and rows of the mask of a stream; one token for an absent one."""
    tokens = state.latent.shape[1] if state is not None else 0
    if state is None or not tokens:
        return {f"T{short}": 1, f"U{short}": 1, f"1|T{short}": 1}
    return {
        f"T{short}": tokens,
        f"U{short}": len(np.unique(state.mask)),
        f"1|T{short}": 1 if state.attention_mask is None else state.attention_mask.shape[1],
    }


def rehearse(generate: Callable[[Run], Clip], engines: Engines, request: Request) -> SizeChecks:
    """Run a pipeline's `generate` in sizes alone, then the decoding of its clip. Files are read as
    the run reads them; an automatic duration is the shortest, since the run checks the one that it
    predicts.

    Args:
        engines: of the pipeline, over a bundle.
        request: as `prepare` gave it.

    Raises:
        ShapeError: a size is wrong whatever the engines were built for.
    """
    asked = request.config.num_frames
    if isinstance(asked, AutoDuration):
        shortest = asked.frames(0.0, request.config.frame_rate)
        request = replace(request, config=replace(request.config, num_frames=shortest))
    run = Rehearsal(engines, request)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself warns
        clip = generate(run)
    checks, source = run.checks, engines.source
    if clip.video_latent is not None:
        checks.cells = clip.video_latent.shape[2:]
        for name, sizes in decoded_sizes(source, checks.cells, clip.config.tiling):
            checks.check(name, sizes)
        _note_frames(checks)
    if clip.audio_latent is not None:
        checks.sound = steps = clip.audio_latent.shape[2]
        mel = int(source.options(AUDIO_DECODER)["mel_frames_per_latent"])
        checks.check(AUDIO_DECODER, {"B": 1, "Ta": steps})
        checks.check(VOCODER, {"B": 1, "M": mel * (steps - 1) + 1})
    return checks


def _note_frames(checks: SizeChecks) -> None:
    """What the device graphs are given that finish the decoded tiles."""
    source = checks.bundle
    if source.has(*DIFFUSION_DECODER):
        facts = DecoderOptions.from_options(source.options(DIFFUSION_FEATURES))
        scale, patch = facts.scale_factors, facts.patch_size
        checks.note(VIDEO_UNPATCH, {})
        tiles = [
            {"F": t["F"], "H": t["Hc"] * patch, "W": t["Wc"] * patch}
            for t in checks.used[DIFFUSION_PIXELS]
        ]
        cells = tuple(map(max, checks.cells, facts.min_latent_cells))
    else:
        scale = VideoScaleFactors(**source.options(VIDEO_DECODER)["scale_factors"])
        tiles = [
            {
                "F": (t["Fl"] - 1) * scale.time + 1,
                "H": t["Hl"] * scale.height,
                "W": t["Wl"] * scale.width,
            }
            for t in checks.used[VIDEO_DECODER]
        ]
        cells = tuple(checks.cells)
    for tile in tiles:
        checks.note(VIDEO_BLEND, tile)
    whole = {"F": SLICE_FRAMES, "H": cells[1] * scale.height, "W": cells[2] * scale.width}
    for graph in (VIDEO_RGB, VIDEO_I420, VIDEO_FLOAT, VIDEO_YUV422):
        checks.note(graph, whole)


def decoded_sizes(
    source: ModelFacts, cells: Sequence[int], text: str
) -> Iterator[tuple[str, dict[str, int]]]:
    """Component and sizes of everything that decoding a latent of these cells runs.

    Args:
        text: the tiling, as `decoding.chosen_tiling` gave it.
    """
    tiling = TilingConfig.parse(text)
    if not source.has(*DIFFUSION_DECODER):
        factors = VideoScaleFactors(**source.options(VIDEO_DECODER)["scale_factors"])
        for tile in _distinct(tiling.tiles(cells, factors)):
            yield VIDEO_DECODER, dict(zip(("B", "Fl", "Hl", "Wl"), (1, *tile), strict=True))
        return
    facts = DecoderOptions.from_options(source.options(DIFFUSION_FEATURES))
    frames, rows, columns = map(max, cells, facts.min_latent_cells)
    yield DIFFUSION_FEATURES, {"B": 1, "Fl": frames + facts.ghost_frames, "Hl": rows, "Wl": columns}
    axes = decoder_tiles(facts, tiling, feature_cells(facts, cells))
    ghosts = facts.ghost_frames * facts.scale_factors.time // facts.feature_stride[0]
    for group, row, column in product(*axes):
        lengths, rows, columns = (t.source.stop - t.source.start for t in (group, row, column))
        lengths += ghosts if group is axes[0][-1] else 0
        yield DIFFUSION_CONTEXT, {"B": 1, "Fs": lengths, "Hs": rows, "Ws": columns}
        frames, height, width = (t.target.stop - t.target.start for t in (group, row, column))
        patches = {"Hc": height // facts.patch_size, "Wc": width // facts.patch_size}
        yield DIFFUSION_PIXELS, {"B": 1, "F": frames, **patches}


def _distinct(axes: Sequence[Sequence[Any]]) -> list[tuple[int, ...]]:
    """Source sizes of tiles."""
    return sorted({tuple(t.source.stop - t.source.start for t in tile) for tile in product(*axes)})
