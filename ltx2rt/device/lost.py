"""Errors of CUDA after which a process cannot use a GPU any more: the only list of them."""

from __future__ import annotations

from typing import NamedTuple

from ltx2rt.errors import DeviceLostError, Field, Problem


class Loss(NamedTuple):
    """An error's name, and what happened."""

    code: str
    what: str


_MEMORY = "a kernel touched memory that is not its own"
_CODE = "a kernel ran into code or data that are broken"
_HARDWARE = "its memory or its links have an error that cannot be corrected"

#: number of a `CUresult`, which is that of a `cudaError` too -> what it means. cuda.h says of each
#: that the context is of no further use, or that the GPU itself is not
LOSSES = {
    4: Loss("CUDA_ERROR_DEINITIALIZED", "its driver shuts down"),
    46: Loss("CUDA_ERROR_DEVICE_UNAVAILABLE", "it is not available, or another process keeps it"),
    214: Loss("CUDA_ERROR_ECC_UNCORRECTABLE", _HARDWARE),
    220: Loss("CUDA_ERROR_NVLINK_UNCORRECTABLE", _HARDWARE),
    226: Loss("CUDA_ERROR_CONTAINED", _HARDWARE),
    700: Loss("CUDA_ERROR_ILLEGAL_ADDRESS", _MEMORY),
    702: Loss("CUDA_ERROR_LAUNCH_TIMEOUT", "a kernel ran longer than the system lets it"),
    709: Loss("CUDA_ERROR_CONTEXT_IS_DESTROYED", "something destroyed this process's context"),
    710: Loss("CUDA_ERROR_ASSERT", "a kernel found something to be wrong"),
    714: Loss("CUDA_ERROR_HARDWARE_STACK_ERROR", _CODE),
    715: Loss("CUDA_ERROR_ILLEGAL_INSTRUCTION", _CODE),
    716: Loss("CUDA_ERROR_MISALIGNED_ADDRESS", _MEMORY),
    717: Loss("CUDA_ERROR_INVALID_ADDRESS_SPACE", _MEMORY),
    718: Loss("CUDA_ERROR_INVALID_PC", _CODE),
    719: Loss("CUDA_ERROR_LAUNCH_FAILED", "a kernel failed while it ran"),
    721: Loss("CUDA_ERROR_TENSOR_MEMORY_LEAK", "a kernel left memory of its own behind"),
    806: Loss("CUDA_ERROR_MPS_RPC_FAILURE", "the MPS server does not answer"),
    810: Loss("CUDA_ERROR_MPS_CLIENT_TERMINATED", "the MPS server ended this process's work"),
    911: Loss("CUDA_ERROR_EXTERNAL_DEVICE", "a device beside it failed"),
    999: Loss("CUDA_ERROR_UNKNOWN", "the driver does not say why"),
}
_BY_CODE = {loss.code: loss for loss in LOSSES.values()}


def loss_in(said: str) -> Loss | None:
    """What an error of cuda-python means, whose text begins with its name; None: no GPU is lost."""
    return _BY_CODE.get(said.partition(":")[0].strip())


def lost(gpu: str, loss: Loss) -> DeviceLostError:
    """The error of it.

    Args:
        gpu: as a sentence names it.
    """
    return DeviceLostError(
        Problem(
            f"{gpu} was lost in mid-run: {loss.what} ({loss.code}); finished stages are kept ",
            "where ",
            Field("work_dir"),
            " was given, and ",
            Field("resume"),
            " goes on after them in a new process (the system's log may say more: dmesg | grep -i "
            "xid).",
        )
    )
