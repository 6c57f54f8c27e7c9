"""Prompts written out by the text encoder of the bundle itself."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ltx2rt.components.enhance import EnhanceConfig, enhance_prompt
from ltx2rt.pipelines.engines import Engines
from ltx2rt.progress import Job

STAGE = "enhance prompt"

logger = logging.getLogger(__name__)


def enhanced_by_own(engines: Engines, prompt: str, image: Path | None, seed: int, job: Job) -> str:
    """See `Pipeline.enhance_prompt`."""
    if image is not None:
        logger.warning(
            "the bundle's Gemma does not see %s: it writes from the words alone; a model that sees "
            "it is named by --enhance-model",
            image,
        )

    def ask(messages: list[dict[str, Any]], _: Path | None, seed: int) -> str:
        with engines.language_model() as model:
            text = "\n\n".join(message["content"] for message in messages)
            answer = model.answer(
                text, seed=seed, on_token=lambda done, most: job.report(STAGE, done, most)
            )
        job.report(STAGE, 1, 1)
        return answer

    job.report(STAGE, 0, 1)
    own = f"{engines.source.bundle_id} {engines.runtime.threads}"
    return enhance_prompt(prompt, EnhanceConfig(), image=image, seed=seed, local=ask, own=own)
