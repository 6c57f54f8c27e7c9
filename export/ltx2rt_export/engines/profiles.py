"""Every size a pipeline can ask of a component, as buckets: one optimization profile each.

For every clip of `--shapes`, and for the half-size clip that stage 1 makes before it; and for their
relatives: clips of at most as many pixels and frames with no side above the longest, lying,
standing or square. The symbols are those of the components' `TensorSpec`s; what asks for which
sizes is said at each function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ltx2rt.backends.frame_memory import SLICE_FRAMES
from ltx2rt.bundle.buckets import SLOWEST_RATE, Bucket, Range
from ltx2rt.components.decoder_tiles import (
    DEVICE_BYTES,
    DecoderOptions,
    auto_tiling,
    decoder_tiles,
    feature_cells,
)
from ltx2rt.components.stack_plans import streams_of
from ltx2rt.components.tokenizer import MAX_TOKENS
from ltx2rt.engine import TensorSpec
from ltx2rt.errors import InternalError
from ltx2rt.latents.shapes import AUDIO_GRID, AudioLatentShape, VideoScaleFactors
from ltx2rt.latents.tiling import TilingConfig
from ltx2rt.names import (
    AUDIO_DECODER,
    AUDIO_ENCODER,
    DIFFUSION_CONTEXT,
    DIFFUSION_FEATURES,
    DIFFUSION_PIXELS,
    DURATION_HEAD,
    LANGUAGE_HEAD,
    SPATIAL_UPSAMPLER,
    STEP_EULER,
    STEP_NOISY,
    TEMPORAL_UPSAMPLER,
    TEXT_BLOCK,
    TEXT_BLOCK_FULL,
    TEXT_HEAD,
    TEXT_TAIL,
    TRANSFORMER_BLOCK,
    TRANSFORMER_BLOCK_PLAIN,
    TRANSFORMER_HEAD,
    TRANSFORMER_TAIL,
    VIDEO_BLEND,
    VIDEO_DECODER,
    VIDEO_ENCODER,
    VIDEO_FLOAT,
    VIDEO_I420,
    VIDEO_RGB,
    VIDEO_UNPATCH,
    VIDEO_YUV422,
    VOCODER,
)
from ltx2rt_export.engines.shapes import ClipShape

#: a size that is always 1
ONE = (1, 1, 1)

#: keyframe images that may be appended to a clip's tokens, one latent frame each
KEYFRAMES = 8

#: reference clips that may be appended, each as long as the clip
REFERENCES = 1

#: distinct noise levels among the tokens of a batch: each conditioning item has its own strength
TIMESTEPS = (1, 2, 256)

#: summed ranks of LoRAs that are inputs of the block
LORA_RANKS = (1, 64, 512)

#: slowest and usual frame rate: they fix how long the sound of a clip is
FRAME_RATES = (SLOWEST_RATE, 24.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRequest:
    """What buckets are made for.

    Attributes:
        shapes: clips, at full size.
        max_batch: guidance passes that may run together.
        factors: pixels per latent cell of this model.
        options: options of every component of the model, as manifests record them.
    """

    shapes: tuple[ClipShape, ...]
    max_batch: int
    factors: VideoScaleFactors
    options: Mapping[str, Mapping[str, Any]]

    def stages(self) -> tuple[ClipShape, ...]:
        """The clips and their half-size stages, smallest first."""
        halves = {half for s in self.shapes if (half := s.half(self.factors)) is not None}
        return tuple(
            sorted({*self.shapes, *halves}, key=lambda s: (s.width * s.height * s.num_frames, s))
        )


#: makes the buckets of a component
Rule = Callable[[ProfileRequest], list[Bucket]]


def component_buckets(
    name: str, inputs: Sequence[TensorSpec], request: ProfileRequest
) -> tuple[Bucket, ...]:
    """Buckets of a component; sizes only of symbols that its inputs have.

    Raises:
        InternalError: a component, or a symbol, that no rule names.
    """
    make = RULES.get(name)
    if make is None:
        raise InternalError(f"no rule makes buckets for {name}")
    dimensions = {d for spec in inputs for d in spec.shape if isinstance(d, str)}
    symbols = {d.removeprefix("1|") for d in dimensions}
    buckets: list[Bucket] = []
    for bucket in make(request):
        missing = symbols - set(bucket.sizes)
        if missing:
            raise InternalError(f"the buckets of {name} say nothing about {sorted(missing)}")
        used = sorted((symbols | dimensions) & set(bucket.sizes))
        kept = Bucket(name=bucket.name, sizes={s: bucket.sizes[s] for s in used})
        if kept.sizes not in [b.sizes for b in buckets]:
            buckets.append(kept)
    return tuple(buckets)


def _transformer(request: ProfileRequest) -> list[Bucket]:
    """Tokens of a clip, with room for what conditioning appends; down to one token, which stands
    for a stream that is off. Text is always 1024 tokens long.

    Passes that run together take no `[T, T]` self-attention mask: TensorRT-RTX 1.7 fuses the
    attention of a batch only if the number of mask rows is known (measured), and the logits of one
    that is not fused do not fit a card.
    """
    buckets = []
    for shape in request.stages():
        sizes = _token_sizes(shape, request)
        buckets.append(_bucket(shape.name, B=ONE, **sizes))
        if request.max_batch > 1:
            no_mask = {"1|Tv": (1, 1, 1), "1|Ta": (1, 1, 1)}
            batch = (2, request.max_batch, request.max_batch)
            name = f"{shape.name} batch {request.max_batch}"
            buckets.append(_bucket(name, B=batch, **sizes, **no_mask))
    return buckets


def _transformer_ends(request: ProfileRequest) -> list[Bucket]:
    """Head and tail run once where the block runs 48 times: one bucket for all stages, made for
    the largest.
    """
    stages = [_token_sizes(shape, request) for shape in request.stages()]
    sizes = {
        symbol: (low, likely, max(s[symbol][2] for s in stages))
        for symbol, (low, likely, _) in stages[-1].items()
    }
    name = f"up to {request.stages()[-1].name}"
    return [_bucket(name, B=(1, request.max_batch, request.max_batch), **sizes)]


def _steps(request: ProfileRequest) -> list[Bucket]:
    """Tokens of either stream."""
    (ends,) = _transformer_ends(request)
    options = request.options[TRANSFORMER_BLOCK]
    channels = [options[name]["in_channels"] for name in streams_of(options)]
    low, likely, high = ends.sizes["Tv"]
    tokens = low, likely, max(high, ends.sizes["Ta"][2])
    return [_bucket(ends.name, T=tokens, C=(min(channels), channels[0], max(channels)))]


def _token_sizes(shape: ClipShape, request: ProfileRequest) -> dict[str, Range]:
    """Sizes of everything but the batch."""
    frames, rows, columns = shape.cells(request.factors)
    tokens = frames * rows * columns
    room = rows * columns * (KEYFRAMES + REFERENCES * frames)
    likely, longest = _audio_latents(shape)
    return {
        "Tv": (1, tokens, tokens + room),
        "Ta": (1, likely, (1 + REFERENCES) * longest),
        "S": (MAX_TOKENS, MAX_TOKENS, MAX_TOKENS),
        "Uv": TIMESTEPS,
        "Ua": TIMESTEPS,
        "r": LORA_RANKS,
    }


def _audio_latents(shape: ClipShape) -> tuple[int, int]:
    """Audio latents of a clip at the usual and at the slowest frame rate; at least one."""
    slow, usual = (
        max(1, AudioLatentShape.from_duration(shape.num_frames / rate, grid=AUDIO_GRID).num_frames)
        for rate in FRAME_RATES
    )
    return usual, slow


def _text_encoder(request: ProfileRequest) -> list[Bucket]:
    """One prompt at a time, always 1024 tokens."""
    del request
    return [_bucket("prompt", B=ONE, S=(MAX_TOKENS,) * 3)]


def _duration_head(request: ProfileRequest) -> list[Bucket]:
    del request
    return [_bucket("prompt", B=ONE, Sv=(MAX_TOKENS,) * 3, Sa=(MAX_TOKENS,) * 3)]


def _video_encoder(request: ProfileRequest) -> list[Bucket]:
    """Images in one piece, of a clip's size and its relatives'; clips in tiles; references at the
    size of stage 1 in one piece.
    """
    factors, buckets = request.factors, []
    least = _least_cells(VIDEO_ENCODER, request) * factors.height
    for shape in request.shapes:
        rows, columns = _sides(shape.height, shape.width, least)
        buckets.append(_bucket(f"{shape.width}x{shape.height}x1", B=ONE, F=ONE, H=rows, W=columns))
    for shape in request.shapes:
        if shape.num_frames == 1:
            continue
        frames, rows, columns = _tile_sizes(shape, request, encode=True)
        buckets.append(_bucket(f"{shape.name} tiles", B=ONE, F=frames, H=rows, W=columns))
        if (stage := shape.half(factors)) is not None:
            rows, columns = _sides(stage.height, stage.width, least)
            frames = (1, shape.num_frames, shape.num_frames)
            buckets.append(_bucket(stage.name, B=ONE, F=frames, H=rows, W=columns))
    return buckets


def _video_decoder(request: ProfileRequest) -> list[Bucket]:
    """The tiles that pipelines cut a clip and its relatives into."""
    return [
        _bucket(
            f"{shape.name} tiles",
            B=ONE,
            **dict(zip(("Fl", "Hl", "Wl"), _tile_sizes(shape, request), strict=True)),
        )
        for shape in request.stages()
    ]


def _video_blend(request: ProfileRequest) -> list[Bucket]:
    """The pixels of the tiles that the decoder takes."""
    time, *sides = request.factors
    buckets = []
    if DIFFUSION_FEATURES in request.options:
        patch = _decoder_facts(request).patch_size
        for bucket in _diffusion_patches(request):
            frames, rows, columns = (bucket.sizes[symbol] for symbol in ("F", "Hc", "Wc"))
            rows, columns = (tuple(n * patch for n in side) for side in (rows, columns))
            buckets.append(_bucket(bucket.name, F=frames, H=rows, W=columns))
        return buckets
    for bucket in _video_decoder(request):
        frames = tuple((n - 1) * time + 1 for n in bucket.sizes["Fl"])
        rows, columns = (
            tuple(n * factor for n in bucket.sizes[symbol])
            for symbol, factor in zip(("Hl", "Wl"), sides, strict=True)
        )
        buckets.append(_bucket(bucket.name, F=frames, H=rows, W=columns))
    return buckets


def _finished_frames(request: ProfileRequest) -> list[Bucket]:
    """Whole pictures, a few frames at a time."""
    least = _least_cells(VIDEO_DECODER, request)
    padded = 1  # cells of a side at least, which diffusion decoders see to
    if DIFFUSION_FEATURES in request.options:
        padded = least = max(_decoder_facts(request).min_latent_cells[1:])
    factor = request.factors.height
    buckets = []
    for shape in request.stages():
        height, width = (max(side, padded * factor) for side in (shape.height, shape.width))
        rows, columns = _sides(height, width, least * factor)
        frames = (1, SLICE_FRAMES, SLICE_FRAMES)
        buckets.append(_bucket(shape.name, F=frames, H=rows, W=columns))
    return buckets


def _least_cells(name: str, request: ProfileRequest) -> int:
    """Smallest side of a latent that a part of the video VAE takes."""
    return int(request.options.get(name, {}).get("min_latent_cells", 1))


def _sides(rows: int, columns: int, least: int = 1) -> tuple[Range, Range]:
    """Ranges of two sides, either of which may be the long one."""
    side, low = max(rows, columns), min(least, rows, columns)
    return (low, rows, side), (low, columns, side)


def _tile_sizes(shape: ClipShape, request: ProfileRequest, *, encode: bool = False) -> list[Range]:
    """Source sizes of tiles along each axis: of the automatic ones and, where clips are encoded, of
    those that do not go by the aspect. The most common one is the clip's own, the largest that of a
    square as wide as the clip is long.
    """
    factors, cells = request.factors, shape.cells(request.factors)
    own = _tile_ranges(TilingConfig.auto(), cells, factors, encode=encode)
    square = (cells[0], max(cells[1:]), max(cells[1:]))
    tilings = [TilingConfig.auto(), *([TilingConfig.default()] if encode else [])]
    largest = [_tile_ranges(tiling, square, factors, encode=encode) for tiling in tilings]
    cell = _least_cells(VIDEO_ENCODER if encode else VIDEO_DECODER, request)
    least = [1, *(cell * factor for factor in (factors[1:] if encode else (1, 1)))]
    return [
        (min(low, smallest), likely, max(axes[axis][2] for axes in largest))
        for axis, (low, (smallest, likely, _)) in enumerate(zip(least, own, strict=True))
    ]


def _tile_ranges(
    tiling: TilingConfig, cells: Sequence[int], factors: VideoScaleFactors, *, encode: bool
) -> list[Range]:
    axes = tiling.tiles(cells, factors, encode=encode)
    return [_range([t.source.stop - t.source.start for t in tiles]) for tiles in axes]


def _audio(symbol: str, per_latent: Callable[[ProfileRequest], int], least: int = 1) -> Rule:
    """Sound of a clip; longer than the clip if its frame rate is low."""

    def make(request: ProfileRequest) -> list[Bucket]:
        buckets = []
        for shape in request.shapes:
            likely, longest = (n * per_latent(request) for n in _audio_latents(shape))
            smallest = min(least, likely)
            buckets.append(_bucket(shape.name, B=ONE, **{symbol: (smallest, likely, longest)}))
        return buckets

    return make


def _mel_per_latent(request: ProfileRequest) -> int:
    return int(request.options[AUDIO_DECODER]["mel_frames_per_latent"])


def _samples_per_latent(request: ProfileRequest) -> int:
    facts = request.options[AUDIO_ENCODER]
    return int(facts["mel_hop_length"]) * int(facts["mel_frames_per_latent"])


def _audio_encoder(request: ProfileRequest) -> list[Bucket]:
    least = int(request.options[AUDIO_ENCODER]["n_fft"]) // 2 + 1
    return _audio("N", _samples_per_latent, least)(request)


def _spatial_upsampler(request: ProfileRequest) -> list[Bucket]:
    """The latent of stage 1, or a relative's, in one piece."""
    return _upsampler(request, [s.half(request.factors) or s for s in request.shapes])


def _temporal_upsampler(request: ProfileRequest) -> list[Bucket]:
    """The latent of the clip, or a relative's: frames are doubled once rows and columns are."""
    return _upsampler(request, request.shapes)


def _upsampler(request: ProfileRequest, stages: Iterable[ClipShape]) -> list[Bucket]:
    """Latents of these sizes in one piece."""
    buckets = []
    for stage in stages:
        frames, *sides = stage.cells(request.factors)
        rows, columns = _sides(sides[0], sides[1])
        buckets.append(_bucket(stage.name, B=ONE, Fl=(1, frames, frames), Hl=rows, Wl=columns))
    return buckets


def _diffusion_features(request: ProfileRequest) -> list[Bucket]:
    """The whole latent, or a relative's, padded to the smallest size, with its ghost frames."""
    facts = _decoder_facts(request)
    least = facts.min_latent_cells
    buckets = []
    for shape in request.stages():
        frames, *sides = map(max, shape.cells(request.factors), least)
        rows, columns = _sides(sides[0], sides[1], min(least[1:]))
        lengths = (least[0] + facts.ghost_frames, *(frames + facts.ghost_frames,) * 2)
        buckets.append(_bucket(shape.name, B=ONE, Fl=lengths, Hl=rows, Wl=columns))
    return buckets


def _diffusion_tiles(symbols: Sequence[str], *, pixels: bool) -> Rule:
    """The automatic tiles, lying and standing, and smaller ones: features in, and ghost features
    after the last; or patches out. Automatic tiles of other clips are those that fit
    (`decoding.chosen_tiling`).
    """

    def make(request: ProfileRequest) -> list[Bucket]:
        facts = _decoder_facts(request)
        ghosts = facts.ghost_frames * facts.scale_factors.time // facts.feature_stride[0]
        buckets = []
        for shape in request.stages():
            latent = shape.cells(request.factors)
            axes = decoder_tiles(facts, auto_tiling(facts, latent), feature_cells(facts, latent))
            sizes = []
            for axis, tiles in enumerate(axes):
                least = facts.min_feature_cells[axis]
                if pixels:
                    patch = facts.patch_size if axis else 1
                    lengths = [(t.target.stop - t.target.start) // patch for t in tiles]
                    least = least * facts.feature_stride[axis] if axis else 1
                else:
                    lengths = [t.source.stop - t.source.start for t in tiles]
                    lengths = lengths if axis else [n + ghosts for n in lengths]
                low, likely, high = _range(lengths)
                sizes.append((min(low, least), likely, high))
            turned = [sizes[0], sizes[2], sizes[1]]
            for way, ranges in (("tiles", sizes), ("tiles turned", turned)):
                given = dict(zip(symbols, ranges, strict=True))
                buckets.append(_bucket(f"{shape.name} {way}", B=ONE, **given))
        return buckets

    return make


_diffusion_patches = _diffusion_tiles(("F", "Hc", "Wc"), pixels=True)


def _decoder_facts(request: ProfileRequest) -> DecoderOptions:
    options = request.options[DIFFUSION_FEATURES]
    return DecoderOptions.from_options({"tile_bytes": DEVICE_BYTES, **options})


def _range(lengths: Sequence[int]) -> Range:
    """Smallest, most common (then longest) and largest."""
    return min(lengths), max(lengths, key=lambda n: (lengths.count(n), n)), max(lengths)


def _bucket(name: str, **sizes: tuple[int, ...]) -> Bucket:
    return Bucket(name=name, sizes=sizes)


RULES: dict[str, Rule] = {
    TEXT_HEAD: _text_encoder,
    TEXT_BLOCK: _text_encoder,
    TEXT_BLOCK_FULL: _text_encoder,
    TEXT_TAIL: _text_encoder,
    LANGUAGE_HEAD: _text_encoder,
    DURATION_HEAD: _duration_head,
    TRANSFORMER_HEAD: _transformer_ends,
    TRANSFORMER_BLOCK: _transformer,
    TRANSFORMER_BLOCK_PLAIN: _transformer,
    TRANSFORMER_TAIL: _transformer_ends,
    VIDEO_ENCODER: _video_encoder,
    VIDEO_DECODER: _video_decoder,
    STEP_EULER: _steps,
    STEP_NOISY: _steps,
    VIDEO_BLEND: _video_blend,
    VIDEO_RGB: _finished_frames,
    VIDEO_I420: _finished_frames,
    VIDEO_FLOAT: _finished_frames,
    VIDEO_YUV422: _finished_frames,
    VIDEO_UNPATCH: _diffusion_patches,
    AUDIO_ENCODER: _audio_encoder,
    AUDIO_DECODER: _audio("Ta", lambda request: 1),
    VOCODER: _audio("M", _mel_per_latent),
    SPATIAL_UPSAMPLER: _spatial_upsampler,
    TEMPORAL_UPSAMPLER: _temporal_upsampler,
    DIFFUSION_FEATURES: _diffusion_features,
    DIFFUSION_CONTEXT: _diffusion_tiles(("Fs", "Hs", "Ws"), pixels=False),
    DIFFUSION_PIXELS: _diffusion_patches,
}
