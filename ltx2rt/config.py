"""What to make (`GenerationConfig`) and how to run (`RuntimeConfig`): frozen, validated once."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ltx2rt.errors import Field, InternalError, OptionError, Problem, ShapeError
from ltx2rt.field_types import settle_types
from ltx2rt.latents.duration import AutoDuration
from ltx2rt.latents.frame_sizes import frame_size
from ltx2rt.latents.shapes import VIDEO_SCALE_FACTORS
from ltx2rt.latents.tiling import TilingConfig
from ltx2rt.lora.files import Lora
from ltx2rt.sampling.gpu_noise import noise_problems
from ltx2rt.sampling.guidance import GuiderParams, GuiderSchedule
from ltx2rt.sampling.samplers import SAMPLERS, Sampler
from ltx2rt.sampling.schedules import SCHEDULERS, Scheduler, sigma_table

#: of the guided pipelines: what the official one describes (spec/pipelines.md §0.8), in our own
#: words; `--negative-prompt @FILE` takes another
DEFAULT_NEGATIVE_PROMPT = (
    "speech that stops too early, burned-in captions, censored patches, fade from black, fade to "
    "black, words nobody asked for, wrong lines, phrases said twice, gaps between words, lips out "
    "of step with the voice, sound ahead of the picture, no sound, muffled track, hiss and hum, "
    "hollow reverberation, garbled voice, machine-like voice, too many arms or legs, crooked "
    "fingers, too many hands, melting face, lopsided face, eyes or mouth gone, waxy complexion, "
    "bodies out of proportion, people of another sex or origin than described, overacting, eyes "
    "that look elsewhere, lifeless mannequin, soft focus, unsharp, smeared movement, stutter, "
    "pulsing brightness, wobbling camera, crooked horizon, drifting frame, jumping cuts, events at "
    "the wrong moment, changing mood, too bright, too dark, dull greys, faded hues, gaudy hues, "
    "stripes in gradients, film grain, sensor noise, poor lamps, light without depth, hard black "
    "shadows, light from several sides, mirrors that distract, crowded backdrop, needle-sharp "
    "backdrop, focus at the wrong distance, skewed vanishing points, broken letters, drawn look, "
    "rendered look, rubber materials, heavy effects, glitches of a generator, logo, watermark"
)

#: of the distilled LoRA in stages 1 and 2 of the HQ pipeline
DISTILLED_STRENGTHS = (0.25, 0.5)

#: noise levels that the models were trained on: more steps than that add nothing
MAX_STEPS = 1000

#: CPU threads of an engine that no machine profits from more of
MAX_THREADS = 1024

#: how files write the paths of what they were made from
RecordPaths = Literal["relative", "absolute", "none"]

#: linear light of Rec.709 or AP1, or ACEScct codes (spec/media_io.md §6)
HDR_MODES = ("SRGB_LINEAR", "ACESCG", "ACESCCT")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """How to run.

    ```python
    runtime = ltx2rt.RuntimeConfig(threads=4, residency="resident")
    with ltx2rt.DistilledPipeline(bundle, runtime) as pipe:
        for clip in pipe.generate_many(prompt="A lake.", num_videos=2):
            clip.save(f"{clip.config.seed}.mp4")
    ```

    Attributes:
        threads: CPU threads per engine; 0 uses every core.
        spinning: CPU threads wait for their next work in a loop; costs CPU time, and gains time
            only where nothing else runs on those cores.
        residency: `stage` frees text encoder, transformer and upsampler as soon as their part is
            done; `resident` keeps every engine loaded between calls.
        max_batch_size: guidance passes that run together: faster on large machines, more memory.
        device: number of the GPU, among those that CUDA shows; None: the first, where the bundle
            needs one, else the CPU.
        devices: numbers of several GPUs instead: the guidance passes of a step run side by side,
            everything else on the first of them.
        cuda_graphs: a step is captured and replayed, with all its passes of the transformer, where
            the weights of that stay on the GPU.
        kernels: when TensorRT-RTX makes kernels for sizes: `eager` before the first run of a size,
            `none` never, `lazy` meanwhile, so that first runs give other bits and no graphs.
        record: files say how they were made: prompt, seed, everything that was asked for.
        record_paths: how they write paths: relative to themselves, absolute, or not at all.
        allow_nan: go on where latents, frames or sound hold NaN or Inf, which are written as black
            and silence.
        plugin_modules: Python modules that engines may import for their plugins; those of
            `ltx2rt_kernels` always may.
        engine_host_code: engines for several versions of TensorRT may run the native code that they
            bring.
    """

    threads: int = 0
    spinning: bool = False
    residency: str = "stage"
    max_batch_size: int = 1
    device: int | None = None
    devices: tuple[int, ...] = ()
    cuda_graphs: bool = True
    kernels: str = "eager"
    record: bool = True
    record_paths: RecordPaths = "relative"
    allow_nan: bool = False
    plugin_modules: tuple[str, ...] = ()
    engine_host_code: bool = False

    def __post_init__(self) -> None:
        settle_types(self)
        problems = []
        if self.threads < 0:
            problems.append(
                Problem(Field("threads"), f"={self.threads} is negative; 0 uses every core")
            )
        if self.threads > MAX_THREADS:
            problems.append(
                Problem(
                    Field("threads"),
                    f"={self.threads} is more than {MAX_THREADS}; 0 uses every core",
                )
            )
        if self.residency not in ("stage", "resident"):
            problems.append(
                Problem(Field("residency"), f"={self.residency!r}; allowed: stage, resident")
            )
        if self.max_batch_size < 1:
            problems.append(
                Problem(Field("max_batch_size"), f"={self.max_batch_size} is less than 1")
            )
        if self.device is not None and self.device < 0:
            problems.append(
                Problem(Field("device"), f"={self.device} is negative; GPUs are numbered from 0")
            )
        if len(set(self.devices)) < len(self.devices) or any(d < 0 for d in self.devices):
            problems.append(
                Problem(
                    Field("devices"), f"={list(self.devices)}; name each GPU once, counted from 0"
                )
            )
        if self.devices and self.device is not None:
            problems.append(Problem(Field("devices"), " names the GPUs already; leave device out"))
        if self.kernels not in ("eager", "none", "lazy"):
            problems.append(
                Problem(Field("kernels"), f"={self.kernels!r}; allowed: eager, none, lazy")
            )
        if self.record_paths not in typing.get_args(RecordPaths):
            problems.append(
                Problem(
                    Field("record_paths"),
                    f"={self.record_paths!r}; allowed: {', '.join(typing.get_args(RecordPaths))}",
                )
            )
        if problems:
            raise OptionError("runtime options", problems)

    @property
    def gpu(self) -> int | None:
        """Number of the GPU on which everything runs that needs but one; None: see `device`."""
        return self.devices[0] if self.devices else self.device


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageCondition:
    """An image that the clip must show.

    ```python
    last = ltx2rt.ImageCondition(path="last.png", frame=8, strength=0.8)
    pipe(prompt="A harbour wakes up.", images=["first.png", last])
    ```

    Attributes:
        path: the image file, or a short video: its first frames, as many as there are, are shown
            from that frame on.
        frame: pixel frame index; 0 replaces the first latent frame, others are attached as
            keyframes.
        strength: 1 pins the frame exactly, 0 ignores it.
        crf: H.264 quality of the compression round trip (0: none); default: the model version's.
    """

    path: Path
    frame: int = 0
    strength: float = 1.0
    crf: int | None = None

    def __post_init__(self) -> None:
        settle_types(self)
        problems = []
        if self.frame < 0:
            problems.append(
                Problem(Field("frame"), f"={self.frame} of image {self.path} is negative")
            )
        if not 0.0 <= self.strength <= 1.0:
            problems.append(
                Problem(
                    Field("strength"), f"={self.strength} of image {self.path} is not in [0, 1]"
                )
            )
        if self.crf is not None and not 0 <= self.crf <= 51:
            problems.append(
                Problem(Field("crf"), f"={self.crf} of image {self.path} is not in [0, 51]")
            )
        if problems:
            raise OptionError("an image cannot be used", problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighbourClip:
    """A clip that the one which is made goes on from, or leads to.

    Attributes:
        path: a video file.
        frames: how many both share, `8k+1`: what the model sees of it. With the clip after it, it
            shares one frame less.
    """

    path: Path
    frames: int = 25

    def __post_init__(self) -> None:
        settle_types(self)
        if self.frames < 9 or self.frames % VIDEO_SCALE_FACTORS.time != 1:
            raise OptionError(
                Problem(
                    Field("frames"),
                    f"={self.frames} to share with '{self.path}' is not 8k+1 and at least 9",
                )
            )

    def shared(self, *, is_end: bool) -> int:
        """Frames that are shared; `is_end`: it comes after the clip that is made."""
        return self.frames - is_end


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """What to make. Sizes are checked by the pipeline, which knows what it can do.

    Attributes:
        prompt: describes the clip; may be left out where `embeddings` are given, and by pipelines
            that need none.
        seed: of all noise.
        noise: whose generator draws it: `cpu` (the same noise everywhere), or as the official
            pipelines have it on a GPU, by name (`h100`) or by its multiprocessors and their
            threads (`132x2048`).
        height, width: pixels.
        num_frames: pixel frames, or an `AutoDuration` (LTX-2.5): the model then chooses them for
            the prompt.
        frame_rate: frames per second.
        images: what the clip must show.
        tiling: of the decoder: `auto`, `none` or sizes, see `TilingConfig.parse`.
        loras: merged into the transformer in memory, in order, for every stage of this clip.
        generated_keyframes: LTX-2.5: single frames that stage 1 makes along with the clip: a
            number of them, evenly spread, or their pixel frame indices.
        hdr: makes a clip of high dynamic range, and says what the EXR files hold that it takes
            and writes (`HDR_MODES`).
        sampler, stage_2_sampler: of stages 1 and 2 instead of the pipeline's.
        sigmas, stage_2_sigmas: noise levels of stages 1 and 2 instead of the pipeline's.
        stage_2_loras: in stage 2, and what follows it, instead of `loras`: others, or the same at
            other strengths.
        audio: a sound or video file whose sound the clip gets as it is, at its own rate (mono is
            doubled to stereo, 5.1 and 7.1 stay what they are); the picture follows it. Where no
            number of frames is named, the clip is as long as the sound, at most 20 seconds.
        audio_start_time: where in that file the clip begins, in seconds.
        audio_max_duration: read no more seconds of it than this; default: as many as the clip
            lasts.
        with_audio: False makes the picture alone: the model's branch of the sound is not run.
        latents: a file of `Clip.save_latents`, whose first stage is taken over: only what follows
            it is made, with other LoRAs, noise levels or prompt if they are named.
        after: the clip goes on from this one: begins with its last frames and their sound.
        before: the clip leads to this one: ends with its first frames and their sound.
        stage_2_tile: stage 2 works in overlapping tiles no larger than this (1920x1088, 1080p):
            for 1440p and 4K, which no model was trained on. The sound is that of stage 1.
        embeddings: a file of text contexts instead of the text encoder (`read_embeddings`).
        user_prompt: what the user wrote, where `prompt` is an enhanced one; only recorded.
    """

    prompt: str = ""
    seed: int = 10
    noise: str = "cpu"
    height: int = 1024
    width: int = 1536
    num_frames: int | AutoDuration = 121
    frame_rate: float = 24.0
    images: tuple[ImageCondition, ...] = ()
    tiling: str = "auto"
    loras: tuple[Lora, ...] = ()
    generated_keyframes: int | tuple[int, ...] = 0
    hdr: str | None = None
    sampler: Sampler | None = None
    sigmas: tuple[float, ...] | None = None
    stage_2_sampler: Sampler | None = None
    stage_2_sigmas: tuple[float, ...] | None = None
    stage_2_loras: tuple[Lora, ...] | None = None
    stage_2_tile: str | None = None
    audio: Path | None = None
    audio_start_time: float = 0.0
    audio_max_duration: float | None = None
    with_audio: bool = True
    latents: Path | None = None
    after: NeighbourClip | None = None
    before: NeighbourClip | None = None
    embeddings: Path | None = None
    user_prompt: str | None = None

    def __post_init__(self) -> None:
        settle_types(self)
        problems = []
        if self.prompt and not self.prompt.strip():
            problems.append("the prompt is empty; describe the clip in a sentence")
        if not self.prompt.isascii() and any(0xD800 <= ord(c) <= 0xDFFF for c in self.prompt):
            problems.append("the prompt is not valid UTF-8 text")
        if not -(2**63) <= self.seed < 2**64:
            problems.append(Problem(Field("seed"), f"={self.seed} does not fit 64 bits"))
        problems += noise_problems(self.noise)
        if not (math.isfinite(self.frame_rate) and 1 <= self.frame_rate <= 240):
            problems.append(Problem(Field("frame_rate"), f"={self.frame_rate} is not in [1, 240]"))
        if self.hdr not in (None, *HDR_MODES):
            problems.append(
                Problem(Field("hdr"), f"={self.hdr!r}; allowed: {', '.join(HDR_MODES)}")
            )
        try:
            TilingConfig.parse(self.tiling)
        except (OptionError, ShapeError) as error:
            problems += error.problems
        if self.stage_2_tile is not None:
            try:
                frame_size(self.stage_2_tile)
            except OptionError as error:
                problems += error.problems
        for name in ("sampler", "stage_2_sampler"):
            if (sampler := getattr(self, name)) not in (None, *SAMPLERS):
                problems.append(
                    Problem(Field(name), f"={sampler!r}; allowed: {', '.join(SAMPLERS)}")
                )
        for name in ("sigmas", "stage_2_sigmas"):
            problems += sigma_problems(name, getattr(self, name))
        if isinstance(self.num_frames, int):
            problems += [
                f"image {i.path} is placed at frame {i.frame}; the clip has {self.num_frames} "
                "frames"
                for i in self.images
                if i.frame >= self.num_frames
            ]
        problems += lora_problems((*self.loras, *(self.stage_2_loras or ())))
        problems += self._sound_problems()
        if problems:
            raise OptionError("cannot generate", problems)

    def _sound_problems(self) -> list[str]:
        problems: list[str] = []
        start, longest = self.audio_start_time, self.audio_max_duration
        if not (math.isfinite(start) and start >= 0):
            problems.append(
                Problem(Field("audio_start_time"), f"={start} is not 0 or more seconds")
            )
        if longest is not None and not (math.isfinite(longest) and longest > 0):
            problems.append(
                Problem(
                    Field("audio_max_duration"), f"={longest} is not a number of seconds above 0"
                )
            )
        if self.audio is not None and not self.with_audio:
            problems.append(
                Problem(Field("config.audio"), " is sound for a clip that shall have none")
            )
        if self.audio is None and (start or longest is not None):
            named = Field("audio_start_time") if start else Field("audio_max_duration")
            problems.append(Problem(named, " means nothing without ", Field("config.audio")))
        return problems

    @property
    def refine_loras(self) -> tuple[Lora, ...]:
        """LoRAs of stage 2."""
        return self.loras if self.stage_2_loras is None else self.stage_2_loras

    @property
    def frame_count(self) -> int:
        """`num_frames` as a number, which an automatic duration has once it was predicted."""
        if not isinstance(self.num_frames, int):
            raise InternalError("the number of frames was asked for before it was predicted")
        return self.num_frames


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidanceConfig:
    """How the guided pipelines sample; what is None takes the default of pipeline and model.

    Attributes:
        negative_prompt: what the clip must not be; used where a `cfg_scale` is not 1.
        num_inference_steps: steps of stage 1.
        scheduler: makes the noise levels of stage 1.
        video, audio: guidance of stage 1.
        video_schedule, audio_schedule: guidance that depends on the noise level, instead.
        distilled_lora: makes stage 2 of the two-stage pipelines work in 3 steps; they need it.
        distilled_strengths: its strengths in stages 1 and 2 of the HQ pipeline, which ignores the
            LoRA's own.
    """

    negative_prompt: str = DEFAULT_NEGATIVE_PROMPT
    num_inference_steps: int | None = None
    video: GuiderParams | None = None
    audio: GuiderParams | None = None
    video_schedule: GuiderSchedule | None = None
    audio_schedule: GuiderSchedule | None = None
    scheduler: Scheduler = "ltx2"
    distilled_lora: Lora | None = None
    distilled_strengths: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        settle_types(self)
        problems = []
        if any(0xD800 <= ord(c) <= 0xDFFF for c in self.negative_prompt):
            problems.append("the negative prompt is not valid UTF-8 text")
        steps = self.num_inference_steps
        if steps is not None and not 1 <= steps <= MAX_STEPS:
            problems.append(
                Problem(Field("num_inference_steps"), f"={steps} is not in [1, {MAX_STEPS}]")
            )
        if self.scheduler not in SCHEDULERS:
            problems.append(
                Problem(
                    Field("scheduler"), f"={self.scheduler!r}; allowed: {', '.join(SCHEDULERS)}"
                )
            )
        if self.distilled_lora is not None:
            problems += lora_problems([self.distilled_lora])
        if not all(math.isfinite(s) for s in self.distilled_strengths or ()):
            problems.append(
                Problem(
                    Field("distilled_strengths"), f"={self.distilled_strengths} are not numbers"
                )
            )
        if problems:
            raise OptionError("guidance options", problems)


def sigma_problems(name: str, sigmas: tuple[float, ...] | None) -> list[str]:
    """What is wrong with noise levels that replace a pipeline's."""
    if sigmas is None:
        return []
    try:
        table = sigma_table(sigmas)
    except OptionError as error:
        return [Problem(Field(name), f": {problem}") for problem in error.problems]
    if table[0] > 1 or table[-1] != 0:
        return [
            Problem(
                Field(name),
                f" must start at 1 or below and end at 0, found {table[0]:g} to {table[-1]:g}",
            )
        ]
    return []


def lora_problems(loras: Iterable[Lora]) -> list[str]:
    """What is wrong with LoRA options, files not looked at."""
    return [
        Problem(Field("strength"), f"={lora.strength} of LoRA {lora.path} is not a number")
        for lora in loras
        if not math.isfinite(lora.strength)
    ]
