"""How `ltx2rt generate` goes about its work, besides what a request says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ltx2rt.errors import Field, OptionError, Problem
from ltx2rt.field_types import settle_types

MAX_VIDEOS = 10_000

#: how progress is printed
Form = Literal["bar", "lines", "json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How `ltx2rt generate` goes about its work.

    Attributes:
        pipeline: default distilled; see `ltx2rt pipelines`.
        num_videos: clips, with seeds counted up from --seed.
        save_embeddings: write the text contexts of the clip.
        enhance_prompt: let a language model write out the prompt; the answer is cached and
            recorded.
        weights_dir: where weight files are now, if they moved.
        quiet: nothing on stderr but errors: no progress, notes, warnings.
        progress: how progress is printed on stderr; default: bar on a terminal, lines elsewhere.
            json is one document a line, for programs.
        json: print the result as JSON.
        preview: write a small .gif or .webp of what is being made, anew while it is sampled.
        preview_every: after every so many-th step.
        work_dir: keep every finished stage here; with --resume OUTPUT.work if left out.
        trace: write what ran when: stages, engines, GPU streams, uploads, the encoder; a Chrome
            trace (.json) for chrome://tracing or Perfetto.
        resume: go on after the last finished stage of this same request; clips that it finished are
            left alone.
    """

    pipeline: str = "distilled"
    num_videos: int | None = None
    save_embeddings: Path | None = None
    enhance_prompt: bool = False
    weights_dir: Path | None = None
    quiet: bool = False
    progress: Form | None = None
    json: bool = False
    preview: Path | None = None
    preview_every: int = 1
    work_dir: Path | None = None
    trace: Path | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        settle_types(self)
        if self.preview_every < 1:
            raise OptionError(
                Problem(Field("preview_every"), f"={self.preview_every} is less than 1")
            )
        if self.num_videos is not None and not 1 <= self.num_videos <= MAX_VIDEOS:
            raise OptionError(
                Problem(Field("num_videos"), f"={self.num_videos} is not in [1, {MAX_VIDEOS}]")
            )
