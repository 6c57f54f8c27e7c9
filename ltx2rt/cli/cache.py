"""`ltx2rt cache [clear]`: what the cache folder holds, and how it is emptied."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ltx2rt.bundle.cache import cached_files, clear_cache
from ltx2rt.cli.common import print_json
from ltx2rt.env import cache_dir
from ltx2rt.errors import OptionError

DAY_S = 86400.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        choices=("show", "clear"),
        default="show",
        help="show (default) what it holds, or clear it: all of it can be made again",
    )
    parser.add_argument(
        "--older-than",
        type=_days,
        metavar="DAYS",
        help="clear only what was neither written nor, where the file system keeps that, read in "
        "these days",
    )
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="another folder than LTX2RT_CACHE or the user's cache folder",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = math.nan
    if not (math.isfinite(days) and days >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days")
    return days


def run(options: argparse.Namespace) -> int:
    clear = options.action == "clear"
    if options.older_than is not None and not clear:
        raise OptionError(
            "--older-than says what to clear: `ltx2rt cache clear --older-than DAYS`."
        )
    folder = options.cache_dir or cache_dir()
    if options.cache_dir is not None and not folder.is_dir():
        raise OptionError(f"there is no cache folder {folder}; name another with --cache-dir.")
    before = describe(folder)
    removed = clear_cache(folder, (options.older_than or 0.0) * DAY_S) if clear else {}
    report = describe(folder) if clear else before
    if options.json:
        kinds = {kind: len(paths) for kind, paths in removed.items()}
        print_json({**report, **({"removed": kinds} if clear else {})})
        return 0
    if clear:
        freed = before["bytes"] - report["bytes"]
        print(f"removed {sum(map(len, removed.values()))} files, {_size(freed)}")
    print(text(report))
    return 0


def describe(folder: Path) -> dict[str, Any]:
    """What lies in a cache folder, by kind."""
    kinds = {kind: _totals(paths) for kind, paths in cached_files(folder).items()}
    return {
        "folder": str(folder),
        "bytes": sum(k["bytes"] for k in kinds.values()),
        "kinds": kinds,
    }


def _totals(paths: Sequence[Path]) -> dict[str, int]:
    return {"files": len(paths), "bytes": sum(p.stat().st_size for p in paths)}


def text(report: Mapping[str, Any]) -> str:
    """The report for people, in one line."""
    kinds = ", ".join(f"{kind} {_size(k['bytes'])}" for kind, k in report["kinds"].items())
    return f"cache {report['folder']}: {kinds}"


def _size(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.2f} GiB"
