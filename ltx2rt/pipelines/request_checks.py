"""Checks of a request that every pipeline makes before anything is loaded."""

from __future__ import annotations

from dataclasses import replace

from ltx2rt.bundle import ModelSource
from ltx2rt.components.embeddings import check_embeddings
from ltx2rt.config import DEFAULT_NEGATIVE_PROMPT, GenerationConfig
from ltx2rt.errors import OptionError, join_problems
from ltx2rt.pipelines.run import Request


def check_stage_options(
    config: GenerationConfig, pipeline: str, *, guided: bool, two_stage: bool
) -> None:
    """Refuse samplers and sigmas for stages that a pipeline does not have.

    Raises:
        OptionError: lists all of them.
    """
    problems = []
    if config.sampler == "cfg_pp" and not guided:
        problems.append(f"sampler=cfg_pp is for guided pipelines; {pipeline} is not one")
    if config.stage_2_sampler == "cfg_pp":
        problems.append("stage_2_sampler=cfg_pp is not possible: stage 2 is not guided")
    if not two_stage:
        problems += [
            f"{name} is for pipelines of two stages; {pipeline} has one"
            for name in ("stage_2_sampler", "stage_2_sigmas")
            if getattr(config, name) is not None
        ]
    if problems:
        raise OptionError(join_problems("cannot generate", problems))


def with_embedded_prompts(request: Request, source: ModelSource) -> Request:
    """A request with embeddings, its prompts those that they were made from.

    Raises:
        CheckpointError: the embeddings do not fit the model.
        OptionError: they were made from other prompts than those asked for.
    """
    config, guidance = request.config, request.guidance
    assert config.embeddings is not None
    info = check_embeddings(config.embeddings, source.context_widths(), source.text_encoder_id)
    made_from = dict(zip(("prompt", "negative_prompt"), info.prompts, strict=False))
    asked = {"prompt": config.prompt} if config.prompt.strip() else {}
    if guidance is not None and guidance.negative_prompt != DEFAULT_NEGATIVE_PROMPT:
        asked["negative_prompt"] = guidance.negative_prompt
    problems = [
        f"they were made from {name} {made_from[name]!r:.80}, not from the one asked for; leave it "
        "out, or save them again"
        for name, text in asked.items()
        if made_from.get(name, text) != text
    ]
    if problems:
        raise OptionError(join_problems(f"embeddings {config.embeddings}", problems))
    if "prompt" in made_from:
        config = replace(config, prompt=made_from["prompt"])
    if guidance is not None and "negative_prompt" in made_from:
        guidance = replace(guidance, negative_prompt=made_from["negative_prompt"])
    return replace(request, config=config, guidance=guidance)
