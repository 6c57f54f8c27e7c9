"""Everything that stands for a bundle has the face that pipelines use."""

from __future__ import annotations

import dis
import inspect

import pytest

from benchmarks.quality import EmulatedSource
from ltx2rt.bundle.bundle import Bundle
from ltx2rt.bundle.loader import Loader
from ltx2rt.bundle.source import ModelFacts, ModelLoader
from tests.parity.pipeline_source import ComponentSource

FACES = pytest.mark.parametrize(
    ("protocol", "source"),
    [
        (ModelFacts, Bundle),
        (ModelLoader, Loader),
        (ModelFacts, EmulatedSource),
        (ModelLoader, EmulatedSource),
        (ModelFacts, ComponentSource),
        (ModelLoader, ComponentSource),
    ],
)


@FACES
def test_sources_have_the_methods_of_the_protocol(protocol: type, source: type) -> None:
    names = [n for n, v in vars(protocol).items() if inspect.isfunction(v) and n[0] != "_"]
    assert {"has", "stack"} & set(names)
    for name in names:
        wanted = inspect.signature(getattr(protocol, name)).parameters
        found = inspect.signature(getattr(source, name)).parameters
        assert [(p.name, p.kind, p.default) for p in wanted.values()] == [
            (p.name, p.kind, p.default) for p in found.values()
        ], name


def set_in_init(source: type) -> set[str]:
    """Attributes that instances get when they are made."""
    steps = dis.get_instructions(vars(source)["__init__"])
    return {step.argval for step in steps if step.opname == "STORE_ATTR"}


@pytest.mark.parametrize("source", [Bundle, EmulatedSource, ComponentSource])
def test_sources_have_the_properties_of_the_protocol(source: type) -> None:
    names = {n for n, v in vars(ModelFacts).items() if isinstance(v, property)}
    assert names >= {"model", "bundle_id", "text_encoder_id"}
    missing = {n for n in names if not hasattr(source, n)} - set_in_init(source)
    assert not missing
    methods = {n for n in names if inspect.isfunction(getattr(source, n, None))}
    assert not methods  # read without a call
