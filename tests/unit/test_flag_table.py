"""What `generate --help` and `pipelines` show is written down, so that they import no runtime."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from ltx2rt.cli.__main__ import main
from ltx2rt.cli.fields import all_flags, flags_for
from ltx2rt.cli.flag_table import TABLE
from ltx2rt.cli.generate_help import add_flags, known_flags
from ltx2rt.pipelines.base import pipeline_class
from ltx2rt.pipelines.catalog import PIPELINES
from tests.flag_table import table


def test_the_table_is_up_to_date() -> None:
    assert TABLE.read_text(encoding="utf-8") == table(), "run `make docs`"


@pytest.mark.parametrize("name", [None, *PIPELINES])
def test_the_help_is_that_of_the_flags_themselves(name: str | None) -> None:
    flags = all_flags().values() if name is None else flags_for(pipeline_class(name))
    real, shown = argparse.ArgumentParser(), argparse.ArgumentParser()
    add_flags(real, ((f.names, f.group, f.arguments()) for f in flags))
    add_flags(shown, known_flags(name))
    assert shown.format_help() == real.format_help()


@pytest.mark.parametrize(
    "arguments", [["generate", "--help"], ["generate", "--pipeline", "dfr", "-h"], ["pipelines"]]
)
def test_what_only_shows_imports_no_runtime(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom ltx2rt.cli.__main__ import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "print(sorted({'numpy', 'onnxruntime', 'ltx2rt.config'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")
    assert "dfr" in done.stdout


def test_a_flag_after_the_end_of_flags_asks_for_no_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["generate", "--prompt", "a", "-o", "x.mp4", "--", "--help"]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert "--help" in said.err
