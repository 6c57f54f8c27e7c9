"""Fixtures of the kernel tests: the interpreter's process, TensorRT without its libraries."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernels.interpreter import Interpreter


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Interpreter]:
    """Runs kernels on the CPU; one process a session."""
    worker = Interpreter()
    yield worker
    worker.close()
