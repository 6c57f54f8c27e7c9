"""What a retake keeps is what the model sees: the kept stream's latent against its source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ltx2rt.bundle.bundle import Bundle, open_bundle
from ltx2rt.components.stage_trace import StageTrace
from ltx2rt.config import RuntimeConfig
from ltx2rt.pipelines.retake import RetakePipeline
from tests.parity.media_files import video_file

STEPS = 8


class OfficialRetake(RetakePipeline):
    """With the official noise on the stream that is kept."""

    kept_noise_scale = 1.0


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video_file(tmp_path_factory.mktemp("kept") / "source.mp4", 9)


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path) -> Bundle:
    return open_bundle(demo_bundle)


def correlations(
    pipeline: type[RetakePipeline], bundle: Bundle, source: Path, kept: str
) -> list[float]:
    """Of the kept stream, as the model sees it at each step, with its source."""
    trace = StageTrace()
    with pipeline(bundle, RuntimeConfig(threads=1)) as pipe:
        pipe(
            prompt="a bell",
            seed=3,
            trace=trace,
            inputs=pipeline.Inputs(
                video=source, start_time=0, end_time=0.375, **{f"regenerate_{kept}": False}
            ),
        )
    want = trace.tensors[f"stage_1.{kept}.clean"]
    seen = [trace.tensors[f"stage_1.eval{i:02d}.{kept}.x"] for i in range(STEPS)]
    return [float(np.corrcoef(x.ravel(), want.ravel())[0, 1]) for x in seen]


@pytest.mark.parametrize("kept", ["video", "audio"])
def test_the_kept_stream_is_clean_at_every_step(bundle: Bundle, source: Path, kept: str) -> None:
    assert min(correlations(RetakePipeline, bundle, source, kept)) > 0.9999


def test_the_official_code_shows_noise_first(bundle: Bundle, source: Path) -> None:
    found = correlations(OfficialRetake, bundle, source, "video")
    assert abs(found[0]) < 0.3
    assert found[0] < found[-1]
