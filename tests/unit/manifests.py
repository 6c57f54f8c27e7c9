"""A small manifest, written by hand."""

from __future__ import annotations

import dataclasses

from ltx2rt.bundle.manifest import (
    BuildInputs,
    ComponentEntry,
    Manifest,
    ModelInfo,
    Source,
    Tensor,
    WeightRef,
    bundle_id,
)
from ltx2rt.lora.files import Lora

REF = WeightRef(source=0, dtype="bfloat16", shape=(4, 2), offset=100, length=16)
ENTRY = ComponentEntry(
    graph="graphs/x.onnx",
    graph_sha256="0" * 64,
    precision="fp32",
    inputs=(Tensor(name="x", dtype="float32", shape=("B", 2)),),
    outputs=(Tensor(name="y", dtype="float32", shape=("B", "1|T", 4)),),
    weight_binding="input",
    transposed=("w",),
    layers=({"w": REF}, {"w": dataclasses.replace(REF, offset=116)}),
    options={"heads": 4, "max_pos": [20.0]},
)
MODEL = ModelInfo(
    generation="LTX-2.3",
    version="2.3.0",
    num_inference_steps=30,
    stg_block=28,
    image_crf=33,
    distilled_sampler="euler",
    time_scale=8,
    spatial_scale=32,
    latent_channels=128,
    audio_channels=8,
    audio_bins=16,
    audio_sampling_rate=48000,
)
MANIFEST = Manifest(
    schema=1,
    bundle_id="abc",
    created_by="ltx2rt 0",
    backend="onnxruntime",
    precision="fp32",
    model=MODEL,
    sources=(Source(path="/weights/a.safetensors", bytes=200, header_sha256="1" * 64),),
    components={"x": ENTRY},
    tokenizer="text/tokenizer.json",
    tokenizer_sha256="2" * 64,
    build=BuildInputs(
        checkpoint="/weights/a.safetensors",
        spatial_upsampler="/u.safetensors",
        loras=(Lora(path="/l.safetensors", strength=0.5),),
    ),
)
MANIFEST = dataclasses.replace(MANIFEST, bundle_id=bundle_id(MANIFEST))
