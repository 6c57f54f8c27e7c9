"""A distilled model sampled like a full one, or the reverse, is said, with the right pipeline."""

from __future__ import annotations

import dataclasses
import warnings

import pytest

from ltx2rt.config import GenerationConfig, GuidanceConfig
from ltx2rt.lora.files import Lora
from ltx2rt.pipelines.catalog import PIPELINES, catalog_class
from ltx2rt.pipelines.model_kind import warn_of_model
from ltx2rt.pipelines.request import Request
from tests.unit.manifests import MODEL

PROMPT = GenerationConfig(prompt="a lake")


def said(pipeline: str, is_distilled: bool | None, config: GenerationConfig = PROMPT) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = dataclasses.replace(MODEL, is_distilled=is_distilled)
        guidance = GuidanceConfig(distilled_lora=Lora(path="d.safetensors"))
        warn_of_model(catalog_class(pipeline), model, Request(config=config, guidance=guidance))
    return "".join(str(w.message) for w in caught)


@pytest.mark.parametrize(
    ("pipeline", "is_distilled", "advice"),
    [
        ("one-stage", True, "use the distilled pipeline"),
        ("two-stage-hq", True, "use the distilled pipeline"),
        ("retake-guided", True, "use the retake pipeline"),
        ("retake-two-stage-guided", True, "use the retake-two-stage pipeline"),
        ("text-to-audio", True, "use a bundle of a full model"),
        ("distilled", False, "use the two-stage pipeline, or add the distilled LoRA"),
        ("retake", False, "use the retake-guided pipeline, or add the distilled LoRA"),
        ("dub-it", False, "use a bundle of a distilled model, or add the distilled LoRA"),
    ],
)
def test_the_wrong_pipeline(pipeline: str, is_distilled: bool, advice: str) -> None:
    assert advice in said(pipeline, is_distilled)
    assert not said(pipeline, not is_distilled)
    assert not said(pipeline, None)


def test_a_distilled_lora_makes_the_model_distilled() -> None:
    lora = Lora(path="ltx-2.5-22b-distilled-lora-450.safetensors")
    with_lora = dataclasses.replace(PROMPT, loras=(lora,))
    assert not said("distilled", False, with_lora)
    assert "samples it as a full one" in said("one-stage", False, with_lora)
    off = dataclasses.replace(PROMPT, loras=(dataclasses.replace(lora, strength=0.0),))
    assert said("distilled", False, off)


def test_two_stages_take_a_distilled_model_without_its_lora() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = dataclasses.replace(MODEL, is_distilled=True)
        warn_of_model(catalog_class("two-stage"), model, Request(config=PROMPT))


def test_own_sigmas_are_nobody_s_business() -> None:
    assert not said("one-stage", True, dataclasses.replace(PROMPT, sigmas=(1.0, 0.5, 0.0)))


def test_counterparts_exist() -> None:
    for name in PIPELINES:
        other = catalog_class(name).counterpart
        assert other is None or catalog_class(other).guided is not catalog_class(name).guided
