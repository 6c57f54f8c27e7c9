"""Kernels that TensorRT-RTX compiles when an engine first runs, kept for the next process.

The library refuses what another GPU, driver or version compiled; then it compiles anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from ltx2rt.bundle.engine_file import EngineInfo
from ltx2rt.device.cuda import Gpu
from ltx2rt.env import cache_dir
from ltx2rt.errors import EngineError
from ltx2rt.partial import Partial


class RuntimeCache:
    """The kernels of engines that differ in nothing but the weights inside them, on one kind of
    GPU, in the cache folder.

    Args:
        path: the file.
        config: the `IRuntimeConfig` of the first engine that uses them; a CUDA context is current.
    """

    def __init__(self, path: Path, config: Any) -> None:
        self.path = path
        self._config = config  # lives as long as its cache
        self._cache = config.create_runtime_cache()
        self._held = self.path.read_bytes() if self.path.is_file() else b""
        if self._held:
            self._cache.deserialize(self._held)
        self._users = 0
        self._used = False

    def open_for(self, config: Any) -> None:
        """Let one more engine use it.

        Raises:
            EngineError: the library refuses.
        """
        if not config.set_runtime_cache(self._cache):
            raise EngineError(f"TensorRT-RTX refuses its own cache of kernels, {self.path}.")
        self._users += 1

    def close(self, *, used: bool) -> int:
        """An engine is done; the last one writes what was compiled since.

        Args:
            used: the engine ran.

        Returns:
            how many engines still use it.
        """
        self._users -= 1
        self._used = self._used or used
        if not self._users and self._used:
            self._save()
        return self._users

    def _save(self) -> None:
        """Where writing fails, the next start compiles again."""
        data = bytes(self._cache.serialize() or b"")
        if not data or data == self._held:
            return
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with Partial(self.path) as part:
                part.file.write(data)


def cache_path(info: EngineInfo, gpu: Gpu) -> Path:
    """Where the kernels of an engine are: one place for the engines of all layers of a component,
    each of which has its weights inside.
    """
    facts = [
        info.component,
        info.backend_version,
        info.precision,
        [[t.name, t.dtype, t.shape] for t in (*info.inputs, *info.outputs)],
        [[b.name, b.sizes] for b in info.buckets],
        info.options,
        info.graph_sha256 if info.weight_inputs else "",
    ]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    card = re.sub(r"\W+", "-", gpu.name)
    return cache_dir() / "kernels" / f"{info.component}-{digest[:32]}-{card}.bin"
