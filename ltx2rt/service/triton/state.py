"""How the instances of a model are, for the model that answers health checks.

Triton says that a model is ready even after its process died; so each instance writes who and how
it is into a file, and a canary looks whether that process is alive.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from ltx2rt.plain_data import write_document


def _folder() -> Path:
    """One folder a server: instances are children of the same process."""
    return Path(tempfile.gettempdir()) / f"ltx2rt-triton-{os.getppid()}"


class InstanceState:
    """The state of one instance.

    Args:
        model, instance: what Triton calls them.
    """

    def __init__(self, model: str, instance: str) -> None:
        folder = _folder()
        folder.mkdir(mode=0o700, exist_ok=True)
        self._path = folder / f"{re.sub(r'[^A-Za-z0-9]', '_', f'{model}-{instance}')}.json"
        self._model = model

    def write(self, state: str) -> None:
        """`ready`, `busy` or `broken`."""
        write_document({"model": self._model, "state": state, "process": os.getpid()}, self._path)

    def remove(self) -> None:
        """It is unloaded."""
        self._path.unlink(missing_ok=True)


def health() -> dict[str, Any]:
    """Whether every instance of this server is alive and its device well; and each of them."""
    found = []
    for path in sorted(_folder().glob("*.json")):
        entry = json.loads(path.read_text())
        if not _is_alive(entry["process"]):
            entry["state"] = "dead"
        found.append(entry)
    well = bool(found) and all(e["state"] in ("ready", "busy") for e in found)
    return {"healthy": well, "instances": found}


def _is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")
