"""Which engines of a bundle decode a clip and finish its frames on a device."""

from __future__ import annotations

from ltx2rt.backends.device_frames import DeviceFrames
from ltx2rt.backends.tensorrt import TrtEngine
from ltx2rt.components.device_tiles import ConvolutionTiles, DiffusionTiles
from ltx2rt.components.diffusion_decoder import Draw
from ltx2rt.components.video_decoder import VideoDecoder
from ltx2rt.engine import F32
from ltx2rt.latents.tiling import TilingConfig
from ltx2rt.media.color import FrameForm
from ltx2rt.names import (
    DIFFUSION_DECODER,
    DIFFUSION_FEATURES,
    VIDEO_BLEND,
    VIDEO_DECODER,
    VIDEO_FLOAT,
    VIDEO_I420,
    VIDEO_RGB,
    VIDEO_UNPATCH,
    VIDEO_YUV422,
)
from ltx2rt.pipelines.engines import Engines

#: form of finished frames -> the device graph that gives it
FINISHERS: dict[FrameForm, str] = {
    "i420": VIDEO_I420,
    "rgb": VIDEO_RGB,
    "rgb_rounded": VIDEO_RGB,
    "float": VIDEO_FLOAT,
    "yuv422p10": VIDEO_YUV422,
}


def decodes_on_device(engines: Engines) -> bool:
    """Whether the video decoder is an engine of a device."""
    diffusion = engines.source.has(*DIFFUSION_DECODER)
    name = DIFFUSION_FEATURES if diffusion else VIDEO_DECODER
    return isinstance(engines.engine(name), TrtEngine)


def device_frames(engines: Engines) -> DeviceFrames | None:
    """What finishes frames on the device that decodes them; None where none does, or the bundle
    was built before there was one.
    """
    if not engines.source.has(VIDEO_BLEND):
        return None
    blend = engines.engine(VIDEO_BLEND)
    if not isinstance(blend, TrtEngine):
        return None
    finishers: dict[FrameForm, TrtEngine] = {}
    for form, name in FINISHERS.items():
        if engines.source.has(name):
            engine = engines.engine(name)
            assert isinstance(engine, TrtEngine)
            finishers[form] = engine
    return DeviceFrames(blend, finishers)


def device_tiles(
    engines: Engines, latent: F32, tiling: TilingConfig, draw: Draw
) -> ConvolutionTiles | DiffusionTiles | str:
    """What decodes the tiles of a clip on its device, or why nothing does.

    Args:
        draw: gives the noise of a diffusion decoder.

    Raises:
        ShapeError: the tiling does not fit the latent.
    """
    decoder = engines.video_decoder()
    if isinstance(decoder, VideoDecoder):
        axes = decoder.tiles(latent, tiling)
        assert isinstance(decoder.engine, TrtEngine)
        return ConvolutionTiles(decoder.engine, latent, axes)
    if not decoder.takes_one_step:
        return "the diffusion decoder takes several steps to a picture"
    if not engines.source.has(VIDEO_UNPATCH):
        return "the bundle was built before diffusion decoders finished there: build it again"
    features, context, pixels, unpatch = (*decoder.engines, engines.engine(VIDEO_UNPATCH))
    assert isinstance(features, TrtEngine)
    assert isinstance(context, TrtEngine)
    assert isinstance(pixels, TrtEngine)
    assert isinstance(unpatch, TrtEngine)
    layout = decoder.layout(latent, tiling)
    parts = features, context, pixels
    return DiffusionTiles(parts, unpatch, decoder.options, layout, draw)
