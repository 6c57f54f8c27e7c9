"""One block of the transformer on a CPU, in a process of its own: time of a call, and memory.

`python -m benchmarks.cpu_block FOLDER VARIANT TOKENS CALLS LIMIT` is called by `cpu_blocks`; after
LIMIT CPU seconds the system stops it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ltx2rt.engine import Array, EngineSpec, TensorSpec

#: tokens of a prompt; the sound has one token for so many of the video
TEXT, VIDEO_PER_AUDIO = 1024, 48


def sizes(tokens: int) -> dict[str, int]:
    """Of the symbols of a block."""
    audio = max(8, tokens // VIDEO_PER_AUDIO)
    return {"B": 1, "Tv": tokens, "Ta": audio, "Uv": 1, "Ua": 1, "S": TEXT}


def random_array(rng: np.random.Generator, dtype: str, shape: list[Any]) -> Array:
    """Values of the size that weights have; no second copy of a large one is made."""
    if dtype == "float32":
        values = rng.standard_normal(shape, np.float32)
        values *= np.float32(0.02)
        return values
    if dtype == "bfloat16":  # 2^-7 to 2^-5
        return rng.integers(0x3C00, 0x3D00, shape, np.uint16)
    if dtype == "int4":
        return rng.integers(0, 256, [*shape[:-1], shape[-1] // 2], np.uint8)
    return rng.integers(-127, 128, shape, np.int8)


def random_input(rng: np.random.Generator, spec: TensorSpec, tokens: int) -> Array:
    """One input of the block; nothing is switched off, and no bias masks anything."""
    known = sizes(tokens)
    shape = [d if isinstance(d, int) else known.get(d, 1) for d in spec.shape]
    if spec.dtype == "int64":
        return np.zeros(shape, np.int64)
    if spec.name.endswith(("_keep", "_enabled")):
        return np.ones(shape, np.float32)
    return rng.standard_normal(shape, np.float32)


def ours(folder: Path, variant: str, tokens: int) -> Callable[[], object]:
    """A call of our engine."""
    from ltx2rt.backends.onnxruntime import OrtEngine, OrtOptions

    rng = np.random.default_rng(0)
    about = json.loads((folder / f"{variant}.json").read_text())
    specs = [
        tuple(TensorSpec(n, d, tuple(s)) for n, d, s in about[side])
        for side in ("inputs", "outputs")
    ]
    spec = EngineSpec("transformer_block", specs[0], specs[1])
    weights = {n: random_array(rng, d, s) for n, (d, s) in about["weights"].items()}
    feeds = {s.name: random_input(rng, s, tokens) for s in spec.inputs}
    graph, options = (folder / f"{variant}.onnx").read_bytes(), OrtOptions(threads=1, arena=False)
    if about["inside"]:
        engine = OrtEngine(graph, spec, weights, options, copied=True)
        weights.clear()
        return lambda: engine(feeds)
    engine = OrtEngine(graph, spec, {}, options)
    return lambda: engine({**feeds, **weights})


def eager(width: int, tokens: int) -> Callable[[], object]:
    """A call of our PyTorch reference."""
    import torch

    from benchmarks.real_size import block_component
    from ltx2rt_export.reference import TorchEngine

    torch.set_num_threads(1)
    rng, component = np.random.default_rng(0), block_component(width)
    engine = TorchEngine(component)
    shapes = component.network.state_dict().items()
    weights = {n: random_array(rng, "float32", list(w.shape)) for n, w in shapes}
    feeds = {s.name: random_input(rng, s, tokens) for s in component.inputs}
    return lambda: engine({**feeds, **weights})


def diffusers(
    width: int, tokens: int, dtype: str, *, compiled: bool = False
) -> Callable[[], object]:
    """A call of a block of diffusers, with what the model gives it; compiled here if asked for."""
    import torch
    from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel

    from benchmarks.real_size import LTX23

    torch.set_num_threads(1)
    head, floats = width // LTX23.heads, getattr(torch, dtype)
    model = LTX2VideoTransformer3DModel(
        num_attention_heads=LTX23.heads, attention_head_dim=head, cross_attention_dim=width,
        audio_num_attention_heads=LTX23.heads, audio_attention_head_dim=head // 2,
        audio_cross_attention_dim=width // 2, num_layers=1, rope_type="split", gated_attn=True,
        cross_attn_mod=True, audio_gated_attn=True, audio_cross_attn_mod=True,
        use_prompt_embeddings=False,
    ).eval().to(floats)  # fmt: skip
    known = sizes(tokens)
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    block: Any = model.transformer_blocks[0]
    hook = block.register_forward_pre_hook(lambda _, a, k: given.append((a, k)), with_kwargs=True)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=floats)

    with torch.no_grad():
        video, audio = known["Tv"], known["Ta"]
        model(
            hidden_states=normal(1, video, 128),
            audio_hidden_states=normal(1, audio, 128),
            encoder_hidden_states=normal(1, TEXT, width),
            audio_encoder_hidden_states=normal(1, TEXT, width // 2),
            timestep=torch.full((1, video), 700.0),
            audio_timestep=torch.full((1, audio), 700.0),
            sigma=torch.full((1,), 700.0),
            audio_sigma=torch.full((1,), 700.0),
            video_coords=torch.rand(1, 3, video, 2) * 10,
            audio_coords=torch.rand(1, 1, audio, 2) * 10,
            return_dict=False,
        )
    hook.remove()
    positional, named = given[0]
    run = torch.compile(block) if compiled else block

    def call() -> object:
        with torch.no_grad():
            return run(*positional, **named)

    if compiled:
        call()
    return call


def status(field: str) -> int:
    """Bytes, of a field of this process's `/proc/self/status`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measure(call: Callable[[], object], calls: int) -> dict[str, float]:
    """CPU seconds of the fastest call, memory before the first and at the most during all."""
    held = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    best = float("inf")
    for _ in range(calls):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return {"cpu_s": best, "held_bytes": held, "peak_bytes": status("VmHWM")}


def main() -> None:
    folder, variant, tokens, calls = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:5])
    width, limit = int(folder.name), int(sys.argv[5])
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
    if variant == "eager":
        call = eager(width, tokens)
    elif variant.startswith("diffusers "):
        dtype, _, compiled = variant.removeprefix("diffusers ").partition(" ")
        call = diffusers(width, tokens, dtype, compiled=bool(compiled))
    else:
        call = ours(folder, variant, tokens)
    before = time.process_time()
    print(json.dumps({**measure(call, calls), "before_cpu_s": before}))


if __name__ == "__main__":
    main()
