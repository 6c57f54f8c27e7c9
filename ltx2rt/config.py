"""What to make (`GenerationConfig`) and how to run (`RuntimeConfig`): frozen, validated once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ltx2rt.errors import OptionError, join_problems


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """How to run.

    Attributes:
        threads: CPU threads per engine; 0 uses every core.
        residency: `stage` frees the text encoder, transformer and upsampler as soon as their part
        is done; `resident` keeps
            every engine loaded between calls.
    """

    threads: int = 0
    residency: str = "stage"

    def __post_init__(self) -> None:
        problems = []
        if self.threads < 0:
            problems.append(f"threads={self.threads} is negative; 0 uses every core")
        if self.residency not in ("stage", "resident"):
            problems.append(f"residency={self.residency!r}; allowed: stage, resident")
        if problems:
            raise OptionError(join_problems("runtime options", problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageCondition:
    """An image that the clip must show.

    Attributes:
        path: the image file.
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
        problems = []
        if self.frame < 0:
            problems.append(f"frame={self.frame} is negative")
        if not 0.0 <= self.strength <= 1.0:
            problems.append(f"strength={self.strength} is not in [0, 1]")
        if self.crf is not None and not 0 <= self.crf <= 51:
            problems.append(f"crf={self.crf} is not in [0, 51]")
        if problems:
            raise OptionError(join_problems(f"image {self.path}", problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """What to make. Sizes are checked by the pipeline, which knows what it can do."""

    prompt: str
    seed: int = 10
    height: int = 1024
    width: int = 1536
    num_frames: int = 121
    frame_rate: float = 24.0
    images: tuple[ImageCondition, ...] = ()
    tiling: str = "auto"

    def __post_init__(self) -> None:
        problems = []
        if not self.prompt.strip():
            problems.append("the prompt is empty; describe the clip in a sentence")
        if not -(2**63) <= self.seed < 2**64:
            problems.append(f"seed={self.seed} does not fit 64 bits")
        if not (math.isfinite(self.frame_rate) and 1 <= self.frame_rate <= 240):
            problems.append(f"frame_rate={self.frame_rate} is not in [1, 240]")
        if self.tiling not in ("auto", "none"):
            problems.append(f"tiling={self.tiling!r}; allowed: auto, none")
        problems += [
            f"image {i.path} is placed at frame {i.frame}; the clip has {self.num_frames} frames"
            for i in self.images
            if i.frame >= self.num_frames
        ]
        if problems:
            raise OptionError(join_problems("cannot generate", problems))
