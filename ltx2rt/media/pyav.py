"""PyAV, imported when it is first used: `ltx2rt generate --help` and most of a request need none of
it, and it takes as long to import as all the rest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av import AudioFrame as AudioFrame
    from av import AudioResampler as AudioResampler
    from av import Codec as Codec
    from av import CodecContext as CodecContext
    from av import FFmpegError as FFmpegError
    from av import VideoFrame as VideoFrame
    from av import codecs_available as codecs_available
    from av import open as open
else:

    def __getattr__(name: str) -> Any:
        return getattr(importlib.import_module("av"), name)
