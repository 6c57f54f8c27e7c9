"""The server against its own OpenAPI document, by a tester that nobody here wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from ltx2rt.service.http.openapi import openapi_document
from tests.parity.http_server import Server, serving

load_all_checks()
PROVED = CHECKS.get_by_names(
    [
        "not_a_server_error", "status_code_conformance", "content_type_conformance",
        "response_schema_conformance",
    ]
)  # fmt: skip
#: waits for a clip: not a call to make thousands of
WAITS = "/v1/videos/sync"
#: says 503, as the document names it, until a worker answers
READY = "/health/ready"


@pytest.fixture(scope="module")
def server(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("openapi")
    with serving(demo_bundle, folder, "--max-queue", 8, "--max-frames", 9) as server:
        yield server


def attack(server: Server, examples: int) -> set[tuple[str, int]]:
    """Every call with arguments that the document allows, and with such that it does not; gives
    what was answered.
    """
    schema = schemathesis.openapi.from_dict(openapi_document())
    seen: set[tuple[str, int]] = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path == WAITS:
            continue
        cases = [operation.as_strategy(mode) for mode in GenerationMode]

        @settings(
            max_examples=examples, deadline=None, database=None, derandomize=True,
            suppress_health_check=[*HealthCheck],
        )  # fmt: skip
        @given(st.one_of(cases))
        def call(case: Case) -> None:
            answer = case.call(base_url=server.url)
            seen.add((case.operation.label, answer.status_code))
            case.validate_response(answer, checks=PROVED[1:] if case.path == READY else PROVED)
            if answer.status_code == 200 and case.operation.label == "POST /v1/videos":
                server.call("DELETE", f"/v1/videos/{answer.json()['id']}")

        call()
    return seen


def check(seen: set[tuple[str, int]]) -> None:
    """Each call was made, and with what is wrong too."""
    document = openapi_document()["paths"]
    named = {
        f"{method.upper()} {path}"
        for path, calls in document.items()
        for method in calls
        if method != "parameters" and path != WAITS
    }
    assert {label for label, _ in seen} == named
    assert {("POST /v1/videos", 400), ("GET /v1/videos", 400)} <= seen
    assert ("GET /v1/videos/{id}", 404) in seen


def test_the_server_is_as_it_says(server: Server) -> None:
    check(attack(server, 8))


@pytest.mark.fuzz
def test_the_server_is_as_it_says_at_length(server: Server) -> None:
    check(attack(server, 2000))


def test_it_says_all_of_it(server: Server) -> None:
    """The document is served, and names every route of the server but the page."""
    from ltx2rt.service.http import app

    assert server.call("GET", "/openapi.json").json == openapi_document()
    routes = {r.path for r in app._routes(None, _Calls(), None)}  # type: ignore[arg-type]
    assert routes - {*app._PAGE} == {*openapi_document()["paths"]}


class _Calls:
    """Stands for whatever answers."""

    def __getattr__(self, name: str) -> Any:
        async def answer(request: Any) -> Any: ...

        return answer
