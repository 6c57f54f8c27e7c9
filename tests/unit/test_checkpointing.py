"""Kept stages belong to one request; what is damaged says how to go on."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ltx2rt.config import GenerationConfig
from ltx2rt.errors import OptionError
from ltx2rt.pipelines.request import Request
from ltx2rt.pipelines.retake_inputs import RetakeInputs
from ltx2rt.results.record import RECORD_TAG, Record, reasons_to_make, record_text
from ltx2rt.results.stage_store import StageStore
from ltx2rt.weights.safetensors_writer import write_safetensors

LATENT = {"video": np.arange(6, dtype=np.float32).reshape(2, 3)}


def record_of(source: Path) -> Record:
    inputs = RetakeInputs(video=source, start_time=0.2, end_time=0.3, video_frame_rate=24.0)
    config = GenerationConfig(prompt="a", hdr="ACESCG")
    return Record(pipeline="retake", request=Request(config=config, inputs=inputs))


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """Of a folder of frames; a stage of it is kept in `tmp_path/work`."""
    (tmp_path / "take").mkdir()
    for index in range(2):
        (tmp_path / f"take/{index}.exr").write_bytes(b"light")
    record = record_of(tmp_path / "take")
    StageStore(tmp_path / "work", record, resume=False).save("stage_1", {}, LATENT)
    return record


def test_a_stage_comes_back(record: Record, tmp_path: Path) -> None:
    kept = StageStore(tmp_path / "work", record, resume=True).load("stage_1", {})
    assert kept is not None
    np.testing.assert_array_equal(kept["video"], LATENT["video"])
    assert StageStore(tmp_path / "work", record, resume=False).load("stage_1", {}) is None


def test_a_run_goes_on_with_other_threads_but_not_in_another_order(
    record: Record, tmp_path: Path
) -> None:
    for threads in (0, 2):
        other = replace(record, threads=threads)
        assert StageStore(tmp_path / "work", other, resume=True).load("stage_1", {}) is not None
    with pytest.raises(OptionError, match="max_batch_size was 1, now it is 2"):
        StageStore(tmp_path / "work", replace(record, max_batch_size=2), resume=True)


def test_stages_of_other_frames_are_refused(record: Record, tmp_path: Path) -> None:
    (tmp_path / "take/1.exr").unlink()
    with pytest.raises(OptionError, match=r"take was '2 frames, 10 .* now it is '1 frames, 5 "):
        StageStore(tmp_path / "work", record, resume=True)


@pytest.mark.parametrize("content", [b"", b"x" * 30, None])
def test_a_damaged_stage_says_how_to_go_on(
    record: Record, tmp_path: Path, content: bytes | None
) -> None:
    stage = tmp_path / "work/stage_1.stage.safetensors"
    stage.write_bytes(stage.read_bytes()[:-4] if content is None else content)
    with pytest.raises(OptionError) as error:
        StageStore(tmp_path / "work", record, resume=True)
    assert str(error.value) == (
        f"the kept stage {stage} is damaged, or ltx2rt did not write it: remove it to run this "
        "stage again, or leave resume out to begin anew."
    )
    stage.unlink()
    assert StageStore(tmp_path / "work", record, resume=True).load("stage_1", {}) is None


def test_a_file_of_this_request_need_not_be_made_again(record: Record, tmp_path: Path) -> None:
    path, frames = tmp_path / "x.safetensors", tmp_path / "take"
    assert reasons_to_make(path, record)
    path.write_bytes(b"x")
    assert reasons_to_make(path, record)
    write_safetensors(path, LATENT, {RECORD_TAG: record_text(record)})
    assert (
        reasons_to_make(path, replace(record, stages={"stage_1": {"sigmas": [1.0]}}, threads=3))
        == []
    )
    request = replace(record.request, config=replace(record.request.config, seed=1))
    assert reasons_to_make(path, replace(record, request=request))
    assert reasons_to_make(path, replace(record, bundle="another"))
    later = path.stat().st_mtime_ns + 1
    os.utime(frames, ns=(later, later))
    assert reasons_to_make(path, record)
