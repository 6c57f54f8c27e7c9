"""A prompt that is longer than what the text encoder sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltx2rt.bundle.bundle import open_bundle
from ltx2rt.config import RuntimeConfig
from ltx2rt.pipelines.distilled import DistilledPipeline

END = " THE LAST WORDS"


def test_the_lost_end_is_said_and_recorded(demo_bundle: Path) -> None:
    prompt = "a red lighthouse, " * 600 + END
    with DistilledPipeline(open_bundle(demo_bundle), RuntimeConfig(threads=1)) as pipe:
        with pytest.warns(UserWarning, match=r"takes \d+ tokens, .* the first 1024"):
            clip = pipe(prompt=prompt, height=64, width=64, num_frames=9)
    (cut,) = clip.record.stages["prompt"]["cut"]
    assert cut["tokens"] > cut["kept"] == 1024
    assert prompt.endswith(cut["lost"])
    assert len(END) < len(cut["lost"]) < len(prompt)
    assert clip.metadata()["prompt_cut"].endswith(END)
