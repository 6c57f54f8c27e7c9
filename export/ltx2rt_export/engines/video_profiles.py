"""Sizes that pipelines ask of what encodes, enlarges and decodes pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ltx2rt.backends.frame_memory import SLICE_FRAMES
from ltx2rt.bundle.buckets import Bucket, Range
from ltx2rt.components.decoder_tiles import (
    DEVICE_BYTES,
    DecoderOptions,
    auto_tiling,
    decoder_tiles,
    feature_cells,
)
from ltx2rt.errors import OptionError
from ltx2rt.latents.shapes import VideoScaleFactors
from ltx2rt.latents.tiling import TilingConfig
from ltx2rt.names import DIFFUSION_FEATURES, VIDEO_DECODER, VIDEO_ENCODER
from ltx2rt_export.engines.profile_request import ONE, ProfileRequest, Rule, make_bucket, range_of
from ltx2rt_export.engines.shapes import ClipShape


def check_sides(request: ProfileRequest) -> None:
    """Refuse clips that are all too small for the video VAE of this model.

    Raises:
        OptionError: they are.
    """
    for name in (VIDEO_ENCODER, VIDEO_DECODER):
        _large_enough(name, request.shapes, request)


def video_encoder_buckets(request: ProfileRequest) -> list[Bucket]:
    """Images in one piece, of a clip's size and its relatives'; clips in tiles; references at the
    size of stage 1 in one piece.
    """
    factors, buckets = request.factors, []
    least = _least_cells(VIDEO_ENCODER, request) * factors.height
    shapes = _large_enough(VIDEO_ENCODER, request.shapes, request)
    for shape in shapes:
        rows, columns = _sides(shape.height, shape.width, least)
        buckets.append(
            make_bucket(f"{shape.width}x{shape.height}x1", B=ONE, F=ONE, H=rows, W=columns)
        )
    for shape in shapes:
        if shape.num_frames == 1:
            continue
        frames, rows, columns = _tile_sizes(shape, request, encode=True)
        buckets.append(make_bucket(f"{shape.name} tiles", B=ONE, F=frames, H=rows, W=columns))
        stage = shape.half(factors)
        if stage is not None and _is_large_enough(VIDEO_ENCODER, stage, request):
            rows, columns = _sides(stage.height, stage.width, least)
            frames = (1, shape.num_frames, shape.num_frames)
            buckets.append(make_bucket(stage.name, B=ONE, F=frames, H=rows, W=columns))
    return buckets


def video_decoder_buckets(request: ProfileRequest) -> list[Bucket]:
    """The tiles that pipelines cut a clip and its relatives into."""
    return [
        make_bucket(
            f"{shape.name} tiles",
            B=ONE,
            **dict(zip(("Fl", "Hl", "Wl"), _tile_sizes(shape, request), strict=True)),
        )
        for shape in _large_enough(VIDEO_DECODER, request.stages(), request)
    ]


def video_blend_buckets(request: ProfileRequest) -> list[Bucket]:
    """The pixels of the tiles that the decoder takes."""
    time, *sides = request.factors
    buckets = []
    if DIFFUSION_FEATURES in request.options:
        patch = _decoder_facts(request).patch_size
        for bucket in diffusion_patches_buckets(request):
            frames, rows, columns = (bucket.sizes[symbol] for symbol in ("F", "Hc", "Wc"))
            rows, columns = (tuple(n * patch for n in side) for side in (rows, columns))
            buckets.append(make_bucket(bucket.name, F=frames, H=rows, W=columns))
        return buckets
    for bucket in video_decoder_buckets(request):
        frames = tuple((n - 1) * time + 1 for n in bucket.sizes["Fl"])
        rows, columns = (
            tuple(n * factor for n in bucket.sizes[symbol])
            for symbol, factor in zip(("Hl", "Wl"), sides, strict=True)
        )
        buckets.append(make_bucket(bucket.name, F=frames, H=rows, W=columns))
    return buckets


def finished_frames_buckets(request: ProfileRequest) -> list[Bucket]:
    """Whole pictures, a few frames at a time."""
    if DIFFUSION_FEATURES in request.options:
        # what is smaller is padded
        padded = least = max(_decoder_facts(request).min_latent_cells[1:])
        stages: Iterable[ClipShape] = request.stages()
    else:
        padded, least = 1, _least_cells(VIDEO_DECODER, request)
        stages = _large_enough(VIDEO_DECODER, request.stages(), request)
    factor = request.factors.height
    buckets = []
    for shape in stages:
        height, width = (max(side, padded * factor) for side in (shape.height, shape.width))
        rows, columns = _sides(height, width, least * factor)
        frames = (1, SLICE_FRAMES, SLICE_FRAMES)
        buckets.append(make_bucket(shape.name, F=frames, H=rows, W=columns))
    return buckets


def _large_enough(
    name: str, shapes: Iterable[ClipShape], request: ProfileRequest
) -> list[ClipShape]:
    """Shapes that a part of the video VAE takes; a half-size stage may be none.

    Raises:
        OptionError: there is no such shape.
    """
    if taken := [shape for shape in shapes if _is_large_enough(name, shape, request)]:
        return taken
    least = _least_cells(name, request)
    raise OptionError(
        f"shapes {', '.join(s.name for s in request.shapes)} are too small for {name}, which pads "
        f"by reflection: it needs {least} latent cells a side, so clips of at least "
        f"{least * request.factors.width}x{least * request.factors.height}."
    )


def _is_large_enough(name: str, shape: ClipShape, request: ProfileRequest) -> bool:
    return min(shape.cells(request.factors)[1:]) >= _least_cells(name, request)


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
    return [range_of([t.source.stop - t.source.start for t in tiles]) for tiles in axes]


def spatial_upsampler_buckets(request: ProfileRequest) -> list[Bucket]:
    """The latent of stage 1, or a relative's, in one piece."""
    return _upsampler(request, [s.half(request.factors) or s for s in request.shapes])


def temporal_upsampler_buckets(request: ProfileRequest) -> list[Bucket]:
    """The latent of the clip, or a relative's: frames are doubled once rows and columns are."""
    return _upsampler(request, request.shapes)


def _upsampler(request: ProfileRequest, stages: Iterable[ClipShape]) -> list[Bucket]:
    """Latents of these sizes in one piece."""
    buckets = []
    for stage in stages:
        frames, *sides = stage.cells(request.factors)
        rows, columns = _sides(sides[0], sides[1])
        buckets.append(make_bucket(stage.name, B=ONE, Fl=(1, frames, frames), Hl=rows, Wl=columns))
    return buckets


def diffusion_features_buckets(request: ProfileRequest) -> list[Bucket]:
    """The whole latent, or a relative's, padded to the smallest size, with its ghost frames."""
    facts = _decoder_facts(request)
    least = facts.min_latent_cells
    buckets = []
    for shape in request.stages():
        frames, *sides = map(max, shape.cells(request.factors), least)
        rows, columns = _sides(sides[0], sides[1], min(least[1:]))
        lengths = (least[0] + facts.ghost_frames, *(frames + facts.ghost_frames,) * 2)
        buckets.append(make_bucket(shape.name, B=ONE, Fl=lengths, Hl=rows, Wl=columns))
    return buckets


def diffusion_tiles(symbols: Sequence[str], *, pixels: bool) -> Rule:
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
                low, likely, high = range_of(lengths)
                sizes.append((min(low, least), likely, high))
            turned = [sizes[0], sizes[2], sizes[1]]
            for way, ranges in (("tiles", sizes), ("tiles turned", turned)):
                given = dict(zip(symbols, ranges, strict=True))
                buckets.append(make_bucket(f"{shape.name} {way}", B=ONE, **given))
        return buckets

    return make


diffusion_patches_buckets = diffusion_tiles(("F", "Hc", "Wc"), pixels=True)
diffusion_contexts_buckets = diffusion_tiles(("Fs", "Hs", "Ws"), pixels=False)


def _decoder_facts(request: ProfileRequest) -> DecoderOptions:
    options = request.options[DIFFUSION_FEATURES]
    return DecoderOptions.from_options({"tile_bytes": DEVICE_BYTES, **options})
