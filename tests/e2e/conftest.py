"""A copy of the project, set up as its README says, in an environment of its own.

Opt-in: `LTX2RT_E2E=1 python -m pytest tests/e2e`, or `make e2e`. It installs the project twice from
the package index, and takes about ten minutes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ASKED = os.environ.get("LTX2RT_E2E") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in here:
        item.add_marker(pytest.mark.slow)
        if not ASKED:
            item.add_marker(pytest.mark.skip(reason="installs the project anew: set LTX2RT_E2E=1"))


def environment(commands: Path) -> dict[str, str]:
    """This process's variables without those that would let its own packages through."""
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL", "PYTEST"))
    }
    return kept | {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Home:
    """A folder and the environment that its commands run in."""

    folder: Path
    commands: Path
    variables: Mapping[str, str]

    def run(self, *command: object, code: int = 0) -> subprocess.CompletedProcess[bytes]:
        """Run a command; anything but this exit code fails the test with what it said."""
        done = subprocess.run(
            [str(part) for part in command],
            cwd=self.folder,
            env=dict(self.variables),
            capture_output=True,
            check=False,
        )
        told, said = (s.decode(errors="replace")[-4000:] for s in (done.stdout, done.stderr))
        assert done.returncode == code, f"{command} gave {done.returncode}:\n{told}\n{said}"
        assert "Traceback" not in said
        return done

    def inside(self, folder: Path) -> Home:
        """The same environment in another folder."""
        folder.mkdir()
        return Home(folder, self.commands, self.variables)


def copy_of_the_project(target: Path) -> Path:
    """Every file that git knows or would add."""
    listing: Sequence[str] = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listing:
        if (REPOSITORY / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target / name)
    return target


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_the_project(tmp_path_factory.mktemp("project") / "ltx2rt")


@pytest.fixture(scope="session")
def made(project: Path) -> Home:
    """After `make demo`, the first command of the README."""
    home = Home(project, project / ".venv/bin", environment(project / ".venv/bin"))
    home.run("make", "demo", f"PYTHON={Path(sys.base_prefix) / 'bin/python3'}")
    return home


@pytest.fixture(scope="session")
def runtime_alone(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The project and what its unit tests use, without the export extra: there is no torch."""
    venv = tmp_path_factory.mktemp("runtime") / ".venv"
    home = Home(project, venv / "bin", environment(venv / "bin"))
    home.run(Path(sys.base_prefix) / "bin/python3", "-m", "venv", venv)
    pip = (venv / "bin/python", "-m", "pip", "install", "--quiet", "-c", "constraints.txt")
    home.run(*pip, ".[exr,serve]", "pytest", "filelock", "hypothesis", "safetensors", "pyyaml")
    return home
