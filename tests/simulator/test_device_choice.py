"""Which device is used, and what is said of one that cannot be: on the simulated GPU."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ltx2rt.device.cuda import CudaDevice
from ltx2rt.errors import EngineError, UnsupportedError
from tests.parity.command_line import ltx2rt as ltx2rt_command
from tests.simulator.driver import SimulatedDriver
from tests.simulator.fixtures import EngineBundle, Simulate

pytest.importorskip("cuda.core", reason="cuda-core is not installed")
pytestmark = pytest.mark.usefixtures("tensorrt_rtx")


@pytest.mark.parametrize(
    ("fields", "index", "said"),
    [
        ({}, 1, r"device 1 was asked for, and this machine shows 1 GPU \(0\)"),
        ({"devices": 2}, 2, r"shows 2 GPUs \(0 to 1\); name one of them with --device"),
        ({"driver_version": 11040}, 0, r"needs a driver for CUDA 12 or newer.*CUDA 11\.4"),
    ],
)
def test_devices_that_cannot_be_used(
    simulate: Simulate, fields: dict[str, Any], index: int, said: str
) -> None:
    simulate(**fields)
    with pytest.raises(UnsupportedError, match=said):
        CudaDevice("a test", index)


@pytest.mark.parametrize(
    ("shown", "said"), [("", "is empty, which hides every GPU"), ("9", "names none")]
)
def test_hidden_devices(monkeypatch: pytest.MonkeyPatch, shown: str, said: str) -> None:
    from ltx2rt.device.gpus import local_gpu

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    with pytest.raises(UnsupportedError, match=said):
        local_gpu("a test")


def test_a_full_gpu_says_what_it_has(gpu: SimulatedDriver) -> None:
    device = CudaDevice("a test")
    with pytest.raises(EngineError, match=r"Simulated GPU 0.*2\.00 GiB more.*of 1\.00 GiB are"):
        device.allocate(2 << 30)
    device.close()


def test_doctor_plans_cards_that_are_not_here(engine_bundle: EngineBundle) -> None:
    bundle = engine_bundle("bf16")

    def doctor(memory: str, *flags: str) -> Any:
        return ltx2rt_command("doctor", bundle, "--memory", memory, *flags)

    outcome = doctor("24GiB", "--shape", "64x64x9")
    assert outcome.code == 0, outcome.err
    assert "plan for a card of 24.00 GiB and 64x64x9:" in outcome.out
    assert "all stay" in outcome.out
    for given, said in (
        (("1MiB",), "needs .* of a card of 0.00 GiB"),
        (("lots",), "write it like 24GiB"),
        (("24GiB", "--shape", "99x99x9"), r"was not built; this bundle has .*64x64x9"),
    ):
        outcome = doctor(*given)
        assert outcome.code == 2
        assert re.search(said, outcome.err)
