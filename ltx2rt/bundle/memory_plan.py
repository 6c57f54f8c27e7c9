"""One plan for the memory of a GPU, made before anything is loaded: what engines need in turn, the
weights beside them, and the layers of stacks in what is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ltx2rt.backends.engine_needs import EngineNeeds
from ltx2rt.backends.frame_memory import PIXEL_BYTES, FrameSizes
from ltx2rt.backends.layer_memory import RING, slot_of
from ltx2rt.bundle.manifest import ComponentEntry, Manifest
from ltx2rt.bundle.memory import layer_bytes
from ltx2rt.components.decoder_tiles import DecoderOptions
from ltx2rt.components.device_tiles import diffusion_blocks
from ltx2rt.components.transformer_inputs import KINDS
from ltx2rt.device.arena import ALIGNMENT, Regions, aligned
from ltx2rt.errors import UnsupportedError
from ltx2rt.names import (
    AUDIO_DECODER,
    AUDIO_ENCODER,
    DEVICE_FRAMES,
    DIFFUSION_CONTEXT,
    DIFFUSION_DECODER,
    DIFFUSION_FEATURES,
    DURATION_HEAD,
    SPATIAL_UPSAMPLER,
    STEP_EULER,
    TEMPORAL_UPSAMPLER,
    TEXT_STACK,
    TRANSFORMER_STACK,
    VIDEO_BLEND,
    VIDEO_DECODER,
    VIDEO_ENCODER,
    VIDEO_I420,
    VOCODER,
    WRITING_STACK,
    StackNames,
    stage_of,
)

STACKS = (TEXT_STACK, WRITING_STACK, TRANSFORMER_STACK)
#: engines that may be loaded together with residency `stage`: before denoising, and from it on
BEFORE = (VIDEO_ENCODER, AUDIO_ENCODER, DURATION_HEAD)
UPSAMPLERS = (SPATIAL_UPSAMPLER, TEMPORAL_UPSAMPLER)
SOUND_ENGINES = (AUDIO_DECODER, VOCODER)
PICTURE_ENGINES = (VIDEO_DECODER, *DIFFUSION_DECODER, *DEVICE_FRAMES)
DECODING = (VIDEO_DECODER, *DIFFUSION_DECODER, AUDIO_DECODER, VOCODER)

#: prompts that are encoded together: what is wanted and what is not
PROMPTS = 2
#: passes of a guided step that are enqueued together
GUIDANCE_PASSES = 4
#: ends of the names of what each of them has for itself
CALL_TENSORS = ("_latent", "_timestep_values", "_sigma", "_velocity")
#: kinds of passes whose constants a stage may hold
PASS_KINDS = 8
#: inputs of the transformer that belong to a kind of pass, of either stream
PASS_CONSTANTS = ("context", "context_bias", "timestep_index", "enabled")
#: latents in float32 (now, next, clean, noise), masks and the one that passes take, beside what a
#: latent of 16 bits takes
_STEPS = 10
#: tiles along the three axes together, of which a clip that is decoded holds weights
_AXIS_TILES = 64
#: of the card, what libraries take for code, contexts and their own
LIBRARY_SHARE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What of a card goes where.

    Attributes:
        regions: what is taken.
        finishes_frames: tiles of a clip of the size that was built for are blended on the card.
            Where that alone would make layers take turns, they are not.
        finishes_floats: also those that leave it as float32, which take more.
        sound: what the engines that decode sound have for themselves, so that it is decoded beside
            the picture; None: they take turns with the rest, since they cannot have that for free.
        picture: the same for those that decode the picture, so that the next clip is encoded and
            denoised beside them.
        stages: stage -> what is taken for it alone, where the card has no room for all at once
            (`stage_plan`); `regions` are then those of denoising.
        places: stack -> bytes of each place that its parts without room take turns in.
        totals: stack -> bytes of all its weights.
        keep_text: the layers of the text encoder stay between clips.
        weights: all weights of the transformer's parts; `resident` of them stay on the card.
    """

    regions: Regions
    places: Mapping[StackNames, tuple[int, ...]]
    totals: Mapping[StackNames, int]
    keep_text: bool
    weights: int
    finishes_frames: bool = False
    finishes_floats: bool = False
    sound: Regions | None = None
    picture: Regions | None = None
    stages: Mapping[str, Regions] = field(default_factory=dict)

    def regions_for(self, component: str) -> Regions:
        """How the card is divided while a component is loaded."""
        return self.stages.get(stage_of(component), self.regions)

    @property
    def streams(self) -> bool:
        """Whether layers of the transformer go up at every use."""
        return self.weights > self.regions.layers - self.regions.reserve

    def ring(self, names: StackNames) -> int:
        """What a stack that has the room for layers to itself leaves to those that take turns.

        Raises:
            UnsupportedError: not even that finds room.
        """
        planned = self.regions_for(names.head).layers
        ring = sum(self.places[names]) if self.totals[names] > planned else 0
        if ring > planned:
            raise UnsupportedError(
                f"writing prompts needs room for {_gib(ring)} of layers, and "
                f"{_gib(planned)} are planned for them: use a larger card, or have "
                "another model write."
            )
        return ring

    def text(self) -> str:
        """The plan for people, a line a region."""
        regions = self.regions
        stay = min(self.weights, max(0, regions.layers - regions.reserve))
        layers = (
            f"about {_gib(stay)} stay, {_gib(self.weights - stay)} go up at every step"
            if self.streams
            else "all stay"
        )
        lines = [
            f"activations: {_gib(regions.scratch)}",
            f"inputs, outputs, constants: {_gib(regions.tensors)}",
            f"weights of encoders, upsamplers, decoders: {_gib(regions.engines)}",
            f"weights of layers: {_gib(regions.layers)}; of the transformer's "
            f"{_gib(self.weights)} {layers}",
        ]
        if self.stages:
            lines = ["there is room for one stage at a time; while it denoises:", *lines]
            lines += [
                f"stage '{stage}': activations {_gib(alone.scratch)}, inputs and outputs "
                f"{_gib(alone.tensors)}, weights {_gib(alone.engines + alone.layers)}"
                for stage, alone in self.stages.items()
                if alone != regions
            ]
        return "\n".join(
            (
                *lines,
                self._frames_text(),
                "sound is decoded after the picture"
                if self.sound is None
                else f"sound, decoded beside the picture: {_gib(self.sound.total)}",
                "the next clip of several begins when the picture is decoded"
                if self.picture is None
                else f"the picture, decoded beside the next clip: {_gib(self.picture.total)}",
                f"together: {_gib(self.total)}",
            )
        )

    @property
    def total(self) -> int:
        """Bytes that are taken."""
        apart = (self.sound, self.picture)
        return self.regions.total + sum(lane.total for lane in apart if lane is not None)

    def _frames_text(self) -> str:
        if not self.finishes_frames:
            return "tiles are blended on the host"
        but = "" if self.finishes_floats else "; those of EXR files and joined clips on the host"
        return f"tiles are blended on the card{but}"


def room_on(memory_bytes: int, free_bytes: int, manifest: Manifest) -> int:
    """What may be planned of a card: what is free, less what libraries take."""
    inside = sum(
        engine.bytes
        for entry in manifest.components.values()
        for engine in entry.engines
        if engine.weights == "constant"
    )
    return max(0, free_bytes - memory_bytes // LIBRARY_SHARE - inside)


def plan_memory(
    manifest: Manifest, needs: Mapping[str, EngineNeeds], room: int, *, resident: bool, card: str
) -> MemoryPlan:
    """Divide a card among engines that run one after another; see `lane_plan` for what may run
    beside them.

    Args:
        needs: of every component.
        room: bytes that may be taken, see `room_on`.
        resident: engines stay loaded between clips.
        card: what it is called, for errors.

    Raises:
        UnsupportedError: it does not fit; says what would.
    """
    plan = _divided(manifest, needs, room, 0, resident=resident, card=card)
    for form in ("float", "rgb"):
        frames, floats = _frames(manifest, PIXEL_BYTES[form]), form == "float"
        if not frames:
            return plan
        found = plan if frames <= plan.regions.tensors else None
        if found is None:
            try:
                found = _divided(manifest, needs, room, frames, resident=resident, card=card)
            except UnsupportedError:
                continue
        if found.keep_text == plan.keep_text and found.streams == plan.streams:
            return replace(found, finishes_frames=True, finishes_floats=floats)
    return plan


def _divided(
    manifest: Manifest,
    needs: Mapping[str, EngineNeeds],
    room: int,
    frames: int,
    *,
    resident: bool,
    card: str,
) -> MemoryPlan:
    """As `plan_memory`, with so many bytes for frames in the place of inputs and outputs."""
    sizes = _sizes(manifest, needs, frames, resident=resident)
    scratch, tensors, engines = sizes.scratch, sizes.tensors, sizes.engines
    places, totals, rings = sizes.places, sizes.totals, sizes.rings
    left = room - sizes.fixed
    text, transformer = TEXT_STACK, TRANSFORMER_STACK
    keep_text = resident and totals[text] + totals[transformer] <= left
    beside = totals[text] if keep_text else rings[text] if resident else 0
    least = sizes.least_layers(beside)
    if left < least:
        raise UnsupportedError(
            f"this bundle needs {_gib(sizes.fixed + least)} of {card}, of which {_gib(room)} can "
            f"be used: activations {_gib(scratch)}, inputs and outputs {_gib(tensors)}, weights of "
            f"encoders and decoders {_gib(engines)}, two layers at a time {_gib(least)}; use a "
            "larger card, make a smaller clip, or build with smaller --shapes or --precision"
            + (" or keep less loaded: residency stage." if resident else ".")
        )
    wanted = max(rings[text], totals[transformer] + beside)
    layers = min(wanted, left)
    fits = totals[transformer] + beside <= layers
    reserve = beside if not keep_text else 0
    if not fits:
        reserve += rings[transformer]
    regions = Regions(
        scratch=scratch, tensors=tensors, engines=engines, layers=layers, reserve=reserve
    )
    return MemoryPlan(
        regions=regions,
        places=places,
        totals=totals,
        keep_text=keep_text,
        weights=totals[transformer],
    )


class _Sizes(NamedTuple):
    """What a division has to find room for."""

    places: dict[StackNames, tuple[int, ...]]
    totals: dict[StackNames, int]
    scratch: int
    tensors: int
    engines: int

    @property
    def rings(self) -> dict[StackNames, int]:
        """Of each stack, the places that its parts take turns in."""
        return {names: sum(sizes) for names, sizes in self.places.items()}

    @property
    def fixed(self) -> int:
        """Everything but layers."""
        return self.scratch + self.tensors + self.engines

    def least_layers(self, beside: int = 0) -> int:
        """Of layers, with so much for those of the text encoder beside the transformer's."""
        rings, transformer = self.rings, TRANSFORMER_STACK
        own = min(rings[transformer], self.totals[transformer])
        return max(rings[TEXT_STACK], own + beside)


def _sizes(
    manifest: Manifest, needs: Mapping[str, EngineNeeds], frames: int, *, resident: bool
) -> _Sizes:
    parts = {names: list(_parts(manifest, names, needs)) for names in STACKS}
    weights = {
        name: sum(weight_bytes(entry))
        for name, entry in manifest.components.items()
        if not any(name in names.components for names in STACKS)
    }
    return _Sizes(
        places={names: _places(names, sizes) for names, sizes in parts.items()},
        totals={names: sum(sizes) for names, sizes in parts.items()},
        scratch=aligned(max((n.scratch for n in needs.values()), default=0)),
        tensors=aligned(max(frames, _tensors(manifest, needs))),
        engines=aligned(_engine_weights(weights, resident=resident)),
    )


def room_needed(manifest: Manifest, needs: Mapping[str, EngineNeeds], *, least: bool) -> int:
    """Bytes that all stages need at once where engines need not stay loaded.

    Args:
        least: with two layers at a time; else with all of the transformer's.
    """
    sizes = _sizes(manifest, needs, 0, resident=False)
    all_layers = max(sizes.rings[TEXT_STACK], sizes.totals[TRANSFORMER_STACK])
    return sizes.fixed + (sizes.least_layers() if least else all_layers)


def _engine_weights(weights: Mapping[str, int], *, resident: bool) -> int:
    if resident:
        return sum(weights.values())
    before = sum(weights.get(n, 0) for n in BEFORE)
    after = sum(weights.get(n, 0) for n in DECODING)
    return max(before, after + max(weights.get(n, 0) for n in UPSAMPLERS))


def part_of(manifest: Manifest, wanted: Callable[[str], bool]) -> Manifest:
    """A manifest of the components and device graphs of some names."""
    return replace(
        manifest,
        components={n: e for n, e in manifest.components.items() if wanted(n)},
        device_graphs={n: e for n, e in manifest.device_graphs.items() if wanted(n)},
    )


def weight_bytes(entry: ComponentEntry) -> list[int]:
    """Of each layer, where its weights are not inside the engine; every tensor begins anew."""
    if any(engine.weights == "constant" for engine in entry.engines):
        return [0 for _ in entry.layers]
    extra = [ALIGNMENT * (len(layer) + 2 * len(entry.quantized)) for layer in entry.layers]
    return [aligned(size + more) for size, more in zip(layer_bytes(entry), extra, strict=True)]


def _places(names: StackNames, sizes: Sequence[int]) -> tuple[int, ...]:
    """Places for parts of these sizes: head, layers, tail. What runs once keeps nothing, so that
    each part always comes into the same place; blocks of two kinds alternate, and come into any.
    """
    if not names.runs_once or len(sizes) < RING:
        return (max(sizes, default=0),) * RING
    places = [max(sizes[1:-1], default=0)] * RING
    for part in (0, len(sizes) - 1):
        slot = slot_of(part, len(sizes))
        places[slot] = max(places[slot], sizes[part])
    return tuple(places)


def _parts(
    manifest: Manifest, names: StackNames, needs: Mapping[str, EngineNeeds]
) -> Iterator[int]:
    for name in names.components:
        if (entry := manifest.components.get(name)) is not None:
            for index, size in enumerate(weight_bytes(entry)):
                if entry.layers[index] or name not in names.blocks:
                    yield size + needs[name].lora_inputs


def _frames(manifest: Manifest, pixel_bytes: int) -> int:
    """What the frames of the largest clip that was built for take while they are blended and become
    what leaves the card; 0 where that is not done.

    Args:
        pixel_bytes: of a pixel that leaves it.
    """
    graphs = manifest.device_graphs
    if VIDEO_BLEND not in graphs or VIDEO_I420 not in graphs:
        return 0
    pictures = [b.sizes for e in graphs[VIDEO_I420].engines for b in e.buckets]
    tiles = [b.sizes for e in graphs[VIDEO_BLEND].engines for b in e.buckets]
    picture = max(pictures, key=lambda sizes: sizes["H"][1] * sizes["W"][1])
    tile = max(tiles, key=lambda sizes: sizes["F"][2] * sizes["H"][1] * sizes["W"][1])
    found = FrameSizes(
        tile=(tile["F"][2], tile["H"][1], tile["W"][1]),
        frames=tile["F"][2],
        height=picture["H"][1],
        width=picture["W"][1],
        decoder_bytes=_decoder_bytes(manifest.components),
        pixel_bytes=pixel_bytes,
    )
    return found.bytes(_AXIS_TILES)


def _decoder_bytes(components: Mapping[str, ComponentEntry]) -> int:
    """What the video decoder holds beside the pixels of its tiles."""
    if DIFFUSION_FEATURES not in components:
        entry = components[VIDEO_DECODER]
        latents = {t.name: t.shape for t in entry.inputs}["video_latent"]
        channels = next(d for d in latents[1:2] if isinstance(d, int))
        return 4 * channels * math.prod(_most(entry))
    facts = DecoderOptions.from_options(components[DIFFUSION_FEATURES].options)
    latent = _most(components[DIFFUSION_FEATURES])
    scale, stride = facts.scale_factors, facts.feature_factors
    whole = (
        (latent[0] - 1) * scale.time // stride.time + 1,
        latent[1] * scale.height // stride.height,
        latent[2] * scale.width // stride.width,
    )
    latent_bytes = 4 * facts.latent_channels * math.prod(latent)
    blocks = diffusion_blocks(facts, latent_bytes, whole, _most(components[DIFFUSION_CONTEXT]))
    return sum(map(aligned, blocks.values()))


def _most(entry: ComponentEntry) -> tuple[int, int, int]:
    """Frames, rows and columns that an engine takes, of the bucket that was made for most."""
    symbols = next(t.shape[-3:] if t.name == "video_latent" else t.shape[1:4] for t in entry.inputs)
    buckets = [b.sizes for e in entry.engines for b in e.buckets]
    sizes = [tuple(b[str(s)][1] for s in symbols) for b in buckets]
    frames, rows, columns = max(sizes, key=math.prod)
    return frames, rows, columns


def _tensors(manifest: Manifest, needs: Mapping[str, EngineNeeds]) -> int:
    """Inputs, outputs and constants of whatever has most of them."""
    stacks = []
    for names, calls in ((TEXT_STACK, PROMPTS), (WRITING_STACK, 1), (TRANSFORMER_STACK, 1)):
        there = [n for n in names.components if n in needs]
        found: dict[tuple[str, str], int] = {}
        for name in there:
            found |= {
                key: max(size, found.get(key, 0)) for key, size in needs[name].tensors.items()
            }
        of_passes = {f"{stream}_{n}" for stream in ("video", "audio") for n in PASS_CONSTANTS}
        size = sum(n * (PASS_KINDS if key[0] in of_passes else 1) for key, n in found.items())
        layers = sum(len(manifest.components[n].layers) for n in there)
        if names == TRANSFORMER_STACK:
            of_calls = [n for key, n in found.items() if key[0].endswith(CALL_TENSORS)]
            size += (GUIDANCE_PASSES - 1) * sum(of_calls)
            if STEP_EULER in manifest.device_graphs:
                size += sum(n for key, n in found.items() if key[0].endswith("_latent")) * _STEPS
        stacks.append(calls * size + PASS_KINDS * len(KINDS) * layers * ALIGNMENT)
    alone = [
        sum(need.tensors.values())
        for name, need in needs.items()
        if not any(name in names.components for names in STACKS)
        and name not in manifest.device_graphs
    ]
    return max(*stacks, *alone, 0)


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
