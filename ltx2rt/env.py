"""The only place that touches environment variables: `LTX2RT_*` names, those of CUDA for errors,
and settings of libraries that take them from nowhere else.
"""

from __future__ import annotations

import os
from pathlib import Path

from ltx2rt.errors import OptionError


def cache_dir() -> Path:
    """Where built engines are kept: `LTX2RT_CACHE`, else `ltx2rt` in the user's cache folder.

    Raises:
        OptionError: `LTX2RT_CACHE` names a file; or it is not set and the user has no home.
    """
    named = os.environ.get("LTX2RT_CACHE")
    if named:
        try:
            path = Path(named).expanduser()
        except RuntimeError as error:
            raise OptionError(f"LTX2RT_CACHE={named} names no user of this machine.") from error
        if path.exists() and not path.is_dir():
            raise OptionError(f"LTX2RT_CACHE={named} is a file; name a folder.")
        return path
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "ltx2rt"
    try:
        return Path.home() / ".cache" / "ltx2rt"
    except RuntimeError as error:
        raise OptionError(
            "this user has no home folder to keep a cache in; name one with LTX2RT_CACHE."
        ) from error


def enhance_key() -> str | None:
    """The key of the prompt enhancer's endpoint: `LTX2RT_ENHANCE_KEY`; None if it is not set."""
    return os.environ.get("LTX2RT_ENHANCE_KEY") or None


def enhance_url() -> str | None:
    """The address that the enhancer's key is for: `LTX2RT_ENHANCE_URL`; None if it is not set."""
    return os.environ.get("LTX2RT_ENHANCE_URL") or None


def api_key() -> str | None:
    """The key that `ltx2rt client` sends: `LTX2RT_API_KEY`; None if it is not set."""
    return os.environ.get("LTX2RT_API_KEY") or None


def visible_devices() -> str | None:
    """What CUDA shows of this machine's GPUs: `CUDA_VISIBLE_DEVICES`; None if it is not set."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def quieten_svt() -> None:
    """Let the AV1 encoder print errors only (`SVT_LOG=1`), unless the user asks for more."""
    os.environ.setdefault("SVT_LOG", "1")


def keep_ray_quiet() -> None:
    """Have Ray report nothing to its makers (`RAY_USAGE_STATS_ENABLED=0`), unless the user asks
    for it.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
