"""The prompt enhancement flags of `ltx2rt generate`."""

from __future__ import annotations

import argparse
import dataclasses

from ltx2rt.cli.common import export_module
from ltx2rt.config import GenerationConfig

DEFAULT_TIMEOUT_S = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("prompt enhancement")
    group.add_argument(
        "--enhance-prompt",
        action="store_true",
        default=None,
        help="let a language model write out the prompt; the answer is cached and recorded",
    )
    group.add_argument(
        "--enhance-url",
        metavar="URL",
        help="an endpoint that speaks the OpenAI protocol, such as http://127.0.0.1:8080/v1; its "
        "key is read from LTX2RT_ENHANCE_KEY",
    )
    group.add_argument(
        "--enhance-model",
        metavar="NAME|DIR",
        help="the model's name there; without --enhance-url the folder of a transformers model",
    )
    group.add_argument(
        "--enhance-timeout",
        type=float,
        metavar="S",
        help=f"seconds to wait for the endpoint; default {DEFAULT_TIMEOUT_S:g}",
    )


def problems_of(options: argparse.Namespace) -> list[str]:
    """What does not go together."""
    from ltx2rt.components.enhance import EnhanceConfig
    from ltx2rt.errors import OptionError

    more = ("enhance_url", "enhance_model", "enhance_timeout")
    given = [f"--{n.replace('_', '-')}" for n in more if getattr(options, n) is not None]
    if not options.enhance_prompt:
        return [f"{', '.join(given)} needs --enhance-prompt"] if given else []
    if options.enhance_model is None:
        return ["--enhance-prompt needs --enhance-model (and --enhance-url for an endpoint)"]
    problems = []
    if options.embeddings is not None:
        problems.append("--enhance-prompt cannot be used with --embeddings")
    try:
        EnhanceConfig(
            model=options.enhance_model,
            url=options.enhance_url,
            timeout_s=options.enhance_timeout or DEFAULT_TIMEOUT_S,
        )
    except OptionError as error:
        problems.append(str(error))
    return problems


def enhanced(config: GenerationConfig, options: argparse.Namespace, seed: int) -> GenerationConfig:
    """The request with its prompt written out, if the flags ask for it."""
    if not options.enhance_prompt:
        return config
    from ltx2rt.components.enhance import EnhanceConfig, enhance_prompt

    who = EnhanceConfig(
        model=options.enhance_model,
        url=options.enhance_url,
        timeout_s=options.enhance_timeout or DEFAULT_TIMEOUT_S,
    )
    local = None if who.url is not None else export_module("enhance").local_model(who.model)
    prompt = config.user_prompt or config.prompt
    image = config.images[0].path if config.images else None
    answer = enhance_prompt(prompt, who, image=image, seed=seed, local=local)
    return dataclasses.replace(config, prompt=answer, user_prompt=prompt)
