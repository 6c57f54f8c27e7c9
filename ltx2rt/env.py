"""The only place that touches environment variables: `LTX2RT_*` names, those of CUDA for errors,
and the log level of a library that takes it from nowhere else.
"""

from __future__ import annotations

import os
from pathlib import Path

from ltx2rt.errors import OptionError


def cache_dir() -> Path:
    """Where built engines are kept: `LTX2RT_CACHE`, else `ltx2rt` in the user's cache folder.

    Raises:
        OptionError: `LTX2RT_CACHE` names a file.
    """
    named = os.environ.get("LTX2RT_CACHE")
    if named:
        path = Path(named).expanduser()
        if path.exists() and not path.is_dir():
            raise OptionError(f"LTX2RT_CACHE={named} is a file; name a folder.")
        return path
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ltx2rt"


def enhance_key() -> str | None:
    """The key of the prompt enhancer's endpoint: `LTX2RT_ENHANCE_KEY`; None if it is not set."""
    return os.environ.get("LTX2RT_ENHANCE_KEY") or None


def api_key() -> str | None:
    """The key that `ltx2rt client` sends: `LTX2RT_API_KEY`; None if it is not set."""
    return os.environ.get("LTX2RT_API_KEY") or None


def visible_devices() -> str | None:
    """What CUDA shows of this machine's GPUs: `CUDA_VISIBLE_DEVICES`; None if it is not set."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def quieten_svt() -> None:
    """Let the AV1 encoder print errors only (`SVT_LOG=1`), unless the user asks for more."""
    os.environ.setdefault("SVT_LOG", "1")
