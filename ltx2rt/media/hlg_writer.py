"""The master of a high dynamic range clip: 10-bit HEVC, hybrid log-gamma (spec/media_io.md §6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ltx2rt.engine import F32
from ltx2rt.errors import UnsupportedError
from ltx2rt.media import pyav as av
from ltx2rt.media.color import check_frames
from ltx2rt.media.hdr import hlg_planes, hlg_signal
from ltx2rt.media.writer import LIMITED_RANGE, VideoWriter

if TYPE_CHECKING:
    from av.video.stream import VideoStream

#: H.273 numbers of the colour tags
BT2020, ARIB_STD_B67, BT2020_NON_CONSTANT = 9, 18, 9
MAX_THREADS = 16


class HlgWriter(VideoWriter):
    """As `VideoWriter`, from linear Rec.709 light: HEVC (CRF 12, ultrafast) in Rec.2020 with the
    HLG transfer, limited range.

    Raises:
        UnsupportedError: libav was built without libx265.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if "libx265" not in av.codecs_available:
            raise UnsupportedError(
                "an HLG video needs libx265, which this build of PyAV does not hold; install the "
                "wheel of PyAV: pip install --force-reinstall --only-binary av av"
            )
        super().__init__(*arguments, **options)

    def _add_video(self) -> VideoStream:
        # without B-frames: x265 leaves their decoding times undefined in a clip of a few frames,
        # which the mp4 muxer then refuses now and then
        params = "log-level=error:bframes=0"
        options = {"crf": "12", "preset": "ultrafast", "x265-params": params}
        stream = self._container.add_stream("libx265", rate=self.frame_rate, options=options)
        context = stream.codec_context
        context.pix_fmt, context.codec_tag = "yuv420p10le", "hvc1"
        context.thread_count = MAX_THREADS
        context.color_range = LIMITED_RANGE
        context.color_primaries, context.color_trc = BT2020, ARIB_STD_B67
        context.colorspace = BT2020_NON_CONSTANT
        return stream

    def write(self, chunk: F32) -> None:
        """Append frames and the sound that goes with them.

        Args:
            chunk: `[f, H, W, 3]` linear Rec.709 light, 1 at diffuse white; NaN is black.

        Raises:
            ShapeError: not frames of the declared size.
            MediaError: the file cannot be written.
        """
        check_frames(chunk)
        self._check_size(chunk.shape[2], chunk.shape[1])
        with self._sink.guard():
            for frame in chunk:
                luma, *chroma = hlg_planes(hlg_signal(frame))
                packed = np.concatenate([luma, *(c.reshape(-1, self.width) for c in chroma)])
                self._append(av.VideoFrame.from_ndarray(packed, format="yuv420p10le"))
