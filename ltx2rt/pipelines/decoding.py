"""Latents of a finished generation to frames and sound."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from ltx2rt.backends.device_frames import DeviceFrames, Tiles
from ltx2rt.bundle.source import ModelFacts
from ltx2rt.components.decoder_tiles import Cells, DecoderOptions, auto_tiling
from ltx2rt.components.finite import check_finite, not_finite
from ltx2rt.components.video_decoder import Progress, VideoDecoder
from ltx2rt.engine import Array
from ltx2rt.latents.tiling import TilingConfig
from ltx2rt.media.color import FrameForm, PackedForm, cropped
from ltx2rt.names import (
    AUDIO_DECODER,
    DEVICE_FRAMES,
    DIFFUSION_CONTEXT,
    DIFFUSION_DECODER,
    DIFFUSION_FEATURES,
    DIFFUSION_PIXELS,
    VIDEO_DECODER,
    VOCODER,
)
from ltx2rt.pipelines.built_sizes import built_buckets
from ltx2rt.pipelines.device_decoding import decodes_on_device, device_frames, device_tiles
from ltx2rt.pipelines.engines import Engines
from ltx2rt.progress import Job
from ltx2rt.sampling.gpu_noise import Generator


def decode_video(
    engines: Engines,
    generator: Generator,
    job: Job,
    latent: Array,
    tiling: str,
    form: PackedForm | None = None,
) -> Iterator[Array]:
    """Chunks of float32 `[f, H, W, 3]` in [0, 1], finished ones while later tiles decode; the
    decoder is released. Other threads wait for their turn until the last one, or until the iterator
    is closed.

    Args:
        generator: the run's, after its last draw: a diffusion decoder takes its noise from a copy,
            so that every decoding gives the same frames.
        latent: `[1, C, F, H, W]`.
        tiling: as `chosen_tiling` gave it.
        form: what will do instead: chunks are in this form where the decoder's device makes them.
    """

    def on_tile(done: int, total: int) -> None:
        job.report("decode video", done, total)

    chosen, allowed = TilingConfig.parse(tiling), engines.runtime.allow_nan
    draw = generator.copy().randn
    parts = (VIDEO_DECODER, *DEVICE_FRAMES, *DIFFUSION_DECODER)
    with engines.picture_turns().taken(), engines.decoding(*parts):
        job.report("decode video", 0, 1)
        decoder, device = engines.video_decoder(), device_frames(engines)
        if device is not None:
            # NaN that is let through is for the caller to find
            wanted: FrameForm = "float" if form is None or allowed else form
            tiles = device_tiles(engines, latent, chosen, draw)
            reason = tiles if isinstance(tiles, str) else device.reason_against(tiles, wanted)
            if reason is None and not isinstance(tiles, str):
                yield from _finished(device, tiles, wanted, on_tile, allow_nan=allowed)
                return
            job.on_host("decode video", str(reason))
        elif decodes_on_device(engines):
            job.on_host("decode video", "no engines finish frames on the device: build it again")
        if isinstance(decoder, VideoDecoder):
            chunks = decoder.decode(latent, chosen, on_tile)
        else:
            chunks = decoder.decode(latent, draw, chosen, on_tile)
        for chunk in chunks:
            check_finite("decode video", {"frames": chunk}, allowed=allowed)
            yield chunk


def _finished(
    device: DeviceFrames,
    tiles: Tiles,
    form: FrameForm,
    progress: Progress,
    *,
    allow_nan: bool,
) -> Iterator[Array]:
    """Chunks that a device finished."""
    left, rows, columns = tiles.part or (None, slice(0, 0), slice(0, 0))
    with closing(device.frames(tiles, form, progress)) as chunks:
        for chunk, not_numbers in chunks:
            if not_numbers and not allow_nan:
                raise not_finite("decode video", "frames")
            if left is None:
                yield chunk
                continue
            kept = chunk[:left]
            left -= len(kept)
            if len(kept):
                height, width = rows.stop - rows.start, columns.stop - columns.start
                yield cropped(kept, height, width, rows.start, columns.start)


def chosen_tiling(source: ModelFacts, tiling: str, cells: Sequence[int]) -> str:
    """How a latent of these cells is decoded, as `GenerationConfig.tiling`. Automatic tiles of a
    diffusion decoder depend on memory and on what its engines were built for, and decide its noise,
    so they are named.
    """
    if tiling != "auto" or not source.has(*DIFFUSION_DECODER):
        return tiling
    facts = DecoderOptions.from_options(source.options(DIFFUSION_FEATURES))
    context, pixels = (built_buckets(source, n) for n in (DIFFUSION_CONTEXT, DIFFUSION_PIXELS))
    ghosts = facts.ghost_frames * facts.scale_factors.time // facts.feature_stride[0]
    time, rows, columns = facts.feature_stride

    def fits(tile: Cells) -> bool:
        """Whether the engines were built for such a tile, with ghost frames or without."""
        features = {"Fs": tile[0] + ghosts, "Hs": tile[1], "Ws": tile[2]}
        patches = {"F": tile[0] * time, "Hc": tile[1] * rows, "Wc": tile[2] * columns}
        if not context or not pixels:
            return True
        return any(b.reaches(features) for b in context) and any(b.reaches(patches) for b in pixels)

    return auto_tiling(facts, cells, fits=fits).text()


def decode_audio(engines: Engines, job: Job, latent: Array) -> tuple[NDArray[np.float32], int]:
    """Waveform `[2, N]` in [-1, 1] and its rate in Hz; the decoder is released."""
    with engines.sound_turns().taken():
        job.report("decode audio", 0, 1)
        sound = engines.audio_decoder()(latent)
        check_finite("decode audio", {"the sound": sound[0]}, allowed=engines.runtime.allow_nan)
        engines.release(AUDIO_DECODER, VOCODER)
        job.report("decode audio", 1, 1)
    return sound
