"""Every pipeline but dfr (`test_matrix_models`) on the simulated GPU, in rows that cover every pair
of precision, place of weights and way of enqueueing, and LoRAs that change.

A row's clip equals that of the same engines on host arrays bit for bit, and that of ONNX Runtime in
float32 within `SIMULATED_LATENT_REL_L2`, or `SIMULATED_GUIDED_REL_L2`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ltx2rt
from ltx2rt.config import RuntimeConfig
from ltx2rt.engine import Array
from ltx2rt.lora.files import Lora
from ltx2rt.media.writer import VideoWriter
from ltx2rt.pipelines.catalog import PIPELINES, catalog_class
from tests.parity.demo_loras import write_demo_lora
from tests.parity.examples import write_media
from tests.simulator.fixtures import EngineBundle, Simulate
from tests.simulator.host_twin import use_host_engines
from tests.simulator.least_memory import least_memory_of
from tests.simulator.test_pipelines import ROOM, kernels
from tests.tolerances import SIMULATED_GUIDED_REL_L2, SIMULATED_LATENT_REL_L2

__all__ = ["kernels"]

pytest.importorskip("cuda.core", reason="cuda-core is not installed")
pytestmark = [pytest.mark.usefixtures("tensorrt_rtx", "kernels"), pytest.mark.simulator_matrix]

SHAPES = "64x64x9,128x128x9,128x128x17"
SIZE = {"height": 64, "width": 64, "num_frames": 9}
LARGE = {**SIZE, "height": 128, "width": 128}
#: nothing is rescaled: that is summed in float32 on a device, in float64 on the host
PARAMS = ltx2rt.GuiderParams(cfg_scale=3.0, stg_scale=1.0, stg_blocks=(1,), modality_scale=3.0)


@dataclass(frozen=True)
class Row:
    """How one pipeline runs: `place` of the weights, and whether passes are captured."""

    pipeline: str
    precision: str
    place: str
    graphs: bool
    schedule: str = "adversarial"

    def __str__(self) -> str:
        how = "replayed" if self.graphs else "eager"
        return f"{self.pipeline}-{self.precision}-{self.place}-{how}-{self.schedule}"


ROWS = [
    Row("distilled", "bf16", "constant", graphs=True),
    Row("distilled", "fp8", "resident", graphs=False, schedule="random"),
    Row("one-stage", "bf16", "streamed", graphs=True),
    Row("one-stage", "int8-wo", "resident", graphs=True, schedule="newest_first"),
    Row("two-stage", "fp8", "streamed", graphs=False),
    Row("two-stage-hq", "int8-wo", "streamed", graphs=True),
    Row("keyframe", "bf16", "resident", graphs=False),
    Row("audio-to-video", "fp8", "resident", graphs=True),
    Row("text-to-audio", "int8-wo", "streamed", graphs=False, schedule="random"),
    Row("retake", "bf16", "constant", graphs=False),
    Row("retake-guided", "fp8", "streamed", graphs=True, schedule="newest_first"),
    Row("retake-two-stage", "int8-wo", "streamed", graphs=True),
    Row("retake-two-stage-guided", "bf16", "streamed", graphs=True),
    Row("dub-it", "int8-wo", "resident", graphs=False),
    Row("ic-lora", "bf16", "streamed", graphs=False),
    Row("ic-lora-guided", "fp8", "resident", graphs=True),
    Row("hdr-ic-lora", "int8-wo", "resident", graphs=True),
    Row("upscale", "bf16", "resident", graphs=True),
    Row("distilled", "fp8", "constant", graphs=True),
    Row("distilled", "int8-wo", "constant", graphs=False),
]


def test_the_rows_cover_the_pairs() -> None:
    assert {r.pipeline for r in ROWS} == PIPELINES.keys() - {"dfr"}, "see test_matrix_models.py"
    for precision in ("bf16", "fp8", "int8-wo"):
        rows = [r for r in ROWS if r.precision == precision]
        assert {r.place for r in rows} == {"resident", "streamed", "constant"}
        assert {r.graphs for r in rows} == {True, False}
    for place in ("resident", "streamed", "constant"):
        assert {r.graphs for r in ROWS if r.place == place} == {True, False}


@pytest.fixture(scope="module")
def media(demo_model: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("matrix")
    write_media(folder, demo_model)
    pixels = np.random.default_rng(1).random((9, 64, 64, 3), np.float32)
    sound = np.sin(np.arange(2 * 24_000, dtype=np.float32)).reshape(2, -1)
    for name in ("in", "depth"):
        with VideoWriter(folder / f"{name}.mp4", 64, 64, 24, (sound, 48_000)) as writer:
            writer.write(pixels)
    write_demo_lora(folder / "other.safetensors", demo_model, 2)
    small = {"reference_downscale_factor": "2", "hdr_transform": "logc3"}
    write_demo_lora(folder / "hdr.safetensors", demo_model, 3, small)
    return folder


def asked(pipeline: str, media: Path) -> dict[str, Any]:
    """The request of a row."""
    image = ltx2rt.ImageCondition(path=media / "first.png")
    lora = (Lora(path=str(media / "hdr.safetensors"), strength=1.0),)
    reference = (ltx2rt.ReferenceFile(path=media / "depth.mp4"),)
    own: dict[str, dict[str, Any]] = {
        "distilled": {"images": (image,), **SIZE},
        "one-stage": SIZE,
        "keyframe": {
            "images": (image, ltx2rt.ImageCondition(path=media / "last.png", frame=8)), **SIZE,
        },
        "audio-to-video": {"audio": media / "talk.wav", **SIZE},
        "text-to-audio": {"num_frames": 9},
        "retake": {"video": media / "in.mp4", "start_time": 0.1, "end_time": 0.3},
        "retake-guided": {"video": media / "in.mp4", "start_time": 0.1, "end_time": 0.3},
        "retake-two-stage": {"video": media / "in.mp4", "start_time": 0.1, "end_time": 0.3},
        "retake-two-stage-guided": {"video": media / "in.mp4", "start_time": 0.1, "end_time": 0.3},
        "dub-it": {"reference_video": media / "in.mp4", "loras": lora, **SIZE},
        "ic-lora": {"references": reference, "loras": lora, **SIZE},
        "ic-lora-guided": {"references": reference, "loras": lora, **SIZE},
        "hdr-ic-lora": {"references": reference, "loras": lora, **LARGE},
        "upscale": {"source": media / "in.mp4"},
    }  # fmt: skip
    found = {"prompt": "a bell", "seed": 3, **own.get(pipeline, SIZE)}
    if pipeline in ("dub-it", "upscale"):
        found.pop("num_frames", None)
    if pipeline == "upscale":
        found = {"source": media / "in.mp4"}
    cls = catalog_class(pipeline)
    if cls.guided:
        alone = dataclasses.replace(PARAMS, modality_scale=1.0)
        params = {"text-to-audio": {"audio": alone}, "audio-to-video": {"video": PARAMS}}
        style = Lora(path=str(media / "style.safetensors"), strength=1.0)
        distilled = pipeline in ("two-stage", "two-stage-hq", "keyframe", "audio-to-video")
        found["guidance"] = ltx2rt.GuidanceConfig(
            num_inference_steps=3,
            **params.get(pipeline, {"video": PARAMS, "audio": PARAMS}),
            **({"distilled_lora": style} if distilled else {}),
        )
    return found


def made(pipeline: str, bundle: Path, runtime: RuntimeConfig, ask: Mapping[str, Any]) -> Any:
    """Everything that a run gives, by name."""
    with catalog_class(pipeline)(ltx2rt.open_bundle(bundle), runtime) as pipe:
        return contents(pipe(**ask))


def contents(clip: Any) -> dict[str, Array]:
    found = dict(clip.latents)
    if clip.video_latent is not None or getattr(clip, "has_frames", False):
        decode = clip.decoded_frames if hasattr(clip, "decoded_frames") else lambda: clip.frames
        found["frames"] = np.concatenate(list(decode()))
    if clip.audio is not None:
        found["sound"] = np.asarray(clip.audio)
    return found


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_row(
    simulate: Simulate, engine_bundle: EngineBundle, demo_bundle: Path, media: Path, row: Row
) -> None:
    flags = ("--weights", "constant") if row.place == "constant" else ()
    bundle = engine_bundle(row.precision, "--shapes", SHAPES, *flags)
    ask = asked(row.pipeline, media)
    run_row(simulate, row, bundle, demo_bundle, ask)


def run_row(
    simulate: Simulate, row: Row, bundle: Path, reference: Path, ask: Mapping[str, Any]
) -> None:
    streamed = row.place == "streamed"
    memory = least_memory_of(bundle) if streamed else ROOM
    runtime = RuntimeConfig(
        threads=1,
        residency="resident" if row.place == "resident" else "stage",
        cuda_graphs=row.graphs,
    )
    gpu = simulate(memory_bytes=memory, schedule=row.schedule)
    found = made(row.pipeline, bundle, runtime, ask)
    counters = gpu.counters()
    assert counters.launches > 0
    assert counters.live_bytes == 0
    assert counters.allocations == counters.frees
    if not row.graphs or streamed:
        assert counters.graph_launches == 0
    with pytest.MonkeyPatch.context() as patch:
        use_host_engines(patch)
        twin = made(row.pipeline, bundle, RuntimeConfig(threads=1), ask)
    assert found.keys() == twin.keys()
    for name, array in twin.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    official = made(row.pipeline, reference, RuntimeConfig(threads=1), ask)
    assert found.keys() == official.keys()
    errors = {
        name: float(np.linalg.norm(found[name] - latent) / np.linalg.norm(latent))
        for name, latent in official.items()
        # of 1x1 pixels the tiny upsampler is chaotic, and so are frames
        if not name.startswith("upsampled") and name not in ("frames", "sound")
    }
    print(row, {name: f"{error:.1e}" for name, error in errors.items()})
    bounds = SIMULATED_GUIDED_REL_L2 if "guidance" in ask else SIMULATED_LATENT_REL_L2
    assert all(error <= bounds[row.precision].bound for error in errors.values()), errors


@pytest.mark.parametrize(
    ("precision", "place"), [("bf16", "resident"), ("fp8", "streamed"), ("int8-wo", "resident")]
)
def test_loras_that_change(
    simulate: Simulate, engine_bundle: EngineBundle, media: Path, precision: str, place: str
) -> None:
    """A, then B, then none in one pipeline: each gives what it gives first, captured or not."""
    bundle = engine_bundle(precision, "--shapes", SHAPES)
    simulate(memory_bytes=least_memory_of(bundle) if place == "streamed" else ROOM)
    runtime = RuntimeConfig(threads=1, residency="resident" if place == "resident" else "stage")
    chosen = [
        (Lora(path=str(media / f"{name}.safetensors"), strength=1.0),)
        for name in ("style", "other")
    ]
    with ltx2rt.DistilledPipeline(ltx2rt.open_bundle(bundle), runtime) as pipe:
        found = [dict(pipe(prompt="a", seed=3, loras=x, **SIZE).latents) for x in (*chosen, ())]
    with pytest.MonkeyPatch.context() as patch:
        use_host_engines(patch)
        for loras, mine in zip((*chosen, ()), found, strict=True):
            ask = {"prompt": "a", "seed": 3, "loras": loras, **SIZE}
            twin = made("distilled", bundle, RuntimeConfig(threads=1), ask)
            for name, latent in mine.items():
                np.testing.assert_array_equal(latent, twin[name], err_msg=name)
    first = [latents["stage_1.video"] for latents in found]
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])
