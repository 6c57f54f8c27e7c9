"""However a command is ended or its streams are closed: one sentence, its status, nothing left."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ltx2rt.cli.__main__ import main
from ltx2rt.cli.signals import Ended, ending_signals, exit_status
from ltx2rt.cli.streams import PlainStream

#: how a process that somebody started in front takes signals, where that is not by ending
DEFAULTS = {signal.SIGINT: signal.default_int_handler}

#: a command that writes a file and is sent a signal meanwhile
SENT = """
import os, sys
from pathlib import Path
from ltx2rt.cli import doctor
from ltx2rt.cli.__main__ import main
from ltx2rt.partial import Partial
def run(options):
    with Partial(Path(sys.argv[1]) / "a.mp4") as part:
        os.kill(os.getpid(), int(sys.argv[2]))
    return 0
doctor.run = run
sys.exit(main(["doctor"]))
"""


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGTERM, 143, "ended by SIGTERM"),
        (signal.SIGHUP, 129, "ended by SIGHUP"),
        (signal.SIGINT, 130, "interrupted"),
    ],
)
def test_signals_end_a_command_cleanly(number: int, status: int, said: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SENT, str(tmp_path), str(int(number))],
        capture_output=True,
        text=True,
        check=False,
        # whoever runs the tests in the background has them ignored
        preexec_fn=lambda: signal.signal(number, DEFAULTS.get(number, signal.SIG_DFL)),
    )
    assert done.returncode == status
    assert done.stderr == f"\nltx2rt: {said}; partial output was removed.\n"
    assert list(tmp_path.iterdir()) == []


def test_ignored_signals_stay_ignored_and_a_second_one_cuts_nothing_off() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(Ended) as error:
                os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert exit_status(error.value) == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_peers_say_does_not_steer_the_terminal() -> None:
    text = io.StringIO()
    stream = PlainStream(text)
    print("a\x1b[31m \x9b \u202e \udcff\rb\n\tc", file=stream)
    print("\r50 %", end="", file=stream)
    assert text.getvalue() == "a\\u001b[31m \\u009b \\u202e \\udcff\\u000db\n\tc\n\r50 %"


def shell(command: str, folder: Path) -> tuple[int, str]:
    """Status and everything said of a command in a shell, `ltx2rt` being ours."""
    ours = f'ltx2rt() {{ "{sys.executable}" -m ltx2rt.cli "$@"; }}; {command}'
    found = [p or os.getcwd() for p in sys.path]  # noqa: PTH109
    path = os.pathsep.join(p for p in found if Path(p).is_absolute())  # no hooks of installers
    done = subprocess.run(
        ["bash", "-c", ours],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("ltx2rt pipelines >&- 2>&- <&-", 0, ""),
        ("ltx2rt generate nowhere --prompt a -o - >&-", 2, "standard output is closed"),
        ("mkdir d; cd d; rmdir ../d; ltx2rt inspect x", 2, "No such file"),
        ("mkdir d; cd d; rmdir ../d; ltx2rt generate x --prompt a -o x.mp4", 2, "was removed"),
        ("ln -s l.mp4 l.mp4; ltx2rt generate x --prompt a -o l.mp4", 2, "leads to itself"),
        ("ln -s no/x.mp4 l.mp4; ltx2rt generate x --prompt a -o l.mp4", 2, "does not exist"),
        (
            "ltx2rt generate x --prompt a -o x.mp4 --save-latents " + "a" * 256,
            2,
            "File name too long",
        ),
        ("LTX2RT_CACHE='~nosuchuser/x' ltx2rt cache", 2, "LTX2RT_CACHE"),
        ("ulimit -n 12; ltx2rt batch x nojobs.jsonl -o d", 2, ""),
    ],
)
def test_odd_surroundings(command: str, status: int, said: str, tmp_path: Path) -> None:
    found, text = shell(command, tmp_path)
    assert found == status, text
    assert said in text
    assert "Traceback" not in text
    assert text.count("ltx2rt: error: ") == (status != 0)


def test_an_argument_with_a_nul(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a\0b", "--prompt", "x", "-o", "x.mp4"]) == 2
    assert "NUL" in capsys.readouterr().err
