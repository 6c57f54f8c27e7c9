"""What a whole run makes once, whichever of its processes (pytest-xdist) needs it first."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(
    factory: pytest.TempPathFactory, name: str, make: Callable[[Path], dict[str, Path]]
) -> dict[str, Path]:
    """The files that `make` writes into a folder of this run; the other processes wait for them.

    They are read-only to tests.
    """
    base = factory.getbasetemp()
    # a worker's folder lies in the one of the run
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"shared-{name}"
    made = folder.with_suffix(".json")
    with FileLock(folder.with_suffix(".lock")):
        if not made.exists():
            folder.mkdir()
            files = make(folder)
            made.write_text(json.dumps({key: str(path) for key, path in files.items()}))
    return {key: Path(path) for key, path in json.loads(made.read_text()).items()}
