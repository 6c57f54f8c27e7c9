"""Text contexts that are made apart from the clips they are for, and handed over as a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ltx2rt.bundle.bundle import Bundle
from ltx2rt.components.embeddings import check_embeddings, read_embeddings, write_embeddings
from ltx2rt.components.finite import check_finite
from ltx2rt.components.text_encoder import TextContext
from ltx2rt.config import RuntimeConfig
from ltx2rt.errors import OptionError
from ltx2rt.pipelines.base import Pipeline
from ltx2rt.pipelines.engines import Engines
from ltx2rt.pipelines.request import Request


class Encoder:
    """The text encoder of a bundle and nothing else of it; loaded by the first prompt.

    Args:
        bundle: opened.
        runtime: which device, and how.
    """

    def __init__(self, bundle: Bundle, runtime: RuntimeConfig) -> None:
        self._bundle = bundle
        self._engines = Engines(bundle, runtime)

    def close(self) -> None:
        """Free it."""
        self._engines.close()

    def __call__(self, prompts: Sequence[str]) -> dict[str, TextContext]:
        """The context of every prompt, `[1, 1024, C]`. They go through the layers together, so that
        a layer that does not stay on the device is loaded once for all of them.

        Raises:
            EngineError: an engine failed, or gave NaN or infinity.
        """
        different = [*dict.fromkeys(prompts)]
        found = self._engines.prompt_encoder()(different)
        contexts = {"the video context": found.video, "the audio context": found.audio}
        check_finite("prompt", contexts, allowed=self._engines.runtime.allow_nan)
        return {
            prompt: TextContext(found.video[i : i + 1], found.audio[i : i + 1])
            for i, prompt in enumerate(different)
        }

    def write(self, path: Path, prompts: Sequence[str], contexts: dict[str, TextContext]) -> None:
        """A file of the contexts of these prompts, as `take_contexts` takes it."""
        video = np.concatenate([contexts[p].video for p in prompts])
        audio = np.concatenate([contexts[p].audio for p in prompts])
        write_embeddings(path, TextContext(video, audio), prompts, self._bundle.text_encoder_id)


def take_contexts(pipe: Pipeline, request: Request, path: Path) -> None:
    """Let a pipeline's next clip have contexts that were made elsewhere, in place of its own text
    encoder.

    Args:
        pipe: makes the clip.
        request: accepted.
        path: what `Encoder.write` wrote.

    Raises:
        CheckpointError: the file does not fit the model.
        OptionError: it is of other prompts, or LoRAs of the request change what prompts become.
    """
    source = pipe.source
    info = check_embeddings(path, source.context_widths(), source.text_encoder_id)
    prompts = tuple(pipe.prompts(request))
    if info.prompts[: len(prompts)] != prompts:
        raise OptionError(
            f"these text contexts are of {list(info.prompts)!r:.200}, but this clip needs those of "
            f"{list(prompts)!r:.200}: encode them, or leave the contexts out."
        )
    if loras := pipe.engines.loader.text_loras(request.config.loras):
        named = ", ".join(lora.path for lora in loras)
        raise OptionError(
            f"{named} changes the text connectors, so that text contexts made without it do not "
            "fit: leave the contexts out."
        )
    pipe.engines.contexts = prompts, (), read_embeddings(path, len(prompts))
