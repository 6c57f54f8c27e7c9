"""Files appear whole or not at all, and what a killed writer left goes with the next."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ltx2rt.partial import Partial, remove_all_leftovers, remove_leftovers

#: begins to write a file and a folder, then is killed
KILLED = """
import os, signal, sys
from pathlib import Path
from ltx2rt.partial import Partial
for name, folder in (("a.mp4", False), ("frames", True)):
    Partial(Path(sys.argv[1]) / name, folder=folder)
os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def left(tmp_path: Path) -> Path:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert len(names(tmp_path)) == 2
    return tmp_path


def test_the_next_run_of_a_target_removes_what_a_killed_one_left(left: Path) -> None:
    with Partial(left / "b.mp4"):
        pass
    assert len(names(left)) == 3  # those of other targets stay
    with Partial(left / "a.mp4") as part:
        part.file.write(b"whole")
    assert (left / "a.mp4").read_bytes() == b"whole"
    remove_leftovers(left / "frames")
    assert names(left) == ["a.mp4", "b.mp4"]


def test_all_leftovers_of_a_folder_go_at_once(left: Path) -> None:
    (left / ".ltx2rt-notes").write_text("mine")
    remove_all_leftovers(left)
    remove_all_leftovers(left / "absent")
    assert names(left) == [".ltx2rt-notes"]


@pytest.mark.parametrize("folder", [False, True])
def test_parts_that_are_being_written_stay(folder: bool, tmp_path: Path) -> None:
    with Partial(tmp_path / "a", folder=folder) as first:
        second = Partial(tmp_path / "a", folder=folder)
        remove_all_leftovers(tmp_path)
        assert first.path.exists()
        assert second.path.exists()
        second.discard()
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("folder", [False, True])
def test_nothing_is_left_of_a_failure(folder: bool, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Partial(tmp_path / "a", folder=folder):
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_a_file_may_be_for_its_owner_alone(tmp_path: Path) -> None:
    with Partial(tmp_path / "a", mode=0o600):
        pass
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_names_may_be_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    with Partial(tmp_path / ("a" * 255)) as part:
        part.file.write(b"x")
    assert names(tmp_path) == ["a" * 255]
