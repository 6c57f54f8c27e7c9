"""Built engines, kept by everything they depend on, so that no engine is built twice."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ltx2rt.bundle.cache import WORK, remove_leftovers
from ltx2rt.bundle.engine_file import EngineInfo, file_sha256, read_info, sidecar_of, write_info
from ltx2rt.bundle.lock import build_lock
from ltx2rt.errors import BundleError, OptionError


def cache_key(facts: Mapping[str, Any]) -> str:
    """Name of an engine: a digest of everything that decides what is in it."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class EngineCache:
    """A folder of engines and the JSON beside each. Safe for several builds at once: files appear
    under their names only when they are complete.

    Raises:
        OptionError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "engines"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise OptionError(
                f"the cache folder {folder} cannot be made: something of that name is no folder; "
                "name another with --cache-dir."
            ) from error
        except OSError as error:
            raise OptionError(
                f"the cache folder {folder} cannot be made: {error.strerror}; name another with "
                "--cache-dir, or LTX2RT_CACHE."
            ) from error
        remove_leftovers(self._folder)

    def path(self, key: str) -> Path:
        """Where the engine of a key lies, if it is there."""
        return self._folder / f"{key}.engine"

    def graph_path(self, key: str) -> Path:
        """Where the exported graph of a key lies, if it is there; see `graphs.GraphCache`."""
        return self._folder / f"{key}.onnx"

    def find(self, key: str) -> EngineInfo | None:
        """What is known of a kept engine; None if it is not there, or not as it was written."""
        engine = self.path(key)
        try:
            info = read_info(engine)
            whole = file_sha256(engine) == info.engine_sha256
        except (BundleError, FileNotFoundError):
            return None
        return info if whole and info.cache_key == key else None

    def put(self, engine: Path, info: EngineInfo) -> None:
        """Keep an engine that was built in a `work` folder of this cache."""
        target = self.path(info.cache_key)
        sidecar_of(target).unlink(missing_ok=True)
        engine.replace(target)
        write_info(info, target)

    @contextmanager
    def work(self) -> Iterator[Path]:
        """A new folder for one build, on the cache's file system; removed afterwards, or by the
        next build if this one is killed.
        """
        folder = self._folder / WORK.replace("*", secrets.token_hex(8))
        with build_lock(folder):
            folder.mkdir()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
