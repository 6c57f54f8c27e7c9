"""LTX-2.3's convolutional video decoder at a fraction of its width on ONNX Runtime and on the
PyTorch reference: parity first, then CPU seconds of one thread, in turn.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from benchmarks.real_size import entries
from benchmarks.timing import percentiles
from ltx2rt.backends.onnxruntime import OrtEngine, OrtOptions
from ltx2rt.engine import EngineSpec
from ltx2rt.env import cache_dir
from ltx2rt_export.engines.cache import EngineCache
from ltx2rt_export.engines.graphs import GraphCache
from ltx2rt_export.modules.meta import on_meta
from ltx2rt_export.modules.video_vae import VideoDecoder, video_decoder
from ltx2rt_export.modules.video_vae_config import STRIDES, Resample, ResBlocks, VideoDecoderConfig

#: in running order (spec/video_vae.md §1.2)
LAYOUT = (
    *(("res_x", 2), ("all", 2), ("res_x", 2), ("all", 1), ("res_x", 4), ("time", 2), ("res_x", 6)),
    *(("space", 2), ("res_x", 4)),
)
REAL_WIDTH, LATENT = 1024, 128
ROUNDS = 5

#: part of the real width -> latent frames, rows and columns
SIZES = {8: (4, 8, 12), 4: (3, 6, 8)}

#: relative RMS that both may differ by: float32 sums in another order, 42 convolutions deep
GATE = 1e-5


def compare(part: int) -> dict[str, Any]:
    """Gate on parity, then time both; weights are random."""
    width = REAL_WIDTH // part
    blocks = tuple(
        ResBlocks(num_layers=n) if kind == "res_x" else Resample(stride=STRIDES[kind], multiplier=n)
        for kind, n in LAYOUT
    )
    made = VideoDecoderConfig(blocks=blocks, latent_channels=LATENT, width=width, padding="zeros")
    config = {
        "spatial_padding_mode": "zeros",
        "decoder_blocks": [
            [kind if kind == "res_x" else f"compress_{kind}",
             {"num_layers": n} if kind == "res_x" else {"multiplier": n}]
            for kind, n in reversed(LAYOUT)
        ],
    }  # fmt: skip
    component = video_decoder(config, dict(entries("", on_meta(lambda: VideoDecoder(made)))))
    graph = GraphCache(EngineCache(cache_dir())).export(component)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = VideoDecoder(made).eval()
    for name, buffer in network.named_buffers():
        buffer.fill_(1.0 if "std" in name else 0.0)
    weights = {n: t.detach().numpy() for n, t in network.state_dict().items()}
    spec = EngineSpec(component.name, component.inputs, component.outputs)
    given = {n: weights[n] for n in graph.weights}
    engine = OrtEngine(graph.model.SerializeToString(), spec, given, OrtOptions(threads=1))
    latent = np.random.default_rng(0).standard_normal((1, LATENT, *SIZES[part]), np.float32)

    def ours() -> Any:
        return engine({"video_latent": latent})["video"]

    def eager() -> Any:
        with torch.no_grad():
            return network(torch.from_numpy(latent))[0].numpy()

    got, want = ours(), eager()
    error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
    if error > GATE:
        raise SystemExit(f"no timing: pictures differ by {error:.2e}, allowed {GATE:.0e}")
    seconds: dict[str, list[float]] = {"ours": [], "eager": []}
    for _ in range(ROUNDS):
        for name, call in (("ours", ours), ("eager", eager)):
            start = time.process_time()
            call()
            seconds[name].append(time.process_time() - start)
    results = {name: percentiles(values) for name, values in seconds.items()}
    return {
        **results["ours"],
        "torch": results["eager"],
        "ratio": results["eager"]["median_s"] / results["ours"]["median_s"],
        "gate_rel_l2": error,
    }
