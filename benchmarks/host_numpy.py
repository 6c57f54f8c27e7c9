"""What numpy does on the host around the passes of a stage, at LTX-2.3's real sizes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from benchmarks.host_row import Row
from benchmarks.real_size import LTX23, block_component
from ltx2rt.components.denoisers import Guidance, GuidedDenoiser
from ltx2rt.components.text_encoder import TextContext
from ltx2rt.components.transformer import Pass, Velocities
from ltx2rt.engine import Array
from ltx2rt.latents.rope import rope_tables
from ltx2rt.latents.shapes import AudioLatentShape, VideoLatentShape
from ltx2rt.latents.state import LatentState, make_audio_state, make_video_state
from ltx2rt.latents.streams import Streams
from ltx2rt.sampling.guidance import GuiderParams, GuiderSchedule
from ltx2rt.sampling.samplers import euler_step, post_process
from ltx2rt.weights.floats import as_dtype, as_float32
from ltx2rt.weights.layout import transposed_copy

#: 1920x1088x121: 16 x 34 x 60 tokens, and their sound
VIDEO = VideoLatentShape(num_frames=16, height=34, width=60)
AUDIO = AudioLatentShape(num_frames=126)
FRAME_RATE = 24.0
GUIDED = GuiderParams(
    cfg_scale=3.0, stg_scale=1.0, stg_blocks=(28,), modality_scale=3.0, rescale_scale=0.7
)


def rows(runs: int) -> Iterator[Row]:
    """One after another, as they are measured."""
    states = Streams(make_video_state(VIDEO, FRAME_RATE), make_audio_state(AUDIO))
    yield Row(
        what="RoPE tables of a stage, 32,640 tokens",
        value=cpu_seconds(lambda: _tables(states), runs),
        unit="CPU seconds",
        bound=0.1,
        remark="numpy; all four pairs of LTX-2.3, bfloat16",
    )
    yield Row(
        what="guided step of 4 passes on the host, 32,640 tokens",
        value=cpu_seconds(_guided_step(states), runs),
        unit="CPU seconds",
        bound=0.15,
        remark="numpy; conversions to and from bfloat16, guidance, Euler",
    )
    weights = _linears()
    once = cpu_seconds(lambda: [transposed_copy(w) for w in weights], min(runs, 3))
    yield Row(
        what="weights laid out for a load of LTX-2.3 in bfloat16",
        value=once * LTX23.num_layers,
        unit="CPU seconds",
        bound=5.0,
        remark=f"numpy; {len(weights)} linears of one block, times {LTX23.num_layers}",
    )


def cpu_seconds(work: Callable[[], object], runs: int) -> float:
    """The median of runs after the first."""
    found = []
    for _ in range(runs + 1):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return statistics.median(found[1:])


def _tables(states: Streams[LatentState]) -> list[Array]:
    """As `StageConstants` makes them."""
    made: list[Array] = []
    cross_width = LTX23.heads * LTX23.cross_head_dim
    for stream in LTX23.streams:
        positions = dict(states.items())[stream.name].positions
        for used, width, extent in (
            (positions, stream.width, stream.max_pos),
            (positions[:, :1], cross_width, LTX23.streams[0].max_pos[:1]),
        ):
            made += rope_tables(
                used,
                width=width,
                heads=LTX23.heads,
                max_pos=extent,
                theta=LTX23.theta,
                dtype="bfloat16",
            )
    return made


class _Velocities:
    """In the place of a transformer: converts what goes in and out of it as a stack does."""

    def __init__(self, states: Streams[LatentState]) -> None:
        random = np.random.default_rng(1)
        self._given = states.map(
            lambda s: as_dtype(random.standard_normal(s.latent.shape, np.float32), "bfloat16")
        )

    def passes(self, asked: Sequence[Pass]) -> list[Velocities]:
        found: list[Velocities] = []
        for video, audio, _ in asked:
            for stream in (video, audio):
                assert stream is not None
                as_dtype(stream.latent, "bfloat16")
            video_velocity, audio_velocity = (
                as_float32(bits, "bfloat16") for _, bits in self._given.items()
            )
            found.append((video_velocity, audio_velocity))
        return found


def _guided_step(states: Streams[LatentState]) -> Callable[[], object]:
    text = {s.name: np.zeros((1, 1024, s.context_dim), np.float32) for s in LTX23.streams}
    context = TextContext(video=text["video"], audio=text["audio"])
    schedule = GuiderSchedule(bins={1.0: GUIDED})
    guidance = Guidance(
        video=schedule,
        audio=schedule,
        negative_video=text["video"],
        negative_audio=text["audio"],
    )
    denoise = GuidedDenoiser(_Velocities(states), states, context, guidance)  # type: ignore[arg-type]
    sigma, after = np.float32(0.9), np.float32(0.8)

    def step() -> object:
        latents = states.map(lambda s: s.latent)
        clean = denoise(latents, sigma, 0)
        return states.map(
            lambda s, x, estimate: euler_step(x, post_process(estimate, s), sigma, after),
            latents,
            clean,
        )

    return step


def _linears() -> list[Array]:
    """Of one block in 16 bits, `[out, in]`, with numbers in them."""
    block = block_component(LTX23.streams[0].width)
    tensors = block.module.state_dict().items()
    shapes = [tuple(w.shape) for n, w in tensors if w.ndim == 2 and n.endswith(".weight")]
    random = np.random.default_rng(2)
    return [random.integers(0, 1 << 16, shape, np.uint16) for shape in shapes]
