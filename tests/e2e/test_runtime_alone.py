"""The runtime is all that running a bundle takes: installed without the export extra."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.conftest import Home

ABSENT = "import importlib.util as u; assert not any(map(u.find_spec, ('torch', 'onnx')))"


def test_unit_tests_pass_without_torch(runtime_alone: Home) -> None:
    python = runtime_alone.commands / "python"
    runtime_alone.run(python, "-c", ABSENT)
    done = runtime_alone.run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit")
    assert b" passed" in done.stdout


def test_the_installed_package_has_its_public_names(runtime_alone: Home, tmp_path: Path) -> None:
    program = "import ltx2rt; assert all(getattr(ltx2rt, n) for n in ltx2rt.__all__); ltx2rt.Job()"
    runtime_alone.inside(tmp_path / "elsewhere").run(
        runtime_alone.commands / "python", "-c", program
    )


def test_a_build_says_what_to_install(runtime_alone: Home) -> None:
    done = runtime_alone.run("ltx2rt", "build", "--checkpoint", "x", "-o", "b", code=2)
    assert b"[build]'" in done.stderr
