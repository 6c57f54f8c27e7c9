"""A GPU that is lost in mid-run: said once, nothing hangs, and finished stages are kept."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ltx2rt.backends.onnxruntime import failure
from ltx2rt.cli import batch_clips
from ltx2rt.device.cuda import CudaDevice
from ltx2rt.device.lost import LOSSES
from ltx2rt.errors import DeviceLostError, EngineError
from ltx2rt.results.stage_store import StageStore
from ltx2rt.service import worker
from ltx2rt.service.maker import Maker
from tests.parity.command_line import ltx2rt
from tests.simulator.driver import Setup, SimulatedDriver, simulated
from tests.simulator.fixtures import EngineBundle, Simulate

pytest.importorskip("cuda.core", reason="cuda-core is not installed")

ECC, ILLEGAL_ADDRESS = 214, 700


def test_stages_are_kept_and_gone_on_after(
    engine_bundle: EngineBundle, tensorrt_rtx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost in stage 2, then while it decodes; what the third process makes is what one makes."""
    monkeypatch.setenv("LTX2RT_CACHE", str(tmp_path / "cache"))
    bundle, save = engine_bundle("bf16"), StageStore.save

    def generate(name: str, *flags: object, lose_after: str = "", error: int = 0) -> Any:
        def saved(self: StageStore, stage: str, *facts: Any) -> None:
            save(self, stage, *facts)
            if stage == lose_after:
                gpu.lose(error, after=3)

        with simulated(Setup(memory_bytes=8 << 30)) as gpu, monkeypatch.context() as patch:
            patch.setattr(StageStore, "save", saved)
            outcome = ltx2rt(
                "generate", bundle, "--prompt", "a bell rings", "--height", 64, "--width", 64,
                "--num-frames", 9, "--seed", 3, "--threads", 1, "--quiet",
                "-o", tmp_path / f"{name}.mp4",
                "--save-latents", tmp_path / f"{name}.safetensors", *flags,
            )  # fmt: skip
            assert gpu.problems() == []
        return outcome

    assert generate("whole").code == 0
    kept, asked = tmp_path / "kept", ("--work-dir", tmp_path / "kept")
    for resume, stage, error, what in (
        ((), "stage_1", ECC, r"an error that cannot be corrected (CUDA_ERROR_ECC_UNCORRECTABLE)"),
        (("--resume",), "stage_2", ILLEGAL_ADDRESS, r"not its own (CUDA_ERROR_ILLEGAL_ADDRESS)"),
    ):
        outcome = generate("parts", *asked, *resume, lose_after=stage, error=error)
        assert outcome.code == 2
        assert len(outcome.err.splitlines()) == 2, outcome.err
        first, note = outcome.err.splitlines()
        assert first.startswith("ltx2rt: error: GPU 0 (Simulated GPU 0) was lost in mid-run: ")
        assert what in first
        assert "kept where --work-dir was given, and --resume goes on after them" in first
        assert f"{stage}, " in note
        assert f"are kept in {kept}: repeat the command with --resume" in note
        assert not list(tmp_path.glob("*parts.mp4*"))  # neither it nor a part of it
    assert generate("parts", *asked, "--resume").code == 0
    for suffix in ("safetensors", "mp4"):
        found, want = ((tmp_path / f"{n}.{suffix}").read_bytes() for n in ("parts", "whole"))
        assert found == want


@pytest.mark.parametrize("error", [46, ECC, ILLEGAL_ADDRESS, 714, 719, 999])
def test_what_loses_a_gpu(gpu: SimulatedDriver, error: int) -> None:
    """Every call says so from then on, on all streams; what frees says nothing."""
    device = CudaDevice("a test")
    beside, address, pinned = device.lane(), device.allocate(16), device.pinned(16)
    gpu.launch(int(device.compute.handle), lambda: None, "a kernel", writes=[(address, 16)])
    gpu.lose(error)
    said = rf"GPU 0 \(Simulated GPU 0\) was lost in mid-run: .*{LOSSES[error].code}"
    calls: tuple[Callable[[], object], ...] = (
        device.compute.sync,
        beside.raise_if_lost,
        lambda: beside.allocate(16),
        lambda: device.pinned(16),
        lambda: device.copy_in(address, pinned.array, device.upload),
    )
    for call in calls:
        with pytest.raises(DeviceLostError, match=said):
            call()
    assert beside.is_lost
    pinned.close()
    device.free(address)
    beside.close()
    device.close()


def test_other_errors_lose_nothing(simulate: Simulate) -> None:
    simulate(memory_bytes=1 << 20)
    device = CudaDevice("a test")
    with pytest.raises(EngineError, match="out of memory"):
        device.allocate(1 << 30)
    device.raise_if_lost()
    assert not device.is_lost
    device.close()


def test_onnxruntime_says_it_with_a_number() -> None:
    said = "CUDA failure {}: an illegal memory access was encountered ; GPU=0 ; hostname=a"
    assert isinstance(failure("failed in a", RuntimeError(said.format(700))), DeviceLostError)
    assert type(failure("failed in a", RuntimeError(said.format(2)))) is EngineError


def lose(*_: Any, **__: Any) -> Any:
    raise DeviceLostError("the GPU was lost")


def test_a_worker_leaves_the_job_to_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It answers nothing, which would end the job, says why and ends itself."""
    monkeypatch.setattr(worker.Order, "from_plain", lambda plain: plain)
    monkeypatch.setattr(Maker, "make", lose)
    maker, stream = Maker.__new__(Maker), io.StringIO()
    order = {"id": "a", "order": {}, "folder": str(tmp_path), "work_dir": None}
    assert not worker.make(maker, worker.Lines(stream), order, threading.Event())
    assert stream.getvalue() == ""
    assert capsys.readouterr().err == "the GPU was lost\n"


def test_a_batch_begins_nothing_more(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Any] = []
    monkeypatch.setattr(batch_clips, "_begun", lambda job, bundle: begun.append(job) or lose())
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    outcome = ltx2rt("batch", demo_bundle, jobs, "-o", tmp_path / "clips")
    assert outcome.code == 1
    told = [json.loads(line) for line in outcome.out.splitlines()]
    assert [t["error"] for t in told] == ["the GPU was lost"] * 2
    assert len(begun) == 1
