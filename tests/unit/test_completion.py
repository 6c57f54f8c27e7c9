"""The completion scripts know every command and flag, and a shell takes them."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from ltx2rt.cli.__main__ import COMMANDS, main
from ltx2rt.cli.completion import script


def completed(*words: str) -> list[str]:
    """What bash offers for the last of these words."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    text = (
        f"{script('bash')}\nCOMP_WORDS=({' '.join(words)!s} {'' if words[-1] else chr(34) * 2})\n"
        f"COMP_CWORD={len(words) - 1}\n_ltx2rt\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run([bash, "-c", text], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bash_completes() -> None:
    assert completed("ltx2rt", "gen") == ["generate"]
    assert completed("ltx2rt", "build", "--pre") == ["--precision"]
    assert completed("ltx2rt", "generate", "--num-f") == ["--num-frames"]
    assert "two-stage-hq" in completed("ltx2rt", "generate", "--pipeline", "two")


def test_every_shell_knows_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert main(["completion", shell]) == 0
        text = capsys.readouterr().out
        assert all(name in text for name in COMMANDS)
        assert "keep" in text
