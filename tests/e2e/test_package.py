"""What is published: a source distribution with every file, and a wheel that works on every version
of Python that is installed here.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.e2e.conftest import Home, environment

BUILD = (
    "import sys; from setuptools import build_meta as b; folder = sys.argv[1]; "
    "b.build_sdist(folder); b.build_wheel(folder)"
)
IMPORT = (
    "import importlib, pkgutil, ltx2rt, ltx2rt_kernels\n"
    "names = [m.name for m in pkgutil.walk_packages(ltx2rt.__path__, 'ltx2rt.')]\n"
    "skipped = ('ltx2rt.__main__', 'ltx2rt.service.triton')\n"
    "[importlib.import_module(n) for n in names if not n.startswith(skipped)]\n"
    "print(len(names))"
)


@pytest.fixture(scope="module")
def published(project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution and the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)],
        cwd=project, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def test_a_source_distribution_holds_the_project(
    project: Path, published: tuple[Path, Path]
) -> None:
    with tarfile.open(published[0]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    made = ("build/", ".venv/", "ltx2rt.egg-info/", "demo-work/")
    files = {p.relative_to(project).as_posix() for p in project.rglob("*") if p.is_file()}
    wanted = {f for f in files if not f.startswith(made) and "__pycache__" not in f}
    assert not wanted - held - {"demo.mp4"}
    assert not [name for name in held if name.endswith(".pyc")]


def test_a_wheel_holds_three_packages_and_what_they_read(published: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(published[1]) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {
        "ltx2rt", "ltx2rt_export", "ltx2rt_kernels"
    }  # fmt: skip
    for package in ("ltx2rt", "ltx2rt_export", "ltx2rt_kernels"):
        assert f"{package}/py.typed" in names
    assert "ltx2rt/__init__.pyi" in names
    assert any(n.startswith("ltx2rt_export/shipped/graphs/") for n in names)
    assert any(n.startswith("ltx2rt/service/http/page/") for n in names)
    assert published[1].name.endswith("-py3-none-any.whl")


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_a_wheel_makes_the_demo(version: str, published: tuple[Path, Path], tmp_path: Path) -> None:
    """In an environment of its own, with the newest packages that there are for that version."""
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "-c", ""], check=False).returncode:
        pytest.skip(f"Python {version} is not installed here")
    commands = tmp_path / "venv" / "bin"
    home = Home(tmp_path, commands, environment(commands))
    home.run(python, "-m", "venv", tmp_path / "venv")
    home.run(commands / "python", "-m", "pip", "install", "--quiet", f"{published[1]}[build,serve]")
    assert int(home.run(commands / "python", "-c", IMPORT).stdout) > 100
    home.run(commands / "ltx2rt", "demo", "-o", "demo.mp4", "--quiet")
    assert (tmp_path / "demo.mp4").stat().st_size > 10_000
    assert home.run(commands / "ltx2rt", "doctor").stdout
