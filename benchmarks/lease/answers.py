"""What a lease asks, one process each: `python -m benchmarks.lease.answers NAME --pack DIR`.

Results are JSON lines, the last line a sentence. 0: answered, 1: the answer is bad, 3: this machine
cannot answer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lease.steps import KERNELS
from ltx2rt.errors import UnsupportedError

#: see `Step.cannot`
CANNOT = 3


class CannotAnswerError(Exception):
    """This machine lacks what a question needs; a sentence."""


def emit(**facts: Any) -> None:
    """One result."""
    sys.stdout.write(json.dumps(facts, sort_keys=True, default=str) + "\n")
    sys.stdout.flush()


def environment(options: argparse.Namespace) -> str:
    """Machine, driver and packages."""
    from benchmarks.hardware import environment as facts

    command = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total",
        "--format=csv,noheader",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        gpu = done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        gpu = "no NVIDIA driver"
    found = facts()
    emit(gpu=gpu, **found)
    return f"{gpu}; {', '.join(f'{n} {v}' for n, v in found['versions'].items())}"


def kernels(options: argparse.Namespace) -> str:
    """Every kernel's error against its float32 reference; outputs hold NaN before."""
    from benchmarks.kernels import variants
    from benchmarks.kernels.cases import AttentionCase, Case, RowCase
    from benchmarks.kernels.command import why_not
    from benchmarks.kernels.device import FAILURES, Kernels

    if (reason := why_not()) is not None:
        raise CannotAnswerError(reason)
    tokens = options.tokens
    cases: list[Case] = [
        *(
            AttentionCase(head_dim=d, queries=tokens, keys=tokens, masked=m)
            for d in (128, 64)
            for m in (False, True)
        ),
        *(RowCase(operator=o, tokens=tokens, width=4096, elements=1.0) for o in ROWS),
    ]
    red, checked = [], 0
    wanted = [case for case in cases if not options.only or case.name.startswith(options.only)]
    pack = Path(options.pack)
    with Kernels(pack / "compiled", artifacts=pack / KERNELS) as ours:
        for case in wanted:
            if isinstance(case, AttentionCase):
                inputs = variants.attention_inputs(case)
                want = variants.attention_reference(inputs)
                makers = variants.attention_variants(case, inputs, ours)
            else:
                makers, want = variants.row_variants(case, ours)
            for name, make in makers.items():
                if not name.startswith("ltx2rt"):
                    continue
                try:
                    parity = variants.parity(make(), want)
                except FAILURES as error:
                    emit(case=case.name, variant=name, failed=str(error).splitlines()[0])
                    red.append(case.name)
                    continue
                checked += 1
                emit(case=case.name, variant=name, rel_rms=parity.error, allowed=parity.bound)
                if not parity.green:
                    red.append(case.name)
    if red:
        raise AssertionError(f"wrong or cannot run: {', '.join(red)}")
    return f"{checked} kernels agree with their references at {tokens} tokens"


#: operators that work row by row
ROWS = ("qk_norm_rope", "adaln_modulate", "gated_residual")


def device(options: argparse.Namespace) -> str:
    """Memory, pinned copies on two streams, events and a graph of `ltx2rt.device`."""
    import numpy as np

    from ltx2rt.device.cuda import CudaDevice
    from ltx2rt.device.staging import Staging

    card = CudaDevice("the lease")
    try:
        data = np.random.default_rng(0).integers(0, 256, 64 << 20, np.uint8)
        first, second = card.allocate(data.nbytes), card.allocate(data.nbytes)
        staging = Staging(card)
        start = card.upload.mark()
        staging.send(data, first, card.upload)
        card.compute.wait(card.upload.record())
        end = card.upload.mark()
        back = np.empty_like(data)
        pinned = card.pinned(data.nbytes)

        def copy() -> None:
            card.copy_out(pinned.array, first, card.compute)
            card.copy_in(second, pinned.array, card.compute)

        graph = card.capture(copy)
        graph.launch()
        staging.receive([(back, second)], card.compute)
        if not np.array_equal(back, data):
            raise AssertionError("bytes changed on their way to the GPU and back")
        card.upload.sync()
        seconds = end.since(start)
        emit(gpu=card.gpu.name, target=card.gpu.target, upload_gb_per_s=data.nbytes / seconds / 1e9)
        graph.close()
        staging.close()
        pinned.close()
        card.free(first)
        card.free(second)
    finally:
        card.close()
    return f"{card.gpu.name} ({card.gpu.target}): copies, events and a graph are right"


def noise(options: argparse.Namespace) -> str:
    """Digests of our noise and torch's, seed 42."""
    import hashlib

    import numpy as np
    import torch

    from ltx2rt.sampling.noise import TorchGenerator

    count = 786_432
    ours = TorchGenerator(42).randn((count,))
    theirs = torch.randn(count, generator=torch.Generator("cpu").manual_seed(42)).numpy()
    if not np.array_equal(ours, theirs):
        raise AssertionError("our noise is not that of torch on this CPU")
    emit(where="cpu", sha256=hashlib.sha256(ours.tobytes()).hexdigest())
    if torch.cuda.is_available():
        generator = torch.Generator("cuda").manual_seed(42)
        data = torch.randn(count, generator=generator, device="cuda").cpu().numpy()
        digest = hashlib.sha256(data.tobytes()).hexdigest()
        emit(where="cuda", sha256=digest, first=data[:8].tolist())
    return "our noise equals torch's on this CPU, bit for bit"


def ceilings(options: argparse.Namespace) -> str:
    """What a copy and a matrix product reach, on random numbers."""
    torch = _torch_on_gpu()
    source = torch.randn(256 << 20, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / _seconds(lambda: target.copy_(source)) / 1e9
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = 2 * 8192**3 / _seconds(lambda: a @ b) / 1e12
    emit(copy_gb_per_s=copy, bf16_tflops=product)
    text = f"copy {copy:.0f} GB/s, bf16 product {product:.0f} TFLOP/s"
    if torch.cuda.get_device_capability() >= (8, 9):
        a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
        one = torch.ones((), device="cuda")

        def scaled() -> Any:
            return torch._scaled_mm(a8, b8, one, one, out_dtype=torch.bfloat16)

        eight = 2 * 8192**3 / _seconds(scaled) / 1e12
        emit(fp8_tflops=eight)
        text += f", fp8 product {eight:.0f} TFLOP/s"
    return text


def reference(options: argparse.Namespace) -> str:
    """One LTX-2.3 block of our PyTorch in bf16 at 6,144 video tokens: eager, then compiled."""
    torch = _torch_on_gpu()
    from benchmarks.lease.block import SIZES, block_inputs, filled_block

    block = filled_block("cuda")
    inputs = block_inputs(block, "cuda")
    torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        eager = _seconds(lambda: block.module(**inputs))
        emit(way="eager", seconds=eager, peak_bytes=torch.cuda.max_memory_allocated(), sizes=SIZES)
        compiled_block = torch.compile(block.module)
        compiled = _seconds(lambda: compiled_block(**inputs))
    emit(way="compiled", seconds=compiled)
    return f"a block takes {eager * 1e3:.2f} ms eager, {compiled * 1e3:.2f} ms compiled"


def onnxruntime(options: argparse.Namespace) -> str:
    """The same block as an ONNX graph through our CUDA backend, weights on the GPU."""
    from benchmarks.lease.block import GRAPH, run_onnxruntime

    if not (Path(options.pack) / GRAPH).exists():
        raise CannotAnswerError(
            f"the pack has no {GRAPH}: run python -m benchmarks.lease.pack before"
        )
    seconds, error = run_onnxruntime(Path(options.pack))
    emit(seconds=seconds, rel_rms_to_cpu=error)
    if not error < 2e-2:
        raise AssertionError(f"the block differs from the CPU's by {error:.1e}")
    return f"a block takes {seconds * 1e3:.2f} ms, error {error:.1e} against the CPU"


def _torch_on_gpu() -> Any:
    import torch

    if not torch.cuda.is_available():
        raise CannotAnswerError("torch finds no NVIDIA GPU")
    return torch


def _seconds(run: Callable[[], object], rounds: int = 20) -> float:
    """Median of runs, by events, after a warm-up of three."""
    import torch

    times = []
    for number in range(rounds + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if number >= 3:
            times.append(start.elapsed_time(end) / 1e3)
    return sorted(times)[len(times) // 2]


ANSWERS: dict[str, Callable[[argparse.Namespace], str]] = {
    f.__name__: f for f in (environment, kernels, device, noise, ceilings, reference, onnxruntime)
}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=ANSWERS)
    parser.add_argument("--pack", required=True)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--only", help="kernels: of this operator")
    options = parser.parse_args(arguments)
    try:
        said = ANSWERS[options.name](options)
    except (CannotAnswerError, UnsupportedError) as error:
        sys.stdout.write(f"{error}\n")
        return CANNOT
    except AssertionError as error:
        sys.stdout.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{said}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
