"""The runtime and its tests import no build-time package, directly or indirectly, in a fresh
interpreter.
"""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import ltx2rt
from tests.unit.conftest import HEAVY

FORBIDDEN = HEAVY | {"safetensors"}

SCRIPT = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps(sorted({m.split(".")[0] for m in sys.modules})))
"""


def loaded_after(names: list[str]) -> set[str]:
    out = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(names)],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(out.stdout))


def test_every_runtime_module_is_lean() -> None:
    names = [m.name for m in pkgutil.walk_packages(ltx2rt.__path__, "ltx2rt.")]
    assert len(names) > 20
    loaded = loaded_after(["ltx2rt", *names])
    assert not loaded & FORBIDDEN
    assert "ltx2rt_export" not in loaded


def test_package_itself_loads_no_backend() -> None:
    assert not loaded_after(["ltx2rt"]) & {"onnxruntime", "av", "tokenizers", "PIL"}


def test_checkpoint_reader_needs_no_torch() -> None:
    assert not loaded_after(["ltx2rt_export.checkpoint", "ltx2rt_export.inspect"]) & FORBIDDEN


COLLECT = """
import sys, pytest
code = pytest.main(["-q", "--collect-only", "-p", "no:cacheprovider", sys.argv[1]])
print(code, *{m.split(".")[0] for m in sys.modules})
"""


def test_this_tier_is_collected_without_them() -> None:
    """`conftest.py` sees to it that running a test loads none either."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    out = subprocess.run(
        [sys.executable, "-c", COLLECT, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    ).stdout.splitlines()
    assert "test_imports.py::test_this_tier_is_collected_without_them" in "\n".join(out)
    code, *loaded = out[-1].split()
    assert code in ("0", "ExitCode.OK"), out
    assert not set(loaded) & (HEAVY | {"ml_dtypes"})  # which comes with onnx
