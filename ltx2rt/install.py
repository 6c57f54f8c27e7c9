"""How a part of ltx2rt that is missing here is installed: the one home of that advice."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


def install_hint(extra: str) -> str:
    """The command that adds an extra to this installation, e.g. `pip install 'ltx2rt[exr]'`: from
    the folder, repository or index that ltx2rt itself came from.
    """
    try:
        text = importlib.metadata.distribution("ltx2rt").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:  # run from its sources, not installed
        return f"pip install '{Path(__file__).parents[1]}[{extra}]'"
    return f"pip install {_requirement(extra, json.loads(text) if text else {})}"


def _requirement(extra: str, origin: dict[str, Any]) -> str:
    """What `pip install` takes; `origin`: see PEP 610."""
    from urllib.request import url2pathname  # slow to import

    url = origin.get("url")
    if not isinstance(url, str):
        return f"'ltx2rt[{extra}]'"
    if "dir_info" in origin:
        editable = "-e " if origin["dir_info"].get("editable") else ""
        return f"{editable}'{url2pathname(unquote(urlsplit(url).path))}[{extra}]'"
    vcs = origin.get("vcs_info")
    place = f"{vcs['vcs']}+{url}@{vcs['commit_id']}" if vcs else url
    return f"'ltx2rt[{extra}] @ {place}'"
