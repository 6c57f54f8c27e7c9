"""Kernels that TensorRT-RTX compiles when an engine first runs, kept for the next process.

The library refuses what another GPU, driver or version compiled; then it compiles anew.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

from ltx2rt.bundle.engine_file import EngineInfo
from ltx2rt.device.cuda import Gpu
from ltx2rt.env import cache_dir
from ltx2rt.partial import Partial


class RuntimeCache:
    """The kernels of one engine on one kind of GPU, in the cache folder.

    Args:
        config: the engine's `IRuntimeConfig`, which uses them; a CUDA context is current.
    """

    def __init__(self, config: Any, info: EngineInfo, gpu: Gpu) -> None:
        card = re.sub(r"\W+", "-", gpu.name)
        self._path = cache_dir() / "kernels" / f"{info.cache_key}-{card}.bin"
        self._config = config  # lives as long as its cache
        self._cache = config.create_runtime_cache()
        self._held = self._path.read_bytes() if self._path.is_file() else b""
        if self._held:
            self._cache.deserialize(self._held)
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write what was compiled since; where that fails, the next start compiles again."""
        data = bytes(self._cache.serialize() or b"")
        if not data or data == self._held:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with Partial(self._path) as part:
                part.file.write(data)
